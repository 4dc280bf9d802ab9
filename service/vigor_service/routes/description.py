"""``GET /openapi.json`` and ``GET /docs``: what the service says about its calls, to programs and to people."""

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
    """Made at the first request, which takes too long for the event loop."""
    return app.openapi()
