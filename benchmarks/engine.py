"""The engine against the loops it replaces: ``python -m benchmarks.engine``.

One group of completions of one prompt, scored by the published loop, by an ideal loop and by the engine, in turn,
several times, in one process. Reports medians of time, peak memory above the weights, and the fraction of the floor:
the time that ``4 · P · tokens`` floating point operations take at the rate of large matrix products.
"""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import torch
import transformers

from benchmarks.loops import ideal_loop, published_loop
from benchmarks.measuring import gemm_flops_per_second, hardware, peak_bytes, timed
from vigor_service.engine.engine import Engine
from vigor_service.engine.loading import Policy, load_policy
from vigor_service.engine.sequences import TokenSequence

_ROOT = Path(__file__).resolve().parent.parent
_TEMPLATE = """\
# Engine against loops

- date: {date}
- hardware: {hardware}
- software: {software}
- command: `{command}`
- model: {model}
- work: {work}
- medians of {repeats} rounds, the three in turn within each round; memory from a round of its own before them

| | seconds | time / engine | peak MiB above weights | peak / published | of the floor | largest difference |
|---|---|---|---|---|---|---|
{rows}

The floor is {floor} s: 4 · P · tokens operations (the head on loss rows only) at the measured rate of large matrix
products. The last column is the largest relative difference of a norm from the ideal loop's.
"""


def main() -> None:
    """Measure, print the report, and write it where ``--out`` says."""
    options = _parse(sys.argv[1:])
    policy = load_policy(options.model, dtype=options.dtype, device=options.device)
    engine = Engine(policy.model, name=policy.name)
    sequences = make_group(policy, options.completions, options.prompt_tokens, options.completion_tokens)
    contestants: dict[str, Callable[[], list[float]]] = {
        "published loop": lambda: _with_gradients(policy, published_loop, sequences),
        "ideal loop": lambda: _with_gradients(policy, ideal_loop, sequences),
        "engine": lambda: _in_batches(engine, sequences, options.max_batch_tokens),
    }
    device = policy.model.device
    peaks = {name: peak_bytes(contestant, device) for name, contestant in contestants.items()}  # warms up, too
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    norms: dict[str, list[float]] = {}
    for _ in range(options.repeats):
        for name, contestant in contestants.items():
            norms[name], elapsed = timed(contestant, device)
            seconds[name].append(elapsed)
    medians = {name: median(runs) for name, runs in seconds.items()}
    report = _report(options, policy, sequences, medians, peaks, norms)
    print(report)
    if options.out is not None:
        options.out.write_text(report)


def make_group(
    policy: Policy, num_completions: int, num_prompt: int, completion_range: tuple[int, int]
) -> list[TokenSequence]:
    """Return one prompt with completions of evenly spread lengths, cut from a text that every clone has."""
    text = (_ROOT / "LICENSE").read_text()
    ids = policy.tokenizer(" ".join(text.split()))["input_ids"]
    shortest, longest = completion_range
    sequences: list[TokenSequence] = []
    start = num_prompt
    for index in range(num_completions):
        length = shortest + (longest - shortest) * index // max(1, num_completions - 1)
        completion = [ids[(start + offset) % len(ids)] for offset in range(length)]
        sequences.append(TokenSequence(tuple(ids[:num_prompt]), tuple(completion)))
        start += length
    return sequences


def _in_batches(engine: Engine, sequences: Sequence[TokenSequence], max_batch_tokens: int) -> list[float]:
    """Score within a token budget, longest first, as the service does; return norms in the given order."""
    norms: dict[TokenSequence, float] = {}
    waiting = sorted(sequences, key=lambda sequence: -sequence.num_tokens)
    while waiting:
        size = max(1, max_batch_tokens // waiting[0].num_tokens)
        batch, waiting = waiting[:size], waiting[size:]
        norms |= {s: score.grad_norm for s, score in zip(batch, engine.score(batch).scores, strict=True)}
    return [norms[sequence] for sequence in sequences]


def _with_gradients(
    policy: Policy, loop: Callable[..., list[float]], sequences: Sequence[TokenSequence]
) -> list[float]:
    policy.model.requires_grad_(True)
    try:
        return loop(policy.model, sequences)
    finally:
        policy.model.requires_grad_(False)


def _report(
    options: argparse.Namespace,
    policy: Policy,
    sequences: Sequence[TokenSequence],
    seconds: dict[str, float],
    peaks: dict[str, int],
    norms: dict[str, list[float]],
) -> str:
    num_tokens = sum(sequence.num_tokens for sequence in sequences)
    floor = _floor_seconds(policy, sequences)
    rows = [
        f"| {name} | {seconds[name]:.2f} | {seconds[name] / seconds['engine']:.2f}× | {peaks[name] / 2**20:.0f} "
        f"| {peaks[name] / peaks['published loop']:.2f} | {floor / seconds[name]:.0%} | {_error(norms, name):.1e} |"
        for name in seconds
    ]
    lengths = ", ".join(str(len(sequence.completion_ids)) for sequence in sequences)
    return _TEMPLATE.format(
        date=f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}",
        hardware=hardware(policy.model.device),
        software=f"torch {torch.__version__}, transformers {transformers.__version__}",
        command=" ".join(["python -m benchmarks.engine", *sys.argv[1:]]),
        model=f"{policy.name}, {policy.model.dtype}, {policy.model.num_parameters() / 1e6:.0f} M parameters",
        work=f"{len(sequences[0].prompt_ids)} prompt tokens, completions of {lengths}; {num_tokens} tokens in all",
        repeats=options.repeats,
        rows="\n".join(rows),
        floor=f"{floor:.2f}",
    )


def _floor_seconds(policy: Policy, sequences: Sequence[TokenSequence]) -> float:
    """``4 P N``: forward and input gradients; the head's part of P only on the rows of the loss, no lookup counted."""
    module = policy.model.get_output_embeddings()
    head = 0 if module is None else module.get_parameter("weight").numel()
    tables = sum(m.weight.numel() for m in policy.model.modules() if isinstance(m, torch.nn.Embedding))
    tied = policy.model.config.get_text_config().tie_word_embeddings
    body = policy.model.num_parameters() - tables - (0 if tied else head)
    num_tokens = sum(sequence.num_tokens for sequence in sequences)
    num_loss_tokens = sum(sequence.num_loss_tokens for sequence in sequences)
    flops = 4 * (body * num_tokens + head * num_loss_tokens)
    return flops / gemm_flops_per_second(policy.model.device, policy.model.dtype)


def _error(norms: dict[str, list[float]], name: str) -> float:
    return max(abs(norm / wanted - 1) for norm, wanted in zip(norms[name], norms["ideal loop"], strict=True))


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine", description=__doc__)
    parser.add_argument("--model", help="directory, hub name or .gguf file; the embedded model if not given")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--completions", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--completion-tokens", type=_range, default=(64, 192), metavar="SHORTEST:LONGEST")
    parser.add_argument("--max-batch-tokens", type=int, default=2048, help="of the engine (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="also write the report to this file")
    return parser.parse_args(arguments)


def _range(text: str) -> tuple[int, int]:
    shortest, _, longest = text.partition(":")
    return int(shortest), int(longest)


if __name__ == "__main__":
    main()
