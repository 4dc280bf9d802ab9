"""Choice of the layout that a model is scored in: the first that proves exact. If none does, the reference scores.

A model that cannot score text is refused before that.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import nn
from transformers import PreTrainedModel

from vigor_service.engine.memory.out_of_memory import is_out_of_memory
from vigor_service.engine.model.unwrap import causal_model
from vigor_service.engine.norms.check_cache import CheckCache, Outcome, outcome_key
from vigor_service.engine.norms.fast import FastNorms
from vigor_service.engine.norms.plan import LAYOUTS, UnsupportedModelError, self_check_sequences
from vigor_service.engine.norms.reference import exact_score, loss_logits
from vigor_service.engine.norms.self_check import check, reason

logger = logging.getLogger(__name__)

_SAME_LOGITS = 0.1  # the order of summation may change logits by this in 16 bits; random draws change more


class UnscorableModelError(ValueError):
    """Not even a plain forward and backward pass over some token ids works; the message says what the model raises."""


def choose_layout(
    model: PreTrainedModel, measured: Mapping[str, nn.Parameter], cache: CheckCache | None
) -> tuple[FastNorms | None, Outcome]:
    """Return the fast path in the first layout that proves exact, or None for the reference, and the check's outcome.

    A model whose outcome is in the cache is not checked again. The log says why a layout is not used.
    """
    key = "" if cache is None else outcome_key(model, measured)
    outcome = None if cache is None else cache.read(key)
    if outcome is not None:
        logger.info("this model was checked before: layout=%s", outcome.layout or "none")
        fast = None if outcome.layout is None else FastNorms(model, measured, layouts=[outcome.layout])
    else:
        fast, outcome = _check_layouts(model, measured)
        if cache is not None:
            cache.write(key, outcome)
    if fast is None:
        _require_gradients(model, measured)
        logger.warning("scoring one sequence at a time: %s", outcome.reason)
    elif not outcome.layers_run_twice:
        fast.layers = []
    return fast, outcome


def require_policy_of_text(model: PreTrainedModel) -> None:
    """Check that the model gives logits for token ids alone, and the same logits each time."""
    architecture = type(causal_model(model)).__name__
    try:
        sequence = self_check_sequences(causal_model(model))[0]
        with torch.no_grad():
            first_TV, second_TV = (loss_logits(model, sequence).float() for _ in range(2))
    except Exception as error:  # whatever a model's own code raises
        if is_out_of_memory(error):
            raise
        raise UnscorableModelError(f"{architecture} cannot score text: {reason(error)}") from error
    if not torch.allclose(first_TV, second_TV, rtol=_SAME_LOGITS, atol=_SAME_LOGITS, equal_nan=True):
        raise UnscorableModelError(
            f"{architecture} gives other logits for the same ids each time, so its norms cannot be reproduced"
        )


def _require_gradients(model: PreTrainedModel, measured: Mapping[str, nn.Parameter]) -> None:
    try:
        exact_score(model, self_check_sequences(causal_model(model))[0], measured)
    except Exception as error:  # whatever a model's own code raises
        if is_out_of_memory(error):
            raise
        raise UnscorableModelError(f"{type(causal_model(model)).__name__} has no gradient: {reason(error)}") from error


def _check_layouts(model: PreTrainedModel, measured: Mapping[str, nn.Parameter]) -> tuple[FastNorms | None, Outcome]:
    why = ""
    for layout in LAYOUTS:
        try:
            fast = FastNorms(model, measured, layouts=[layout])
            trust = check(fast, model, measured)
        except UnsupportedModelError as error:
            why = reason(error)
        except Exception as error:  # a model's own code may raise anything where it is not run as it was written for
            if is_out_of_memory(error):
                raise
            why = reason(error)
            logger.warning("the %s layout is not used: %s", layout, why)
        else:
            return fast, Outcome(layout, trust.max_tokens, trust.layers_run_twice)
    return None, Outcome(None, reason=why)
