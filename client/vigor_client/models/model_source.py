"""Quickly checks that there is a model at the place that a flag names, before anything heavy is imported.

It does not read the contents of files: a model that passes can still be refused when it is loaded.
"""

from __future__ import annotations

from pathlib import Path

from vigor_client.errors import ModelSourceError
from vigor_client.models.hub import require_on_hub
from vigor_client.schemas.nearest_name import nearest_name

CONFIG_FILES = ("config.json", "adapter_config.json")
GGUF_SUFFIX = ".gguf"


def require_model(source: str) -> None:
    """Return if ``source`` is a directory with a configuration, a ``.gguf`` file, or a name that the hub knows.

    Raises:
        ModelSourceError: ``source`` is none of these; says what is there instead and what to give.
    """
    path = Path(source)
    if path.is_dir():
        _require_configuration(path)
    elif path.exists():
        if path.suffix != GGUF_SUFFIX:
            raise ModelSourceError(f"{source} is a file; give the directory that holds the model, or a .gguf file")
    elif is_path(source):
        raise ModelSourceError(f"{source}: there is no such file or directory{nearest_file(path)}")
    else:
        require_on_hub(source, kind="model", hint=nearest_file(path))


def is_path(source: str) -> bool:
    """Return whether a name can only be a path on disk: a name on the hub has at most one slash and no suffix."""
    return source.startswith((".", "/", "~")) or source.count("/") > 1 or source.endswith((GGUF_SUFFIX, "/"))


def nearest_file(path: Path) -> str:
    """Return a "did you mean" for the entry of the same directory with the most similar name; "" without one."""
    try:
        names = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return ""
    nearest = nearest_name(path.name, names)
    return f"; did you mean {path.with_name(nearest)}?" if nearest else ""


def _require_configuration(directory: Path) -> None:
    try:
        entries = sorted(directory.iterdir())
    except OSError as error:
        raise ModelSourceError(f"{directory} cannot be read: {error.strerror}") from error
    if not entries:
        raise ModelSourceError(f"{directory} is an empty directory; give one with config.json and *.safetensors files")
    if any(entry.name in CONFIG_FILES for entry in entries):
        return
    inside = [entry for entry in entries if entry.suffix == GGUF_SUFFIX or (entry / CONFIG_FILES[0]).is_file()]
    advice = f"did you mean {inside[0]}?" if inside else "give the directory that save_pretrained wrote"
    raise ModelSourceError(f"{directory} has no config.json, so it is no model; {advice}")
