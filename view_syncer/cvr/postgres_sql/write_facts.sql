-- The statement that notes how far the author is comes first: without its row nothing is written.
WITH known AS ({author}),
checkpoints AS (
    INSERT INTO {schema}.fact_checkpoints (author, unit, version, body)
    SELECT known.author, x.unit, x.version, x.body
      FROM known, unnest(%(c_units)s::text[], %(c_versions)s::text[], %(c_bodies)s::bytea[])
               AS x(unit, version, body)
    ON CONFLICT (author, unit) DO UPDATE SET version = excluded.version, body = excluded.body
),
deltas AS (
    INSERT INTO {schema}.fact_deltas (author, unit, version, body)
    SELECT known.author, x.unit, x.version, x.body
      FROM known, unnest(%(d_units)s::text[], %(d_versions)s::text[], %(d_bodies)s::bytea[])
               AS x(unit, version, body)
    ON CONFLICT (author, unit, version) DO UPDATE SET body = excluded.body
)
SELECT author FROM known
