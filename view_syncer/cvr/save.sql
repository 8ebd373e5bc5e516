-- Writes the changes of many client groups, given as one JSON array. A group whose stored version
-- is not the expected one is left alone, with everything that belongs to it; the answer names those
-- that were written. All branches see the state before the statement, and no two write one row.
WITH batch AS (
    SELECT * FROM json_to_recordset(%(batch)s::json) AS b(
        "group" text, "new" boolean, state text, config bigint, schema text, profile text,
        replica text, clock double precision, old_state text, old_config bigint,
        clients json, gone_clients json, queries json, gone_queries json, desires json,
        gone_desires json)
), inserted AS (
    INSERT INTO {schema}.groups ("clientGroupID", "stateVersion", "configVersion", "clientSchema",
                                 "profileID", "replicaVersion", "ttlClock")
    SELECT "group", state, config, schema::json, profile, replica, clock FROM batch WHERE "new"
    ON CONFLICT DO NOTHING
    RETURNING "clientGroupID"
), updated AS (
    UPDATE {schema}.groups g
       SET "stateVersion" = b.state, "configVersion" = b.config, "clientSchema" = b.schema::json,
           "profileID" = b.profile, "replicaVersion" = b.replica, "ttlClock" = b.clock,
           "lastActive" = now()
      FROM batch b
     WHERE NOT b."new" AND g."clientGroupID" = b."group" AND g."stateVersion" = b.old_state
       AND g."configVersion" = b.old_config
    RETURNING g."clientGroupID"
), written AS (
    SELECT "clientGroupID" FROM inserted UNION ALL SELECT "clientGroupID" FROM updated
), accepted AS (
    SELECT batch.* FROM batch JOIN written ON "clientGroupID" = "group"
), put_clients AS (
    INSERT INTO {schema}.clients
    SELECT a."group", c FROM accepted a, json_array_elements_text(a.clients) c
    ON CONFLICT DO NOTHING
), gone_clients AS (
    DELETE FROM {schema}.clients t
     USING accepted a, json_array_elements_text(a.gone_clients) c
     WHERE t."clientGroupID" = a."group" AND t."clientID" = c
), put_queries AS (
    INSERT INTO {schema}.queries ("clientGroupID", "queryHash", ast, name, args, got)
    SELECT a."group", q->>0, (q->>1)::json, q->>2, (q->>3)::json, (q->>4)::boolean
      FROM accepted a, json_array_elements(a.queries) q
    ON CONFLICT ("clientGroupID", "queryHash")
    DO UPDATE SET ast = excluded.ast, name = excluded.name, args = excluded.args,
                  got = excluded.got
), gone_queries AS (
    DELETE FROM {schema}.queries t
     USING accepted a, json_array_elements_text(a.gone_queries) q
     WHERE t."clientGroupID" = a."group" AND t."queryHash" = q
), put_desires AS (
    INSERT INTO {schema}.desires ("clientGroupID", "clientID", "queryHash", "ttlMs",
                                  "inactivatedAtMs")
    SELECT a."group", d->>0, d->>1, (d->>2)::double precision, (d->>3)::double precision
      FROM accepted a, json_array_elements(a.desires) d
    ON CONFLICT ("clientGroupID", "clientID", "queryHash")
    DO UPDATE SET "ttlMs" = excluded."ttlMs", "inactivatedAtMs" = excluded."inactivatedAtMs"
), gone_desires AS (
    DELETE FROM {schema}.desires t
     USING accepted a, json_array_elements(a.gone_desires) d
     WHERE t."clientGroupID" = a."group" AND t."clientID" = d->>0 AND t."queryHash" = d->>1
)
SELECT "clientGroupID" FROM written
