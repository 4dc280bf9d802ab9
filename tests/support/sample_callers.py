"""Callers in their own process: `python -m tests.support.sample_callers URL` sends standard input at once.

A line of standard output is an answer: what was sent, its status, its body, and the seconds that it took. Every fifth
caller is impatient, and sends its sample again when the first try is not answered soon.
"""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import suppress
from time import monotonic

import httpx

IMPATIENT_SECONDS = 0.3
PATIENT_SECONDS = 60.0


async def call(http: httpx.AsyncClient, number: int, sample: dict[str, object]) -> None:
    began = monotonic()
    answer = await _answer(http, number, sample)
    line = {"sent": sample, "status": answer.status_code, "body": answer.json(), "seconds": monotonic() - began}
    print(json.dumps(line), flush=True)


async def _answer(http: httpx.AsyncClient, number: int, sample: dict[str, object]) -> httpx.Response:
    if number % 5 == 0:
        with suppress(httpx.ReadTimeout):
            return await http.post("/v1/score/sample", json=sample, timeout=IMPATIENT_SECONDS)
    return await http.post("/v1/score/sample", json=sample, timeout=PATIENT_SECONDS)


async def main(url: str, samples: list[dict[str, object]]) -> None:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, limits=limits) as http:
        await asyncio.gather(*(call(http, number, sample) for number, sample in enumerate(samples)))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], [json.loads(line) for line in sys.stdin]))
