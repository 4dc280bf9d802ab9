"""A decoder of a million parameters that has learnt sums from work with mistakes: its accuracy is known by design."""

from __future__ import annotations

from pathlib import Path
from random import Random

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.study.arithmetic import CHARACTERS, NUMBERS, Worker, prompt_of

NUM_STEPS, BATCH_SIZE, LEARNING_RATE = 1500, 128, 2e-3
END, PAD = "<end>", "<pad>"
_NO_LABEL = -100  # what torch.nn.functional.cross_entropy leaves out


def make_base_model(directory: Path, worker: Worker, *, num_steps: int, seed: int = 0) -> None:
    """Train a model on the works of ``worker``, each of another sum, and save it with its tokenizer."""
    torch.manual_seed(seed)
    draw, tokenizer = Random(seed), character_tokenizer()
    model = new_model(tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=num_steps, pct_start=0.1)
    for _ in range(num_steps):
        ids_BT, labels_BT = _batch(tokenizer, worker, draw)
        loss = model(input_ids=ids_BT, labels=labels_BT, attention_mask=ids_BT != tokenizer.pad_token_id).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def character_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per character, one for the end and one for padding."""
    tokenizer = Tokenizer(models.WordLevel({text: index for index, text in enumerate([*CHARACTERS, END, PAD])}))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")  # pyright: ignore[reportAttributeAccessIssue] - a property of the extension class
    tokenizer.decoder = decoders.Fuse()  # pyright: ignore[reportAttributeAccessIssue] - likewise
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=PAD)


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return a decoder of a million parameters with random weights."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def _batch(tokenizer: PreTrainedTokenizerFast, worker: Worker, draw: Random) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and labels of works of random sums, padded on the right; prompts and padding have no label."""
    ids, labels = [], []
    for _ in range(BATCH_SIZE):
        left, right = draw.choice(NUMBERS), draw.choice(NUMBERS)
        prompt = tokenizer(prompt_of(left, right))["input_ids"]
        work = [*tokenizer(worker(left, right, draw))["input_ids"], tokenizer.eos_token_id]
        ids.append(torch.tensor([*prompt, *work]))
        labels.append(torch.tensor([*[_NO_LABEL] * len(prompt), *work]))
    pad = torch.nn.utils.rnn.pad_sequence
    return pad(ids, True, tokenizer.pad_token_id), pad(labels, True, _NO_LABEL)
