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
        'default', CASE WHEN a.attgenerated = '' THEN pg_get_expr(d.adbin, d.adrelid) END,
        'enum_labels', (SELECT coalesce(jsonb_object_agg(l.oid, l.enumlabel), '{}')
                        FROM pg_enum l WHERE l.enumtypid = coalesce(e.oid, t.oid)),
        'written', a.xmin::text,
        'has_missing', a.atthasmissing,
        'default_oid', coalesce(d.oid::int8, 0)
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
),
partitions AS (
    SELECT p.oid, jsonb_agg(jsonb_build_object(
        'oid', c.oid::int8,
        'storage', c.relfilenode::int8,
        -- Entries of system columns are written once, in the transaction that creates the table.
        'born_attached', i.xmin = a.xmin
    ) ORDER BY c.oid) AS partitions
    FROM published p
    CROSS JOIN LATERAL pg_partition_tree(p.oid) tree
    JOIN pg_class c ON c.oid = tree.relid AND c.oid <> p.oid
    JOIN pg_inherits i ON i.inhrelid = c.oid
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'tableoid' AND a.attnum < 0
    GROUP BY 1
),
-- A row of the catalogue that was deleted and made anew has another oid, an altered one another
-- xmin; changes made in between were not published.
states AS (
    SELECT p.oid, string_agg(
        format('%%s/%%s/%%s/%%s', u.oid, u.xmin, r.oid, s.oid), ',' ORDER BY u.oid, r.oid, s.oid
    ) AS state
    FROM published p
    CROSS JOIN LATERAL (SELECT p.oid AS relid UNION SELECT relid FROM pg_partition_ancestors(p.oid)) f
    JOIN pg_class c ON c.oid = f.relid
    CROSS JOIN pg_publication u
    LEFT JOIN pg_publication_rel r ON r.prpubid = u.oid AND r.prrelid = c.oid
    LEFT JOIN pg_publication_namespace s ON s.pnpubid = u.oid AND s.pnnspid = c.relnamespace
    WHERE u.pubname = ANY (%(publications)s)
      AND (u.puballtables OR r.oid IS NOT NULL OR s.oid IS NOT NULL)
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
    'storage', r.relfilenode::int8,
    'attributes', r.relnatts,
    'partitions', coalesce(f.partitions, '[]'),
    'publication_state', coalesce(s.state, '')
)::text
FROM published p
JOIN pg_class r ON r.oid = p.oid
LEFT JOIN primary_keys k ON k.indrelid = p.oid
LEFT JOIN partitions f ON f.oid = p.oid
LEFT JOIN states s ON s.oid = p.oid
ORDER BY p.schemaname COLLATE "C", p.tablename COLLATE "C"
