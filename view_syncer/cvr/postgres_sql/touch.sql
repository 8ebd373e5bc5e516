UPDATE {schema}.view_groups g
   SET "ttlClock" = greatest(g."ttlClock", t.ttl_clock), "lastActive" = to_timestamp(%(now)s)
  FROM unnest(%(groups)s::text[], %(clocks)s::double precision[]) AS t(group_id, ttl_clock)
 WHERE g."clientGroupID" = t.group_id AND g."deletedAt" IS NULL
