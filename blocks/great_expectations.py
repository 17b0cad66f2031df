"""Great Expectations: holds a run's measures and some of its rows against suites, and keeps the proof as Data Docs.

Importing the library costs seconds of CPU and 160 MB, so a judgement runs in a short process of its own, which is this
module: ``python -m blocks.great_expectations`` reads a case as JSON and answers with what it found. That process gets
no secret and asks nothing of the network; the pages that it writes load nothing from anywhere.
"""

from __future__ import annotations

import html
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import orjson

from tasks.domain.errors import TerminalError, TransientError
from tasks.domain.verdicts import Action, Finding, Judgement, Measure, Rule

_WITHIN_S = 600
_ROOT = Path(__file__).resolve().parent.parent
#: All that the process gets of the environment: none of it is a setting of ours or of the library's.
_PASSED_ON = ("PATH", "LANG", "LC_ALL", "TMPDIR", "TEMP", "TMP", "SYSTEMROOT", "LD_LIBRARY_PATH")
_SEVERITIES = {Action.WARN: "info", Action.QUARANTINE: "warning", Action.STOP: "critical"}
_SHOWN = 5
#: Columns of a table that tell its rows apart, for the pages and for us.
_SHOWN_COLUMNS = ("row", "name", "about", "found", "examples", "record_id")


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows that are judged one by one, with what each must be: plain values, ``record_id`` among them.

    ``formats`` are regular expressions of whole values, ``ranges`` a least and a largest value, ``sets`` all values
    there may be. A missing value breaks ``required`` and ``unique`` alone. Of ``tolerance`` a share may break each of
    them; fewer rows than ``least`` are not judged.
    """

    records: Sequence[Mapping[str, Any]]
    required: tuple[str, ...] = ()
    unique: tuple[str, ...] = ()
    formats: Mapping[str, str] = field(default_factory=dict)
    ranges: Mapping[str, tuple[float | None, float | None]] = field(default_factory=dict)
    sets: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    tolerance: float = 0.0
    least: int = 1

    @property
    def are_judged(self) -> bool:
        """Return whether there are enough of them."""
        return len(self.records) >= self.least


@dataclass(frozen=True, slots=True)
class Case:
    """What is judged: a source or a store by ``name``, what a run was like by its measures, and some rows of it.

    The suites are ``<name>.run`` and ``<name>.rows``. Measures called ``always`` must be there: where nothing was
    measured every suite holds.
    """

    name: str
    run: str
    measures: Sequence[Measure]
    rules: Sequence[Rule]
    always: tuple[str, ...] = ()
    rows: Rows | None = None


def hold(cases: Sequence[Case], *, docs: Path | None = None) -> list[Judgement]:
    """Return what Great Expectations finds in each case, in order, at the price of one process.

    With ``docs`` its pages lie in that folder, which is made anew. Raises ``TransientError`` where the process was
    ended from outside or took too long, ``TerminalError`` where the library can't judge: a gate without a guard is
    closed.
    """
    about = " and ".join(case.name for case in cases)
    with tempfile.TemporaryDirectory(prefix="quality-") as home:
        request = {"cases": [asdict(case) for case in cases], "docs": str(docs.absolute()) if docs else None}
        environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        environment |= {"PYTHONPATH": str(_ROOT), "HOME": home, "USERPROFILE": home}
        environment |= {"GX_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1", "TQDM_DISABLE": "1"}
        try:
            done = subprocess.run(
                [sys.executable, "-P", "-m", __name__],
                input=orjson.dumps(request),
                capture_output=True,
                timeout=_WITHIN_S,
                cwd=home,
                env=environment,
            )
        except subprocess.TimeoutExpired:
            raise TransientError(f"judging {about} took longer than {_WITHIN_S} s") from None
    if done.returncode < 0:
        raise TransientError(f"the process that judged {about} was ended by signal {-done.returncode}")
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise TerminalError(f"Great Expectations could not judge {about}: {said[-1] if said else 'it said nothing'}")
    answer = orjson.loads(done.stdout)
    return [_judgement(case, found, answer) for case, found in zip(cases, answer["cases"], strict=True)]


def _judgement(case: Case, found: Mapping[str, Any], answer: Mapping[str, Any]) -> Judgement:
    rules = {rule.name: rule for rule in case.rules}
    worst: dict[int, Finding] = {}
    for row, name, action_name in found["measures"]:
        action = Action[action_name]
        if row not in worst or action > worst[row].action:
            worst[row] = Finding.of(case.measures[row], rules[name], action)
    return Judgement(
        about=case.name,
        judge=f"Great Expectations {answer['version']}",
        expectations=found["expectations"],
        kept=found["kept"],
        findings=(*(worst[row] for row in sorted(worst)), *map(Finding.from_record, found["others"])),
        docs=answer["docs"],
    )


# -- the process ----------------------------------------------------------------------------------------------


def main() -> None:
    """Judge the case on standard input and answer on standard output. What the library says goes to standard error."""
    answers, sys.stdout = sys.stdout, sys.stderr
    answer = _judge(orjson.loads(sys.stdin.buffer.read()))
    answers.buffer.write(orjson.dumps(answer))
    answers.flush()


def _load_library() -> Any:
    """Import Great Expectations without what judging a table in memory never uses: under half of the CPU and memory."""
    for absent in ("boto3", "botocore", "google", "pyspark", "snowflake", "sqlalchemy"):
        sys.modules[absent] = None  # type: ignore[assignment]  # importing it fails, which the library expects
    for late in ("altair", "scipy.stats"):
        sys.modules[late] = _imported_when_used(late)
    return import_module("great_expectations")


def _of_library(name: str) -> Any:
    return import_module(f"great_expectations.{name}")


def _imported_when_used(name: str) -> ModuleType:
    """Return what stands in a module's place until something of it is asked for."""
    placeholder = ModuleType(name)

    def load(attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        if sys.modules.get(name) is placeholder:
            del sys.modules[name]
        return getattr(import_module(name), attribute)

    placeholder.__getattr__ = load  # type: ignore[method-assign]
    return placeholder


def _judge(request: Mapping[str, Any]) -> dict[str, Any]:
    library = _load_library()
    folder = Path(request["docs"]) if request["docs"] else None
    context = _open_context(library, folder)
    source = context.data_sources.add_pandas("run")
    pages = []
    found = []
    for record in request["cases"]:
        case = _case(record)
        results = [
            _validate(library, context, source, f"{case.name}.run", case.run, _run_suite(case), *_measure_rows(case))
        ]
        if case.rows is not None and case.rows.are_judged:
            suite = _row_suite(case.rows)
            results.append(
                _validate(
                    library,
                    context,
                    source,
                    f"{case.name}.rows",
                    case.run,
                    suite,
                    case.rows.records,
                    list(case.rows.records[0]),
                )
            )
        pages += results
        found.append(_found(results))
    docs = None if folder is None else str(_build_pages(context, folder, request["cases"][0]["run"], pages))
    return {"version": library.__version__, "cases": found, "docs": docs}


def _case(record: Mapping[str, Any]) -> Case:
    measures = [Measure(**{**row, "examples": tuple(row["examples"])}) for row in record["measures"]]
    rows = None if record["rows"] is None else Rows(**record["rows"])
    rules = [Rule(**row) for row in record["rules"]]
    return Case(record["name"], record["run"], measures, rules, tuple(record["always"]), rows)


def _measure_rows(case: Case) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the table of measures and its columns: one for each rule, which holds the values that it bounds."""
    rules = {rule.name: rule for rule in case.rules}
    rows = []
    for row, measure in enumerate(case.measures):
        cells = {"row": row, "name": measure.name, "about": measure.about, "value": float(measure.value)}
        cells |= {"found": measure.words, "examples": ", ".join(measure.examples)}
        rule = rules.get(measure.name)
        if rule is not None and measure.of >= rule.least:
            cells[rule.name] = float(measure.value)
        rows.append(cells)
    return rows, ["row", "name", "about", "value", "found", "examples", *rules]


def _found(results: Sequence[Any]) -> dict[str, Any]:
    """Return what fails of one case: rows of its measures, with their rules, and findings about its rows."""
    every = [result for page in results for result in page.results]
    for result in every:
        said = _raised(result)
        if said is not None:
            config = result.expectation_config
            raise TerminalError(f"{config.type} about {config.kwargs.get('column')} could not be judged: {said}")
    failed = [result for result in every if not result.success]
    about_measures = [result for result in failed if "rule" in result.expectation_config.meta]
    return {
        "expectations": len(every),
        "kept": len(every) - len(failed),
        "measures": [
            (int(row["row"]), result.expectation_config.meta["rule"], result.expectation_config.meta["action"])
            for result in about_measures
            for row in result.result["unexpected_index_list"]
        ],
        "others": [_found_in_rows(result).to_record() for result in failed if result not in about_measures],
    }


def _open_context(library: Any, docs: Path | None) -> Any:
    """Return a context in memory, for this case alone: one that is shared gives wrong results without a word."""
    types = _of_library("data_context.types.base")
    sites = {}
    if docs is not None:
        shutil.rmtree(docs, ignore_errors=True)
        docs.mkdir(parents=True)
        sites["local"] = {
            "class_name": "SiteBuilder",
            "show_how_to_buttons": False,
            "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(docs)},
            "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
        }
    config = types.DataContextConfig(
        store_backend_defaults=types.InMemoryStoreBackendDefaults(init_temp_docs_sites=False),
        progress_bars=types.ProgressBarsConfig(globally=False, metric_calculations=False),
        data_docs_sites=sites,
        analytics_enabled=False,
    )
    return library.get_context(project_config=config, mode="ephemeral")


def _validate(
    library: Any,
    context: Any,
    source: Any,
    name: str,
    run: str,
    expectations: Sequence[Any],
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[str],
) -> Any:
    """Return the result of one suite over one table, with every row that breaks an expectation."""
    table = import_module("pandas").DataFrame.from_records(list(rows), columns=columns)
    batch = source.add_dataframe_asset(name).add_batch_definition_whole_dataframe("all")
    suite = context.suites.add(library.ExpectationSuite(name=name, expectations=list(expectations)))
    definition = library.ValidationDefinition(name=name, data=batch, suite=suite)
    form = {
        "result_format": "COMPLETE",
        "unexpected_index_column_names": [column for column in _SHOWN_COLUMNS if column in table.columns],
        "return_unexpected_index_query": False,
    }
    checkpoint = library.Checkpoint(
        name=name, validation_definitions=[context.validation_definitions.add(definition)], result_format=form
    )
    identify = _of_library("core.run_identifier").RunIdentifier
    done = context.checkpoints.add(checkpoint).run(
        batch_parameters={"dataframe": table}, run_id=identify(run_name=run, run_time=datetime.now(UTC))
    )
    return next(iter(done.run_results.values()))


# -- the suites -----------------------------------------------------------------------------------------------


def _run_suite(case: Case) -> list[Any]:
    """Return what a run's measures are held to: an expectation for every bound of every rule."""
    gxe = _of_library("expectations")

    suite = [
        gxe.ExpectCompoundColumnsToBeUnique(column_list=["name", "about"], severity="critical"),
        gxe.ExpectColumnValuesToNotBeNull(column="value", severity="critical"),
        gxe.ExpectColumnDistinctValuesToBeInSet(
            column="name", value_set=sorted(rule.name for rule in case.rules), severity="critical"
        ),
        gxe.ExpectColumnDistinctValuesToContainSet(column="name", value_set=sorted(case.always), severity="critical"),
    ]
    for rule in case.rules:
        for action, bound in rule.bounds.items():
            limits = {"min_value": bound} if rule.lower else {"max_value": bound}
            suite.append(
                gxe.ExpectColumnValuesToBeBetween(
                    column=rule.name,
                    **limits,
                    severity=_SEVERITIES[action],
                    description=f"{rule.says} ({'at least' if rule.lower else 'at most'} {bound:g}, "
                    f"else {action.name.lower()})",
                    meta={"rule": rule.name, "action": action.name},
                )
            )
    return suite


def _row_suite(rows: Rows) -> list[Any]:
    """Return what rows are held to, one by one."""
    gxe = _of_library("expectations")

    def held(name: str, says: str) -> dict[str, Any]:
        meta = {"name": name, "says": says}
        return {"severity": "critical", "mostly": 1 - rows.tolerance, "meta": meta, "description": f"{name}: {says}"}

    suite: list[Any] = [
        gxe.ExpectColumnValuesToNotBeNull(column=name, **held("row_missing", f"{name} is set"))
        for name in rows.required
    ]
    suite += [
        gxe.ExpectColumnValuesToBeUnique(column=name, **held("row_doubled", f"{name} comes once"))
        for name in rows.unique
    ]
    suite += [
        gxe.ExpectColumnValuesToMatchRegex(
            column=name, regex=f"^(?:{pattern})$", **held("row_malformed", f"{name} looks like {pattern}")
        )
        for name, pattern in rows.formats.items()
    ]
    suite += [
        gxe.ExpectColumnValuesToBeBetween(
            column=name,
            min_value=least,
            max_value=most,
            **held("row_out_of_range", f"{name} lies between {least} and {most}"),
        )
        for name, (least, most) in rows.ranges.items()
    ]
    suite += [
        gxe.ExpectColumnValuesToBeInSet(
            column=name,
            value_set=list(values),
            **held("row_unknown", f"{name} is one of {', '.join(map(str, values))}"),
        )
        for name, values in rows.sets.items()
    ]
    return suite


def _raised(result: Any) -> str | None:
    """Return what an expectation raised, by itself or in one of its figures, or None: it only counts as failed then."""
    raised = result.exception_info or {}
    parts = [raised] if "raised_exception" in raised else raised.values()
    return next((str(part["exception_message"]) for part in parts if part.get("raised_exception")), None)


def _found_in_rows(result: Any) -> Finding:
    """Return a failed expectation about rows, or about the table of measures itself, as a finding."""
    config, found = result.expectation_config, result.result or {}
    column = str(config.kwargs.get("column") or config.kwargs.get("column_list"))
    name, says = config.meta.get("name", "measures"), config.meta.get("says", f"{config.type} ({column})")
    broken = found.get("unexpected_index_list") or []
    number, of = found.get("unexpected_count", 0), found.get("element_count", 0)
    values = ", ".join(sorted({repr(str(value)[:40]) for value in found.get("partial_unexpected_list") or [] if value}))
    return Finding(
        name=name,
        about=column,
        action=Action.STOP,
        value=number,
        bound=round(of * (1 - config.kwargs.get("mostly", 1.0)), 1),
        words=f"of {of:,} rows that were looked at {number:,} break: {says}"
        + (f" (found {values[:200]})" * bool(values)),
        advice="look at the records named",
        examples=tuple(sorted(str(row["record_id"]) for row in broken if "record_id" in row)[:_SHOWN]),
    )


# -- Data Docs ------------------------------------------------------------------------------------------------

_TAKEN_OUT = re.compile(
    r"<script\b.*?</script>|<link\b[^>]*>|<img\b[^>]*>|<footer>.*?</footer>|background: url\('https?:[^;]*;",
    re.DOTALL | re.IGNORECASE,
)
#: The pages were made for style sheets and scripts of other servers; these lines take their place.
_STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; margin: 1.5rem; max-width: 1500px; color: #1b1f24; background: #fff; }
.row { display: block; } .col-md-2, .card-header, .btn-group, .modal, .card-text { display: none; }
table { border-collapse: collapse; width: 100%; margin: .5rem 0 1.2rem; }
td, th { border: 1px solid #d8dee4; padding: .3rem .5rem; vertical-align: top; text-align: left; }
td { overflow-wrap: break-word; } th { white-space: nowrap; background: #f2f4f6; }
.alert-secondary { border-left: 4px solid #57606a; padding: .2rem .8rem; background: #f6f8fa; }
.badge { font-weight: 600; } .text-danger { color: #b42318; } .text-success { color: #1a7f37; }
.fa-times::before { content: "\\2718 fails"; } .fa-check-circle::before { content: "\\2714 holds"; }
.fa-exclamation-triangle::before { content: "\\26A0 "; } i { font-style: normal; }
.show-scrollbars { max-height: none !important; }
"""
_HEAD = (
    '<meta http-equiv="Content-Security-Policy" '
    "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">"
)


def _build_pages(context: Any, folder: Path, run: str, results: Sequence[Any]) -> Path:
    """Write the library's pages, closed against other servers, and a first page that lists them; return that page."""
    context.build_data_docs()
    shutil.rmtree(folder / "static", ignore_errors=True)
    for page in folder.rglob("*.html"):
        text = _TAKEN_OUT.sub("", page.read_text(encoding="utf-8"))
        head, body = text.split("</head>", 1)
        head = head.replace("<head>", f"<head>{_HEAD}", 1)
        page.write_text(f"{head}<style>{_STYLE}</style></head>{body}", encoding="utf-8")
    lines = []
    for result in results:
        name = result.suite_name
        counts = result.statistics
        verdict = "fa-check-circle text-success" if result.success else "fa-times text-danger"
        pages = sorted((folder / "validations" / Path(*name.split("."))).rglob("*.html"))
        links = ", ".join(_link(folder, page, "result") for page in pages)
        suite = _link(folder, folder / "expectations" / Path(*name.split(".")).with_suffix(".html"), "suite")
        lines.append(
            f'<tr><td>{html.escape(name)}</td><td><i class="{verdict}"></i></td>'
            f"<td>{counts['successful_expectations']} of {counts['evaluated_expectations']}</td>"
            f"<td>{links}</td><td>{suite}</td></tr>"
        )
    index = folder / "index.html"
    index.write_text(
        f'<!DOCTYPE html><html><head>{_HEAD}<meta charset="UTF-8"><title>Data quality, {html.escape(run)}</title>'
        f"<style>{_STYLE}</style></head><body><h1>Data quality</h1><p>Run {html.escape(run)}</p><table><thead><tr>"
        "<th>suite</th><th>verdict</th><th>expectations that hold</th><th>what was found</th><th>what is expected</th>"
        f"</tr></thead><tbody>{''.join(lines)}</tbody></table></body></html>",
        encoding="utf-8",
    )
    return index


def _link(folder: Path, page: Path, word: str) -> str:
    return f'<a href="{html.escape(page.relative_to(folder).as_posix())}">{word}</a>'


if __name__ == "__main__":
    main()
