"""``zerocache dev``: embedded PostgreSQL and the demo application."""
