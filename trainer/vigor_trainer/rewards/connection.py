"""Connects to the service that a command line names, and waits until it is ready."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from vigor_client import NetworkSettingError, VigorClient
from vigor_client.transport.key_file import read_key
from vigor_trainer.errors import UnsupportedSettingError


class ConnectionSettings(Protocol):
    """The flags that say where the service is."""

    reward_url: str
    api_key_file: str | None
    score_timeout_seconds: float
    ready_timeout_seconds: float


@contextmanager
def connected(settings: ConnectionSettings) -> Generator[VigorClient]:
    """Yield a client of a service that is ready.

    Raises:
        UnsupportedSettingError: a flag, or the environment's network settings, cannot be used.
        NotReadyError: the service was not ready in time.
    """
    try:
        timeout_seconds = settings.score_timeout_seconds
        client = VigorClient(settings.reward_url, api_key=_api_key(settings), timeout_seconds=timeout_seconds)
    except NetworkSettingError as error:
        raise UnsupportedSettingError(str(error)) from error
    except ValueError as error:
        raise UnsupportedSettingError(
            f"--reward_url, --api_key_file (VIGOR_API_KEY), --score_timeout_seconds: {error}"
        ) from error
    with client:
        print(f"waiting for the service at {settings.reward_url}", flush=True)
        client.wait_until_ready(settings.ready_timeout_seconds)
        yield client


def _api_key(settings: ConnectionSettings) -> str | None:
    if settings.api_key_file is None:
        return os.environ.get("VIGOR_API_KEY") or None
    try:
        return read_key(Path(settings.api_key_file))
    except OSError as error:
        raise UnsupportedSettingError(f"--api_key_file: {settings.api_key_file}: {error.strerror}") from error
