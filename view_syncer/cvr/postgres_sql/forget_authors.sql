-- The facts of authors that will hardly be asked for any more.
WITH gone AS MATERIALIZED (
    DELETE FROM {schema}.fact_authors a
     WHERE a."lastActive" < to_timestamp(%(silent_since)s)
       AND (a."lastActive" < to_timestamp(%(inactive_since)s)
            OR a.author NOT IN (
                SELECT author FROM {schema}.fact_authors
                 WHERE "lastActive" < to_timestamp(%(silent_since)s)
                 ORDER BY author DESC LIMIT %(keep)s))
    RETURNING author
),
checkpoints AS (
    DELETE FROM {schema}.fact_checkpoints c USING gone WHERE c.author = gone.author
)
DELETE FROM {schema}.fact_deltas d USING gone WHERE d.author = gone.author
