INSERT INTO {schema}.fact_authors (author, "completeTo", "lastActive")
VALUES (%(author)s, %(complete_to)s, to_timestamp(%(now)s))
ON CONFLICT (author) DO UPDATE
   SET "completeTo" = excluded."completeTo", "lastActive" = excluded."lastActive"
RETURNING author
