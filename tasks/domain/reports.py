"""Reports: what a person is told regularly, in a few lines; and how long what grows will still fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tasks.domain.incidents import MAX_DISCORD_CHARS, MAX_SECTION_CHARS, WebhookKind, slack_escape

#: Fewer days than this are no history.
MIN_DAYS = 7


@dataclass(frozen=True, slots=True)
class Report:
    """A title and its lines; one that begins with ``!`` wants a person."""

    title: str
    lines: tuple[str, ...]

    @property
    def wants_a_person(self) -> bool:
        """Return whether something in it is wrong."""
        return any(line.startswith("!") for line in self.lines)

    def as_markdown(self) -> str:
        """Return it for the Prefect UI."""
        return "\n".join([f"# {self.title}", "", *(f"- {_marked(line)}" for line in self.lines)])

    def payload(self, kind: WebhookKind) -> dict[str, Any]:
        """Return it as the webhook takes it, within its limits."""
        text = "\n".join(f"• {_marked(line)}" for line in self.lines)
        if kind == "generic":
            return {"event": "report", "title": self.title, "text": "\n".join(self.lines), "wants": self.wants_a_person}
        if kind == "discord":
            embed = {"title": self.title[:256], "description": text[:MAX_DISCORD_CHARS]}
            return {"embeds": [embed], "allowed_mentions": {"parse": []}}
        body = slack_escape(text)
        if len(body) > MAX_SECTION_CHARS:
            body = body[: MAX_SECTION_CHARS - 1].rsplit("\n", 1)[0] + "\n…"
        return {
            "text": slack_escape(self.title),
            "blocks": [
                {"type": "header", "text": {"type": "plain_text", "text": self.title[:150]}},
                {"type": "section", "text": {"type": "mrkdwn", "text": body}},
            ],
        }


def _marked(line: str) -> str:
    return f"❗ {line[1:].strip()}" if line.startswith("!") else line


@dataclass(frozen=True, slots=True)
class Trend:
    """A straight line through what was measured: ``per_day`` is its slope, ``last`` its value on the last day."""

    per_day: float
    last: float
    days: int

    def days_until(self, limit: float) -> float | None:
        """Return the days until the limit is reached; None where it never is that way."""
        if self.last >= limit:
            return 0.0
        return (limit - self.last) / self.per_day if self.per_day > 0 else None


def trend_of(points: Sequence[tuple[datetime, float]]) -> Trend | None:
    """Return the line of least squares through values by day; None where there is too little history."""
    if len({at.date() for at, _ in points}) < MIN_DAYS:
        return None
    first = min(at for at, _ in points)
    days = [(at - first).total_seconds() / 86_400 for at, _ in points]
    values = [value for _, value in points]
    mean_day, mean_value = sum(days) / len(days), sum(values) / len(values)
    spread = sum((day - mean_day) ** 2 for day in days)
    slope = sum((day - mean_day) * (value - mean_value) for day, value in zip(days, values, strict=True)) / spread
    return Trend(slope, mean_value + slope * (max(days) - mean_day), round(max(days)) + 1)


def compared(name: str, now: float | None, before: float | None, unit: str = "") -> str:
    """Return a figure beside the one of the span before, with the change; what was not measured says so."""
    if now is None:
        return f"{name}: not measured"
    said = f"{name}: {_number(now)}{unit}"
    if before is None:
        return f"{said} (nothing to compare with)"
    if not before:
        return f"{said} (0 before)"
    return f"{said} ({(now - before) / before:+.0%} from {_number(before)}{unit})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:,.4g}"


def by_count(counts: Mapping[str, int], limit: int = 8) -> str:
    """Return names with their numbers, the most frequent first."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    shown = [f"{name} {number:,}" for name, number in ordered[:limit]]
    if len(ordered) > limit:
        shown.append(f"{len(ordered) - limit} more {sum(number for _, number in ordered[limit:]):,}")
    return ", ".join(shown) or "none"


def in_order(lines: Iterable[str]) -> tuple[str, ...]:
    """Return the lines, those that want a person first."""
    return tuple(sorted(lines, key=lambda line: not line.startswith("!")))
