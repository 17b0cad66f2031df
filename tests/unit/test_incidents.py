"""Incidents: when a person is told, that nothing is lost, and in which words."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.domain.incidents import (
    COOLDOWN,
    MAX_HEADER_CHARS,
    MAX_SECTION_CHARS,
    RETRY_AFTER,
    Incident,
    Kind,
    Memory,
    Message,
    Severity,
    after_sending,
    format_discord,
    format_generic,
    format_slack,
    format_text,
    in_words,
    on_failure,
    on_success,
    on_time,
    slack_escape,
)

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def make_incident(
    cause: str = "migrate:TransientError:embed", severity: Severity = "critical", **given: Any
) -> Incident:
    values: dict[str, Any] = {
        "cause": cause,
        "flow": "migrate",
        "severity": severity,
        "title": "migrate failed at embed",
        "what": "Gemini can't answer now: the model is overloaded.",
        "first_seen": NOON,
        "last_seen": NOON,
        "scope": "migrate transactions everything",
        "stage": "embed",
        "error": "TransientError",
        "counts": {"of 900 records": 300, "dead-lettered": 2},
        "dead_letters": {"amount_nan": 2},
        "link": "http://127.0.0.1:4200/runs/flow-run/1",
        "resume": "cryptique-rag migrate --limit 900",
    }
    return Incident(**{**values, **given})


def make_message(kind: Kind = "failed", held_back: int = 0, **given: Any) -> Message:
    return Message(kind, make_incident(**given), held_back + (kind == "failed"), held_back, kind == "resolved")


class Channel:
    """What a channel is told: the rules, with a memory for each cause and a webhook that may be down."""

    def __init__(self) -> None:
        self.memories: dict[str, Memory] = {}
        self.told: list[tuple[datetime, Message]] = []
        self.tried: list[tuple[datetime, Message]] = []
        self.down = False

    def fail(self, incident: Incident, now: datetime) -> None:
        self._apply(on_failure(self.memories.get(incident.cause), incident, now=now), now)

    def succeed(self, now: datetime) -> None:
        for memory in list(self.memories.values()):
            self._apply(on_success(memory, now=now), now)

    def tick(self, now: datetime) -> None:
        for memory in list(self.memories.values()):
            self._apply(on_time(memory, now=now), now)

    def _apply(self, decision: tuple[Memory, Message | None], now: datetime) -> None:
        memory, message = decision
        # As it lies in the database between two processes.
        memory = Memory.from_record(memory.to_record())
        if message is not None:
            self.tried.append((now, message))
            if not self.down:
                self.told.append((now, message))
            memory = after_sending(memory, message, delivered=not self.down, now=now)
        self.memories[memory.cause] = memory

    def kinds(self) -> list[str]:
        return [message.kind for _, message in self.told]


# -- when to speak ---------------------------------------------------------------------------------------------------


def test_a_storm_of_200_failures_is_one_message_and_then_one_summary() -> None:
    channel = Channel()
    for second in range(200):
        channel.fail(make_incident(), NOON + timedelta(seconds=second))
    assert channel.kinds() == ["failed"]
    channel.tick(NOON + 4 * MINUTE)
    assert channel.kinds() == ["failed"]
    for minutes in (5, 6, 20):
        channel.tick(NOON + minutes * MINUTE)
    assert channel.kinds() == ["failed", "summary"]
    summary = channel.told[1][1]
    assert (summary.failures, summary.held_back) == (199, 199)
    assert "199 times more" in format_text(summary)


def test_what_was_held_back_is_told_with_the_next_failure() -> None:
    channel = Channel()
    for minute in (0, 1, 2, 6):
        channel.fail(make_incident(), NOON + minute * MINUTE)
    assert [message.failures for _, message in channel.told] == [1, 3]
    assert "2 failures were held back" in format_text(channel.told[1][1])
    assert "4 times between" in format_text(channel.told[1][1])


def test_a_second_cause_is_told_in_the_middle_of_the_storm_of_the_first() -> None:
    channel = Channel()
    for second in range(50):
        channel.fail(make_incident(), NOON + timedelta(seconds=second))
    channel.fail(make_incident("migrate:TerminalError:upsert"), NOON + timedelta(seconds=50))
    assert [message.incident.cause.split(":")[1] for _, message in channel.told] == ["TransientError", "TerminalError"]


def test_a_warning_waits_fifteen_minutes() -> None:
    channel = Channel()
    for minute in (0, 6, 14, 15):
        channel.fail(make_incident(severity="warning"), NOON + minute * MINUTE)
    assert [when for when, _ in channel.told] == [NOON, NOON + 15 * MINUTE]


def test_the_end_of_an_incident_is_told_once_and_at_once() -> None:
    channel = Channel()
    channel.fail(make_incident(), NOON)
    for second in (10, 20):
        channel.succeed(NOON + timedelta(seconds=second))
    channel.tick(NOON + 30 * MINUTE)
    assert channel.kinds() == ["failed", "resolved"]


def test_a_flow_that_was_always_well_says_nothing() -> None:
    channel = Channel()
    channel.succeed(NOON)
    channel.tick(NOON)
    assert channel.told == []


def test_a_flow_that_flaps_is_summed_up_and_does_not_fill_the_channel() -> None:
    channel = Channel()
    for second in range(100):
        channel.fail(make_incident(), NOON + timedelta(seconds=2 * second))
        channel.succeed(NOON + timedelta(seconds=2 * second + 1))
    assert channel.kinds() == ["failed", "resolved"]
    channel.tick(NOON + 5 * MINUTE)
    assert channel.kinds() == ["failed", "resolved", "summary"]
    summary = channel.told[-1][1]
    assert summary.held_back == 99
    assert "It has completed since" in format_text(summary)


def test_what_a_webhook_that_was_down_missed_is_told_when_it_is_up() -> None:
    channel = Channel()
    channel.down = True
    channel.fail(make_incident(), NOON)
    channel.fail(make_incident(), NOON + timedelta(seconds=10))
    channel.down = False
    channel.tick(NOON + RETRY_AFTER)
    assert [(message.kind, message.failures) for _, message in channel.told] == [("summary", 2)]
    channel.down = True
    channel.succeed(NOON + 2 * MINUTE)
    channel.down = False
    channel.tick(NOON + 10 * MINUTE)
    assert channel.kinds() == ["summary", "resolved"]


def test_a_message_whose_sender_died_is_told_again_after_the_cooldown() -> None:
    memory, message = on_failure(None, make_incident(), now=NOON)
    assert message is not None  # and its process is killed here
    memory, nothing = on_time(memory, now=NOON + 4 * MINUTE)
    assert nothing is None
    memory, again = on_time(memory, now=NOON + 5 * MINUTE)
    assert again is not None
    assert (again.kind, again.failures) == ("summary", 1)


_STEPS = st.lists(
    st.tuples(
        st.integers(0, 400),  # seconds since the last step
        st.sampled_from(["fail a", "fail b", "fail c", "succeed", "tick", "webhook down", "webhook up"]),
    ),
    max_size=60,
)


@given(_STEPS)
def test_no_cause_is_told_twice_within_its_cooldown_and_no_failure_is_lost(steps: list[tuple[int, str]]) -> None:
    severities: dict[str, Severity] = {"a": "critical", "b": "critical", "c": "warning"}
    channel = Channel()
    failures: dict[str, int] = defaultdict(int)
    now = NOON
    for seconds, step in steps:
        now += timedelta(seconds=seconds)
        what, _, which = step.partition(" ")
        if what == "fail":
            failures[which] += 1
            channel.fail(make_incident(which, severities[which]), now)
        elif what == "succeed":
            channel.succeed(now)
        elif what == "tick":
            channel.tick(now)
        else:
            channel.down = which == "down"

    for cause, severity in severities.items():
        mine = [(when, message) for when, message in channel.told if message.incident.cause == cause]
        speaking = [when for when, message in mine if message.kind != "resolved"]
        gaps = [later - earlier for earlier, later in pairwise(speaking)]
        assert all(gap >= COOLDOWN[severity] for gap in gaps)
        held = channel.memories[cause].untold if cause in channel.memories else 0
        assert sum(message.failures for _, message in mine) + held == failures[cause]
        # One notice at most for each time that a failure was told, and never before one.
        resolved = sum(message.kind == "resolved" for _, message in mine)
        assert resolved <= len(speaking)
        assert not mine or mine[0][1].kind != "resolved"

    # Left alone with a webhook that is up, everything is told in the end.
    channel.down = False
    channel.tick(now + timedelta(hours=1))
    assert all(memory.untold == 0 for memory in channel.memories.values())


@given(_STEPS)
def test_a_cause_is_told_as_if_it_were_alone(steps: list[tuple[int, str]]) -> None:
    together, alone = Channel(), Channel()
    now = NOON
    for seconds, step in steps:
        now += timedelta(seconds=seconds)
        for channel in (together, alone):
            if step == "tick":
                channel.tick(now)
            elif step == "succeed":
                channel.succeed(now)
            elif step == "fail a" or (step.startswith("fail") and channel is together):
                channel.fail(make_incident(step[-1]), now)
    assert [one for one in together.told if one[1].incident.cause == "a"] == alone.told


# -- in which words --------------------------------------------------------------------------------------------------

ODD = st.text(max_size=6_000) | st.sampled_from(
    ["<!channel> & <@U1>" * 500, "&" * 9_000, "`" * 4_000, "\ud800", "@everyone"]
)


def strings(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for item in value.values() for text in strings(item)]
    if isinstance(value, list):
        return [text for item in value for text in strings(item)]
    return [value] if isinstance(value, str) else []


@given(
    kind=st.sampled_from(["failed", "summary", "resolved"]),
    what=ODD,
    scope=ODD,
    reasons=st.dictionaries(ODD, st.integers(0, 10**9), max_size=40),
    resume=st.none() | ODD,
)
def test_every_message_is_within_slacks_limits_and_mentions_nobody(
    kind: Kind, what: str, scope: str, reasons: dict[str, int], resume: str | None
) -> None:
    message = make_message(
        kind,
        3,
        what=in_words(what),
        scope=in_words(scope),
        dead_letters={in_words(reason): number for reason, number in reasons.items()},
        resume=resume,
    )
    payload = format_slack(message)
    json.dumps(payload).encode("ascii")
    assert 1 <= len(payload["blocks"]) <= 50
    for block in payload["blocks"]:
        text = block["text"]["text"] if "text" in block else block["elements"][0]["text"]
        assert 1 <= len(text) <= (MAX_HEADER_CHARS if block["type"] == "header" else MAX_SECTION_CHARS)
        if block["type"] != "header":
            assert "<!" not in text
            assert "<@" not in text
            assert text.count("<") == text.count(f"<{message.incident.link}|")
    discord = format_discord(message)
    assert len(discord["embeds"][0]["title"]) <= 256
    assert len(discord["embeds"][0]["description"]) <= 4_096
    assert discord["allowed_mentions"] == {"parse": []}
    json.dumps(format_generic(message))


def test_a_message_says_what_failed_where_why_how_far_it_was_and_how_to_go_on() -> None:
    message = make_message(held_back=4)
    for told in (format_slack(message), format_discord(message), format_generic(message)):
        said = "\n".join(strings(told))
        for words in (
            "migrate failed at embed",
            "the model is overloaded",
            "migrate transactions everything",
            "300 of 900 records",
            "amount_nan 2",
            "http://127.0.0.1:4200/runs/flow-run/1",
            "cryptique-rag migrate --limit 900",
            "4 failures were held back",
        ):
            assert words in said


def test_a_command_that_does_not_fit_is_left_out_rather_than_cut() -> None:
    long = "cryptique-rag migrate " + " ".join(f"--team {number:024x}" for number in range(200))
    said = "\n".join(strings(format_slack(make_message(resume=long))["blocks"]))
    assert "--team" not in said
    assert "To go on" in said


def test_slack_shows_signs_as_they_are() -> None:
    assert slack_escape("a < b & c > d") == "a &lt; b &amp; c &gt; d"
    payload = format_slack(make_message(what="a < b & c > d"))
    assert payload["blocks"][1]["text"]["text"] == "a &lt; b &amp; c &gt; d"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('boom\nTraceback (most recent call last):\n  File "x.py", line 1\n    secret()', "boom"),
        ('boom\n  File "x.py", line 1', "boom"),
        ("two\nlines", "two lines"),
        ("can't reach mongodb://user:p%40ss@host/?x", "can't reach mongodb://***@host/?x"),
        ("GET https://x.example/v1?key=abcdef&n=1", "GET https://x.example/v1?key=***&n=1"),
        ("POST https://hooks.slack.com/services/T/B/x failed", "POST *** failed"),
        ("the password is hun:ter2/", "the password is ***"),
        ("quoted hun%3Ater2%2F too", "quoted *** too"),
        ("x" * 5_000, "x" * 699 + "…"),
    ],
)
def test_words_hold_no_stack_and_no_credentials(text: str, said: str) -> None:
    assert in_words(text, secrets=["hun:ter2/"]) == said


def test_an_incident_survives_the_database() -> None:
    incident = make_incident(dead_letters={"with.dot": 1, "$dollar": 2})
    assert Incident.from_record(incident.to_record()) == incident
    memory = replace(on_failure(None, incident, now=NOON)[0], held=3)
    assert Memory.from_record({**memory.to_record(), "version": 7}) == memory
