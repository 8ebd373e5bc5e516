-- The demo issue tracker. Names are snake_case here and camelCase in the clients
-- (demo_schema.py maps them), as in most applications.

CREATE TYPE issue_priority AS ENUM ('low', 'medium', 'high');

CREATE TABLE "user" (
    id text PRIMARY KEY,
    name text NOT NULL,
    color text NOT NULL
);

CREATE TABLE issue (
    id text PRIMARY KEY,
    title text NOT NULL CHECK (title <> ''),
    description text NOT NULL DEFAULT '',
    open boolean NOT NULL DEFAULT true,
    priority issue_priority NOT NULL DEFAULT 'medium',
    creator_id text NOT NULL REFERENCES "user" (id),
    assignee_id text REFERENCES "user" (id),
    created_at timestamptz NOT NULL DEFAULT now(),
    modified_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE comment (
    id text PRIMARY KEY,
    issue_id text NOT NULL REFERENCES issue (id) ON DELETE CASCADE,
    author_id text NOT NULL REFERENCES "user" (id),
    body text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE label (
    id text PRIMARY KEY,
    name text NOT NULL UNIQUE,
    color text NOT NULL
);

CREATE TABLE issue_label (
    issue_id text NOT NULL REFERENCES issue (id) ON DELETE CASCADE,
    label_id text NOT NULL REFERENCES label (id) ON DELETE CASCADE,
    PRIMARY KEY (issue_id, label_id)
);

CREATE INDEX issue_modified ON issue (modified_at DESC, id);
CREATE INDEX issue_created ON issue (created_at DESC, id);
CREATE INDEX issue_creator ON issue (creator_id);
CREATE INDEX issue_assignee ON issue (assignee_id);
CREATE INDEX comment_issue ON comment (issue_id, created_at, id);
CREATE INDEX comment_author ON comment (author_id);
CREATE INDEX issue_label_label ON issue_label (label_id, issue_id);

-- Whoever changes an issue, the page or a hand in psql, moves it to the top of the list.
CREATE FUNCTION touch_issue() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.modified_at := clock_timestamp();
    RETURN NEW;
END
$$;

CREATE TRIGGER touch_issue BEFORE UPDATE ON issue
FOR EACH ROW EXECUTE FUNCTION touch_issue();
