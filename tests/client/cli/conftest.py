"""The fake service that commands of these tests ask, and its address."""

from collections.abc import Iterator

import pytest

from tests.client.cli.command_line_fake import CommandLineFake, serving


@pytest.fixture
def fake() -> CommandLineFake:
    return CommandLineFake()


@pytest.fixture
def url(fake: CommandLineFake) -> Iterator[str]:
    with serving(fake) as url:
        yield url
