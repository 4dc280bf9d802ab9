import os
import socket
import subprocess
import sys
from importlib.metadata import version

import pytest

from tests.support.preloaded_process import preloaded
from vigor_service.settings import Settings
from vigor_service.unknown_names import unknown_variables


def _run(*arguments: str, setup: str = "", own: bool = False, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the console script's function, in an interpreter of its ``own`` where what it imports is of interest.

    It tells at the end whether torch was imported.
    """
    program = (
        f"import sys; {setup}\nfrom vigor_service.__main__ import main\n"
        "try:\n    main()\nfinally:\n    print('torch' in sys.modules)"
    )
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**(os.environ if own else preloaded()), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_help_names_every_setting_and_imports_no_torch() -> None:
    answer = _run("--help", own=True, COLUMNS="200")
    assert answer.returncode == 0
    assert answer.stdout.endswith("False\n")
    for name in Settings.model_fields:
        assert f"--{name.replace('_', '-')} " in answer.stdout.replace(",", " ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prot", "1"], "vigor-service: unknown option --prot; did you mean --port? (see vigor-service --help)\n"),
        (["--no-trust-remote-cod"], "unknown option --no-trust-remote-cod; did you mean --no-trust-remote-code?"),
        (["--xyzzy=1"], "unknown option --xyzzy (see"),
        (["model"], "unrecognized arguments: model"),
        (["--port", "70000"], "--port (VIGOR_PORT) is '70000'; give 65535 or less\n"),
        (["--port", "http"], "vigor-service: --port (VIGOR_PORT) is 'http'; give a whole number\n"),
        (
            ["--max-batch-tokens", "many"],
            "--max-batch-tokens (VIGOR_MAX_BATCH_TOKENS): 'many' is neither auto nor a whole number above 0",
        ),
        (["--otlp-endpoint", "collector:4317"], "--otlp-endpoint (VIGOR_OTLP_ENDPOINT): not an HTTP URL"),
        (["--host", "0.0.0.0"], "--allow-anonymous"),  # noqa: S104 - what is refused
    ],
)
def test_what_is_not_understood_is_refused_by_name(arguments: list[str], message: str) -> None:
    answer = _run(*arguments)
    assert answer.returncode == 2
    assert message in answer.stderr
    assert "Traceback" not in answer.stderr


def test_the_version_is_told_without_torch() -> None:
    answer = _run("--version", own=True)
    assert answer.stdout == f"vigor-service {version('vigor-rl')}\nFalse\n"


def test_variables_that_are_no_settings_are_named_with_the_nearest_one() -> None:
    known = [f"VIGOR_{name.upper()}" for name in Settings.model_fields]
    of_others = ["VIGOR_URL", "VIGOR_API_KEY", "VIGOR_CACHE_DIR", "VIGOR_SERVICE_HOST", "VIGOR_PORT_8000_TCP", "PATH"]
    assert unknown_variables([*known, *of_others, "VIGOR_MODLE", "VIGOR_XYZZY"]) == [
        "VIGOR_MODLE is not a setting; did you mean VIGOR_MODEL?",
        "VIGOR_XYZZY is not a setting",
    ]


def test_a_variable_that_is_no_setting_is_a_warning_in_the_log() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        answer = _run("--port", str(taken.getsockname()[1]), VIGOR_MODLE="x")
    assert "WARNING vigor_service VIGOR_MODLE is not a setting; did you mean VIGOR_MODEL?" in answer.stderr


def test_a_wrong_environment_variable_is_refused_by_name() -> None:
    answer = _run(VIGOR_PORT="tcp://10.0.0.1:80")
    assert answer.returncode == 2
    assert "VIGOR_PORT" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_a_missing_extra_is_named_with_its_cure() -> None:
    answer = _run("--help", setup="sys.modules['torch'] = None")
    assert answer.returncode == 2
    assert answer.stderr == "vigor-service: torch not installed: pip install '.[service]' in a checkout of vigor-rl\n"


@pytest.mark.parametrize(
    ("arguments", "environment", "asked"),
    [
        (["--otlp-endpoint", "http://127.0.0.1:4318"], {}, "--otlp-endpoint (VIGOR_OTLP_ENDPOINT)"),
        ([], {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}, "OTEL_EXPORTER_OTLP_ENDPOINT"),
    ],
)
def test_a_collector_without_the_extra_is_refused_with_its_cure(
    arguments: list[str], environment: dict[str, str], asked: str
) -> None:
    without = "sys.modules['opentelemetry.sdk.trace'] = None"
    answer = _run("--port", "0", *arguments, setup=without, own=False, **environment)
    assert answer.returncode == 2
    assert answer.stderr == (
        f"vigor-service: {asked}: opentelemetry.sdk.trace is not installed: "
        "pip install '.[service,otel]' in a checkout of vigor-rl\n"
    )


def test_a_port_that_is_taken_ends_with_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        answer = _run("--port", str(port), own=True)
    assert answer.returncode == 1
    assert answer.stderr.startswith(f"vigor-service: cannot listen on 127.0.0.1 port {port}: another process listens")
    assert answer.stderr.count("\n") == 1
    assert answer.stdout == "False\n"


def test_a_key_file_that_cannot_be_used_is_named_and_a_key_is_never_shown() -> None:
    answer = _run("--score-key", "s3cret", "--score-key-file", "/nowhere", VIGOR_PUBLISH_KEY="another s3cret")
    assert answer.returncode == 2
    assert "--score-key (VIGOR_SCORE_KEY) and --score-key-file (VIGOR_SCORE_KEY_FILE): give only one" in answer.stderr
    assert "s3cret" not in answer.stderr
    unreadable = _run("--publish-key-file", "/nowhere")
    assert (unreadable.returncode, unreadable.stderr) == (
        2,
        "vigor-service: --publish-key-file (VIGOR_PUBLISH_KEY_FILE): /nowhere cannot be read: "
        "No such file or directory\n",
    )
