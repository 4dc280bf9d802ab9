"""Tiny random models of real architectures, and a byte-level tokenizer: what tests score instead of downloads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

VOCAB_SIZE = 320  # 256 bytes, then the special tokens, then ids without a token
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 257,
    "initializer_range": 0.2,  # far from the uniform distribution, so that no term of the norm is negligible
}
_EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
_GPT2_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 256,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "initializer_range": 0.2,
}

# family -> (model type, what differs from the common sizes)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("qwen2", {"tie_word_embeddings": False}),
    "qwen2-tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"tie_word_embeddings": True}),
    "llama": ("llama", {"tie_word_embeddings": False}),
    "mistral": ("mistral", {"sliding_window": 8}),
    "gemma2": ("gemma2", {"sliding_window": 8, "query_pre_attn_scalar": 8, "final_logit_softcapping": 5.0}),
    "gemma3": ("gemma3_text", {"sliding_window": 8, "query_pre_attn_scalar": 8}),
    "phi3": ("phi3", {"tie_word_embeddings": False}),
    "gpt2": ("gpt2", {}),
    "gpt_neox": ("gpt_neox", {}),
    "opt": ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "stablelm": ("stablelm", {"use_qkv_bias": True, "qk_layernorm": True}),
    "cohere": ("cohere", {"logit_scale": 0.25, "use_qk_norm": True}),
    "granite": (
        "granite",
        {
            "tie_word_embeddings": True,
            "logits_scaling": 4.0,
            "residual_multiplier": 0.5,
            "embedding_multiplier": 3.0,
            "attention_multiplier": 0.2,
        },
    ),
    "starcoder2": ("starcoder2", {"sliding_window": 8}),
    "olmo2": ("olmo2", {}),
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2_moe": ("qwen2_moe", {"num_experts": 6, "shared_expert_intermediate_size": 24, **_EXPERTS}),
    "qwen3_moe": ("qwen3_moe", {"num_experts": 6, "norm_topk_prob": True, **_EXPERTS}),
    "granitemoe": ("granitemoe", {"num_local_experts": 4, "num_experts_per_tok": 2, "tie_word_embeddings": True}),
    "deepseek_v3": (
        "deepseek_v3",
        {
            "n_routed_experts": 8,
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
            "n_group": 2,
            "topk_group": 1,
            "q_lora_rank": 12,
            "kv_lora_rank": 10,
            "qk_rope_head_dim": 4,
            "head_dim": 4,
            "qk_nope_head_dim": 6,
            "v_head_dim": 8,
            "num_key_value_heads": 4,
            **_EXPERTS,
        },
    ),
    "gpt_oss": ("gpt_oss", {"num_local_experts": 4, "sliding_window": 8, "rope_parameters": {"rope_type": "default"}}),
    "falcon": ("falcon", {}),
    "falcon-alibi": ("falcon", {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True}),
    "gptj": ("gptj", {"rotary_dim": 4}),
    "bloom": ("bloom", {}),
    "mamba": ("mamba", {"state_size": 4}),
    "falcon_h1": (
        "falcon_h1",
        {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 4, "mamba_n_groups": 1},
    ),
}
_WITHOUT_HEAD_DIM = ("falcon",)  # its config derives the number and refuses to be told


def tiny_model(family: str = "llama", *, dtype: torch.dtype = torch.float32, **overrides: Any) -> PreTrainedModel:  # noqa: ANN401 - whatever the family's config takes
    """Return a random model of the family, or of a model type, the same every time, in eval mode."""
    config = tiny_config(family, **overrides)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        _shake_vectors(model)
        _fill_padding_row(model)
    return model.to(dtype).eval()


def tiny_config(family: str, **overrides: Any) -> PretrainedConfig:  # noqa: ANN401 - likewise
    """Return the configuration of ``tiny_model``."""
    model_type, differences = FAMILIES.get(family, (family, {}))
    sizes = _GPT2_SIZES if model_type == "gpt2" else _SIZES
    settings = {**sizes, **differences, **overrides}
    if model_type in _WITHOUT_HEAD_DIM:
        del settings["head_dim"]
    return AutoConfig.for_model(model_type, **settings)


def _shake_vectors(model: torch.nn.Module) -> None:
    """Biases start at zero and norm weights at one: move them, so that a rule that forgets one is seen."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))


def _fill_padding_row(model: PreTrainedModel) -> None:
    """A padding id's embedding starts at zero, where norms amplify gradients beyond float16. In use it is not zero."""
    table = model.get_input_embeddings().get_parameter("weight")
    with torch.no_grad():
        table[table.abs().sum(-1) == 0] = 0.2 * torch.randn(table.shape[1])


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per byte, `<|im_start|>` (256, BOS) and `<|im_end|>` (257, EOS)."""
    byte_tokens = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(byte_tokens)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue] - a property of the extension class
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue] - likewise
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def save_tiny_checkpoint(directory: Path, family: str = "llama", **overrides: Any) -> Path:  # noqa: ANN401
    """Write a checkpoint with its tokenizer, as a user has it on disk; returns the directory."""
    tiny_model(family, **overrides).save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return directory


def save_tiny_hub_model(cache: Path, name: str) -> Path:
    """Write a checkpoint as a cache of the hub has it once it was fetched; returns the directory of its files."""
    stored = cache / f"models--{name.replace('/', '--')}"
    (stored / "refs").mkdir(parents=True)
    (stored / "refs" / "main").write_text("0" * 40)
    return save_tiny_checkpoint(stored / "snapshots" / ("0" * 40))
