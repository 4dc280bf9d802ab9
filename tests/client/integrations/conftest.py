"""Tiny models run on one thread, as in the tests of the trainer."""

from tests.trainer.conftest import _one_thread

__all__ = ["_one_thread"]
