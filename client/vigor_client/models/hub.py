"""Checks whether the hub has a model or dataset of a name: one request, instead of a minute of a library's retries."""

from __future__ import annotations

import os
from pathlib import Path
from time import sleep
from typing import Literal

import httpx

from vigor_client.errors import ModelSourceError

TIMEOUT_SECONDS = 10.0
PAUSE_SECONDS = 1.0
_NOT_FOUND = (401, 403, 404)
"""Statuses that the hub answers for a name that it does not have; 401 if it asks for a token first."""

RepositoryKind = Literal["model", "dataset"]


def require_on_hub(name: str, *, kind: RepositoryKind, hint: str = "") -> None:
    """Return if a copy of the repository is on this machine, or if the hub has it.

    Other answers (a server error, no answer in time) are left to the library that loads the repository.
    ``hint`` is appended to the message: what else could have been meant.

    Raises:
        ModelSourceError: the name is not valid on the hub, the hub does not have it, or the hub cannot be reached.
    """
    # Imported here: only the service and the trainer load from the hub, and their extras install huggingface_hub.
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ModelSourceError(
            f"{name}: there is no such directory, and no {kind} of the hub has such a name"
        ) from error
    if _has_copy(name, kind):
        return
    if constants.HF_HUB_OFFLINE:
        raise ModelSourceError(f"{name}: HF_HUB_OFFLINE is set, and this machine has no copy of such a {kind}{hint}")
    try:
        status = _ask(f"{constants.ENDPOINT}/api/{kind}s/{name}")
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise ModelSourceError(
            f"{name}: there is no such {kind} on this machine, and the hub {constants.ENDPOINT} cannot be reached "
            f"({error}){hint}"
        ) from error
    except httpx.HTTPError:
        return
    if status in _NOT_FOUND:
        raise ModelSourceError(
            f"{name}: there is no such {kind}, here or on the hub {constants.ENDPOINT}; if it is private, set HF_TOKEN"
            f"{hint}"
        )


def _ask(url: str) -> int:
    """Return the status of the answer; retry a failed connection once, as a pod may start before its network."""
    try:
        return _status_of(url)
    except httpx.ConnectError:
        sleep(PAUSE_SECONDS)
        return _status_of(url)


def _status_of(url: str) -> int:
    from huggingface_hub import get_token

    token = get_token()
    headers = {"authorization": f"Bearer {token}"} if token else {}
    return httpx.get(url, headers=headers, timeout=TIMEOUT_SECONDS, follow_redirects=True).status_code


def _has_copy(name: str, kind: RepositoryKind) -> bool:
    from huggingface_hub import constants

    copy = f"{kind}s--{name.replace('/', '--')}"
    return (Path(constants.HF_HUB_CACHE) / copy / "snapshots").is_dir() or (
        kind == "dataset" and (_datasets_cache() / name.replace("/", "___")).is_dir()
    )


def _datasets_cache() -> Path:
    """Return where the datasets library keeps what it has prepared, without importing it."""
    from huggingface_hub import constants

    return Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets")
