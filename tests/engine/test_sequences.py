"""A sequence costs the same to find, however long its prompt is."""

from collections.abc import Callable, Iterator
from time import process_time

import pytest

from vigor_service.engine.sequences import PromptIds, TokenSequence

PROMPT = tuple(range(100, 120))


class CountedId(int):
    """A token id that counts how often it is hashed or compared."""

    num_uses = 0

    def __hash__(self) -> int:
        CountedId.num_uses += 1
        return int.__hash__(self)

    def __eq__(self, other: object) -> bool:
        CountedId.num_uses += 1
        return int.__eq__(self, other)


def _uses(work: Callable[[], object]) -> int:
    before = CountedId.num_uses
    work()
    return CountedId.num_uses - before


def test_a_prompt_is_hashed_once_for_all_the_sequences_that_share_it() -> None:
    prompt = PromptIds(map(CountedId, PROMPT))
    sequences = [TokenSequence(prompt, (index,)) for index in range(50)]
    again = [TokenSequence(prompt, (index,)) for index in range(50)]
    found: list[bool] = []
    uses = _uses(lambda: found.extend(sequence in set(sequences) for sequence in again))
    assert found == [True] * 50
    assert uses == 0
    assert _uses(lambda: [TokenSequence(prompt, (index,)) for index in range(50)]) == 0
    assert _uses(lambda: {sequence.prompt_ids: 0 for sequence in sequences}) == 0


def test_equal_prompts_of_different_requests_are_compared_without_their_ids() -> None:
    ours = TokenSequence(tuple(map(CountedId, PROMPT)), (1,))
    theirs = TokenSequence(tuple(map(CountedId, PROMPT)), (1,))
    assert _uses(lambda: {ours: 0}[theirs]) == 0
    assert _uses(lambda: ours.prompt_ids == theirs.prompt_ids) == 0
    assert ours == theirs


def test_finding_sequences_costs_no_time_that_grows_with_the_prompt() -> None:
    def seconds(num_ids: int) -> float:
        prompt = PromptIds(range(num_ids))
        ours, theirs = ([TokenSequence(prompt, (index,)) for index in range(2000)] for _ in range(2))
        began = process_time()
        assert len(set(ours) | set(theirs)) == 2000
        return process_time() - began

    assert min(seconds(20_000) for _ in range(3)) < 10 * min(seconds(10) for _ in range(3)) + 0.01


def _different() -> Iterator[TokenSequence]:
    yield TokenSequence((1, 2), (3,))
    yield TokenSequence((1,), (2, 3))
    yield TokenSequence((1, 2, 3), ())
    yield TokenSequence((1, 2), (4,))
    yield TokenSequence((1, 2), (3,), (True,))
    yield TokenSequence((1, 2), (3,), (False,))
    yield TokenSequence((1, 2), (3, 0))
    yield TokenSequence((1, 2), (3, 256))
    yield TokenSequence((1, 2), (3 + (1 << 32),))


def test_what_differs_in_prompt_completion_or_mask_is_not_equal() -> None:
    sequences = list(_different())
    assert len(set(sequences)) == len(sequences)
    assert len({sequence.digest for sequence in sequences}) == len(sequences)
    assert set(sequences) == set(_different())


def test_a_sequence_equals_nothing_but_a_sequence() -> None:
    sequence = TokenSequence((1, 2), (3,))
    assert sequence != (sequence.prompt_ids, sequence.completion_ids, None)


def test_a_prompt_is_the_tuple_of_its_ids() -> None:
    prompt = PromptIds([1, 2, 3])
    assert prompt == (1, 2, 3)
    assert prompt == (1, 2, 3)
    assert prompt != (1, 2)
    found: dict[tuple[int, ...], str] = {(1, 2, 3): "found"}
    assert found[prompt] == "found"
    assert (*prompt, 4) == (1, 2, 3, 4)
    assert PromptIds(prompt) is prompt


def test_the_digest_is_that_of_all_ids_however_many_are_hashed_at_once() -> None:
    ids = [7 * index % 65_537 for index in range(200_000)]
    changed = [*ids[:-1], ids[-1] + 1]
    assert PromptIds(ids).digest == PromptIds(tuple(ids)).digest
    assert PromptIds(ids).digest != PromptIds(changed).digest
    assert TokenSequence((1,), tuple(ids)) != TokenSequence((1,), tuple(changed))


def test_a_sequence_needs_a_prompt_and_a_mask_as_long_as_its_completion() -> None:
    with pytest.raises(ValueError, match="at least one prompt token"):
        TokenSequence((), (1,))
    with pytest.raises(ValueError, match="1 mask entries for 2"):
        TokenSequence((1,), (2, 3), (True,))
