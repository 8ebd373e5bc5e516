UPDATE {schema}.fact_authors
   SET "completeTo" = %(complete_to)s, "lastActive" = to_timestamp(%(now)s)
 WHERE author = %(author)s
RETURNING author
