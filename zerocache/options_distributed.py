"""Option groups of a deployment with several nodes: change streamer, lag reports, backup.

Owns their names and types, as ``options`` does for the rest. One node needs none of them; they
are accepted so that the environment of a larger deployment starts unchanged. Must never do
anything but declare. Invariant: every default is what the single node runs with.
"""

from __future__ import annotations

from typing import Literal

from zerocache.options import Boolean, Group, LogLevel, Number, Strings, Whole, option

_ADDRESS_REPLACEMENT = "ZERO_CHANGE_STREAMER_URI on the view-syncers"


class ChangeStreamer(Group):
    uri: str | None = option(None, "Change streamer to follow instead of running one.", inert=True)
    mode: Literal["dedicated", "discover"] = option(
        "dedicated", "How the change streamer is found.", inert=True
    )
    port: Whole = option(
        0, "Port of the change streamer.", ge=0, le=65535, derived="ZERO_PORT + 1", inert=True
    )
    startup_delay_ms: Number = option(
        15_000,
        "Accepted without effect: on a single node nobody is served before the replication slot "
        "is taken over, so it is taken over at once.",
        ge=0,
    )
    address: str | None = option(
        None, "Advertised address.", hidden=True, inert=True, deprecated=_ADDRESS_REPLACEMENT
    )
    protocol: Literal["ws", "wss"] = option(
        "ws", "Advertised protocol.", hidden=True, inert=True, deprecated=_ADDRESS_REPLACEMENT
    )
    discovery_interface_preferences: Strings = option(
        ("eth", "en"), "Network interfaces to advertise, by prefix.", hidden=True, inert=True
    )
    back_pressure_limit_heap_proportion: Number = option(
        0.04,
        "What may wait for the change database, as a share of the memory limit; at least 4 MiB "
        "and never more than 64 MiB, the rest waits upstream.",
        ge=0,
        le=1,
    )
    flow_control_consensus_padding_seconds: Number = option(
        1, "Extra wait for slow subscribers.", inert=True
    )
    flow_control_consensus_timeout_proportion: Number = option(
        2.0, "The same, relative to the majority's time; negative disables.", inert=True
    )
    flow_control_slow_subscriber_grace_period_seconds: Number = option(
        30, "Lag before a subscriber is dropped; 0 disables.", inert=True
    )
    # zerocache keeps the change log in one place only, so every other mode is refused.
    sqlite_change_log_mode: Literal["off"] = option(
        "off", "Change log in SQLite.", hidden=True, inert=True
    )
    sqlite_change_log_read_percent: Number = option(0, "Unused.", hidden=True, inert=True)
    sqlite_change_log_cold_read_percent: Number = option(0, "Unused.", hidden=True, inert=True)
    sqlite_change_log_compare_percent: Number = option(1, "Unused.", hidden=True, inert=True)
    sqlite_change_log_retention_ms: Number = option(60_000, "Unused.", hidden=True, inert=True)
    sqlite_change_log_read_batch_rows: Whole = option(1000, "Unused.", hidden=True, inert=True)
    sqlite_change_log_purge_batch_rows: Whole = option(1000, "Unused.", hidden=True, inert=True)
    sqlite_change_log_barrier_timeout_ms: Number = option(
        300_000, "Unused.", hidden=True, inert=True
    )


class ReplicationLag(Group):
    report_interval_ms: Number = option(
        30_000, "Interval of the lag probe through upstream; 0 disables."
    )


class Litestream(Group):
    backup_url: str | None = option(None, "Where the replica is backed up.", inert=True)
    endpoint: str | None = option(None, "S3-compatible store.", inert=True)
    region: str | None = option(None, "Region of the store.", inert=True)
    executable: str | None = option(None, "Unused.", inert=True)
    executable_v5: str | None = option(None, "Unused.", inert=True)
    vfs_query_executable: str | None = option(None, "Unused.", inert=True)
    restore_using_v5: Boolean = option(True, "Unused.", inert=True)
    backup_using_v5: Boolean = option(False, "Unused.", inert=True)
    config_path: str | None = option(None, "Unused.", inert=True)
    config_path_v5: str | None = option(None, "Unused.", inert=True)
    vfs_poll_interval_ms: Number = option(15_000, "Backup watermark polling.", ge=0, inert=True)
    vfs_poll_timeout_ms: Number = option(10_000, "Limit of one such poll.", ge=0, inert=True)
    vfs_probe_interval_ms: Number = option(30_000, "Unused.", ge=0, hidden=True, inert=True)
    vfs_probe_timeout_ms: Number = option(30_000, "Unused.", ge=0, hidden=True, inert=True)
    vfs_extension_path: str | None = option(None, "Unused.", hidden=True, inert=True)
    vfs_log_file: str | None = option(None, "Unused.", inert=True)
    log_level: LogLevel = option("warn", "Log level of the backup.", inert=True)
    port: Whole = option(
        0, "Metrics port of the backup.", ge=0, le=65535, derived="ZERO_PORT + 2", inert=True
    )
    checkpoint_threshold_mb: Number = option(40, "WAL size per segment.", ge=0, inert=True)
    min_checkpoint_page_count: Whole | None = option(
        None, "Pages before a checkpoint.", ge=0, derived="threshold in MB x 250", inert=True
    )
    max_checkpoint_page_count: Whole | None = option(
        None, "Pages before a blocking checkpoint; 0 disables.", ge=0, inert=True
    )
    incremental_backup_interval_minutes: Number = option(
        15, "Time between incremental backups.", ge=0, inert=True
    )
    incremental_backup_interval_seconds: Number = option(
        15, "Time between change segments.", ge=0, inert=True
    )
    snapshot_backup_interval_hours: Number = option(12, "Time between snapshots.", ge=0, inert=True)
    restore_parallelism: Whole = option(48, "Parallel downloads of a restore.", ge=1, inert=True)
    multipart_concurrency: Whole = option(48, "Parallel parts.", ge=1, inert=True)
    multipart_size: Whole = option(16_777_216, "Bytes per part.", ge=1, inert=True)
