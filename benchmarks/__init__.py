"""Measurements of zerocache, and of the reference server beside it on the same machine.

Owns the load: data set, protocol-level client, writer. Must never import the server's internals
(only ``zerocache.__version__`` is read): what is measured is what a client sees. Invariant: every
number is taken the same way for every server.
"""
