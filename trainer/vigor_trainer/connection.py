"""The flags that name the service; connects to it, and waits until it is ready."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from vigor_client import NetworkSettingError, VigorClient
from vigor_client.transport.key_file import read_key
from vigor_trainer.errors import UnsupportedSettingError
from vigor_trainer.flags import refuse_not_above_zero


@dataclass(kw_only=True)
class ConnectionArguments:
    """Connection to the service.

    Raises:
        ValueError: a number is out of its range; names the flag.
    """

    reward_url: str = field(metadata={"help": "URL of vigor-service, for example http://127.0.0.1:8000"})
    api_key_file: str | None = field(
        default=None,
        metadata={"help": "File that contains the service's API key on one line; default: the key in VIGOR_API_KEY"},
    )
    score_timeout_seconds: float = field(
        default=600.0,
        metadata={"help": "Maximum time without any data from the service while it scores a request, in seconds"},
    )
    ready_timeout_seconds: float = field(
        default=300.0, metadata={"help": "Maximum time to wait at the start until the service is ready, in seconds"}
    )

    def __post_init__(self) -> None:
        refuse_not_above_zero(self, "score_timeout_seconds", "ready_timeout_seconds")


@contextmanager
def connected(settings: ConnectionArguments) -> Generator[VigorClient]:
    """Yield a client of a service that is ready.

    Raises:
        UnsupportedSettingError: a flag, or the environment's network settings, cannot be used.
        NotReadyError: the service was not ready in time.
    """
    client = open_client(
        settings.reward_url, api_key_file=settings.api_key_file, timeout_seconds=settings.score_timeout_seconds
    )
    with client:
        print(f"waiting for the service at {settings.reward_url}", flush=True)
        client.wait_until_ready(settings.ready_timeout_seconds)
        yield client


def open_client(reward_url: str, *, api_key_file: str | None, timeout_seconds: float = 600.0) -> VigorClient:
    """Return a client of the service at a URL, with the key of a file or else of the environment. Sends nothing.

    Raises:
        UnsupportedSettingError: a flag, or the environment's network settings, cannot be used.
    """
    key = None if api_key_file is None else _key_of(api_key_file)  # the client takes the environment's key
    try:
        return VigorClient(reward_url, api_key=key, timeout_seconds=timeout_seconds)
    except NetworkSettingError as error:
        raise UnsupportedSettingError(str(error)) from error
    except ValueError as error:
        raise UnsupportedSettingError(
            f"--reward_url, --api_key_file (VIGOR_API_KEY), --score_timeout_seconds: {error}"
        ) from error


def _key_of(file: str) -> str:
    try:
        return read_key(Path(file))
    except OSError as error:
        raise UnsupportedSettingError(f"--api_key_file: {file}: {error.strerror}") from error
