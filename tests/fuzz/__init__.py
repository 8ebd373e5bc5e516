"""Long-running random tests: see ``python -m tests.fuzz.engine --help``."""
