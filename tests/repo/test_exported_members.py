"""The public API of the client: what `__init__` imports is what `__all__` says, in order."""

import types

import vigor_client


def test_all_names_every_public_member_in_order() -> None:
    members = {
        name
        for name, value in vars(vigor_client).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert vigor_client.__all__ == sorted(members)
