-- The issue tracker that every benchmark runs on.
CREATE TABLE users (
    id text PRIMARY KEY,
    login text NOT NULL,
    name text NOT NULL,
    role text NOT NULL
);
CREATE TABLE labels (
    id text PRIMARY KEY,
    name text NOT NULL
);
CREATE TABLE issues (
    id text PRIMARY KEY,
    short_id integer NOT NULL,
    project text NOT NULL,
    title text NOT NULL,
    description text NOT NULL,
    open boolean NOT NULL,
    owner_id text,
    votes bigint NOT NULL,
    meta jsonb NOT NULL,
    created timestamptz NOT NULL,
    modified timestamptz NOT NULL
);
CREATE TABLE comments (
    id text PRIMARY KEY,
    issue_id text NOT NULL,
    author_id text NOT NULL,
    body text NOT NULL,
    created timestamptz NOT NULL
);
CREATE TABLE issue_labels (
    issue_id text NOT NULL,
    label_id text NOT NULL,
    PRIMARY KEY (issue_id, label_id)
);
