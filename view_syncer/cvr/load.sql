-- Everything about some client groups; those that do not exist have no row.
SELECT g."clientGroupID", g."stateVersion", g."configVersion", g."clientSchema"::text, g."profileID",
       g."replicaVersion", g."ttlClock",
       (SELECT array_agg("clientID") FROM {schema}.clients c
         WHERE c."clientGroupID" = g."clientGroupID"),
       (SELECT json_agg(json_build_array("queryHash", ast::text, name, args::text, got))
          FROM {schema}.queries q WHERE q."clientGroupID" = g."clientGroupID"),
       (SELECT json_agg(json_build_array("clientID", "queryHash", "ttlMs", "inactivatedAtMs"))
          FROM {schema}.desires d WHERE d."clientGroupID" = g."clientGroupID")
  FROM {schema}.groups g WHERE g."clientGroupID" = ANY(%(groups)s)
