"""Verdicts: what a run's figures must be, and what follows where they are not: a warning, a quarantine or a stop.

The rules are values, so that two judges read the same ones: ``judge`` here, in microseconds and for every shard, and
Great Expectations (``blocks/great_expectations.py``), which judges a run, shows its work and keeps the proof.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import IntEnum
from typing import Any

from tasks.domain.errors import TerminalError

_SHOWN = 5


class Action(IntEnum):
    """What follows from a broken rule, from mild to severe.

    ``WARN`` says it and goes on. ``QUARANTINE`` withholds the records themselves where they are known one by one, as
    dead letters that can be replayed, and never lets the run be what later ones are compared with. ``STOP`` ends the
    run: nothing more is paid for or written.
    """

    WARN = 1
    QUARANTINE = 2
    STOP = 3


@dataclass(frozen=True, slots=True)
class Measure:
    """One figure that a rule of the same ``name`` bounds.

    ``about`` says of which field, unit or team it is. It rests on ``of`` records; ``examples`` are the ids of some that
    it comes from, ``words`` a sentence for people.
    """

    name: str
    about: str
    value: float
    of: int
    words: str
    examples: tuple[str, ...] = ()

    def to_record(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Rule:
    """Bounds of the measures of one name: a value above ``warn`` is said, above ``stop`` ends the run.

    With ``lower`` the bounds are the least that a value may be. A measure that rests on fewer records than ``least``
    says nothing. ``drifts`` says that a value is held against the last good run's, which means little where the run
    looked at a few records only; then it does no more than warn. ``advice`` is what a person may do.
    """

    name: str
    says: str
    advice: str
    warn: float | None = None
    quarantine: float | None = None
    stop: float | None = None
    least: int = 1
    lower: bool = False
    drifts: bool = False

    @property
    def bounds(self) -> dict[Action, float]:
        """Return the bounds there are, by what follows from passing them."""
        named = {Action.WARN: self.warn, Action.QUARANTINE: self.quarantine, Action.STOP: self.stop}
        return {action: bound for action, bound in named.items() if bound is not None}

    def broken_by(self, value: float, action: Action) -> bool:
        """Return whether a value lies beyond the bound of one action."""
        bound = self.bounds[action]
        return value < bound if self.lower else value > bound

    def to_record(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)


_LOOK = "look at the records named, and at what last wrote to the source"
_WRONG_SOURCE = "check that CRYPTIQUE_SOURCE_DATABASE is the application's database and that nothing was deleted there"
_DELETED = "if they were deleted, run again with --remove-orphans"
_MEANT = "if it is meant, accept the finding by its name"
#: What is found where records were deleted on purpose.
DELETIONS = ("empty", "nothing", "fewer", "team_fewer", "lost", "rewound", "target_fewer")

#: What every source is held to. Shares are of the records that a measure rests on.
SOURCE_RULES: tuple[Rule, ...] = (
    Rule("empty", "a source that held records holds some", _WRONG_SOURCE, stop=1, lower=True, least=0),
    Rule("nothing", "a source holds records", _WRONG_SOURCE, warn=1, lower=True, least=0),
    Rule("unaccounted", "every record that was read is looked at, refused or stored already", _LOOK, stop=0),
    Rule("fewer", "no more than a few records are gone", f"{_WRONG_SOURCE}; {_DELETED}", warn=0.02, stop=0.2, least=20),
    Rule("more", "a source grows slowly", f"look for a file that was imported twice; {_MEANT}", warn=0.5, least=200),
    Rule("team_fewer", "no team loses its records", f"{_DELETED}; {_MEANT}", warn=0.1, stop=0.8, least=200),
    Rule("lost", "records of the last good run are still there", _WRONG_SOURCE, warn=0.005, stop=0.05, least=20),
    Rule("rewound", "the newest record is no older than it was", _WRONG_SOURCE, warn=0),
    Rule("stale", "the newest record is fresh", "look at the importers"),
    Rule("missing", "required fields are set", _LOOK, warn=0.02, stop=0.1, least=200),
    Rule("missing_more", "fields are set as often as they were", _LOOK, warn=0.05, stop=0.25, least=200, drifts=True),
    Rule("refused", "records can be read", "look at the dead letters by reason", warn=0.01, stop=0.1, least=500),
    Rule("orphaned", "records have an owner", "look at smartcontracts, websites and teams", warn=0.05, least=500),
    Rule("malformed", "values have their format", _LOOK, warn=0.001, quarantine=0.01, stop=0.1, least=200),
    Rule(
        "swapped",
        "a contract is called and doesn't call",
        "the importer may have exchanged sender and recipient",
        warn=0.02,
        quarantine=0.05,
        stop=0.2,
        least=200,
    ),
    Rule(
        "far",
        "no amount is beyond what its unit ever moves",
        "the importer may have taken the wrong number of decimals",
        warn=0.0002,
        quarantine=0.001,
        stop=0.02,
        least=200,
    ),
    Rule(
        "doubled", "every record comes once", "look for a file that was imported twice", warn=0.001, stop=0.05, least=20
    ),
    Rule("scale", "values are as large as they were", _LOOK, warn=1.5, stop=3, least=50, drifts=True),
    Rule(
        "hour_shift",
        "the hours of the day are those that were",
        "the importer may have read local times as UTC",
        warn=0.08,
        stop=0.15,
        least=5_000,
        drifts=True,
    ),
    Rule("kinds", "values are as frequent as they were", _LOOK, warn=0.25, least=1_000, drifts=True),
    Rule("warned", "parsing leaves out as little as it did", _LOOK, warn=0.1, least=200, drifts=True),
    Rule(
        "moved",
        "a record keeps its time",
        "the importer may have read local times as UTC",
        warn=0.005,
        stop=0.05,
        least=20,
    ),
    Rule(
        "scaled",
        "a record keeps its amount",
        "the importer may have taken the wrong number of decimals",
        warn=0.005,
        stop=0.05,
        least=20,
    ),
    Rule(
        "exchanged",
        "a record keeps who sent and who received",
        "the importer may have exchanged sender and recipient",
        warn=0.005,
        stop=0.05,
        least=20,
    ),
    Rule("emptied", "a record keeps what it said", _LOOK, warn=0.01, stop=0.1, least=20),
)

#: What the store is held to after a run. All are counts of records or of vector documents, but for ``target_fewer``.
TARGET_RULES: tuple[Rule, ...] = (
    Rule(
        "target_incomplete", "every accepted record has its vectors", "run it again: it writes what is missing", stop=0
    ),
    Rule("target_differs", "source and store agree after the run", "run it again: it writes what is missing", stop=0),
    Rule("target_orphaned", "no vectors are of records that are gone", "run reconcile", warn=0),
    Rule("target_arrived", "few records arrive while a run reads", "the next run takes them", warn=0.05, least=200),
    Rule(
        "target_fewer",
        "the store loses no documents",
        f"run reconcile; {_MEANT}",
        warn=0.02,
        stop=0.2,
        least=200,
        drifts=True,
    ),
)


def rules_for(
    rules: Sequence[Rule], *, fresh_days: float | None = None, representative: bool = True
) -> tuple[Rule, ...]:
    """Return the rules of one run. Where it isn't ``representative`` of its source, drift does no more than warn."""
    found = []
    for rule in rules:
        if rule.name == "stale":
            if fresh_days is None:
                continue
            rule = replace(rule, warn=fresh_days)
        if rule.drifts and not representative:
            rule = replace(rule, quarantine=None, stop=None)
        found.append(rule)
    return tuple(found)


#: Of the rules, those that a shard alone can break. Records of one contract lie side by side, so that a shard is seldom
#: like its source: it is stopped only where most of it can't be what it should be.
_SHARD_RULES = ("missing", "refused", "malformed", "swapped", "far")
_MOST = 0.5


def shard_rules() -> tuple[Rule, ...]:
    """Return the rules of one shard."""
    chosen = [rule for rule in SOURCE_RULES if rule.name in _SHARD_RULES]
    return tuple(replace(rule, warn=None, stop=_MOST) for rule in chosen)


@dataclass(frozen=True, slots=True)
class Finding:
    """A measure beyond a bound of its rule, and what follows."""

    name: str
    about: str
    action: Action
    value: float
    bound: float
    words: str
    advice: str
    examples: tuple[str, ...] = ()

    @property
    def message(self) -> str:
        """Return it as a sentence that names records."""
        shown = f", for example {', '.join(self.examples)}" if self.examples else ""
        return f"{self.words}{shown}"

    def is_among(self, names: Collection[str]) -> bool:
        """Return whether one of the names means it."""
        of_all = self.name.removeprefix("row_")
        return not {self.name, of_all, f"{self.name}:{self.about}", f"{of_all}:{self.about}"}.isdisjoint(names)

    def to_record(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {**asdict(self), "action": self.action.name.lower()}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Finding:
        """Return the finding that ``to_record`` was called on."""
        action = Action[record["action"].upper()]
        return cls(**{**record, "action": action, "examples": tuple(record["examples"])})

    @classmethod
    def of(cls, measure: Measure, rule: Rule, action: Action) -> Finding:
        """Return what a measure beyond its rule's bound means."""
        bound = rule.bounds[action]
        return cls(
            measure.name, measure.about, action, measure.value, bound, measure.words, rule.advice, measure.examples
        )


def judge(measures: Iterable[Measure], rules: Iterable[Rule]) -> list[Finding]:
    """Return what the measures break, each once, by its most severe bound, in order. Without a rule all is allowed."""
    by_name = {rule.name: rule for rule in rules}
    findings = []
    for measure in measures:
        rule = by_name.get(measure.name)
        if rule is None or measure.of < rule.least:
            continue
        for action in sorted(rule.bounds, reverse=True):
            if rule.broken_by(measure.value, action):
                findings.append(Finding.of(measure, rule, action))
                break
    return findings


def judge_alone(about: str, measures: Sequence[Measure], rules: Sequence[Rule]) -> Judgement:
    """Return the judgement by the rules alone, without Great Expectations: the same findings, and no proof."""
    findings = judge(measures, rules)
    bounds = {(rule.name, action): rule for rule in rules for action in rule.bounds}
    broken = {
        (measure.name, action)
        for measure in measures
        for (name, action), rule in bounds.items()
        if name == measure.name and measure.of >= rule.least and rule.broken_by(measure.value, action)
    }
    return Judgement(about, "the rules alone", len(bounds), len(bounds) - len(broken), tuple(findings))


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a judge found. ``expectations`` were held against the data, ``kept`` of them hold; ``judge`` is who it was.

    ``docs`` is the first page of the Data Docs, where there are any.
    """

    about: str
    judge: str
    expectations: int
    kept: int
    findings: tuple[Finding, ...] = ()
    docs: str | None = None
    accepted: frozenset[str] = field(default_factory=frozenset)

    @property
    def action(self) -> Action | None:
        """Return the most severe thing that follows, or None where all is well."""
        return max((finding.action for finding in self.findings), default=None)

    @property
    def good(self) -> bool:
        """Return whether later runs may be compared with this one."""
        return self.action is None or self.action == Action.WARN

    def worst(self, action: Action) -> list[Finding]:
        """Return the findings of one action."""
        return [finding for finding in self.findings if finding.action == action]

    def accepting(self, names: Collection[str]) -> Judgement:
        """Return the judgement with findings that a person has looked at (``fewer``, ``missing:to``) as warnings.

        What is meant of all records is meant of those that are looked at one by one (``row_missing:to``).
        """
        findings = tuple(
            replace(finding, action=Action.WARN) if finding.is_among(names) else finding for finding in self.findings
        )
        return replace(self, findings=findings, accepted=frozenset(names))

    def require_sound(self, what_follows: str) -> None:
        """Raise ``TerminalError`` with the records and what to do, if a finding stops the run."""
        stops = self.worst(Action.STOP)
        if not stops:
            return
        more = f"; and {len(stops) - _SHOWN} more" if len(stops) > _SHOWN else ""
        advice = "; ".join(dict.fromkeys(finding.advice for finding in stops[:_SHOWN]))
        names = ", ".join(dict.fromkeys(f"{finding.name}:{finding.about}" for finding in stops[:_SHOWN]))
        raise TerminalError(
            f"the quality gate stopped {self.about}, {what_follows}: "
            + "; ".join(finding.message for finding in stops[:_SHOWN])
            + f"{more}. What to do: {advice}. (Names to accept: {names})"
        )

    def to_markdown(self) -> str:
        """Return it for people: what was found, how severe, and some of the records."""
        verdict = "sound" if self.action is None else self.action.name.lower()
        lines = [f"# Data quality of {self.about}: {verdict}", ""]
        lines.append(f"{self.kept:,} of {self.expectations:,} expectations hold. Judged by {self.judge}.")
        if self.accepted:
            lines.append(f"Accepted by a person: {', '.join(sorted(self.accepted))}.")
        if self.docs:
            lines += ["", f"Data Docs, for a browser on that machine: `{self.docs}`"]
        if self.findings:
            lines += ["", "| follows | expectation | found | bound | for example |", "|---|---|---|---|---|"]
            for finding in sorted(self.findings, key=lambda found: (-found.action, found.name, found.about)):
                cells = (
                    finding.action.name.lower(),
                    f"{finding.name}: {finding.about}",
                    finding.words,
                    f"{finding.bound:g}",
                    ", ".join(finding.examples),
                )
                lines.append(
                    "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ")[:400] for cell in cells) + " |"
                )
            advice = dict.fromkeys(finding.advice for finding in self.findings)
            lines += ["", "What to do: " + "; ".join(advice) + "."]
        return "\n".join(lines)
