"""Turns errors of TRL, transformers and their dependencies into one line if a run with these settings cannot begin."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

from vigor_client import VigorError
from vigor_trainer.errors import TrainerError, UnsupportedSettingError

# Libraries raise these when a package, a file, a value or a combination is wrong. Other built-in classes, such as
# AttributeError, are programming errors.
BUILTIN_REFUSALS = (ImportError, OSError, ValueError, TypeError, LookupError, RuntimeError)
_OURS = ("vigor_trainer", "vigor_client")


@contextmanager
def building(
    what: str, *, kind: type[TrainerError] = UnsupportedSettingError, is_over: Callable[[], bool] = lambda: False
) -> Generator[None]:
    """Turn a library's refusal into one line that begins with ``what``, unless ``is_over`` says that building is over.

    Raises:
        ``kind``: a library refused; its own error is the cause.
    """
    try:
        yield
    except Exception as error:  # trackers and tokenizers raise classes that cannot be listed
        if is_over() or not is_refusal(error):
            raise
        raise kind(f"{what}: {one_line(error)}") from error


def is_refusal(error: Exception) -> bool:
    """Return whether this error is a library's refusal of its input."""
    if isinstance(error, VigorError | TrainerError):  # these have a message of their own
        return False
    is_a_librarys = type(error).__module__.partition(".")[0] not in ("builtins", *_OURS)
    return is_a_librarys or isinstance(error, BUILTIN_REFUSALS) or type(error) is Exception


def one_line(error: BaseException) -> str:
    """Return an error's message on one line; its kind where it has none."""
    return " ".join(str(error).split()) or type(error).__name__
