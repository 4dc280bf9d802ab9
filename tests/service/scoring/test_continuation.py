"""Text behind a prompt: the ids that read as exactly this text, for every way in which tokenizers treat a beginning."""

import random

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.support.tiny_models import tiny_tokenizer
from vigor_service.scoring.continuation import Continuation, NotContinuableError, UntokenizableError, decoded

SPACE = "\u2581"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
PIECES = [SPACE, *"0123456789abcdefghij=+:.", f"{SPACE}4", f"{SPACE}a", f"{SPACE}ab", "ab", "12", f"{SPACE}{SPACE}"]
MERGES = [(SPACE, "4"), (SPACE, "a"), ("a", "b"), (f"{SPACE}a", "b"), ("1", "2"), (SPACE, SPACE)]
ALPHABET = "0123456789abcdefghij=+:. \nä\u4e2d\U0001f600"


def _fast(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def sentencepiece(scheme: str) -> PreTrainedTokenizerFast:
    """As Llama 2, Mistral and Gemma 1 have it: a space before what begins, unknown characters as bytes."""
    names = dict.fromkeys(["<unk>", "<s>", "</s>", *BYTES, *PIECES])
    vocabulary = {name: index for index, name in enumerate(names)}
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=MERGES, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    if scheme == "normalizer":  # older files
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])  # pyright: ignore[reportAttributeAccessIssue] - a property of the extension class
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme=scheme, split=False)  # pyright: ignore[reportAttributeAccessIssue] - likewise
    tokenizer.decoder = decoders.Sequence(  # pyright: ignore[reportAttributeAccessIssue] - likewise
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _fast(tokenizer)


def without_a_prefix() -> PreTrainedTokenizerFast:
    """As Gemma 2 and later have it: spaces are marked, and none is put before anything."""
    tokenizer = sentencepiece("normalizer")
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.backend_tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return tokenizer


def byte_level(*, adds_space: bool) -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<unk>", "<s>", "</s>", *alphabet, "\u0120a", "ab"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("\u0120", "a"), ("a", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=adds_space)  # pyright: ignore[reportAttributeAccessIssue] - likewise
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue] - likewise
    return _fast(tokenizer)


TOKENIZERS = {
    "metaspace always": lambda: sentencepiece("always"),
    "metaspace first": lambda: sentencepiece("first"),
    "normalizer": lambda: sentencepiece("normalizer"),
    "no prefix": without_a_prefix,
    "bytes": lambda: byte_level(adds_space=False),
    "bytes with a space": lambda: byte_level(adds_space=True),
}
every_tokenizer = pytest.mark.parametrize("kind", TOKENIZERS)


@every_tokenizer
@pytest.mark.parametrize("prompt", ["1=", "a ", "<s>", "<s>4\n", "\u4e2d" * 9, "a\U0001f600", "+"])
def test_ids_read_as_exactly_the_text_behind_the_prompt(kind: str, prompt: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    prompt_ids = tokenizer.encode(prompt, add_special_tokens=False)
    continuation, before = Continuation(tokenizer, prompt_ids), decoded(tokenizer, prompt_ids)
    generator = random.Random(0)
    texts = ["4", " 4", "  4", "\n", "\n4", " ", "", "ab", " ab", "4</s>", "\U0001f600", ".a", "a.\u4e2d"]
    texts += ["".join(generator.choices(ALPHABET, k=generator.randint(1, 12))) for _ in range(60)]
    for text in texts:
        assert tokenizer.decode(prompt_ids + continuation.ids(text)) == before + text


@pytest.mark.parametrize("kind", ["metaspace always", "metaspace first", "normalizer"])
def test_with_and_without_a_space_are_the_two_tokens_that_are_sampled(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    continuation = Continuation(tokenizer, tokenizer.encode("1=", add_special_tokens=False))
    assert tokenizer.convert_ids_to_tokens(continuation.ids("4")) == ["4"]
    assert tokenizer.convert_ids_to_tokens(continuation.ids(" 4")) == [f"{SPACE}4"]
    assert tokenizer.convert_ids_to_tokens(continuation.ids("ab 4")) == ["ab", f"{SPACE}4"]


def test_where_encoding_alone_is_right_it_is_what_is_taken() -> None:
    tokenizer = tiny_tokenizer()
    assert Continuation(tokenizer, [1, 2]).ids("ab é") == tokenizer.encode("ab é", add_special_tokens=False)


def test_text_that_the_tokenizer_changes_is_refused_with_the_first_difference() -> None:
    tokenizer = byte_level(adds_space=False)
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    continuation = Continuation(tokenizer, [5])
    assert continuation.ids("é")
    with pytest.raises(NotContinuableError, match=r"character 2 on they read 'é!' instead of .*send the sampled `ids`"):
        continuation.ids("abe\u0301!")


def test_characters_that_the_vocabulary_lacks_are_refused() -> None:
    tokenizer = _fast(Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3}, unk_token="<unk>")))
    with pytest.raises(NotContinuableError, match="they read ' <unk>' instead of 'b'"):
        Continuation(tokenizer, [1]).ids("b")


@pytest.mark.parametrize("num_bytes", range(4))
@pytest.mark.parametrize("prompt", ["\U0001f600" * 50, "\ufffd" * 50, "a" * 16 + "\ufffd"])
def test_only_the_end_of_a_prompt_is_read_wherever_its_characters_begin(prompt: str, num_bytes: int) -> None:
    read: list[int] = []

    class Reading:
        tokenizer = tiny_tokenizer()

        def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
            return list(self.tokenizer.encode(text, add_special_tokens=add_special_tokens))

        def decode(self, token_ids: list[int], *, clean_up_tokenization_spaces: bool) -> object:
            read.append(len(token_ids))
            return self.tokenizer.decode(token_ids, clean_up_tokenization_spaces=clean_up_tokenization_spaces)

    prompt_ids = Reading().encode(prompt + "a" * num_bytes, add_special_tokens=False)
    continuation = Continuation(Reading(), prompt_ids)
    for text in ("a", "é", "\U0001f600"):
        assert continuation.ids(text) == Reading().encode(text, add_special_tokens=False)
    assert max(read) <= 16 + 3 + 4


def test_a_tokenizer_that_fails_on_a_text_says_so() -> None:
    without_unknown = Tokenizer(models.WordLevel({"a": 0}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=without_unknown)
    assert Continuation(tokenizer, [0]).ids("") == []
    with pytest.raises(UntokenizableError, match=r"the tokenizer fails on this text: .*UNK"):
        Continuation(tokenizer, [0]).ids("b")
