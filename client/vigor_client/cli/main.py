"""``vigor``: score a JSONL file, show what a service holds, wait until it is ready, push a checkpoint, scale engines.

Answers go to stdout, errors as one line to stderr. Exit codes: 0 done, 1 failed, 2 wrong usage, 3 done, but the service
refused some groups, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from time import monotonic
from typing import TextIO

from pydantic import ValidationError

from vigor_client.cli.jsonl_input import open_input
from vigor_client.cli.jsonl_lines import check_lines
from vigor_client.cli.jsonl_scoring import score_groups
from vigor_client.cli.options import build_parser
from vigor_client.cli.progress import ProgressLine, PushProgress
from vigor_client.cli.readiness import ReadinessWait
from vigor_client.cli.results_file import Finished, RefusedLines, open_results, partial_of, resume, write_result
from vigor_client.cli.scaling import wait_until_up
from vigor_client.client import VigorClient
from vigor_client.errors import InputError, UnauthenticatedError, VigorError, WeightDigestMismatchError
from vigor_client.schemas.faults import fault_sentences
from vigor_client.schemas.scoring import Group, ScoreResponse, ScoringOptions
from vigor_client.schemas.weights import UpdateProgress
from vigor_client.transport.key_file import read_key
from vigor_client.transport.retry import DEFAULT_MAX_RETRIES
from vigor_client.transport.score_stream import OnGroup
from vigor_client.weight_format.checkpoint_files import checkpoint_tensors
from vigor_client.weight_format.digest import new_hasher

QUEUE_SERIES = {"vigor_queued_requests": "requests", "vigor_queued_tokens": "tokens"}
REFUSED = 3
INTERRUPTED = 130
_PREFIX = "vigor:"
_OUTPUT_CLOSED = 141  # what a shell reports for a process that SIGPIPE ended


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show is not an error
    arguments = build_parser(_COMMANDS).parse_args(argv)
    try:
        code = arguments.run(arguments)
        _flush_output()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _drop_output()
        return _OUTPUT_CLOSED
    except UnauthenticatedError as error:
        return _fail(f"{error}; give the key by --api-key-file or VIGOR_API_KEY")
    except VigorError as error:
        return _fail(str(error).replace("\n  ", "; "))
    except OSError as error:
        _drop_output()
        return _fail(f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error))
    return code


def _flush_output() -> None:
    """Flush standard output now, while an error can still be reported."""
    if sys.stdout is not None:  # pyright: ignore[reportUnnecessaryComparison] - None where a process has none
        sys.stdout.flush()


def _drop_output() -> None:
    """Redirect standard output to the null device if it is closed, so that Python's flush at exit reports no error."""
    try:
        _flush_output()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def score(arguments: argparse.Namespace) -> int:
    """``vigor score``."""
    out_path: Path | None = arguments.out
    _refuse_options(arguments)
    with open_input(arguments.input) as source:
        num_groups = check_lines(source)
        finished = resume(out_path, source) if out_path and arguments.resume else Finished()
        refused = RefusedLines(source.name, finished.num_refused)
        progress = ProgressLine(_terminal(arguments), num_groups, done=finished.num_groups)
        with _client(arguments) as client, open_results(out_path, goes_on=arguments.resume) as out, closing(progress):
            for line, result in score_groups(
                source,
                partial(_score_request, client, arguments, finished),
                groups_per_request=arguments.groups_per_request,
                num_groups=num_groups,
                num_finished=finished.num_groups,
                on_group=progress.advance,
            ):
                write_result(out, result)
                refused.note(line, result)
    if not refused.num_groups:
        return 0
    return _fail(f"{refused.num_groups} of {num_groups} groups have an error and no scores: {refused}", REFUSED)


def _refuse_options(arguments: argparse.Namespace) -> None:
    """Refuse options that exclude each other, before anything is read."""
    if arguments.resume and arguments.out is None:
        arguments.refuse("--resume continues the file of --out: give both")
    try:
        ScoringOptions(compute=arguments.compute, reward=arguments.reward)
    except ValidationError as error:
        arguments.refuse("; ".join(fault_sentences(error, ScoringOptions)))


def _score_request(
    client: VigorClient, arguments: argparse.Namespace, finished: Finished, groups: list[Group], on_group: OnGroup
) -> ScoreResponse:
    _readiness(client, arguments).while_loading(arguments.ready_timeout_seconds)
    try:
        return client.score(
            groups,
            weight_version=arguments.weight_version,
            weight_digest=finished.weight_digest,
            wait_seconds=arguments.wait_seconds,
            compute=arguments.compute,
            reward=arguments.reward,
            ties=arguments.ties,
            truncated=arguments.truncated,
            return_token_ids=arguments.return_token_ids,
            on_group=on_group,
        )
    except WeightDigestMismatchError as error:
        raise InputError(
            f"{partial_of(arguments.out)}: the results come from the weights {error.want}, but the service has "
            f"{error.have}; publish the former again, or start without --resume"
        ) from error


def status(arguments: argparse.Namespace) -> int:
    """``vigor status``: exit code 0 if the service is ready."""
    with _client(arguments, max_retries=0) as client:
        ready = client.ready()
        if ready.reason == "loading":
            print(f"service   {arguments.url}\nstate     not ready: {ready.detail or ready.reason}")
            return 1
        model, weights, metrics = client.model(), client.weights(), client.metrics()
    queued = [f"{metrics[series]:.0f} {unit}" for series, unit in QUEUE_SERIES.items() if series in metrics]
    rows = {
        "service": arguments.url,
        "state": "ready" if ready.status == "ok" else f"not ready: {ready.reason}",
        "model": f"{model.model} ({model.architecture}, {model.dtype} on {model.device})",
        "measured": f"{model.num_measured_parameters:,} of {model.num_parameters:,} parameters, {model.layout}",
        "norms": "exact" if model.norm_probes is None else f"estimated with {model.norm_probes} random probes",
        "weights": f"version {weights.weight_version}, {weights.state}, since {weights.published_at}",
        "digest": weights.weight_digest,
        "update": "none" if weights.update is None else _describe_update(weights.update),
        "queue": ", ".join(queued) or "not reported",
    }
    print("\n".join(f"{name:<9} {value}" for name, value in rows.items()))
    return 0 if ready.status == "ok" else 1


def _describe_update(update: UpdateProgress) -> str:
    received = f"{update.received_bytes / 1e6:,.1f} of {update.num_bytes / 1e6:,.1f} MB received"
    return f"version {update.weight_version}, {received if update.state == 'receiving' else update.state}"


def wait(arguments: argparse.Namespace) -> int:
    """``vigor wait``."""
    with _client(arguments) as client:
        seconds = _readiness(client, arguments).until_ready(arguments.ready_timeout_seconds)
    print(f"ready     {arguments.url}, after {seconds:.0f} s")
    return 0


def push(arguments: argparse.Namespace) -> int:
    """``vigor push``."""
    with _client(arguments) as client:
        tensors = checkpoint_tensors(arguments.directory)
        new_hasher()  # reports a missing library before waiting for a service
        _readiness(client, arguments).while_loading(arguments.ready_timeout_seconds)
        started_seconds = monotonic()
        with closing(_push_progress(arguments)) as progress:
            published = client.publish_weights(
                tensors, weight_version=arguments.weight_version, on_progress=progress.show
            )
    weights = f"version {published.weight_version}, {published.weight_digest}"
    if not published.sent_bytes:
        print(f"nothing sent: the service has these weights already ({weights})")
        return 0
    print(
        f"published {weights}: {published.num_changed_tensors} tensors changed, "
        f"{published.sent_bytes / 1e6:,.1f} MB in {monotonic() - started_seconds:.1f} s, "
        f"sent at {published.sent_bytes / 1e6 / max(published.send_seconds, 1e-9):,.1f} MB/s"
    )
    return 0


def scale(arguments: argparse.Namespace) -> int:
    """``vigor scale``."""
    with _client(arguments) as client:
        client.scale(arguments.num_engines)
        seconds = wait_until_up(client.engines, _announce, arguments.ready_timeout_seconds)
    print(f"engines   {arguments.num_engines} up, after {seconds:.0f} s")
    return 0


_COMMANDS = {"score": score, "status": status, "wait": wait, "push": push, "scale": scale}


def _fail(reason: str, code: int = 1) -> int:
    print(_PREFIX, reason, file=sys.stderr)
    return code


def _client(arguments: argparse.Namespace, *, max_retries: int = DEFAULT_MAX_RETRIES) -> VigorClient:
    key_file: Path | None = arguments.api_key_file
    try:
        key = read_key(key_file) if key_file else None
        return VigorClient(
            arguments.url, api_key=key or None, timeout_seconds=arguments.timeout_seconds, max_retries=max_retries
        )
    except ValueError as error:
        raise VigorError(str(error)) from error


def _readiness(client: VigorClient, arguments: argparse.Namespace) -> ReadinessWait:
    return ReadinessWait(client.ready, _announce, url=arguments.url)


def _announce(line: str) -> None:
    print(_PREFIX, line, file=sys.stderr)


def _push_progress(arguments: argparse.Namespace) -> PushProgress:
    return PushProgress(None if arguments.quiet else sys.stderr, is_terminal=_is_terminal(sys.stderr), prefix=_PREFIX)


def _terminal(arguments: argparse.Namespace) -> TextIO | None:
    """Return the terminal for progress; None if there is none, or if it shows the results themselves."""
    shows_results = arguments.out is None and _is_terminal(sys.stdout)
    return sys.stderr if _is_terminal(sys.stderr) and not shows_results and not arguments.quiet else None


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()


if __name__ == "__main__":
    sys.exit(main())
