-- Every column of every table-like relation outside the system schemas, with its type resolved
-- through (nested) domains, for postgres_types.py. Invariant: reads pg_catalog only.
WITH RECURSIVE base(oid, base) AS (
    SELECT t.oid, t.oid FROM pg_catalog.pg_type t WHERE t.typtype <> 'd'
    UNION ALL
    SELECT d.oid, base.base
    FROM pg_catalog.pg_type d JOIN base ON base.oid = d.typbasetype
    WHERE d.typtype = 'd'
)
SELECT
    n.nspname::text AS schema,
    c.relname::text AS "table",
    a.attname::text AS "column",
    a.attnotnull AS not_null,
    COALESCE(coll.collisdeterministic, true) AS is_deterministic,
    t.typtype = 'd' AS is_domain,
    b.typcategory = 'A' AS is_array,
    e.typtype = 'e' AS is_enum,
    e.typname::text AS pg_type,
    pg_catalog.format('%I.%I', tn.nspname, t.typname) AS "cast",
    (
        SELECT pg_catalog.json_agg(key.columns)::text
        FROM (
            SELECT pg_catalog.json_agg(ka.attname ORDER BY ka.attname COLLATE "C") AS columns
            FROM pg_catalog.pg_index i
            CROSS JOIN LATERAL pg_catalog.unnest(i.indkey::int2[]) WITH ORDINALITY k(num, at)
            JOIN pg_catalog.pg_attribute ka ON ka.attrelid = i.indrelid AND ka.attnum = k.num
            WHERE i.indrelid = c.oid AND i.indisunique AND i.indimmediate AND i.indisvalid
                AND i.indpred IS NULL AND i.indexprs IS NULL AND k.at <= i.indnkeyatts
            GROUP BY i.indexrelid
        ) key
    ) AS keys
FROM pg_catalog.pg_attribute a
JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
JOIN pg_catalog.pg_namespace tn ON tn.oid = t.typnamespace
JOIN base ON base.oid = t.oid
JOIN pg_catalog.pg_type b ON b.oid = base.base
JOIN pg_catalog.pg_type e ON e.oid = CASE WHEN b.typcategory = 'A' THEN b.typelem ELSE b.oid END
LEFT JOIN pg_catalog.pg_collation coll ON coll.oid = a.attcollation
WHERE a.attnum > 0
    AND NOT a.attisdropped
    AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
    AND n.nspname NOT IN ('pg_catalog', 'information_schema')
    AND n.nspname NOT LIKE 'pg\_toast%'
    AND NOT pg_catalog.pg_is_other_temp_schema(n.oid)
ORDER BY n.nspname, c.relname, a.attnum
