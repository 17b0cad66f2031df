"""Real transactions: every figure of every contract and team, merged from stored days, is the naive one."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal
from pathlib import Path

import pytest

from blocks.tokens import count_tokens
from tasks.domain.aggregates.describe import describe_staking, describe_transactions
from tasks.domain.aggregates.periods import LEVELS, Period
from tasks.domain.aggregates.subjects import Subject, chain_subject, contract_subject, team_subject
from tasks.domain.aggregates.tallies import add_up
from tasks.domain.documents import Document
from tasks.domain.owners import Owners
from tasks.domain.transactions import Transaction, parse_transaction
from tests.builders import NOW_MS
from tests.conftest import read_extended_json
from tests.unit.aggregates import naive
from tests.unit.aggregates import test_aggregated_transactions as made

#: Of the periods of each level the last ones: each is computed a second time from all rows of its scope.
PERIODS = 2


@pytest.fixture(scope="module")
def owners(shared_data: Path) -> Owners:
    names = ("smartcontracts", "teams", "websites")
    return Owners.from_records(*(read_extended_json(shared_data / f"{name}.jsonl") for name in names))


@pytest.fixture(scope="module")
def rows(shared_data: Path, owners: Owners) -> list[Transaction]:
    records = [
        record
        for name in ("transactions.sample.jsonl.gz", "staking.synthetic.jsonl")
        for record in read_extended_json(shared_data / name)
    ]
    return [parse_transaction(record, owners, now_ms=NOW_MS) for record in records]


@pytest.fixture(scope="module")
def partials(rows: list[Transaction]) -> made.Partials:
    return made.partials(rows)


def subjects(rows: list[Transaction], owners: Owners) -> list[Subject]:
    contracts = {row.contract_id for row in rows}
    chains = {(row.team_id, row.site_id, row.chain) for row in rows}
    return [
        *(contract_subject(owners.by_contract_id[contract_id]) for contract_id in sorted(contracts)),
        *(chain_subject(*where) for where in sorted(chains, key=repr)),
        *(team_subject(*where) for where in sorted({where[:2] for where in chains})),
    ]


def test_every_figure_of_real_transactions_is_the_naive_one(
    rows: list[Transaction], owners: Owners, partials: made.Partials
) -> None:
    by_contract: dict[str, list[Transaction]] = {}
    by_team: dict[str, list[Transaction]] = {}
    for row in rows:
        by_contract.setdefault(row.contract_id, []).append(row)
        by_team.setdefault(row.team_id, []).append(row)
    by_scope: dict[object, made.Partials] = {}
    for key, figures in partials.items():
        scopes = [key.scope, made.Scope.team(key.scope.holder_id)] if key.scope.kind == "chain" else [key.scope]
        for scope in scopes:
            by_scope.setdefault(scope, {})[key] = figures
    documents: list[Document] = []
    for subject in subjects(rows, owners):
        scope = subject.scope
        candidates = (by_contract if scope.kind == "contract" else by_team)[scope.holder_id]
        mine = naive.chosen(candidates, scope.kind, scope.holder_id, scope.part)
        days = sorted({day for row in mine if (day := naive.day_of(row.block_time_ms, "UTC")) is not None})
        for level in LEVELS:
            labels = sorted({naive.label(day, level) for day in days} or ({"all"} if level == "all" else set()))
            for wanted in labels[-PERIODS:]:
                put = made.aggregate(by_scope[scope], subject, Period.from_label(wanted))
                expected = naive.transaction_figures(mine, scope.kind, level, wanted, "UTC")
                assert put is not None
                assert expected is not None
                document = describe_transactions(put)
                documents.append(document)
                found = dict(document.metadata["facts"]["figures"])
                found.pop("series", None)
                assert found == {name: figure for name, figure in expected.items() if name[0] != "_"}, document.key
                staking = describe_staking(put)
                if staking is not None:
                    documents.append(staking)
                    assert staking.metadata["facts"]["figures"] == naive.staking_figures(expected)
                else:
                    assert not expected["_stakes"]
    assert len({document.key for document in documents}) == len(documents)
    tokens = count_tokens([document.content for document in documents])
    assert max(tokens) <= 300
    assert sum(count > 200 for count in tokens) < len(tokens) / 50


def test_nothing_is_lost_between_contracts_and_the_rows(rows: list[Transaction], partials: made.Partials) -> None:
    contracts = [figures for key, figures in partials.items() if key.scope.kind == "contract"]
    assert sum(figures.rows for figures in contracts) == len(rows)
    assert add_up(figures.statuses for figures in contracts) == Counter(row.status or "unknown" for row in rows)
    volume: dict[str, Decimal] = {}
    for row in rows:
        if row.amount is not None and row.status not in ("failed", "pending") and not row.amount_unlimited:
            assert not row.amount_below
            volume[row.unit or ""] = volume.get(row.unit or "", Decimal(0)) + Decimal(row.amount)
    totals = {unit: Decimal(0) for unit in volume}
    for figures in contracts:
        for unit, part in figures.volumes.items():
            totals[unit] = totals.get(unit, Decimal(0)) + part.total
    assert {unit: total for unit, total in totals.items() if total} == {
        unit: total for unit, total in volume.items() if total
    }


def test_a_hash_under_two_contracts_of_a_team_counts_once_for_the_team(
    rows: list[Transaction], partials: made.Partials
) -> None:
    distinct = {(row.team_id, row.chain, row.tx_hash) for row in rows}
    chains = [figures for key, figures in partials.items() if key.scope.kind == "chain"]
    assert len(distinct) < len(rows)
    assert sum(figures.transactions for figures in chains) == len(distinct)
