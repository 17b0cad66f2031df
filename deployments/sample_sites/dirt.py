"""Where dirt is planted, by the name of its class.

A class of ``UNMIGRATABLE_...`` leaves no vector document of its own: its owner, its identity or its time can't be
known. One of ``SURVIVING_...`` is odd, but each still says what happened and to whom it belongs. The rows of a
stream (sessions, events, journeys) hold every class once near the beginning; each list that is small holds
it in a fixed place. ``planted_in_...`` says which class a row has, by its place from 0.
"""

from __future__ import annotations

from itertools import zip_longest
from typing import Final

#: Sites through which nobody can be found who owns a record.
OWNERLESS: Final = (
    "site_not_uuid",
    "site_without_website",
    "site_without_team",
    "site_of_unknown_team",
    "site_of_two_teams",
)

UNMIGRATABLE_SESSIONS: Final = (
    "missing_session_id",
    "text_id",
    "missing_site_id",
    *OWNERLESS,
    "start_time_missing",
    "start_time_not_a_date",
    "start_time_2099",
    "start_time_after_9999",
    "only_id",
    "all_null",
    "duplicate_key",
)
SURVIVING_SESSIONS: Final = (
    "start_time_text",
    "end_before_start",
    "no_end",
    "late_row",
    "duration_text",
    "duration_nan",
    "duration_negative",
    "duration_decimal128",
    "duration_huge",
    "pages_viewed_text",
    "pages_viewed_disagrees",
    "bounce_disagrees",
    "web3_without_wallet",
    "wallet_not_evm",
    "wallet_shared",
    "wallet_null",
    "utm_null",
    "utm_id_unknown",
    "country_not_iso",
    "browser_null",
    "device_text",
    "previous_session_unknown",
    "session_number_zero",
    "time_since_last_negative",
    "session_id_of_another_site",
    "user_id_missing",
    "user_id_in_path",
    "visited_pages_null",
    "visited_pages_not_a_list",
    "visited_pages_odd",
    "nul_characters",
    "bidi_override",
    "zero_width",
    "emoji_path",
    "rtl_path",
    "long_path",
    "many_pages",
    "unknown_extra_fields",
)

UNMIGRATABLE_EVENTS: Final = (
    "text_id",
    "missing_site_id",
    *OWNERLESS,
    "timestamp_missing",
    "timestamp_not_a_date",
    "timestamp_2099",
    "timestamp_after_9999",
    "only_id",
    "all_null",
)
SURVIVING_EVENTS: Final = (
    "timestamp_text",
    "no_event_type",
    "unknown_event_type",
    "personal_inner_text",
    "personal_link",
    "long_inner_text",
    "session_missing",
    "session_unknown",
    "user_id_missing",
    "event_data_null",
    "event_data_text",
    "session_duration_text",
    "session_duration_nan",
    "pages_per_visit_negative",
    "resolution_odd",
    "page_path_missing",
    "page_path_whole_url",
    "nul_characters",
    "bidi_override",
    "rtl_text",
    "unknown_extra_fields",
)

#: Some of these are no object, or have no user: nothing tells them from another journey of the site.
UNMIGRATABLE_JOURNEYS: Final = (
    "not_an_object",
    "only_id",
    "user_id_missing",
    "first_visit_missing",
    "first_visit_not_a_date",
    "first_visit_2099",
    "duplicate_key",
)
SURVIVING_JOURNEYS: Final = (
    "no_id",
    "last_before_first",
    "segment_unknown",
    "segment_missing",
    "days_to_conversion_negative",
    "time_spent_text",
    "time_spent_nan",
    "time_spent_huge",
    "converted_text",
    "source_missing",
    "source_bidi_override",
    "pages_disagree",
)

UNMIGRATABLE_CAMPAIGNS: Final = ("text_id", "missing_site_id", *OWNERLESS, "only_id", "all_null")
SURVIVING_CAMPAIGNS: Final = (
    "no_utm_id",
    "doubled_utm_id",
    "mixed_units",
    "bounce_rate_over_100",
    "budget_missing",
    "budget_text",
    "budget_nan",
    "budget_negative",
    "budget_decimal128",
    "budget_unknown_currency",
    "roi_nan",
    "stats_missing",
    "stats_text",
    "sessions_dangling",
    "transactions_null",
    "created_missing",
    "created_text",
    "nul_name",
    "bidi_name",
    "long_name",
)

UNMIGRATABLE_ANALYTICS: Final = ("text_id", "missing_site_id", *OWNERLESS)
SURVIVING_ANALYTICS: Final = (
    "journey_fields_missing",
    "hourly_stats_missing",
    "daily_stats_missing",
    "unique_visitors_disagree",
    "wallets_disagree",
    "new_and_returning_disagree",
    "bounce_rate_text",
    "counter_text",
    "counter_nan",
    "counter_negative",
    "counter_decimal128",
    "page_map_null",
    "page_map_odd",
    "long_page_key",
    "bidi_page_key",
    "user_ids_null",
    "url_missing",
    "pathways_odd",
    "unknown_extra_fields",
)

#: Whole rows of hourlystats and dailystats; OWNERLESS sites have theirs too.
UNMIGRATABLE_STATISTICS: Final = ("text_id", "missing_site_id", *OWNERLESS)
#: Of these rows something can be told, or there is nothing to tell ("empty_ring", "ring_missing", "ring_null").
SURVIVING_STATISTICS: Final = (
    "oldest_first",
    "shuffled",
    "total_falls",
    "figure_text",
    "figure_nan",
    "figure_negative",
    "figure_decimal128",
    "figure_missing",
    "entry_null",
    "entry_without_time",
    "entry_in_2099",
    "time_as_text",
    "same_time_twice",
    "gap",
    "one_entry",
    "empty_ring",
    "ring_missing",
    "ring_null",
    "timezone_unknown",
    "last_snapshot_missing",
)

_DIRT_EVERY: Final = 333


def _turns(first: int, step: int, unmigratable: tuple[str, ...], surviving: tuple[str, ...]) -> dict[int, str]:
    both = (name for pair in zip_longest(surviving, unmigratable) for name in pair if name is not None)
    return {first + step * turn: name for turn, name in enumerate(both)}


_FIRST_SESSIONS: Final = 400
_SESSIONS: Final = _turns(12, 7, UNMIGRATABLE_SESSIONS, SURVIVING_SESSIONS)
_FIRST_EVENTS: Final = 170
_EVENTS: Final = _turns(4, 5, UNMIGRATABLE_EVENTS, SURVIVING_EVENTS)
_JOURNEYS: Final = _turns(2, 2, UNMIGRATABLE_JOURNEYS, SURVIVING_JOURNEYS)


def _planted(
    row: int, first: int, places: dict[int, str], unmigratable: tuple[str, ...], surviving: tuple[str, ...]
) -> str | None:
    if row < first:
        return places.get(row)
    turn, place = divmod(row, _DIRT_EVERY)
    if place == _DIRT_EVERY // 3:
        return unmigratable[turn % len(unmigratable)]
    if place == 2 * _DIRT_EVERY // 3:
        return surviving[turn % len(surviving)]
    return None


def planted_in_session(row: int) -> str | None:
    """Return the class of dirt in that session (from 0), or None."""
    return _planted(row, _FIRST_SESSIONS, _SESSIONS, UNMIGRATABLE_SESSIONS, SURVIVING_SESSIONS)


def planted_in_event(number: int) -> str | None:
    """Return the class of dirt in that event (from 0), or None."""
    return _planted(number, _FIRST_EVENTS, _EVENTS, UNMIGRATABLE_EVENTS, SURVIVING_EVENTS)


def planted_in_journey(number: int) -> str | None:
    """Return the class of dirt in that journey (from 0, over the rows of analytics in their order), or None."""
    return _JOURNEYS.get(number)
