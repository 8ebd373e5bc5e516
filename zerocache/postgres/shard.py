"""The names of everything one app keeps upstream.

Owns how app id and shard number become schemas, publications, slots and lock keys. It holds no
connection and no state.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from zerocache.errors import UpstreamSetupError

INVALID_APP_ID = "ZC113"
INVALID_PUBLICATION = "ZC114"

_APP_ID = re.compile(r"[a-z0-9_]+", re.ASCII)
_PUBLICATION = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_MAX_IDENTIFIER = 63
# Room for "_0_" and a few letters in slot names.
_MAX_APP_ID = 48


@dataclass(frozen=True, slots=True)
class ShardNames:
    """``publications``: what the configuration asks for; empty means all tables of ``public``."""

    app_id: str
    number: int = 0
    publications: tuple[str, ...] = ()

    @property
    def app_schema(self) -> str:
        return self.app_id

    @property
    def shard_schema(self) -> str:
        return f"{self.app_id}_{self.number}"

    @property
    def public_publication(self) -> str:
        return f"_{self.app_id}_public_{self.number}"

    @property
    def metadata_publication(self) -> str:
        return f"_{self.app_id}_metadata_{self.number}"

    @property
    def all_publications(self) -> tuple[str, ...]:
        """Everything to subscribe to, sorted: the requested ones plus the shard's own."""
        requested = self.publications or (self.public_publication,)
        return tuple(sorted({*requested, self.metadata_publication}))

    @property
    def slot_prefix(self) -> str:
        return f"{self.shard_schema}_"

    @property
    def ddl_prefix(self) -> str:
        """Prefix of the logical messages that announce changes of the schema."""
        return f"{self.app_id}/{self.number}/ddl"

    @property
    def backfill_prefix(self) -> str:
        """Prefix of the messages that move the stream past a backfill's snapshot."""
        return f"{self.app_id}/{self.number}/backfill"

    @property
    def event_triggers(self) -> tuple[str, str, str]:
        """Names of the triggers at the start and the end of commands, and at rewrites."""
        names = (f"{self.app_id}_ddl_{when}_{self.number}" for when in ("start", "end", "rewrite"))
        start, end, rewrite = names
        return start, end, rewrite

    @property
    def setup_lock(self) -> str:
        return f"migrate-schema:{self.shard_schema}"

    @property
    def slot_lock(self) -> str:
        return f"replication-slot-management:{self.shard_schema}"

    def check(self) -> None:
        """Refuse names PostgreSQL would not take, or that belong to zerocache itself."""
        if not _APP_ID.fullmatch(self.app_id) or len(self.app_id) > _MAX_APP_ID:
            raise UpstreamSetupError(
                f"the app id {self.app_id!r} cannot name replication slots: only lower-case "
                f"letters, digits and underscores are allowed there, at most {_MAX_APP_ID}; "
                "change ZERO_APP_ID",
                code=INVALID_APP_ID,
            )
        for name in self.publications:
            if not _PUBLICATION.fullmatch(name) or len(name) > _MAX_IDENTIFIER:
                raise UpstreamSetupError(
                    f"the publication name {name!r} is not a plain identifier of at most "
                    f"{_MAX_IDENTIFIER} characters: it cannot be passed to a slot; rename the "
                    "publication and correct ZERO_APP_PUBLICATIONS",
                    code=INVALID_PUBLICATION,
                )
            if name.startswith("_"):
                raise UpstreamSetupError(
                    f"the publication name {name!r} begins with an underscore: such names are "
                    "reserved for zerocache; rename it and correct ZERO_APP_PUBLICATIONS",
                    code=INVALID_PUBLICATION,
                )
