"""All implementations of norms of weight gradients, on a CUDA device: ``python -m benchmarks.kernels``.

For the linear layers of Qwen2.5 and several lengths, all in one run: the time of each implementation, Triton kernels
next to their torch counterparts, and the fastest one, which the engine would choose.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.measuring import hardware
from vigor_service.engine.ops.autotune import Implementation, UnavailableError, device_seconds
from vigor_service.engine.ops.kernels import gram_norm, product_norm
from vigor_service.engine.ops.kernels.row_ranges import RowRanges, row_ranges

NormImplementation = Callable[[Tensor, Tensor, RowRanges], Tensor]
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_LENGTHS = (128, 256, 512, 1024, 2048)
# model -> features, features of keys (and of values), features inside the MLP
_QWEN = {
    "0.5B": (896, 128, 4864),
    "1.5B": (1536, 256, 8960),
    "3B": (2048, 256, 11008),
    "7B": (3584, 512, 18944),
}
_TEMPLATE = """\
# Kernels for norms of weight gradients

- date: {date}
- hardware: {hardware}
- software: {software}
- command: `{command}`
- work: {sequences} sequences of one length, {dtype}; milliseconds, medians of 5
- ratios: torch / Triton of the same method; above 1 the kernel wins
- error: the largest relative difference of a kernel's norm from float64's, of the first sequence

| Qwen2.5 | matrix | tokens | {implementations} | Gram ratio | product ratio | fastest | error |
|---|---|---|{rules}|---|---|---|---|
{rows}
"""


def main(arguments: Sequence[str]) -> None:
    """Measure, print the report, and write it where ``--out`` says."""
    options = _parse(arguments)
    device = torch.device("cuda")
    rows = [
        row(name, matrix, length, options.sequences, _DTYPES[options.dtype], device)
        for name in options.models
        for matrix in matrices(*_QWEN[name]).items()
        for length in options.lengths
    ]
    report = _TEMPLATE.format(
        date=f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}",
        hardware=hardware(device),
        software=f"torch {torch.__version__}, triton {importlib.metadata.version('triton')}",
        command=" ".join(["python -m benchmarks.kernels", *arguments]),
        sequences=options.sequences,
        dtype=options.dtype,
        implementations=" | ".join(norm_implementations()),
        rules="|".join("---" for _ in norm_implementations()),
        rows="\n".join(rows),
    )
    print(report)
    if options.out is not None:
        options.out.write_text(report)


def matrices(num_features: int, num_key_features: int, num_inner: int) -> dict[str, tuple[int, int]]:
    """Return the numbers of inputs and outputs of the distinct linear layers of a model."""
    return {
        "q, o": (num_features, num_features),
        "k, v": (num_features, num_key_features),
        "gate, up": (num_features, num_inner),
        "down": (num_inner, num_features),
    }


def norm_implementations() -> dict[str, NormImplementation]:
    """Return every implementation, whether the engine would time it or not."""
    from vigor_service.engine.ops.kernels import gram_norm_triton, product_norm_triton

    return {
        "Gram in torch": gram_norm.gram_norms,
        "Gram in Triton": gram_norm_triton.gram_norms,
        "product in torch": product_norm.product_norms,
        "product in Triton": product_norm_triton.product_norms,
    }


def row(
    model: str,
    matrix: tuple[str, tuple[int, int]],
    length: int,
    num_sequences: int,
    dtype: torch.dtype,
    device: torch.device,
    seconds: Callable[[Implementation], float] = device_seconds,
) -> str:
    """Time every implementation on one matrix and one length; return a row of the table."""
    name, sizes = matrix
    generator = torch.Generator(device).manual_seed(0)
    x_NI, gradient_NO = (
        torch.randn(num_sequences * length, size, generator=generator, device=device, dtype=dtype) for size in sizes
    )
    ranges = row_ranges([(b * length, (b + 1) * length) for b in range(num_sequences)], device)
    times = {
        name: _seconds(implementation, x_NI, gradient_NO, ranges, seconds)
        for name, implementation in norm_implementations().items()
    }
    error = max(_errors(x_NI, gradient_NO, ranges))
    cells = [model, name, str(length), *(f"{1000 * time:.3f}" for time in times.values()), *_ratios(times)]
    return f"| {' | '.join(cells)} | {min(times, key=lambda name: times[name])} | {error:.0e} |"


def _seconds(
    implementation: NormImplementation,
    x_NI: Tensor,
    gradient_NO: Tensor,
    ranges: RowRanges,
    seconds: Callable[[Implementation], float],
) -> float:
    """Return the time of one implementation; infinity if it does not run, with the reason on standard error."""
    try:
        return seconds(lambda: implementation(x_NI, gradient_NO, ranges))
    except (UnavailableError, torch.OutOfMemoryError) as error:
        print(error, file=sys.stderr)
        return float("inf")


def _ratios(times: Mapping[str, float]) -> list[str]:
    return [
        f"{times[f'{implementation} in torch'] / times[f'{implementation} in Triton']:.2f}"
        for implementation in ("Gram", "product")
    ]


def _errors(x_NI: Tensor, gradient_NO: Tensor, ranges: RowRanges) -> Iterator[float]:
    """Yield the relative error of each kernel's norm of the first sequence, where the kernel runs."""
    first = row_ranges(ranges.bounds[:1], x_NI.device)
    (x_TI,), (gradient_TO,) = first.split(x_NI), first.split(gradient_NO)
    expected = (gradient_TO.double().T @ x_TI.double()).square().sum()
    for name, implementation in norm_implementations().items():
        if name.endswith("Triton"):
            try:
                norm = implementation(x_NI, gradient_NO, first)[0]
            except UnavailableError:
                yield float("nan")
            else:
                yield (norm / expected - 1).abs().item()


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__)
    parser.add_argument("--models", nargs="+", choices=_QWEN, default=list(_QWEN))
    parser.add_argument("--lengths", nargs="+", type=int, default=list(_LENGTHS))
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--dtype", choices=_DTYPES, default="bfloat16")
    parser.add_argument("--out", type=Path, help="also write the report to this file")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        parser.error("kernels are timed on a CUDA device, and there is none")
    return options


if __name__ == "__main__":
    main(sys.argv[1:])
