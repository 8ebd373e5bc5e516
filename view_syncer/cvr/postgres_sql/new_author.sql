INSERT INTO {schema}.fact_authors ("completeTo", "lastActive")
VALUES ('00', to_timestamp(%(now)s))
RETURNING author
