"""Print the peak memory, in bytes, of one long sequence: run by test_checkpoints.py in a process of its own."""

from __future__ import annotations

import sys

from tests.support.tiny_models import tiny_model
from vigor_service.engine.memory.activation_policy import Activations
from vigor_service.engine.memory.token_budget import resident_peak
from vigor_service.engine.model.parameter_selection import measured_parameters
from vigor_service.engine.norms.fast import FastNorms
from vigor_service.engine.sequences import TokenSequence

_PROMPT = tuple(range(64))


def main(activations: Activations) -> None:
    model = tiny_model(hidden_size=256, intermediate_size=512, num_hidden_layers=24, max_position_embeddings=4096)
    fast = FastNorms(model, measured_parameters(model))
    fast.score([TokenSequence(_PROMPT, _PROMPT)], activations=activations)  # libraries take memory of their own once
    peak = resident_peak()
    before = peak.start()
    fast.score([TokenSequence(_PROMPT, tuple(index % 300 for index in range(2048)))], activations=activations)
    print((peak.read() or 0) - (before or 0))


if __name__ == "__main__":
    main(Activations[sys.argv[1]])
