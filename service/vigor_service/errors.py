"""The service's errors, as exceptions that carry their data. Knows nothing about HTTP.

StartupError                    the service cannot start: a wrong setting, a model that does not load

ServiceError                    a request that cannot be answered with a result
├── MalformedHttpError          the input is not an HTTP request, or names no host or several
├── UrlTooLongError             more bytes than a URL may have
├── HeadersTooLargeError        more bytes than the headers may have
├── WrongHostError              the request names another host
├── MalformedBodyError          the body is not JSON
├── UnsupportedMediaTypeError   the body does not say that it is JSON
├── UnauthenticatedError        no key, or one that the service does not know
├── ForbiddenError              the key is known and does not allow this
├── InvalidRequestError         the request is well-formed but not valid: each fault is listed
├── PayloadTooLargeError        more bytes than the limit
├── SequenceTooLongError        a prompt with a completion that the model cannot take
├── SequenceExceedsMemoryError  a prompt with a completion that does not fit into memory, not even alone
├── UpdateNotFoundError         no such weight update: never opened, dropped, refused or expired
├── UpdateConflictError         the update is not in a state that allows this
├── EnginesFixedError           the service computes in its own process, always with one engine
├── WeightVersionMismatchError  the request names another version of the weights than is served
├── WeightDigestMismatchError   the served weights have this version and another digest
├── WeightBaseMismatchError     the update was made from other weights than are served
├── GroupConflictError          a sample contradicts the others of its group
├── GroupIncompleteError        not all samples of a group arrived in time
├── QueueFullError              the queue is full; retry later
├── ClientGoneError             the client disconnected before the answer
├── EngineFailedError           the engine raised on a batch
├── UnhealthyError              the compute loop has ended
├── NoEngineError               all engines have ended, and no replacement is running yet
├── LoadingError                the model is not loaded yet
├── DrainingError               the process is about to end
├── WeightsApplyingError        weights are being swapped at this moment
├── WeightsPoisonedError        a swap failed half-way: only a full update helps
├── DeadlineExceededError       the time limit of the request passed
└── StagingFullError            not enough disk space for the update
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import JsonValue

from vigor_client.schemas.problems import FieldError

MAX_LISTED_ERRORS = 100
"""Maximum number of offending places that a response lists; its detail says how many there are in total."""


class StartupError(Exception):
    """The service cannot start. The message is for the person who started it; a request never receives this error."""


class ServiceError(Exception):
    """Base of all errors that requests are answered with.

    ``detail`` says what was received, what is needed and what to do; ``errors`` are the offending places;
    ``data`` are further members of the problem document.
    """

    def __init__(
        self,
        detail: str,
        *,
        errors: Sequence[FieldError] = (),
        retry_after_seconds: float | None = None,
        **data: JsonValue,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = list(errors[:MAX_LISTED_ERRORS])
        self.retry_after_seconds = retry_after_seconds
        self.data = data


class MalformedHttpError(ServiceError):
    """The input is not an HTTP request, or names no host or several."""


class UrlTooLongError(ServiceError):
    """More bytes than a URL may have."""


class HeadersTooLargeError(ServiceError):
    """More bytes than the headers may have."""


class WrongHostError(ServiceError):
    """The request names another host."""


class MalformedBodyError(ServiceError):
    """The body is not JSON."""


class UnsupportedMediaTypeError(ServiceError):
    """The body does not say that it is JSON."""


class UnauthenticatedError(ServiceError):
    """No key, or one that the service does not know."""


class ForbiddenError(ServiceError):
    """The key is known and does not allow this."""


class InvalidRequestError(ServiceError):
    """The request is well-formed but not valid."""


class PayloadTooLargeError(ServiceError):
    """More bytes than the limit."""


class SequenceTooLongError(ServiceError):
    """A prompt with a completion that the model cannot take."""


class SequenceExceedsMemoryError(ServiceError):
    """A prompt with a completion that does not fit into memory, not even alone."""


class UpdateNotFoundError(ServiceError):
    """No such weight update."""


class UpdateConflictError(ServiceError):
    """The update is not in a state that allows this."""


class EnginesFixedError(ServiceError):
    """The service computes in its own process, always with one engine."""


class WeightVersionMismatchError(ServiceError):
    """The request names another version of the weights than is served."""


class WeightDigestMismatchError(ServiceError):
    """The served weights have this version and another digest."""


class WeightBaseMismatchError(ServiceError):
    """The update was made from other weights than are served."""


class GroupConflictError(ServiceError):
    """A sample contradicts the others of its group."""


class GroupIncompleteError(ServiceError):
    """Not all samples of a group arrived in time."""


class QueueFullError(ServiceError):
    """The queue is full; retry later."""


class ClientGoneError(ServiceError):
    """The client disconnected before the answer."""


class EngineFailedError(ServiceError):
    """The engine raised on a batch."""


class UnhealthyError(ServiceError):
    """The compute loop has ended."""


class NoEngineError(ServiceError):
    """All engines have ended, and no replacement is running yet."""


class LoadingError(ServiceError):
    """The model is not loaded yet."""


class DrainingError(ServiceError):
    """The process is about to end."""


class WeightsApplyingError(ServiceError):
    """Weights are being swapped at this moment."""


class WeightsPoisonedError(ServiceError):
    """A swap failed half-way."""


class DeadlineExceededError(ServiceError):
    """The time limit of the request passed."""


class StagingFullError(ServiceError):
    """Not enough disk space for the update."""


def invalid_request(
    errors: Sequence[FieldError], *, consequence: str, count: int | None = None, are_all: bool = True
) -> InvalidRequestError:
    """Return an error that lists these places. Its detail says how many there are, and the ``consequence``.

    ``count`` is the total number of places if ``errors`` has only the first of them. ``are_all`` is false if there may
    be more places than were counted.
    """
    number = len(errors) if count is None else count
    counted = "1 validation error" if number == 1 and are_all else f"{number} validation errors"
    counted = counted if are_all else f"at least {counted}"
    listed = f", the first {MAX_LISTED_ERRORS} are listed" if number > MAX_LISTED_ERRORS else ""
    return InvalidRequestError(f"{counted}{listed}; {consequence}", errors=errors)
