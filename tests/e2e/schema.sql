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
CREATE TABLE comments (
  id text PRIMARY KEY, issue_id text NOT NULL, body text NOT NULL, likes int NOT NULL);
CREATE TABLE labels (id text PRIMARY KEY, name text NOT NULL);
CREATE TABLE issue_labels (issue_id text, label_id text, PRIMARY KEY (issue_id, label_id));
CREATE TABLE beat (id text PRIMARY KEY, n int NOT NULL);
INSERT INTO beat VALUES ('beat', 0);

-- A row as the client shows it: client names, times as milliseconds. For the tests' own answers.
CREATE FUNCTION shown(t teams) RETURNS jsonb STABLE LANGUAGE sql AS
  $$ SELECT jsonb_build_object('id', t.id, 'name', t.name) $$;
CREATE FUNCTION shown(p people) RETURNS jsonb STABLE LANGUAGE sql AS
  $$ SELECT jsonb_build_object('id', p.id, 'name', p.name, 'teamID', p.team_id) $$;
CREATE FUNCTION shown(i issues) RETURNS jsonb STABLE LANGUAGE sql AS
  $$ SELECT jsonb_build_object('id', i.id, 'title', i.title, 'open', i.open, 'rank', i.rank,
    'ownerID', i.owner_id, 'created', extract(epoch FROM i.created) * 1000, 'meta', i.meta) $$;
CREATE FUNCTION shown(c comments) RETURNS jsonb STABLE LANGUAGE sql AS
  $$ SELECT jsonb_build_object(
    'id', c.id, 'issueID', c.issue_id, 'body', c.body, 'likes', c.likes) $$;
CREATE FUNCTION shown(l labels) RETURNS jsonb STABLE LANGUAGE sql AS
  $$ SELECT jsonb_build_object('id', l.id, 'name', l.name) $$;
CREATE FUNCTION shown(il issue_labels) RETURNS jsonb STABLE LANGUAGE sql AS
  $$ SELECT jsonb_build_object('issueID', il.issue_id, 'labelID', il.label_id) $$;
