"""What names do not tell of a family's tiny configuration, and families that are swept in more than one form."""

from __future__ import annotations

from typing import Any

from tests.sweep.sizes import WINDOW

Changes = dict[str, Any]

_MROPE: Changes = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
_DOTS3_WINDOWS: Changes = {
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 4,
    "swa_q_lora_rank": 12,
    "swa_kv_lora_rank": 10,
    "swa_head_dim": 10,
    "swa_qk_nope_head_dim": 6,
    "swa_v_head_dim": 8,
}
_HYBRID = ["linear_attention", "hybrid", "linear_attention", "hybrid"]

_GEMMA4_DRAFTER: Changes = {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}

# model type -> what its default configuration cannot do without
DEFAULTS: dict[str, Changes] = {
    "gemma4_assistant": {"text_config": {"model_type": "gemma4_text", **_GEMMA4_DRAFTER}},
}

# family -> settings that differ; a dotted name is one of a sub-configuration
CHANGES: dict[str, Changes] = {
    "apertus1p5": {
        "audio_config.codebook_dim": 32,
        "text_config.vocab_size": 4096,
        "image_token_offset": 1024,
        "audio_token_offset": 1280,
    },
    "blt": {"encoder_hash_byte_group_size": [3, 4]},
    "chameleon": {"vocabulary_map": {"<image>": 300}},
    "cohere_compass": {
        "text_config.layer_types": ["sliding_attention", "full_attention"],
        "text_config.rope_parameters": {"sliding_attention": _MROPE, "full_attention": None},
    },
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {"sliding_attention": _MROPE, "full_attention": None},
    },
    "dbrx": {"attn_config.rope_theta": 10000.0, "attn_config.clip_qkv": 8.0},
    "deepseek_ocr2": {"text_config.mlp_layer_types": ["dense", "sparse"]},
    "deepseek_v4": {"compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 16}},
    "emu3": {"vocabulary_map": {"<image>": 300}},
    "dots3_note": {f"text_config.{name}": size for name, size in _DOTS3_WINDOWS.items()},
    "dots3_note_text": _DOTS3_WINDOWS,
    "ernie4_5_vl_moe": {
        "text_config.rope_parameters": {**_MROPE, "mrope_section": [1, 1, 2]},
        "text_config.moe_intermediate_size": [48, 24],
    },
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
        "intermediate_size": [48] * 4,
        "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
    },
    "gemma4_assistant": {f"text_config.{name}": size for name, size in _GEMMA4_DRAFTER.items()},
    "glm46v": {"text_config.rope_parameters": _MROPE},
    "glm4v": {"text_config.rope_parameters": _MROPE},
    "glm4v_moe": {"text_config.rope_parameters": _MROPE, "text_config.partial_rotary_factor": 1.0},
    "glm_ocr": {"text_config.rope_parameters": _MROPE, "text_config.partial_rotary_factor": 1.0},
    "glmga": {"text_config.rope_parameters": _MROPE, "text_config.partial_rotary_factor": 1.0},
    "glm5_next": {"text_config.qk_rope_head_dim": 0, "text_config.head_dim": 0},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granite4_vision": {
        "downsample_rate": "1/2",
        "deepstack_layer_map": [[-1, 0]],
        "spatial_target_layers": [1],
        "vision_config.hidden_size": 64,
        "qformer_config.hidden_size": 64,
        "qformer_config.encoder_hidden_size": 64,
    },
    "hunyuan_vl": {"text_config.rope_parameters": _MROPE},
    "hy_v4_vl": {"text_config.qk_rope_head_dim": 8, "text_config.head_dim": 8},
    "lfm2_moe": {"num_hidden_layers": 3, "layer_types": ["conv", "conv", "full_attention"]},
    "mamba2": {"num_heads": 8},
    "mistral4": {"rope_parameters.partial_rotary_factor": 1.0},
    "muse_spark": {"audio_config.hidden_sizes": [16, 16, 16, 32]},
    "molmo2": {"adapter_config.vision_feature_layer": [1, 0]},
    "nemotron_h_omni": {"vision_config.video_temporal_patch_size": 2},
    "paddleocr_vl": {"text_config.rope_parameters": _MROPE},
    "qwen2_5_omni_thinker": {"text_config.rope_parameters": _MROPE},
    "qwen2_5_vl": {"text_config.rope_parameters": _MROPE},
    "qwen2_vl": {"text_config.rope_parameters": _MROPE},
    "qwen4_exp": {"text_config.indexer_kv_heads": 1},
    "qwen4_exp_text": {"indexer_kv_heads": 1},
    "reformer": {"attn_layers": ["local", "lsh"], "axial_pos_shape": [16, 32], "axial_pos_embds_dim": [16, 16]},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "layers_block_type": _HYBRID,
        "num_hidden_layers": 4,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
    },
    "zamba2": {
        "layers_block_type": _HYBRID,
        "num_hidden_layers": 4,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
    },
    "zaya": {"num_experts_per_tok": 1},
}


def _rope(rope_type: str, **settings: Any) -> Changes:  # noqa: ANN401 - a configuration takes anything
    return {"rope_parameters": {"rope_type": rope_type, "rope_theta": 10000.0, **settings}}


def _longrope(num_pairs: int, **settings: Any) -> Changes:  # noqa: ANN401
    """Return factors of position that a row changes when it becomes longer than WINDOW."""
    factors = {
        "short_factor": [1.0 + 0.1 * pair for pair in range(num_pairs)],
        "long_factor": [1.5 + 0.5 * pair for pair in range(num_pairs)],
    }
    rope = _rope("longrope", **factors, original_max_position_embeddings=WINDOW, **settings)
    return {**rope, "original_max_position_embeddings": WINDOW}


_DYNAMIC: Changes = {**_rope("dynamic", factor=4.0), "max_position_embeddings": WINDOW}
_YARN: Changes = _rope("yarn", factor=4.0, original_max_position_embeddings=WINDOW)

# form -> its model type, and what differs from the family's
FORMS: dict[str, tuple[str, Changes]] = {
    "phi3, longrope": ("phi3", _longrope(4)),
    "phi3, longrope over a part of the head": ("phi3", _longrope(3, partial_rotary_factor=0.75)),
    "phimoe, longrope": ("phimoe", _longrope(4, short_mscale=1.1, long_mscale=1.3)),
    "minicpm3, longrope": ("minicpm3", _longrope(2)),
    "llama, longrope": ("llama", _longrope(4)),
    "llama, dynamic": ("llama", _DYNAMIC),
    "qwen2_moe, dynamic": ("qwen2_moe", _DYNAMIC),
    "llama, linear": ("llama", _rope("linear", factor=4.0)),
    "llama, llama3": (
        "llama",
        _rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=WINDOW),
    ),
    "qwen3, yarn": ("qwen3", _YARN),
    "deepseek_v3, yarn": (
        "deepseek_v3",
        _rope("yarn", factor=4.0, original_max_position_embeddings=WINDOW, mscale=1.0, mscale_all_dim=1.0),
    ),
    "qwen2, windows": ("qwen2", {"use_sliding_window": True, "max_window_layers": 1}),
    "qwen2_moe, windows": ("qwen2_moe", {"use_sliding_window": True, "max_window_layers": 1}),
    "qwen3_moe, windows": ("qwen3_moe", {"use_sliding_window": True, "max_window_layers": 1}),
    "falcon, alibi": (
        "falcon",
        {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True, "num_kv_heads": 4},
    ),
    "falcon, new decoder": ("falcon", {"new_decoder_architecture": True}),
    "qwen2, tied": ("qwen2", {"tie_word_embeddings": True}),
    "granite, tied and scaled": (
        "granite",
        {
            "tie_word_embeddings": True,
            "logits_scaling": 4.0,
            "residual_multiplier": 0.5,
            "embedding_multiplier": 3.0,
            "attention_multiplier": 0.2,
        },
    ),
    "falcon_h1, scaled": ("falcon_h1", {"lm_head_multiplier": 0.5, "embedding_multiplier": 2.0, "key_multiplier": 0.7}),
    "cohere, query norms": ("cohere", {"use_qk_norm": True}),
    "stablelm, query norms and biases": ("stablelm", {"use_qkv_bias": True, "qk_layernorm": True}),
    "bert, both directions": ("bert", {"is_decoder": False}),
    "gemma3_text, both directions": ("gemma3_text", {"use_bidirectional_attention": True}),
}
