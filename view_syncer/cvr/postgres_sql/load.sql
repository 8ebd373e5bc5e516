-- One statement, hence one snapshot: a concurrent save is seen whole or not at all.
SELECT g."clientGroupID", g."stateVersion", g."configVersion", g."clientSchema"::text,
       g."profileID", g."replicaVersion", g."ttlClock", g."provableState", g."provableConfig",
       g.takeovers::text, g."deletedAt" IS NOT NULL,
       (SELECT coalesce(json_agg("clientID"), '[]')::text
          FROM {schema}.view_clients c WHERE c."clientGroupID" = g."clientGroupID"),
       (SELECT coalesce(json_agg(json_build_object(
                   'group_id', "clientGroupID", 'query_hash', "queryHash", 'ast', ast::text,
                   'name', name, 'args', args::text,
                   'got_state', "gotState", 'got_config', "gotConfig", 'unit', unit)), '[]')::text
          FROM {schema}.view_queries q WHERE q."clientGroupID" = g."clientGroupID"),
       (SELECT coalesce(json_agg(json_build_object(
                   'group_id', "clientGroupID", 'client_id', "clientID",
                   'query_hash', "queryHash",
                   'ttl_ms', "ttlMs", 'inactivated_at_ms', "inactivatedAtMs")), '[]')::text
          FROM {schema}.view_desires d WHERE d."clientGroupID" = g."clientGroupID")
  FROM {schema}.view_groups g
 WHERE g."clientGroupID" = ANY(%(groups)s)
