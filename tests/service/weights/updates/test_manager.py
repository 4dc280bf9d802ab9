"""What becomes of an update whose caller does not wait until it is open."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path

import pytest

from tests.support.fake_scorer import FakeScorer
from vigor_client.schemas.weights import UpdateFile, UpdateProgress, UpdateRequest
from vigor_client.weight_format.digest import announce, checksum
from vigor_service.errors import UpdateConflictError, UpdateNotFoundError
from vigor_service.observability.metrics import Metrics
from vigor_service.scheduling.engine_pool import LocalEngine
from vigor_service.threads.file_threads import FileThreads
from vigor_service.threads.worker import WorkerThread
from vigor_service.weights.current import CurrentWeights
from vigor_service.weights.sources.upload import UploadSource
from vigor_service.weights.storage.staging import StagingArea
from vigor_service.weights.updates.commit import Committer
from vigor_service.weights.updates.manager import Updates
from vigor_service.weights.updates.staged_file import BUFFER_BYTES
from vigor_service.weights.verification.fingerprint import initial_weights

REQUEST = UpdateRequest(
    weight_version=1, files=[UpdateFile(name="a.safetensors", num_bytes=1, checksum=checksum(b"x"))]
)


class SlowDisk(StagingArea):
    """A staging area that makes a directory when ``answers`` is set."""

    def __init__(self, root: Path, threads: FileThreads) -> None:
        super().__init__(root, threads)
        self.is_asked = asyncio.Event()
        self.answers = asyncio.Event()

    async def create(self, name: str, *, num_bytes: int) -> None:
        self.is_asked.set()
        await self.answers.wait()
        await super().create(name, num_bytes=num_bytes)


@asynccontextmanager
async def opening(root: Path) -> AsyncGenerator[tuple[Updates, asyncio.Task[object], SlowDisk, Metrics]]:
    """Yield the updates of a service, one of which is being opened under the name "step-1"."""
    scorer, threads, metrics = FakeScorer(), FileThreads(), Metrics()
    compute, disk = WorkerThread("compute"), SlowDisk(root, threads)
    engine = LocalEngine(scorer, compute, initial_weights(scorer))
    current = CurrentWeights(initial_weights(scorer), load=engine.load, metrics=metrics)
    committer = Committer(
        current,
        tensors=scorer.tensors,
        plan_checkpoint=scorer.plan_checkpoint,
        stage=engine.stage,
        exclusive=nullcontext,
        state=None,
        threads=threads,
        metrics=metrics,
    )
    updates = Updates(
        current,
        committer,
        staging=disk,
        state=None,
        threads=threads,
        metrics=metrics,
        timeout_seconds=60,
        max_upload_bytes=2 * BUFFER_BYTES,
    )
    task: asyncio.Task[object] = asyncio.create_task(updates.open(REQUEST, "step-1"))
    try:
        async with asyncio.timeout(30):
            await disk.is_asked.wait()
            yield updates, task, disk, metrics
    finally:
        updates.close()
        disk.close()
        threads.close()
        compute.close()


def is_active(metrics: Metrics) -> bool:
    return metrics.registry.get_sample_value("vigor_weight_update_active") == 1


async def test_an_update_that_is_dropped_while_it_is_opened_stays_dropped(tmp_path: Path) -> None:
    async with opening(tmp_path) as (updates, task, disk, metrics):
        assert is_active(metrics)
        await updates.drop("step-1")
        assert not is_active(metrics)
        disk.answers.set()
        with pytest.raises(UpdateConflictError, match="the update was dropped"):
            await task
        assert [path.name for path in tmp_path.rglob("*") if path.is_dir() and path.parent != tmp_path] == []
        with pytest.raises(UpdateConflictError, match="the update was dropped"):
            await updates.open(REQUEST, "step-1")
        assert (await updates.open(REQUEST, "step-2")).state == "receiving"


async def test_an_update_whose_opening_is_given_up_may_be_opened_again(tmp_path: Path) -> None:
    async with opening(tmp_path) as (updates, task, disk, metrics):
        assert updates.status("step-1").state == "receiving"
        task.cancel()
        await asyncio.wait([task])
        assert not is_active(metrics)
        with pytest.raises(UpdateNotFoundError):
            updates.status("step-1")
        disk.answers.set()
        assert (await updates.open(REQUEST, "step-1")).state == "receiving"


async def test_an_open_update_tells_how_many_of_its_bytes_have_come(tmp_path: Path) -> None:
    buffer, goes_on = bytes(BUFFER_BYTES), asyncio.Event()
    request = UpdateRequest(weight_version=2, files=[announce("a", [buffer, b"x"]), announce("b", [b"y"])])

    async def chunks() -> AsyncGenerator[bytes]:
        yield buffer
        await goes_on.wait()
        yield b"x"

    async with opening(tmp_path) as (updates, task, disk, _):
        disk.answers.set()
        await task
        await updates.drop("step-1")
        assert updates.under_way() is None
        await updates.open(request, "step-2")
        receiving = asyncio.create_task(updates.receive("step-2", UploadSource("a", chunks(), content_length=None)))
        while (progress := updates.under_way()) is not None and not progress.received_bytes:
            await asyncio.sleep(0.01)
        assert progress == UpdateProgress(
            weight_version=2, state="receiving", received_bytes=BUFFER_BYTES, num_bytes=BUFFER_BYTES + 2
        )
        goes_on.set()
        await receiving
        progress = updates.under_way()
        assert progress is not None
        assert progress.received_bytes == BUFFER_BYTES + 1
        await updates.drop("step-2")


async def test_nothing_is_committed_of_an_update_that_is_being_opened(tmp_path: Path) -> None:
    async with opening(tmp_path) as (updates, task, disk, _):
        with pytest.raises(UpdateConflictError, match="the update is being opened") as caught:
            await updates.commit("step-1")
        assert caught.value.retry_after_seconds == 1.0
        disk.answers.set()
        await task
        with pytest.raises(UpdateConflictError, match=r"files are missing: a\.safetensors"):
            await updates.commit("step-1")
