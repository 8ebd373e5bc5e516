-- The statement that notes how far the author is comes first: without its row nothing is written.
WITH known AS (
    UPDATE {schema}.fact_authors
       SET "completeTo" = %(complete_to)s, "lastActive" = to_timestamp(%(now)s)
     WHERE author = %(author)s
    RETURNING author
),
checkpoints AS (
    INSERT INTO {schema}.fact_checkpoints (author, unit, version, body)
    SELECT known.author, x.unit, x.version, x.body
      FROM known, unnest(%(c_units)s::text[], %(c_versions)s::text[], %(c_bodies)s::bytea[])
               AS x(unit, version, body)
    ON CONFLICT (author, unit) DO UPDATE SET version = excluded.version, body = excluded.body
),
dropped AS (
    DELETE FROM {schema}.fact_deltas d
     USING known, unnest(%(x_units)s::text[], %(x_versions)s::text[]) AS x(unit, version)
     WHERE d.author = known.author AND d.unit = x.unit AND d.version < x.version
),
deltas AS (
    INSERT INTO {schema}.fact_deltas (author, unit, version, body)
    SELECT known.author, x.unit, x.version, x.body
      FROM known, unnest(%(d_units)s::text[], %(d_versions)s::text[], %(d_bodies)s::bytea[])
               AS x(unit, version, body)
    ON CONFLICT (author, unit, version) DO UPDATE SET body = excluded.body
)
SELECT author FROM known
