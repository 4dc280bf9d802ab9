"""The two loops that the engine is compared with: the reference as published, and the best possible loop."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from vigor_service.engine.sequences import TokenSequence


def published_loop(model: PreTrainedModel, sequences: Sequence[TokenSequence]) -> list[float]:
    """Return gradient norms as the published training script computes them.

    Reimplements ``_compute_gradient_kl_reward`` of ZJUSCL/VIGOR (commit 52eee72): every row is padded to the
    longest prompt (left) and completion (right) of the batch; one forward with labels and one ``autograd.grad`` per
    row; squares summed in the parameters' dtype; then a float32 log-softmax of all logits for the entropy and a second
    one for the log-likelihood.
    """
    input_ids_BL, mask_BL, labels_BL = _padded(sequences, model)
    parameters = list(model.parameters())
    return [
        _published_row(model, parameters, input_ids_BL[row], mask_BL[row], labels_BL[row])
        for row in (slice(b, b + 1) for b in range(len(sequences)))
    ]


def ideal_loop(model: PreTrainedModel, sequences: Sequence[TokenSequence]) -> list[float]:
    """Return gradient norms from a loop without any waste: no padding, logits of loss rows only, nothing extra."""
    parameters = list(model.parameters())
    norms: list[float] = []
    for sequence in sequences:
        positions = sequence.loss_positions()
        ids = sequence.token_ids[: positions[-1] + 1]
        logits_TV = model(
            input_ids=torch.tensor([ids], device=model.device),
            logits_to_keep=torch.tensor(positions, device=model.device),
            use_cache=False,
        ).logits[0]
        targets_T = torch.tensor(sequence.loss_targets(), device=model.device)
        gradients = torch.autograd.grad(nn.functional.cross_entropy(logits_TV.float(), targets_T), parameters)
        norms.append(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients])).item())
    return norms


def _padded(sequences: Sequence[TokenSequence], model: PreTrainedModel) -> tuple[Tensor, Tensor, Tensor]:
    """Return input ids, attention mask and labels, each (B, L)."""
    longest_prompt = max(len(sequence.prompt_ids) for sequence in sequences)
    longest_completion = max(len(sequence.completion_ids) for sequence in sequences)
    rows: list[tuple[list[int], list[int], list[int]]] = []
    for sequence in sequences:
        left = longest_prompt - len(sequence.prompt_ids)
        right = longest_completion - len(sequence.completion_ids)
        ids = [*[0] * left, *sequence.prompt_ids, *sequence.completion_ids, *[0] * right]
        mask = [0] * left + [1] * sequence.num_tokens + [0] * right
        labels = [*[-100] * longest_prompt, *sequence.completion_ids, *[-100] * right]
        rows.append((ids, mask, labels))
    ids_BL, mask_BL, labels_BL = (torch.tensor(column, device=model.device) for column in zip(*rows, strict=True))
    return ids_BL, mask_BL, labels_BL


def _published_row(
    model: PreTrainedModel, parameters: list[nn.Parameter], input_ids: Tensor, attention_mask: Tensor, labels: Tensor
) -> float:
    outputs = model(input_ids=input_ids, attention_mask=attention_mask, labels=labels, use_cache=False)
    gradients = torch.autograd.grad(outputs.loss.float(), parameters, allow_unused=True)
    norm = torch.sqrt(torch.stack([(gradient**2).sum() for gradient in gradients if gradient is not None]).sum())
    logits = outputs.logits.detach()
    del outputs
    with torch.no_grad():
        _published_signals(logits, labels[:, 1:])
    return norm.item()


def _published_signals(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean entropy and summed log-likelihood, by the same two full passes as in the script."""
    counts = targets.ne(-100).float()
    logprobs = logits[:, :-1].float().log_softmax(-1)
    entropy = (-(logprobs.exp() * logprobs).sum(-1) * counts).sum() / counts.sum()
    again = logits[:, :-1].float().log_softmax(-1)
    token_logprobs = again.gather(-1, targets.clamp_min(0).unsqueeze(-1)).squeeze(-1)
    return entropy, (token_logprobs * counts).sum()
