"""The wire contract of refusals: problem documents, as RFC 9457 has them."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from vigor_client.schemas.common import WireModel


class FieldError(WireModel):
    """One offending place in a request."""

    loc: list[str | int]
    msg: str


class Problem(BaseModel):
    """An error, as RFC 9457 has it; members beyond these are the data of the code."""

    model_config = ConfigDict(extra="allow", frozen=True)

    type: str
    title: str
    status: int
    code: str
    detail: str
    errors: list[FieldError] = []
