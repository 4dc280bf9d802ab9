"""What each family scores: short and long beside each other, shared prompts, a mask, an end inside.

Long ones exceed ``WINDOW`` in prompt, completion or both; shared prompts are long enough for the engine to share.
"""

from __future__ import annotations

import random

from tests.sweep.sizes import BOS, EOS, WINDOW
from vigor_service.engine.sequences import TokenSequence

_FIRST_ID, _LAST_ID = 1, 250  # bytes; above are special tokens and those of images


def sequences(seed: int) -> list[TokenSequence]:
    """Return the sequences of a seed."""
    rng = random.Random(seed)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(rng.randint(_FIRST_ID, _LAST_ID) for _ in range(count))

    short_prompt, long_prompt = (BOS, *ids(19)), ids(WINDOW + 5)
    return [
        TokenSequence(short_prompt, (*ids(6), EOS)),
        TokenSequence(ids(3), ids(4)),
        TokenSequence(ids(12), ids(2 * WINDOW)),
        TokenSequence(short_prompt, ids(WINDOW + 9)),
        TokenSequence(ids(1), ids(1)),
        TokenSequence(long_prompt, (*ids(3), EOS, *ids(4)), (True, True, False, True, True, False, False, False)),
        TokenSequence(long_prompt, ids(WINDOW)),
    ]
