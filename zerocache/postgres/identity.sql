-- The statements that give a keyless table a replica identity through a unique index; for a
-- partitioned table one per partition, because identities are not inherited.
--   %(table)s   oid of the table;  %(index)s   name of its unique index
WITH RECURSIVE family AS (
    SELECT i.indexrelid, i.indrelid
    FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
    WHERE i.indrelid = %(table)s::oid AND c.relname = %(index)s
    UNION ALL
    SELECT i.indexrelid, i.indrelid
    FROM family f
    JOIN pg_inherits h ON h.inhparent = f.indexrelid
    JOIN pg_index i ON i.indexrelid = h.inhrelid
)
SELECT format('ALTER TABLE %%s REPLICA IDENTITY USING INDEX %%I', f.indrelid::regclass, c.relname)
FROM family f JOIN pg_class c ON c.oid = f.indexrelid
WHERE NOT EXISTS (SELECT FROM pg_index p WHERE p.indrelid = %(table)s::oid AND p.indisprimary)
