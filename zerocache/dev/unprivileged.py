"""A launcher: drops root, ties the program to its parent, and becomes that program.

Run as a script (``python -I -S unprivileged.py UID GID KEEP_SEARCH PROGRAM ARG...``) and therefore
imports nothing but the standard library. PostgreSQL refuses to run as root, so a root user's
cluster belongs to an unprivileged account. That account may not be able to reach the binaries or
the data folder (``mktemp -d`` and ``/root`` are closed to others); with KEEP_SEARCH=1 the program
keeps the one capability that lets it walk there. It must never widen permissions of folders it
does not own. Invariant: the program never has effective uid 0.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_PR_SET_KEEPCAPS = 8
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_CAPABILITY_VERSION_3 = 0x20080522

# Most narrow first: reading everywhere is enough, but default containers only hold the other one.
_CAP_DAC_READ_SEARCH = 2
_CAP_DAC_OVERRIDE = 1


def main(argv: list[str]) -> None:
    uid, gid, keep_search, *command = argv
    if os.geteuid() == 0:
        _drop_root(int(uid), int(gid), keep_search=keep_search == "1")
    # After the change of user, which clears the setting. SIGINT is PostgreSQL's "fast shutdown".
    _end_with_parent(signal.SIGINT)
    os.execv(command[0], command)


def _end_with_parent(signum: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signum, 0, 0, 0)


def _drop_root(uid: int, gid: int, *, keep_search: bool) -> None:
    if uid == 0:
        raise SystemExit("unprivileged.py: refusing to run the program as root")
    keep = keep_search and sys.platform == "linux"
    if keep:
        ctypes.CDLL(None).prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0)
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
    if keep and not (_keep_only(_CAP_DAC_READ_SEARCH) or _keep_only(_CAP_DAC_OVERRIDE)):
        raise SystemExit(
            "unprivileged.py: this container does not let root keep CAP_DAC_READ_SEARCH or "
            "CAP_DAC_OVERRIDE; use a folder that other users may enter"
        )


def _keep_only(capability: int) -> bool:
    """Whether the program will hold ``capability`` (and no other one) after exec."""
    libc = ctypes.CDLL(None, use_errno=True)
    mask = 1 << capability
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    # effective, permitted, inheritable; the second triple holds capabilities 32 and up
    sets = (ctypes.c_uint32 * 6)(mask, mask, mask, 0, 0, 0)
    if libc.capset(header, sets) != 0:
        return False
    raised: int = libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, capability, 0, 0)
    return raised == 0


if __name__ == "__main__":
    main(sys.argv[1:])
