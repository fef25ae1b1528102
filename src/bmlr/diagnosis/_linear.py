"""Linear probes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from bmlr._checks import check_integer, check_non_negative, check_targets
from bmlr._modes import module_mode
from bmlr.batch import as_batch

if TYPE_CHECKING:
    from bmlr.config import RunConfig


Optimise: TypeAlias = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


@dataclasses.dataclass(frozen=True)
class LinearProbe:
    """A multinomial logistic regression on standardised features.

    Attributes:
        weight: Weights, shape (C, d), float64.
        bias: Bias, shape (C,).
        mean: Mean of each feature on the samples it was fitted to, shape (d,).
        scale: Standard deviation of each feature there; 1 where a feature is constant.
        gradient_norm: Largest entry of the gradient at the end: how far from the optimum the fit stopped.
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    scale: Tensor
    gradient_norm: float

    def __call__(self, features: Tensor) -> Tensor:
        """Logits, shape (N, C), float64."""
        return ((features.double() - self.mean) / self.scale) @ self.weight.T + self.bias


def fit_linear_probe(
    features: Tensor, targets: Tensor, num_classes: int, *, penalty: float = 1e-3, max_iterations: int = 500
) -> LinearProbe:
    r"""Fit a linear probe (Alain and Bengio, 2016): how much of the class is linearly readable from frozen features.

    The convex objective is the mean cross-entropy plus :math:`\tfrac{\text{penalty}}{2} \lVert W \rVert^2`, minimised
    by L-BFGS in float64 on standardised features from a start at zero. It is that of scikit-learn's
    ``LogisticRegression(C=1 / (penalty * N))``; there is nothing random in it.

    Args:
        features: Features, shape (N, d); no gradient flows into them.
        targets: Class indices, shape (N,).
        num_classes: Number of classes C.
        penalty: Factor of the L2 penalty, which the bias is spared.
        max_iterations: Most iterations of L-BFGS.

    Raises:
        ValueError: If shapes or parameters do not fit, or a feature is not finite.

    Example:
        >>> import torch
        >>> features = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]])
        >>> fit_linear_probe(features, torch.tensor([0, 0, 1, 1]), 2)(features).argmax(1)
        tensor([0, 0, 1, 1])
    """
    check_non_negative("penalty", penalty)
    check_integer("max_iterations", max_iterations, 1)
    if features.ndim != 2 or not len(features):
        raise ValueError(f"`features` should have shape (N, d) with N above 0. Found {tuple(features.shape)}.")
    check_targets(targets, len(features), num_classes)
    if not bool(features.isfinite().all()):
        raise ValueError("`features` should be finite. Found NaN or infinity.")
    features, targets = features.detach().double(), targets.long()
    mean, scale = features.mean(0), features.std(0, correction=0)
    scale = torch.where(scale > 1e-8 * (1 + mean.abs()), scale, 1.0)
    standardised = (features - mean) / scale
    weight = features.new_zeros(num_classes, features.shape[1], requires_grad=True)
    bias = features.new_zeros(num_classes, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=max_iterations,
        tolerance_grad=1e-6,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(standardised @ weight.T + bias, targets)
        loss = loss + penalty / 2 * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(objective)
        objective()
    norms = [float(p.grad.abs().max()) for p in (weight, bias) if p.grad is not None and p.numel()]
    return LinearProbe(weight.detach(), bias.detach(), mean, scale, max(norms))


class Features(NamedTuple):
    """Features of one modality, of the samples that have it.

    Attributes:
        values: Features, shape (N, d), on the CPU.
        targets: Class indices, shape (N,).
    """

    values: Tensor
    targets: Tensor


@torch.no_grad()
def extract_features(
    encoders: Mapping[str, Callable[[Tensor], Tensor]], batches: Iterable[Any], *, device: torch.device | None = None
) -> dict[str, Features]:
    """Features of each modality by its encoder, in evaluation mode; modes are put back afterwards.

    Args:
        encoders: What maps the input of each modality to features of shape (B, d).
        batches: Batches of :class:`bmlr.Batch` or pairs (inputs by modality, targets).
        device: Where inputs are moved; by default where the encoder's parameters are.

    Raises:
        ValueError: If a batch lacks a modality, or no sample has it.

    Example:
        >>> import torch, bmlr
        >>> batch = bmlr.Batch({"audio": torch.zeros(3, 4)}, torch.tensor([0, 1, 1]),
        ...                    {"audio": torch.tensor([True, False, True])})
        >>> found = extract_features({"audio": torch.nn.Linear(4, 8)}, [batch])["audio"]
        >>> found.values.shape, found.targets
        (torch.Size([2, 8]), tensor([0, 1]))
    """
    found: dict[str, list[Features]] = {u: [] for u in encoders}
    modules = [encoder for encoder in encoders.values() if isinstance(encoder, nn.Module)]
    with module_mode(*modules, training=False):
        for batch in map(as_batch, batches):
            for name, encoder in encoders.items():
                if name not in batch.inputs:
                    raise ValueError(f"`batches` should hold the modality '{name}'. Found {list(batch.inputs)}.")
                mask = (batch.present or {}).get(name)
                kept = slice(None) if mask is None else mask
                x, targets = batch.inputs[name][kept], batch.targets[kept]
                if len(x):
                    found[name].append(Features(_encode(encoder, x, device).cpu(), targets.long().cpu()))
    for name, parts in found.items():
        if not parts:
            raise ValueError(f"`batches` should hold samples with every modality. Found none with '{name}'.")
    return {
        name: Features(torch.cat([part.values for part in parts]), torch.cat([part.targets for part in parts]))
        for name, parts in found.items()
    }


def _encode(encoder: Callable[[Tensor], Tensor], x: Tensor, device: torch.device | None) -> Tensor:
    parameter = next(encoder.parameters(), None) if isinstance(encoder, nn.Module) else None
    if parameter is not None:
        x = x.to(device or parameter.device, dtype=parameter.dtype if x.is_floating_point() else None)
    features = encoder(x if device is None else x.to(device))
    if features.ndim != 2:
        raise ValueError(f"Encoders should give features of shape (B, d). Found {tuple(features.shape)}.")
    return features


def autocast_type(precision: str) -> torch.dtype:
    return torch.float16 if precision == "16-mixed" else torch.bfloat16


def device_of(config: RunConfig) -> torch.device:
    """A GPU where there is one and the run was not kept off it; else the CPU."""
    wanted = config.trainer.accelerator in {"auto", "gpu", "cuda"}
    return torch.device("cuda" if wanted and torch.cuda.is_available() else "cpu")
