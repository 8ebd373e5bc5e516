WITH checkpoints AS (
    DELETE FROM {schema}.fact_checkpoints WHERE author = %(author)s AND unit = ANY(%(units)s)
)
DELETE FROM {schema}.fact_deltas WHERE author = %(author)s AND unit = ANY(%(units)s)
