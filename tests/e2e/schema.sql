-- Upstream tables of the end-to-end tests. `beat` is the clock: every step of a scenario bumps
-- it in the same transaction, so a client that shows beat n must show everything of step n.
CREATE TABLE teams (id text PRIMARY KEY, name text NOT NULL);
CREATE TABLE people (id text PRIMARY KEY, name text NOT NULL, team_id text);
CREATE TABLE issues (
  id text PRIMARY KEY,
  title text NOT NULL,
  open boolean NOT NULL,
  rank int,
  owner_id text,
  created timestamptz NOT NULL DEFAULT 'epoch',
  meta jsonb
);
CREATE TABLE comments (id text PRIMARY KEY, issue_id text NOT NULL, body text NOT NULL, likes int NOT NULL);
CREATE TABLE labels (id text PRIMARY KEY, name text NOT NULL);
CREATE TABLE issue_labels (issue_id text, label_id text, PRIMARY KEY (issue_id, label_id));
CREATE TABLE beat (id text PRIMARY KEY, n int NOT NULL);
