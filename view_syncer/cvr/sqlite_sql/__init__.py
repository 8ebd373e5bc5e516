"""The tables of the SQLite store."""
