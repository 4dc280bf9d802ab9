"""Everything this package raises on purpose. It knows nothing about how requests are sent.

    VigorError
    ├── MissingDependencyError            an extra is not installed (also an ImportError)
    ├── NetworkSettingError               a proxy or certificates of the environment cannot be used (also a ValueError)
    ├── TransportError                    no answer arrived; carries request_id
    │   ├── UnreachableError              nothing was sent: refused, no such host, connect timeout
    │   ├── AnswerTimeoutError            sent, but no answer arrived in time (also a TimeoutError)
    │   ├── ConnectionLostError           sent, then the connection broke
    │   └── MixedUpAnswerError            sent, then the answer to another request arrived
    ├── UnexpectedAnswerError             the answer does not follow the contract
    ├── ProblemError                      the service refused; carries status, code, request_id, detail, errors, data
    │   ├── InvalidRequestError           invalid_request
    │   ├── UnauthenticatedError          unauthenticated
    │   ├── ForbiddenError                forbidden
    │   ├── WeightMismatchError           carries have, want
    │   │   ├── WeightVersionMismatchError    weight_version_mismatch
    │   │   ├── WeightDigestMismatchError     weight_digest_mismatch
    │   │   └── WeightBaseMismatchError       weight_base_mismatch
    │   ├── UpdateStateError              update_state
    │   ├── EnginesFixedError             engines_fixed
    │   ├── PayloadTooLargeError          payload_too_large
    │   ├── SequenceTooLongError          sequence_too_long
    │   ├── QueueFullError                queue_full
    │   ├── LoadingError                  loading
    │   ├── DrainingError                 draining
    │   ├── WeightsPoisonedError          weights_poisoned
    │   ├── DeadlineExceededError         deadline_exceeded
    │   ├── GroupConflictError            group_conflict
    │   └── GroupIncompleteError          group_incomplete
    ├── NotReadyError                     wait_until_ready ran out of time (also a TimeoutError)
    ├── TensorsRefusedError               the tensors do not fit the service's (also a ValueError); carries faults
    ├── UnsupportedAdapterError           the model's adapter cannot be published as the service holds it
    ├── InvalidDeltaError                 bytes that are not a delta of a tensor (also a ValueError)
    ├── PublishError                      the service ended with other weights than were sent
    ├── SharedDirectoryError              an update cannot be written where both ends see it
    ├── BroadcastError                    this side of a broadcast cannot begin or broke off
    ├── InputError                        a line of a JSONL file is not a group
    ├── CheckpointError                   a directory does not hold a readable checkpoint
    ├── ModelSourceError                  no model, or no dataset, has the given name
    └── EmbeddedModelError                the embedded model could not be fetched or converted

A refusal with a code that is not listed is a plain ``ProblemError``. Mistakes in arguments are ``ValueError``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vigor_client.schemas.faults import fault_sentence
from vigor_client.schemas.problems import Problem

_MAX_LISTED = 10


class VigorError(Exception):
    """Base of everything this package raises on purpose: ``except VigorError`` catches them all."""

    def __reduce__(self) -> tuple[object, ...]:
        # Worker processes (Ray, torchrun, process pools) pass errors on by pickling them.
        return _restored, (type(self), self.args, vars(self))


def _restored(kind: type[VigorError], args: tuple[object, ...], state: dict[str, object]) -> VigorError:
    error = kind.__new__(kind, *args)
    vars(error).update(state)
    return error


class MissingDependencyError(VigorError, ImportError):
    """A package of an optional extra is needed and not installed; names the extra."""

    def __init__(self, package: str, *, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs {package}: pip install '.[{extra}]' in a checkout of vigor-rl", name=package)


class NetworkSettingError(VigorError, ValueError):
    """A proxy or certificates that the environment gives for the service cannot be used; names the variable."""


# ------------------------------------------------------------------------------------------- no answer


class TransportError(VigorError):
    """A request got no answer."""

    def __init__(self, message: str, *, request_id: str) -> None:
        super().__init__(message)
        self.request_id = request_id


class UnreachableError(TransportError):
    """The connection failed: the service certainly did not receive the request."""


class AnswerTimeoutError(TransportError, TimeoutError):
    """The service stayed silent for longer than the timeout."""


class ConnectionLostError(TransportError):
    """The connection broke before the answer was complete."""


class MixedUpAnswerError(TransportError):
    """The answer belongs to another request: something between client and service, such as a proxy, mixes them up."""


# ---------------------------------------------------------------------------------------- bad answers


class UnexpectedAnswerError(VigorError):
    """The answer does not follow this API: it comes from another server, a proxy, or another version of the service."""

    def __init__(self, message: str, *, status: int, request_id: str, retry_after_seconds: float = 0.0) -> None:
        super().__init__(message)
        self.status = status
        self.request_id = request_id
        self.retry_after_seconds = retry_after_seconds


class ProblemError(VigorError):
    """The service refused the request and said why (RFC 9457).

    ``data`` holds the members specific to the code; ``errors`` lists every offending place of the request.
    """

    def __init__(self, problem: Problem, *, request_id: str, retry_after_seconds: float = 0.0) -> None:
        places = [fault_sentence(error.loc, error.msg) for error in problem.errors]
        summary = f"{problem.detail} ({problem.status} {problem.code}, request {request_id})"
        super().__init__("\n  ".join([summary, *_shortened(places)]))
        self.status = problem.status
        self.code = problem.code
        self.detail = problem.detail
        self.errors = problem.errors
        self.request_id = request_id
        self.retry_after_seconds = retry_after_seconds
        self.data: dict[str, object] = dict(problem.model_extra or {})


class InvalidRequestError(ProblemError):
    """The request broke the contract; every place is in ``errors``. Nothing was done."""


class UnauthenticatedError(ProblemError):
    """No key, or one that the service does not know."""


class ForbiddenError(ProblemError):
    """The key may not do this: a scoring key cannot publish weights."""


class WeightMismatchError(ProblemError):
    """The service holds other weights than the request asked for."""

    @property
    def have(self) -> object:
        """What the service holds."""
        return self.data.get("have")

    @property
    def want(self) -> object:
        """What was asked for."""
        return self.data.get("want")


class WeightVersionMismatchError(WeightMismatchError):
    """The service holds another weight version, even after ``wait_seconds``."""


class WeightDigestMismatchError(WeightMismatchError):
    """The version number matches but the weights differ: two runs share the service, or it was restarted."""


class WeightBaseMismatchError(WeightMismatchError):
    """The update is based on a version other than the one that the service holds."""


class UpdateStateError(ProblemError):
    """The update is not in a state that allows this."""


class EnginesFixedError(ProblemError):
    """The service computes in its own process, and its number of engines cannot be changed."""


class PayloadTooLargeError(ProblemError):
    """The request is larger than the service accepts."""


class SequenceTooLongError(ProblemError):
    """A prompt with its completion is too long for the model or for memory; ``data`` and ``errors`` name it."""


class QueueFullError(ProblemError):
    """The queue of the service is full."""


class LoadingError(ProblemError):
    """The service is still loading its model."""


class DrainingError(ProblemError):
    """The service is shutting down."""


class WeightsPoisonedError(ProblemError):
    """A swap of weights failed half-way: nothing is scored until a full update is applied."""


class DeadlineExceededError(ProblemError):
    """The service stopped work on the request at its own time limit."""


class GroupIncompleteError(ProblemError):
    """Not all completions of a group arrived in time."""


class GroupConflictError(ProblemError):
    """Samples of one group contradict each other: their size, prompt or options differ, or an index was sent twice."""


PROBLEM_ERRORS: Mapping[str, type[ProblemError]] = {
    "invalid_request": InvalidRequestError,
    "unauthenticated": UnauthenticatedError,
    "forbidden": ForbiddenError,
    "weight_version_mismatch": WeightVersionMismatchError,
    "weight_digest_mismatch": WeightDigestMismatchError,
    "weight_base_mismatch": WeightBaseMismatchError,
    "update_state": UpdateStateError,
    "engines_fixed": EnginesFixedError,
    "payload_too_large": PayloadTooLargeError,
    "sequence_too_long": SequenceTooLongError,
    "queue_full": QueueFullError,
    "loading": LoadingError,
    "draining": DrainingError,
    "weights_poisoned": WeightsPoisonedError,
    "deadline_exceeded": DeadlineExceededError,
    "group_incomplete": GroupIncompleteError,
    "group_conflict": GroupConflictError,
}


# ---------------------------------------------------------------------------------------- our own side


class NotReadyError(VigorError, TimeoutError):
    """The service did not become ready in time; gives its last answer."""


class TensorsRefusedError(VigorError, ValueError):
    """The tensors given do not fit the service's. Nothing was sent.

    ``faults`` maps each name to what is wrong with it.
    """

    def __init__(self, faults: Mapping[str, str]) -> None:
        lines = [f"{name}: {fault}" for name, fault in sorted(faults.items())]
        super().__init__("\n  ".join(["these tensors do not fit the service's:", *_shortened(lines)]))
        self.faults = dict(faults)


class UnsupportedAdapterError(VigorError):
    """The model has an adapter that is not LoRA, cannot be merged, or is not the service's; says what to do."""


class InvalidDeltaError(VigorError, ValueError):
    """The bytes of a delta are not valid changes of their tensor; says why."""


class PublishError(VigorError):
    """The service committed an update but serves other weights than were sent."""


class SharedDirectoryError(VigorError):
    """An update cannot be written to the directory that is shared with the service."""


class BroadcastError(VigorError):
    """This side of a broadcast through torch.distributed could not start, or failed; says why."""


class InputError(VigorError):
    """Lines of a JSONL file are not groups, or the service refused them; the message names file and line."""


class CheckpointError(VigorError):
    """A directory does not hold a readable checkpoint."""


class ModelSourceError(VigorError):
    """No model, or no dataset, has the given name; says what to give instead."""


class EmbeddedModelError(VigorError):
    """The embedded model could not be fetched or converted; says what to do."""


def _shortened(lines: Sequence[str]) -> list[str]:
    if len(lines) <= _MAX_LISTED:
        return list(lines)
    return [*lines[:_MAX_LISTED], f"... and {len(lines) - _MAX_LISTED} more"]
