"""When a GRPO trainer's weights are published: once for each optimizer step that generates, by the main process.

TRL's own trainers and `vigor-trainer` share this rule; they differ in how they learn that generation comes next.

Publishing during generation is safe: generation only reads weights, and the optimizer cannot step before the
publication has ended. The loss needs rewards, and the score request waits for the publication.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, Self, TypeVar

from vigor_client.errors import VigorError
from vigor_client.integrations.trl.distributed import on_main_process, process_rank
from vigor_client.publishing.publish import PublishResult

Weights = TypeVar("Weights")


class StepPublisher(Generic[Weights]):
    """Runs one publication at a time, on a thread of its own, and at most one for each optimizer step.

    All processes of a run call `begin`, `finish` and `forget`; ``publish(weights, step)`` runs in the main process.
    """

    def __init__(self, publish: Callable[[Weights, int], PublishResult]) -> None:
        self._publish = publish
        self._thread: ThreadPoolExecutor | None = None
        self._under_way: Future[PublishResult] | None = None  # in the main process alone
        self._result: PublishResult | None = None
        self._step: int | None = None

    @property
    def step(self) -> int | None:
        """The number of optimizer steps taken when the last publication began; None before the first."""
        return self._step

    def begin(self, weights: Callable[[], Weights], step: int) -> None:
        """Start to publish the weights after ``step`` optimizer steps, which ``weights`` returns, unless already begun.

        ``weights`` is called in every process, since sharded weights are gathered from all. The tensors must not change
        before the publication has ended.
        """
        if step == self._step:
            return
        found = weights()
        self._step, self._result = step, None
        if process_rank() == 0:
            self._thread = self._thread or ThreadPoolExecutor(max_workers=1, thread_name_prefix="publish-weights")
            self._under_way = self._thread.submit(self._publish, found, step)

    def finish(self) -> PublishResult:
        """Return the result of the last publication, in every process, once its weights serve.

        Raises:
            MainProcessError: in the other processes, if the publication failed.
            the client's error that stopped it, in the main process.
        """
        if self._result is None:
            self._result = on_main_process(self._wait)
        return self._result

    def at(self, step: int) -> PublishResult:
        """Return the publication of the weights after ``step`` steps, once they serve.

        Call it in the main process, or, after `finish`, in any process.

        Raises:
            VigorError: other weights were published last.
            the error that stopped the publication.
        """
        if self._step != step:
            last = "none were" if self._step is None else f"those of step {self._step} were last"
            raise VigorError(
                f"the weights of step {step} are not published, {last}; give the trainer this WeightPublisher as a "
                "callback"
            )
        return self._result or self._wait()

    def forget(self) -> None:
        """Make the next `begin` publish whatever its step is: training begins, or may have loaded an earlier model."""
        self._step = self._under_way = self._result = None

    def close(self) -> None:
        """Wait for a publication that is under way."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
            self._thread = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _wait(self) -> PublishResult:
        if self._under_way is None:
            raise VigorError("this process has no publication to finish; call begin() first")
        return self._under_way.result()
