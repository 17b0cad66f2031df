"""Errors, named for who reacts: a record's dead letter, the retry, or a person.

``RecordError``     one record is refused; the run goes on.      -> dead letters
``TransientError``  the same call may work in a moment.          -> task retry
``TerminalError``   nothing will work until somebody acts.       -> the run fails, the message says what to do
``QuotaSpentError``, ``BatchesUnderWayError``, ``BudgetSpentError``, ``StoppedError``
                    the run pauses, and goes on where it was

No message may hold a secret: what is raised here ends in logs, run states and Slack.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any


class PipelineError(Exception):
    """The root of all errors that this project raises on purpose."""


class RecordError(PipelineError):
    """One record (or one text) can't become a vector document; the others can.

    ``code`` is a short stable name such as ``amount_ambiguous``: dead letters are counted and replayed by it.
    The message is the reason in words, for a person who has the record before them.
    """

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason

    def __reduce__(self) -> tuple[type[RecordError], tuple[str, str]]:
        return (type(self), (self.code, self.reason))


class TransientError(PipelineError):
    """The call may succeed if it is made again; the task retry does so.

    ``retry_after_seconds`` is what the other side asked for, where it said so.
    """

    def __init__(self, message: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class ThrottledError(TransientError):
    """The service was asked too fast and refused: nothing was done, and nothing is owed."""


class NotSentError(TransientError):
    """No connection was made: the request never left, and nothing is owed."""


class TerminalError(PipelineError):
    """Nothing will work until a person acts; the message says how."""


class InputError(TerminalError):
    """What was asked for can't be meant: a window that ends before it starts, a team that doesn't exist."""


class WorkTakenError(TerminalError):
    """Another run is at the same work right now."""


class QuotaSpentError(PipelineError):
    """The day's quota of texts or dollars has no room; the same call works from ``until`` on, a moment in UTC."""

    def __init__(self, message: str, until: datetime) -> None:
        super().__init__(message)
        self.until = until

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (str(self), self.until))


class BatchesUnderWayError(QuotaSpentError):
    """Batch jobs of the run are not over, or none is taken now; the run looks again at ``until``.

    Its message is the same each time, so that a job's record tells it once; ``words`` say what it waits for.
    """

    def __init__(self, until: datetime, *, jobs: int, texts: int, why: str = "") -> None:
        super().__init__("batch jobs at Gemini are not over yet; the run looks again by itself", until)
        self.jobs = jobs
        self.texts = texts
        self.why = why

    @property
    def words(self) -> str:
        """Return what is under way, and why no more is."""
        jobs = f"{self.jobs:,} batch job{'' if self.jobs == 1 else 's'}"
        under_way = f"{jobs} with {self.texts:,} texts under way at Gemini."
        return f"{under_way} No more for now: {self.why}" if self.why else under_way

    def __reduce__(self) -> tuple[Any, ...]:
        return (_under_way_again, (self.until, self.jobs, self.texts, self.why))


def _under_way_again(until: datetime, jobs: int, texts: int, why: str) -> BatchesUnderWayError:
    return BatchesUnderWayError(until, jobs=jobs, texts=texts, why=why)


class BudgetSpentError(PipelineError):
    """What is left of the run's budget does not pay for the next request; a person allows more, or leaves it."""

    def __init__(self, spent_usd: float, budget_usd: float) -> None:
        super().__init__(f"${spent_usd:.4f} of the run's budget of ${budget_usd:.4f} is spent.")
        self.spent_usd = spent_usd
        self.budget_usd = budget_usd

    def __reduce__(self) -> tuple[type[BudgetSpentError], tuple[float, float]]:
        return (type(self), (self.spent_usd, self.budget_usd))


class StoppedError(PipelineError):
    """The run was asked to stop, and did so between two requests: what arrived is kept."""

    def __init__(self, message: str = "the run was asked to stop") -> None:
        super().__init__(message)


class HistoryLostError(PipelineError):
    """The source no longer knows what changed since the position: everything must be compared once."""


class ShardDamagedError(PipelineError):
    """A shard file is missing, cut short or not the one that was written: its stages must run again."""
