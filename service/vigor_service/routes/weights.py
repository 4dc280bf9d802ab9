"""``/v1/weights``: the weights that are served, and updates of them."""

from __future__ import annotations

import re

from fastapi import APIRouter, Depends, Request, Response

from vigor_client.schemas.common import IDEMPOTENCY_HEADER
from vigor_client.schemas.problems import FieldError
from vigor_client.schemas.weights import (
    BroadcastRequest,
    CommitResponse,
    TakeRequest,
    TensorList,
    UpdateRequest,
    UpdateStatus,
    WeightsInfo,
)
from vigor_service import errors
from vigor_service.http.request_body import content_length, stream
from vigor_service.routes.dependencies import BodyDependency, ServingDependency, may_publish, may_score
from vigor_service.routes.openapi import idempotency_key, json_body, problems, raw_body
from vigor_service.weights.sources.upload import UploadSource

router = APIRouter(
    prefix="/v1/weights",
    tags=["weights"],
    dependencies=[Depends(may_score)],
    responses=problems(errors.UnauthenticatedError),
)
_UPDATE = "/updates/{update_id}"
_NAME = "[A-Za-z0-9_-]{1,128}"
_ALWAYS = (errors.LoadingError, errors.DrainingError)
_PUBLISHING = (errors.ForbiddenError, *_ALWAYS)
_PUBLISHERS = [Depends(may_publish)]


@router.get("", summary="Version, digest and state of the weights that are served", responses=problems(*_ALWAYS))
async def weights(serving: ServingDependency) -> WeightsInfo:
    return serving.current_weights.info(serving.updates.under_way())


@router.get("/tensors", summary="Tensors that a full update must contain", responses=problems(*_ALWAYS))
async def tensors(serving: ServingDependency) -> TensorList:
    served = serving.current_weights.weights
    return TensorList(weight_version=served.version, weight_digest=served.digest, tensors=list(served.tensors))


@router.post(
    "/updates",
    status_code=201,
    summary="Open an update",
    dependencies=_PUBLISHERS,
    response_model=UpdateStatus,
    responses=problems(
        errors.MalformedBodyError,
        errors.InvalidRequestError,
        errors.UnsupportedMediaTypeError,
        errors.PayloadTooLargeError,
        errors.QueueFullError,
        errors.UpdateConflictError,
        errors.WeightBaseMismatchError,
        errors.DeadlineExceededError,
        errors.StagingFullError,
        *_PUBLISHING,
    ),
    openapi_extra=json_body(UpdateRequest)
    | idempotency_key("Name of the update, which becomes its `update_id`.", _NAME),
)
async def open_update(request: Request, serving: ServingDependency, body: BodyDependency) -> UpdateStatus:
    name = _name(request)
    asked = await body.parse(UpdateRequest, consequence="no update was opened")
    return await serving.updates.open(asked, name)


def _name(request: Request) -> str | None:
    """Return the name that the caller gave the update, or None."""
    name = request.headers.get(IDEMPOTENCY_HEADER)
    if name is not None and not re.fullmatch(_NAME, name):
        message = f"is not a valid name of an update: send a UUID, or another name that matches {_NAME}"
        place = FieldError(loc=["header", IDEMPOTENCY_HEADER], msg=message)
        raise errors.invalid_request([place], consequence="no update was opened")
    return name


@router.put(
    _UPDATE + "/files/{name}",
    summary="Send one file of an update: the bytes of a safetensors file",
    dependencies=_PUBLISHERS,
    responses=problems(
        errors.UpdateNotFoundError,
        errors.UpdateConflictError,
        errors.InvalidRequestError,
        errors.DeadlineExceededError,
        errors.StagingFullError,
        *_PUBLISHING,
    ),
    openapi_extra=raw_body(),
)
async def receive_file(request: Request, update_id: str, name: str, serving: ServingDependency) -> UpdateStatus:
    source = UploadSource(name, stream(request), content_length=content_length(request))
    return await serving.updates.receive(update_id, source)


_FETCHED = problems(
    errors.UpdateNotFoundError,
    errors.UpdateConflictError,
    errors.MalformedBodyError,
    errors.InvalidRequestError,
    errors.UnsupportedMediaTypeError,
    errors.PayloadTooLargeError,
    errors.QueueFullError,
    errors.DeadlineExceededError,
    errors.StagingFullError,
    *_PUBLISHING,
)


@router.post(
    _UPDATE + "/take",
    summary="Move the files of an update in from a directory under --weights-root",
    dependencies=_PUBLISHERS,
    response_model=UpdateStatus,
    responses=_FETCHED,
    openapi_extra=json_body(TakeRequest),
)
async def take_files(update_id: str, serving: ServingDependency, body: BodyDependency) -> UpdateStatus:
    asked = await body.parse(TakeRequest, consequence="no file was moved")
    return await serving.updates.receive(update_id, await serving.local_files.source(asked.directory))


@router.post(
    _UPDATE + "/broadcast",
    summary="Receive the missing files of an update through torch.distributed",
    dependencies=_PUBLISHERS,
    response_model=UpdateStatus,
    responses=_FETCHED,
    openapi_extra=json_body(BroadcastRequest),
)
async def broadcast(update_id: str, serving: ServingDependency, body: BodyDependency) -> UpdateStatus:
    asked = await body.parse(BroadcastRequest, consequence="nothing was received")
    return await serving.updates.receive(update_id, serving.broadcasts.source(asked))


@router.post(
    _UPDATE + "/commit",
    summary="Verify the update and serve it",
    dependencies=_PUBLISHERS,
    responses=problems(
        errors.UpdateNotFoundError,
        errors.UpdateConflictError,
        errors.InvalidRequestError,
        errors.WeightBaseMismatchError,
        errors.WeightsPoisonedError,
        errors.DeadlineExceededError,
        errors.StagingFullError,
        *_PUBLISHING,
    ),
)
async def commit(update_id: str, serving: ServingDependency) -> CommitResponse:
    return await serving.updates.commit(update_id)


@router.get(_UPDATE, summary="State of an update", responses=problems(errors.UpdateNotFoundError, *_ALWAYS))
async def status(update_id: str, serving: ServingDependency) -> UpdateStatus:
    return serving.updates.status(update_id)


@router.delete(
    _UPDATE,
    status_code=204,
    summary="Drop an update",
    dependencies=_PUBLISHERS,
    response_class=Response,
    responses=problems(errors.UpdateNotFoundError, errors.UpdateConflictError, *_PUBLISHING),
)
async def drop(update_id: str, serving: ServingDependency) -> None:
    await serving.updates.drop(update_id)
