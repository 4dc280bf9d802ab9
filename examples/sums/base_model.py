"""A small decoder that has learnt sums from work with deliberate mistakes, so that its accuracy is known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from examples.sums.works import CHARACTERS, NUMBERS, Worker, prompt_of

NUM_STEPS, BATCH_SIZE, LEARNING_RATE = 1000, 128, 2e-3
WIDTH, NUM_LAYERS = 128, 4
END, PAD = "<end>", "<pad>"
_NO_LABEL = -100  # torch.nn.functional.cross_entropy ignores this label


def make_base_model(
    directory: Path,
    worker: Worker,
    *,
    num_steps: int,
    width: int = WIDTH,
    num_layers: int = NUM_LAYERS,
    seed: int = 0,
    on_step: Callable[[int], object] = lambda _: None,
) -> None:
    """Train a model on works of ``worker``, each for a random sum, and save it with its tokenizer.

    ``on_step`` is called after each step with the number of steps so far.
    """
    torch.manual_seed(seed)
    draw, tokenizer = Random(seed), character_tokenizer()
    model = new_model(tokenizer, width, num_layers)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=num_steps, pct_start=0.1)
    for step in range(1, num_steps + 1):
        loss = model(**_batch(tokenizer, worker, draw)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        on_step(step)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def character_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per character, one for the end and one for padding."""
    tokenizer = Tokenizer(models.WordLevel({text: index for index, text in enumerate([*CHARACTERS, END, PAD])}))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")  # pyright: ignore[reportAttributeAccessIssue] - a property of the extension class
    tokenizer.decoder = decoders.Fuse()  # pyright: ignore[reportAttributeAccessIssue] - likewise
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=PAD)


def new_model(tokenizer: PreTrainedTokenizerFast, width: int, num_layers: int) -> LlamaForCausalLM:
    """Return a decoder with random weights; with width 128 and four layers it has a million parameters."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=tokenizer.convert_tokens_to_ids(END),
        pad_token_id=len(tokenizer) - 1,
    )
    return LlamaForCausalLM(config)


def _batch(tokenizer: PreTrainedTokenizerFast, worker: Worker, draw: Random) -> dict[str, torch.Tensor]:
    """Return works of random sums, padded on the right. Prompts, all of the same length, and padding have no label."""
    sums = [(draw.choice(NUMBERS), draw.choice(NUMBERS)) for _ in range(BATCH_SIZE)]
    texts = [prompt_of(left, right) + worker(left, right, draw) + END for left, right in sums]
    batch = tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
    ids_BT, mask_BT = batch["input_ids"], batch["attention_mask"]
    labels_BT = ids_BT.masked_fill(mask_BT == 0, _NO_LABEL)
    labels_BT[:, : len(prompt_of(*sums[0]))] = _NO_LABEL
    return {"input_ids": ids_BT, "attention_mask": mask_BT, "labels": labels_BT}
