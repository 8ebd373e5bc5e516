-- One statement, hence one snapshot.
SELECT 0 AS kind, NULL::text AS unit, "completeTo" AS version, NULL::bytea AS body
  FROM {schema}.fact_authors WHERE author = %(author)s
UNION ALL
SELECT 1, unit, version, body
  FROM {schema}.fact_checkpoints WHERE author = %(author)s AND unit = ANY(%(units)s)
UNION ALL
SELECT 2, unit, version, body
  FROM {schema}.fact_deltas WHERE author = %(author)s AND unit = ANY(%(units)s)
 ORDER BY kind, unit, version
