"""Report: the results as a table beside the targets, and as plots: ``python -m benchmarks.report [FOLDER]``."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.plots import draw
from benchmarks.results import Record, Results

#: A vector of 1536 numbers as float32, by itself.
RAW_VECTOR_BYTES = 1536 * 4
#: Fewer rows tell of the start of a process more than of its work.
_BASE_ROWS = 50_000
_README = "README.md"
_COMPRESSED_LIMIT = "limit, compressed as the store"
#: Of the quota's lines: a check, no figure.
_HOW_ENDED = "how the workers ended"


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure beside its target. ``met`` is None where no target is set."""

    name: str
    value: str
    target: str = ""
    met: bool | None = None

    def row(self) -> tuple[str, str, str, str]:
        """Return the cells of its row."""
        return self.name, self.value, self.target, {True: "yes", False: "**no**", None: ""}[self.met]


def line(name: str, measured: Record) -> str:
    """Return a measurement in one line, for whoever waits for it."""
    rows, words = measured["rows"], []
    if "cpu_s" in measured:
        cpu = measured["cpu_s"]
        parts = ", ".join(f"{part} {seconds:.1f}" for part, seconds in cpu.items() if part != "total" and seconds)
        words.append(f"{cpu['total']:.1f} CPU s ({parts})")
        if rows:
            words.append(f"{_ms_per_1000(measured):.0f} ms per 1,000")
    if "starting_cpu_s" in measured:
        words.append(f"of ours {measured['starting_cpu_s']:.1f} before the run began")
        words.append(f"{measured['embedder']['cpu_s']:.1f} the embedder")
    if "wall_s" in measured:
        words.append(f"{measured['wall_s']:.1f} s wall")
    if "peaks_mb" in measured:
        words.append(f"peak {_peak_mb(measured):.0f} MB")
    if "report" in measured:
        told = measured["report"]
        words.append(f"{told['written']:,} written, {told['unchanged']:,} unchanged, {told['dead_lettered']:,} refused")
    if "latency_ms" in measured:
        words.append(f"{_embedding_rate(measured):,.0f} texts a second of {_ideal_rate(measured):,.0f}")
    if "bytes_a_document" in measured:
        words.append(f"{measured['bytes_a_document']:,.0f} bytes a document, {_storage_ratio(measured):.3f} of raw")
    if "client_cpu_s" in measured and "task_runs" in measured:
        words.append(f"client {measured['client_cpu_s']:.1f} CPU s, server {measured['server_cpu_s']:.1f}")
    if "cpu_ms_per_request" in measured:
        words.append(f"{measured['client']} {measured['cpu_ms_per_request']:.1f} ms of CPU a request")
    words += [f"{label} {value}" for label, value in measured.get("lines", ())]
    return f"{name if rows is None else f'{name}, {rows:,} rows'}: {', '.join(words)}"


# -- figures and targets --------------------------------------------------------------------------------------


def figures(results: Results) -> list[Figure]:
    """Return every figure that can be told from the results, in the order of the targets."""
    return [
        *_throughput(results),
        *_again(results),
        *_memory(results),
        *_embedding(results),
        *_storage(results),
        *_yardsticks(results),
        *_sqlite(results),
        *_forecast(results),
        *_quota(results),
    ]


def _throughput(results: Results) -> Iterator[Figure]:
    for load in results.by_rows("first load"):
        # The same documents in the same kind of collection; mongod's default compression takes a fifth more disk.
        plain = results.get("limit", load["rows"])
        limit = results.get(_COMPRESSED_LIMIT, load["rows"]) or plain
        if limit is not None:
            ratio = load["cpu_s"]["total"] / limit["cpu_s"]["total"]
            yield Figure(
                f"first load, {load['rows']:,} rows: CPU against the limit",
                f"{ratio:.2f} ({_cpu(load)} / {_cpu(limit)})",
                "at most 2.0; 1.5 is the dream",
                ratio <= 2.0,
            )
        if plain is not None and plain is not limit:
            yield Figure(
                f"first load, {load['rows']:,} rows: against the limit with mongod's default compression",
                f"{load['cpu_s']['total'] / plain['cpu_s']['total']:.2f} ({_cpu(load)} / {_cpu(plain)})",
            )
        if "judging_cpu_s" in load:
            ratio = load["judging_cpu_s"] / load["cpu_s"]["total"]
            yield Figure(
                f"first load, {load['rows']:,} rows: share of judging the data, with the forecast",
                f"{ratio:.1%} ({load['judging_cpu_s']:.2f} CPU s)",
                "under 3 %",
                ratio < 0.03,
            )
        nothing = results.get("orchestration", load["rows"])
        if nothing is not None:
            client = nothing["client_cpu_s"] + nothing["flow_cpu_s"]
            share = (client + load["cpu_s"]["prefect"]) / load["cpu_s"]["total"]
            yield Figure(
                f"first load, {load['rows']:,} rows: share of Prefect, client and server",
                f"{share:.1%} (client {client:.1f} CPU s, server {load['cpu_s']['prefect']:.1f})",
                "at most 10 %",
                share <= 0.10,
            )

    loads = [one for one in results.by_rows("first load") if one["rows"] >= _BASE_ROWS]
    if len(loads) > 1 and loads[-1]["rows"] >= 2 * loads[0]["rows"]:
        few, many = loads[0], loads[-1]
        seconds, rows = many["cpu_s"]["total"] - few["cpu_s"]["total"], many["rows"] - few["rows"]
        yield Figure(
            f"first load: CPU of 1,000 further rows, from {few['rows']:,} to {many['rows']:,}",
            f"{seconds / rows * 1e6:,.0f} ms",
        )


def _again(results: Results) -> Iterator[Figure]:
    for name, words, most in (("unchanged", "nothing changed", 0.25), ("changed", "1 % changed", 0.30)):
        found = [one for one in results.by_rows(name) if results.get("first load", one["rows"])]
        if not found:
            continue
        again = found[-1]
        first = results.get("first load", again["rows"])
        assert first is not None
        ratio = again["cpu_s"]["total"] / first["cpu_s"]["total"]
        yield Figure(
            f"{words}: CPU against the first load",
            f"{ratio:.2f} ({_cpu(again)})",
            f"at most {most:.2f}",
            ratio <= most,
        )
        embedded, written = again["embedder"]["texts"], again["report"]["written"]
        most_written = again.get("rows_changed", 0)
        yield Figure(
            f"{words}: texts embedded, rows written",
            f"{embedded:,}, {written:,}" + (f" of {most_written:,} changed" if most_written else ""),
            "no more than changed",
            embedded <= most_written and written <= most_written,
        )


def _memory(results: Results) -> Iterator[Figure]:
    loads = results.by_rows("first load")
    base = results.get("first load", _BASE_ROWS)
    if not loads:
        return
    largest = loads[-1]
    yield Figure(
        f"memory, {largest['rows']:,} rows: largest peak of a process of ours",
        f"{_peak_mb(largest):.0f} MB",
        "under 600 MB",
        _peak_mb(largest) < 600,
    )
    if base is not None and base is not largest:
        growth = _peak_mb(largest) / _peak_mb(base)
        yield Figure(
            f"memory: that against {_BASE_ROWS:,} rows",
            f"{growth:.2f} ({_peak_mb(base):.0f} MB)",
            "at most 1.15",
            growth <= 1.15,
        )


def _embedding(results: Results) -> Iterator[Figure]:
    client = results.get("embedding")
    if client is not None:
        yield Figure(
            f"Gemini's client ({client['client']}): CPU for 100 texts of 1536 dimensions",
            f"{client['cpu_ms_per_request']:.1f} ms",
            "at most 40 ms",
            client["cpu_ms_per_request"] <= 40,
        )
        others = [one for one in client["costs"] if one["lifelike"] and one["client"] != client["client"]]
        yield Figure("the other clients", ", ".join(f"{one['client']} {one['cpu_ms']:.1f} ms" for one in others))
    for slow in results.by_rows("latency")[-1:]:
        share = _embedding_rate(slow) / _ideal_rate(slow)
        yield Figure(
            f"embedder of {slow['latency_ms']:.0f} ms, {slow['served_at_once']} at once: rate while embedding",
            f"{share:.1%} ({_embedding_rate(slow):,.0f} of {_ideal_rate(slow):,.0f} texts a second)",
            "at least 90 % of the ideal",
            share >= 0.90,
        )


def _storage(results: Results) -> Iterator[Figure]:
    for stored in results.by_rows("storage")[-1:]:
        ratio = _storage_ratio(stored)
        yield Figure(
            "bytes on disk a vector document, against raw vector and content",
            f"{ratio:.3f} ({stored['bytes_a_document']:,.0f} / {RAW_VECTOR_BYTES:,} + {stored['content_bytes']:,.0f}; "
            f"{stored['compression']})",
            "at most 1.15",
            ratio <= 1.15,
        )
    for form, measured in (results.get("forms") or {}).get("forms", {}).items():
        yield Figure(
            f"vectors as {form}: bytes, and the ten nearest that are still found",
            f"{measured['bytes']:,.0f}; {measured['questions']:.1%} of questions', {measured['documents']:.1%} of "
            "documents'",
        )


def _yardsticks(results: Results) -> Iterator[Figure]:
    targets = {("afternoon", "first load"): 0.35, ("afternoon", "unchanged"): 0.30}
    for name in ("afternoon", "strong"):
        for run in ("first load", "unchanged"):
            for script in results.by_rows(f"{name} {run}")[-1:]:
                ours = results.get(run, script["rows"])
                if ours is None:
                    continue
                # The embedder's own CPU is nobody's merit.
                mine = ours["cpu_s"]["total"] - ours["embedder"]["cpu_s"]
                theirs = script["cpu_s"]["total"] - script["embedder_cpu_s"]
                most = targets.get((name, run))
                yield Figure(
                    f"{run}, {script['rows']:,} rows: CPU against the {name} script",
                    f"{mine / theirs:.2f} ({_ms_per_1000(ours):,.0f} / {_ms_per_1000(script):,.0f} ms per 1,000)",
                    f"at most {most:.2f}" if most else "beside: the number to come close to",
                    mine / theirs <= most if most else None,
                )


def _sqlite(results: Results) -> Iterator[Figure]:
    for sqlite in results.by_rows("first load on sqlite")[-1:]:
        postgres = results.get("first load", sqlite["rows"])
        if postgres is not None:
            yield Figure(
                f"Prefect server, {sqlite['rows']:,} rows: on SQLite, on PostgreSQL",
                f"{sqlite['cpu_s']['prefect']:.1f}, {postgres['cpu_s']['prefect']:.1f} CPU s",
            )


def _forecast(results: Results) -> Iterator[Figure]:
    for told in results.by_rows("forecast")[-1:]:
        happened = results.get("first load", told["rows"])
        if happened is not None:
            before, after = told["report"], happened["report"]
            yield Figure(
                f"forecast of {told['rows']:,} rows, and what happened",
                f"{before['tokens']:,} tokens, ${before['cost_usd']:.2f}; "
                f"{after['tokens']:,} tokens, ${after['cost_usd']:.2f}",
            )
            if (sampled := after.get("forecast")) is not None:
                yield Figure(
                    f"forecast at the start of the load, from {sampled['sampled']:,} records, and what happened",
                    f"{sampled['texts']:,} texts, {sampled['tokens']:,} tokens; "
                    f"{after['embedded']:,} texts, {after['tokens']:,} tokens",
                )
            if tiers := before.get("tier_seconds"):
                yield Figure(
                    f"forecast of {told['rows']:,} rows: hours at the quota, at least",
                    ", ".join(f"{tier} {seconds / 3_600:,.1f}" for tier, seconds in tiers.items()),
                )
    for timed in results.by_rows("timed")[-1:]:
        yield Figure(
            f"forecast of time, {timed['rows']:,} rows at a quota, and what happened",
            f"{timed['forecast']['quota_seconds']:.0f} s; {timed['report']['seconds']:.0f} s",
        )


def _quota(results: Results) -> Iterator[Figure]:
    for name, value in (results.get("quota") or {}).get("lines", ()):
        if name != _HOW_ENDED:
            yield Figure(f"quota: {name}", value)


# -- the table ------------------------------------------------------------------------------------------------

_MEASURED = (
    "first load",
    "unchanged",
    "changed",
    "limit",
    _COMPRESSED_LIMIT,
    "afternoon first load",
    "afternoon unchanged",
    "strong first load",
    "strong unchanged",
    "first load on sqlite",
    "latency",
    "forecast",
)


def markdown(results: Results) -> str:
    """Return the table with the machine, the targets and every measurement."""
    machine = results.machine
    lines = [
        "# The last run of `make bench`",
        "",
        f"{machine.get('began', '')[:10]}: {machine.get('cpu')}, {machine.get('cores')} cores in use, "
        f"{machine.get('memory_gb')} GB; {machine.get('system')}; mongod {machine.get('mongod')}, "
        f"Python {machine.get('python')}, Prefect {machine.get('prefect')}, pymongo {machine.get('pymongo')}.",
        "",
        *_table(("figure", "measured", "target", "met"), (figure.row() for figure in figures(results))),
        "",
        "CPU seconds, of our processes, the Prefect server with its databases, and mongod. Each run is a fresh "
        'process: its start is part of it. "The embedder" makes random vectors and stands for Gemini.',
        "",
        *_table(
            ("run", "rows", "ours", "Prefect", "mongod", "total", "ms per 1,000", "of it the embedder", "wall s", "MB"),
            (_measured_row(name, one) for name in _MEASURED for one in results.by_rows(name)),
            numbers=True,
        ),
    ]
    loads = results.by_rows("first load")
    if loads:
        seconds = loads[-1]["stage_wall_s"]
        lines += [
            "",
            f"Wall seconds of the stages of the first load of {loads[-1]['rows']:,} rows, all shards added up, two at "
            "once:",
            "",
            *_table(
                ("stage", "seconds", "task runs"),
                (
                    (stage, f"{value:,.1f}", f"{loads[-1]['task_runs'][stage]:,}")
                    for stage, value in sorted(seconds.items(), key=lambda item: -item[1])
                ),
                numbers=True,
            ),
        ]
    return "\n".join(lines) + "\n"


def _measured_row(name: str, one: Record) -> tuple[str, ...]:
    cpu = one["cpu_s"]
    embedder = one["embedder"]["cpu_s"] if "embedder" in one else one.get("embedder_cpu_s")
    peak = _peak_mb(one) if "peaks_mb" in one else one.get("peak_mb")
    return (
        {"changed": "1 % changed", "forecast": "dry run"}.get(name, name),
        f"{one['rows']:,}",
        *(f"{cpu[part]:,.1f}" if cpu[part] else "" for part in ("ours", "prefect", "mongod", "total")),
        f"{_ms_per_1000(one):,.0f}",
        "" if embedder is None else f"{embedder:,.1f}",
        f"{one['wall_s']:,.1f}",
        "" if peak is None else f"{peak:,.0f}",
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: bool = False) -> list[str]:
    """Return a Markdown table; with ``numbers`` all columns but the first are set to the right."""
    rule = ["---", *(["--:" if numbers else "---"] * (len(head) - 1))]
    return [f"| {' | '.join(cells)} |" for cells in (head, rule, *rows)]


# -- one measurement ------------------------------------------------------------------------------------------


def _cpu(measured: Mapping[str, dict[str, float]]) -> str:
    return f"{measured['cpu_s']['total']:,.1f} s"


def _ms_per_1000(measured: Record) -> float:
    return float(measured["cpu_s"]["total"] / measured["rows"] * 1e6)


def _peak_mb(measured: Record) -> float:
    return max(float(mb) for _, mb in measured["peaks_mb"])


def _embedding_rate(measured: Record) -> float:
    embedder = measured["embedder"]
    return float(embedder["texts"] / embedder["seconds"])


def _ideal_rate(measured: Record) -> float:
    return float(measured["served_at_once"] * 100 / (measured["latency_ms"] / 1000))


def _storage_ratio(measured: Record) -> float:
    return float(measured["bytes_a_document"] / (RAW_VECTOR_BYTES + measured["content_bytes"]))


# -- out ------------------------------------------------------------------------------------------------------


def publish(results: Results) -> None:
    """Print the table and, where the results have a folder, write it there with its plots."""
    text = markdown(results)
    if results.folder is not None:
        plots = draw(results, results.folder)
        for title, path in plots:
            text += f"\n![{title}]({path.name})\n"
        (results.folder / _README).write_text(text, "utf-8")
    print(text, flush=True)  # noqa: T201


def main() -> None:
    """Write the table and the plots of a folder's results again."""
    publish(Results.read(Path(sys.argv[1] if len(sys.argv) > 1 else "bench")))


if __name__ == "__main__":
    main()
