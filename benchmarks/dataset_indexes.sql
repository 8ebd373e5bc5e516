CREATE UNIQUE INDEX issues_short_id ON issues (short_id);
CREATE INDEX issues_modified ON issues (modified, id);
CREATE INDEX issues_project ON issues (project, modified);
CREATE INDEX issues_owner ON issues (owner_id);
CREATE INDEX comments_issue ON comments (issue_id, created);
CREATE INDEX issue_labels_label ON issue_labels (label_id);
ANALYZE;
