"""Quality: a run is judged before anything is spent on it, while it goes on, and when it is over."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.artifacts import create_markdown_artifact

from blocks.great_expectations import Case, Rows, hold
from tasks.domain.measures import (
    Reach,
    Stored,
    is_representative,
    measure_alone,
    measure_run,
    measure_sample,
    measure_target,
)
from tasks.domain.profiles import Columns, Profile
from tasks.domain.runs import Run
from tasks.domain.transactions import FIRST_BLOCK_MS, FUTURE_TOLERANCE_MS
from tasks.domain.verdicts import (
    SOURCE_RULES,
    TARGET_RULES,
    Action,
    Judgement,
    judge_alone,
    rules_for,
)
from tasks.policy import STAGE

#: From here on Great Expectations, some 4 s of CPU, is a small part of a run; below, the same rules judge alone before
#: the start, and call it only where they find something.
LARGE_RUN = 100_000
#: Of a sample's rows so many may break what each should be: thresholds for all rows are the measures' matter.
_ROW_TOLERANCE, _FEWEST_ROWS = 0.1, 50
#: A run is judged while it goes on once it has read this share of what was planned.
_SO_FAR = 0.2
_MEASURED_RUN = ("unaccounted", "refused", "orphaned")
_MEASURED_SAMPLE = ("refused", "orphaned")
_MEASURED_TARGET = ("target_incomplete", "target_differs", "target_orphaned", "target_arrived")


@task(name="judge sample", task_run_name="judge sample", **STAGE)
def judge_sample(
    run: Run,
    columns: Columns,
    sample: Profile,
    before: Profile | None,
    *,
    planned: int,
    again: Profile | None = None,
    accept: Collection[str] = (),
    docs: Path | None = None,
) -> Judgement:
    """Return what some records from all over the source say about it, before any is embedded or written.

    ``before`` is the last good run's profile and ``again`` that of its witnesses, read once more (``measure_sample``).
    Raises ``TerminalError`` that names records where a finding stops the run; ``accept`` names those that may pass.
    """
    source = run.scope.source
    reach = _reach(run)
    measures = measure_sample(sample, before, columns, reach, planned=planned, again=again)
    # A sample lies in clumps: what is held against the last good run's shape is no more than a hint.
    rules = rules_for(SOURCE_RULES, fresh_days=columns.fresh_days, representative=reach.whole)
    judgement = judge_alone(source, measures, rules)
    if not judgement.good or planned >= LARGE_RUN:
        case = Case(source, run.key, measures, rules, _MEASURED_SAMPLE, _rows(sample, columns, reach))
        [judgement] = hold([case], docs=docs)
    return _tell(judgement.accepting(accept), "before anything was embedded or written")


def judge_so_far(run: Run, columns: Columns, profile: Profile, *, planned: int, accept: Collection[str] = ()) -> None:
    """Raise ``TerminalError`` if what was read so far is bad enough to end the run; cheap enough for each shard."""
    if profile.read < planned * _SO_FAR:
        return
    judgement = judge_alone(run.scope.source, measure_alone(profile, columns), rules_for(SOURCE_RULES))
    judgement.accepting(accept).require_sound(f"when {profile.read:,} of {planned:,} records were read")


@task(name="judge", task_run_name="judge", **STAGE)
def judge_run(
    run: Run,
    columns: Columns,
    profile: Profile,
    before: Profile | None,
    *,
    read: int,
    stored: Stored | None = None,
    documents: Sequence[Mapping[str, Any]] = (),
    dimensions: int | None = None,
    accept: Collection[str] = (),
    docs: Path | None = None,
) -> list[Judgement]:
    """Return the judgements of a finished run: of its source, and of the store where ``stored`` tells of it.

    ``read`` is how many records the manifest counts, ``documents`` are some of the run's vector documents
    (``document_row``). Writes an artifact and, with ``docs``, the Data Docs; safe to repeat. It does not raise for what
    it finds: what is stored is stored, and the caller says how the run ends.
    """
    source, reach = run.scope.source, _reach(run)
    measures = measure_run(profile, before, columns, reach, read=read)
    representative = is_representative(profile, reach)
    rules = rules_for(SOURCE_RULES, fresh_days=columns.fresh_days, representative=representative)
    cases = [Case(source, run.key, measures, rules, _MEASURED_RUN, _rows(profile, columns, reach))]
    if stored is not None:
        target = measure_target(stored, before)
        cases.append(
            Case(
                f"{source}_vectors",
                run.key,
                target,
                rules_for(TARGET_RULES, representative=reach.whole),
                _MEASURED_TARGET,
                _document_rows(documents, dimensions, source) if documents else None,
            )
        )
    judgements = [judgement.accepting(accept) for judgement in hold(cases, docs=docs)]
    return [
        _tell(judgement, "and nothing that it read is a measure for later runs", stop=False) for judgement in judgements
    ]


def document_row(document: Mapping[str, Any], *, dimensions: int) -> dict[str, Any]:
    """Return what the target's suite looks at of a vector document; ``dimensions`` are those of its embedding."""
    metadata = document.get("metadata", {})
    return {
        "record_id": str(document.get("sourceId")),
        "documentId": document.get("documentId"),
        "teamId": _text(document.get("teamId")),
        "siteId": document.get("siteId"),
        "sourceType": document.get("sourceType"),
        "status": document.get("status"),
        "characters": len(document.get("content") or ""),
        "dimensions": dimensions,
        "importance": metadata.get("importance"),
        "confidence": metadata.get("confidence"),
    }


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _document_rows(documents: Sequence[Mapping[str, Any]], dimensions: int | None, source: str) -> Rows:
    """Return vector documents with what each of them must be (domain.md, section 5)."""
    return Rows(
        records=list(documents),
        required=("documentId", "teamId", "siteId", "sourceType"),
        unique=("documentId",),
        formats={"documentId": rf"{source}:.+:\d+", "teamId": "[0-9a-f]{24}"},
        ranges={
            "characters": (1, 8_000),
            "importance": (1, 10),
            "confidence": (0, 1),
            **({"dimensions": (dimensions, dimensions)} if dimensions else {}),
        },
        sets={"status": ["active", "archived", "deprecated"]},
    )


def _rows(profile: Profile, columns: Columns, reach: Reach) -> Rows:
    """Return the records that a run followed, with what each should be."""
    ranges = {columns.time_ms: (FIRST_BLOCK_MS, reach.now_ms + FUTURE_TOLERANCE_MS)} if columns.time_ms else {}
    return Rows(
        records=[
            {"record_id": witness.ids[0], "key": key, **witness.values}
            for key, witness in sorted(profile.witnesses.items())
        ],
        required=columns.required,
        unique=("record_id",),
        formats=columns.formats,
        ranges=ranges,
        tolerance=_ROW_TOLERANCE,
        least=_FEWEST_ROWS,
    )


def _reach(run: Run) -> Reach:
    return Reach(whole=run.scope.whole, now_ms=run.started_ms)


def _tell(judgement: Judgement, what_follows: str, *, stop: bool = True) -> Judgement:
    """Say what was found in the log and beside the run; raise where it stops the run."""
    logger = get_run_logger()
    for finding in judgement.findings:
        say = logger.warning if finding.action == Action.WARN else logger.error
        say("quality of %s, %s: %s", judgement.about, finding.action.name.lower(), finding.message)
    if judgement.findings or not stop:
        key = f"quality-{judgement.about}".replace("_", "-")
        try:
            create_markdown_artifact(judgement.to_markdown(), key=key, description="What the suites found")
        except Exception as error:  # noqa: BLE001 - whatever the server's client raises: it only tells about the work
            logger.warning("the artifact of the data's quality could not be written: %s", error)
    if stop:
        judgement.require_sound(what_follows)
    return judgement
