"""The SQLite replica: its layout, value mapping, writer and readers."""
