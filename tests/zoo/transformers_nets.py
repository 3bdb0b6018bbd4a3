"""Families of Hugging Face's transformers, by their own classes: two layers of 16, random weights, nothing fetched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf

from .cases import Case, stirred

SIZES = {
    "vocab_size": 11,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SINGLE = 2.0**-23
"""Of what casts to float32 inside: norms, rotations, routers, scans."""


def texts(
    name: str,
    train: bool = False,
    eps: float = 2.0**-52,
    dtype: torch.dtype = torch.float64,
    refused: str | None = None,
    **sizes: Any,
) -> Callable[[], Case]:
    """A language model: two texts, one of them padded; the loss is that of every place."""

    def build() -> Case:
        config = getattr(hf, name.partition("For")[0].replace("LMHeadModel", "") + "Config")
        model = getattr(hf, name)(config(**{**SIZES, "use_cache": False, **sizes}))
        ids, mask = torch.randint(3, 11, (2, 6)), torch.ones(2, 6, dtype=torch.long)
        mask[1, 4:] = 0
        inputs = {"input_ids": ids, "attention_mask": mask}
        return Case(stirred(model.to(dtype).train(train)), inputs, labels(model, inputs), eps=eps, refused=refused)

    return build


def labels(model: Any, inputs: Any) -> Any:
    """Classes for the places of the logits."""
    with torch.no_grad():
        z = model(**inputs).logits
    return torch.randint(z.shape[-1], z.shape[:-1])


def pairs(name: str, eps: float = 2.0**-52, **sizes: Any) -> Callable[[], Case]:
    """An encoder and a decoder."""

    def build() -> Case:
        config = getattr(hf, name.partition("For")[0] + "Config")
        model = getattr(hf, name)(config(**{**SIZES, "decoder_start_token_id": 0, "use_cache": False, **sizes}))
        model = stirred(model.to(torch.float64)).eval()
        inputs = {"input_ids": torch.randint(3, 11, (2, 5)), "decoder_input_ids": torch.randint(3, 11, (2, 4))}
        return Case(model, inputs, labels(model, inputs), eps=eps)

    return build


def vision(name: str, size: int = 16, train: bool = False, **sizes: Any) -> Callable[[], Case]:
    """Classes of two images."""

    def build() -> Case:
        config = getattr(hf, name.partition("For")[0] + "Config")
        model = getattr(hf, name)(config(num_labels=3, image_size=size, **sizes)).to(torch.float64)
        inputs = {"pixel_values": torch.randn(2, 3, size, size)}
        return Case(stirred(model).train(train), inputs, torch.randint(3, (2,)))

    return build


def sounds(name: str, **sizes: Any) -> Callable[[], Case]:
    def build() -> Case:
        config = getattr(hf, name.partition("For")[0] + "Config")
        model = getattr(hf, name)(config(**{**SIZES, **sizes})).to(torch.float64)
        inputs = {"input_values": torch.randn(2, 64)}
        return Case(stirred(model).eval(), inputs, labels(model, inputs))

    return build


PATCHES = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 8,
}
OLD = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16}
BART = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
BART |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 2}
GROUPED = {"num_key_value_heads": 1, "head_dim": 8}
EXPERTS = {**GROUPED, "num_local_experts": 3}
SWIN = {"embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2], "window_size": 2, "patch_size": 2}
WAVES = {"conv_dim": (8, 8), "conv_stride": (4, 2), "conv_kernel": (4, 4), "num_feat_extract_layers": 2}
WAVES |= {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}

CASES = {
    "GPT-2, dropout": texts("GPT2LMHeadModel", train=True, **OLD),
    "GPT-NeoX": texts("GPTNeoXForCausalLM"),
    "OPT": texts("OPTForCausalLM", ffn_dim=24, word_embed_proj_dim=16),
    "Bloom": texts("BloomForCausalLM", eps=SINGLE, n_layer=2, n_head=2),
    "Falcon": texts("FalconForCausalLM"),
    "Llama": texts("LlamaForCausalLM", eps=SINGLE, **GROUPED),
    "Mistral, sliding window": texts("MistralForCausalLM", eps=SINGLE, sliding_window=3, **GROUPED),
    "Qwen 3": texts("Qwen3ForCausalLM", eps=SINGLE, **GROUPED),
    "Gemma 2, capped logits": texts("Gemma2ForCausalLM", eps=SINGLE, **GROUPED),
    "Phi": texts("PhiForCausalLM"),
    "Mixtral, experts one by one": texts("MixtralForCausalLM", eps=SINGLE, experts_implementation="eager", **EXPERTS),
    "Mixtral, experts at once, float32": texts("MixtralForCausalLM", eps=SINGLE, dtype=torch.float32, **EXPERTS),
    "Mamba": texts("MambaForCausalLM", eps=SINGLE, state_size=4),
    "RWKV": texts("RwkvForCausalLM", eps=SINGLE, attention_hidden_size=16),
    "BERT": texts("BertForMaskedLM"),
    "RoBERTa": texts("RobertaForMaskedLM", max_position_embeddings=20),
    "ALBERT, shared layers": texts("AlbertForMaskedLM", embedding_size=8),
    "DistilBERT": texts("DistilBertForMaskedLM", dim=16, hidden_dim=24, n_layers=2, n_heads=2),
    "ELECTRA": texts("ElectraForMaskedLM", embedding_size=8),
    "DeBERTa v2, disentangled": texts(
        "DebertaV2ForMaskedLM", relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=4
    ),
    "ModernBERT": texts("ModernBertForMaskedLM", eps=SINGLE, local_attention=4),
    "BERT, classes": texts("BertForSequenceClassification", num_labels=3),
    "T5": pairs("T5ForConditionalGeneration", SINGLE, **T5),
    "BART": pairs("BartForConditionalGeneration", **BART),
    "ViT": vision("ViTForImageClassification", **PATCHES),
    "DeiT": vision("DeiTForImageClassification", **PATCHES),
    "BEiT": vision("BeitForImageClassification", use_mean_pooling=True, layer_scale_init_value=0.5, **PATCHES),
    "Swin": vision("SwinForImageClassification", **SWIN),
    "ConvNeXt": vision("ConvNextForImageClassification", hidden_sizes=[8, 16], depths=[1, 1], num_stages=2),
    "ResNet": vision("ResNetForImageClassification", train=True, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1]),
    "MobileViT": vision(
        "MobileViTForImageClassification",
        32,
        hidden_sizes=[8, 8, 8],
        neck_hidden_sizes=[4, 8, 8, 8, 8, 8, 16],
        num_attention_heads=2,
    ),
    "wav2vec 2, CTC's logits": sounds("Wav2Vec2ForCTC", **WAVES),
}
