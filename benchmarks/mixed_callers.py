"""Callers of every kind, as coroutines that each run until they are cancelled.

Each counts its answers in ``tally[role, status]``, with status 0 if the connection ended without an answer.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeAlias

import httpx
from safetensors.torch import load_file, save

from tests.support.pushing import FILE, UPDATES, announce

Tally: TypeAlias = Counter[tuple[str, int]]
Role: TypeAlias = Callable[[httpx.AsyncClient, random.Random, Tally], Awaitable[None]]
PUSH_SECONDS = 1.0  # interval between two publications
_PAUSE_SECONDS = 0.2
_VOCAB_SIZE = 256


async def score_ids(http: httpx.AsyncClient, source: random.Random, tally: Tally) -> None:
    """Send groups of token ids, of all sizes."""
    ids = [source.randrange(_VOCAB_SIZE) for _ in range(source.randint(1, 60))]
    completions = [{"ids": source.choices(range(_VOCAB_SIZE), k=source.randint(1, 40))} for _ in range(4)]
    await _post(http, "score", "/v1/score", {"groups": [{"prompt_ids": ids, "completions": completions}]}, tally)


async def score_text(http: httpx.AsyncClient, source: random.Random, tally: Tally) -> None:
    """Send groups of text, some for a version of the weights that may no longer be served."""
    left, right = source.randint(0, 99), source.randint(0, 99)
    group = {"prompt": f"{left} + {right} =", "completions": [f" {left + right}", " I do not know"]}
    weights = {"weight_version": source.randint(1, 9)} if source.random() < 0.1 else {}
    await _post(http, "text", "/v1/score", {"groups": [group], **weights}, tally)


async def send_samples(http: httpx.AsyncClient, source: random.Random, tally: Tally) -> None:
    """Send groups as single samples, some of which are never sent."""
    prompt, size = f"{source.random()} + 1 =", source.randint(2, 4)
    shared = {"group": prompt, "group_size": size, "prompt": prompt}
    bodies = [{**shared, "index": n, "completion": f" {n}"} for n in range(size)]
    came = bodies[: source.randint(1, size)]
    await asyncio.gather(*(_post(http, "sample", "/v1/score/sample", body, tally) for body in came))


async def adapt(http: httpx.AsyncClient, source: random.Random, tally: Tally) -> None:
    """Make OpenRLHF's call, with all samples at once."""
    prompt = f"{source.random()} + 1 ="
    body = {"query": [f"{prompt} {n}" for n in range(4)], "prompts": [prompt] * 4}
    await _post(http, "openrlhf", "/openrlhf/get_reward?group_size=4", body, tally)


async def leave(http: httpx.AsyncClient, source: random.Random, tally: Tally) -> None:
    """Send requests and disconnect before, while or after they are scored."""
    try:
        async with asyncio.timeout(source.random() * 0.3):
            await score_ids(http, source, Counter())
    except TimeoutError:
        tally["left", 0] += 1


async def send_junk(http: httpx.AsyncClient, source: random.Random, tally: Tally) -> None:
    """Send bytes that are not HTTP, not JSON, or not a valid request."""
    kind = source.randrange(4)
    if kind == 0:
        await _send_bytes(http, source.randbytes(source.randint(1, 2000)), tally)
    elif kind == 1:
        await _post(http, "junk", "/v1/score", {"groups": [{"prompt": 7, "completions": [{}] * 100}]}, tally)
    elif kind == 2:
        await _count("junk", http.post("/v1/score", content=b"[" * 100_000), tally)
    else:
        await _count("junk", http.request("PUT", f"{UPDATES}/none/files/x", content=source.randbytes(999)), tally)


def publisher(checkpoint: Path) -> Role:
    """Return a caller that publishes the model's weights, slightly changed, as ever higher versions."""
    tensors = load_file(checkpoint / FILE)

    async def publish(http: httpx.AsyncClient, source: random.Random, tally: Tally) -> None:
        data = save({name: tensor + 1e-4 * source.random() for name, tensor in tensors.items()})
        opened = await _open(http, "push", data, tally)
        if opened.status_code == 201:
            path = f"{UPDATES}/{opened.json()['update_id']}"
            await _count("push", http.put(f"{path}/files/{FILE}", content=data), tally)
            await _count("push", http.post(f"{path}/commit"), tally)
        await asyncio.sleep(PUSH_SECONDS)

    return publish


async def abandon(http: httpx.AsyncClient, source: random.Random, tally: Tally) -> None:
    """Open an update, send half of its file, then drop the update."""
    data = source.randbytes(100_000)
    opened = await _open(http, "abandon", data, tally)
    if opened.status_code == 201:
        path = f"{UPDATES}/{opened.json()['update_id']}"
        await _count("abandon", http.put(f"{path}/files/{FILE}", content=data[:50_000]), tally)
        await _count("abandon", http.delete(path), tally)
    await asyncio.sleep(source.random() * 5)


async def _open(http: httpx.AsyncClient, role: str, data: bytes, tally: Tally) -> httpx.Response:
    version = (await http.get("/v1/weights")).json()["weight_version"] + 1
    body = {"weight_version": version, "base_version": None, "files": [announce(data)]}
    return await _count(role, http.post(UPDATES, json=body), tally)


async def _post(http: httpx.AsyncClient, role: str, path: str, body: object, tally: Tally) -> None:
    await _count(role, http.post(path, json=body), tally)
    await asyncio.sleep(_PAUSE_SECONDS)


async def _count(role: str, answer: Awaitable[httpx.Response], tally: Tally) -> httpx.Response:
    try:
        response = await answer
    except httpx.HTTPError:
        tally[role, 0] += 1
        raise
    tally[role, response.status_code] += 1
    return response


async def _send_bytes(http: httpx.AsyncClient, data: bytes, tally: Tally) -> None:
    reader, writer = await asyncio.open_connection(http.base_url.host, http.base_url.port)
    try:
        writer.write(data)
        writer.write_eof()
        await asyncio.wait_for(reader.read(), 60)
        tally["junk", 0] += 1
    except ConnectionError:
        tally["junk", 0] += 1
    finally:
        writer.close()
