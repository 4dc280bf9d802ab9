"""One family: the engine's norms beside those of the loop in float64."""

from __future__ import annotations

import tempfile
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, isclose, isfinite
from pathlib import Path
from typing import TypeAlias

import transformers
from transformers import PreTrainedModel

from tests.support.tiny_models import tiny_tokenizer
from tests.sweep.double_loop import Expected, expected_score, rounding_of_float32
from tests.sweep.families import Family, tiny_policy
from tests.sweep.sequences import sequences
from vigor_service.engine.engine import Engine
from vigor_service.engine.interface import Scorer
from vigor_service.engine.loading.loading import load_policy
from vigor_service.engine.model.parameter_selection import measured_parameters
from vigor_service.engine.norms.parallel_reference import Reference
from vigor_service.engine.sequences import SequenceScore, TokenSequence

# Relative, in float32. Rounding costs most families 1e-6, and the smallest fault that was found 5e-3. Models whose
# states decay (gated delta rules) lose up to 1e-4 in float32 by themselves: they may be off by more, as the plain loop
# in float32 is.
TOLERANCE = 2e-5
_TIMES_PLAIN_LOOP = 10  # two orders of summation differ by that much in one of many sequences
_MOST = 5e-4  # and never by more
NEAR_TIE = 1e-5  # a choice among experts or keys this close is one that rounding in float32 may turn
_SEEDS = range(8)
EXACT = ("exact-packed", "exact-single", "exact-loop")
GOOD = (*EXACT, "refused")

MakeEngine: TypeAlias = Callable[[PreTrainedModel], Scorer]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a family: one of ``GOOD``, "wrong", "crashed", or "not built" where the sweep has no tiny model."""

    family: str
    architecture: str
    verdict: str
    detail: str = ""
    error: float | None = (
        None  # the largest, relative, of all sequences scored together, each alone, and by the reference
    )
    closest_choice: float | None = None


def check(family: Family, make_engine: MakeEngine | None = None, *, is_loaded: bool = True) -> Outcome:
    """Say what the engine does with the family.

    The model is saved and loaded as a service loads it, unless ``is_loaded`` is false.
    """
    verdict, detail, error, closest = _check(family, make_engine or _engine, is_loaded=is_loaded)
    return Outcome(family.name, family.architecture, verdict, detail, error, closest)


_Found: TypeAlias = tuple[str, str, float | None, float | None]


def _check(family: Family, make_engine: MakeEngine, *, is_loaded: bool) -> _Found:
    try:
        model = tiny_policy(family)
    except ImportError as error:
        return "refused", " ".join(str(error).split())[:60], None, None
    except Exception as error:  # noqa: BLE001 - whatever a model's own code raises
        return "not built", _describe(error), None, None
    scored, expected, why_not = _scored_and_expected(model)
    try:
        loaded = _saved_and_loaded(model) if is_loaded else model
        if type(loaded) is not type(model):  # the text class of a model whose own takes no text alone
            scored, expected, why_not = _scored_and_expected(loaded)
        engine = make_engine(loaded)
        if why_not:
            return "wrong", f"taken as a policy of text, which it is not: {why_not}", None, None
        together = engine.score(scored).scores
        alone = [engine.score([sequence]).scores[0] for sequence in scored]
        at_once = Reference(loaded, measured_parameters(loaded), num_threads=2).score(scored)
    except Exception as error:  # noqa: BLE001
        return _refused_or_crashed(error), _describe(error), None, None
    errors = [_error(scores, expected) for scores in (together, alone, at_once)]
    closest = min(score.closest_choice for score in expected)
    layout = "exact-loop" if "exact" in engine.info.rules else f"exact-{engine.info.layout}"
    if max(errors) <= TOLERANCE or max(errors) <= min(_MOST, _TIMES_PLAIN_LOOP * _rounding(model, scored, expected)):
        return layout, "", max(errors), closest
    return (
        "wrong",
        f"{layout}, off by {errors[0]:.1e} together, {errors[1]:.1e} alone, {errors[2]:.1e} by the reference at once",
        max(errors),
        closest,
    )


def _engine(model: PreTrainedModel) -> Engine:
    return Engine(model, name="swept", method="rules")  # also where the reference is faster


def _scored_and_expected(model: PreTrainedModel) -> tuple[list[TokenSequence], list[Expected], str]:
    """Return sequences, what they should score, and why the model cannot be asked for the logits of ids alone, if so.

    In the sequences no choice is a near tie, if one of the seeds has such; else they are those of the last seed.
    """
    scored, expected = sequences(_SEEDS[0]), []
    for seed in _SEEDS:
        scored, expected = sequences(seed), []
        try:
            for each in scored:
                expected.append(expected_score(model, each.token_ids, each.loss_positions()))
                if expected[-1].closest_choice <= NEAR_TIE and seed != _SEEDS[-1]:
                    break  # the others of this seed do not matter
            again = expected_score(model, scored[0].token_ids, scored[0].loss_positions())
        except Exception as error:  # noqa: BLE001 - whatever a model's own code raises
            return scored, [], _describe(error)
        if not isclose(again.grad_norm, expected[0].grad_norm, rel_tol=1e-9):
            return scored, [], "the same ids have other logits each time"
        if not all(isfinite(score.grad_norm) and score.grad_norm > 0 for score in expected):
            return scored, [], f"norms are {[score.grad_norm for score in expected]}"
        if min(score.closest_choice for score in expected) > NEAR_TIE:
            break
    return scored, expected, ""


def _saved_and_loaded(model: PreTrainedModel) -> PreTrainedModel:
    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory)
        tiny_tokenizer().save_pretrained(directory)
        return load_policy(directory, device="cpu").model


def _error(scores: Sequence[SequenceScore], expected: Sequence[Expected]) -> float:
    """Return the largest relative error of a norm, or absolute error of a mean log-probability."""
    pairs = list(zip(scores, expected, strict=True))
    norms = [abs(score.grad_norm / wanted.grad_norm - 1) for score, wanted in pairs]
    logprobs = [abs(score.mean_logprob - wanted.mean_logprob) for score, wanted in pairs]
    return max(error if isfinite(error) else inf for error in norms + logprobs)


def _rounding(model: PreTrainedModel, scored: Sequence[TokenSequence], expected: Sequence[Expected]) -> float:
    return max(
        rounding_of_float32(model, sequence.token_ids, sequence.loss_positions(), wanted)
        for sequence, wanted in zip(scored, expected, strict=True)
    )


def _refused_or_crashed(error: Exception) -> str:
    """Errors of the service's own are refusals by name."""
    return "refused" if type(error).__module__.startswith("vigor_service") else "crashed"


def _describe(error: Exception) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]} ({Path(frame.filename).name}:{frame.lineno})"


def check_quietly(family: Family, *, is_loaded: bool) -> Outcome:
    """``check`` without the warnings of a hundred models."""
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return check(family, is_loaded=is_loaded)
