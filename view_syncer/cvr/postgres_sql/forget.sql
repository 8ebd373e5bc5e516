-- Old tombstones, and the facts of authors that can prove no cookie any more.
WITH tombstones AS (
    DELETE FROM {schema}.view_groups WHERE "deletedAt" < to_timestamp(%(tombstones_before)s)
),
gone AS MATERIALIZED (
    DELETE FROM {schema}.fact_authors a
     WHERE a."lastActive" < to_timestamp(%(authors_before)s)
       AND NOT EXISTS (SELECT FROM {schema}.view_groups g, json_each_text(g.issuers) i
                        WHERE i.value = a.author)
    RETURNING author
),
checkpoints AS (
    DELETE FROM {schema}.fact_checkpoints c USING gone WHERE c.author = gone.author
)
DELETE FROM {schema}.fact_deltas d USING gone WHERE d.author = gone.author
