"""Assemble a run and run it: service, tokenizer, tasks, trainer, final weights, checkpoint."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from trl import GRPOConfig, ModelConfig, get_peft_config  # pyright: ignore[reportPrivateImportUsage] - exported lazily

from vigor_client import Broadcast, SharedDirectory, Through, VigorClient, WeightSnapshot
from vigor_client.embedded import embedded_model_dir
from vigor_trainer.config import Arguments, VigorArguments, describe_cpu_settings
from vigor_trainer.errors import InvalidModelError, UnsupportedSettingError
from vigor_trainer.publish import Publisher
from vigor_trainer.records import RecordFile
from vigor_trainer.reward import ServiceReward
from vigor_trainer.saving import save_final_model
from vigor_trainer.scoring import ScoreOptions
from vigor_trainer.tasks import TaskSource, load_task
from vigor_trainer.trainer import VigorTrainer

_DTYPES_OF_16_BITS = ("bfloat16", "float16")


def run(arguments: Arguments) -> None:
    """Train, publish the weights that training ended with, and save them with the tokenizer to `output_dir`.

    Raises:
        TrainerError: see its tree.
        VigorError: the service cannot be reached, or refuses.
    """
    vigor, grpo, model = arguments
    if (line := describe_cpu_settings(grpo)) is not None:
        print(line, flush=True)
    model_name = vigor.model or model.model_name_or_path or str(embedded_model_dir())
    tokenizer = _load_tokenizer(model_name, grpo, model)
    tasks = _load_tasks(vigor, grpo, tokenizer)
    with _client(vigor) as client, _publisher(vigor, client) as publisher:
        grpo.model_init_kwargs = _model_init_kwargs(grpo, model)
        trainer = VigorTrainer(
            publisher=publisher,
            model=model_name,
            args=grpo,
            reward_funcs=_reward(vigor, grpo, client, publisher),
            processing_class=tokenizer,
            peft_config=get_peft_config(model),
            **tasks,
        )
        trainer.train(resume_from_checkpoint=grpo.resume_from_checkpoint)
        final = trainer.publish_final_weights()
    save_final_model(trainer, Path(cast("str", grpo.output_dir)))
    trainer.accelerator.print(
        f"saved {grpo.output_dir}; the service holds version {final.weight_version}, {final.weight_digest}"
    )


@contextmanager
def _client(vigor: VigorArguments) -> Iterator[VigorClient]:
    """Yield a client of a service that is ready."""
    try:
        client = VigorClient(vigor.reward_url, api_key=_api_key(vigor), timeout_seconds=vigor.score_timeout_seconds)
    except ValueError as error:
        raise UnsupportedSettingError(
            f"--reward_url, --api_key_file (VIGOR_API_KEY), --score_timeout_seconds: {error}"
        ) from error
    with client:
        print(f"waiting for the service at {vigor.reward_url}", flush=True)
        client.wait_until_ready(vigor.ready_timeout_seconds)
        yield client


def _api_key(vigor: VigorArguments) -> str | None:
    if vigor.api_key_file is None:
        return os.environ.get("VIGOR_API_KEY") or None
    try:
        return Path(vigor.api_key_file).read_text().strip()
    except OSError as error:
        raise UnsupportedSettingError(f"--api_key_file: {vigor.api_key_file}: {error.strerror}") from error


def _publisher(vigor: VigorArguments, client: VigorClient) -> Publisher:
    sends_deltas = vigor.deltas == "on" or (vigor.deltas == "auto" and client.weights().dtype in _DTYPES_OF_16_BITS)
    return Publisher(client, WeightSnapshot() if sends_deltas else None, through=_through(vigor))


def _through(vigor: VigorArguments) -> Through | None:
    if vigor.shared_directory is not None:
        return SharedDirectory(Path(vigor.shared_directory))
    if vigor.broadcast is None:
        return None
    try:
        return Broadcast(backend=vigor.broadcast, host=vigor.broadcast_host)
    except ValueError as error:
        raise UnsupportedSettingError(f"--broadcast_host: {error}") from error


def _reward(vigor: VigorArguments, grpo: GRPOConfig, client: VigorClient, publisher: Publisher) -> ServiceReward:
    options = ScoreOptions(
        reward=vigor.reward,
        ties=vigor.ties,
        truncated="worst" if grpo.mask_truncated_completions else "score",
        wait_seconds=vigor.wait_seconds,
    )
    records = RecordFile(Path(cast("str", grpo.output_dir)), keep=grpo.resume_from_checkpoint is not None)
    return ServiceReward(client, publisher, options, record=records.append)


def _model_init_kwargs(grpo: GRPOConfig, model: ModelConfig) -> dict[str, Any]:
    """As TRL's own GRPO script passes them on."""
    given = {"revision": model.model_revision, "attn_implementation": model.attn_implementation, "dtype": model.dtype}
    return given | cast("dict[str, Any]", grpo.model_init_kwargs or {})


def _load_tokenizer(model_name: str, grpo: GRPOConfig, model: ModelConfig) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(
            model_name,
            revision=model.model_revision,
            trust_remote_code=grpo.trust_remote_code,
            truncation_side="left",
            padding_side="left",
        )
    except (OSError, ValueError) as error:
        raise InvalidModelError(f"--model {model_name}: no tokenizer there: {error}") from error


def _load_tasks(
    vigor: VigorArguments, grpo: GRPOConfig, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Dataset | None]:
    has_chat_template = tokenizer.chat_template is not None

    def load(name: str, split: str, seed: int) -> Dataset:
        source = TaskSource(
            name=name,
            split=split,
            config=vigor.dataset_config,
            prompt_column=vigor.prompt_column,
            answer_column=vigor.answer_column,
            size=vigor.dataset_size,
            seed=seed,
        )
        return load_task(source, has_chat_template=has_chat_template)

    tasks: dict[str, Dataset | None] = {"train_dataset": load(vigor.dataset, vigor.dataset_split, grpo.seed)}
    if grpo.eval_strategy != "no" and vigor.eval_dataset is not None:
        # Another seed: a generated task must not be evaluated on the questions it is trained on.
        tasks["eval_dataset"] = load(vigor.eval_dataset, vigor.eval_dataset_split, grpo.seed + 1)
    return tasks
