"""Evaluation: how well questions are answered, each way of searching beside the others: ``make eval``.

The rows are described and embedded as a load does it, and searched in memory, exactly; so the figures are of the
describer, the embedder and the ranking, and not of a machine. Only the times are.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from benchmarks.plots import bars
from blocks.wordllama import MAX_TEXTS_PER_REQUEST, LocalEmbedder
from tasks.domain.batches import batched
from tasks.domain.documents import Document
from tasks.domain.errors import RecordError
from tasks.domain.owners import Owners
from tasks.domain.retrieval.engine import Ranked
from tasks.domain.retrieval.entries import make_entry
from tasks.domain.retrieval.filters import Filter
from tasks.domain.retrieval.memory import MemoryEngine
from tasks.domain.retrieval.ranking import DEPTH, rank
from tasks.domain.retrieval.tenants import Tenant
from tasks.domain.retrieval.understanding import Understood, Vocabulary, understand
from tasks.domain.retrieval.words import words_of
from tasks.domain.transaction_documents import describe_transaction
from tasks.domain.transactions import parse_transaction
from tasks.domain.vectors import Embedder, Matrix
from tests.conftest import SHARED_DATA, read_extended_json
from tests.questions.documents import stored_of
from tests.questions.fresh_figures import QUESTIONS as FRESH
from tests.questions.judging import answer_to, fault_of
from tests.questions.questions import QUESTIONS as SIXTY
from tests.questions.unanswerable import UNANSWERABLE

#: An operator's: the questions are put to the rows of all teams.
EVERYBODY = Tenant(None)
PLACES = 10
#: Written by somebody who had not seen how questions are read.
OWN_QUESTIONS = Path(__file__).parent.parent / "tests" / "questions" / "retrieval_fresh.jsonl"
#: The rows are of 2015 to 2025: "last month" would mean nothing in them, and no question says it.
NOW = datetime(2025, 7, 31, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Scores:
    """Of one question: recall and nDCG of the first ten, and one divided by the place of the first that is right."""

    recall: float
    ndcg: float
    reciprocal: float
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Asked:
    """A question with its kind and the source ids of the rows that answer it."""

    qid: str
    question: str
    kind: str
    relevant: frozenset[str]


@dataclass(slots=True)
class Corpus:
    """Described and embedded rows, ready to be asked."""

    engine: MemoryEngine
    embedder: Embedder
    vocabulary: Vocabulary

    @classmethod
    def of_folder(cls, data: Path, embedder: Embedder) -> Corpus:
        """Return the corpus of a folder: transactions, contracts, teams and websites as Extended JSON."""
        return cls.of_rows(list(stored(describe_folder(data))), embedder)

    @classmethod
    def of_rows(cls, rows: Sequence[Mapping[str, Any]], embedder: Embedder) -> Corpus:
        """Return the corpus of rows as they are stored, which have no embedding yet."""
        texts = [str(row["content"]) for row in rows]
        parts = [embedder.embed_documents(some) for some in batched(texts, MAX_TEXTS_PER_REQUEST)]
        engine = MemoryEngine.of([make_entry(row) for row in rows], np.concatenate(parts))
        vocabulary = Vocabulary.of(
            tokens=engine.values(EVERYBODY, "token"), contracts=engine.values(EVERYBODY, "facts.contractName")
        )
        return cls(engine, embedder, vocabulary)

    def understand(self, question: str) -> Understood:
        """Return what a question asks for."""
        return understand(question, self.vocabulary, now=NOW)


def describe_folder(data: Path) -> Iterator[Document]:
    """Yield the document of each transaction of a folder that has an owner."""
    names = {path.name for path in data.iterdir()}
    transactions = next(
        name
        for name in ("transactions.sample.jsonl.gz", "transactions.jsonl.gz", "transactions.jsonl")
        if name in names
    )
    owners = Owners.from_records(
        *(read_extended_json(data / f"{name}.jsonl") for name in ("smartcontracts", "teams", "websites"))
    )
    for record in read_extended_json(data / transactions):
        try:
            yield describe_transaction(parse_transaction(record, owners, now_ms=round(NOW.timestamp() * 1000)))
        except RecordError:
            continue  # a dead letter in a load, and nothing that could be found


def stored(documents: Iterable[Document]) -> Iterator[dict[str, Any]]:
    """Yield each document as its first chunk is read back from the store, without an embedding."""
    for row in stored_of(documents):
        yield {"_id": row["sourceId"], **row}


def read_questions(path: Path) -> list[Asked]:
    """Return the questions of a file: JSON lines with qid, question, kind and relevant."""
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]
    return [Asked(row["qid"], row["question"], row["kind"], frozenset(row["relevant"])) for row in rows]


# -- the ways of searching -----------------------------------------------------------------------------------------


def by_words(corpus: Corpus, question: str) -> list[Ranked]:
    """BM25 over the described texts: the whole question, no conditions."""
    everything = corpus.engine.choose(EVERYBODY, Filter())
    return corpus.engine.by_words(everything, dict.fromkeys(words_of(question), 1.0), DEPTH)


def by_vector(corpus: Corpus, question: str) -> list[Ranked]:
    """Cosine alone: the whole question, no conditions."""
    everything = corpus.engine.choose(EVERYBODY, Filter())
    return corpus.engine.nearest(everything, corpus.embedder.embed_query(question), DEPTH)


def hybrid(corpus: Corpus, question: str) -> list[Ranked]:
    """Both, fused; no conditions."""
    understood = replace(
        corpus.understand(question), where=Filter(), preferred=(), words=tuple(dict.fromkeys(words_of(question)))
    )
    return _unfolded(corpus, understood, corpus.embedder.embed_query(question))


def hybrid_with_filters(corpus: Corpus, question: str) -> list[Ranked]:
    """What the product does: conditions first, then both, fused."""
    understood = corpus.understand(question)
    return _unfolded(corpus, understood, corpus.embedder.embed_query(understood.text))


def _unfolded(corpus: Corpus, understood: Understood, asked: Matrix) -> list[Ranked]:
    return [one for best, others in rank(corpus.engine, EVERYBODY, understood, asked).best for one in (best, *others)]


Way = Callable[[Corpus, str], list[Ranked]]
WAYS: dict[str, Way] = {
    "BM25": by_words,
    "vector": by_vector,
    "hybrid": hybrid,
    "hybrid + filters": hybrid_with_filters,
}


# -- measures ------------------------------------------------------------------------------------------------------


def measure(ids: Iterable[str], relevant: frozenset[str]) -> Scores:
    """Return the measures of one answer; an id that comes twice counts once, at its first place."""
    top = list(dict.fromkeys(ids))[:PLACES]
    best = min(PLACES, len(relevant))
    if not best:
        return Scores(0.0, 0.0, 0.0)
    right = [place for place, one in enumerate(top) if one in relevant]
    gain = sum(1 / math.log2(place + 2) for place in right)
    ideal = sum(1 / math.log2(place + 2) for place in range(best))
    return Scores(len(right) / best, gain / ideal, 1 / (right[0] + 1) if right else 0.0)


def evaluate(corpus: Corpus, questions: Sequence[Asked], way: Way) -> dict[str, Scores]:
    """Return the scores of each question by its id, with the time that the search took."""
    way(corpus, questions[0].question)  # the first call loads the model
    scores = {}
    for one in questions:
        began = time.perf_counter()
        found = way(corpus, one.question)
        seconds = time.perf_counter() - began
        scores[one.qid] = replace(measure((str(each.row_id) for each in found), one.relevant), seconds=seconds)
    return scores


def mean(scores: Sequence[Scores]) -> Scores:
    """Return the mean of each measure; the time is the median."""
    return Scores(
        fmean(one.recall for one in scores),
        fmean(one.ndcg for one in scores),
        fmean(one.reciprocal for one in scores),
        float(np.median([one.seconds for one in scores])),
    )


def by_kind(questions: Sequence[Asked], scores: Mapping[str, Scores]) -> dict[str, Scores]:
    """Return the means over all questions and over those of each kind."""
    kinds = ["all", *dict.fromkeys(one.kind for one in questions)]
    return {kind: mean([scores[one.qid] for one in questions if kind in ("all", one.kind)]) for kind in kinds}


# -- figures -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FigureScore:
    """Of a set of questions for figures: how many there are, how many went right, and the median time of one."""

    name: str
    questions: int
    right: int
    seconds: float


def score_figures() -> tuple[list[FigureScore], list[str]]:
    """Return how questions for figures went, over the golden set, and what went wrong.

    Right is an answer that holds each exact figure and cites the documents that it stands in, or records; of the last
    set, a refusal.
    """
    scores, faults = [], []
    for name, ask in FIGURE_SETS.items():
        times, wrong = [], []
        for fault in ask():
            times.append(fault[1])
            wrong += [] if fault[0] is None else [f"{name}: {fault[0]}"]
        scores.append(FigureScore(name, len(times), len(times) - len(wrong), float(np.median(times))))
        faults += wrong
    return scores, faults


def figure_table(scores: Sequence[FigureScore]) -> list[str]:
    """Return the scores as lines of a Markdown table."""
    return [
        "| questions for figures | number | right | share | median ms |",
        "|---|---|---|---|---|",
        *(
            f"| {one.name} | {one.questions} | {one.right} | {one.right / one.questions:.3f} | "
            f"{1000 * one.seconds:.1f} |"
            for one in scores
        ),
    ]


def _timed(judge: Callable[[Any], str | None], questions: Iterable[Any]) -> Iterator[tuple[str | None, float]]:
    for one in questions:
        began = time.perf_counter()
        fault = judge(one)
        yield fault, time.perf_counter() - began


FIGURE_SETS: dict[str, Callable[[], Iterator[tuple[str | None, float]]]] = {
    "sixty of the project": lambda: _timed(fault_of, SIXTY),
    "fresh, worded by somebody else": lambda: _timed(fault_of, FRESH),
    "without an answer (refused)": lambda: _timed(answer_to, UNANSWERABLE),
}


# -- the report ----------------------------------------------------------------------------------------------------


def table(results: Mapping[str, Mapping[str, Scores]]) -> list[str]:
    """Return the results as lines of a Markdown table."""
    kinds = list(next(iter(results.values())))
    head = ["way", *(f"{kind}: recall@10" for kind in kinds), "nDCG@10", "MRR", "median ms"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for way, of_kinds in results.items():
        overall = of_kinds["all"]
        cells = [
            way,
            *(f"{of_kinds[kind].recall:.3f}" for kind in kinds),
            f"{overall.ndcg:.3f}",
            f"{overall.reciprocal:.3f}",
            f"{1000 * overall.seconds:.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


Results = dict[str, dict[str, Scores]]


def compare(corpus: Corpus, questions: Sequence[Asked]) -> Results:
    """Return the means of each way of searching, over all questions and over each kind."""
    return {name: by_kind(questions, evaluate(corpus, questions, way)) for name, way in WAYS.items()}


def explain_misses(corpus: Corpus, questions: Sequence[Asked], scores: Mapping[str, Scores]) -> list[str]:
    """Return what was understood of each question that is not answered in full, the worst first."""
    lines = []
    for one in sorted(questions, key=lambda each: (scores[each.qid].recall, each.qid)):
        if scores[one.qid].recall < 1:
            readings = "; ".join(f"{each.words} -> {each.meaning}" for each in corpus.understand(one.question).readings)
            lines.append(
                f"{one.qid} recall {scores[one.qid].recall:.2f}: {one.question} [{readings or 'no condition'}]"
            )
    return lines


def write_report(
    folder: Path, sections: Sequence[tuple[str, Sequence[Asked], Results]], figures: Sequence[FigureScore]
) -> None:
    """Write the tables and the plots into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["# Evaluation of retrieval", "", "Made by `make eval`; times are of one question, searched in memory.", ""]
    for name, questions, results in sections:
        kinds = list(next(iter(results.values())))
        shown = {way: [of_kinds[kind].recall for kind in kinds] for way, of_kinds in results.items()}
        file = f"recall_{name}.svg"
        bars(folder / file, f"recall@10, {len(questions)} {name} questions", kinds, shown)
        lines += [f"## {name}: {len(questions)} questions", "", *table(results), "", f"![recall@10]({file})", ""]
    lines += ["## figures: exact, cited, or refused", "", *figure_table(figures), ""]
    (folder / "README.md").write_text("\n".join(lines), "utf-8")


def main() -> None:
    """Evaluate, print the tables, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=SHARED_DATA, help="folder with the rows")
    parser.add_argument("--questions", type=Path, action="append", help="file of questions; may be given several times")
    parser.add_argument("--out", type=Path, help="folder for the report and its plots")
    parser.add_argument("--run", type=Path, help="file for the answers of hybrid + filters to the last questions")
    chosen = parser.parse_args()
    files = chosen.questions or [chosen.data / "questions.jsonl", OWN_QUESTIONS]
    began = time.perf_counter()
    corpus = Corpus.of_folder(chosen.data, LocalEmbedder())
    took = time.perf_counter() - began
    print(f"{len(corpus.engine.entries):,} rows described, embedded and indexed in {took:.1f} s")  # noqa: T201
    sections = []
    for file in files:
        questions = read_questions(file)
        results = compare(corpus, questions)
        sections.append((file.stem, questions, results))
        print("\n".join(["", f"{file.stem}: {len(questions)} questions", "", *table(results), ""]))  # noqa: T201
        scores = evaluate(corpus, questions, hybrid_with_filters)
        print("\n".join(explain_misses(corpus, questions, scores)))  # noqa: T201
        if chosen.run is not None:
            chosen.run.write_text("".join(_run_lines(corpus, questions)), "utf-8")
    figures, faults = score_figures()
    print("\n".join(["", *figure_table(figures), "", *faults]))  # noqa: T201
    if chosen.out is not None:
        write_report(chosen.out, sections, figures)


def _run_lines(corpus: Corpus, questions: Sequence[Asked]) -> Iterator[str]:
    for one in questions:
        ids = dict.fromkeys(str(each.row_id) for each in hybrid_with_filters(corpus, one.question))
        yield json.dumps({"qid": one.qid, "ids": list(ids)}) + "\n"


if __name__ == "__main__":
    sys.exit(main())
