"""Limits how many faults a validation builds: the first ones are listed, and further ones cost no time.

It is passed as pydantic's validation context; without it every fault is built.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar, cast

from pydantic import ValidationError, ValidationInfo, ValidatorFunctionWrapHandler, WrapValidator

MAX_NAMES = 1000
"""Maximum number of names in one object; every shape has fewer."""

_Item = TypeVar("_Item")


class FaultLimit:
    """Counts the faults of one validation. After ``num_left`` more faults, further items are not checked."""

    def __init__(self, max_faults: int) -> None:
        self.num_left = max_faults
        self.has_skipped = False
        """Whether items were not looked at, so that there may be more faults than were built."""


def _validate_item(value: object, validate: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:  # noqa: ANN401 - as pydantic has it
    limit: object = info.context
    if not isinstance(limit, FaultLimit):
        return validate(value)
    num_left = limit.num_left
    if num_left <= 0:
        limit.has_skipped = True
        raise ValueError("not looked at, as there are faults enough")
    try:
        return validate(value)
    except ValidationError as error:
        limit.num_left = num_left - error.error_count()  # including the faults of its own items
        raise


Item = Annotated[_Item, WrapValidator(_validate_item)]
"""An item of a list whose faults are counted."""


def refuse_many_names(value: object, info: ValidationInfo) -> object:
    """Return the value as it is.

    Raises:
        ValueError: faults are counted, and the value is an object with more than ``MAX_NAMES`` names, each of which
            would be a fault.
    """
    if isinstance(info.context, FaultLimit) and isinstance(value, dict):
        num_names = len(cast("dict[object, object]", value))
        if num_names > MAX_NAMES:
            raise ValueError(f"has {num_names} names: this is another kind of object")
    return cast("object", value)
