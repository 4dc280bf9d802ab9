"""``GET /``: the inspector, a page of static files that calls the service as any client does."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse
from starlette.exceptions import HTTPException

from vigor_service.routes.openapi import no_such

_DIRECTORY = Path(__file__).parents[1] / "inspector"
_PAGE = "index.html"
_MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_HEADERS = {
    # Only scripts, styles, images and calls of this service are allowed; no page may put this one into a frame.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # browsers must check whether their copy is current
}
router = APIRouter(tags=["operations"])


@dataclass(frozen=True, slots=True)
class _File:
    content: bytes
    media_type: str
    tag: str


def _read(path: Path) -> _File:
    content = path.read_bytes()
    return _File(content, _MEDIA_TYPES[path.suffix], f'"{sha256(content).hexdigest()[:32]}"')


_SAME: dict[int | str, dict[str, Any]] = {304: {"description": "The copy that the caller has is current"}}
_FILES = {path.name: _read(path) for path in _DIRECTORY.iterdir()}


@router.get("/", summary="The inspector: a page for people", response_class=HTMLResponse, responses=_SAME)
async def inspector(request: Request) -> Response:
    return _answer(request, _FILES[_PAGE])


@router.get(
    "/inspector/{name}",
    summary="A file of the inspector",
    response_class=Response,
    responses=_SAME | no_such("file"),
)
async def inspector_file(request: Request, name: str) -> Response:
    if name not in _FILES:
        raise HTTPException(404)
    return _answer(request, _FILES[name])


def _answer(request: Request, file: _File) -> Response:
    headers = {**_HEADERS, "ETag": file.tag}
    if request.headers.get("If-None-Match") == file.tag:
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers=headers, media_type=file.media_type)
