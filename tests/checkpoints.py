"""Tiny random checkpoints, as Transformers saves them."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    ASTConfig,
    ASTModel,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    BertTokenizer,
    CLIPConfig,
    CLIPModel,
    PreTrainedModel,
    ResNetConfig,
    ResNetModel,
    T5Config,
    T5Model,
    ViTConfig,
    ViTModel,
    Wav2Vec2Config,
    Wav2Vec2Model,
)

TINY: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(25))]


def _save(model: PreTrainedModel, folder: Path, processor: dict[str, Any] | None = None) -> Path:
    torch.manual_seed(0)
    model.save_pretrained(folder)
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def save_vit(
    folder: Path, size: int = 16, seed: int = 0, mean: float = 0.25, std: float = 0.5, dropout: float = 0.0
) -> Path:
    """A vision transformer for images of ``size``."""
    torch.manual_seed(seed)
    model = ViTModel(
        ViTConfig(**TINY, image_size=size, patch_size=8, hidden_dropout_prob=dropout), add_pooling_layer=False
    )
    side = {"height": size, "width": size}
    entries = {"size": side, "image_mean": [mean] * 3, "image_std": [std] * 3, "do_normalize": True}
    return _save(model, folder, {**entries, "image_processor_type": "ViTImageProcessor"})


def save_resnet(folder: Path) -> Path:
    """A convolutional network, whose processor crops and scales to [−1, 1]."""
    torch.manual_seed(0)
    model = ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic"))
    entries = {
        "size": {"shortest_edge": 20}, "crop_size": {"height": 16, "width": 16}, "do_center_crop": True,
        "rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3,
    }  # fmt: skip
    return _save(model, folder, entries)


def save_bert(folder: Path, *, masked: bool = False) -> Path:
    """A text transformer with a tokeniser; ``masked`` saves one without a trained pooler."""
    torch.manual_seed(0)
    config = BertConfig(**TINY, vocab_size=len(WORDS), max_position_embeddings=32)
    _save(BertForMaskedLM(config) if masked else BertModel(config), folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def save_wav2vec(folder: Path) -> Path:
    """A model of waveforms."""
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        **TINY, conv_dim=[8, 8], conv_stride=[5, 2], conv_kernel=[10, 3],
        num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    return _save(Wav2Vec2Model(config), folder, {"sampling_rate": 16000, "feature_extractor_type": "Wav2Vec2"})


def save_ast(folder: Path) -> Path:
    """A model of spectrograms, by an extractor of its own."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "max_length": 24,
        "num_mel_bins": 16,
        "patch_size": 8,
        "frequency_stride": 8,
        "time_stride": 8,
    }
    return _save(ASTModel(ASTConfig(**TINY, **shape)), folder, {"sampling_rate": 16000})


def save_clip(folder: Path) -> Path:
    """A model of images and texts."""
    torch.manual_seed(0)
    text = {**TINY, "vocab_size": 30, "max_position_embeddings": 16, "eos_token_id": 2, "pad_token_id": 0}
    vision = {**TINY, "image_size": 16, "patch_size": 8}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    return _save(model, folder, {"size": {"height": 16, "width": 16}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3})


def save_t5(folder: Path) -> Path:
    """An encoder and a decoder of text."""
    torch.manual_seed(0)
    return _save(T5Model(T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, vocab_size=30)), folder)
