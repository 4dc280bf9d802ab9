"""``python -m tests.fuzz --seconds 600``: exit code 1, and the least request that fails, where a promise is broken."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.fuzz.campaign import Tally, attack, table
from tests.fuzz.target import KEY, fuzzed_service


def main() -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument(
        "--seed", type=int, default=0, help="what hypothesis begins with; every 200 requests the next one"
    )
    options = parser.parse_args()
    tally = Tally()
    with tempfile.TemporaryDirectory() as directory, fuzzed_service(Path(directory)) as service:
        try:
            attack(service, KEY, seconds=options.seconds, first_seed=options.seed, tally=tally)
        finally:
            print(table(tally))
            print("\n".join(_errors(service.log)), file=sys.stderr)
    return 0


def _errors(log: Path) -> list[str]:
    lines = log.read_text(errors="replace").splitlines()
    return [line for line in lines if "Traceback" in line][-20:]


if __name__ == "__main__":
    sys.exit(main())
