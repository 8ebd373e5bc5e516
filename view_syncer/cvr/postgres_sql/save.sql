-- Any number of saves of different groups, each atomic and on its own condition. Returns the groups
-- that were saved; of the others nothing was written.
WITH wanted AS MATERIALIZED (
    SELECT * FROM json_to_recordset(%(groups)s::json) AS w(
        new boolean, old_state text, old_config bigint,
        group_id text, state_version text, config_version bigint, client_schema text,
        profile_id text, replica_version text, ttl_clock double precision,
        provable_state text, provable_config bigint, takeovers text)
),
updated AS (
    UPDATE {schema}.view_groups g
       SET "stateVersion" = w.state_version, "configVersion" = w.config_version,
           "clientSchema" = w.client_schema::json, "profileID" = w.profile_id,
           "replicaVersion" = w.replica_version, "ttlClock" = w.ttl_clock,
           "provableState" = w.provable_state,
           "provableConfig" = w.provable_config, takeovers = w.takeovers::json,
           "lastActive" = to_timestamp(%(now)s)
      FROM wanted w
     WHERE g."clientGroupID" = w.group_id AND NOT w.new AND g."deletedAt" IS NULL
       AND g."stateVersion" = w.old_state AND g."configVersion" = w.old_config
    RETURNING g."clientGroupID" AS group_id
),
inserted AS (
    INSERT INTO {schema}.view_groups (
        "clientGroupID", "stateVersion", "configVersion", "clientSchema", "profileID",
        "replicaVersion", "ttlClock", "provableState", "provableConfig", takeovers,
        "lastActive")
    SELECT group_id, state_version, config_version, client_schema::json, profile_id,
           replica_version, ttl_clock, provable_state, provable_config, takeovers::json,
           to_timestamp(%(now)s)
      FROM wanted WHERE new ORDER BY group_id
    ON CONFLICT DO NOTHING
    RETURNING "clientGroupID" AS group_id
),
saved AS MATERIALIZED (SELECT group_id FROM updated UNION ALL SELECT group_id FROM inserted),
clients_gone AS (
    DELETE FROM {schema}.view_clients c
     USING saved s,
           json_to_recordset(%(clients_gone)s::json) AS x(group_id text, client_id text)
     WHERE x.group_id = s.group_id
       AND c."clientGroupID" = x.group_id AND c."clientID" = x.client_id
),
clients AS (
    INSERT INTO {schema}.view_clients ("clientGroupID", "clientID")
    SELECT x.*
      FROM json_to_recordset(%(clients)s::json) AS x(group_id text, client_id text)
      JOIN saved USING (group_id)
    ON CONFLICT DO NOTHING
),
queries_gone AS (
    DELETE FROM {schema}.view_queries q
     USING saved s,
           json_to_recordset(%(queries_gone)s::json) AS x(group_id text, query_hash text)
     WHERE x.group_id = s.group_id
       AND q."clientGroupID" = x.group_id AND q."queryHash" = x.query_hash
),
queries AS (
    INSERT INTO {schema}.view_queries (
        "clientGroupID", "queryHash", ast, name, args, "gotState", "gotConfig", unit)
    SELECT x.group_id, x.query_hash, x.ast::json, x.name, x.args::json, x.got_state, x.got_config,
           x.unit
      FROM json_to_recordset(%(queries)s::json) AS x(
               group_id text, query_hash text, ast text, name text, args text,
               got_state text, got_config bigint, unit text)
      JOIN saved USING (group_id)
    ON CONFLICT ("clientGroupID", "queryHash") DO UPDATE
       SET ast = excluded.ast, name = excluded.name, args = excluded.args,
           "gotState" = excluded."gotState", "gotConfig" = excluded."gotConfig",
           unit = excluded.unit
),
desires_gone AS (
    DELETE FROM {schema}.view_desires d
     USING saved s,
           json_to_recordset(%(desires_gone)s::json) AS x(
               group_id text, client_id text, query_hash text)
     WHERE x.group_id = s.group_id
       AND d."clientGroupID" = x.group_id AND d."clientID" = x.client_id
       AND d."queryHash" = x.query_hash
),
desires AS (
    INSERT INTO {schema}.view_desires (
        "clientGroupID", "clientID", "queryHash", "ttlMs", "inactivatedAtMs")
    SELECT x.*
      FROM json_to_recordset(%(desires)s::json) AS x(
               group_id text, client_id text, query_hash text,
               ttl_ms double precision, inactivated_at_ms double precision)
      JOIN saved USING (group_id)
    ON CONFLICT ("clientGroupID", "clientID", "queryHash") DO UPDATE
       SET "ttlMs" = excluded."ttlMs", "inactivatedAtMs" = excluded."inactivatedAtMs"
)
SELECT group_id FROM saved
