"""The two clients, blocking and async: one method per endpoint, the same methods on both.

The logic of a method is written once, in ``transport.endpoints`` and ``publishing.publish``; here it is only run.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar, cast

import httpx
from pydantic import ValidationError

from vigor_client._version import __version__
from vigor_client.publishing.progress import OnProgress
from vigor_client.publishing.publish import HTTP, PublishResult, publish
from vigor_client.publishing.snapshot import WeightSnapshot
from vigor_client.publishing.transports.weight_transport import WeightTransport
from vigor_client.schemas.attribution import AttributionRequest, AttributionResponse
from vigor_client.schemas.common import WireModel
from vigor_client.schemas.engines import EngineList, ScaleRequest
from vigor_client.schemas.faults import fault_sentences
from vigor_client.schemas.scoring import (
    DEFAULT_COMPUTE,
    ComputeName,
    Group,
    RewardName,
    SampleRequest,
    SampleResponse,
    ScoreRequest,
    ScoreResponse,
    TieRule,
    TruncatedRule,
)
from vigor_client.schemas.service import Health, ModelInfo
from vigor_client.schemas.weights import TensorList, WeightsInfo
from vigor_client.transport.connections import AsyncConnections, Connections
from vigor_client.transport.endpoints import Endpoints
from vigor_client.transport.exchange import Exchange
from vigor_client.transport.network import Network, checked_url, network_for
from vigor_client.transport.retry import DEFAULT_MAX_RETRIES, RetryPolicy
from vigor_client.transport.score_stream import OnGroup
from vigor_client.transport.wire import AsyncWire, BlockingWire, Wire, run_blocking

if TYPE_CHECKING:
    import torch

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_TIMEOUT_SECONDS = 300.0
MAX_TIMEOUT_SECONDS = 7 * 24 * 3600.0  # much larger numbers overflow the timeouts of sockets
USER_AGENT = f"vigor-client/{__version__}"

Groups = Group | Mapping[str, object] | Sequence[Group | Mapping[str, object]]
Sample = SampleRequest | Mapping[str, object]
Attributed = AttributionRequest | Mapping[str, object]
_Request = TypeVar("_Request", bound=WireModel)


class VigorClient:
    """Calls a scoring service and waits for the answers.

    Every method raises a ``VigorError`` when it fails (the tree is in ``vigor_client.errors``), after the retries that
    are safe: after a failed connection, 429 and 503, with ``Retry-After`` obeyed. Threads may share a client, and a
    forked process may keep using its parent's client: each process has connections of its own.

    Args:
        base_url: where the service listens; by default ``VIGOR_URL``, else ``http://127.0.0.1:8000``.
        api_key: sent as a bearer token; by default ``VIGOR_API_KEY``, if it is set.
        timeout_seconds: how long the service may stay silent within one attempt, at most a week.
        max_retries: maximum number of retries of one call.
        transport: replaces the network, for tests.

    Raises:
        ValueError: the URL or the key cannot be used.
        NetworkSettingError: the environment's proxy or certificates for this URL cannot be used.
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        max_retries: int = DEFAULT_MAX_RETRIES,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        base_url, api_key = service_address(base_url, api_key)
        url, headers = checked_url(base_url), _headers(api_key)
        network = Network() if transport else network_for(url)
        self._connections = Connections(lambda: network.open_pool(url, headers, transport))
        self._endpoints = _endpoints(BlockingWire(self._connections), timeout_seconds, max_retries)
        self._description = _describe(self, url, api_key)

    def score(
        self,
        groups: Groups,
        *,
        weight_version: int | None = None,
        weight_digest: str | None = None,
        wait_seconds: float = 0.0,
        compute: Sequence[ComputeName] = DEFAULT_COMPUTE,
        reward: RewardName = "vigor",
        ties: TieRule = "average",
        truncated: TruncatedRule = "score",
        return_token_ids: bool = False,
        on_group: OnGroup | None = None,
    ) -> ScoreResponse:
        """Score whole groups under the service's current weights; answers come in the order of the groups.

        Args:
            groups: one group or several, each a ``Group`` or a mapping of its fields. A group is ranked as a whole.
            weight_version: required version of the weights; any other raises a ``WeightVersionMismatchError``.
            weight_digest: required digest of the weights; any other raises a ``WeightDigestMismatchError``.
            wait_seconds: maximum time for which the service waits for that version before it refuses.
            compute: what each score holds: ``norm``, ``signals``, ``token_logprobs``. Without ``norm`` no gradient is
                computed, which costs less than half.
            reward: value that is ranked; ``compute`` must include what it needs.
            ties: rule for equal values: the mean of their ranks, or ranks by index.
            truncated: rule for completions with ``finish_reason="length"``: scored, or ranked worst.
            return_token_ids: whether the answer has the token ids that were scored, as ``prompt_ids`` of a group and
                ``ids`` of a completion.
            on_group: called with index and scores of each group when they arrive, in any order, to show progress. Only
                the returned answer counts: after a retry, groups reported earlier may come from other weights.

        Raises:
            ValueError: the groups break the contract; nothing was sent.
        """
        request = _score_request(
            groups,
            weight_version=weight_version,
            weight_digest=weight_digest,
            wait_seconds=wait_seconds,
            compute=compute,
            reward=reward,
            ties=ties,
            truncated=truncated,
            return_token_ids=return_token_ids,
        )
        return run_blocking(self._endpoints.score(request, on_group))

    def score_sample(self, sample: Sample) -> SampleResponse:
        """Score one completion of a group whose other completions come from other callers; wait for the group's ranks.

        Pass it as ``SampleRequest`` or as a mapping of its fields. The answer comes when all ``group_size`` samples of
        ``group`` have arrived; the same sample may be sent again. Callers wait at the same time: give each a thread or
        a task of its own.

        Raises:
            ValueError: the sample breaks the contract; nothing was sent.
            GroupIncompleteError: the other samples did not arrive in time; nothing was ranked.
            GroupConflictError: another sample of the group has another size, prompt or option, or the same index.
        """
        return run_blocking(self._endpoints.score_sample(_sample_request(sample)))

    def attribute(self, request: Attributed) -> AttributionResponse:
        """Return the share of each token and each layer in the gradient norm of one completion.

        Give prompt and completion as ``AttributionRequest`` or as a mapping of its fields.

        Raises:
            ValueError: the request breaks the contract; nothing was sent.
            SequenceTooLongError: prompt and completion have more tokens than can be attributed.
        """
        return run_blocking(self._endpoints.attribute(_attribution_request(request)))

    def model(self) -> ModelInfo:
        """Return the model that the service scores with, and how it measures gradient norms."""
        return run_blocking(self._endpoints.model())

    def engines(self) -> EngineList:
        """Return the engines that compute, including those that are being started."""
        return run_blocking(self._endpoints.engines())

    def scale(self, num_engines: int) -> EngineList:
        """Set the number of engines. Returns at once; the service starts or ends engines in the background.

        Raises:
            ValueError: the number is not from 1 to 1024; nothing was sent.
            EnginesFixedError: the service was not started with several engines.
        """
        return run_blocking(self._endpoints.scale(_scale_request(num_engines)))

    def weights(self) -> WeightsInfo:
        """Return version, digest and state of the weights that the service scores with."""
        return run_blocking(self._endpoints.weights())

    def tensors(self) -> TensorList:
        """Return every tensor of the service's model, all of which a full update must supply."""
        return run_blocking(self._endpoints.tensors())

    def health(self) -> Health:
        """Return whether the process answers. It is one call, without retries."""
        return run_blocking(self._endpoints.health())

    def ready(self) -> Health:
        """Return whether the service would score now. It is one call, without retries."""
        return run_blocking(self._endpoints.ready())

    def metrics(self) -> dict[str, float]:
        """Return the service's metrics by series, e.g. ``vigor_queued_tokens``, labels included in the key."""
        return run_blocking(self._endpoints.metrics())

    def wait_until_ready(self, timeout_seconds: float) -> None:
        """Wait for a service that is starting.

        Raises:
            NotReadyError: the service was not ready in time; gives its last answer.
        """
        run_blocking(self._endpoints.wait_until_ready(timeout_seconds))

    def publish_weights(
        self,
        tensors: Mapping[str, torch.Tensor],
        *,
        weight_version: int,
        snapshot: WeightSnapshot | None = None,
        partial: bool = False,
        transport: WeightTransport | None = None,
        on_progress: OnProgress | None = None,
    ) -> PublishResult:
        """Bring ``tensors`` (a whole state dict) into service as ``weight_version``.

        Nothing is sent if the service has these weights already. Tensors are cast to the service's dtype one at a time.
        A tied tensor may be given under any of its names. Do not change the tensors while this runs: the checksums
        would no longer match.

        With a ``snapshot``, the same one for all publications of a run, only changes are sent. All weights are sent if
        that is smaller, if the service holds other weights than the snapshot, or if an anchor (a full update) is due.
        The snapshot takes as much host memory as a model. ``transport`` carries the bytes: a directory that the service
        sees as its ``--weights-root``, or a broadcast of torch.distributed; without one they go over HTTP.

        With ``partial``, ``tensors`` are some of the model's, such as those of an adapter. Those that differ from the
        served ones are sent, and all other tensors stay as they are. Only the given tensors are checked and hashed.

        ``on_progress`` is called with a ``PublishProgress`` when a phase begins, and while bytes are hashed or sent, on
        the thread that reads them. An exception from it ends the publication and is raised here; the service keeps
        the old weights.

        Raises:
            ValueError: ``partial`` without a tensor, or with a snapshot.
            WeightBaseMismatchError: ``partial``, and the service now has other weights, is poisoned, or needs all
                weights again; publish all weights.
            TensorsRefusedError: the tensors do not fit the service's; every fault is named and nothing was sent.
            SharedDirectoryError, BroadcastError: the transport cannot carry the bytes; the service keeps the old
                weights.
            PublishError: the service ended with other weights.
        """
        publication = publish(
            self._endpoints,
            tensors,
            weight_version=weight_version,
            snapshot=snapshot,
            partial=partial,
            transport=transport or HTTP,
            on_progress=on_progress,
        )
        return run_blocking(publication)

    def close(self) -> None:
        """Close the connections."""
        self._connections.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return self._description


class AsyncVigorClient:
    """``VigorClient`` for asyncio: the same arguments and the same methods, which are awaited.

    May be used in one event loop after another: each has connections of its own.
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        max_retries: int = DEFAULT_MAX_RETRIES,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        base_url, api_key = service_address(base_url, api_key)
        url, headers = checked_url(base_url), _headers(api_key)
        network = Network() if transport else network_for(url)
        self._connections = AsyncConnections(lambda: network.open_async_pool(url, headers, transport))
        self._endpoints = _endpoints(AsyncWire(self._connections), timeout_seconds, max_retries)
        self._description = _describe(self, url, api_key)

    async def score(
        self,
        groups: Groups,
        *,
        weight_version: int | None = None,
        weight_digest: str | None = None,
        wait_seconds: float = 0.0,
        compute: Sequence[ComputeName] = DEFAULT_COMPUTE,
        reward: RewardName = "vigor",
        ties: TieRule = "average",
        truncated: TruncatedRule = "score",
        return_token_ids: bool = False,
        on_group: OnGroup | None = None,
    ) -> ScoreResponse:
        """As ``VigorClient.score``; ``on_group`` is called on the event loop."""
        request = _score_request(
            groups,
            weight_version=weight_version,
            weight_digest=weight_digest,
            wait_seconds=wait_seconds,
            compute=compute,
            reward=reward,
            ties=ties,
            truncated=truncated,
            return_token_ids=return_token_ids,
        )
        return await self._endpoints.score(request, on_group)

    async def score_sample(self, sample: Sample) -> SampleResponse:
        """As ``VigorClient.score_sample``."""
        return await self._endpoints.score_sample(_sample_request(sample))

    async def attribute(self, request: Attributed) -> AttributionResponse:
        """As ``VigorClient.attribute``."""
        return await self._endpoints.attribute(_attribution_request(request))

    async def model(self) -> ModelInfo:
        """As ``VigorClient.model``."""
        return await self._endpoints.model()

    async def engines(self) -> EngineList:
        """As ``VigorClient.engines``."""
        return await self._endpoints.engines()

    async def scale(self, num_engines: int) -> EngineList:
        """As ``VigorClient.scale``."""
        return await self._endpoints.scale(_scale_request(num_engines))

    async def weights(self) -> WeightsInfo:
        """As ``VigorClient.weights``."""
        return await self._endpoints.weights()

    async def tensors(self) -> TensorList:
        """As ``VigorClient.tensors``."""
        return await self._endpoints.tensors()

    async def health(self) -> Health:
        """As ``VigorClient.health``."""
        return await self._endpoints.health()

    async def ready(self) -> Health:
        """As ``VigorClient.ready``."""
        return await self._endpoints.ready()

    async def metrics(self) -> dict[str, float]:
        """As ``VigorClient.metrics``."""
        return await self._endpoints.metrics()

    async def wait_until_ready(self, timeout_seconds: float) -> None:
        """As ``VigorClient.wait_until_ready``."""
        await self._endpoints.wait_until_ready(timeout_seconds)

    async def publish_weights(
        self,
        tensors: Mapping[str, torch.Tensor],
        *,
        weight_version: int,
        snapshot: WeightSnapshot | None = None,
        partial: bool = False,
        transport: WeightTransport | None = None,
        on_progress: OnProgress | None = None,
    ) -> PublishResult:
        """As ``VigorClient.publish_weights``; casts, checksums and some calls of ``on_progress`` run on threads."""
        return await publish(
            self._endpoints,
            tensors,
            weight_version=weight_version,
            snapshot=snapshot,
            partial=partial,
            transport=transport or HTTP,
            on_progress=on_progress,
        )

    async def aclose(self) -> None:
        """Close the connections."""
        await self._connections.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return self._description


def _endpoints(wire: Wire, timeout_seconds: float, max_retries: int) -> Endpoints:
    if not 0 < timeout_seconds <= MAX_TIMEOUT_SECONDS:
        raise ValueError(
            f"timeout_seconds is {timeout_seconds:g}; give more than 0, and at most {MAX_TIMEOUT_SECONDS:g}"
        )
    exchange = Exchange(wire, RetryPolicy(max_retries=max_retries), random=random.random)
    return Endpoints(exchange, timeout_seconds=timeout_seconds)


def _score_request(groups: Groups, **options: object) -> ScoreRequest:
    several = cast("object", [groups] if isinstance(groups, Group | Mapping) else groups)
    if isinstance(several, Iterable) and not isinstance(several, str | bytes):  # the validation refuses anything else
        several = [_as_dict(group) for group in cast("Iterable[object]", several)]
    # All groups are validated together, so that an error names the group by its index.
    return _validated(ScoreRequest, {"groups": several, **options})


def _sample_request(sample: Sample) -> SampleRequest:
    return _validated(SampleRequest, _as_dict(sample))


def _attribution_request(request: Attributed) -> AttributionRequest:
    return _validated(AttributionRequest, _as_dict(request))


def _scale_request(num_engines: int) -> ScaleRequest:
    return _validated(ScaleRequest, {"num_engines": num_engines})


def _as_dict(value: object) -> object:
    return dict(cast("Mapping[object, object]", value)) if isinstance(value, Mapping) else value


def _validated(model: type[_Request], value: object) -> _Request:
    """Return the value as a request.

    Raises:
        ValueError: it breaks the contract; has one sentence for each fault.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        sentences = fault_sentences(error, model)
    raise ValueError("\n  ".join(sentences))  # without pydantic's error, which says the same in other words


def service_address(base_url: str | None, api_key: str | None) -> tuple[str, str | None]:
    """Return the given URL and key, else those of the environment, else the default URL on this machine."""
    url = base_url if base_url is not None else os.environ.get("VIGOR_URL") or DEFAULT_URL
    return url, api_key if api_key is not None else os.environ.get("VIGOR_API_KEY") or None


def _headers(api_key: str | None) -> dict[str, str]:
    if api_key is None:
        return {"User-Agent": USER_AGENT}
    if not api_key or not api_key.isascii() or not api_key.isprintable() or " " in api_key:
        raise ValueError("the api_key must be printable ASCII without spaces")  # without showing it
    return {"User-Agent": USER_AGENT, "Authorization": f"Bearer {api_key}"}


def _describe(client: object, url: httpx.URL, api_key: str | None) -> str:
    key = "" if api_key is None else ", api_key='***'"
    return f"{type(client).__name__}({str(url)!r}{key})"
