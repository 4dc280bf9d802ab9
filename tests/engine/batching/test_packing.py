"""Sequences laid end to end."""

from __future__ import annotations

import pytest
import torch

from vigor_service.engine.batching.packing import pack, pack_prompts
from vigor_service.engine.sequences import TokenSequence

CPU = torch.device("cpu")


def test_sequences_lie_end_to_end_without_padding_and_positions_restart() -> None:
    batch = pack([TokenSequence((1, 2), (3, 4)), TokenSequence((5,), (6, 7, 8))], CPU)
    assert batch.input_ids_1N.tolist() == [[1, 2, 3, 5, 6, 7]]  # the last token of each predicts nothing
    assert batch.position_ids_1N.tolist() == [[0, 1, 2, 0, 1, 2]]
    assert batch.token_slices == [slice(0, 3), slice(3, 6)]
    assert batch.sequence_of_token_N().tolist() == [0, 0, 0, 1, 1, 1]


def test_loss_rows_predict_the_unmasked_completion_tokens() -> None:
    batch = pack([TokenSequence((1, 2), (3, 4, 5)), TokenSequence((5,), (6, 7, 8), (True, False, True))], CPU)
    assert batch.loss_rows_M.tolist() == [1, 2, 3, 4, 6]
    assert batch.targets_M.tolist() == [3, 4, 5, 6, 8]
    assert batch.loss_slices == [slice(0, 3), slice(3, 5)]


def test_what_follows_the_last_loss_token_is_left_out() -> None:
    batch = pack([TokenSequence((1, 2), (3, 4, 5, 6), (True, False, False, False))], CPU)
    assert batch.input_ids_1N.tolist() == [[1, 2]]


def test_a_sequence_without_loss_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="without loss tokens"):
        pack([TokenSequence((1,), (2,), (False,))], CPU)


def test_a_sequence_without_a_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one prompt token"):
        TokenSequence((), (2,))


def test_a_mask_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="2 mask entries for 1 completion tokens"):
        TokenSequence((1,), (2,), (True, True))


def test_prompts_lie_end_to_end_and_have_no_loss() -> None:
    batch = pack_prompts([(1, 2, 3), (4, 5)], CPU)
    assert batch.input_ids_1N.tolist() == [[1, 2, 3, 4, 5]]
    assert batch.position_ids_1N.tolist() == [[0, 1, 2, 0, 1]]
    assert batch.token_slices == [slice(0, 3), slice(3, 5)]
    assert batch.loss_slices == []
    assert batch.loss_rows_M.tolist() == []
