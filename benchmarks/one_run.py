"""One run of ``cryptique-rag migrate`` in a process of its own: ``python -m benchmarks.one_run RESULT.json``.

The environment names the servers, as for the command. The figures of the run are written to the file.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path


def main() -> None:
    """Migrate once and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("result", type=Path)
    parser.add_argument("--latency-ms", type=float, default=0.0, help="of each request to the embedder")
    parser.add_argument("--at-once", type=int, help="requests that the embedder works at, at once")
    parser.add_argument("--parameters", type=json.loads, default={}, help="of the flow, as JSON; else its defaults")
    chosen = parser.parse_args()

    from benchmarks.embedders import Requests, instead_of_gemini, make_call
    from benchmarks.judging import counting_judging
    from benchmarks.processes import peak_mb
    from deployments.console import quiet_prefect, services
    from deployments.runs import run_migrate

    requests = Requests()
    call = make_call(requests, latency_s=chosen.latency_ms / 1000, at_once=chosen.at_once)
    with instead_of_gemini(call), quiet_prefect(), services(), counting_judging() as judging:
        ready_s, began_s = time.process_time(), time.monotonic()
        report = run_migrate(chosen.parameters)
        figures = {
            "report": report,
            "embedder": requests.to_record(),
            "starting_cpu_s": round(ready_s, 3),
            "run_cpu_s": round(time.process_time() - ready_s, 3),
            "judging_cpu_s": round(judging.cpu_s, 3),
            "run_wall_s": round(time.monotonic() - began_s, 3),
            "peak_mb": round(peak_mb(os.getpid()), 1),
        }
    chosen.result.write_text(json.dumps(figures, default=str))


if __name__ == "__main__":
    main()
