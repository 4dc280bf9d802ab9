"""The process around the application: one socket, uvicorn, signals, and the end of the process."""

from __future__ import annotations

import errno
import gc
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from functools import partial
from math import ceil
from queue import SimpleQueue
from time import monotonic, sleep
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

import uvicorn

from vigor_service.app import create_app
from vigor_service.errors import StartupError
from vigor_service.http.connection_limits import (
    DEFAULT_LIMITS,
    ConnectionLimits,
    bounded_protocol,
    raise_descriptor_limit,
)
from vigor_service.http.problems import refusal_writer
from vigor_service.http.protocol import HeadLimits, Hooks
from vigor_service.observability.loading_progress import LoadingProgress
from vigor_service.observability.metrics import Metrics
from vigor_service.runtime import Loaded, Runtime
from vigor_service.settings import Settings
from vigor_service.threads.garbage import OldGarbage

if TYPE_CHECKING:
    from vigor_service.observability.otel import Tracing

ENDING_SECONDS = 5.0
"""Maximum time after the drain time, in seconds; then the process ends, even if threads still run."""
KEEP_ALIVE_SECONDS = 65  # longer than the idle limit of common proxies, so that they close first

QUIET_SECONDS = 10.0
"""Minimum time between two log lines about connections that were closed because there were too many."""

_logger = logging.getLogger(__name__)


def serve(
    settings: Settings,
    load_model: Callable[[], Loaded],
    *,
    limits: ConnectionLimits = DEFAULT_LIMITS,
    tracing: Tracing | None = None,
    progress: LoadingProgress | None = None,
) -> NoReturn:
    """Serve until SIGTERM or SIGINT, drain, and end the process.

    ``load_model`` reports its phases to ``progress``.
    The exit code is 0 after a signal. It is 1, with one line on standard error, if the model cannot be loaded.
    """
    listener = _listen(settings.host, settings.port)
    app = create_app(
        settings,
        partial(_load_for_good, load_model),
        on_load_failure=lambda: server.stop(),
        tracing=tracing,
        progress=progress,
    )
    runtime: Runtime = app.state.runtime
    num_descriptors = raise_descriptor_limit()
    limits = limits.within(num_descriptors)
    _logger.info("descriptors", extra={"limit": num_descriptors, "max_connections": limits.max_connections})
    _logger.info("access", extra=app.state.keys.describe())
    config = uvicorn.Config(
        app,
        http=bounded_protocol(
            limits,
            Hooks(refusal_writer(runtime.metrics), TooManyConnections(runtime.metrics).note),
            head_limits=HeadLimits(settings.max_url_bytes, settings.max_header_bytes),
        ),
        loop="uvloop",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=ceil(settings.drain_seconds),
    )
    server = _Server(config, runtime)
    server.end_at_last(settings.drain_seconds + ENDING_SECONDS)
    # Uvicorn installs its own handlers while it runs. When it has ended, it raises the signal that ended it again.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: server.stop())
    garbage = OldGarbage(lambda: app.state.bodies.held_bytes)
    garbage.start()
    server.run(sockets=[listener])
    garbage.stop()
    _end(runtime)


def _load_for_good(load_model: Callable[[], Loaded]) -> Loaded:
    """Load the model, and exclude its objects from garbage collections, which would block the event loop."""
    model = load_model()
    gc.collect()
    gc.freeze()
    return model


class TooManyConnections:
    """Counts connections that are closed because there are too many, and logs them every ``QUIET_SECONDS``."""

    def __init__(self, metrics: Metrics, *, clock: Callable[[], float] = monotonic) -> None:
        self._metrics = metrics
        self._clock = clock
        self._quiet_until = 0.0

    def note(self) -> None:
        """Count one closed connection."""
        self._metrics.closed_connections.inc()
        if self._clock() >= self._quiet_until:
            self._quiet_until = self._clock() + QUIET_SECONDS
            _logger.warning("too_many_connections; raise the limit of open files (ulimit -n) or send fewer at once")


class _Server(uvicorn.Server):
    """Drains the service as soon as a signal arrives, not only after the last request."""

    def __init__(self, config: uvicorn.Config, runtime: Runtime) -> None:
        super().__init__(config)
        self._runtime = runtime
        # A signal handler may call its put() at any moment, unlike Event.set() or Thread.start(), which may deadlock.
        self._stopped = SimpleQueue[None]()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._runtime.drain_from_signal()
        self._stopped.put(None)
        super().handle_exit(sig, frame)

    def stop(self) -> None:
        self._stopped.put(None)
        self.should_exit = True

    def end_at_last(self, seconds: float) -> None:
        """End the process this many seconds after it was told to stop, even if it waits for a disk or a hung thread."""
        threading.Thread(target=self._end_after, args=(seconds,), name="last-resort", daemon=True).start()

    def _end_after(self, seconds: float) -> None:
        self._stopped.get()
        sleep(seconds)
        _abort(int(self._runtime.load_error is not None))


def _listen(host: str, port: int) -> socket.socket:
    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        print(f"vigor-service: cannot listen on {host} port {port}: {_reason(error)}", file=sys.stderr)
        sys.exit(1)
    url = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
    _logger.info("listening", extra={"url": url})
    return listener


def _reason(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "another process listens there; end it, or choose another port with --port (VIGOR_PORT)"
    return error.strerror or str(error)


def _end(runtime: Runtime) -> NoReturn:
    code = _report(runtime.load_error)
    if not runtime.is_idle:
        # A batch or a disk that does not answer cannot be interrupted, and the interpreter would wait for its thread.
        _abort(code)
    gc.unfreeze()  # else libraries would warn of objects left at exit
    sys.exit(code)


def _abort(code: int = 0) -> NoReturn:
    _logger.warning("ended_while_computing")
    logging.shutdown()
    sys.stderr.flush()
    os._exit(code)


def _report(error: BaseException | None) -> int:
    if error is None:
        return 0
    if isinstance(error, StartupError):
        print("vigor-service:", " ".join(str(error).split()), file=sys.stderr)
    else:
        _logger.critical("the model could not be loaded because of a bug", exc_info=error)
    return 1
