"""One tiny model of every causal family that transformers can build here, and how it is compared.

Transformers' own `generate` is the judge: plain sampling for what is drawn at beta 0, and for the
margins a `generate` that is forced along every candidate of every step.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import transformers
from transformers import LogitsProcessor, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import sasa_lib as sl
from sasa_lib.decoding import PlainSampling
from sasa_lib.decoding.repeated import phrases_for
from sasa_lib.subspace.embeddings import hidden_states

VOCABULARY = 64
STEPS = 4
CANDIDATES = 8
BETA = 2.0
CROSSED = 11  # a window or a context that phrases grow beyond, from prompts of 9 tokens
TOLERANCE = 1e-2  # of the logits' and the margins' spread; a wrong decoder is off by 0.1 and more

# By the name of a configuration's field, whatever the family: small, and the same everywhere.
SIZES = dict(
    vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, intermediate_size=48, max_position_embeddings=128,
    bos_token_id=1, eos_token_id=2, pad_token_id=0, sliding_window=6, is_decoder=True,
    # other names of the same
    d_model=32, n_embd=32, n_layer=4, n_head=4, n_layers=4, n_heads=4, num_layers=4, num_heads=4,
    n_positions=128, n_ctx=128, max_seq_len=128, decoder_layers=4, encoder_layers=4,
    decoder_attention_heads=4, encoder_attention_heads=4, decoder_ffn_dim=48, encoder_ffn_dim=48,
    ffn_dim=48, dff=48, d_inner=48, emb_dim=32, embedding_size=32, word_embed_proj_dim=32,
    num_encoder_layers=4, num_decoder_layers=4, num_encoder_attention_heads=4,
    num_decoder_attention_heads=4, attention_heads=4, dim_head=8, dim_ff=48,
    # windows, rotary parts
    sliding_window_size=6, window_size=6, rotary_dim=4, attention_window_size=6,
    attention_chunk_size=6, local_attention=6, query_pre_attn_scalar=8,
    # experts
    moe_intermediate_size=16, num_experts=4, num_local_experts=4, n_routed_experts=4,
    num_experts_per_tok=2, n_shared_experts=1, shared_expert_intermediate_size=16, n_group=1,
    topk_group=1, num_expert_group=1, moe_num_experts=4, moe_k=2, moe_topk=2,
    # latent attention
    kv_lora_rank=8, q_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=8,
    index_head_dim=8, index_topk=6, index_n_heads=16,
    # recurrent states
    state_size=4, ssm_state_size=4, mamba_d_state=4, mamba_n_heads=4, mamba_d_head=16,
    mamba_chunk_size=8, chunk_size=8, mamba_d_ssm=64, mamba_num_heads=4, mamba_head_dim=16,
    n_mamba_heads=2, linear_key_head_dim=8, linear_value_head_dim=8, linear_num_key_heads=2,
    linear_num_value_heads=2, linear_head_dim=8, linear_num_heads=2, attention_hidden_size=32,
    lru_width=32, block_size=8,
)  # fmt: skip


def _sizes(known: type[PreTrainedConfig]) -> dict[str, object]:
    fields = set(known.__dataclass_fields__)
    sizes = {name: value for name, value in SIZES.items() if name in fields}
    if "kv_lora_rank" in fields:  # latent attention shares nothing between heads
        sizes["num_key_value_heads"] = 4
    for name, inner in (getattr(known, "sub_configs", None) or {}).items():
        if name == "text_config" and hasattr(inner, "__dataclass_fields__"):
            sizes[name] = _sizes(inner)
    return sizes


def part(family: str, **more: object) -> dict[str, object]:
    """The tiny language part of a larger configuration."""
    return {"model_type": family} | _sizes(transformers.CONFIG_MAPPING[family]) | more


EYES = dict(
    hidden_size=16, intermediate_size=16, num_hidden_layers=4, num_attention_heads=2,
    image_size=16, patch_size=4,
)  # fmt: skip
QWEN_EYES = dict(
    depth=2, hidden_size=16, intermediate_size=16, num_heads=2, patch_size=4, out_hidden_size=32,
    num_position_embeddings=16,
)  # fmt: skip
QWEN_TOKENS = dict(
    image_token_id=60, video_token_id=61, vision_start_token_id=62, vision_end_token_id=63
)
MROPE = dict(rope_type="default", rope_theta=1e4, mrope_section=[2, 1, 1])
IMAGE = 60  # the token in whose place a quarter of an image stands
SPECIAL = [60, 61, 62, 63]
IMAGES_TOO = " with images"

# What a family's configuration needs beside or instead of these.
MIXED = ["sliding_attention", "full_attention"] * 2
INKLING = dict(
    swa_num_attention_heads=4, swa_num_key_value_heads=2, swa_head_dim=8, d_rel=4, rel_extent=32,
    unpadded_vocab_size=64,
)  # fmt: skip
LINEAR = ["linear_attention", "full_attention"] * 2
PER_LAYER = dict(
    num_kv_shared_layers=2, vocab_size_per_layer_input=64, hidden_size_per_layer_input=8,
    layer_types=MIXED,
)  # fmt: skip
BLT = {name: SIZES[name] for name in (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"
)}  # fmt: skip
DOTS3 = dict(
    swa_num_attention_heads=4, swa_num_key_value_heads=4, swa_q_lora_rank=8,
    swa_kv_lora_rank=8, swa_head_dim=8, swa_qk_nope_head_dim=4, swa_v_head_dim=8,
    shared_experts_intermediate_size=16,
    layer_types=["indexed_attention", "sliding_attention"] * 2,
)  # fmt: skip
GEMMA4 = dict(global_head_dim=16, **PER_LAYER)
QWEN4 = dict(
    hc_count=2, hc_lowrank=4, ple_embed_dim=16, heads_per_ngram=2, ngram_vocab_size_base=50,
    make_ngram_vocab_size_divisible_by=8, split_ngram_parts=2, indexer_n_heads=2,
    indexer_kv_heads=1, indexer_head_dim=8, indexer_budget=4, indexer_compress_ratio=2,
    ple_layer_ids=[1],
)  # fmt: skip
OVERRIDES: dict[str, dict[str, object]] = {
    "aya_vision": dict(
        text_config=part("cohere2"), vision_config=EYES, image_token_index=IMAGE
    ),
    "bailing_hybrid": dict(layer_group_size=2, num_hidden_layers=2),
    "bamba": dict(attn_layer_indices=[1, 3]),
    "big_bird": dict(attention_type="original_full"),
    "bigbird_pegasus": dict(attention_type="original_full"),
    "blt": dict(
        encoder_hash_byte_group_vocab=50, encoder_hash_byte_group_size=[3],
        local_attention_window_len=6,
        patcher_config=BLT, encoder_config=BLT, decoder_config=BLT, global_config=BLT,
    ),
    "cohere2_vision": dict(
        text_config=part("cohere2"), vision_config=EYES, image_token_id=IMAGE,
        alignment_intermediate_size=32,
    ),
    "cohere_compass_text": dict(
        layer_types=MIXED,
        rope_parameters={
            kind: dict(rope_type="default", rope_theta=1e4, mrope_section=[2, 1, 1])
            for kind in set(MIXED)
        },
    ),
    "dbrx": dict(
        attn_config=dict(kv_n_heads=2, rope_theta=1e4, clip_qkv=8.0),
        ffn_config=dict(hidden_size=32, ffn_hidden_size=48, moe_num_experts=4, moe_top_k=2),
    ),
    "deepseek_v4": dict(o_groups=2, o_lora_rank=8),
    "dory": dict(n_input_layers=1, n_output_layers=1),
    "dots3_note": dict(
        text_config=part("dots3_note_text", **DOTS3),
        vision_config=EYES | dict(
            mlp_layer_types=["dense", "sparse"] * 2, adapter_in_dim=16, adapter_out_dim=32,
            moe_intermediate_size=16, num_local_experts=4, num_experts_per_tok=2,
        ),
        audio_config=EYES | dict(
            adapter_out_dim=32, adapter_input_size=16, downsample_hidden_size=8, feature_size=8,
        ),
        image_token_id=IMAGE, video_token_id=61, audio_token_id=63,
    ),
    "dots3_note_text": DOTS3,
    "fuyu": dict(text_config=part("persimmon"), image_size=8, patch_size=4, image_token_id=60),
    "gemma3": dict(
        text_config=part("gemma3_text", layer_types=MIXED), vision_config=EYES,
        mm_tokens_per_image=4, image_token_index=IMAGE,
    ),
    "gemma3n_text": dict(laurel_rank=8, **PER_LAYER),
    "gemma4": dict(
        text_config=part("gemma4_text", **GEMMA4),
        vision_config=dict(
            hidden_size=16, intermediate_size=16, num_hidden_layers=4, num_attention_heads=2,
            num_key_value_heads=2, head_dim=8, pooling_kernel_size=2, patch_size=4,
            position_embedding_size=16,
        ),
        audio_config=None, image_token_id=IMAGE, video_token_id=61, audio_token_id=63,
        boi_token_id=62,
    ),
    "gemma4_assistant": dict(
        backbone_hidden_size=32,
        text_config=part(
            "gemma4_text", layer_types=MIXED, hidden_size_per_layer_input=0,
            vocab_size_per_layer_input=0, num_kv_shared_layers=4,
        ),
    ),
    "gemma4_text": GEMMA4,
    "gemma4_unified_assistant": dict(
        backbone_hidden_size=32,
        text_config=part("gemma4_unified_text", layer_types=MIXED, num_kv_shared_layers=4),
    ),
    "git": dict(vision_config=EYES),
    "glm4v": dict(
        text_config=part("glm4v_text", rope_parameters=MROPE), image_token_id=IMAGE,
        vision_config=QWEN_EYES | dict(image_size=16), video_token_id=61,
        image_start_token_id=62, image_end_token_id=63,
    ),
    "got_ocr2": dict(
        text_config=part("qwen2"), image_token_index=IMAGE,
        vision_config=dict(
            hidden_size=16, output_channels=8, num_hidden_layers=4, num_attention_heads=2,
            image_size=64, patch_size=8, window_size=2, global_attn_indexes=[1], mlp_dim=16,
        ),
    ),
    "gpt_neo": dict(attention_types=[[["global", "local"], 2]]),
    "granitemoehybrid": dict(layer_types=LINEAR, shared_intermediate_size=16),
    "idefics3": dict(text_config=part("llama"), vision_config=EYES, image_token_id=IMAGE),
    "inkling2_loop_text": INKLING,
    "inkling2_text": INKLING,
    "inkling_text": INKLING,
    "internvl": dict(
        text_config=part("qwen2"), image_token_id=IMAGE,
        vision_config=EYES | dict(image_size=[16, 16], patch_size=[4, 4]),
    ),
    "jamba": dict(attn_layer_period=2, attn_layer_offset=1),
    "kimi_linear": dict(layer_types=LINEAR[:2], num_hidden_layers=2),
    "lfm2": dict(layer_types=["conv", "full_attention"] * 2, block_multiple_of=8),
    "lfm2_moe": dict(layer_types=["conv", "full_attention"] * 2),
    "llava": dict(
        text_config=part("llama"), image_token_index=IMAGE, image_seq_length=4,
        vision_config=EYES | dict(model_type="clip_vision_model", image_size=8),
    ),
    "longcat_flash": dict(
        num_layers=2, ffn_hidden_size=48, expert_ffn_hidden_size=16, zero_expert_num=2, head_dim=4
    ),
    "mamba2": dict(head_dim=16, n_groups=1),
    "minimax_m3_vl_text": dict(shared_intermediate_size=16, dense_intermediate_size=48),
    "mistral3": dict(
        text_config=part("mistral"), image_token_index=IMAGE,
        vision_config=EYES | dict(model_type="pixtral", head_dim=8),
    ),
    "mllama": dict(
        text_config=part("mllama_text_model", cross_attention_layers=[1]), image_token_index=IMAGE,
        vision_config=dict(
            hidden_size=16, num_hidden_layers=4, num_global_layers=1, attention_heads=2,
            intermediate_size=16, vision_output_dim=32, image_size=8, patch_size=4,
            max_num_tiles=1, intermediate_layers_indices=[0], supported_aspect_ratios=[[1, 1]],
        ),
    ),
    "moss_transcribe_diarize": dict(
        text_config=part("qwen3"), audio_token_id=60,
        audio_config=dict(
            hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
            num_mel_bins=8, max_source_positions=16,
        ),
    ),
    "nemotron_h": dict(n_groups=1, moe_shared_expert_intermediate_size=16),
    "paligemma": dict(
        text_config=part("gemma"), image_token_index=IMAGE, projection_dim=32, hidden_size=32,
        vision_config=EYES | dict(image_size=8, model_type="siglip_vision_model"),
    ),
    "phi4_multimodal": dict(
        vision_config=EYES | dict(crop_size=16, image_token_id=IMAGE),
        audio_config=dict(
            hidden_size=16, intermediate_size=16, num_blocks=2, num_attention_heads=2,
            nemo_conv_channels=8, ext_pw_out_channel=16, depthwise_separable_out_channel=16,
            input_size=8, audio_token_id=61,
        ),
    ),
    "qwen2_5_vl": dict(
        text_config=part("qwen2_5_vl_text", rope_parameters=MROPE), **QWEN_TOKENS,
        vision_config=QWEN_EYES | dict(window_size=8, fullatt_block_indexes=[1]),
    ),
    "qwen2_vl": dict(
        text_config=part("qwen2_vl_text", rope_parameters=MROPE), **QWEN_TOKENS,
        vision_config=QWEN_EYES | dict(embed_dim=16, hidden_size=32),
    ),
    "qwen3_5": dict(
        text_config=part("qwen3_5_text", rope_parameters=MROPE), **QWEN_TOKENS,
        vision_config=QWEN_EYES,
    ),
    "qwen3_vl": dict(
        text_config=part("qwen3_vl_text", rope_parameters=MROPE), **QWEN_TOKENS,
        vision_config=QWEN_EYES | dict(deepstack_visual_indexes=[0, 1]),
    ),
    "qwen4_exp": dict(
        text_config=part("qwen4_exp_text", **QWEN4), **QWEN_TOKENS, vision_config=QWEN_EYES
    ),
    "qwen4_exp_text": QWEN4,
    "reformer": dict(
        axial_pos_shape=(8, 16), axial_pos_embds_dim=(16, 16), attn_layers=["local"] * 4,
        attention_head_size=8, feed_forward_size=48, local_attn_chunk_length=4, num_buckets=4,
    ),
    "rembert": dict(input_embedding_size=16, output_embedding_size=24),
    "roc_bert": dict(
        shape_vocab_size=64, pronunciation_vocab_size=64, shape_embed_dim=16,
        pronunciation_embed_dim=16,
    ),
    "smolvlm": dict(text_config=part("llama"), vision_config=EYES, image_token_id=IMAGE),
    "xlm": dict(mask_token_id=5, causal=True),
    "xlstm": dict(hidden_size=64, autocast_kernel_dtype="float32", qk_dim_factor=1.0),
    "xmod": dict(default_language="en_XX"),
    "zamba": dict(
        layers_block_type=["linear_attention", "hybrid"] * 2, num_key_value_heads=4,
        attention_hidden_size=None,
    ),
    "zamba2": dict(
        layers_block_type=["linear_attention", "hybrid"] * 2, num_key_value_heads=4,
        adapter_rank=8,
    ),
    "zaya": dict(
        num_experts_per_tok=1, router_hidden_size=16, layer_types=["hybrid", "hybrid_sliding"] * 2
    ),
}  # fmt: skip

# The same families in other shapes: their family and overrides.
VARIANTS: dict[str, tuple[str, dict[str, object]]] = {
    "falcon, ALiBi": ("falcon", dict(alibi=True)),
    "falcon, new blocks": ("falcon", dict(new_decoder_architecture=True, num_kv_heads=2)),
    "gemma3_text, mixed": ("gemma3_text", dict(layer_types=MIXED)),
    "gemma4_text, experts": (
        "gemma4_text",
        dict(enable_moe_block=True, top_k_experts=2, attention_k_eq_v=True),
    ),
    "gpt_bigcode, many keys": ("gpt_bigcode", dict(multi_query=False)),
    "llama, dynamic": ("llama", dict(rope_parameters=dict(
        rope_type="dynamic", rope_theta=100.0, factor=4.0, original_max_position_embeddings=CROSSED,
    ), max_position_embeddings=CROSSED)),
    "llama, eager": ("llama", dict(attn_implementation="eager")),
    "llama, linear": ("llama", dict(
        rope_parameters=dict(rope_type="linear", rope_theta=100.0, factor=4.0)
    )),
    "llama, llama3": ("llama", dict(rope_parameters=dict(
        rope_type="llama3", rope_theta=100.0, factor=4.0, low_freq_factor=1.0,
        high_freq_factor=4.0, original_max_position_embeddings=CROSSED,
    ))),
    "llama, yarn": ("llama", dict(rope_parameters=dict(
        rope_type="yarn", rope_theta=100.0, factor=4.0, original_max_position_embeddings=CROSSED,
    ))),
    "phi3, longrope": ("phi3", dict(
        rope_parameters=dict(
            rope_type="longrope", rope_theta=100.0, short_factor=[1.0] * 4,
            long_factor=[4.0, 5.0, 6.0, 7.0], original_max_position_embeddings=CROSSED,
            partial_rotary_factor=1.0,
        ),
        original_max_position_embeddings=CROSSED, sliding_window=None,
    )),
    "mistral, no window": ("mistral", dict(sliding_window=None)),
    "opt, projected": ("opt", dict(word_embed_proj_dim=16, do_layer_norm_before=False)),
    **{f"{family}, crossing": (family, dict(sliding_window=CROSSED)) for family in (
        "cohere2", "exaone4", "gemma2", "gemma3_text", "gemma4_text", "gpt_oss", "lara_mini",
        "mistral", "olmo3", "zaya",
    )},
    "gpt_neo, crossing": ("gpt_neo", dict(window_size=CROSSED)),
    "llama4_text, crossing": ("llama4_text", dict(attention_chunk_size=CROSSED)),
    "modernbert-decoder, crossing": ("modernbert-decoder", dict(local_attention=2 * CROSSED)),
    "recurrent_gemma, crossing": ("recurrent_gemma", dict(attention_window_size=CROSSED)),
    **{
        f"{family}, sliding": (family, dict(use_sliding_window=True, **more))
        for family, more in (
            ("qwen2", dict(max_window_layers=2, sliding_window=6)),
            ("qwen2_moe", dict(max_window_layers=2, sliding_window=6)),
            ("qwen3", dict(max_window_layers=2, sliding_window=6)),
            ("qwen3_moe", dict(sliding_window=6)),
            ("smollm3", dict(layer_types=MIXED)),
        )
    },
    **{f"{family}, sliding": (family, dict(layer_types=MIXED)) for family in (
        "dots1", "laguna", "mellum", "flint", "kolibri1", "ministral"
    )},
}  # fmt: skip


Inputs = dict[str, torch.Tensor]
Random = Callable[..., torch.Tensor]  # of a shape


def square(size: int = 16) -> Callable[[torch.Tensor, Random], Inputs]:
    """One square image a row."""
    return lambda ids, random: {"pixel_values": random(len(ids), 3, size, size)}


def typed(name: str, pixels: Callable) -> Callable[[torch.Tensor, Random], Inputs]:
    """Images, and which tokens stand for them."""
    return lambda ids, random: pixels(ids, random) | {name: (ids == IMAGE).long()}


def patches(ids: torch.Tensor, random: Random) -> Inputs:
    """Images in patches, as the Qwen family reads them."""
    grid = torch.tensor([[1, 4, 4]]).expand(len(ids), -1)
    seen = {"pixel_values": random(16 * len(ids), 96), "image_grid_thw": grid}
    return seen | {"mm_token_type_ids": (ids == IMAGE).int()}


def mllama_images(ids: torch.Tensor, random: Random) -> Inputs:
    """Images in one tile each, seen by all tokens."""
    rows, length = ids.shape
    return {
        "pixel_values": random(rows, 1, 1, 3, 8, 8),
        "aspect_ratio_ids": torch.ones(rows, 1, dtype=torch.long),
        "aspect_ratio_mask": torch.ones(rows, 1, 1, dtype=torch.long),
        "cross_attention_mask": torch.ones(rows, length, 1, 1, dtype=torch.long),
    }


def gemma4_images(ids: torch.Tensor, random: Random) -> Inputs:
    """Images in patches with their places."""
    places = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    return {
        "pixel_values": random(len(ids), 16, 48).sigmoid(),
        "image_position_ids": places.expand(len(ids), -1, -1),
        "mm_token_type_ids": (ids == IMAGE).long(),
    }


def tiles(ids: torch.Tensor, random: Random) -> Inputs:
    """Several images a row, here one."""
    return {"pixel_values": random(len(ids), 1, 3, 16, 16)}


def sized(ids: torch.Tensor, random: Random) -> Inputs:
    """Images with their sizes."""
    sizes = torch.tensor([[16, 16]]).expand(len(ids), -1)
    return {"pixel_values": random(len(ids), 3, 16, 16), "image_sizes": sizes}


# Further inputs that text models take.
BESIDE: dict[str, Callable[[torch.Tensor, Random], Inputs]] = {
    "bert, token types": lambda ids, random: {"token_type_ids": ids % 2},
    "gpt2, token types": lambda ids, random: {"token_type_ids": ids % 7},
    "llama, own positions": lambda ids, random: {
        "position_ids": 2 * torch.arange(ids.shape[1]).expand(len(ids), -1)
    },
}

# Families that read images, and what they read beside the tokens.
IMAGES: dict[str, Callable[[torch.Tensor, Random], Inputs]] = {
    "aya_vision": square(),
    "cohere2_vision": square(),
    "gemma3": typed("token_type_ids", square()),
    "gemma4": gemma4_images,
    "git": square(),
    "glm4v": patches,
    "got_ocr2": square(64),
    "idefics3": tiles,
    "internvl": square(),
    "llava": square(8),
    "mistral3": sized,
    "mllama": mllama_images,
    "paligemma": typed("token_type_ids", square(8)),
    "qwen2_vl": patches,
    "qwen2_5_vl": patches,
    "qwen3_vl": patches,
    "qwen3_5": patches,
    "smolvlm": tiles,
}

# Its lengths are counted from the left, so nothing can be padded there.
UNPADDED = {"xlm"}

# Transformers itself reads these differently with its cache and without: what is right is without,
READ_ANEW = {
    "git": "its cached pass counts on an image before the text: padding is not masked",
    "cpmant": "its `generate` gives the whole phrase to a cache that holds it already",
    "prophetnet": "its cached pass counts relative positions otherwise",
    "rwkv": "its state mixes the rows of a batch",
    "xlm": "its `generate` gives the whole phrase to a cache that holds it already",
}
# or, where what was read stays as it was read, with it.
READ_WITH_CACHE = {
    "llama, dynamic": "a longer phrase turns the keys of all its tokens, but not those in a cache",
    "moshi": "its cache has a window, its masks have none",
}

# Why a family of the mapping is not here.
UNTESTED: dict[str, str] = {
    "blt": "`generate` fails in transformers: its configuration lacks the number of layers",
    "gemma3n": "its eyes are built by the package timm, which is not installed",
    "gemma4_assistant": "drafts for another model, whose states it reads",
    "gemma4_unified_assistant": "drafts for another model, whose states it reads",
    "musicgen": "makes sounds; transformers cannot build its decoder from its configuration",
    "musicgen_melody": "makes sounds; transformers cannot build its decoder from its configuration",
}


NAMES = [
    *(name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if name not in UNTESTED),
    *VARIANTS,
    *BESIDE,
    *(family + IMAGES_TOO for family in IMAGES),
]


def configuration(family: str, more: dict[str, object]) -> PreTrainedConfig:
    """A tiny configuration: SIZES as far as the family knows them, then its own."""
    known = transformers.CONFIG_MAPPING[family]
    own = deepcopy(OVERRIDES.get(family, {}) | more)  # some configurations write into them
    return transformers.AutoConfig.for_model(family, **_sizes(known) | own)


@cache
def build(name: str) -> PreTrainedModel:
    """The tiny model of a family or variant, with logits far apart."""
    images = name.endswith(IMAGES_TOO)
    family = name.removesuffix(IMAGES_TOO).partition(",")[0]
    family, more = VARIANTS.get(name, (family, {}))
    kind = transformers.AutoModelForImageTextToText if images else transformers.AutoModelForCausalLM
    torch.manual_seed(0)
    attention = more.get("attn_implementation")
    config = configuration(family, {k: v for k, v in more.items() if k != "attn_implementation"})
    model = kind.from_config(config, attn_implementation=attention).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.25)
    model.name_or_path = name
    model.generation_config.eos_token_id = None
    model.generation_config.forced_eos_token_id = None
    return model


def prompts(name: str) -> Inputs:
    """Three prompts of 5, 8 and 9 tokens, padded on the left, and what else the model reads.

    With images they are of 7, 10 and 10, and only its image tells the third from the second.
    """
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 50, (3, 9), generator=generator)
    mask = torch.ones_like(ids)
    if name.endswith(IMAGES_TOO):
        start = torch.tensor([62, *[IMAGE] * 4])
        ids = torch.stack(
            [torch.cat([ids[0, :padded], start, ids[0, padded:6]]) for padded in (4, 1, 1)]
        )
        mask = torch.ones_like(ids)
        mask[2, :1] = 0
    if name not in UNPADDED:
        mask[0, :4] = mask[1, :1] = 0
    inputs = {"input_ids": ids * mask, "attention_mask": mask}
    beside = BESIDE.get(name) or IMAGES.get(name.removesuffix(IMAGES_TOO))
    if beside and (name in BESIDE or name.endswith(IMAGES_TOO)):
        inputs |= beside(ids * mask, lambda *size: 3 * torch.randn(*size, generator=generator))
    return inputs


def decoder(model: PreTrainedModel) -> torch.nn.Module:
    """The language part without its head: what comes out of it is the last hidden state."""
    found = model.get_decoder()
    if found is model:
        return model.model
    return (
        found
        if any(isinstance(part, torch.nn.ModuleList) for part in found.modules())
        else model.base_model
    )


def stack(model: PreTrainedModel) -> torch.nn.ModuleList:
    """The blocks of the language part."""
    depth = model.config.get_text_config().num_hidden_layers
    lists = [
        part
        for path, part in decoder(model).named_modules()
        if isinstance(part, torch.nn.ModuleList) and "image" not in path
    ]
    return next((blocks for blocks in lists if len(blocks) == depth), lists[0])


def layers(model: PreTrainedModel) -> list[int]:
    """The middle of a model and its end."""
    depth = len(stack(model))
    return [depth // 2, depth]


def boundary(model: PreTrainedModel, layer: int) -> sl.Boundary:
    """Any boundary at a layer."""
    generator = np.random.default_rng(layer)
    size = model.config.get_text_config().hidden_size
    normal = generator.normal(size=size).astype(np.float32)
    midpoint = generator.normal(size=size).astype(np.float32)
    normal /= np.linalg.norm(normal)
    return sl.Boundary(normal, midpoint, 2.0, 1.0, layer, "last", model.name_or_path)


class Steps(LogitsProcessor):
    """Counts the steps of a loop."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Let all scores pass."""
        self.made += 1
        return scores


class Forced(LogitsProcessor):
    """Leaves one token a row and step: tokens [rows, steps]."""

    def __init__(self, tokens: torch.Tensor, start: int) -> None:
        self.tokens, self.start = tokens, start

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Let the forced token pass."""
        step = input_ids.shape[1] - self.start
        return torch.full_like(scores, float("-inf")).scatter(1, self.tokens[:, step, None], 0.0)


@contextmanager
def watched(model: PreTrainedModel, layer: int) -> Iterator[list[torch.Tensor]]:
    """Within it, what every pass hands to block `layer`, or after the last what leaves it."""
    seen: list[torch.Tensor] = []
    blocks = stack(model)
    if layer < len(blocks):
        hook = blocks[layer].register_forward_pre_hook(
            lambda _, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]),
            with_kwargs=True,
        )
    else:
        hook = decoder(model).register_forward_hook(lambda _, __, output: seen.append(output[0]))
    try:
        yield seen
    finally:
        hook.remove()
    assert all(states.dim() == 3 for states in seen), f"block {layer} gets several streams"


def sample(name: str, method: object, **more: object) -> object:
    """`generate` with a method, all steps to be compared."""
    if name.endswith(IMAGES_TOO):
        more["suppress_tokens"] = SPECIAL
    return build(name).generate(
        **prompts(name), custom_generate=method, do_sample=True, top_k=CANDIDATES, top_p=1.0,
        temperature=1.0, eos_token_id=None, pad_token_id=0, return_dict_in_generate=True,
        output_logits=True, **{"max_new_tokens": STEPS, **more},
    )  # fmt: skip


def forced(
    name: str, drawn: torch.Tensor, candidates: torch.Tensor, layer: int, *, use_cache: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """What transformers computes for every candidate [rows, steps, candidates] of every step.

    Returned are the logits of every step along the drawn tokens [rows, steps, vocabulary], and
    the candidates' hidden states [rows, steps, candidates, hidden_size].
    """
    model, inputs = build(name), prompts(name)
    rows, steps, width = candidates.shape
    paths = drawn[:, None, None, :].repeat(1, steps, width, 1)
    for step in range(steps):
        paths[:, step, :, step] = candidates[:, step]
    paths = torch.cat([paths, paths[..., :1]], dim=-1).flatten(0, 2)
    with watched(model, layer) as seen:
        output = model.generate(
            **inputs, do_sample=True, num_return_sequences=steps * width, use_cache=use_cache,
            logits_processor=[Forced(paths, inputs["input_ids"].shape[1])], top_k=0, top_p=1.0,
            temperature=1.0, max_new_tokens=steps + 1, eos_token_id=None, pad_token_id=0,
            return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
    assert len(seen) == steps + 1, f"block {layer} ran {len(seen)} times in {steps + 1} passes"
    states = torch.stack([passed[:, -1] for passed in seen[1:]], dim=1)
    states = states.view(rows, steps, width, steps, -1).diagonal(dim1=1, dim2=3).movedim(-1, 1)
    logits = torch.stack(output.logits[:steps], dim=1).view(rows, steps, width, steps, -1)
    # The path of the last step's candidates has all drawn tokens but its own.
    return logits[:, -1, 0], states


def off(found: torch.Tensor, expected: torch.Tensor, spread: float | None = None) -> float:
    """Largest difference, as a share of the spread of what is expected."""
    finite = expected.isfinite()
    assert (found.isfinite() == finite).all(), "not finite where transformers is, or the reverse"
    spread = float(expected[finite].std()) if spread is None else spread
    return float((found[finite] - expected[finite]).abs().max()) / spread


def refusal(name: str, layer: int) -> str | None:
    """The sentence by which SASA refuses to steer by a layer before its first step, if it does."""
    steps, sasa = Steps(), sl.SASA(boundary(build(name), layer), BETA, seed=0)
    try:
        sample(name, sasa, logits_processor=[steps], max_new_tokens=1)
    except ValueError as error:
        raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
        assert "sasa_lib" in raised_in, f"not refused, but fails in {raised_in}: {error}"
        assert not steps.made, "refused after it had begun"
        assert "\n" not in str(error), "refused in more than a sentence"
        return str(error)
    return None


def check_sampling(name: str, layer: int) -> None:
    """At beta 0: the tokens and logits of plain sampling, whose loop is transformers'."""
    plain = sample(name, PlainSampling(0), use_cache=name not in READ_ANEW)
    sasa = sample(name, sl.SASA(boundary(build(name), layer), 0.0, seed=0))
    expected, found = (torch.stack(output.logits, dim=1) for output in (plain, sasa))
    spread = float(expected[expected.isfinite()].std())
    assert spread > 0.02, f"logits too close for a comparison: {spread}"
    errors = [off(f, e, spread) for f, e in zip(found.unbind(1), expected.unbind(1), strict=True)]
    assert max(errors) < TOLERANCE, f"beta 0: logits off by {[round(e, 3) for e in errors]} a step"
    assert (sasa.sequences == plain.sequences).all(), "beta 0: other tokens than plain sampling's"


def check_margins(name: str, layer: int) -> None:
    """At beta above 0: every candidate's margin and what is made of it."""
    line = boundary(build(name), layer)
    method = sl.SASA(line, BETA, seed=0, record=True)
    drawn = sample(name, method).sequences[:, -STEPS:]
    trace = method.trace.sort_values(["sequence", "step", "token_id"])
    shape = (len(drawn), STEPS, CANDIDATES)
    candidates = torch.tensor(trace["token_id"].to_numpy().reshape(shape))
    found = {
        column: torch.tensor(trace[column].to_numpy().reshape(shape)).double()
        for column in ("margin", "reference_logprob", "new_logprob")
    }
    for use_cache in (True, False):
        if name in (READ_ANEW if use_cache else READ_WITH_CACHE):
            continue
        expected, best = expectation(name, drawn, candidates, line, use_cache=use_cache)
        wrong = differences(found, expected)
        way = "with" if use_cache else "without"
        assert not wrong, f"layer {layer}: off from transformers {way} its cache by {wrong}"
        assert (candidates == best).all(), "other candidates than the likeliest"


def expectation(
    name: str, drawn: torch.Tensor, candidates: torch.Tensor, line: sl.Boundary, *, use_cache: bool
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The columns of a trace as transformers' own states give them, and the best candidates."""
    logits, states = forced(name, drawn, candidates, line.layer, use_cache=use_cache)
    if name.endswith(IMAGES_TOO):
        logits[..., SPECIAL] = float("-inf")
    reference = logits.gather(2, candidates).double()
    margins = (states.double() - torch.tensor(line.midpoint)) @ torch.tensor(line.normal).double()
    margins /= line.scale
    columns = {
        "margin": margins,
        "reference_logprob": reference.log_softmax(-1),
        "new_logprob": (reference + BETA * margins).log_softmax(-1),
    }
    return columns, logits.topk(CANDIDATES).indices.sort(-1).values


def differences(
    found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]
) -> dict[str, list[float]]:
    """Columns that are off, and by what share of their spread at every step."""
    errors = {}
    for column, values in expected.items():
        spread = float(values.std())
        errors[column] = [
            round(off(f, e, spread), 4)
            for f, e in zip(found[column].unbind(1), values.unbind(1), strict=True)
        ]
    return {column: steps for column, steps in errors.items() if max(steps) >= TOLERANCE}


def check_embeddings(name: str, layer: int) -> None:
    """What a boundary is fitted on: states of texts of several lengths, as of each alone."""
    model, inputs = build(name), prompts(name)
    texts = [
        ids[mask.bool() & (ids < IMAGE)]
        for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
    ]
    try:
        found = hidden_states(model, [text.tolist() for text in texts], [layer])[:, 0]
    except ValueError as error:
        assert "sasa_lib" in traceback.extract_tb(error.__traceback__)[-1].filename, error
        return
    for row, text in enumerate(texts):
        with watched(model, layer) as seen:
            model.generate(
                text[None], attention_mask=torch.ones_like(text[None]), max_new_tokens=1,
                do_sample=False, eos_token_id=None,
            )  # fmt: skip
        expected = seen[-1][0][-len(text) :]  # all of them, or the last alone
        error = off(found[row, len(text) - len(expected) : len(text)], expected)
        assert error < TOLERANCE, f"layer {layer}: embeddings of row {row} are off by {error:.3f}"


@dataclass
class Verdict:
    """How a model's candidates are computed, and why some layers are refused; by layer."""

    ways: dict[int, str]
    refused: dict[int, str]

    @property
    def way(self) -> str:
        """How candidates are computed, whatever the layer."""
        return "; ".join(dict.fromkeys(self.ways.values())) or "refused"


@cache
def decoded(name: str) -> Verdict:
    """Compare SASA with transformers; AssertionError where they differ."""
    verdict = Verdict({}, {})
    for layer in layers(build(name)):
        sentence = refusal(name, layer)
        if sentence:
            verdict.refused[layer] = sentence
            continue
        further = prompts(name).keys() - {"input_ids", "attention_mask"}
        phrases = phrases_for(build(name), [layer], dict.fromkeys(further, True))
        verdict.ways[layer] = phrases.how
        check_sampling(name, layer)
        check_margins(name, layer)
    return verdict
