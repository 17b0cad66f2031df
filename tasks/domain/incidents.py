"""Incident: something failed that a person should know of; how often they are told, and in which words.

The rules are pure: what is remembered of a cause goes in with the time, and what is to be said comes out. Whoever
calls them writes the memory down before anything is sent.

- A failure is told at once, unless its cause was told of within the cooldown: then it is held back and counted.
- What is held back is told with the next message of its cause, or in a summary when the cooldown ends.
- When the flow completes again, that is told once for each cause that was told of.
- Each cause has a cooldown of its own, so none hides another.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from urllib.parse import quote, quote_plus

Severity = Literal["critical", "warning"]
Kind = Literal["failed", "summary", "resolved"]
WebhookKind = Literal["slack", "discord", "generic"]

COOLDOWN: Mapping[Severity, timedelta] = {"critical": timedelta(minutes=5), "warning": timedelta(minutes=15)}
#: A message that the webhook did not take is tried again with the next occasion after this.
RETRY_AFTER = timedelta(minutes=1)

#: Slack's limits; https://docs.slack.dev/reference/block-kit/blocks
MAX_SECTION_CHARS, MAX_HEADER_CHARS, MAX_FIELD_CHARS = 3_000, 150, 2_000
#: Discord's limit of a description.
MAX_DISCORD_CHARS = 4_096
#: What a phone shows without scrolling; the run's page has the rest.
_WORDS_CHARS = 700
_SHOWN_REASONS = 8
_STACK = re.compile(r'Traceback \(most recent call last\)|\s*\n\s*File "|\n\s+at ')
_CREDENTIALS = (
    (re.compile(r"(\w[\w+.-]*://)[^/\s@]*:[^\s@]*@"), r"\1***@"),
    (re.compile(r"([?&](?:key|api_key|token|access_token|password)=)[^&\s]+", re.IGNORECASE), r"\1***"),
    (re.compile(r"https?://hooks\.slack\.com/\S+|https?://discord(?:app)?\.com/api/webhooks/\S+"), "***"),
)


@dataclass(frozen=True, slots=True)
class Incident:
    """One failure, in words for a person with a phone.

    ``cause`` tells what is the same trouble: flow, error and stage, never the run, so that a storm is one incident.
    ``counts`` are records by outcome so far. ``resume`` is the exact command that goes on. ``failures`` counts this
    cause since it was last well; ``first_seen`` and ``last_seen`` bound them. ``runbook`` is where it says what to do.
    A ``condition`` is how something is, seen by every look at it; anything else is a run that failed.
    """

    cause: str
    flow: str
    severity: Severity
    title: str
    what: str
    first_seen: datetime
    last_seen: datetime
    scope: str = ""
    stage: str = ""
    error: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)
    dead_letters: Mapping[str, int] = field(default_factory=dict)
    link: str | None = None
    resume: str | None = None
    failures: int = 1
    runbook: str = ""
    condition: bool = False

    def to_record(self) -> dict[str, Any]:
        """Return it as plain values; reasons are pairs, because a name in MongoDB should hold no dot."""
        return {**asdict(self), "counts": list(self.counts.items()), "dead_letters": list(self.dead_letters.items())}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Incident:
        """Return the incident that ``to_record`` was called on."""
        values = {item.name: record[item.name] for item in fields(cls) if item.name in record}
        return cls(**{**values, "counts": dict(record["counts"]), "dead_letters": dict(record["dead_letters"])})


def cause_of(flow: str, error: str, stage: str) -> str:
    """Return what tells one trouble from another: ``migrate:TransientError:embed``."""
    return f"{flow}:{error or 'unknown'}:{stage or 'no stage'}"


# -- when to speak ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Memory:
    """What is remembered of a cause between its failures.

    ``held`` failures have not been told. ``unconfirmed`` ones are in a message that is on its way: when its sender
    dies they are told again, for twice is better than never. ``told_failing`` is what the channel believes;
    ``failing`` is how it is.
    """

    incident: Incident
    quiet_until: datetime
    failing: bool = True
    told_failing: bool = False
    held: int = 0
    unconfirmed: int = 0

    @property
    def cause(self) -> str:
        """Return the cause that is remembered."""
        return self.incident.cause

    @property
    def untold(self) -> int:
        """Return the failures that no message is known to have told."""
        return self.held + self.unconfirmed

    def to_record(self) -> dict[str, Any]:
        """Return it as plain values, with the cause as the id."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {"_id": self.cause, "flow": self.incident.flow, **values, "incident": self.incident.to_record()}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Memory:
        """Return the memory that ``to_record`` was called on."""
        values = {item.name: record[item.name] for item in fields(cls)}
        return cls(**{**values, "incident": Incident.from_record(record["incident"])})


@dataclass(frozen=True, slots=True)
class Message:
    """What is to be said now. ``failures`` of its cause are told with it, of which ``held_back`` had to wait."""

    kind: Kind
    incident: Incident
    failures: int
    held_back: int
    #: For a summary: the flow has completed since.
    well_again: bool = False


Decision = tuple[Memory, Message | None]


def on_failure(memory: Memory | None, incident: Incident, *, now: datetime) -> Decision:
    """Return what to remember and to say when a cause fails: a message, or one more that is held back."""
    cooldown = COOLDOWN[incident.severity]
    if memory is None:
        incident = replace(incident, first_seen=now, last_seen=now, failures=1)
        return Memory(incident, now + cooldown, unconfirmed=1), Message("failed", incident, 1, 0)
    before = memory.incident
    goes_on = memory.failing or memory.untold > 0
    incident = replace(
        incident,
        first_seen=before.first_seen if goes_on else now,
        last_seen=now,
        failures=before.failures + 1 if goes_on else 1,
    )
    memory = replace(memory, incident=incident, failing=True)
    if now < memory.quiet_until:
        return replace(memory, held=memory.held + 1), None
    waited = memory.untold
    memory = replace(memory, held=0, unconfirmed=waited + 1, quiet_until=now + cooldown)
    return memory, Message("failed", incident, waited + 1, waited)


def on_success(memory: Memory, *, now: datetime) -> Decision:
    """Return what to remember and to say when the flow completes: that it is well, if a failure was told.

    The notice doesn't wait for the cooldown, and tells what was held back. A cause that came and went within its
    cooldown is only summed up later, so that a flow that flaps doesn't fill the channel.
    """
    memory = replace(memory, failing=False)
    if not memory.told_failing:
        return memory, None
    waited = memory.held
    memory = replace(memory, told_failing=False, held=0, unconfirmed=memory.unconfirmed + waited)
    return memory, Message("resolved", memory.incident, waited, waited, well_again=True)


def on_time(memory: Memory, *, now: datetime) -> Decision:
    """Return what to remember and to say because time has passed: the summary when a cooldown ends, if any was held.

    Also says what an earlier message failed to say.
    """
    if now < memory.quiet_until:
        return memory, None
    if memory.told_failing and not memory.failing:
        return on_success(memory, now=now)
    if not memory.untold:
        return memory, None
    waited = memory.untold
    incident, well = memory.incident, not memory.failing
    memory = replace(memory, held=0, unconfirmed=waited, quiet_until=now + COOLDOWN[incident.severity])
    return memory, Message("summary", incident, waited, waited, well_again=well)


def after_sending(memory: Memory, message: Message, *, delivered: bool, now: datetime) -> Memory:
    """Return what to remember when a message was delivered, or was not: then it is told with the next one."""
    left = max(0, memory.unconfirmed - message.failures)
    if delivered:
        believes = {"failed": True, "resolved": False, "summary": not message.well_again}[message.kind]
        return replace(memory, unconfirmed=left, told_failing=believes)
    memory = replace(memory, unconfirmed=left, held=memory.held + memory.unconfirmed - left)
    if message.kind == "resolved":
        # The channel still believes what it was told; the cooldown of that message goes on.
        return replace(memory, told_failing=True, quiet_until=max(memory.quiet_until, now + RETRY_AFTER))
    return replace(memory, quiet_until=min(memory.quiet_until, now + RETRY_AFTER))


# -- in which words --------------------------------------------------------------------------------------------------


def in_words(text: str, *, secrets: Iterable[str] = (), limit_chars: int = _WORDS_CHARS) -> str:
    """Return an error as a sentence or two: one line, no stack trace, no credentials, cut to what a phone shows."""
    text = text.encode("utf-8", "replace").decode()
    for spelled in sorted({form for secret in secrets for form in _spellings(secret)}, key=len, reverse=True):
        text = text.replace(spelled, "***")
    for pattern, instead in _CREDENTIALS:
        text = pattern.sub(instead, text)
    text = _STACK.split(text, maxsplit=1)[0]
    text = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return text if len(text) <= limit_chars else text[: limit_chars - 1].rstrip() + "…"


def _spellings(secret: str) -> set[str]:
    found = {secret, quote(secret), quote(secret, safe=""), quote_plus(secret)}
    return {spelled for spelled in found if len(spelled) >= 4}


def slack_escape(text: str) -> str:
    """Return text that Slack shows as it is: no mention, link or entity comes out of it."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _fit(text: str, limit: int) -> str:
    """Return the text escaped and cut to Slack's limit, never inside an entity."""
    if len(slack_escape(text)) <= limit:
        return slack_escape(text)
    parts: list[str] = []
    left = limit - 1
    for char in text:
        escaped = slack_escape(char)
        if len(escaped) > left:
            break
        parts.append(escaped)
        left -= len(escaped)
    return "".join(parts) + "…"


def headline(message: Message) -> str:
    """Return the line that a notification shows."""
    title = message.incident.title
    if message.kind == "resolved":
        return (
            f"Resolved: {title}" if message.incident.condition else f"Resolved: {message.incident.flow} completed again"
        )
    if message.kind == "summary" and message.incident.condition:
        return f"No more: {title}" if message.well_again else f"Still: {title}"
    if message.kind == "summary":
        return f"{_times(message.failures)} more: {title}"
    return title


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number:,} times"


def _history(message: Message) -> str:
    """Return how often and since when, and what was held back."""
    incident = message.incident
    first, last = _clock(incident.first_seen), _clock(incident.last_seen)
    if incident.condition:
        until = "over" if message.kind == "resolved" or message.well_again else "last seen"
        return f"Seen at {first}." if incident.failures == 1 else f"Since {first}, {until} at {last}."
    seen = f"at {last}" if incident.failures == 1 else f"{_times(incident.failures)} between {first} and {last}"
    parts = [f"Failed {seen}."]
    if message.held_back:
        parts.append(f"{_held(message.held_back)} held back since the last message and told here.")
    if message.kind == "summary":
        parts.append("It has completed since." if message.well_again else "It has not completed since.")
    return " ".join(parts)


def _held(number: int) -> str:
    return "1 failure was" if number == 1 else f"{number:,} failures were"


def _clock(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _reasons(counts: Mapping[str, int]) -> str:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    shown = [f"{name} {number:,}" for name, number in ordered[:_SHOWN_REASONS]]
    if len(ordered) > _SHOWN_REASONS:
        shown.append(f"{len(ordered) - _SHOWN_REASONS} other reasons {sum(n for _, n in ordered[_SHOWN_REASONS:]):,}")
    return ", ".join(shown)


def _facts(message: Message) -> list[tuple[str, str]]:
    """Return what is known besides the words, by its name. A resolved incident needs no figures."""
    incident = message.incident
    facts = [("" if incident.condition else "Flow", incident.flow), ("Scope", incident.scope)]
    if message.kind == "resolved" and incident.condition:
        facts.append(("It was", incident.what))
    elif message.kind == "resolved":
        facts.append(("It was", incident.title))
    else:
        facts += [
            ("Stage", incident.stage),
            ("Error", incident.error),
            ("So far", ", ".join(f"{number:,} {name}" for name, number in incident.counts.items())),
            ("Dead letters", _reasons(incident.dead_letters)),
        ]
    return [(name, value) for name, value in facts if name and value]


def format_text(message: Message) -> str:
    """Return the message as plain lines: for a notification, a log, or a reader without layout."""
    incident = message.incident
    lines = [headline(message)]
    if message.kind != "resolved":
        lines.append(incident.what)
    lines += [f"{name}: {value}" for name, value in _facts(message)]
    lines.append(_history(message))
    if incident.link:
        lines.append(f"{'See' if incident.condition else 'Run'}: {incident.link}")
    if incident.resume and message.kind != "resolved":
        lines.append(f"{'Look' if incident.condition else 'Resume'}: {incident.resume}")
    if incident.runbook and message.kind != "resolved":
        lines.append(f"Runbook: {incident.runbook}")
    return "\n".join(lines)


_EMOJI = {"critical": "🔴", "warning": "🟠", "resolved": "🟢"}
_COLOUR = {"critical": 0xD7263D, "warning": 0xF49D37, "resolved": 0x2E933C}


def _mark(message: Message) -> str:
    well = message.kind == "resolved" or message.well_again
    return "resolved" if well else message.incident.severity


def format_slack(message: Message) -> dict[str, Any]:
    """Return the message as a Block Kit payload with a text fallback; every part is within Slack's limits."""
    incident = message.incident
    title = f"{_EMOJI[_mark(message)]} {headline(message)}"
    blocks: list[dict[str, Any]] = [
        {"type": "header", "text": {"type": "plain_text", "text": title[:MAX_HEADER_CHARS], "emoji": True}}
    ]
    if message.kind != "resolved" and incident.what:
        blocks.append(_section(_fit(incident.what, MAX_SECTION_CHARS)))
    # One fact a line: two columns of fields are too narrow on a phone.
    facts = [f"*{name}* {_fit(value, MAX_FIELD_CHARS)}" for name, value in _facts(message)]
    blocks += [_section(text) for text in _packed(facts)]
    if incident.resume and message.kind != "resolved":
        command = slack_escape(incident.resume.replace("```", "'''"))
        text = f"*{'To see more' if incident.condition else 'To go on'}*\n```{command}```"
        # Half a command is worse than none.
        blocks.append(_section(text if len(text) <= MAX_SECTION_CHARS else "*To go on* see the run's page"))
    if incident.link:
        label = "Open the run" if message.kind != "resolved" else "Open the run that completed"
        blocks.append(_section(_slack_link(incident.link, "Open the dashboard" if incident.condition else label)))
    if incident.runbook and message.kind != "resolved":
        # Without a public address it is a file of the project, which Slack has no link for.
        address = incident.runbook
        linked = address.startswith(("http://", "https://"))
        blocks.append(
            _section(_slack_link(address, "What to do") if linked else f"*What to do* {slack_escape(address)}")
        )
    context = _fit(_history(message), MAX_FIELD_CHARS)
    blocks.append({"type": "context", "elements": [{"type": "mrkdwn", "text": context}]})
    return {"text": _fit(format_text(message), MAX_SECTION_CHARS), "blocks": blocks}


def _slack_link(address: str, label: str) -> str:
    return f"<{slack_escape(address).replace('|', '%7C')}|{label}>"


def _section(text: str) -> dict[str, Any]:
    return {"type": "section", "text": {"type": "mrkdwn", "text": text}}


def _packed(lines: list[str]) -> list[str]:
    """Return the lines joined into as few texts as the limit of a section allows."""
    texts: list[str] = []
    for line in lines:
        if texts and len(texts[-1]) + 1 + len(line) <= MAX_SECTION_CHARS:
            texts[-1] += f"\n{line}"
        else:
            texts.append(line)
    return texts


def format_discord(message: Message) -> dict[str, Any]:
    """Return the message for a Discord webhook: one embed, and nobody is mentioned whatever the text says."""
    incident = message.incident
    first, _, rest = format_text(message).partition("\n")
    embed: dict[str, Any] = {
        "title": f"{_EMOJI[_mark(message)]} {first}"[:256],
        "description": rest[:MAX_DISCORD_CHARS],
        "color": _COLOUR[_mark(message)],
        "timestamp": incident.last_seen.isoformat(),
    }
    if incident.link:
        embed["url"] = incident.link
    return {"embeds": [embed], "allowed_mentions": {"parse": []}}


def format_generic(message: Message) -> dict[str, Any]:
    """Return the message as flat JSON, for whatever else listens; ``text`` is the whole in words."""
    incident = message.incident
    return {
        "event": message.kind,
        "title": headline(message),
        "text": format_text(message),
        "severity": incident.severity,
        "cause": incident.cause,
        "flow": incident.flow,
        "scope": incident.scope,
        "stage": incident.stage,
        "error": incident.error,
        "what": incident.what,
        "counts": dict(incident.counts),
        "dead_letters": dict(incident.dead_letters),
        "link": incident.link,
        "resume": incident.resume,
        "runbook": incident.runbook,
        "failures": incident.failures,
        "held_back": message.held_back,
        "first_seen": incident.first_seen.isoformat(),
        "last_seen": incident.last_seen.isoformat(),
    }
