"""Gives memory that is free inside the process back to the system.

Owns one call of the C library. Python and SQLite free what a large copy needed, but the allocator
keeps it: the process would stay as big as its largest moment, which is its first. It must never be
needed for correctness: where there is no such call, nothing happens.
"""

from __future__ import annotations

import ctypes


def return_free_memory() -> None:
    """``malloc_trim``; only glibc has it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
