-- Purges the groups that were inactive longest, but none that somebody is writing. Their rows stay
-- as tombstones.
WITH old AS MATERIALIZED (
    SELECT "clientGroupID" AS group_id FROM {schema}.view_groups
     WHERE "deletedAt" IS NULL AND "lastActive" < to_timestamp(%(before)s)
     ORDER BY "lastActive" LIMIT %(limit)s
       FOR UPDATE SKIP LOCKED
),
clients AS (
    DELETE FROM {schema}.view_clients c USING old WHERE c."clientGroupID" = old.group_id
),
queries AS (
    DELETE FROM {schema}.view_queries q USING old WHERE q."clientGroupID" = old.group_id
),
desires AS (
    DELETE FROM {schema}.view_desires d USING old WHERE d."clientGroupID" = old.group_id
)
UPDATE {schema}.view_groups g
   SET "deletedAt" = to_timestamp(%(now)s), "stateVersion" = '00', "configVersion" = 0,
       "clientSchema" = NULL, "replicaVersion" = NULL, "ttlClock" = 0,
       "provableState" = '00', "provableConfig" = 0, takeovers = '[]'
  FROM old WHERE g."clientGroupID" = old.group_id
