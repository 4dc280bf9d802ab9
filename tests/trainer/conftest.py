"""What holds for all tests of the trainer.

Tiny models run on one thread: with more, the threads' waiting costs a hundred times the work on a busy machine.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from transformers.integrations.deepspeed import unset_hf_deepspeed_config  # pyright: ignore[reportUnknownVariableType]


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> Iterator[None]:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(autouse=True)
def _no_deepspeed() -> Iterator[None]:
    """Forget the configuration of DeepSpeed that a refused flag left: transformers keeps it for the whole process."""
    yield
    unset_hf_deepspeed_config()
