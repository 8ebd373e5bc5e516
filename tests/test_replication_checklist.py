"""The map from the cases of replication.md §10.2 to the tests that cover them.

Every number is either here with its tests, which must exist, or among those of a part that is not
built yet. A case whose test is renamed, and a number that is in neither list, fail here.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

_ROOT = Path(__file__).parent
_CASES = range(1, 83)
_RM = "replication_manager/test_"

COVERED: dict[int, tuple[str, ...]] = {
    1: ("protocol/test_versions.py::test_known_watermarks",),
    2: (
        "protocol/test_versions.py::test_what_is_no_watermark",
        "protocol/test_versions.py::test_numbers_without_a_watermark",
    ),
    3: ("protocol/test_versions.py::test_minor_versions_are_of_no_interest_upstream",),
    4: ("postgres/test_setup.py::test_app_ids_that_cannot_name_slots",),
    5: (
        "postgres/test_setup.py::test_numeric_app_id",
        f"{_RM}upstreams.py::test_apps_and_shards_share_a_database",
    ),
    6: (
        "postgres/test_setup.py::test_publications_that_cannot_be_used",
        "postgres/test_setup.py::test_missing_publication_leaves_nothing_behind",
    ),
    7: ("postgres/test_setup.py::test_publication_without_truncate",),
    8: ("postgres/test_setup.py::test_conflicting_column_lists_name_the_table",),
    9: (f"{_RM}upstreams.py::test_one_unfiltered_publication_lets_all_rows_through",),
    10: (f"{_RM}upstreams.py::test_rows_that_any_filter_lets_through",),
    11: (f"{_RM}upstreams.py::test_role_that_may_read_and_replicate_is_enough",),
    12: (f"{_RM}upstreams.py::test_triggers_of_another_role_are_not_left_outdated",),
    13: (
        f"{_RM}upstreams.py::test_generated_columns",
        f"{_RM}upstreams.py::test_published_generated_columns",
    ),
    14: (f"{_RM}upstreams.py::test_identity_and_serial_columns",),
    15: (f"{_RM}upstreams.py::test_partitions_of_partitions_are_one_table",),
    16: (
        "postgres/test_setup.py::test_keyless_tables_get_a_unique_index_as_identity",
        f"{_RM}upstreams.py::test_join_table_made_later_gets_an_identity",
    ),
    17: (
        "postgres/test_setup.py::test_names_the_replica_cannot_have",
        f"{_RM}one_rule.py::test_tables_with_other_names_are_refused",
    ),
    18: (f"{_RM}upstreams.py::test_reserved_words",),
    19: (f"{_RM}upstreams.py::test_reserved_words", f"{_RM}one_rule.py::test_random_identifiers"),
    20: (f"{_RM}slot.py::test_unclaimed_slots_are_dropped_and_their_names_reused",),
    21: (f"{_RM}slot.py::test_concurrent_creators_get_distinct_slots",),
    22: (f"{_RM}slot.py::test_blocked_creation_says_what_blocks_it",),
    23: (f"{_RM}slot.py::test_failure_while_copying_drops_slot_and_claim",),
    24: (f"{_RM}service.py::test_a_displaced_process_ends_instead_of_fighting",),
    25: (
        f"{_RM}upstreams.py::test_new_replica_is_made_beside_the_old_one",
        f"{_RM}slot.py::test_take_over_removes_older_replicas_but_not_newer_ones",
    ),
    26: (
        f"{_RM}service.py::test_missing_slot_ends_in_a_new_sync",
        f"{_RM}gotchas.py::test_slot_that_the_server_gave_up",
    ),
    27: (
        f"{_RM}service.py::test_changed_publications_start_a_new_sync",
        "postgres/test_setup.py::test_other_publications_call_for_a_new_sync_but_keep_the_clients",
    ),
    28: ("postgres/test_setup.py::test_damaged_set_up_is_repaired",),
    29: (
        f"{_RM}crash.py::test_upstream_is_never_told_more_than_the_replica_has",
        f"{_RM}crash.py::test_acknowledgements_follow_the_commits",
        f"{_RM}change_log.py::test_upstream_is_never_told_more_than_the_log_has",
    ),
    30: (f"{_RM}service.py::test_an_idle_replica_is_continued",),
    31: (
        f"{_RM}stream.py::test_keepalives_move_the_position_only_when_nothing_is_outstanding",
        f"{_RM}stream.py::test_requested_reply_confirms_what_is_stored_by_then",
    ),
    32: (
        f"{_RM}stream.py::test_silence_towards_the_server_is_bounded",
        f"{_RM}stream.py::test_silence_of_the_server_ends_the_stream",
    ),
    33: (f"{_RM}stream.py::test_silence_of_the_server_ends_the_stream",),
    34: (
        f"{_RM}lag_reports.py::test_lag_is_split_where_the_probe_was_received",
        f"{_RM}lag_reports.py::test_a_missing_probe_counts_as_lag_and_is_replaced",
    ),
    35: (
        f"{_RM}one_rule.py::test_every_type_by_copy_insert_and_update",
        f"{_RM}one_rule.py::test_synced_types_are_stored_as_the_reference_server_does",
    ),
    36: ("replica/test_times.py::test_time",),
    37: ("replica/test_times.py::test_timestamp", "replica/test_times.py::test_date"),
    38: (f"{_RM}one_rule.py::test_every_type_by_copy_insert_and_update",),
    40: (
        "replica/test_copy_text.py::test_rows_survive_escaping",
        "replica/test_copy_text.py::test_copy_of_a_real_server",
    ),
    41: (
        f"{_RM}one_rule.py::test_every_type_by_copy_insert_and_update",
        f"{_RM}announcer.py::test_announced_once_at_start_and_once_when_a_column_is_added",
    ),
    42: (
        "replica/test_schema_change.py::test_values_of_a_new_column",
        f"{_RM}ddl.py::test_change_is_followed",
    ),
    43: (
        f"{_RM}service.py::test_toasted_values_survive_updates_of_other_columns",
        "replica/test_relation.py::test_unchanged_values_keep_what_is_stored",
    ),
    44: ("replica/test_writer.py::test_update_of_a_row_never_seen_inserts_it",),
    45: (
        f"{_RM}service.py::test_key_changes_keep_the_row",
        "replica/test_relation.py::test_key_change_keeps_the_rowid",
    ),
    46: (
        "replica/test_writer.py::test_any_history_leaves_the_rows_of_the_model_and_a_complete_log",
    ),
    47: (
        f"{_RM}service.py::test_truncate_then_insert_in_one_transaction",
        "replica/test_writer.py::test_truncate_is_one_entry_per_table",
    ),
    48: ("replica/test_relation.py::test_whole_rows_are_reduced_to_the_best_key",),
    49: (f"{_RM}service.py::test_keyless_tables_follow_upstream",),
    50: (f"{_RM}ddl.py::test_change_is_followed",),
    51: (f"{_RM}ddl.py::test_change_is_followed",),
    52: (
        f"{_RM}ddl.py::test_change_is_followed",
        "replica/test_schema_change.py::test_columns_are_known_by_position",
    ),
    53: (f"{_RM}ddl.py::test_change_is_followed",),
    54: (f"{_RM}ddl.py::test_concurrent_creations",),
    55: (f"{_RM}gotchas.py::test_a_users_trigger_that_changes_every_new_table",),
    56: (
        f"{_RM}ddl.py::test_concurrent_index_is_one_index",
        f"{_RM}gotchas.py::test_views_refreshed_beside_their_readers",
    ),
    57: (
        f"{_RM}ddl.py::test_manual_hook_with_disabled_triggers",
        f"{_RM}gotchas.py::test_comments_on_publications_change_nothing",
    ),
    58: (
        f"{_RM}ddl.py::test_change_is_followed",
        f"{_RM}ddl.py::test_publication_changes_bring_existing_rows",
    ),
    59: (
        f"{_RM}ddl.py::test_a_table_that_cannot_be_replicated_halts",
        f"{_RM}gotchas.py::test_changes_that_cannot_be_replicated",
    ),
    60: (
        f"{_RM}service.py::test_without_event_triggers_a_schema_change_ends_in_a_new_sync",
        f"{_RM}service.py::test_without_event_triggers_announced_changes_arrive_live",
        f"{_RM}schema_drift.py::test_what_the_stream_does_not_carry_is_a_difference",
    ),
    61: (f"{_RM}ddl.py::test_backfill_beside_writes_and_kills",),
    62: (f"{_RM}ddl.py::test_backfill_beside_writes_and_kills",),
    63: (f"{_RM}ddl.py::test_publication_changes_bring_existing_rows",),
    64: (f"{_RM}gotchas.py::test_tables_published_later_with_or_without_a_key",),
    66: (f"{_RM}ddl.py::test_rolled_back_changes_are_nothing",),
    69: (
        f"{_RM}change_store.py::test_purge_stays_behind_every_reservation",
        f"{_RM}change_store.py::test_without_a_durable_replica_nothing_is_purged",
    ),
    70: (f"{_RM}change_store.py::test_who_was_succeeded_stores_nothing_more",),
    71: (
        f"{_RM}change_store.py::test_a_successor_does_not_wait_for_an_unfinished_transaction",
        f"{_RM}change_log.py::test_a_second_manager_takes_over_under_load",
    ),
    72: (
        f"{_RM}change_store.py::test_memory_is_bounded_while_the_database_is_locked",
        f"{_RM}change_store.py::test_a_write_that_takes_too_long_has_failed",
    ),
    73: (
        f"{_RM}crash.py::test_nothing_is_lost_or_doubled_by_kill",
        f"{_RM}stream.py::test_transactions_the_replica_has_are_skipped",
    ),
    76: (f"{_RM}change_log.py::test_a_lost_change_database_costs_no_replica",),
    79: ("replica/test_migrations.py::test_an_older_replica_is_migrated_and_goes_on",),
    80: (
        f"{_RM}crash_matrix.py::test_killed_while_streaming",
        f"{_RM}crash_matrix.py::test_killed_in_the_initial_sync",
    ),
    82: (
        "zerocache/test_supervisor.py::test_sigterm_stops_workers_before_replication_and_exits_0",
        "zerocache/test_supervisor.py::test_sigquit_ends_at_once_with_14",
    ),
}

# Cases of what is not built, and of what is done in another way.
ELSEWHERE: dict[int, str] = {
    39: "there is no binary COPY: text is exact for every type, and decoded once for both paths",
    **dict.fromkeys((65, 67, 75), "subscribers of port 4849: several nodes"),
    **dict.fromkeys((68, 74, 77, 78), "backup and restore"),
    81: "custom change sources",
}


@cache
def _tests(file: str) -> frozenset[str]:
    tree = ast.parse((_ROOT / file).read_text())
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return frozenset(node.name for node in tree.body if isinstance(node, functions))


def test_every_case_is_somewhere() -> None:
    assert sorted([*COVERED, *ELSEWHERE]) == list(_CASES)


@pytest.mark.parametrize("case", sorted(COVERED))
def test_tests_of_a_case_exist(case: int) -> None:
    for test in COVERED[case]:
        file, _, name = test.partition("::")
        assert name in _tests(file), test
