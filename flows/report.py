"""Report: what a load did, for the caller, the log, the UI and whoever listens."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, cast
from uuid import UUID

from prefect import get_run_logger
from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact

from blocks.gemini import USD_PER_MILLION_TOKENS
from flows.blocks import Parts
from flows.progress import Progress, duration
from flows.stages import STAGES, StageTimes
from tasks.domain.forecasts import TIERS, seconds_at
from tasks.domain.manifests import Manifest
from tasks.domain.quotas import Quota
from tasks.domain.runs import Run
from tasks.reconcile import Reconciliation

_ARTIFACT_EVERY_S = 5.0
_SHOWN_OWNERS = 50
#: What the offline embedder's tokens would have cost.
_REFERENCE_MODEL = "gemini-embedding-001"
_AGGREGATE = "aggregate"


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What a run did. Records, but for ``removed`` and ``chunks`` (vector documents) and ``embedded`` (texts).

    ``cost_usd`` is at Gemini's list price, that of batch jobs for ``batch_tokens`` of the ``tokens``; an offline
    embedder charges nothing, and the figure is what Gemini would have cost. ``seconds`` is this run's wall time. In a
    dry run the figures are what a run would do, and ``tier_seconds`` how long each tier's quota makes it take at least.
    ``forecast`` is what was expected before the start (``tasks/domain/forecasts.py``); ``quality`` what was found of
    the data: a ``verdict``, its ``judge``, the ``findings`` in words, and where the Data Docs lie (``docs``).
    """

    run_id: str
    read: int
    written: int
    unchanged: int
    dead_lettered: int
    removed: int
    chunks: int
    embedded: int
    tokens: int
    cost_usd: float
    seconds: float
    rows_per_second: float
    dry_run: bool
    resumed_shards: int
    embedder: str
    refused: dict[str, int]
    arrived: int = 0
    quota_seconds: float | None = None
    flow_run_id: str | None = None
    batch_tokens: int = 0
    forecast: dict[str, int] | None = None
    tier_seconds: dict[str, float] | None = None
    by_source: dict[str, dict[str, Any]] | None = None
    quality: dict[str, Any] | None = None


#: What several sources' reports have in common is added up.
_ADDED = ("read", "written", "unchanged", "dead_lettered", "removed", "chunks", "embedded", "tokens", "arrived")
_ADDED_TOO = ("cost_usd", "seconds", "resumed_shards", "batch_tokens")


def add_reports(reports: Mapping[str, LoadReport]) -> LoadReport:
    """Return one report of several sources, with each one's under ``by_source``; its run is the last one's."""
    every = list(reports.values())
    sums = {name: sum(getattr(report, name) for report in every) for name in (*_ADDED, *_ADDED_TOO)}
    refused: Counter[str] = Counter()
    for report in every:
        refused.update(report.refused)
    tiers: Counter[str] = Counter()
    for report in every:
        tiers.update(report.tier_seconds or {})
    waits = [report.quota_seconds for report in every]
    return replace(
        every[-1],
        **sums,
        rows_per_second=round(sums["read"] / sums["seconds"], 1) if sums["seconds"] else 0.0,
        refused=dict(sorted(refused.items())),
        quota_seconds=sum(filter(None, waits)) if any(wait is not None for wait in waits) else None,
        tier_seconds=dict(tiers) or None,
        forecast=None,
        quality=_worst([report.quality for report in every if report.quality is not None]),
        by_source={name: asdict(report) for name, report in reports.items()},
    )


def make_report(
    run: Run,
    manifest: Manifest,
    parts: Parts,
    began: float,
    *,
    dry_run: bool = False,
    resumed_shards: int = 0,
    result: Reconciliation | None = None,
    forecast: Mapping[str, int] | None = None,
    quality: Mapping[str, Any] | None = None,
) -> LoadReport:
    """Return the report of what a manifest counts; ``began`` is the run's start on the monotonic clock."""
    counts = manifest.total
    seconds = time.monotonic() - began
    price = parts.facts.usd_per_million_tokens or USD_PER_MILLION_TOKENS[_REFERENCE_MODEL]
    return LoadReport(
        run_id=run.key,
        read=counts.read,
        written=counts.written,
        unchanged=counts.unchanged,
        dead_lettered=counts.dead_lettered,
        removed=counts.removed + (result.removed if result else 0),
        chunks=counts.chunks,
        embedded=manifest.embedded,
        tokens=manifest.tokens,
        cost_usd=round(manifest.cost_usd(price), 6),
        seconds=round(seconds, 2),
        rows_per_second=round(counts.read / seconds, 1) if seconds else 0.0,
        dry_run=dry_run,
        resumed_shards=resumed_shards,
        embedder=f"{parts.facts.model}, {parts.facts.dimensions} dimensions",
        refused=dict(sorted(manifest.refused.items())),
        arrived=result.arrived if result else 0,
        # How long batch jobs take is no matter of quotas.
        quota_seconds=(
            seconds_at(Quota.of(parts.facts), texts=manifest.embedded, tokens=manifest.tokens)
            if dry_run and not manifest.batch_tokens
            else None
        ),
        flow_run_id=run.id,
        batch_tokens=manifest.batch_tokens,
        forecast=dict(forecast) if forecast else None,
        tier_seconds=_tier_seconds(manifest) if dry_run and not manifest.batch_tokens else None,
        quality=dict(quality) if quality else None,
    )


#: Verdicts on a run's data, from the best on.
_VERDICTS = ("sound", "warn", "quarantine", "stop")


def _worst(found: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the worst of several sources' verdicts, with all that was found."""
    if not found:
        return None
    worst = max(found, key=lambda quality: _VERDICTS.index(quality["verdict"]))
    return {**worst, "findings": [finding for quality in found for finding in quality["findings"]]}


def _tier_seconds(manifest: Manifest) -> dict[str, float]:
    found = {name: seconds_at(quota, texts=manifest.embedded, tokens=manifest.tokens) for name, quota in TIERS.items()}
    return {name: seconds for name, seconds in found.items() if seconds}


def by_reason(refused: Mapping[str, int]) -> str:
    """Return ``amount_negative 2, owner_unknown 14``."""
    return ", ".join(f"{code} {number:,}" for code, number in sorted(refused.items()))


def message_of(report: LoadReport) -> str:
    """Return the report as one line, for the run's state."""
    rejects = f"{report.dead_lettered:,} dead letter{'' if report.dead_lettered == 1 else 's'}"
    if report.dry_run:
        quota = f", at least {duration(report.quota_seconds)} at the quota" if report.quota_seconds else ""
        return (
            f"dry run: {report.written:,} of {report.read:,} records to write, {rejects}, {report.tokens:,} tokens, "
            f"${report.cost_usd:.4f}{quota}{_verdict(report)}"
        )
    return f"{report.written:,} written, {report.unchanged:,} unchanged, {rejects}, {report.removed:,} removed"


def _verdict(report: LoadReport) -> str:
    if report.quality is None or report.quality["verdict"] == "sound":
        return ""
    findings = report.quality["findings"]
    more = f" and {len(findings) - 1} more" if len(findings) > 1 else ""
    return f"; quality: {report.quality['verdict']}, {findings[0]}{more}"


def choices_of(report: LoadReport) -> dict[str, dict[str, Any]]:
    """Return what a dry run of rows and aggregates says of each choice: ``rows``, ``aggregates`` and ``both``.

    Empty where it was of one of the two alone.
    """
    by_source = report.by_source or {}
    rows = [one for source, one in by_source.items() if source != _AGGREGATE]
    if _AGGREGATE not in by_source or not rows:
        return {}
    aggregates = [by_source[_AGGREGATE]]
    return {"rows": _sums(rows), "aggregates": _sums(aggregates), "both": _sums([*rows, *aggregates])}


def _sums(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what these sources' dry runs come to together."""
    tiers: Counter[str] = Counter()
    for one in reports:
        tiers.update(one["tier_seconds"] or {})
    return {
        **{name: sum(one[name] for one in reports) for name in ("read", "written", "tokens")},
        "cost_usd": round(sum(one["cost_usd"] for one in reports), 6),
        "quota_seconds": round(sum(one["quota_seconds"] or 0.0 for one in reports), 1),
        "tier_seconds": dict(tiers),
    }


def publish_choices(choices: Mapping[str, Mapping[str, Any]]) -> None:
    """Put what each choice of a dry run would cost beside the run in the UI."""
    tiers = list(choices["both"]["tier_seconds"])
    lines = [
        "# What each choice would cost",
        "",
        f"| | records | to write | tokens | cost | {' | '.join(tiers)} |",
        f"|---|---|---|---|---|{'---|' * len(tiers)}",
    ]
    for choice, told in choices.items():
        times = " | ".join(duration(told["tier_seconds"].get(tier, 0.0)) for tier in tiers)
        lines.append(
            f"| {choice} | {told['read']:,} | {told['written']:,} | {told['tokens']:,} | ${told['cost_usd']:,.4f} "
            f"| {times} |"
        )
    with never_stopping("the table of choices"):
        create_markdown_artifact("\n".join(lines), key="dry-run-choices", description="Rows, aggregates, or both")


class Announcer:
    """Says how far a run is: in its log, on its progress artifact, and to whoever listens."""

    def __init__(self, flow: str, progress: Progress) -> None:
        self._progress = progress
        self._artifact: UUID | None = None
        with never_stopping("the progress artifact"):
            self._artifact = cast(
                UUID,
                create_progress_artifact(
                    progress=progress.percent, key=f"{flow}-progress", description="Records done of those planned"
                ),
            )
        self._told = time.monotonic()
        progress.tell()

    def tell(self) -> None:
        """Say it, on the artifact every few seconds only."""
        get_run_logger().info("%s", self._progress)
        self._progress.tell()
        if time.monotonic() - self._told >= _ARTIFACT_EVERY_S:
            self._told = time.monotonic()
            self._update()

    def finish(self) -> None:
        """Say the end."""
        self._progress.tell()
        self._update()

    def _update(self) -> None:
        if self._artifact is None:
            return
        with never_stopping("the progress artifact"):
            update_progress_artifact(
                artifact_id=self._artifact, progress=self._progress.percent, description=str(self._progress)
            )


@contextmanager
def never_stopping(what: str) -> Iterator[None]:
    """Log a failure of what only tells about the work: it must not stop the work itself."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - whatever the server's client raises
        get_run_logger().warning("%s could not be written: %s", what, error)


def publish(flow: str, report: LoadReport, run: Run, manifest: Manifest, parts: Parts, times: StageTimes) -> None:
    """Put the run's counts, dead letters, stages and owners beside the run in the UI."""
    lines = [
        f"# {message_of(report)}",
        "",
        "| read | written | unchanged | dead-lettered | removed | chunks | embedded | tokens | cost | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|",
        f"| {report.read:,} | {report.written:,} | {report.unchanged:,} | {report.dead_lettered:,} "
        f"| {report.removed:,} | {report.chunks:,} | {report.embedded:,} | {report.tokens:,} "
        f"| ${report.cost_usd:.4f} | {report.seconds:,.1f} |",
        "",
        f"Embedder: {report.embedder}. Vectors: {parts.vectors.full_name}.",
    ]
    if report.batch_tokens:
        lines.append(f"{report.batch_tokens:,} of the tokens came from batch jobs, at half the price.")
    if report.forecast is not None:
        lines += _forecast(report)
    with never_stopping("the summary artifact"):
        lines += _dead_letters(run, manifest, parts)
        lines += _slowest(times)
        lines += _owners(manifest)
        create_markdown_artifact("\n".join(lines), key=f"{flow}-summary", description="What the run did")


def _forecast(report: LoadReport) -> list[str]:
    """Return what was expected beside what happened."""
    expected = report.forecast or {}
    return [
        "",
        "## Forecast and what happened",
        "",
        "| | forecast | happened |",
        "|---|---|---|",
        f"| records | {expected['records']:,} | {report.read:,} |",
        f"| texts embedded | {expected['texts']:,} | {report.embedded:,} |",
        f"| tokens | {expected['tokens']:,} | {report.tokens:,} |",
    ]


def _dead_letters(run: Run, manifest: Manifest, parts: Parts) -> list[str]:
    if not manifest.refused:
        return []
    examples = parts.vectors.find_dead_letter_examples(run.ids)
    lines = ["", "## Dead letters", "", "| reason code | records | for example | its reason |", "|---|---|---|---|"]
    for code, number in sorted(manifest.refused.items(), key=lambda item: (-item[1], item[0])):
        example = examples.get(code, {})
        reason = str(example.get("reason", "")).replace("|", "\\|").replace("\n", " ")[:300]
        lines.append(f"| {code} | {number:,} | {example.get('sourceId', '')} | {reason} |")
    runs = ", ".join(f"'{run_id}'" for run_id in sorted(run.ids))
    return [
        *lines,
        "",
        f"All of them, with their records: `db.{parts.vectors.letters_name}.find({{runId: {{$in: [{runs}]}}}})` in "
        f"`{parts.vectors.database}`.",
        "",
        "After a fix: `cryptique-rag replay --reason CODE`, or the deployment `replay`.",
    ]


def _slowest(times: StageTimes) -> list[str]:
    if not times.seconds:
        return []
    total = sum(times.seconds.values()) or 1.0
    lines = ["", "## Stages", "", "| stage | seconds, all shards | share | slowest shard |", "|---|---|---|---|"]
    for stage in sorted(STAGES, key=lambda name: -times.seconds[name]):
        seconds, number = times.slowest.get(stage, (0.0, 0))
        lines.append(
            f"| {stage} | {times.seconds[stage]:,.1f} | {100 * times.seconds[stage] / total:.0f} % "
            f"| {number} ({seconds:,.1f} s) |"
        )
    return lines


def _owners(manifest: Manifest) -> list[str]:
    owners = manifest.to_record()["counts"]
    lines = ["", "## By team and contract", ""]
    lines += ["| team | contract or site | read | written | unchanged | dead-lettered |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {row['team_id'] or 'unknown'} | {row['holder_id'] or 'unknown'} | {row['read']:,} | {row['written']:,} "
        f"| {row['unchanged']:,} | {row['dead_lettered']:,} |"
        for row in sorted(owners, key=lambda row: -row["read"])[:_SHOWN_OWNERS]
    ]
    if len(owners) > _SHOWN_OWNERS:
        lines.append(f"\n{len(owners) - _SHOWN_OWNERS:,} more have fewer records.")
    return lines
