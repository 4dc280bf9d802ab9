"""The running service against its own description: requests that schemathesis makes up, valid and invalid.

    python -m tests.support.contract --schemathesis .venv-contract/bin/schemathesis

`make contract` installs schemathesis, in an environment of its own, and runs this. Exit code: schemathesis' own.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.fuzz.target import KEY, everything
from tests.support.service_process import service_process

MAX_SECONDS = 900
_CONFIGURATION = """
[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", "504"]
"""
_OPTIONS = (
    *("--max-examples", "30", "--seed", "1", "--no-color"),
    # Much is refused that a schema cannot say: an id beyond the vocabulary, a file that was not announced.
    *("--exclude-checks", "positive_data_acceptance"),
)


def main() -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.contract")
    parser.add_argument("--schemathesis", type=Path, required=True, metavar="PROGRAM")
    program: Path = parser.parse_args().schemathesis
    with tempfile.TemporaryDirectory() as directory:
        return _check(program.absolute(), Path(directory))


def _check(schemathesis: Path, directory: Path) -> int:
    with service_process(directory, *everything(directory)) as service:
        (directory / "schemathesis.toml").write_text(_CONFIGURATION)
        url = f"{str(service.http.base_url).rstrip('/')}/openapi.json"
        command = [schemathesis, "run", url, *_OPTIONS, "--header", f"Authorization: Bearer {KEY}"]
        code = subprocess.run(command, cwd=directory, timeout=MAX_SECONDS, check=False).returncode
        if service.http.get("/healthz").status_code != 200:
            sys.exit("the service did not survive it")
    return code


if __name__ == "__main__":
    sys.exit(main())
