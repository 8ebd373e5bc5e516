UPDATE {schema}.view_meta
   SET reaper = %(worker)s, "reaperUntil" = to_timestamp(%(until)s)
 WHERE reaper IS NULL OR reaper = %(worker)s OR "reaperUntil" < to_timestamp(%(now)s)
RETURNING reaper
