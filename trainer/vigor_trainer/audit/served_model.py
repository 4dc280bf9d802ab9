"""Makes sure that the service holds the model whose completions it scores."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download  # pyright: ignore[reportUnknownVariableType] - partly untyped

from vigor_client import PublishResult, TensorsRefusedError, VigorClient, checkpoint_tensors, digest_of_tensors
from vigor_trainer.building import building
from vigor_trainer.errors import InvalidModelError, UnsupportedSettingError

_CHECKPOINT_FILES = ["*.safetensors", "*.json"]


def hold_model(client: VigorClient, name: str, *, publish: bool) -> PublishResult:
    """Return version and digest of the served weights, once they are the model's; send them first with ``publish``.

    Raises:
        UnsupportedSettingError: the service holds another model, or, without ``publish``, other weights of it.
        InvalidModelError: no checkpoint has this name.
        VigorError: the client's errors.
    """
    tensors = checkpoint_tensors(_checkpoint_directory(name))
    try:
        digest = digest_of_tensors(tensors, client.tensors())
    except TensorsRefusedError as error:
        raise UnsupportedSettingError(
            f"--model {name} is another model than the service's, {client.model().model}: start vigor-service with "
            f"--model {name} ({error})"
        ) from error
    held = client.weights()
    if held.weight_digest == digest:
        return PublishResult(held.weight_version, digest, sent_bytes=0, num_changed_tensors=0)
    if not publish:
        raise UnsupportedSettingError(
            f"--model {name} has the weights {digest}, the service has {held.weight_digest} (version "
            f"{held.weight_version}): start vigor-service with --model {name}, or give --publish true to send them"
        )
    return client.publish_weights(tensors, weight_version=held.weight_version + 1)


def _checkpoint_directory(name: str) -> Path:
    if Path(name).is_dir():
        return Path(name)
    with building(f"--model {name}: the checkpoint cannot be loaded", kind=InvalidModelError):
        return Path(snapshot_download(name, allow_patterns=_CHECKPOINT_FILES))
