"""An analyst's questions, put to what two runs really stored: the golden set, in a mongod, through the flows."""

from __future__ import annotations

import pytest

from flows.aggregate import aggregate
from tasks.domain.registry import PLURALS
from tests.end_to_end.pipeline import Pipeline
from tests.golden import KEY, make_golden
from tests.questions.answers import site_ids, team_ids
from tests.questions.questions import QUESTIONS
from tests.questions.reading import Reader, put_all
from tests.questions.test_questions import UNANSWERED


@pytest.mark.long
@pytest.mark.timeout(1_500)
def test_the_stored_documents_alone_answer_the_questions_with_exact_figures(pipeline: Pipeline) -> None:
    golden = make_golden()
    for name, records in golden.records.items():
        if records:
            pipeline.source[name].insert_many(records)
    pipeline.use(cryptique_embedder="local", cryptique_pseudonym_key=KEY.decode())
    pipeline.migrate(sources=[name for name in PLURALS if name != "aggregates"])
    pipeline.complete(aggregate, time_zones=["Asia/Kolkata", "Europe/Berlin"])
    stored = pipeline.store["vectordocuments"].find({"lineage.ordinal": 0}, {"embedding": 0})
    reader = Reader(tuple(stored), sites=site_ids(golden), teams=team_ids(golden))
    wrong = put_all(QUESTIONS, reader)
    assert wrong.keys() == UNANSWERED.keys(), "\n".join(wrong.values())
