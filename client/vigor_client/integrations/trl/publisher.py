"""Publishes the weights of TRL's own GRPOTrainer before they generate, and makes its reward function require them.

A callback sees optimizer steps, not generation. So it publishes at the start of each optimizer step that generates, and
at the end of one after which the model is evaluated. A model with a LoRA adapter is published as in `vigor-trainer`.
Only `vigor-trainer` publishes a sharded model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, cast

from vigor_client.client import VigorClient
from vigor_client.errors import VigorError
from vigor_client.integrations.trl.step_publisher import StepPublisher
from vigor_client.integrations.trl.trl_shape import READ_BY_ADAPTERS, check_installed_trl
from vigor_client.publishing.adapted_model import AdaptedModel, PublishedWeights, adapted_model, publish_model
from vigor_client.publishing.publish import PublishResult
from vigor_client.publishing.snapshot import WeightSnapshot
from vigor_client.publishing.transports.weight_transport import WeightTransport

if TYPE_CHECKING:
    import torch


class GenerationSettings(Protocol):
    """The part of a ``GRPOConfig`` that is read here."""

    @property
    def eval_on_start(self) -> bool: ...
    @property
    def gradient_accumulation_steps(self) -> int: ...
    @property
    def steps_per_generation(self) -> int | None: ...
    @property
    def num_iterations(self) -> int: ...


class TrainerState(Protocol):
    """The part of transformers' ``TrainerState`` that is read here."""

    @property
    def global_step(self) -> int: ...


class TrainerControl(Protocol):
    """The part of transformers' ``TrainerControl`` that is read here."""

    @property
    def should_evaluate(self) -> bool: ...


class WeightPublisher:
    """Publishes a GRPOTrainer's weights from its main process, under the number of optimizer steps taken so far.

    A transformers callback. Pass it to the reward function too, which then refuses scores from other weights:
    ``GRPOTrainer(callbacks=[weights], reward_funcs=VigorReward(…, weights=weights), …)``. A failed publication stops
    all processes of the run.

    Args:
        url: where the service listens.
        snapshot, transport: as in ``VigorClient.publish_weights``.
        connect: makes the client: ``partial(VigorClient, timeout_seconds=900)``.

    Raises:
        UnsupportedTrlError: the installed TRL lacks what is read from it.
    """

    def __init__(
        self,
        url: str,
        *,
        snapshot: WeightSnapshot | None = None,
        transport: WeightTransport | None = None,
        connect: Callable[[str], VigorClient] = VigorClient,
    ) -> None:
        check_installed_trl(READ_BY_ADAPTERS)
        self._url = url
        self._snapshot = snapshot
        self._transport = transport
        self._connect = connect
        self._model: torch.nn.Module | None = None
        self._adapted: AdaptedModel | None = None
        self._publisher = StepPublisher(self._send)
        self._num_micro_steps = 0

    @property
    def is_training(self) -> bool:
        """Whether TRL trains, as opposed to evaluates, by the same test as TRL's own."""
        return self._model is None or self._model.training

    def at(self, step: int) -> PublishResult:
        """Return the publication of the weights after ``step`` optimizer steps.

        Raises:
            VigorError: other weights were published last.
        """
        return self._publisher.at(step)

    def on_train_begin(
        self,
        args: GenerationSettings,
        state: TrainerState,
        _control: TrainerControl,
        *,
        model: torch.nn.Module,
        **_others: object,
    ) -> None:
        """Take the model that training begins with. Nothing of it is published yet.

        Raises:
            VigorError: the model is not whole in each process.
            UnsupportedAdapterError: it has an adapter that is not LoRA, or several.
        """
        refuse_parts(_distribution())
        self._model, self._adapted = model, adapted_model(model)
        self._publisher.forget()
        if args.eval_on_start:
            self._publish(state.global_step)

    def on_step_begin(
        self, args: GenerationSettings, state: TrainerState, _control: TrainerControl, **_others: object
    ) -> None:
        """Publish if this optimizer step generates: if one of its micro steps is a multiple of TRL's period."""
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
        """Count the last micro step of an optimizer step, and publish the weights that are evaluated next."""
        self._num_micro_steps += 1
        if control.should_evaluate:
            self._publish(state.global_step)

    def on_epoch_end(
        self, _args: GenerationSettings, state: TrainerState, control: TrainerControl, **_others: object
    ) -> None:
        """Publish the weights that are evaluated next."""
        if control.should_evaluate:
            self._publish(state.global_step)

    def on_train_end(
        self, _args: GenerationSettings, state: TrainerState, _control: TrainerControl, **_others: object
    ) -> None:
        """Publish the final weights, which may be those of an earlier, better model that was loaded again."""
        self._publisher.forget()
        self._publish(state.global_step)
        self._publisher.close()

    if not TYPE_CHECKING:  # hidden from type checkers, which would take every name for a method

        def __getattr__(self, name: str) -> Callable[..., None]:
            """Return a function that does nothing: transformers calls a method for every event, even an unused one."""
            if name.startswith("on_"):
                return _ignore
            raise AttributeError(name)

    def _publish(self, step: int) -> None:
        """Publish the weights as they are after ``step`` optimizer steps. All processes must call it."""
        if self._model is None:
            raise VigorError("training has not begun, so there are no weights to publish yet")
        self._publisher.begin(self._weights, step)
        self._publisher.finish()

    def _weights(self) -> PublishedWeights:
        return self._adapted or cast("torch.nn.Module", self._model).state_dict()

    def _send(self, weights: PublishedWeights, step: int) -> PublishResult:
        with self._connect(self._url) as client:
            return publish_model(
                client, weights, weight_version=step, snapshot=self._snapshot, transport=self._transport
            )


def refuse_parts(distribution: str) -> None:
    """Refuse a model of which the main process does not have the whole state dict.

    Raises:
        VigorError: the model is spread over the processes.
    """
    if distribution != "NO" and not distribution.startswith("MULTI_"):
        raise VigorError(f"the model is sharded over the processes ({distribution}); train it with vigor-trainer")


def _ignore(*_event: object, **_others: object) -> None:
    pass


def _distribution() -> str:
    """Return Accelerate's name for how the model is distributed, such as `NO`, `MULTI_GPU` or `FSDP`."""
    from accelerate.state import AcceleratorState  # pyright: ignore[reportMissingTypeStubs] - it has none

    return str(cast("Any", AcceleratorState()).distributed_type.value)
