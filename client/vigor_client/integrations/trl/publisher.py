"""Publishing the weights of TRL's own GRPOTrainer: always before they generate, and known to its reward function.

A callback sees optimizer steps, not generation. So it publishes at the start of each optimizer step that generates, and
at the end of one that is evaluated. Whole models alone: what is sharded, or has an adapter, is `vigor-trainer`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, cast

from vigor_client.client import VigorClient
from vigor_client.errors import VigorError
from vigor_client.publishing.publish import PublishResult
from vigor_client.publishing.snapshot import WeightSnapshot
from vigor_client.publishing.transports.weight_transport import WeightTransport

if TYPE_CHECKING:
    import torch


class GenerationSettings(Protocol):
    """What is asked of a ``GRPOConfig``."""

    @property
    def eval_on_start(self) -> bool: ...
    @property
    def gradient_accumulation_steps(self) -> int: ...
    @property
    def steps_per_generation(self) -> int | None: ...
    @property
    def num_iterations(self) -> int: ...


class TrainerState(Protocol):
    """What is asked of transformers' ``TrainerState``."""

    @property
    def global_step(self) -> int: ...


class TrainerControl(Protocol):
    """What is asked of transformers' ``TrainerControl``."""

    @property
    def should_evaluate(self) -> bool: ...


class WeightPublisher:
    """Publishes a GRPOTrainer's weights, from its main process, under the number of optimizer steps taken so far.

    A callback of transformers that the reward function knows too, and then refuses scores from other weights:
    ``GRPOTrainer(callbacks=[weights], reward_funcs=VigorReward(…, weights=weights), …)``. A failed publication stops
    all processes of the run.

    Args:
        url: where the service listens.
        snapshot, transport: as in ``VigorClient.publish_weights``.
        connect: makes the client: ``partial(VigorClient, timeout_seconds=900)``.
    """

    def __init__(
        self,
        url: str,
        *,
        snapshot: WeightSnapshot | None = None,
        transport: WeightTransport | None = None,
        connect: Callable[[str], VigorClient] = VigorClient,
    ) -> None:
        self._url = url
        self._snapshot = snapshot
        self._transport = transport
        self._connect = connect
        self._model: torch.nn.Module | None = None
        self._step: int | None = None
        self._publication: PublishResult | None = None
        self._num_micro_steps = 0

    @property
    def is_training(self) -> bool:
        """Whether TRL trains, not evaluates: asked as TRL itself does."""
        return self._model is None or self._model.training

    def at(self, step: int) -> PublishResult:
        """The publication of the weights after ``step`` optimizer steps.

        Raises:
            VigorError: other weights were published last.
        """
        if self._publication is None or self._step != step:
            last = "none were" if self._step is None else f"those of step {self._step} were last"
            raise VigorError(f"the weights of step {step} are not published, {last}: is the callback the trainer's?")
        return self._publication

    def on_train_begin(
        self,
        args: GenerationSettings,
        state: TrainerState,
        _control: TrainerControl,
        *,
        model: torch.nn.Module,
        **_others: object,
    ) -> None:
        """Take the model that the training begins with; nothing of it is published yet.

        Raises:
            VigorError: it is not whole in each process, or it has an adapter.
        """
        refuse_parts(_distribution(), model)
        self._model, self._step = model, None
        if args.eval_on_start:
            self._publish(state.global_step)

    def on_step_begin(
        self, args: GenerationSettings, state: TrainerState, _control: TrainerControl, **_others: object
    ) -> None:
        """Publish if this optimizer step generates: TRL does in every so many-th micro step."""
        generate_every = (args.steps_per_generation or 1) * args.num_iterations
        following = range(self._num_micro_steps, self._num_micro_steps + args.gradient_accumulation_steps)
        if any(micro_step % generate_every == 0 for micro_step in following):
            self._publish(state.global_step)

    def on_substep_end(self, *_event: object, **_others: object) -> None:
        """Count micro steps as TRL does."""
        self._num_micro_steps += 1

    def on_step_end(
        self, _args: GenerationSettings, state: TrainerState, control: TrainerControl, **_others: object
    ) -> None:
        """Count likewise, and publish what is evaluated next."""
        self._num_micro_steps += 1
        if control.should_evaluate:
            self._publish(state.global_step)

    def on_epoch_end(
        self, _args: GenerationSettings, state: TrainerState, control: TrainerControl, **_others: object
    ) -> None:
        """Publish what is evaluated next."""
        if control.should_evaluate:
            self._publish(state.global_step)

    def on_train_end(
        self, _args: GenerationSettings, state: TrainerState, _control: TrainerControl, **_others: object
    ) -> None:
        """Publish what training ended with, which may be an earlier, better model loaded again."""
        self._step = None
        self._publish(state.global_step)

    if not TYPE_CHECKING:  # which would take every name for a method

        def __getattr__(self, name: str) -> Callable[..., None]:
            """transformers calls a method for every event, also for those that nothing follows from here."""
            if name.startswith("on_"):
                return _ignore
            raise AttributeError(name)

    def _publish(self, step: int) -> None:
        """Publish the weights as they are after ``step`` optimizer steps; all processes come here."""
        if step == self._step:
            return
        from accelerate import PartialState  # pyright: ignore[reportMissingTypeStubs] - it has none
        from accelerate.utils import broadcast_object_list  # pyright: ignore - likewise

        outcome: list[PublishResult | None] = [None]
        try:
            if PartialState().is_main_process:
                outcome[0] = self._send(step)
        finally:
            broadcast_object_list(cast("list[Any]", outcome))  # also a failure: nobody is left waiting
        if outcome[0] is None:
            raise VigorError("the main process could not publish the weights, see its message")
        self._step, self._publication = step, outcome[0]

    def _send(self, step: int) -> PublishResult:
        if self._model is None:
            raise VigorError("nothing to publish: training has not begun")
        with self._connect(self._url) as client:
            return client.publish_weights(
                self._model.state_dict(), weight_version=step, snapshot=self._snapshot, transport=self._transport
            )


def refuse_parts(distribution: str, model: torch.nn.Module) -> None:
    """Refuse what has no whole state dict of its own in the main process.

    Raises:
        VigorError: names it.
    """
    if distribution != "NO" and not distribution.startswith("MULTI_"):
        raise VigorError(f"the model is spread over the processes ({distribution}): train it by vigor-trainer")
    if hasattr(model, "peft_config"):
        raise VigorError("the model has an adapter: train it by vigor-trainer, which publishes adapters")


def _ignore(*_event: object, **_others: object) -> None:
    pass


def _distribution() -> str:
    """Accelerate's name of how the model lies over the processes, such as `NO`, `MULTI_GPU` or `FSDP`."""
    from accelerate.state import AcceleratorState  # pyright: ignore[reportMissingTypeStubs] - it has none

    return str(cast("Any", AcceleratorState()).distributed_type.value)
