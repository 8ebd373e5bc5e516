"""What one node takes from its clients: connections, messages, queries, silence.

Owns the ``ZEROCACHE_*`` limits of config-and-operations.md §10, which the reference server does
not have. Must never limit anything unless asked to, except what no client in good health notices.
Invariant: 0 turns a limit off.
"""

from __future__ import annotations

from ipaddress import ip_network

from pydantic import BaseModel, field_validator

from zerocache.options import Number, Strings, Whole, option

_OURS = "ZEROCACHE_"


class ClientLimits(BaseModel):
    """Part of the top level of the configuration."""

    max_connections: Whole = option(
        0,
        "Client connections of this node; more are told to come back later. 0 is no limit.",
        ge=0,
        prefix=_OURS,
    )
    max_connections_per_ip: Whole = option(
        0,
        "Client connections of one address; at least 50 is wise, because of shared addresses and "
        "tabs. 0 is no limit.",
        ge=0,
        prefix=_OURS,
    )
    trusted_proxies: Strings = option(
        (),
        "Addresses or networks whose X-Forwarded-For and X-Real-IP tell the client's address.",
        prefix=_OURS,
    )
    allowed_origins: Strings = option(
        (),
        "Origins of pages that may connect, such as https://app.example or https://*.app.example; "
        "others are answered 403. Empty allows all.",
        prefix=_OURS,
    )
    max_messages_per_minute: Whole = option(
        0,
        "Messages of one connection, and of all connections of one user to a sync worker; pings "
        "do not count. 0 is no limit.",
        ge=0,
        prefix=_OURS,
    )
    new_groups_per_minute: Whole = option(
        0,
        "Client groups that connections from one address may start on a sync worker. 0 is no "
        "limit.",
        ge=0,
        prefix=_OURS,
    )
    max_clients_per_group: Whole = option(
        0, "Connections of one client group. 0 is no limit.", ge=0, prefix=_OURS
    )
    max_queries_per_group: Whole = option(
        0, "Queries a client group may want at a time. 0 is no limit.", ge=0, prefix=_OURS
    )
    max_args_bytes: Whole = option(
        0,
        "Size of the AST or the arguments of one query, as JSON. 0 is no limit.",
        ge=0,
        prefix=_OURS,
    )
    init_timeout_seconds: Number = option(
        30,
        "A connection whose first message did not come by then is closed with 1008. 0 waits.",
        ge=0,
        prefix=_OURS,
    )
    idle_timeout_seconds: Number = option(
        60,
        "A connection that answers nothing, not even WebSocket pings, is closed. 0 keeps it.",
        ge=0,
        prefix=_OURS,
    )
    max_header_bytes: Whole = option(
        65_536, "Largest request head; it carries the first message.", ge=1024, prefix=_OURS
    )

    @field_validator("trusted_proxies")
    @classmethod
    def _check_networks(cls, networks: tuple[str, ...]) -> tuple[str, ...]:
        for network in networks:
            try:
                ip_network(network, strict=False)
            except ValueError:
                raise ValueError(
                    f"Expected addresses or networks such as 10.0.0.0/8, but got {network!r}"
                ) from None
        return networks
