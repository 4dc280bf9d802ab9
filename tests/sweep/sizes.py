"""What the sizes that configurations name become in a tiny model."""

from __future__ import annotations

import re

from tests.support.tiny_models import VOCAB_SIZE

WINDOW = (
    32  # of attention, chunks, top-k and original lengths: longer than a short probe, shorter than LONGEST sequences
)
MAX_POSITIONS = 512
BOS, EOS = 256, 257

# The first pattern that matches a whole name gives the number.
_SIZES: tuple[tuple[str, int], ...] = (
    # ids
    (r".*bos_token_id", BOS),
    (r"(eos|pad|sep|eod|decoder_start|forced_eos)_token_id", EOS),
    (r"(unpadded_|audio_|decoder_|pronunciation_|shape_)?vocab_size(_per_layer_input)?", VOCAB_SIZE),
    (r"codebook_size", 256),
    (r"encoder_hash_byte_group_vocab|(num_)?position_embeddings?(_size)?", 64),
    # what must be shorter than the sequences
    (r"(sliding_|attention_|keep_)?window_size|sliding_window(_size)?|local_attention(_window_len)?", WINDOW),
    (r"attention_chunk_size|original_max_position_embeddings|index_topk|indexer_budget|rel_extent|floor_scale", WINDOW),
    (r"(mamba_)?chunk_size|(local|lsh)_attn_chunk_length", 16),
    (r"index_block_size", 8),
    (r"index_topk_blocks", 2),
    (r"index_kpool|indexer_compress_ratio", 4),
    # lengths
    (r"max_position_embeddings|n_positions|n_ctx|max_seq_len|context_length|max_target_positions", MAX_POSITIONS),
    # layers
    (r"num_hidden_layers|n_layers?|num_layers|(en|de)coder_layers|depth|layers|num_blocks|num_(en|de)coder_layers", 2),
    # widths
    (r"(out_|text_|projector_|encoder_|backbone_|decoder_)?hidden_size(_global)?|d_model|n_embd|d_inner|lru_width", 32),
    (r"word_embed_proj_dim|emb_dim|embed_dim|embedding_(size|dim)|(in|out)put_embedding_size|projection_dim", 32),
    (r"attention_hidden_size|resampler_hidden_size|pooler_output_size|patch_embed_hidden_size", 32),
    (r"output_dim|vision_output_dim|projector_(in|out)put_dim|base_channels|latent_channels", 32),
    (r"output_channels|downsample_hidden_size|nemo_conv_channels", 16),
    (r"ext_pw_out_channel|depthwise_separable_out_channel", 16),
    (r"max_(image|img)_size|img_max_token_num|latent_query_num|max_num_patches", 64),
    (r"pronunciation_embed_dim|shape_embed_dim|adapter_(in|out)_dim|adapter_input_size|conv_output_size", 32),
    (r".*intermediate_size(_mlp)?|.*ffn_dim|dim_ff|dff|d_ff|n_inner|feed_forward_size|mlp_dim", 48),
    (r"(expert_)?ffn_hidden_size", 48),
    (r"router_hidden_size|share_expert_dim|moe_hidden_size|projection_hidden_(dim|size)", 48),
    (r"hidden_size_per_layer_input|laurel_rank|gated_norm_rank|hc_lowrank|loop_gate_rank|adapter_rank|o_lora_rank", 8),
    # heads
    (r"((swa_)?num_|(num_)?(en|de)coder_)attention_heads|n_heads?|num_heads", 4),
    (r"(num|swa_num|num_global)_key_value_heads|num_kv_heads|kv_n_heads|num_query_groups", 2),
    (r"(swa_|global_|attention_)?head_dim|kv_channels|dim_head|d_kv|d_head|attention_head_size|linear_head_dim", 8),
    (r"qk_rope_head_dim|rotary_dim|d_rel", 4),
    (r"qk_nope_head_dim", 6),
    (r"q_lora_rank", 12),
    (r"kv_lora_rank", 10),
    (r"v_head_dim|query_pre_attn_scalar", 8),
    (r"index(er)?_n_heads|index(er)?_kv_heads|o_groups|linear_num_heads", 4),
    (r"index(er)?_head_dim", 8),
    # experts
    (r"(num_|moe_num_|num_local_|n_routed_)experts|zero_expert_num", 6),
    (r"num_experts_per_tok(en)?|moe_topk|moe_top_k|moe_k|top_k_experts", 2),
    (r"(n_|num_|moe_num_)shared_experts|topk_group|first_k_dense_replace|num_dense_layers", 1),
    (r"n_group|num_expert_group", 2),
    # scans and linear attention
    (r"linear_num_key_heads", 2),
    (r"linear_num_value_heads", 4),
    (r"linear_(key|value)_head_dim|mamba_d_head|mamba_head_?dim", 8),
    (r"mamba_d_state|state_size|ssm_state_size|mamba_dt_rank", 4),
    (r"mamba_n_heads|n_mamba_heads|mamba_num_heads", 8),
    (r"mamba_n_groups|n_groups|mamba_ngroups", 1),
    (r"mamba_d_ssm", 64),
)  # fmt: skip
_COMPILED = [(re.compile(pattern), size) for pattern, size in _SIZES]


def size_of(name: str) -> int | None:
    """Return the size for a name, None if the table does not know it."""
    return next((size for pattern, size in _COMPILED if pattern.fullmatch(name)), None)
