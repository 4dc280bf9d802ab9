"""A checkpoint's files against what is served: all of it is made and checked before anything is applied."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.tiny_models import tiny_model
from vigor_service.engine.engine import Engine
from vigor_service.errors import InvalidRequestError
from vigor_service.weights.verification.checkpoint import VerifiedCheckpoint, common_prefix, verify_checkpoint
from vigor_service.weights.verification.fingerprint import initial_weights

Tensors = dict[str, torch.Tensor]
EXPERT = "model.layers.1.mlp.experts.2.up_proj.weight"


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(tiny_model("qwen3_moe", tie_word_embeddings=True), name="tiny")


@pytest.fixture
def saved(tmp_path: Path) -> Tensors:
    """The tensors of a trained model as it is saved, which are not the engine's."""
    model = tiny_model("qwen3_moe", tie_word_embeddings=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.25)
    model.save_pretrained(tmp_path / "saved")
    return load_file(tmp_path / "saved" / "model.safetensors")


def verify(engine: Engine, directory: Path, *files: Tensors) -> VerifiedCheckpoint:
    paths = {f"{index}.safetensors": directory / f"{index}.safetensors" for index in range(len(files))}
    for path, tensors in zip(paths.values(), files, strict=True):
        save_file(tensors, path, {"format": "pt"})
    return verify_checkpoint(paths, initial_weights(engine).tensors, engine.plan_checkpoint)


def refusals(engine: Engine, directory: Path, *files: Tensors) -> dict[str, str]:
    with pytest.raises(InvalidRequestError) as refused:
        verify(engine, directory, *files)
    return {str(error.loc[-1]): error.msg for error in refused.value.errors}


def test_experts_are_fused_and_every_tensor_is_written_once(engine: Engine, saved: Tensors, tmp_path: Path) -> None:
    verified = verify(engine, tmp_path, saved)
    written = {name: torch.zeros_like(tensor) for name, tensor in engine.tensors().items()}
    names = []
    for name, write in verified.writes():
        write(written[name])
        names.append(name)
    assert sorted(names) == sorted(engine.tensors())
    for name, tensor in engine.tensors().items():
        assert torch.equal(written[name], tensor * 1.25), name
    assert verified.num_changed_tensors == len(names)
    trained = Engine(tiny_model("qwen3_moe", tie_word_embeddings=True), name="trained")
    trained.load(verified.writes())
    assert verified.digest == initial_weights(trained).digest


def test_other_floating_dtypes_are_cast_as_at_start(engine: Engine, saved: Tensors, tmp_path: Path) -> None:
    half = {name: tensor.bfloat16() for name, tensor in saved.items()}
    as_float = {name: tensor.float() for name, tensor in half.items()}
    assert verify(engine, tmp_path, half).digest == verify(engine, tmp_path, as_float).digest


def test_shards_and_order_do_not_matter(engine: Engine, saved: Tensors, tmp_path: Path) -> None:
    parts: tuple[Tensors, Tensors] = ({}, {})
    for index, name in enumerate(sorted(saved, reverse=True)):
        parts[index % 2][name] = saved[name]
    assert verify(engine, tmp_path, *parts).digest == verify(engine, tmp_path, saved).digest


def test_a_tied_tensor_may_come_under_either_name(engine: Engine, saved: Tensors, tmp_path: Path) -> None:
    under_alias = dict(saved)
    under_alias["lm_head.weight"] = under_alias.pop("model.embed_tokens.weight")
    assert verify(engine, tmp_path, under_alias).digest == verify(engine, tmp_path, saved).digest
    both = saved | {"lm_head.weight": saved["model.embed_tokens.weight"] + 1}
    assert "is tied to model.embed_tokens.weight" in refusals(engine, tmp_path, both)["lm_head.weight"]


def without(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name}


@pytest.mark.parametrize(
    ("change", "place", "message"),
    [
        (without("model.norm.weight"), "model.norm.weight", "is missing, the model needs float32 [32]"),
        (without(EXPERT), "model.layers.1.mlp.experts.gate_up_proj", "cannot be made of"),
        (lambda tensors: tensors | {"stranger": torch.ones(1)}, "stranger", "the model has no such tensor"),
        (
            lambda tensors: tensors | {"model.norm.weight": torch.ones(31)},
            "model.norm.weight",
            "is float32 [31], the model needs float32 [32]",
        ),
        (
            lambda tensors: tensors | {EXPERT: tensors[EXPERT] * torch.nan},
            "model.layers.1.mlp.experts.gate_up_proj",
            "not finite",
        ),
        (
            lambda tensors: tensors | {"model.norm.weight": torch.ones(32, dtype=torch.int8)},
            "model.norm.weight",
            "does not turn into torch.float32",
        ),
    ],
)
def test_what_does_not_fit_is_named(
    engine: Engine, saved: Tensors, tmp_path: Path, change: Callable[[Tensors], Tensors], place: str, message: str
) -> None:
    faults = refusals(engine, tmp_path, change(saved))
    assert list(faults) == [place]
    assert message in faults[place]


def test_an_expert_missing_everywhere_does_not_make_a_smaller_layer(
    engine: Engine, saved: Tensors, tmp_path: Path
) -> None:
    fewer = {name: tensor for name, tensor in saved.items() if ".experts.5." not in name}
    assert "is float32 [5, 32, 32], the model needs float32 [6, 32, 32]" in refusals(engine, tmp_path, fewer).values()


def test_a_tensor_in_two_files_is_refused(engine: Engine, saved: Tensors, tmp_path: Path) -> None:
    again = {"model.norm.weight": saved["model.norm.weight"]}
    faults = refusals(engine, tmp_path, saved, again)
    assert faults == {"model.norm.weight": "is in file 0.safetensors already: send each tensor once"}


def test_a_prefix_of_all_names_is_told(engine: Engine, saved: Tensors, tmp_path: Path) -> None:
    wrapped = {f"_orig_mod.{name}": tensor for name, tensor in saved.items()}
    faults = refusals(engine, tmp_path, wrapped)
    assert "all names begin with '_orig_mod.'" in faults["_orig_mod.model.norm.weight"]
    assert common_prefix(["a.b", "c"]) == ""


def test_a_file_of_another_kind_is_refused(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"no safetensors at all")
    with pytest.raises(InvalidRequestError) as refused:
        verify_checkpoint(
            {"x.safetensors": tmp_path / "x.safetensors"}, initial_weights(engine).tensors, engine.plan_checkpoint
        )
    assert refused.value.errors[0].msg.startswith("not a safetensors file")
