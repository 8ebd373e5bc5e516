-- Every index that the replica may have, one JSON object each, in the shape of
-- zerocache.replica.published.PublishedIndex: no expressions, no predicate, all key columns
-- published, of an access method that orders or looks up plain values.
--   %(publications)s, %(skip_generated)s   as in tables.sql
WITH published AS (
    SELECT DISTINCT format('%%I.%%I', p.schemaname, p.tablename)::regclass AS oid,
           p.attnames::text::name[] AS attnames
    FROM pg_publication_tables p
    WHERE p.pubname = ANY (%(publications)s)
),
keys AS (
    SELECT i.indexrelid,
           jsonb_agg(jsonb_build_array(
               a.attname, CASE WHEN i.indoption[k.position - 1] & 1 = 1 THEN 'DESC' ELSE 'ASC' END
           ) ORDER BY k.position) AS columns,
           bool_and(a.attname = ANY (p.attnames)
                    AND (a.attgenerated = '' OR NOT %(skip_generated)s)) AS published
    FROM published p
    JOIN pg_index i ON i.indrelid = p.oid AND i.indexprs IS NULL AND i.indpred IS NULL
    CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, position)
    JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
    WHERE k.position <= i.indnkeyatts
    GROUP BY 1
)
SELECT jsonb_build_object(
    'schema', n.nspname,
    'table', t.relname,
    'name', c.relname,
    'columns', k.columns,
    'unique', i.indisunique,
    'is_primary', i.indisprimary,
    'is_immediate', i.indimmediate,
    'is_valid', i.indisvalid AND i.indisready,
    'is_replica_identity', i.indisreplident
)::text
FROM keys k
JOIN pg_index i ON i.indexrelid = k.indexrelid
JOIN pg_class c ON c.oid = i.indexrelid
JOIN pg_am m ON m.oid = c.relam
JOIN pg_class t ON t.oid = i.indrelid
JOIN pg_namespace n ON n.oid = t.relnamespace
WHERE k.published
  AND m.amname IN ('btree', 'hash')
  AND NOT EXISTS (
      SELECT FROM pg_constraint x WHERE x.conindid = i.indexrelid AND x.contype = 'x'
  )
ORDER BY n.nspname COLLATE "C", t.relname COLLATE "C", c.relname COLLATE "C"
