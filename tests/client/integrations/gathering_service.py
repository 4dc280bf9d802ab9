"""A service behind a real socket that gathers samples into groups; a completion's norm is the sum of its ids."""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.trainer.fake_service import score_group
from vigor_client.schemas.scoring import (
    Group,
    GroupScore,
    SampleRequest,
    SampleResponse,
    ScoreRequest,
    ScoreResponse,
    Timing,
    Usage,
)

GATHER_SECONDS = 30.0


class GatheringService:
    """What was asked, and the answers."""

    def __init__(self, gather_seconds: float = GATHER_SECONDS) -> None:
        self.url = ""
        self.weight_version = 7
        self.miscounts = False
        self.requests: list[ScoreRequest] = []
        self.samples: list[SampleRequest] = []
        self.paths: list[str] = []
        self._gather_seconds = gather_seconds
        self._groups: dict[str, dict[int, SampleRequest]] = defaultdict(dict)
        self._changed = threading.Condition()

    def answer(self, path: str, body: bytes) -> tuple[int, str]:
        self.paths.append(path)
        match path:
            case "/v1/score":
                return 200, self._score(ScoreRequest.model_validate_json(body)).model_dump_json()
            case "/v1/score/sample":
                scored = self._gather(SampleRequest.model_validate_json(body))
                return (200, scored.model_dump_json()) if scored else (504, _problem(504, "group_incomplete"))
            case _:
                return 404, _problem(404, "not_found")

    def _score(self, request: ScoreRequest) -> ScoreResponse:
        self.requests.append(request)
        return ScoreResponse(
            model="fake",
            weight_version=self.weight_version,
            weight_digest="xxh3-128:" + "0" * 32,
            reward=request.reward,
            groups=[self._score_group(group) for group in request.groups],
            usage=Usage(prompt_tokens=0, completion_tokens=0, deduplicated_completions=0),
            timing=Timing(queue_seconds=0.0, compute_seconds=0.0),
        )

    def _score_group(self, group: Group) -> GroupScore:
        scored = score_group(group)
        changes = {"num_tokens": 99} if self.miscounts else {}
        return scored.model_copy(
            update={"completions": [score.model_copy(update=changes) for score in scored.completions]}
        )

    def _gather(self, sample: SampleRequest) -> SampleResponse | None:
        with self._changed:
            self.samples.append(sample)
            group = self._groups[sample.group]
            assert sample.index not in group, f"{sample.group} has its index {sample.index} twice"
            group[sample.index] = sample
            self._changed.notify_all()
            if not self._changed.wait_for(lambda: len(group) == sample.group_size, self._gather_seconds):
                return None
        completions = [group[index].completion for index in range(sample.group_size)]
        [scored] = self._score(
            ScoreRequest(groups=[Group(prompt_ids=sample.prompt_ids, completions=completions)])
        ).groups
        return SampleResponse(
            model="fake",
            weight_version=self.weight_version,
            weight_digest="xxh3-128:" + "0" * 32,
            reward=sample.reward,
            group=sample.group,
            index=sample.index,
            completion=scored.completions[sample.index],
        )


@contextmanager
def gathering_service(gather_seconds: float = GATHER_SECONDS) -> Iterator[GatheringService]:
    """Serve on a free port of this machine until the block ends."""
    service = GatheringService(gather_seconds)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status, text = service.answer(self.path, body)
            self.send_response(status)
            self.send_header("Content-Type", "application/json" if status == 200 else "application/problem+json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: object) -> None:
            """Standard error is for tests that fail."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    service.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield service
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _problem(status: int, code: str) -> str:
    fields = {"type": "about:blank", "title": code, "status": status, "code": code, "detail": f"the fake says {code}"}
    return json.dumps(fields)
