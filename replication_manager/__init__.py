"""The half that owns the replication slot and writes the SQLite replica."""
