"""Finds flags and variables that are not settings, and the setting with the most similar name. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vigor_client.schemas.nearest_name import did_you_mean
from vigor_service.settings import Settings

PREFIX = "VIGOR_"
OF_THE_CLIENT = ("VIGOR_URL", "VIGOR_API_KEY", "VIGOR_CACHE_DIR")
_OF_KUBERNETES = ("_SERVICE_HOST", "_SERVICE_PORT", "_PORT_")
"""Parts of the names of variables that Kubernetes sets in pods for each Service."""


def unknown_flags(arguments: Sequence[str]) -> list[str]:
    """Return one line for each flag that is not a setting."""
    names = [name.replace("_", "-") for name in Settings.model_fields]
    known = ["--help", "--version", *(f"--{name}" for name in names), *(f"--no-{name}" for name in names)]
    given = (argument.partition("=")[0] for argument in arguments if argument.startswith("--"))
    return [f"unknown option {flag}{did_you_mean(flag, known)}" for flag in given if flag not in known]


def unknown_variables(names: Iterable[str]) -> list[str]:
    """Return one line for each environment variable that looks like a setting but is not one."""
    known = [*OF_THE_CLIENT, *(PREFIX + name.upper() for name in Settings.model_fields)]
    return [
        f"{name} is not a setting{did_you_mean(name, known, prefix=PREFIX)}"
        for name in sorted(names)
        if name.startswith(PREFIX) and name not in known and not any(part in name for part in _OF_KUBERNETES)
    ]
