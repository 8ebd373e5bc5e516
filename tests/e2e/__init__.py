"""End-to-end tests: the official JavaScript client against a whole running node."""
