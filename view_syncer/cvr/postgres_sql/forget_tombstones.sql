DELETE FROM {schema}.view_groups WHERE "deletedAt" < to_timestamp(%(before)s)
