"""``python -m tests.chaos``: the long chaos run, from the command line."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from tests.chaos.proof import ChaosError
from tests.chaos.run import Plan, wreak_havoc


def main() -> int:
    """Run it; return 1 if anything was as it must not be."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--shard-rows", type=int, default=500)
    parser.add_argument("--home", type=Path, help="folder for servers, logs and files; else a new one that goes away")
    parser.add_argument("--out", type=Path, help="file for the outcome as JSON, with every kill")
    chosen = parser.parse_args()
    plan = Plan(seed=chosen.seed, kills=chosen.kills, rows=chosen.rows, shard_rows=chosen.shard_rows)
    with tempfile.TemporaryDirectory(prefix="cryptique-chaos-") as folder:
        try:
            outcome = wreak_havoc(plan, chosen.home or Path(folder), say=_say)
        except ChaosError as error:
            _say(f"seed {plan.seed} FAILED: {error}")
            return 1
    _say(str(outcome))
    if chosen.out is not None:
        chosen.out.write_text(json.dumps(outcome.to_record(), indent=1) + "\n")
    return 0


def _say(words: str) -> None:
    sys.stdout.write(f"{words}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
