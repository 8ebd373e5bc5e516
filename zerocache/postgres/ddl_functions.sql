-- Functions that tell the change stream how the published schema changed, in the transaction that
-- changes it. They run with the rights of their owner, because anybody's DDL calls them, and under
-- the settings that shape the text of values on the stream. Needs no special privilege.
-- Placeholders in braces are filled in by ddl.py: the shard's schema, the prefix of its messages,
-- transaction-local settings (oids of rewritten tables, tags of commands under way), the queries of tables.sql and indexes.sql,
-- and the fingerprint of all this, kept as a comment that set-up compares.

-- What is published at this moment.
CREATE OR REPLACE FUNCTION {shard}.schema_specs() RETURNS json
LANGUAGE sql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $zc_body$
    SELECT json_build_object(
        'tables', (SELECT coalesce(json_agg(t.spec::json), '[]') FROM ({tables}) AS t(spec)),
        'indexes', (SELECT coalesce(json_agg(i.spec::json), '[]') FROM ({indexes}) AS i(spec))
    )
$zc_body$;

-- What rows that are older than a column hold in it, for columns whose default was not written
-- into every row: one JSON object by 'oid.attnum'.
CREATE OR REPLACE FUNCTION {shard}.missing_values(tables oid[]) RETURNS json
LANGUAGE sql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET "TimeZone" = 'UTC' SET "DateStyle" = 'ISO' SET "IntervalStyle" = 'postgres'
SET bytea_output = 'hex' SET extra_float_digits = 1 AS $zc_body$
    SELECT coalesce(json_object_agg(a.attrelid::int8 || '.' || a.attnum,
                                    (a.attmissingval::text::text[])[1]), '{{}}')
    FROM pg_attribute a
    WHERE a.attrelid = ANY (tables) AND a.atthasmissing AND NOT a.attisdropped
$zc_body$;

-- Compare with what was published last, and if that changed, remember and announce it.
CREATE OR REPLACE FUNCTION {shard}.update_schemas(event text, tag text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $zc_body$
DECLARE
    before text;
    specs json;
    oids oid[];
    rewritten oid[];
    next_xid int8;
BEGIN
    -- One DDL transaction at a time: each must see the schema the one before it left.
    PERFORM pg_advisory_xact_lock({lock});
    SELECT s.current::text INTO before FROM {shard}."publishedSchema" s;
    specs := {shard}.schema_specs();
    SELECT coalesce(array_agg((t ->> 'oid')::oid), '{{}}') INTO oids
    FROM json_array_elements(specs -> 'tables') AS t;
    -- A partition's rows are published as its root's.
    SELECT coalesce(array_agg(DISTINCT f.relid), '{{}}') INTO rewritten
    FROM unnest(string_to_array(nullif(current_setting({rewritten}, true), ''), ',')::oid[]) AS r
    CROSS JOIN LATERAL (SELECT r AS relid
                        UNION SELECT p.relid::oid FROM pg_partition_ancestors(r) p) f
    WHERE f.relid = ANY (oids);
    IF before IS NOT DISTINCT FROM specs::text AND rewritten = '{{}}' THEN
        RETURN;
    END IF;
    PERFORM set_config({rewritten}, '', true);
    -- In a subtransaction, which is given its number now: transactions with an older one may have
    -- written before this. Our own may be old, and that of others in progress is no snapshot's xmax.
    BEGIN
        INSERT INTO {shard}."publishedSchema" (current) VALUES (specs)
        ON CONFLICT ("exists") DO UPDATE SET current = EXCLUDED.current
        RETURNING xmin::text::int8 INTO next_xid;
    EXCEPTION WHEN OTHERS THEN
        RAISE;
    END;
    PERFORM pg_logical_emit_message(true, {prefix}, json_build_object(
        'type', event,
        'version', 1,
        'event', json_build_object('tag', tag),
        'context', json_build_object('query', left(current_query(), 10000)),
        'schema', specs,
        'missing', {shard}.missing_values(oids),
        'rewritten', to_json(rewritten::int8[]),
        'next_xid', next_xid
    )::text);
END
$zc_body$;

-- The manual hook, for providers whose event triggers do not see everything.
CREATE OR REPLACE FUNCTION {shard}.update_schemas() RETURNS void
LANGUAGE sql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $zc_body$
    SELECT {shard}.update_schemas('ddlUpdate', 'UNKNOWN')
$zc_body$;

-- What changed unnoticed before this command is announced before it: it is not the command's doing.
-- Inside another command (an event trigger of somebody else's reacts to it) it is that one's.
CREATE OR REPLACE FUNCTION {shard}.on_ddl_start() RETURNS event_trigger
LANGUAGE plpgsql AS $zc_body$
DECLARE
    tags text[] := string_to_array(coalesce(current_setting({commands}, true), ''), '|');
BEGIN
    -- Temporary tables are everyday tools of long transactions, and never published.
    IF tg_tag NOT IN ('CREATE TABLE', 'CREATE TABLE AS', 'SELECT INTO')
       OR current_query() !~* '\mtemp(orary)?\M' THEN
        PERFORM {shard}.update_schemas('ddlStart', coalesce(tags[cardinality(tags)], 'UNKNOWN'));
    END IF;
    PERFORM set_config({commands}, array_to_string(tags || tg_tag, '|'), true);
END
$zc_body$;

CREATE OR REPLACE FUNCTION {shard}.on_ddl_end() RETURNS event_trigger
LANGUAGE plpgsql AS $zc_body$
DECLARE
    tags text[] := string_to_array(coalesce(current_setting({commands}, true), ''), '|');
BEGIN
    IF tg_tag = 'COMMENT' THEN
        -- The other manual hook: it says that something happened before, not what.
        IF EXISTS (SELECT FROM pg_event_trigger_ddl_commands() c
                   WHERE c.object_type = 'publication') THEN
            PERFORM {shard}.update_schemas('schemaSnapshot', 'UNKNOWN');
        END IF;
        RETURN;
    END IF;
    -- Commands that commit in between have forgotten that they began.
    PERFORM set_config({commands}, array_to_string(trim_array(
        tags, (cardinality(tags) > 0)::int), '|'), true);
    IF EXISTS (SELECT FROM pg_event_trigger_ddl_commands())
       AND NOT EXISTS (SELECT FROM pg_event_trigger_ddl_commands() c
                       WHERE c.schema_name IS DISTINCT FROM 'pg_temp') THEN
        RETURN;
    END IF;
    PERFORM {shard}.update_schemas('ddlUpdate', tg_tag);
END
$zc_body$;

-- Rewritten rows are not streamed. 4: for a changed type or a generated column; other reasons
-- leave the text of existing values alone.
CREATE OR REPLACE FUNCTION {shard}.on_table_rewrite() RETURNS event_trigger
LANGUAGE plpgsql AS $zc_body$
BEGIN
    IF pg_event_trigger_table_rewrite_reason() & 4 <> 0 THEN
        PERFORM set_config({rewritten}, concat_ws(',',
            nullif(current_setting({rewritten}, true), ''),
            pg_event_trigger_table_rewrite_oid()), true);
    END IF;
END
$zc_body$;

-- The triggers run with the rights of whoever runs the command, and so does the manual hook.
GRANT USAGE ON SCHEMA {shard} TO PUBLIC;

COMMENT ON FUNCTION {shard}.update_schemas() IS {version};
