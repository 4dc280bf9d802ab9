"""The engine against the ideal loop, family by family: ``python -m benchmarks.families``.

Random models of width 256, from families that people train and that differ from a plain transformer. Engine and loop
alternate in one process, on the same groups of eight completions.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from benchmarks.report import Cell, Report, Table, finish, new_report
from vigor_service.engine.engine import Engine
from vigor_service.engine.memory.malloc import tune_heap
from vigor_service.engine.norms.reference import requiring_grad
from vigor_service.engine.sequences import TokenSequence

_SIZES: dict[str, Any] = {
    "vocab_size": 4096,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 1024,
}
_EXPERTS: dict[str, Any] = {"num_local_experts": 8, "num_experts": 8, "num_experts_per_tok": 2}
_SMALL_EXPERTS: dict[str, Any] = {**_EXPERTS, "moe_intermediate_size": 128, "shared_expert_intermediate_size": 256}
_LINEAR_ATTENTION: dict[str, Any] = {
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 64,
    "linear_value_head_dim": 64,
    "layer_types": ["linear_attention", "full_attention"] * 2,
}
_MAMBA: dict[str, Any] = {"mamba_n_heads": 8, "mamba_d_head": 64, "mamba_d_state": 32, "mamba_n_groups": 1}
# family -> (model type, settings that differ from the common sizes)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt-oss": ("gpt_oss", {**_EXPERTS, "sliding_window": 64}),
    "Qwen3-Next": ("qwen3_next", {**_SMALL_EXPERTS, **_LINEAR_ATTENTION}),
    "Qwen3.5": ("qwen3_5_text", _LINEAR_ATTENTION),
    "Llama 4": (
        "llama4_text",
        {
            "num_local_experts": 8,
            "intermediate_size_mlp": 512,
            "attention_chunk_size": 64,
            "no_rope_layers": [1, 1, 1, 0],
        },
    ),
    "Gemma 3": ("gemma3_text", {"sliding_window": 64, "query_pre_attn_scalar": 64}),
    "Gemma 4": (
        "gemma4_text",
        {"sliding_window": 64, "hidden_size_per_layer_input": 32, "vocab_size_per_layer_input": 4096},
    ),
    "Granite hybrid": (
        "granitemoehybrid",
        {**_EXPERTS, **_MAMBA, "layer_types": ["mamba", "attention"] * 2, "shared_intermediate_size": 256},
    ),
    "LFM2": ("lfm2", {"layer_types": ["conv", "full_attention"] * 2, "block_ff_dim": 512}),
    "Falcon-H1": ("falcon_h1", {**_MAMBA, "mamba_d_ssm": 512, "lm_head_multiplier": 0.5}),
    "Apertus": ("apertus", {}),
}
_COLUMNS = {
    "family": ("", "{}"),
    "layout": ("layout", "{}"),
    "loop_seconds": ("ideal loop, s", "{:.2f}"),
    "engine_seconds": ("engine, s", "{:.2f}"),
    "ratio": ("loop / engine", "{:.2f}×"),
    "error": ("largest difference of a norm", "{:.0e}"),
}


def main(arguments: Sequence[str]) -> Report:
    """Measure, print the page, and write it where ``--out`` says."""
    options = _parse(arguments)
    tune_heap(short_of_memory=False)
    rows = [_row(family, options.repeats) for family in options.families.split(",")]
    notes = ["eight completions of 90 to 160 tokens after a prompt of 96, float32; medians over the rounds"]
    tables = [Table("families", _COLUMNS, rows)]
    report = new_report("Families", "benchmarks.families", arguments, torch.device("cpu"), tables, notes)
    finish(report, options.out)
    return report


def _row(family: str, repeats: int) -> dict[str, Cell]:
    model = _random_model(family)
    engine = Engine(model, name=family)
    contestants: dict[str, Callable[[Sequence[TokenSequence]], list[float]]] = {
        "loop": lambda sequences: _loop(model, sequences),
        "engine": lambda sequences: [score.grad_norm for score in engine.score(sequences).scores],
    }
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    error = 0.0
    for number in range(repeats + 1):  # the first round warms up
        norms = {name: _timed(run, _group(number), seconds[name]) for name, run in contestants.items()}
        pairs = zip(norms["engine"], norms["loop"], strict=True)
        error = max(error, *(abs(norm / wanted - 1) for norm, wanted in pairs))
        print(f"{family}: round {number} of {repeats}", file=sys.stderr)
    loop, own = seconds["loop"][1:], seconds["engine"][1:]
    return {
        "family": family,
        "layout": "reference" if "exact" in engine.info.rules else engine.info.layout,
        "loop_seconds": median(loop),
        "engine_seconds": median(own),
        "ratio": median(left / right for left, right in zip(loop, own, strict=True)),
        "error": error,
    }


def _random_model(family: str) -> PreTrainedModel:
    model_type, differences = FAMILIES[family]
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{**_SIZES, **differences})
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def _group(seed: int) -> list[TokenSequence]:
    random = Random(seed)
    prompt = tuple(random.choices(range(4096), k=96))
    lengths = [random.randint(90, 160) for _ in range(8)]
    return [TokenSequence(prompt, tuple(random.choices(range(4096), k=length))) for length in lengths]


def _loop(model: PreTrainedModel, sequences: Sequence[TokenSequence]) -> list[float]:
    """Return the norms of ``benchmarks.loops.ideal_loop``, for models some of whose parameters have no gradient."""
    parameters = list(model.parameters())
    norms: list[float] = []
    with requiring_grad(model, parameters):
        for sequence in sequences:
            positions = torch.tensor(sequence.loss_positions())
            ids_1L = torch.tensor([sequence.token_ids])
            logits_TV = model(input_ids=ids_1L, logits_to_keep=positions, use_cache=False).logits[0]
            loss = nn.functional.cross_entropy(logits_TV, torch.tensor(sequence.loss_targets()))
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            squares = [torch.linalg.vector_norm(g) for g in gradients if g is not None]
            norms.append(torch.linalg.vector_norm(torch.stack(squares)).item())
    return norms


def _timed(
    run: Callable[[Sequence[TokenSequence]], list[float]], group: Sequence[TokenSequence], seconds: list[float]
) -> list[float]:
    start = time.perf_counter()
    norms = run(group)
    seconds.append(time.perf_counter() - start)
    return norms


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.families", description=__doc__)
    parser.add_argument("--families", default=",".join(FAMILIES), help="names from the table, with commas between them")
    parser.add_argument("--repeats", type=int, default=5, help="rounds after the first, which warms up")
    parser.add_argument("--out", type=Path, help="where to write the result: OUT.json and OUT.md")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
