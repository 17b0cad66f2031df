"""The fresh questions, put to the reader of documents, and most of their answers counted again from the records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

from tests.golden import Golden
from tests.questions import answers, fresh_figures
from tests.questions.answers import contract_id, sessions, transactions
from tests.questions.fresh_figures import ARENA, MINT, SAFFRON
from tests.questions.questions import QUESTIONS
from tests.questions.reading import put_all
from tests.questions.test_questions import golden, reads
from tests.unit.aggregates import naive


def traffic(golden: Golden) -> Any:
    mine = sessions(golden, ARENA, "2024-08")
    return len(mine), len({visit.visitor for visit in mine} - {None}), sum(visit.pages_viewed or 0 for visit in mine)


def traffic_of_team(golden: Golden) -> Any:
    mine = sessions(golden, None, "2024-10", team=answers.team_ids(golden)["Tidewater Collective"])
    return len(mine), sum(visit.pages_viewed or 0 for visit in mine)


def first_page(golden: Golden) -> Any:
    viewed = Counter(page for visit in sessions(golden, SAFFRON, "2024-07") for page in visit.pages)
    return viewed.most_common(1)[0]


def three_sources(golden: Golden) -> Any:
    counts = Counter(visit.source for visit in sessions(golden, SAFFRON, "2024-08"))
    return ([{"source": source, "sessions": number} for source, number in counts.most_common(3)],)


def otter_callers(golden: Golden) -> Any:
    groups = transactions(golden, contract=contract_id(golden, "Tidewater Otters"))
    seen = Counter(wallet for group in groups for wallet in {row.from_address for row in group} - {None})
    return len(seen), sum(number > 1 for number in seen.values())


def otter_ether(golden: Golden) -> Any:
    groups = transactions(golden, contract=contract_id(golden, "Tidewater Otters"))
    moved = answers.volumes(groups)["ETH"]
    return answers.total(moved), naive.text(max(moved))


def failed_on_gateway(golden: Golden) -> Any:
    groups = transactions(golden, contract=contract_id(golden, "Meridian Bridge: Gateway", "Optimism"))
    return answers.statuses(groups)["failed"], len(groups)


def gas_of_games(golden: Golden) -> Any:
    used = answers.gas(transactions(golden, "2025-02", team="Copperleaf Games"))
    return str(sum(used)), str(round(Decimal(sum(used)) / len(used), 2))


def saffron_dollar_sizes(golden: Golden) -> Any:
    groups = transactions(golden, contract=contract_id(golden, "Saffron Dollar"))
    moved = answers.volumes(groups)["sUSD"]
    middle = sum(1 <= amount <= 10 for amount in moved)
    return sum(Decimal("0.1") <= amount < 1 for amount in moved), middle, sum(amount > 10 for amount in moved)


def saffron_funnel(golden: Golden) -> Any:
    mine = sessions(golden, SAFFRON, "2024-09")
    waits, _ = answers.won(golden, mine, answers.team_of(golden, SAFFRON), "2024-09")
    connected = {visit.visitor for visit in mine if visit.wallet is not None}
    return len({visit.visitor for visit in mine}), len(connected), len(waits)


def cost_of_heroes(golden: Golden) -> Any:
    campaign, mine = answers.of_campaign(golden, "Heroes season one")
    _, groups = answers.won(golden, mine, answers.team_of(golden, ARENA))
    return (
        naive.share(campaign.cost, len(answers.people(mine))),
        naive.share(campaign.cost, len(groups)),
        campaign.currency,
    )


def locks_for_a_year(golden: Golden) -> Any:
    _, mine = answers.of_campaign(golden, "Lock for a year")
    _, groups = answers.won(golden, mine, answers.team_of(golden, SAFFRON))
    return len(mine), len({visit.wallet for visit in mine} - {None}), len(groups)


def two_countries(golden: Golden) -> Any:
    counts = Counter(visit.country for visit in sessions(golden, SAFFRON, "2024-06"))
    return ([{"country": country, "sessions": number} for country, number in counts.most_common(2)],)


def staked_basalt(golden: Golden) -> Any:
    groups = transactions(golden, contract=contract_id(golden, "Basalt: Staking"))
    locks = answers.calls(groups, "create_lock")
    lockers = {row.from_address for row in answers.calls(groups, "create_lock", "increase_amount")} - {None}
    return len(locks), len(lockers), len(answers.calls(groups, "withdraw_early"))


def grown_bridge(golden: Golden) -> Any:
    before, now = (len(transactions(golden, month, team="Meridian Bridgeworks")) for month in ("2024-10", "2024-11"))
    return now - before, naive.share((now - before) * 100, before)


#: By the number of the question.
COUNTED: dict[int, Callable[[Golden], Any]] = {
    101: traffic,
    102: traffic_of_team,
    104: first_page,
    106: three_sources,
    107: lambda golden: (sum(visit.source == "twitter/social" for visit in sessions(golden, MINT)),),
    110: lambda golden: answers.new_wallets(golden, "Orchard Protocol", "2025-02"),
    111: otter_callers,
    112: otter_ether,
    113: failed_on_gateway,
    114: gas_of_games,
    115: saffron_dollar_sizes,
    116: saffron_funnel,
    118: cost_of_heroes,
    119: locks_for_a_year,
    120: lambda golden: answers.stayed(golden, SAFFRON, "2024-08", "2024-07")[:2],
    121: two_countries,
    123: staked_basalt,
    124: grown_bridge,
}


def test_the_documents_answer_every_fresh_question() -> None:
    assert put_all(fresh_figures.QUESTIONS, reads()) == {}


def test_fresh_questions_are_other_ones_than_the_sixty() -> None:
    assert [question.number for question in fresh_figures.QUESTIONS] == list(range(101, 125))
    assert not {question.text for question in fresh_figures.QUESTIONS} & {question.text for question in QUESTIONS}
    asked = {(str(question.look), question.read) for question in QUESTIONS}
    assert not {(str(question.look), question.read) for question in fresh_figures.QUESTIONS} & asked


@pytest.mark.parametrize("number", COUNTED)
def test_a_fresh_answer_is_that_of_the_records(number: int) -> None:
    (question,) = (question for question in fresh_figures.QUESTIONS if question.number == number)
    assert COUNTED[number](golden()) == question.answer
