"""Quality: a run is judged before anything is spent on it, while it goes on, and when it is over."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.artifacts import create_markdown_artifact

from blocks.great_expectations import Case, Rows, hold
from tasks.domain.columns import Columns
from tasks.domain.measures import (
    Reach,
    Stored,
    is_representative,
    measure_run,
    measure_sample,
    measure_so_far,
    measure_target,
)
from tasks.domain.profiles import Profile
from tasks.domain.runs import Run
from tasks.domain.sources import Source
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

#: Great Expectations takes some 4 s of CPU, a run that looks at so many records some 270: it is a small part of it. In
#: others the same rules judge alone, and it is called where they find something or somebody asks for its pages.
LARGE_RUN = 500_000
#: Data Docs of so many runs of a source are kept.
_KEPT_DOCS = 20
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
    kind: Source,
    sample: Profile,
    before: Profile | None,
    *,
    planned: int,
    again: Profile | None = None,
    docs: Path | None = None,
) -> Judgement:
    """Return what some records from all over the source say about it, before any is embedded or written.

    ``before`` is the last good run's profile and ``again`` that of its witnesses, read once more (``measure_sample``).
    Raises ``TerminalError`` that names records where a finding stops the run; the run's ``accept`` names those that may
    pass.
    """
    source, columns = kind.name, kind.columns
    reach = _reach(run, kind)
    measures = measure_sample(sample, before, columns, reach, planned=planned, again=again)
    # A sample lies in clumps: what is held against the last good run's shape is no more than a hint.
    rules = rules_for(SOURCE_RULES, fresh_days=columns.fresh_days, representative=reach.whole)
    judgement = judge_alone(source, measures, rules)
    if not judgement.accepting(run.accept).good:
        case = Case(source, run.key, measures, rules, _MEASURED_SAMPLE, _rows(sample, columns, reach))
        [judgement] = _hold([case], docs)
    judgement = judgement.accepting(run.accept)
    if judgement.findings:
        _tell([judgement])
    judgement.require_sound("before anything was embedded or written")
    return judgement


def judge_so_far(
    run: Run,
    kind: Source,
    profile: Profile,
    before: Profile | None,
    *,
    planned: int,
    again: Profile | None = None,
) -> None:
    """Raise ``TerminalError`` if what was read so far is bad enough to end the run; cheap enough for each shard."""
    if profile.read < planned * _SO_FAR:
        return
    measures = measure_so_far(profile, before, kind.columns, again=again)
    judgement = judge_alone(run.scope.source, measures, rules_for(SOURCE_RULES))
    judgement.accepting(run.accept).require_sound(f"when {profile.read:,} of {planned:,} records were read")


@task(name="judge", task_run_name="judge", **STAGE)
def judge_run(
    run: Run,
    kind: Source,
    profile: Profile,
    before: Profile | None,
    *,
    read: int,
    again: Profile | None = None,
    stored: Stored | None = None,
    find_documents: Callable[[], Sequence[Mapping[str, Any]]] = tuple,
    dimensions: int | None = None,
    prove: bool = False,
    docs: Path | None = None,
) -> list[Judgement]:
    """Return the judgements of a finished run: of its source, and of the store where ``stored`` tells of it.

    ``read`` is how many records the manifest counts; ``find_documents`` returns some of the run's vector documents
    (``document_row``), if they are looked at. Writes an artifact. Great Expectations judges, and with ``docs`` leaves
    its Data Docs, where the run is large, where something is wrong, and with ``prove``. Safe to repeat. It does not
    raise for what it finds: what is stored is stored, and the caller says how the run ends.
    """
    source, columns, reach = kind.name, kind.columns, _reach(run, kind)
    measures = measure_run(profile, before, columns, reach, read=read, again=again)
    representative = is_representative(profile, reach)
    rules = rules_for(SOURCE_RULES, fresh_days=columns.fresh_days, representative=representative)
    cases = [Case(source, run.key, measures, rules, _MEASURED_RUN)]
    if stored is not None:
        rules = rules_for(TARGET_RULES, representative=reach.whole)
        cases.append(Case(f"{source}_vectors", run.key, measure_target(stored, before), rules, _MEASURED_TARGET))
    alone = [judge_alone(case.name, case.measures, case.rules).accepting(run.accept) for case in cases]
    if prove or profile.records >= LARGE_RUN or not all(judgement.good for judgement in alone):
        cases[0] = replace(cases[0], rows=_rows(profile, columns, reach))
        documents = find_documents() if stored is not None else ()
        if documents:
            cases[1] = replace(cases[1], rows=_document_rows(documents, dimensions, source))
        alone = [judgement.accepting(run.accept) for judgement in _hold(cases, docs)]
    _tell(alone)
    return alone


def _hold(cases: Sequence[Case], docs: Path | None) -> list[Judgement]:
    """Let Great Expectations judge; of older runs of the source only some Data Docs are kept."""
    judgements = hold(cases, docs=docs)
    if docs is not None:
        for old in sorted(docs.parent.parent.iterdir())[:-_KEPT_DOCS]:
            shutil.rmtree(old, ignore_errors=True)
    return judgements


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


def _reach(run: Run, kind: Source) -> Reach:
    return Reach(whole=run.scope.whole, now_ms=run.started_ms, forgets=kind.forgets)


def _tell(judgements: Sequence[Judgement]) -> None:
    """Say what was found in the log and beside the run."""
    logger = get_run_logger()
    for judgement in judgements:
        for finding in judgement.findings:
            say = logger.warning if finding.action == Action.WARN else logger.error
            say("quality of %s, %s: %s", judgement.about, finding.action.name.lower(), finding.message)
    key = f"quality-{judgements[0].about}".replace("_", "-")
    text = "\n\n".join(judgement.to_markdown() for judgement in judgements)
    try:
        create_markdown_artifact(text, key=key, description="What the suites found")
    except Exception as error:  # noqa: BLE001 - whatever the server's client raises: it only tells about the work
        logger.warning("the artifact of the data's quality could not be written: %s", error)
