"""A process short of memory scores a batch that needs more: `python -m tests.engine.memory.short_of_memory`.

Prints the most tokens that fitted at once, the batch's tokens, the largest error against the scores from before, the
length of a sequence that did not fit alone, and the length that was said to fit.
"""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from tests.engine.cases import largest_error
from tests.support.tiny_models import VOCAB_SIZE, tiny_model
from vigor_service.engine.engine import Engine
from vigor_service.engine.memory.out_of_memory import num_tokens
from vigor_service.engine.sequences import TokenSequence

HEADROOM_BYTES = 96 << 20  # a quarter of what the whole batch needs, many times what one sequence needs
SIZES: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 2048, "num_hidden_layers": 4}


def prompt_heavy_model() -> PreTrainedModel:
    """A tiny model whose linear layers' outputs take about 90 kB a token."""
    return tiny_model("llama", **SIZES)


def prompt_heavy_sequences() -> list[TokenSequence]:
    """32 prompts of 120 tokens, two short completions each: the outputs for the prompts are in memory all at once."""
    prompts = [tuple((7 * index + position) % VOCAB_SIZE for position in range(120)) for index in range(32)]
    return [TokenSequence(prompt, (ending,) * 3) for prompt in prompts for ending in (1, 2)]


def long_sequence() -> TokenSequence:
    """One that needs more memory than the headroom, and what the process has kept, by itself."""
    return TokenSequence((1,) * 4000, (2, 3) * 4000)


def forbid_growth(pid: int, headroom_bytes: int) -> None:
    """Limit the address space of a process to what it has now and a little more."""
    num_pages = int(Path(f"/proc/{pid or 'self'}/statm").read_text().split()[0])
    limit = num_pages * resource.getpagesize() + headroom_bytes
    resource.prlimit(pid, resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


def main() -> None:
    engine = Engine(
        prompt_heavy_model(), name="tiny", method="rules"
    )  # the reference takes one sequence after the other
    sequences = prompt_heavy_sequences()
    eighths = [sequences[start : start + 8] for start in range(0, len(sequences), 8)]
    # What the heap has kept of an eighth, with the headroom, does not do for all at once.
    expected = [score for part in eighths for score in engine.score(part).scores]
    forbid_growth(0, HEADROOM_BYTES)
    result = engine.score(sequences)
    alone = engine.score([long_sequence()])
    assert result.fitting_tokens is not None
    print(result.fitting_tokens, num_tokens(sequences), largest_error(result.scores, expected))
    print(long_sequence().num_tokens, alone.too_long[long_sequence()])


if __name__ == "__main__":
    main()
