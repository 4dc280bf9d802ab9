"""Programs of completions: what passes, what does not, and what hostile ones cannot do."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from vigor_trainer.data.programs import judge_all, passes, program_of, program_tests
from vigor_trainer.data.sandbox import Limits, output_of, passes_statements

ADD = "def add(a, b):\n    return a + b\n"
ECHO = "for _ in range(int(input())):\n    print(sum(map(int, input().split())))\n"
QUICK = Limits(wall_seconds=20.0, cpu_seconds=1, memory_bytes=2**28, output_bytes=2**16)


def fenced(program: str) -> str:
    return f"Here it is:\n\n```python\n{program}```\n"


def test_the_last_closed_block_is_the_program() -> None:
    assert program_of(f"{fenced('first = 1' + chr(10))}{fenced(ADD)}```python\nnot closed") == ADD
    assert program_of("print(1)") is None


def test_statements_are_run_behind_the_program() -> None:
    tests = program_tests(["assert add(1, 2) == 3", "assert add(-1, 1) == 0"])
    assert passes(fenced(ADD), tests)
    assert not passes(fenced(ADD.replace("+", "-")), tests)
    assert not passes(fenced("def add(a, b:"), tests)
    assert not passes(ADD, tests)


def test_input_and_output_are_compared_line_by_line() -> None:
    tests = program_tests([{"input": "2\n1 2\n3 4\n", "output": "3\n7"}, {"input": "1\n5 5\n", "output": "10\n"}])
    assert passes(fenced(ECHO), tests)
    assert not passes(fenced("print(3)\nprint(7)\n"), tests)


@pytest.mark.parametrize("value", [[], [""], ["a", {"input": "", "output": ""}], [{"input": "1"}], 3, None])
def test_tests_that_are_not_understood_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"must be Python statements|has 0 tests"):
        program_tests(value)


def test_each_completion_is_judged_by_its_tests_or_its_answer() -> None:
    tests = json.dumps(["assert add(1, 1) == 2"])
    judged = judge_all([fenced(ADD), "no program", "It is 7"], [None, None, "7"], [tests, tests, None])
    assert [one.is_correct for one in judged] == [True, False, True]


@pytest.mark.parametrize("end", ["import sys; sys.exit(0)", "import os; os._exit(0)", "exit(0)", "raise SystemExit"])
def test_a_program_that_ends_before_its_tests_has_not_passed(end: str) -> None:
    assert not passes_statements(end, "assert True", QUICK)


def test_what_a_program_prints_does_not_count_as_passing() -> None:
    assert passes_statements("print('passed')", "assert True", QUICK)
    assert not passes_statements("print('passed')", "assert False", QUICK)


@pytest.mark.parametrize(
    "program",
    [
        "while True: pass",
        "data = bytearray(2**29)",
        "while True: print('x' * 1000)",
        "import time; time.sleep(100)",
    ],
    ids=["loop", "memory", "output", "sleep"],
)
def test_a_program_that_uses_too_much_is_ended(program: str) -> None:
    limits = Limits(wall_seconds=2.0, cpu_seconds=1, memory_bytes=2**28, output_bytes=2**16)
    assert output_of(program, "", limits) is None
    assert not passes_statements(program, "assert True", limits)


@pytest.mark.parametrize(
    "attempt",
    [
        "import os; os.fork()",
        "import os\nwhile True: os.fork()",
        "import subprocess; subprocess.run(['true'])",
        "import os; os.system('true')",
        "import os; os.execv('/bin/true', ['true'])",
        "import _posixsubprocess",
        "import ctypes; ctypes.CDLL(None).fork()",
        "import socket; socket.socket()",
        "open('written', 'w')",
        "import os; os.open('written', os.O_CREAT | os.O_WRONLY)",
        "import os; os.mkdir('made')",
        "import resource; resource.setrlimit(resource.RLIMIT_CPU, (100, 100))",
        "import os; os.kill(os.getppid(), 9)",
        "open('/etc/passwd').read()",
        "import os; open(f'/proc/{os.getppid()}/environ', 'rb').read()",
    ],
)
def test_a_program_may_not_reach_beyond_itself(attempt: str) -> None:
    assert output_of(attempt, "", QUICK) is None


def test_a_file_of_the_users_is_neither_read_nor_removed(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("s3cret")
    for attempt in (f"print(open({str(kept)!r}).read())", f"import os; os.remove({str(kept)!r})"):
        assert output_of(attempt, "", QUICK) is None
    assert kept.read_text() == "s3cret"


def test_the_environment_is_not_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIGOR_API_KEY", "s3cret")
    output = output_of("import os; print(sorted(os.environ))", "", QUICK)
    assert output is not None
    assert b"VIGOR_API_KEY" not in output
    assert "VIGOR_API_KEY" in os.environ


def test_libraries_can_be_used() -> None:
    assert output_of("import heapq, itertools, json, math, random, re\nprint(math.comb(5, 2))", "", QUICK) == b"10\n"
    assert output_of("import numpy\nprint(numpy.arange(5).sum())", "", Limits()) == b"10\n"
