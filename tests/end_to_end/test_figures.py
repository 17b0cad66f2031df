"""The flow `aggregate` on the golden data."""
from __future__ import annotations
import time
from typing import Any
from deployments.sample import load_sample
from deployments.sample_sites.loading import load_visits
from flows.aggregate import aggregate
from tests.end_to_end.pipeline import Pipeline

def test_try(pipeline: Pipeline) -> None:
    load_sample(pipeline.source, rows=3000)
    load_visits(pipeline.source, sessions=400, events=10, journeys=10)
    t=time.time()
    first = pipeline.complete(aggregate)
    print(first, time.time()-t)
    t=time.time()
    second = pipeline.complete(aggregate)
    print(second, time.time()-t)
    for row in list(pipeline.store["ragaggregates"].find().limit(3)):
        print(row["content"])
    assert 0
