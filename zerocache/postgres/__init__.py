"""PostgreSQL: connections, published-schema introspection and upstream set-up."""
