-- Every published table with its published columns, one JSON object per table, in the shape of
-- zerocache.replica.published.PublishedTable.
--   %(publications)s     text[]: the publications to look at
--   %(skip_generated)s   bool: generated columns are listed (PostgreSQL 15) but never streamed
WITH published AS (
    SELECT p.schemaname, p.tablename,
           format('%%I.%%I', p.schemaname, p.tablename)::regclass AS oid,
           jsonb_object_agg(p.pubname, p.rowfilter) AS publications,
           -- set-up has made sure that all publications list the same columns
           min(p.attnames::text)::name[] AS attnames
    FROM pg_publication_tables p
    WHERE p.pubname = ANY (%(publications)s)
    GROUP BY 1, 2, 3
),
columns AS (
    SELECT a.attrelid, a.attnum, a.attname, jsonb_build_object(
        'name', a.attname,
        'position', a.attnum,
        'type_name', CASE WHEN e.oid IS NULL THEN t.typname
                          ELSE e.typname || repeat('[]', greatest(a.attndims, 1)) END,
        'type_oid', t.oid::int8,
        'type_category', t.typcategory,
        'type_kind', coalesce(e.typtype, t.typtype),
        'is_enum', coalesce(e.typtype, t.typtype) = 'e',
        'is_array', e.oid IS NOT NULL,
        -- PostgreSQL 18 sets attnotnull for constraints that are still NOT VALID
        'not_null', a.attnotnull AND NOT EXISTS (
            SELECT FROM pg_constraint v WHERE v.conrelid = a.attrelid AND v.contype = 'n'
            AND NOT v.convalidated AND a.attnum = ANY (v.conkey)),
        'max_length', CASE WHEN a.atttypmod < 0 THEN NULL
                           WHEN coalesce(e.typname, t.typname) IN ('varchar', 'bpchar')
                           THEN a.atttypmod - 4
                           ELSE a.atttypmod END,
        -- its values come from somewhere else than the default
        'generated', a.attgenerated <> '' OR a.attidentity <> '',
        'default', CASE WHEN a.attgenerated = '' THEN pg_get_expr(d.adbin, d.adrelid) END
    ) AS column_json
    FROM published p
    JOIN pg_attribute a ON a.attrelid = p.oid AND a.attnum > 0 AND NOT a.attisdropped
                       AND a.attname = ANY (p.attnames)
    JOIN pg_type t ON t.oid = a.atttypid
    -- Only true arrays: name, point and int2vector have elements too, domains over arrays do not
    -- read as arrays.
    LEFT JOIN pg_type e ON e.oid = t.typelem AND t.typcategory = 'A' AND t.typtype <> 'd'
                       AND t.typinput = 'array_in'::regproc
    LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    WHERE a.attgenerated = '' OR NOT %(skip_generated)s
),
primary_keys AS (
    SELECT i.indrelid, jsonb_agg(a.attname ORDER BY k.position) AS key,
           bool_and(c.attname IS NOT NULL) AS published
    FROM pg_index i
    CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, position)
    JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
    LEFT JOIN columns c ON c.attrelid = i.indrelid AND c.attnum = k.attnum
    WHERE i.indisprimary AND k.position <= i.indnkeyatts
      AND i.indrelid IN (SELECT oid FROM published)
    GROUP BY 1
)
SELECT jsonb_build_object(
    'schema', p.schemaname,
    'name', p.tablename,
    'oid', p.oid::oid::int8,
    'replica_identity', r.relreplident,
    'columns', (SELECT coalesce(jsonb_agg(c.column_json ORDER BY c.attnum), '[]')
                FROM columns c WHERE c.attrelid = p.oid),
    'primary_key', CASE WHEN k.published THEN k.key ELSE '[]' END,
    'publications', p.publications,
    'partitions', CASE WHEN r.relkind = 'p' THEN (
        SELECT coalesce(jsonb_agg(f.relid::oid::int8 ORDER BY f.relid::oid), '[]')
        FROM pg_partition_tree(p.oid) f WHERE f.isleaf) ELSE '[]' END
)::text
FROM published p
JOIN pg_class r ON r.oid = p.oid
LEFT JOIN primary_keys k ON k.indrelid = p.oid
ORDER BY p.schemaname COLLATE "C", p.tablename COLLATE "C"
