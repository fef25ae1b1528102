"""Small models and batches, shared by the tests."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import bmlr

#: Modality names in the order in which the builders take them, and the width of each one's input and features.
MODALITIES = ("audio", "video", "text")
INPUT_DIMS = {"audio": 4, "video": 6, "text": 5}
FEATURE_DIMS = {"audio": 7, "video": 5, "text": 6}


def make_encoder(name: str, *, batch_norm: bool = False) -> nn.Sequential:
    """A smooth two-layer encoder, whose gradients are never zero by chance."""
    width = FEATURE_DIMS[name]
    return nn.Sequential(
        nn.Linear(INPUT_DIMS[name], 9),
        nn.BatchNorm1d(9) if batch_norm else nn.Identity(),
        nn.Tanh(),
        nn.Linear(9, width),
    )


class OwnFusion(bmlr.fusion.Fusion):
    """A user's own fusion: a head on the tanh of a sum of projections."""

    def __init__(self, feature_dims: Mapping[str, int], num_classes: int) -> None:
        super().__init__(feature_dims, num_classes)
        self.projections = nn.ModuleDict({name: nn.Linear(width, 6) for name, width in self.feature_dims.items()})
        self.head = nn.Linear(6, num_classes)

    def fused(self, features: Mapping[str, Tensor]) -> Tensor:
        projected = torch.stack([self.projections[name](features[name]) for name in self.feature_dims])
        logits: Tensor = self.head(projected.sum(0).tanh())
        return logits


def make_method(name: str) -> bmlr.Method:
    """A method by its defaults, which trains features of different widths, and audio where it trains one modality."""
    parameters: dict[str, dict[str, Any]] = {"MLA": {"width": 6}, "Unimodal": {"modality": "audio"}}
    return bmlr.methods.create(name, **parameters.get(name, {}))


def make_model(
    modalities: int | Sequence[str] = 2,
    fusion: str | bmlr.fusion.Fusion = "concat",
    *,
    num_classes: int = 3,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    batch_norm: bool = False,
    names: Mapping[str, str] | None = None,
    **fusion_options: Any,
) -> bmlr.MultimodalClassifier:
    """A small model with weights drawn from ``seed``.

    ``modalities`` are names, or how many of :data:`MODALITIES`; ``fusion="own"`` is :class:`OwnFusion`; ``names`` gives
    modalities other names than those of the zoo.
    """
    listed = MODALITIES[:modalities] if isinstance(modalities, int) else tuple(modalities)
    names = names or {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoders = {names.get(name, name): make_encoder(name, batch_norm=batch_norm) for name in listed}
        if fusion == "own":
            fusion = OwnFusion({names.get(name, name): FEATURE_DIMS[name] for name in listed}, num_classes)
        model = bmlr.MultimodalClassifier(encoders, num_classes, fusion, fusion_options=fusion_options)
    return model.to(dtype)


def make_batch(
    modalities: int | Sequence[str] = 2,
    batch_size: int = 8,
    *,
    num_classes: int = 3,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    present: Mapping[str, Tensor] | None = None,
) -> bmlr.Batch:
    """Gaussian inputs with a mean per class."""
    names = MODALITIES[:modalities] if isinstance(modalities, int) else tuple(modalities)
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(num_classes, (batch_size,), generator=generator)
    inputs = {}
    for name in names:
        means = torch.randn(num_classes, INPUT_DIMS[name], generator=generator, dtype=torch.float64)
        noise = torch.randn(batch_size, INPUT_DIMS[name], generator=generator, dtype=torch.float64)
        inputs[name] = (means[targets] + noise).to(dtype)
    return bmlr.Batch(inputs, targets, None if present is None else dict(present), torch.arange(batch_size))


def make_logits(
    modalities: int | Sequence[str] = 2,
    batch_size: int = 8,
    num_classes: int = 5,
    *,
    scale: float = 3.0,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> tuple[dict[str, Tensor], Tensor]:
    """Random unimodal logits and targets."""
    count = modalities if isinstance(modalities, int) else len(modalities)
    names = [f"m{i}" for i in range(count)] if isinstance(modalities, int) else list(modalities)
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(num_classes, (batch_size,), generator=generator)
    draw = torch.randn(count, batch_size, num_classes, generator=generator, dtype=torch.float64) * scale
    return {name: values.to(dtype) for name, values in zip(names, draw, strict=True)}, targets
