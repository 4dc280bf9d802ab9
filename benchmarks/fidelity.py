"""Approximations against exact norms, on real groups: ``python -m benchmarks.fidelity``.

Every variant scores the same groups, sampled by the policy itself and kept in ``benchmarks/data``. A group is one
batch, and all variants score it before the next one. Reports how far the ranks within groups agree with those of exact
float32 norms (Kendall's tau-b), and the cost of each variant.
"""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean, median

import torch
import transformers

from benchmarks.agreement import kendall_tau_b, same_best, spearman_rho
from benchmarks.measuring import hardware, timed
from benchmarks.sampling import SampledGroup, load_groups, sample_groups, save_groups
from vigor_service.engine.engine import Engine
from vigor_service.engine.loading.loading import Policy, load_policy

_DATA = Path(__file__).resolve().parent / "data" / "groups.json"
_TEMPLATE = """\
# Approximations against exact norms

- date: {date}
- hardware: {hardware}
- software: {software}
- command: `{command}`
- model: {model}
- work: {work}
- sampled: {how}

| flags | τ-b, mean | τ-b, worst group | Spearman, mean | same best completion | largest error of a norm | seconds | time / exact |
|---|---|---|---|---|---|---|---|
{rows}

Agreement is with the first line, within groups. Neighbours in its ranks differ by {gap} of their norm (median). A norm
of fewer parameters is a different quantity, so it has no error. Seconds are the median over groups, one batch each; the last
column is the median ratio to the first line on the same group.
"""  # noqa: E501 - a table


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to score, as settings of the service."""

    parameters: str | None = None
    norm_probes: int | None = None
    dtype: str = "float32"

    @property
    def flags(self) -> str:
        """The flags of ``vigor-service`` for this variant; on a CPU its default is the exact norm in float32."""
        given = {"parameters": self.parameters, "norm-probes": self.norm_probes}
        flags = [f"--{name} {value}" for name, value in given.items() if value is not None]
        return " ".join([f"--dtype {self.dtype}", *flags])


EXACT = Variant()
VARIANTS = (
    EXACT,
    Variant(dtype="bfloat16"),
    Variant("last-1-layers"),
    Variant("last-4-layers"),
    Variant("last-8-layers"),
    Variant("last-15-layers"),
    Variant("norms"),
    Variant(norm_probes=4),
    Variant(norm_probes=16),
    Variant(norm_probes=64),
    Variant(norm_probes=16, dtype="bfloat16"),
    Variant("last-15-layers", norm_probes=16),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """A variant's norms of each group, and the seconds each group took."""

    norms: list[list[float]]  # √T-corrected, in the order of the group's completions
    seconds: list[float]


def main() -> None:
    """Measure, print the report, and write it where ``--out`` says."""
    options = _parse(sys.argv[1:])
    policies = {dtype: load_policy(options.model, dtype=dtype, device=options.device) for dtype in _dtypes(VARIANTS)}
    policy = policies[EXACT.dtype]
    if options.sample:
        _sample(policy, options)
    groups, how = load_groups(options.data, model=policy.name)
    groups = [group for group in groups if len(set(group.sequences)) > 1][: options.groups]
    engines = {variant: make_engine(policies[variant.dtype], variant) for variant in VARIANTS}
    outcomes = measure(engines, groups)
    report = _report(options, policy, groups, how, outcomes)
    print(report)
    if options.out is not None:
        options.out.write_text(report)


def make_engine(policy: Policy, variant: Variant) -> Engine:
    """Return an engine that scores as the variant says.

    Raises:
        RuntimeError: the engine would fall back to the reference, so cost and norms would not be the variant's.
    """
    engine = Engine(policy.model, name=policy.name, parameters=variant.parameters, norm_probes=variant.norm_probes)
    if engine.info.layout != "packed":
        raise RuntimeError(f"{variant.flags}: the fast path does not score {policy.name}; see the log")
    return engine


def measure(engines: Mapping[Variant, Engine], groups: Sequence[SampledGroup]) -> dict[Variant, Outcome]:
    """Score every group with every engine in turn, after one warm-up sequence; return the outcomes."""
    for engine in engines.values():
        engine.score(groups[0].sequences[:1])
    outcomes = {variant: Outcome([], []) for variant in engines}
    for group in groups:
        for variant, engine in engines.items():
            norms, seconds = _score(engine, group)
            outcomes[variant].norms.append(norms)
            outcomes[variant].seconds.append(seconds)
    return outcomes


def _score(engine: Engine, group: SampledGroup) -> tuple[list[float], float]:
    """Return the scaled norms and the seconds; equal completions are computed once, as in the service."""
    distinct = list(dict.fromkeys(group.sequences))
    result, seconds = timed(lambda: engine.score(distinct), torch.device(engine.info.device))
    norms = {s: score.scaled_grad_norm for s, score in zip(distinct, result.scores, strict=True)}
    return [norms[sequence] for sequence in group.sequences], seconds


def table_row(variant: Variant, outcome: Outcome, exact: Outcome) -> str:
    """Return the variant's row of the report."""
    pairs = list(zip(exact.norms, outcome.norms, strict=True))
    taus = [kendall_tau_b(*pair) for pair in pairs]
    cells = [
        f"`{variant.flags}`",
        f"{mean(taus):.3f}",
        f"{min(taus):.2f}",
        f"{mean(spearman_rho(*pair) for pair in pairs):.3f}",
        f"{sum(same_best(*pair) for pair in pairs)} of {len(pairs)}",
        f"{_largest_error(pairs):.1e}" if variant.parameters is None else "–",
        f"{median(outcome.seconds):.2f}",
        f"{median(own / other for own, other in zip(outcome.seconds, exact.seconds, strict=True)):.2f}×",
    ]
    return f"| {' | '.join(cells)} |"


def _largest_error(pairs: Sequence[tuple[list[float], list[float]]]) -> float:
    return max(abs(norm / wanted - 1) for exact, norms in pairs for wanted, norm in zip(exact, norms, strict=True))


def _median_gap(groups: Sequence[Sequence[float]]) -> float:
    """Return the median relative difference of norms adjacent in rank, without those of equal completions."""
    return median(above / below - 1 for norms in groups for below, above in pairwise(sorted(set(norms))))


def _report(
    options: argparse.Namespace,
    policy: Policy,
    groups: Sequence[SampledGroup],
    how: str,
    outcomes: Mapping[Variant, Outcome],
) -> str:
    sequences = [sequence for group in groups for sequence in group.sequences]
    num_completions = sum(len(sequence.completion_ids) for sequence in sequences)
    return _TEMPLATE.format(
        date=f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}",
        hardware=hardware(policy.model.device),
        software=f"torch {torch.__version__}, transformers {transformers.__version__}",
        command=" ".join(["python -m benchmarks.fidelity", *sys.argv[1:]]),
        model=f"{policy.name}, {policy.model.num_parameters() / 1e6:.0f} M parameters",
        work=f"{len(groups)} groups, {len(sequences)} completions of {num_completions / len(sequences):.0f} tokens on "
        f"average; {sum(sequence.num_tokens for sequence in sequences)} tokens in all (`{options.data.name}`)",
        how=how,
        rows="\n".join(table_row(variant, outcome, outcomes[EXACT]) for variant, outcome in outcomes.items()),
        gap=f"{_median_gap(outcomes[EXACT].norms):.1%}",
    )


def _sample(policy: Policy, options: argparse.Namespace) -> None:
    groups = sample_groups(
        policy, num_completions=options.completions, max_new_tokens=options.max_new_tokens, seed=options.seed
    )
    how = (
        f"temperature 1, at most {options.max_new_tokens} new tokens, seed {options.seed}; torch {torch.__version__}, "
        f"transformers {transformers.__version__}"
    )
    save_groups(options.data, groups, model=policy.name, how=how)


def _dtypes(variants: Sequence[Variant]) -> set[str]:
    return {variant.dtype for variant in variants}


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fidelity", description=__doc__)
    parser.add_argument("--model", help="directory, hub name or .gguf file; the embedded model if not given")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--data", type=Path, default=_DATA, help="the groups that are scored")
    parser.add_argument("--groups", type=int, help="number of groups to score, from the first on (default: all)")
    parser.add_argument("--sample", action="store_true", help="first sample the groups anew, and keep them in --data")
    parser.add_argument("--completions", type=int, default=8, help="of a group that is sampled (default: %(default)s)")
    parser.add_argument("--max-new-tokens", type=int, default=96, help="likewise (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="likewise (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="also write the report to this file")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
