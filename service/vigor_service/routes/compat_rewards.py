"""The calls of trainers that send text and expect a reward in their own form."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from vigor_client.schemas.scoring import MAX_COMPLETIONS_PER_GROUP
from vigor_service import errors
from vigor_service.compat.openrlhf import OpenRLHFRequest, OpenRLHFRewards, openrlhf_rewards
from vigor_service.compat.slime import SlimeRequest, slime_reward
from vigor_service.http.disconnect import cancel_on_disconnect
from vigor_service.routes.dependencies import FOR_SCORERS, BodyDependency, ServingDependency
from vigor_service.routes.openapi import json_body, problems
from vigor_service.routes.scoring import REFUSALS

router = APIRouter(tags=["adapters"], dependencies=FOR_SCORERS)
GroupSize = Annotated[
    int,
    Query(ge=1, le=MAX_COMPLETIONS_PER_GROUP, description="Number of samples of a prompt that are ranked together."),
]


@router.post(
    "/openrlhf/get_reward",
    summary="Rewards for OpenRLHF's remote reward model: --reward.remote_url …/openrlhf/get_reward?group_size=8",
    response_model=OpenRLHFRewards,
    responses=problems(*REFUSALS),
    openapi_extra=json_body(OpenRLHFRequest),
)
async def openrlhf(
    request: Request, group_size: GroupSize, serving: ServingDependency, body: BodyDependency
) -> Response:
    reward_request = await body.parse(OpenRLHFRequest, consequence="nothing was scored")
    work = openrlhf_rewards(reward_request, serving.text_samples, group_size=group_size)
    body.release()  # from here on the group assembly counts the samples
    del body, reward_request  # frees them during a possibly long wait for the group
    return Response((await cancel_on_disconnect(request, work)).model_dump_json(), media_type="application/json")


@router.post(
    "/slime/reward",
    summary="Rewards for slime's remote_rm: --rm-url …/slime/reward?group_size=8",
    response_model=float,
    responses=problems(*REFUSALS, errors.GroupIncompleteError),
    openapi_extra=json_body(SlimeRequest),
)
async def slime(request: Request, group_size: GroupSize, serving: ServingDependency, body: BodyDependency) -> Response:
    reward_request = await body.parse(SlimeRequest, consequence="nothing was scored")
    work = slime_reward(reward_request, serving.text_samples, group_size=group_size)
    body.release()  # from here on the group assembly counts the samples
    del body, reward_request  # frees them during a possibly long wait for the group
    return Response(repr(await cancel_on_disconnect(request, work)), media_type="application/json")
