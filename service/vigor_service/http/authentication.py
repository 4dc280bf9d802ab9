"""Authorization: keys, the roles that they grant, and keys in files. Knows nothing about HTTP."""

from __future__ import annotations

import hmac
import ipaddress
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from pydantic import SecretStr

from vigor_service.errors import ForbiddenError, UnauthenticatedError

MAX_KEY_BYTES = 4096


class Role(IntEnum):
    """Role of a caller. A higher role may also do everything that a lower one may."""

    SCORE = 1
    PUBLISH = 2


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of a service. Without any, every caller may do everything; a role without a key is never granted."""

    score: SecretStr | None = None
    publish: SecretStr | None = None

    def require(self, role: Role, shown: str | None) -> None:
        """Check that a caller who sends this key may act in the role.

        Raises:
            UnauthenticatedError: no key was sent, or an unknown one.
            ForbiddenError: the key is known, and its role is lower.
        """
        if self.score is None and self.publish is None:
            return
        granted = self._granted(shown)
        if granted is None:
            raise UnauthenticatedError("missing or invalid API key: send `Authorization: Bearer KEY`")
        if granted < role:
            raise ForbiddenError(self._why_forbidden())

    def describe(self) -> dict[str, str]:
        """Return which keys scoring and publishing need, as fields for the log: names of keys, not the keys."""
        if self.score is None and self.publish is None:
            return {"score": "open", "publish": "open"}
        score = "score_key" if self.publish is None else "publish_key" if self.score is None else "either_key"
        return {"score": score, "publish": "disabled" if self.publish is None else "publish_key"}

    def _granted(self, shown: str | None) -> Role | None:
        offered = (shown or "").encode()
        # Both keys are always compared, so that the time taken reveals nothing about either.
        may_score, may_publish = _matches(self.score, offered), _matches(self.publish, offered)
        return Role.PUBLISH if may_publish else Role.SCORE if may_score else None

    def _why_forbidden(self) -> str:
        if self.publish is None:
            return "publishing is disabled because the service has no publish key: start it with --publish-key-file"
        return "the score key allows scoring and reading only: send the publish key"


def checked_key(key: str) -> str:
    """Return the key, if it can be sent unchanged in a header.

    Raises:
        ValueError: it cannot be sent; the message does not show the key.
    """
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError("a key must be printable ASCII without spaces, one character or more")
    return key


def read_key(file: Path) -> str:
    """Return the key in a file that contains only one line.

    Raises:
        ValueError: the file cannot be read, or does not contain one key; the message shows nothing of its content.
    """
    try:
        with file.open("rb") as stream:
            content = stream.read(MAX_KEY_BYTES + 1)
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from error
    if len(content) > MAX_KEY_BYTES:
        raise ValueError(f"{file} has more than {MAX_KEY_BYTES} bytes: it must hold one key and nothing else")
    if len(lines := content.splitlines()) != 1:
        raise ValueError(f"{file} has {len(lines)} lines: it must hold one key on one line")
    try:
        return checked_key(lines[0].decode("latin-1"))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def _matches(key: SecretStr | None, offered: bytes) -> bool:
    return key is not None and hmac.compare_digest(offered, key.get_secret_value().encode())


def is_loopback(host: str) -> bool:
    """Return whether an address or name is a loopback address, which only this machine can reach."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
