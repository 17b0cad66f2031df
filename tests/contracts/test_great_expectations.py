"""Great Expectations itself, in its own process: every planted fault is caught and named, and nothing leaves."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from prefect.logging import disable_run_logger
from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_ALLOW_EPHEMERAL_MODE, temporary_settings

from blocks import great_expectations
from blocks.great_expectations import Case, Rows, hold
from tasks.domain.errors import TerminalError, TransientError
from tasks.domain.measures import (
    Reach,
    Stored,
    ceilings_of,
    ids_to_read_again,
    measure_run,
    measure_sample,
    measure_target,
)
from tasks.domain.profiles import Profile
from tasks.domain.runs import Run, Scope
from tasks.domain.transaction_documents import TRANSACTIONS
from tasks.domain.verdicts import SOURCE_RULES, TARGET_RULES, Action, Judgement, judge_alone, rules_for
from tasks.quality import _document_rows, _rows, document_row, judge_run, judge_sample, judge_so_far
from tests.observations import (
    COLUMNS,
    NOW_MS,
    Row,
    doubled,
    make_profile,
    make_rows,
    scaled,
    shifted,
    swapped,
    truncated,
    with_nulls,
)

ROWS = make_rows(3_000)
IDS = {row["record_id"] for row in ROWS}
WHOLE = Reach(whole=True, now_ms=NOW_MS)
RULES = rules_for(SOURCE_RULES)

Fault = Callable[[list[Row]], list[Row]]


def emptied(_rows: list[Row]) -> list[Row]:
    """Return what is left of a source that was dropped."""
    return []


def sound(rows: list[Row]) -> list[Row]:
    """Return the rows as they are."""
    return rows


FAULTS: dict[str, tuple[Fault, set[str]]] = {
    "a_fifth_is_null": (with_nulls, {"missing", "emptied"}),
    "doubled_file": (doubled, {"doubled"}),
    "shifted_time_zone": (shifted, {"moved"}),
    "times_10_to_the_12": (scaled, {"scaled", "scale", "far"}),
    "truncated": (truncated, {"fewer", "lost"}),
    "empty": (emptied, {"empty", "lost"}),
    "swapped_addresses": (swapped, {"swapped", "exchanged"}),
}
#: Only the whole run sees that records come twice: a sample holds one of the two. Nothing is spent on the second.
BEFORE_SPENDING = [name for name in FAULTS if name != "doubled_file"]


def run_case(name: str, fault: Fault, before: Profile | None) -> Case:
    profile = make_profile(fault(ROWS), ceilings=ceilings_of(before))
    measures = measure_run(profile, before, COLUMNS, WHOLE, read=profile.read)
    return Case(
        f"run_{name}", "20250720T120000-0a1b2c3d", measures, RULES, ("refused",), _rows(profile, COLUMNS, WHOLE)
    )


def sample_case(name: str, fault: Fault, before: Profile) -> Case:
    rows = fault(ROWS)
    wanted = set(ids_to_read_again(before))
    again = make_profile([row for row in rows if row["record_id"] in wanted])
    sample = make_profile(rows[::4], ceilings=ceilings_of(before))
    measures = measure_sample(sample, before, COLUMNS, WHOLE, planned=len(rows), again=again)
    return Case(f"sample_{name}", "20250720T120000-0a1b2c3d", measures, RULES, ("refused",))


def target_case(name: str, stored: Stored, *changes: dict[str, object]) -> Case:
    vector = {
        "sourceId": "64c000000000000000000001",
        "documentId": "transaction:contract_1:0x1:0",
        "teamId": "64a000000000000000000001",
        "siteId": "site",
        "sourceType": "transaction",
        "status": "active",
        "content": "A transfer.",
        "metadata": {"importance": 5, "confidence": 1.0},
    }
    documents = [
        document_row({**vector, "documentId": f"transaction:contract_1:0x{at}:0", **change}, dimensions=256)
        for at, change in enumerate(({}, {}, *changes))
    ]
    measures = measure_target(stored, None)
    rows = _document_rows(documents, 256, "transaction")
    return Case(f"target_{name}", "run", measures, rules_for(TARGET_RULES), ("target_incomplete",), rows)


def make_cases(before: Profile) -> list[Case]:
    whole = Stored(in_source=3_000, stored=3_000, refused=0, arrived=0, orphaned=0, documents=3_000)
    return [
        run_case("sound", sound, before),
        run_case("sound_first", sound, None),
        sample_case("sound", sound, before),
        *(run_case(name, fault, before) for name, (fault, _) in FAULTS.items()),
        *(sample_case(name, FAULTS[name][0], before) for name in BEFORE_SPENDING),
        target_case("sound", whole),
        target_case("lost", replace(whole, stored=2_990, lost=("64c000000000000000000009",))),
        target_case(
            "damaged",
            whole,
            {"sourceId": "64c0000000000000000000aa", "metadata": {"importance": 11, "confidence": 1.0}},
            {"sourceId": "64c0000000000000000000bb", "content": ""},
            {"sourceId": "64c0000000000000000000cc", "teamId": None},
            {"sourceId": "64c0000000000000000000dd", "documentId": "transaction:contract_1:0x0:0"},
        ),
        Case("nothing_measured", "run", [], RULES, ("refused",)),
    ]


@dataclass(frozen=True)
class Held:
    """All cases, judged by one process, with what was heard of that process."""

    cases: dict[str, Case]
    judgements: dict[str, Judgement]
    docs: Path
    events: str
    environment: set[str]


_REACHING_OUT = (
    *("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.sendmsg"),
    *("urllib.Request", "http.client.connect"),
)
_WATCH = """
import os, sys
def hear(event, arguments):
    if event in {reaching_out!r}:
        with open({events!r}, "a") as file:
            file.write(event + " " + repr(arguments)[:200] + chr(10))
sys.addaudithook(hear)
sys.audit("socket.connect", "heard")
with open({environment!r}, "w") as file:
    file.write(chr(10).join(os.environ))
"""


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Held:
    folder = tmp_path_factory.mktemp("held")
    events, environment = folder / "events", folder / "environment"
    (folder / "sitecustomize.py").write_text(
        _WATCH.format(events=str(events), environment=str(environment), reaching_out=_REACHING_OUT)
    )
    events.touch()
    cases = make_cases(make_profile(ROWS))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CRYPTIQUE_GEMINI_API_KEY", "a-secret")
        patch.setenv("GX_CLOUD_ACCESS_TOKEN", "another")
        patch.setattr(great_expectations, "_ROOT", f"{folder}{os.pathsep}{great_expectations._ROOT}")
        judgements = hold(cases, docs=folder / "docs")
    named = {case.name: case for case in cases}
    return Held(
        named,
        dict(zip(named, judgements, strict=True)),
        folder / "docs",
        events.read_text(),
        set(environment.read_text().splitlines()),
    )


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_stops_a_run_with_a_message_that_names_records(held: Held, name: str) -> None:
    require_caught(held.judgements[f"run_{name}"], FAULTS[name][1])


@pytest.mark.parametrize("name", BEFORE_SPENDING)
def test_a_planted_fault_stops_a_run_before_anything_is_spent(held: Held, name: str) -> None:
    require_caught(held.judgements[f"sample_{name}"], FAULTS[name][1])


def require_caught(judgement: Judgement, names: set[str]) -> None:
    stops = {finding.name: finding for finding in judgement.worst(Action.STOP)}
    assert names <= stops.keys()
    for name in names:
        assert stops[name].examples
        assert {record[3:] for record in stops[name].examples} <= {record[3:] for record in IDS}
    with pytest.raises(TerminalError) as failed:
        judgement.require_sound("before anything was embedded")
    assert any(record in str(failed.value) for record in IDS)


@pytest.mark.parametrize("name", ["run_sound", "run_sound_first", "sample_sound", "target_sound"])
def test_what_is_sound_is_found_sound(held: Held, name: str) -> None:
    judgement = held.judgements[name]
    assert judgement.findings == ()
    assert judgement.kept == judgement.expectations > 10


def test_the_library_and_the_rules_alone_agree_on_every_measure(held: Held) -> None:
    for name, case in held.cases.items():
        alone = judge_alone(name, case.measures, case.rules).findings
        measured = {(measure.name, measure.about) for measure in case.measures}
        found = [finding for finding in held.judgements[name].findings if (finding.name, finding.about) in measured]
        assert found == list(alone), name


def test_the_suite_looks_at_the_records_themselves_too(held: Held) -> None:
    found = {finding.name: finding for finding in held.judgements["run_a_fifth_is_null"].findings}
    assert found["row_missing"].about == "from"
    nulls = {row["record_id"] for row in with_nulls(ROWS) if row["from"] is None}
    assert set(found["row_missing"].examples) <= nulls


def test_a_damaged_vector_document_is_named(held: Held) -> None:
    assert {finding.name for finding in held.judgements["target_lost"].findings} == {"target_incomplete"}
    found = {(finding.name, finding.about): finding for finding in held.judgements["target_damaged"].findings}
    assert found["row_out_of_range", "importance"].examples == ("64c0000000000000000000aa",)
    assert found["row_out_of_range", "characters"].examples == ("64c0000000000000000000bb",)
    assert found["row_missing", "teamId"].examples == ("64c0000000000000000000cc",)
    assert "64c0000000000000000000dd" in found["row_doubled", "documentId"].examples


def test_a_run_of_which_nothing_was_measured_is_not_sound(held: Held) -> None:
    assert held.judgements["nothing_measured"].action == Action.STOP


def test_nothing_is_asked_of_the_network(held: Held) -> None:
    assert held.events.splitlines() == ["socket.connect ('heard',)"]  # the watch's own word, that it listens


def test_the_process_gets_no_secret_and_no_setting(held: Held) -> None:
    assert "PATH" in held.environment
    assert not [name for name in held.environment if name.startswith(("CRYPTIQUE_", "GX_CLOUD", "PREFECT_"))]


def test_the_data_docs_tell_what_was_found_and_load_nothing(held: Held) -> None:
    pages = list(held.docs.rglob("*.html"))
    assert len(pages) > 2 * len(held.cases)
    for page in pages:
        text = page.read_text()
        assert "default-src 'none'" in text
        assert not re.search(r"<script|<link|<img|url\(['\"]?http|src=['\"]?http", text)
    index = (held.docs / "index.html").read_text()
    for link in re.findall(r'href="([^"]+)"', index):
        assert (held.docs / link).is_file()
    [page] = (held.docs / "validations" / "run_swapped_addresses" / "run").rglob("*.html")
    [finding] = [found for found in held.judgements["run_swapped_addresses"].findings if found.name == "swapped"]
    assert finding.examples[0] in page.read_text()
    assert not list(held.docs.rglob("*.otf"))


RUN = Run(key="20250720T120000-0a1b2c3d", id="run", scope=Scope(), started_ms=NOW_MS, planned=3_000)
KIND = replace(TRANSACTIONS, columns=COLUMNS)


@pytest.fixture
def outside_of_prefect() -> Iterator[None]:
    """Let tasks run where no server takes their logs and artifacts."""
    nowhere = {PREFECT_API_URL: None, PREFECT_SERVER_ALLOW_EPHEMERAL_MODE: False}
    with disable_run_logger(), temporary_settings(nowhere):
        yield


@pytest.mark.usefixtures("outside_of_prefect")
def test_a_small_sound_run_starts_without_the_price_of_the_library() -> None:
    sample = make_profile(ROWS[::4])
    judgement = judge_sample.fn(RUN, KIND, sample, make_profile(ROWS), planned=len(ROWS))
    assert (judgement.judge, judgement.good) == ("the rules alone", True)


@pytest.mark.usefixtures("outside_of_prefect")
def test_a_run_is_stopped_by_the_library_unless_a_person_accepted_its_finding() -> None:
    sample = make_profile(with_nulls(ROWS))
    with pytest.raises(TerminalError, match=r"embedded or written: 600 of 3,000 records have no from"):
        judge_sample.fn(RUN, KIND, sample, None, planned=len(ROWS))
    accepting = replace(RUN, accept=("missing:from",))
    assert judge_sample.fn(accepting, KIND, sample, None, planned=len(ROWS)).good
    [judgement] = judge_run.fn(accepting, KIND, sample, None, read=sample.read, prove=True)
    assert judgement.judge.startswith("Great Expectations 1.")
    assert {(finding.name, finding.action) for finding in judgement.findings} == {
        ("missing", Action.WARN),
        ("row_missing", Action.WARN),
    }


@pytest.mark.usefixtures("outside_of_prefect")
def test_a_finished_run_is_judged_whether_or_not_its_artifact_can_be_written() -> None:
    stored = Stored(in_source=3_000, stored=3_000, refused=0, arrived=0, orphaned=0, documents=3_000)
    profile = make_profile(with_nulls(ROWS))
    of_source, of_store = judge_run.fn(RUN, KIND, profile, None, read=profile.read, stored=stored)
    assert (of_source.good, of_store.good) == (False, True)


@pytest.mark.usefixtures("outside_of_prefect")
def test_a_run_goes_on_until_enough_was_read_to_say_that_it_is_bad() -> None:
    profile = make_profile(swapped(ROWS))
    judge_so_far(RUN, KIND, profile, None, planned=100_000)
    with pytest.raises(TerminalError, match="when 3,000 of 10,000 records were read"):
        judge_so_far(RUN, KIND, profile, None, planned=10_000)


def test_a_suite_that_cannot_be_judged_is_an_error_and_no_approval() -> None:
    rows = Rows([{"record_id": "64c000000000000000000001", "from": "0x1"}], formats={"from": "(["})
    with pytest.raises(TerminalError, match="could not be judged"):
        hold([Case("transaction", "run", [], RULES, rows=rows)])


def test_a_process_that_was_killed_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text(f"import os; os.kill(os.getpid(), {int(signal.SIGKILL)})")
    monkeypatch.setattr(great_expectations, "_ROOT", f"{tmp_path}{os.pathsep}{great_expectations._ROOT}")
    with pytest.raises(TransientError, match="signal 9"):
        hold([Case("transaction", "run", [], RULES)])
