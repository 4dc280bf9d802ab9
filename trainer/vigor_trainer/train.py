"""Assembles and executes a run: service, tokenizer, tasks, trainer, final weights, checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from transformers import PreTrainedTokenizerBase
from trl import GRPOConfig, ModelConfig, get_peft_config  # pyright: ignore[reportPrivateImportUsage] - exported lazily

from vigor_client import Broadcast, SharedDirectory, VigorClient, WeightSnapshot, WeightTransport
from vigor_client.integrations.trl.distributed import process_rank
from vigor_client.integrations.trl.trl_shape import READ_BY_VIGOR_TRAINER, check_installed_trl
from vigor_trainer.building import building
from vigor_trainer.collapse_callback import CollapseCallback
from vigor_trainer.config.arguments import BUILTINS, PROGRAM, BuiltinName, VigorArguments
from vigor_trainer.config.parsing import Arguments, describe_cpu_settings, parse_arguments
from vigor_trainer.connection import connected
from vigor_trainer.data.prompt_lengths import fitting_prompts, prompt_counter
from vigor_trainer.data.tasks import Example, as_dataset, read_task
from vigor_trainer.description import describe_run, shown_command
from vigor_trainer.errors import InterruptedRunError, UnsupportedSettingError
from vigor_trainer.evaluation.completions import questions_of
from vigor_trainer.evaluation.during_training import EvaluationCallback, Evaluations, HeldOut
from vigor_trainer.evaluation.models import load_tokenizer, model_name, sampler_of
from vigor_trainer.monitoring.alerts import tracker_alerts
from vigor_trainer.monitoring.collapse import CollapseWarning, CollapseWatch
from vigor_trainer.monitoring.record_file import Resumption
from vigor_trainer.monitoring.run_files import RunFiles, output_directory
from vigor_trainer.monitoring.step_times import StepTimer
from vigor_trainer.resume import Checkpoint, find_checkpoint, last_checkpoint
from vigor_trainer.rewards.custom import CustomReward, load_reward
from vigor_trainer.rewards.groups import ScoreOptions
from vigor_trainer.rewards.round_rewards import RoundRewards
from vigor_trainer.rewards.rules import NEED_ANSWERS, RANKED, RuleOptions
from vigor_trainer.trainer import VigorTrainer
from vigor_trainer.weights.publisher import Publisher
from vigor_trainer.weights.saving import save_final_model

if TYPE_CHECKING:
    from datasets import Dataset  # pyright: ignore[reportMissingTypeStubs] - it has none
    from transformers import PreTrainedModel

_DTYPES_OF_16_BITS = ("bfloat16", "float16")


def main(argv: Sequence[str]) -> None:
    """Train as the command line says. Raises as ``run``; a wrong command line ends the program with code 2."""
    run(parse_arguments(argv), command=shown_command(PROGRAM, argv))


def run(arguments: Arguments, *, command: str | None = None) -> None:
    """Train, publish the final weights, and save them with the tokenizer to `output_dir`.

    Raises:
        TrainerError: see its tree.
        InterruptedRunError: Ctrl-C during the steps.
        UnsupportedTrlError: the installed TRL lacks what is read from it.
        VigorError: the service cannot be reached, or refuses.
    """
    check_installed_trl(READ_BY_VIGOR_TRAINER)
    vigor, grpo, model = arguments
    if (line := describe_cpu_settings(grpo)) is not None:
        print(line, flush=True)
    output_dir = output_directory(cast("str", grpo.output_dir), flag="--output_dir")
    checkpoint = find_checkpoint(grpo.resume_from_checkpoint, output_dir)
    name = model_name(vigor.model or model.model_name_or_path)
    tokenizer = load_tokenizer(name, revision=model.model_revision, trust_remote_code=grpo.trust_remote_code)
    tasks = _read_tasks(vigor, grpo, tokenizer)
    names = _named_rewards(vigor, tasks)
    resumption = _resumption(grpo, output_dir, checkpoint)
    files = _run_files(output_dir, resumption)
    watch = _collapse_watch(vigor, grpo, names, files)
    files.tell(watch)
    if checkpoint is not None:
        watch.saved(str(checkpoint.directory))
    with connected(vigor) as client, _publisher(vigor, client) as publisher:
        datasets = _datasets(vigor, grpo, tokenizer, client, tasks)
        files.describe(describe_run(arguments, name, client.model(), datasets, command))
        with building("the trainer cannot be built"):
            grpo.model_init_kwargs = _model_init_kwargs(grpo, model)
            trainer = VigorTrainer(
                publisher=publisher,
                step_timer=_step_timer(files),
                model=name,
                args=grpo,
                reward_funcs=_rewards(vigor, grpo, client, publisher, files, names, watch).functions,
                callbacks=[CollapseCallback(watch, stops=vigor.stop_on_collapse)],
                processing_class=tokenizer,
                peft_config=get_peft_config(model),
                **datasets,
            )
            _add_evaluations(trainer, arguments, tokenizer, datasets.get("eval_dataset"), resumption)
        with building("the run cannot begin", is_over=lambda: trainer.has_begun):
            _train(trainer, checkpoint, output_dir)
        final = trainer.publish_final_weights()
    save_final_model(trainer, output_dir)
    if trainer.accelerator.is_main_process:
        if vigor.stop_on_collapse and watch.has_warned:
            print(f"stopped by --stop_on_collapse; the last good checkpoint: {watch.last_good_checkpoint or 'none'}")
        print(f"saved {grpo.output_dir}; the service holds version {final.weight_version}, {final.weight_digest}")


def _add_evaluations(
    trainer: VigorTrainer,
    arguments: Arguments,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset | None,
    resumption: Resumption | None,
) -> None:
    """Evaluate held-out questions during the run, if ``--eval_every`` asks for it."""
    vigor, grpo, _ = arguments
    if not vigor.eval_every or dataset is None:
        return
    rows = [cast("dict[str, Any]", row) for row in dataset.select(range(min(vigor.eval_limit, len(dataset))))]  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    prompts = [(row["prompt"], row["answer"], row.get("tests")) for row in rows]
    sampler = sampler_of(
        cast("PreTrainedModel", trainer.model),  # pyright: ignore[reportUnknownMemberType] - partly untyped in TRL
        tokenizer,
        max_completion_length=grpo.max_completion_length,
        batch_size=grpo.per_device_eval_batch_size,
        seed=grpo.seed,
    )
    held_out = HeldOut(
        questions_of(prompts, tokenizer, _template_kwargs(grpo)), vigor.eval_num_samples, grpo.temperature
    )
    directory = Path(cast("str", grpo.output_dir))
    earlier = Resumption(resumption.step) if resumption else None  # the checkpoint's step was already evaluated
    evaluations = Evaluations(trainer, held_out, sampler, tokenizer, directory, earlier)
    evaluate = trainer.step_timer.measure("evaluate")(evaluations.evaluate)
    trainer.add_callback(EvaluationCallback(evaluate, every=vigor.eval_every))


def _step_timer(files: RunFiles) -> StepTimer:
    """Return a timer of steps, whose times the main process records."""
    return StepTimer(lambda step: files.append_step(step) if process_rank() == 0 else None)


def _template_kwargs(grpo: GRPOConfig) -> dict[str, Any]:
    return cast("dict[str, Any] | None", grpo.chat_template_kwargs) or {}  # pyright: ignore[reportUnknownMemberType]


def _train(trainer: VigorTrainer, checkpoint: Checkpoint | None, output_dir: Path) -> None:
    directory = checkpoint and str(checkpoint.directory)
    try:
        trainer.train(resume_from_checkpoint=directory)  # pyright: ignore[reportUnknownMemberType] - partly untyped
    except KeyboardInterrupt as error:
        raise InterruptedRunError(_what_is_saved(output_dir, trainer.state.global_step)) from error


def _what_is_saved(output_dir: Path, step: int) -> str:
    saved = last_checkpoint(output_dir)
    if saved is None:
        return (
            f"interrupted after step {step}, no checkpoint was saved (give --save_strategy steps --save_steps N to "
            "save some)"
        )
    return (
        f"interrupted after step {step}, saved up to step {saved.step} in {saved.directory} "
        "(continue with --resume_from_checkpoint true)"
    )


def _resumption(grpo: GRPOConfig, output_dir: Path, checkpoint: Checkpoint | None) -> Resumption | None:
    """Return the point at which a run resumes in its own directory; None for a new run."""
    goes_on = checkpoint is not None and checkpoint.directory.resolve().parent == output_dir.resolve()
    return Resumption(checkpoint.step, grpo.eval_on_start) if checkpoint is not None and goes_on else None


def _run_files(output_dir: Path, resumption: Resumption | None) -> RunFiles:
    """Return the files of a resumed run or of a new one."""
    try:
        return RunFiles(output_dir, resumption)
    except ValueError as error:
        raise UnsupportedSettingError(f"--resume_from_checkpoint: {error}; move the file away") from error


def _publisher(vigor: VigorArguments, client: VigorClient) -> Publisher:
    sends_deltas = vigor.deltas == "on" or (vigor.deltas == "auto" and client.weights().dtype in _DTYPES_OF_16_BITS)
    return Publisher(client, WeightSnapshot() if sends_deltas else None, transport=_transport(vigor))


def _transport(vigor: VigorArguments) -> WeightTransport | None:
    if vigor.shared_directory is not None:
        return SharedDirectory(Path(vigor.shared_directory))
    if vigor.broadcast is None:
        return None
    try:
        return Broadcast(backend=vigor.broadcast, host=vigor.broadcast_host)
    except ValueError as error:
        raise UnsupportedSettingError(f"--broadcast_host: {error}") from error


def _rewards(
    vigor: VigorArguments,
    grpo: GRPOConfig,
    client: VigorClient,
    publisher: Publisher,
    files: RunFiles,
    names: Sequence[BuiltinName | CustomReward],
    watch: CollapseWatch,
) -> RoundRewards:
    options = ScoreOptions(
        rules=RuleOptions(
            ties=vigor.ties, sqrt_length=vigor.vigor_sqrt_length, rank=vigor.vigor_rank, min_spread=vigor.min_spread
        ),
        truncated="worst" if grpo.mask_truncated_completions else "score",
        wait_seconds=vigor.wait_seconds,
        seed=grpo.seed,
    )
    return RoundRewards(client, publisher, options, names, record=files.append, watch=watch.observe)


def _collapse_watch(
    vigor: VigorArguments, grpo: GRPOConfig, names: Sequence[BuiltinName | CustomReward], files: RunFiles
) -> CollapseWatch:
    """Return the collapse watch, whose warnings are printed, recorded, and sent to the trackers in use."""
    with building("--report_to"):
        alerts = tracker_alerts(cast("list[str]", grpo.report_to))

    def warn(warning: CollapseWarning) -> None:
        print(f"warning: {warning}", flush=True)
        files.warn(warning)
        for alert in alerts:
            alert(f"vigor: {warning.cause}", str(warning))

    first = next((name for name in names if not isinstance(name, CustomReward)), None)
    ranks = first in RANKED and vigor.min_spread == 0  # groups below the minimum spread tie on purpose
    return CollapseWatch(ranks=ranks, on_warning=warn)


def _named_rewards(vigor: VigorArguments, tasks: dict[str, list[Example]]) -> list[BuiltinName | CustomReward]:
    """Return the rewards of the run.

    Raises:
        UnsupportedSettingError: a reward is unknown, or needs answers that prompts lack.
    """
    examples = [example for part in tasks.values() for example in part]
    for name in NEED_ANSWERS:
        without = next((example for example in examples if example.answer is None and example.tests is None), None)
        if name in vigor.reward and without is not None:
            raise UnsupportedSettingError(f"--reward {name}: {without.place} has no answer and no tests")
    with_tests = next((example for example in examples if example.tests is not None), None)
    if "majority" in vigor.reward and with_tests is not None:
        raise UnsupportedSettingError(
            f"--reward majority: {with_tests.place} has tests, and majority cannot compare programs"
        )
    return [name if name in BUILTINS else load_reward(name) for name in vigor.reward]


def _model_init_kwargs(grpo: GRPOConfig, model: ModelConfig) -> dict[str, Any]:
    """Return the model's keyword arguments as TRL's own GRPO script passes them."""
    given = {"revision": model.model_revision, "attn_implementation": model.attn_implementation, "dtype": model.dtype}
    return given | cast("dict[str, Any]", grpo.model_init_kwargs or {})


def _read_tasks(
    vigor: VigorArguments, grpo: GRPOConfig, tokenizer: PreTrainedTokenizerBase
) -> dict[str, list[Example]]:
    has_chat_template = getattr(tokenizer, "chat_template", None) is not None

    def read(name: str, split: str, seed: int) -> list[Example]:
        source = vigor.source(name, split=split, seed=seed)
        return read_task(source, has_chat_template=has_chat_template)

    tasks = {"train_dataset": read(vigor.dataset, vigor.dataset_split, grpo.seed)}
    if (grpo.eval_strategy != "no" or vigor.eval_every) and vigor.eval_dataset is not None:
        # Another seed: a generated task must not be evaluated on the questions it is trained on.
        tasks["eval_dataset"] = read(vigor.eval_dataset, vigor.eval_dataset_split, grpo.seed + 1)
    return tasks


def _datasets(
    vigor: VigorArguments,
    grpo: GRPOConfig,
    tokenizer: PreTrainedTokenizerBase,
    client: VigorClient,
    tasks: dict[str, list[Example]],
) -> dict[str, Dataset]:
    """Return the datasets, with only prompts that fit into the service's context together with a full completion."""
    num_tokens = prompt_counter(tokenizer, _template_kwargs(grpo))
    room = client.model().max_sequence_tokens - (grpo.max_completion_length or 1)
    max_prompt_tokens = min(room, vigor.max_prompt_length or room)
    return {
        name: as_dataset(
            fitting_prompts(
                examples,
                num_tokens,
                max_prompt_tokens=max_prompt_tokens,
                overlong=vigor.overlong_prompts,
                report=lambda line: print(line, flush=True),
            )
        )
        for name, examples in tasks.items()
    }
