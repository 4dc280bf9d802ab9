from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, cast

import pytest
from jinja2 import TemplateError
from tokenizers import normalizers
from tokenizers.processors import TemplateProcessing
from transformers.convert_slow_tokenizer import bytes_to_unicode

from tests.service.scoring.test_continuation import sentencepiece
from tests.support.tiny_models import tiny_tokenizer
from vigor_client.schemas.prompts import GivenPrompt
from vigor_client.schemas.scoring import Completion, ScoreRequest
from vigor_service.errors import InvalidRequestError, SequenceTooLongError
from vigor_service.scoring.encoded import EncodedGroup
from vigor_service.scoring.end_tokens import generation_ends
from vigor_service.scoring.text_tokens import MAX_CHARACTERS_PER_TOKEN, TextTokens
from vigor_service.scoring.tokenization import Encoder

EOS = 257
VOCAB_SIZE = 320
LIMIT = 64
HI = [{"role": "user", "content": "Hi"}]


class Stub:
    """A tokenizer of one token per character, without a chat template."""

    eos_token_id: int | None = EOS

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:  # noqa: ARG002
        return [ord(character) for character in text]

    def decode(self, token_ids: list[int], *, clean_up_tokenization_spaces: bool) -> str:  # noqa: ARG002
        return "".join(map(chr, token_ids))

    def apply_chat_template(self, *_: object, **__: object) -> str:
        raise ValueError("there is none")


class Nothing(Stub):
    """A tokenizer to which every text is no token."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:  # noqa: ARG002
        return []


def _encoder(tokenizer: Any = None) -> Encoder:  # noqa: ANN401 - a tokenizer, or a stand-in for one
    chosen: Any = tokenizer or tiny_tokenizer()
    return Encoder(chosen, VOCAB_SIZE, LIMIT)


def _encode(*groups: dict[str, Any], encoder: Encoder | None = None) -> Sequence[EncodedGroup]:
    return (encoder or _encoder()).encode(ScoreRequest.model_validate({"groups": list(groups)})).groups


def _faults(*groups: dict[str, Any], encoder: Encoder | None = None) -> dict[tuple[str | int, ...], str]:
    with pytest.raises(InvalidRequestError) as refused:
        _encode(*groups, encoder=encoder)
    return {tuple(error.loc): error.msg for error in refused.value.errors}


def _ids(text: str) -> tuple[int, ...]:
    return tuple(tiny_tokenizer().encode(text, add_special_tokens=False))


def test_ids_are_used_as_they_are() -> None:
    (group,) = _encode({"id": "q", "prompt_ids": [1, 2], "completions": [[3, EOS], {"ids": [4]}]})
    assert group.id == "q"
    assert [(item.prompt_ids, item.completion_ids) for item in group.sequences] == [((1, 2), (3, EOS)), ((1, 2), (4,))]


def test_finish_reason_stop_appends_nothing_to_ids() -> None:
    (group,) = _encode({"prompt_ids": [1], "completions": [{"ids": [3], "finish_reason": "stop"}]})
    assert group.sequences[0].completion_ids == (3,)


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("abc", (*_ids("abc"), EOS)),
        ({"text": "abc"}, (*_ids("abc"), EOS)),
        ({"text": "abc", "finish_reason": "stop"}, (*_ids("abc"), EOS)),
        ({"text": "abc", "finish_reason": "length"}, _ids("abc")),
        ("abc<|im_end|>", (*_ids("abc"), EOS)),
        ({"text": "abc<|im_end|>", "finish_reason": "length"}, (*_ids("abc"), EOS)),
        ("", (EOS,)),
        ({"text": "", "finish_reason": "length"}, ()),
    ],
)
def test_text_is_a_finished_completion_unless_it_was_cut_off(completion: object, expected: tuple[int, ...]) -> None:
    (group,) = _encode({"prompt_ids": [1], "completions": [completion]})
    assert group.sequences[0].completion_ids == expected


def test_a_prompt_gets_the_tokenizers_own_special_tokens_and_a_completion_none() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing("<|im_start|> $A", None, [("<|im_start|>", 256)])
    (group,) = _encode({"prompt": "ab", "completions": ["c"]}, encoder=_encoder(tokenizer))
    assert group.sequences[0].prompt_ids == (256, *_ids("ab"))
    assert group.sequences[0].completion_ids == (*_ids("c"), EOS)


GEMMA_LIKE_ENDS = [258, EOS]  # <eos>, and the end of a turn, which the template writes


def _gemma_like() -> Encoder:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"eos_token": "<eos>"})
    return Encoder(cast("Any", tokenizer), VOCAB_SIZE, LIMIT, generation_ends=GEMMA_LIKE_ENDS)


@pytest.mark.parametrize("end", ["<eos>", "<|im_end|>"])
def test_text_that_ends_with_any_of_the_models_ends_is_as_it_was_sampled(end: str) -> None:
    (group,) = _encode({"messages": HI, "completions": [f"yes{end}"]}, encoder=_gemma_like())
    assert group.sequences[0].completion_ids == (*_ids("yes"), {"<eos>": 258, "<|im_end|>": EOS}[end])


def test_what_is_appended_is_the_end_of_a_turn_behind_messages_and_the_tokenizers_eos_elsewhere() -> None:
    prompts = [{"messages": HI}, {"prompt": "Hi"}, {"prompt_ids": [1]}]
    groups = _encode(*[{**prompt, "completions": ["yes"]} for prompt in prompts], encoder=_gemma_like())
    assert [group.sequences[0].completion_ids[-1] for group in groups] == [EOS, 258, 258]


@pytest.mark.parametrize("closing", ["", "|"])
def test_a_template_that_closes_turns_with_no_end_leaves_the_tokenizers_eos(closing: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}" + closing + "{% endfor %}"
    (group,) = _encode({"messages": HI, "completions": ["yes"]}, encoder=_encoder(tokenizer))
    assert group.sequences[0].completion_ids == (*_ids("yes"), EOS)


def test_without_an_eos_of_the_tokenizer_the_generation_configs_first_end_is_appended() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    encoder = Encoder(cast("Any", tokenizer), VOCAB_SIZE, LIMIT, generation_ends=[7, 8])
    (group,) = _encode({"prompt": "Hi", "completions": ["yes"]}, encoder=encoder)
    assert group.sequences[0].completion_ids == (*_ids("yes"), 7)


@pytest.mark.parametrize(("named", "ends"), [(None, ()), (5, (5,)), ([5, 6], (5, 6))])
def test_a_generation_config_names_no_end_one_or_several(named: int | list[int] | None, ends: tuple[int, ...]) -> None:
    assert generation_ends(SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=named))) == ends
    assert generation_ends(object()) == ()


def test_completions_continue_what_the_prompt_was_to_the_character() -> None:
    tokenizer = sentencepiece("always")
    group = {"prompt": "1=", "completions": [{"text": text, "finish_reason": "length"} for text in ("4", " 4")]}
    (encoded,) = _encode(group, encoder=Encoder(cast("Any", tokenizer), len(tokenizer), LIMIT))
    without, with_space = (tokenizer.convert_ids_to_tokens(list(item.completion_ids)) for item in encoded.sequences)
    assert (without, with_space) == (["4"], ["\u25814"])


def test_text_that_the_tokenizer_cannot_say_is_named_by_its_place() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    faults = _faults({"prompt": "a", "completions": ["a", "A"]}, encoder=_encoder(tokenizer))
    assert list(faults) == [("groups", 0, "completions", 1, "text")]
    assert "'a' instead of 'A'" in faults["groups", 0, "completions", 1, "text"]


def test_messages_go_through_the_chat_template_and_no_special_token_comes_twice() -> None:
    messages = [{"role": "user", "content": "hi"}]
    (group,) = _encode({"messages": messages, "completions": ["c"]})
    expected = tiny_tokenizer().apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert group.sequences[0].prompt_ids == tuple(expected)
    assert group.sequences[0].prompt_ids.count(256) == 2


def test_a_mask_leaves_tokens_out_and_a_mask_of_ones_is_none() -> None:
    completions = [{"ids": [3, 4], "mask": [1, 0]}, {"ids": [3, 4], "mask": [1, 1]}, [3, 4]]
    (group,) = _encode({"prompt_ids": [1], "completions": completions})
    masked, ones, plain = group.sequences
    assert masked.loss_mask == (True, False)
    assert ones == plain


def test_a_finish_reason_of_length_marks_a_truncated_completion() -> None:
    completions = [{"ids": [3], "finish_reason": "length"}, {"ids": [3], "finish_reason": "stop"}, [3]]
    (group,) = _encode({"prompt_ids": [1], "completions": completions})
    assert group.is_truncated == (True, False, False)


def test_every_id_outside_the_vocabulary_is_listed_by_its_place() -> None:
    faults = _faults(
        {"prompt_ids": [1, VOCAB_SIZE], "completions": [[1, 2, 10**30], "fine"]},
        {"prompt_ids": [1], "completions": [[2], {"ids": [VOCAB_SIZE, VOCAB_SIZE]}]},
    )
    assert faults == {
        ("groups", 0, "prompt_ids", 1): "id 320 is outside the vocabulary of 320",
        ("groups", 0, "completions", 0, "ids", 2): f"id {10**30} is outside the vocabulary of 320",
        ("groups", 1, "completions", 1, "ids", 0): "id 320 is outside the vocabulary of 320; 1 more here",
    }


def test_faults_and_overlong_sequences_are_listed_together() -> None:
    faults = _faults({"prompt_ids": [1] * LIMIT, "completions": [[2], [VOCAB_SIZE]]})
    assert faults[("groups", 0, "completions", 0)] == "65 tokens with its prompt, the limit is 64"
    assert ("groups", 0, "completions", 1, "ids", 0) in faults


def test_a_sequence_of_exactly_the_limit_is_fine() -> None:
    (group,) = _encode({"prompt_ids": [1], "completions": [[2] * (LIMIT - 1)]})
    assert group.sequences[0].num_tokens == LIMIT


def test_a_sequence_that_is_too_long_is_named_with_length_and_limit() -> None:
    with pytest.raises(SequenceTooLongError) as refused:
        _encode(
            {"prompt_ids": [1], "completions": [[2]]},
            {"prompt_ids": [1, 1], "completions": [[2], [2] * LIMIT, [2] * LIMIT]},
        )
    assert refused.value.data == {"group": 1, "completion": 1, "length": LIMIT + 2, "limit": LIMIT}
    assert [error.loc for error in refused.value.errors] == [["groups", 1, "completions", n] for n in (1, 2)]


@pytest.mark.parametrize("field", ["prompt", "completion"])
def test_a_text_that_cannot_fit_is_refused_without_tokenizing_it(field: str) -> None:
    class NeverAsked(Stub):
        def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
            assert len(text) < 100
            return super().encode(text, add_special_tokens=add_special_tokens)

    text = "x" * ((LIMIT + 1) * MAX_CHARACTERS_PER_TOKEN)
    group = {"prompt": text if field == "prompt" else "p", "completions": [text if field == "completion" else "c"]}
    with pytest.raises(SequenceTooLongError) as refused:
        _encode(group, encoder=_encoder(NeverAsked()))
    assert refused.value.data["limit"] == LIMIT


def test_without_a_tokenizer_only_ids_are_understood() -> None:
    encoder = Encoder(None, VOCAB_SIZE, LIMIT)
    faults = _faults(
        {"prompt": "a", "completions": ["b", [1]]},
        {"messages": [{"role": "user", "content": "a"}], "completions": [[1]]},
        encoder=encoder,
    )
    assert set(faults) == {
        ("groups", 0, "prompt"),
        ("groups", 0, "completions", 0, "text"),
        ("groups", 1, "messages"),
    }
    assert _encode({"prompt_ids": [1], "completions": [[2]]}, encoder=encoder)


@pytest.mark.parametrize("error", [TemplateError("roles must alternate"), ValueError("no template"), TypeError("no")])
def test_a_chat_template_that_refuses_is_named_with_its_reason(error: Exception) -> None:
    class Refuses(Stub):
        def apply_chat_template(self, *_: object, **__: object) -> str:
            raise error

    group = {"messages": [{"role": "user", "content": "a"}], "completions": [[1]]}
    faults = _faults(group, encoder=_encoder(Refuses()))
    assert faults == {("groups", 0, "messages"): f"the chat template refuses them: {error}"}


def test_a_prompt_without_tokens_is_refused() -> None:
    faults = _faults({"prompt": "a", "completions": [[1]]}, encoder=_encoder(Nothing()))
    assert faults == {("groups", 0, "prompt"): "has no token"}


def test_finished_text_needs_an_end_token() -> None:
    class NoEos(Stub):
        eos_token_id = None

    completions = [{"text": "a", "finish_reason": "stop"}, "a", {"text": "a", "finish_reason": "length"}, [1]]
    faults = _faults({"prompt_ids": [1], "completions": completions}, encoder=_encoder(NoEos()))
    assert list(faults) == [("groups", 0, "completions", position, "text") for position in (0, 1)]


def test_a_tokenizer_that_fails_on_a_text_is_a_fault_of_its_place() -> None:
    class Fails(Stub):
        def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
            if "x" in text:
                raise Exception("no token for x")
            return super().encode(text, add_special_tokens=add_special_tokens)

    encoder = _encoder(Fails())
    faults = _faults(
        {"prompt": "x", "completions": ["a", "ax"]}, {"prompt": "a", "completions": ["x"]}, encoder=encoder
    )
    reason = "the tokenizer fails on this text: no token for x"
    places = [(0, "prompt"), (0, "completions", 1, "text"), (1, "completions", 0, "text")]
    assert faults == {("groups", *place): reason for place in places}
    with pytest.raises(InvalidRequestError) as refused:
        encoder.encode_sample(GivenPrompt(prompt="x"), Completion(ids=[1]), add_special_tokens=False)
    assert refused.value.errors[0].msg == reason


def test_a_text_without_a_token_is_no_prompt_of_a_sample() -> None:
    with pytest.raises(InvalidRequestError) as refused:
        _encoder(Nothing()).encode_sample(GivenPrompt(prompt="a"), Completion(ids=[1]), add_special_tokens=False)
    assert [(error.loc, error.msg) for error in refused.value.errors] == [(["prompt"], "has no token")]


def test_several_threads_may_encode_with_a_tokenizer_that_was_saved_with_truncation() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(3)
    encoder = _encoder(tokenizer)
    assert tokenizer.backend_tokenizer.truncation is None
    group = {"prompt": "abcdef", "completions": ["ghijkl"]}
    with ThreadPoolExecutor(4) as pool:
        for (encoded,) in pool.map(lambda _: _encode(group, encoder=encoder), range(100)):
            assert encoded.sequences[0].token_ids == (*_ids("abcdefghijkl"), EOS)


def test_a_sample_is_tokenized_once_and_its_equal_ids_are_one_object() -> None:
    texts: list[str] = []

    class Counts(Stub):
        def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
            texts.append(text)
            return [1000 + token_id for token_id in super().encode(text, add_special_tokens=add_special_tokens)]

        def decode(self, token_ids: list[int], *, clean_up_tokenization_spaces: bool) -> str:  # noqa: ARG002
            return "".join(chr(token_id - 1000) for token_id in token_ids)

    encoder = Encoder(cast("Any", Counts()), 2000, LIMIT)
    texts.clear()
    samples = [
        encoder.encode_sample(GivenPrompt(prompt="ab"), Completion(text=text, finish_reason="length"))
        for text in ("ba", "a")
    ]
    assert texts == ["ab", "ba", "ab", "a"]
    (first, _), (second,) = (sample.completion_ids[::-1] for sample in samples)
    assert first is second is samples[0].prompt_ids[0]


@pytest.mark.parametrize(
    ("sample", "place"),
    [
        ({"prompt_ids": [VOCAB_SIZE], "completion": [1]}, ["prompt_ids", 0]),
        ({"prompt_ids": [1], "completion": [1, VOCAB_SIZE]}, ["completion", "ids", 1]),
        ({"prompt_ids": [1], "completion": [1, 9]}, ["completion"]),
    ],
)
def test_faults_of_a_sample_are_named_within_it(sample: dict[str, Any], place: list[str | int]) -> None:
    encoder, given = Encoder(None, VOCAB_SIZE, LIMIT, media_token_ids={9}), dict(sample)
    with pytest.raises(InvalidRequestError) as refused:
        encoder.encode_sample(GivenPrompt(prompt_ids=given["prompt_ids"]), Completion(ids=given["completion"]))
    assert [error.loc for error in refused.value.errors] == [place]


def test_a_sample_that_is_too_long_is_the_only_completion_of_its_group() -> None:
    with pytest.raises(SequenceTooLongError) as refused:
        _encoder().encode_sample(GivenPrompt(prompt_ids=[1]), Completion(ids=[1] * LIMIT))
    assert [error.loc for error in refused.value.errors] == [["completion"]]
    assert refused.value.data == {"group": 0, "completion": 0, "length": LIMIT + 1, "limit": LIMIT}


@pytest.mark.parametrize("text", ["abc", "é, 漢字!", "a👍🏽b", "שלום", "\N{REPLACEMENT CHARACTER}?", ""])
def test_the_pieces_of_a_text_are_its_characters_and_make_it_up(text: str) -> None:
    texts = TextTokens(cast("Any", tiny_tokenizer()), max_sequence_tokens=LIMIT)
    ids = _bytes_as_ids(text.encode())
    pieces = texts.pieces(ids)
    assert len(pieces) == len(ids)
    if "\N{REPLACEMENT CHARACTER}" not in text:
        assert "".join(piece or "" for piece in pieces) == text
        assert [piece for piece in pieces if piece] == list(text)


def test_bytes_that_are_no_character_stay_apart() -> None:
    texts = TextTokens(cast("Any", tiny_tokenizer()), max_sequence_tokens=LIMIT)
    assert texts.pieces(_bytes_as_ids(b"\xf0\x9fab"))[-2:] == ["a", "b"]


def _bytes_as_ids(text: bytes) -> list[int]:
    """Return the token of each byte: byte-level tokenizers name them by printable characters."""
    vocabulary, names = tiny_tokenizer().get_vocab(), bytes_to_unicode()
    return [vocabulary[names[byte]] for byte in text]
