"""The statements of the PostgreSQL store; ``{schema}`` is the schema of the view records."""
