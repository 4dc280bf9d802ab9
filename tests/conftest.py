"""What holds for all tests: where there is no CUDA device, Triton kernels run in its interpreter; no test is timed."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

from tests.tiers import pytest_collection_modifyitems as pytest_collection_modifyitems

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # Triton reads this when it is first imported

settings.register_profile("untimed", deadline=None)  # a busy machine is slow
settings.load_profile("untimed")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started in the background, as its children would be
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """Keep all that was imported out of the collections of garbage, some of which libraries ask for at each step."""
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Undo it, or libraries would complain of all that is left of them at the end."""
    gc.unfreeze()


@pytest.fixture
def anyio_backend() -> str:
    """The loop that runs the tests that are coroutines: the service's own."""
    return "asyncio"


@pytest.fixture(autouse=True)
def the_same_number_of_threads() -> Iterator[None]:
    """A test that gives torch another number of threads gives it to no later test of its process."""
    num_threads = torch.get_num_threads()
    yield
    torch.set_num_threads(num_threads)
