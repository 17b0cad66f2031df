"""Judging: a load's data before anything is spent on it, while it goes on, and when it is over."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from bson import ObjectId

from blocks.records import open_records
from blocks.vector_store import VectorStore
from flows.blocks import Parts
from flows.forecast import read_witnesses
from flows.jobs import Job
from flows.stages import whole
from tasks.domain.errors import TerminalError
from tasks.domain.manifests import Manifest
from tasks.domain.measures import Reach, Stored, next_baseline
from tasks.domain.profiles import IDS_KEPT, Profile
from tasks.domain.rows import read_vector
from tasks.domain.runs import Run
from tasks.domain.verdicts import Judgement
from tasks.quality import document_row, judge_run, judge_sample, judge_so_far
from tasks.reconcile import Reconciliation


class Judging:
    """What judges one load: the last good run of its source, and that one's witnesses as they are now."""

    def __init__(self, run: Run, parts: Parts, *, prove: bool = False) -> None:
        self._run, self._parts, self._prove = run, parts, prove
        self._kind = open_records(parts.source, run.scope.source).kind
        self.before = parts.vectors.load_profile(self._kind.name)
        self._again: Profile | None = None

    def judge_plan(self, sample: Profile, planned: int) -> None:
        """Raise ``TerminalError`` where some records say that the load must not begin; nothing is spent or written."""
        judge_sample.with_options(retries=self._parts.retries)(
            whole(self._run),
            whole(self._kind),
            whole(sample),
            whole(self.before),
            planned=planned,
            again=whole(self._witnesses()),
            docs=self._docs("before"),
        )

    def judge_so_far(self, job: Job) -> None:
        """Raise ``TerminalError`` where what was read so far says that the load must not go on."""
        if job.manifest.profile is not None:
            with _beginning_anew(job):
                judge_so_far(
                    self._run, self._kind, job.manifest.profile, self.before, planned=job.total, again=self._witnesses()
                )

    def judge_end(self, job: Job, result: Reconciliation) -> list[Judgement]:
        """Return the judgements of a finished load; a good one is what later ones are held against.

        Raises ``TerminalError`` where one says stop.
        """
        vectors, run = self._parts.vectors, self._run
        profile = job.manifest.profile or Profile(self._kind.name)
        judgements = self._judge(job.manifest, profile, result)
        if all(judgement.good for judgement in judgements):
            profile.documents = result.documents
            reach = Reach(run.scope.whole, run.started_ms, self._kind.forgets)
            baseline = next_baseline(profile, self.before, reach, again=self._witnesses())
            if baseline is not None and run.scope.whole:
                vectors.save_profile(baseline, run_id=run.id, now=datetime.now(UTC))
        with _beginning_anew(job):
            for judgement in judgements:
                judgement.require_sound("what was written stays, and is no measure for later runs")
        return judgements

    def judge_rehearsal(self, manifest: Manifest) -> list[Judgement]:
        """Return the judgement of all records of a source, of which none was written."""
        return self._judge(manifest, manifest.profile or Profile(self._kind.name), None)

    def _judge(self, manifest: Manifest, profile: Profile, result: Reconciliation | None) -> list[Judgement]:
        stored = None
        if result is not None and self._run.scope.whole:
            stored = Stored(
                in_source=result.in_source,
                stored=result.stored,
                refused=result.dead_lettered,
                arrived=result.arrived,
                orphaned=0,  # what was there was removed, or the run failed
                documents=result.documents,
                differences=tuple(result.differences),
            )
        found: list[Judgement] = judge_run.with_options(retries=self._parts.retries)(
            whole(self._run),
            whole(self._kind),
            whole(profile),
            whole(self.before),
            read=manifest.total.read,
            again=whole(self._witnesses()),
            stored=whole(stored),
            find_documents=whole(partial(_find_documents, self._kind.name, profile, self._parts.vectors)),
            dimensions=self._parts.facts.dimensions,
            prove=self._prove,
            docs=self._docs("after"),
        )
        return found

    def _witnesses(self) -> Profile | None:
        if self._again is None and self.before is not None:
            self._again = read_witnesses(self._run, self._parts, self.before)
        return self._again

    def _docs(self, when: str) -> Path | None:
        root = self._parts.store.docs
        return None if root is None else root / self._kind.name / self._run.key / when


@contextmanager
def _beginning_anew(job: Job) -> Iterator[None]:
    """Let the next run look at every record anew, where one is stopped: the source is to be mended meanwhile."""
    try:
        yield
    except TerminalError:
        job.resumable = False
        raise


def _find_documents(source: str, profile: Profile, vectors: VectorStore) -> Sequence[dict[str, Any]]:
    """Return the vector documents of some records of a run, whether it wrote them or left them as they were."""
    ids = [ObjectId(record) for record in sorted(profile.seen)[:IDS_KEPT] if ObjectId.is_valid(record)]
    found = vectors.find_documents(source, ids, whole=True)
    return [document_row(document, dimensions=len(read_vector(document["embedding"]))) for document in found]


def in_words(judgements: Sequence[Judgement]) -> dict[str, Any]:
    """Return what a report says of the data: the verdict, each finding that names records, and where the pages lie."""
    actions = [judgement.action for judgement in judgements if judgement.action is not None]
    return {
        "verdict": max(actions).name.lower() if actions else "sound",
        "judge": judgements[0].judge,
        "findings": [
            f"{finding.action.name.lower()} {finding.name}:{finding.about}: {finding.message}"
            for judgement in judgements
            for finding in judgement.findings
        ],
        "docs": judgements[0].docs,
    }
