-- The state every test starts from.
TRUNCATE teams, people, issues, comments, labels, issue_labels;
INSERT INTO teams VALUES ('t1', 'red'), ('t2', 'blue'), ('t3', 'empty');
INSERT INTO people VALUES
  ('p1', 'Ada', 't1'), ('p2', 'Bob', 't1'), ('p3', 'Cyd', 't2'), ('p4', 'Dee', NULL);
INSERT INTO issues VALUES
  ('i1', 'first', true, 10, 'p1', '2024-01-02 03:04:05.678+00', '{"tags": ["a", "é"], "n": 1.5}'),
  ('i2', 'second', true, 20, 'p1', '2024-01-03 00:00:00+00', NULL),
  ('i3', 'third', false, 30, 'p2', '2024-01-04 00:00:00+00', '[]'),
  ('i4', 'fourth', true, 30, 'p3', '2024-01-05 00:00:00+00', 'null'),
  ('i5', 'fifth', true, NULL, NULL, '1969-12-31 23:59:59+00', '"text"'),
  ('i6', 'sixth', false, 60, 'p4', '2024-01-07 00:00:00+00', NULL);
INSERT INTO comments VALUES
  ('c1', 'i1', 'one', 1), ('c2', 'i1', 'two', 5), ('c3', 'i1', 'three', 3),
  ('c4', 'i2', 'four', 0), ('c5', 'i3', 'five', 0);
INSERT INTO labels VALUES ('l1', 'bug'), ('l2', 'wish'), ('l3', 'unused');
INSERT INTO issue_labels VALUES ('i1', 'l1'), ('i1', 'l2'), ('i2', 'l2'), ('i3', 'l1');
