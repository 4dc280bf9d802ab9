"""``GET /openapi.json`` and ``GET /docs``: the description of the calls, for programs and for people."""

from __future__ import annotations

import asyncio
import json

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import HTMLResponse

from vigor_service.routes.docs_page import POLICY, docs_page

router = APIRouter(tags=["operations"], include_in_schema=False)


@router.get("/openapi.json")
async def openapi(request: Request) -> Response:
    description = await asyncio.to_thread(_described, request.app)
    return Response(json.dumps(description), media_type="application/json")


@router.get("/docs")
async def docs(request: Request) -> Response:
    page = docs_page(await asyncio.to_thread(_described, request.app))
    headers = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
    return HTMLResponse(page, headers=headers)


def _described(app: FastAPI) -> dict[str, object]:
    """Return the description. The first request builds it, on a thread because that would block the event loop."""
    return app.openapi()
