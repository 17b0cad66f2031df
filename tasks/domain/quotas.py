"""Quotas: what embedding may use a minute, a day and a run, and the arithmetic that keeps many processes within it.

Google counts texts and tokens over a window of one minute that slides, and over its own day, which ends at midnight
Pacific time. A run's budget is ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from math import floor
from typing import Protocol
from zoneinfo import ZoneInfo

from tasks.domain.errors import BudgetSpentError, QuotaSpentError
from tasks.domain.vectors import EmbedderFacts

_PACIFIC = ZoneInfo("America/Los_Angeles")
_WINDOW_SECONDS = 60.0
#: What is taken in order may arrive closer together: one request travels longer than the next.
_DELAY_SPREAD_SECONDS = 1.0
#: The share of a minute's quota that a bucket holds: it may be used at once, and is lost to the steady rate.
_BURST_SHARE = 1 / 20
#: A full batch takes two thirds of a bucket, so that the rest fills while whoever is next is not quite there yet.
_BATCH_SHARE = 2 / 3
#: A batch is at most this share of a day or a budget, so that no more than that is left unused at its end.
_TAIL_SHARE = 1 / 50
#: Prefect's server rounds decay down to whole slots at each use; a thousand to a text make that nothing.
SLOTS_PER_TEXT, SLOTS_PER_TOKEN = 1_000, 1
#: PostgreSQL keeps slots in 32 bits.
_MAX_SLOTS = 2_000_000_000

#: Dollars are counted in whole billionths: sums of fractions would drift.
NANO_USD = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Quota:
    """What all processes together may use; None means without limit. A text counts as one request."""

    texts_per_minute: int | None = None
    tokens_per_minute: int | None = None
    texts_per_day: int | None = None
    usd_per_day: float | None = None

    @classmethod
    def of(cls, facts: EmbedderFacts) -> Quota:
        """Return the quota that an embedder states."""
        return cls(facts.texts_per_minute, facts.tokens_per_minute, facts.texts_per_day, facts.usd_per_day)

    @property
    def unlimited(self) -> bool:
        """Return whether nothing is limited."""
        return self == Quota()


class Gate(Protocol):
    """Stands before every request to a paid embedder; threads and processes share what it grants.

    A batch of at most ``max_texts`` and ``max_tokens`` passes at once when there is room; None means any size. What
    is larger passes in parts.
    """

    @property
    def max_texts(self) -> int | None:
        """Return how many texts a batch should hold at most."""
        ...

    @property
    def max_tokens(self) -> int | None:
        """Return how many tokens a batch should hold at most; a single text may hold more."""
        ...

    def occupy(self, texts: int, tokens: int) -> None:
        """Wait until a request of this size may be sent, and count it. Call it before every attempt.

        Raises ``QuotaSpentError`` and ``BudgetSpentError`` if waiting a moment doesn't help, ``StoppedError`` if the
        run is asked to stop meanwhile, ``TransientError`` if the Prefect server or MongoDB doesn't answer, and
        ``TerminalError`` if the limits were never registered.
        """
        ...

    def give_back(self, texts: int, tokens: int) -> None:
        """Take from the day's and the run's count what the service refused without cost.

        Call it in the thread that occupied. What a minute allows is not given back.
        """
        ...

    def hold_back(self, seconds: float) -> None:
        """Let every process wait this long before its next request: the service asked for it."""
        ...

    def close_for_the_day(self, reason: str) -> None:
        """Let every process stop until the service's next day: it said that today's quota is used up."""
        ...


# -- a minute ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Bucket:
    """A rate limit: ``capacity`` slots, which empty by ``decay_per_second``.

    A batch should hold at most ``largest`` units; a unit is a text or a token.
    """

    capacity: int
    decay_per_second: float
    largest: int


def make_bucket(per_minute: int, *, slots_per_unit: int, window_seconds: float = _WINDOW_SECONDS) -> Bucket:
    """Return the bucket through which no sliding window lets more than ``per_minute`` units, at 93 % of the quota.

    Within a window pass at most ``capacity + decay * window`` slots. That stays below one unit more than the quota,
    and units are whole. A quota below 20 has a bucket of one unit.
    """
    capacity = min(int(max(1.0, per_minute * _BURST_SHARE) * slots_per_unit), _MAX_SLOTS)
    decay = ((per_minute + 1) * slots_per_unit - capacity) / (window_seconds + _DELAY_SPREAD_SECONDS)
    largest = max(1, floor(capacity * _BATCH_SHARE / slots_per_unit))
    return Bucket(capacity, decay, largest)


def text_bucket(quota: Quota, *, window_seconds: float = _WINDOW_SECONDS) -> Bucket | None:
    """Return the bucket of texts, or None without a quota."""
    if quota.texts_per_minute is None:
        return None
    return make_bucket(quota.texts_per_minute, slots_per_unit=SLOTS_PER_TEXT, window_seconds=window_seconds)


def token_bucket(quota: Quota, *, window_seconds: float = _WINDOW_SECONDS) -> Bucket | None:
    """Return the bucket of tokens, or None without a quota."""
    if quota.tokens_per_minute is None:
        return None
    return make_bucket(quota.tokens_per_minute, slots_per_unit=SLOTS_PER_TOKEN, window_seconds=window_seconds)


# -- a day and a run ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class QuotaDay:
    """Google's day: ``name`` such as ``2026-11-03``; ``ends`` is the next midnight Pacific time, in UTC."""

    name: str
    ends: datetime


def quota_day(now: datetime) -> QuotaDay:
    """Return Google's day at this moment. ``now`` must know its time zone."""
    if now.tzinfo is None:
        raise ValueError("a moment without a time zone")
    date = now.astimezone(_PACIFIC).date()
    return QuotaDay(date.isoformat(), datetime.combine(date + timedelta(days=1), time(), _PACIFIC).astimezone(UTC))


@dataclass(frozen=True, slots=True)
class Allowance:
    """What one run may bring the counts to: the day's of all runs, and its own. None means without limit."""

    day_texts: int | None = None
    day_nano_usd: int | None = None
    run_nano_usd: int | None = None
    kept_back: float = 0.0

    @classmethod
    def of(cls, quota: Quota, *, keep_back: float = 0.0, budget_usd: float | None = None) -> Allowance:
        """Return the allowance that leaves the share ``keep_back`` of the day to others."""
        if not 0 <= keep_back < 1:
            raise ValueError(f"a share of {keep_back} can't be kept back")
        texts, usd = quota.texts_per_day, quota.usd_per_day
        return cls(
            None if texts is None else texts - floor(texts * keep_back),
            None if usd is None else round(usd * (1 - keep_back) * NANO_USD),
            None if budget_usd is None else round(budget_usd * NANO_USD),
            keep_back,
        )


@dataclass(frozen=True, slots=True)
class Spending:
    """What was spent by all runs on a day, and by one run on all days; and until when nobody may send.

    ``closed_until``: the service asked for a pause. ``spent_until``: it said that its day's quota is used up.
    """

    day: str
    texts: int = 0
    tokens: int = 0
    nano_usd: int = 0
    run_nano_usd: int = 0
    closed_until: datetime | None = None
    spent_until: datetime | None = None
    spent_reason: str = ""

    @property
    def usd(self) -> float:
        """Return the day's dollars."""
        return self.nano_usd / NANO_USD

    @property
    def run_usd(self) -> float:
        """Return the run's dollars."""
        return self.run_nano_usd / NANO_USD


def cost_nano_usd(tokens: int, usd_per_million_tokens: float) -> int:
    """Return what tokens cost, in billionths of a dollar."""
    return round(tokens * usd_per_million_tokens * (NANO_USD / 1_000_000))


def wait_before(spending: Spending, allowance: Allowance, *, texts: int, nano_usd: int, now: datetime) -> float:
    """Return how many seconds to wait before a request of this size may ask again.

    Raises ``BudgetSpentError`` if the run's budget has no room for it, ``QuotaSpentError`` if the day has none.
    """
    if allowance.run_nano_usd is not None and spending.run_nano_usd + nano_usd > allowance.run_nano_usd:
        raise BudgetSpentError(spending.run_usd, allowance.run_nano_usd / NANO_USD)
    day = quota_day(now)
    goes_on = f"It goes on at midnight Pacific time ({day.ends:%Y-%m-%d %H:%M} UTC)."
    kept = f", {allowance.kept_back:.0%} of the day being kept for ongoing work" if allowance.kept_back else ""
    if spending.spent_until is not None and spending.spent_until > now:
        raise QuotaSpentError(spending.spent_reason, spending.spent_until)
    if allowance.day_texts is not None and spending.texts + texts > allowance.day_texts:
        raise QuotaSpentError(
            f"{spending.texts:,} of the {allowance.day_texts:,} texts that CRYPTIQUE_GEMINI_TEXTS_PER_DAY allows here "
            f"were embedded today{kept}. {goes_on}",
            day.ends,
        )
    if allowance.day_nano_usd is not None and spending.nano_usd + nano_usd > allowance.day_nano_usd:
        raise QuotaSpentError(
            f"${spending.usd:.4f} of the ${allowance.day_nano_usd / NANO_USD:.4f} that CRYPTIQUE_GEMINI_USD_PER_DAY "
            f"allows here were spent today{kept}. {goes_on}",
            day.ends,
        )
    if spending.closed_until is not None:
        return max(0.0, (spending.closed_until - now).total_seconds())
    return 0.0


# -- a batch -----------------------------------------------------------------------------------------------


def largest_batch(
    quota: Quota, *, usd_per_million_tokens: float = 0.0, budget_usd: float | None = None
) -> tuple[int | None, int | None]:
    """Return how many texts and how many tokens a batch should hold at most; None where nothing limits it.

    A batch passes a minute's bucket at once, and a fiftieth of a day or a budget is the most that it leaves unused.
    """
    texts, tokens = text_bucket(quota), token_bucket(quota)
    most_texts = [] if texts is None else [texts.largest]
    most_tokens = [] if tokens is None else [tokens.largest]
    if quota.texts_per_day is not None:
        most_texts.append(max(1, int(quota.texts_per_day * _TAIL_SHARE)))
    if usd_per_million_tokens > 0:
        most_tokens.extend(
            max(1, int(usd * _TAIL_SHARE * 1_000_000 / usd_per_million_tokens))
            for usd in (quota.usd_per_day, budget_usd)
            if usd is not None
        )
    return min(most_texts, default=None), min(most_tokens, default=None)
