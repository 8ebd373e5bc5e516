"""ZQL: syntax tree, normal form, hashes, query builder and SQL compilers."""
