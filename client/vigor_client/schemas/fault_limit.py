"""Limits how many faults a validation builds: the first ones are listed, and the others cost no time.

It is pydantic's context of a validation; without it every fault is built.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar, cast

from pydantic import ValidationError, ValidationInfo, ValidatorFunctionWrapHandler, WrapValidator

MAX_NAMES = 1000
"""Of one object: every shape has fewer."""

_Item = TypeVar("_Item")


class FaultLimit:
    """Counts the faults of one validation: when there are ``num_left`` of them, further items are not looked at."""

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
        limit.num_left = num_left - error.error_count()  # those of its own items among them
        raise


Item = Annotated[_Item, WrapValidator(_validate_item)]
"""An item of a list whose faults are counted."""


def refuse_many_names(value: object, info: ValidationInfo) -> object:
    """Return the value as it is.

    Raises:
        ValueError: faults are counted, and it is an object with more than ``MAX_NAMES`` names, each a fault.
    """
    if isinstance(info.context, FaultLimit) and isinstance(value, dict):
        num_names = len(cast("dict[object, object]", value))
        if num_names > MAX_NAMES:
            raise ValueError(f"has {num_names} names: this is another kind of object")
    return cast("object", value)
