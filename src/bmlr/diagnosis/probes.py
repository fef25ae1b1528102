"""Linear probes on encoders trained jointly, alone or not at all."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from bmlr._checks import check_integer, check_non_negative, check_targets
from bmlr._modes import module_mode
from bmlr.batch import as_batch

__all__ = [
    "Features",
    "LinearProbe",
    "ProbeResult",
    "TrainedAlone",
    "compare_probes",
    "extract_features",
    "fit_linear_probe",
]

#: Maps the inputs of a modality to features of shape (B, d).
Encoder: TypeAlias = Callable[[Tensor], Tensor]


@dataclasses.dataclass(frozen=True)
class LinearProbe:
    """A multinomial logistic regression on standardised features.

    Attributes:
        weight: Weights, shape (C, d), float64; zero for a class without samples.
        bias: Bias, shape (C,); −∞ for a class without samples.
        mean: Mean of each feature over the samples of the fit, shape (d,).
        scale: Standard deviation of each feature there; 1 for a constant feature.
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    scale: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Logits, shape (N, C), float64."""
        return ((features.double() - self.mean) / self.scale) @ self.weight.T + self.bias


def fit_linear_probe(
    features: Tensor, targets: Tensor, num_classes: int, *, penalty: float = 1e-3, max_iterations: int = 1000
) -> LinearProbe:
    r"""Fit a linear probe (Alain and Bengio, 2016) to frozen features.

    It minimises the mean cross-entropy plus :math:`\tfrac{\text{penalty}}{2} \lVert W \rVert^2` over weights of all
    classes, by scikit-learn's ``LogisticRegression`` in float64 on standardised features. The fit is deterministic.

    Args:
        features: Features, shape (N, d); gradients do not flow into them.
        targets: Class indices, shape (N,).
        num_classes: Number of classes C.
        penalty: Factor of the L2 penalty on the weights, without the bias.
        max_iterations: Maximum number of iterations of L-BFGS.

    Raises:
        ValueError: If shapes or parameters do not fit, or a feature is not finite.
        ModuleNotFoundError: If scikit-learn is not installed.

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
    features, targets = features.detach().double().cpu(), targets.long().cpu()
    mean, scale = features.mean(0), features.std(0, correction=0)
    # Rounding errors of a constant feature must not be blown up to unit variance.
    scale = torch.where(scale > 1e-8 * (1 + mean.abs()), scale, 1.0)
    weight = features.new_zeros(num_classes, features.shape[1])
    bias = features.new_full((num_classes,), -math.inf)
    classes = targets.unique()
    if len(classes) == 1:
        bias[classes] = 0.0
    else:
        weight[classes], bias[classes] = _fit((features - mean) / scale, targets, penalty, max_iterations)
    return LinearProbe(weight, bias, mean, scale)


def _fit(features: Tensor, targets: Tensor, penalty: float, max_iterations: int) -> tuple[Tensor, Tensor]:
    """Fit weights and biases of the classes in the targets."""
    try:
        from sklearn.linear_model import LogisticRegression
        from threadpoolctl import threadpool_limits
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'Linear probes are fitted by scikit-learn, which is not installed: pip install "bmlr[train]"'
        ) from error
    binary = len(targets.unique()) == 2
    # Of two classes scikit-learn fits the difference of both weights, whose square is twice the sum of their squares.
    factor = penalty * len(targets) / (2 if binary else 1)
    regression = LogisticRegression(C=1 / factor if factor else math.inf, tol=1e-6, max_iter=max_iterations)
    # On a busy machine BLAS threads on all cores wait for each other, and a fit takes 60 times longer.
    with threadpool_limits(torch.get_num_threads(), user_api="blas"):
        regression.fit(features.numpy(), targets.numpy())
    weight, bias = torch.from_numpy(regression.coef_), torch.from_numpy(regression.intercept_)
    return (torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2) if binary else (weight, bias)


class Features(NamedTuple):
    """Features and targets of one modality.

    Samples without the modality are left out.

    Attributes:
        values: Features, shape (N, d), on the CPU.
        targets: Class indices, shape (N,).
    """

    values: Tensor
    targets: Tensor


@torch.no_grad()
def extract_features(
    encoders: Mapping[str, Encoder], batches: Iterable[Any], *, device: torch.device | None = None
) -> dict[str, Features]:
    """Features of each modality in evaluation mode; the modes are restored afterwards.

    Args:
        encoders: Encoder of each modality; features have shape (B, d).
        batches: Batches of :class:`bmlr.Batch` or pairs (inputs by modality, targets).
        device: Device of the inputs; by default that of the encoder's parameters.

    Raises:
        ValueError: If a batch lacks a modality, or no sample has it.

    Example:
        >>> import torch, bmlr
        >>> batch = bmlr.Batch({"audio": torch.zeros(3, 4)}, torch.tensor([0, 1, 1]),
        ...                    {"audio": torch.tensor([True, False, True])})
        >>> features = extract_features({"audio": torch.nn.Linear(4, 8)}, [batch])["audio"]
        >>> features.values.shape, features.targets
        (torch.Size([2, 8]), tensor([0, 1]))
    """
    extracted = _extract_keyed({(name, name): encoder for name, encoder in encoders.items()}, batches, device)
    return {name: features for (name, _), features in extracted.items()}


def _extract_keyed(
    encoders: Mapping[tuple[str, str], Encoder], batches: Iterable[Any], device: torch.device | None
) -> dict[tuple[str, str], Features]:
    """Features by several encoders per modality in one pass; keys end with the modality."""
    collected: dict[tuple[str, str], list[Features]] = {key: [] for key in encoders}
    modules = [encoder for encoder in encoders.values() if isinstance(encoder, nn.Module)]
    with module_mode(*modules, training=False):
        for batch in map(as_batch, batches):
            for (key, name), encoder in encoders.items():
                if name not in batch.inputs:
                    raise ValueError(f"`batches` should hold the modality '{name}'. Found {list(batch.inputs)}.")
                mask = (batch.present or {}).get(name)
                kept = slice(None) if mask is None else mask
                x, targets = batch.inputs[name][kept], batch.targets[kept]
                if len(x):
                    features = Features(_encode(encoder, x, device).cpu(), targets.long().cpu())
                    collected[key, name].append(features)
    for (_, name), pieces in collected.items():
        if not pieces:
            raise ValueError(f"`batches` should hold samples with every modality. Found none with '{name}'.")
    return {
        key: Features(torch.cat([f.values for f in pieces]), torch.cat([f.targets for f in pieces]))
        for key, pieces in collected.items()
    }


def _encode(encoder: Encoder, x: Tensor, device: torch.device | None) -> Tensor:
    parameter = next(encoder.parameters(), None) if isinstance(encoder, nn.Module) else None
    if parameter is not None:
        x = x.to(device or parameter.device, dtype=parameter.dtype if x.is_floating_point() else None)
    features = encoder(x if device is None else x.to(device))
    if features.ndim != 2:
        raise ValueError(f"Encoders should give features of shape (B, d). Found {tuple(features.shape)}.")
    return features


@dataclasses.dataclass(frozen=True)
class TrainedAlone:
    """A model trained on one modality alone.

    Attributes:
        encoder: Its encoder; features have shape (B, d).
        classifier: The whole model: inputs of the modality to logits of shape (B, C).
        untrained: An encoder of the same architecture before training.
    """

    encoder: Encoder
    classifier: Encoder
    untrained: Encoder


@dataclasses.dataclass(frozen=True)
class ProbeResult:
    """Hits of linear probes on three encoders of one modality.

    All are of the same samples.

    Attributes:
        joint: Hits of the probe on the joint model's encoder, boolean, shape (N,).
        alone: Hits of the probe on the encoder trained alone.
        untrained: Hits of the probe on the untrained encoder: the accuracy readable without any training.
        trained_alone: Hits of the model trained alone itself.
        targets: Class indices, shape (N,).
    """

    joint: Tensor
    alone: Tensor
    untrained: Tensor
    trained_alone: Tensor
    targets: Tensor

    @property
    def gap(self) -> float:
        """Probe accuracy by the encoder trained alone less the joint one."""
        return _rate(self.alone) - _rate(self.joint)

    def as_dict(self) -> dict[str, float]:
        """Accuracies, gap and number of samples."""
        return {
            "joint": _rate(self.joint),
            "alone": _rate(self.alone),
            "untrained": _rate(self.untrained),
            "gap": self.gap,
            "trained_alone": _rate(self.trained_alone),
            "samples": len(self.targets),
        }


def _rate(hits: Tensor) -> float:
    return float(hits.double().mean())


@torch.no_grad()
def compare_probes(
    joint: Mapping[str, Encoder],
    alone: Mapping[str, TrainedAlone],
    train: Iterable[Any],
    val: Iterable[Any],
    *,
    num_classes: int,
    penalty: float = 1e-3,
    max_samples: int = 20_000,
    device: torch.device | None = None,
) -> dict[str, ProbeResult]:
    """Fit probes on ``train`` and score them on ``val``.

    A modality is undertrained if a probe reads far more from its encoder trained alone than from the joint model's (the
    comparison of Du et al., "On Uni-Modal Feature Learning in Supervised Multi-Modal Learning", ICML 2023). Give the
    training alone the budget of the joint training.

    Args:
        joint: Encoders of the joint model, by modality.
        alone: Models trained alone, by modality.
        train: Batches for the fits, in any order, without random transforms; iterated once.
        val: Batches for the scores; iterated once.
        num_classes: Number of classes.
        penalty: L2 penalty of the probes.
        max_samples: Maximum number of samples of a fit, taken at equal distances.
        device: Device of the encoders; by default that of each encoder's parameters.

    Raises:
        ValueError: If the modalities differ or an argument does not fit.

    Example:
        >>> import torch, bmlr
        >>> x = torch.tensor([[0.0], [0.1], [0.9], [1.0]])
        >>> batches = [bmlr.Batch({"audio": x}, torch.tensor([0, 0, 1, 1]))]
        >>> encoder = torch.nn.Linear(1, 4)
        >>> model = torch.nn.Sequential(encoder, torch.nn.Linear(4, 2))
        >>> alone = {"audio": TrainedAlone(encoder, model, torch.nn.Linear(1, 4))}
        >>> result = compare_probes({"audio": torch.nn.Linear(1, 4)}, alone, batches, batches, num_classes=2)
        >>> result["audio"].as_dict()["joint"]
        1.0
    """
    check_integer("max_samples", max_samples, 1)
    if joint.keys() != alone.keys():
        raise ValueError(f"`alone` should have the modalities of `joint`, {list(joint)}. Found {list(alone)}.")
    probed: dict[tuple[str, str], Encoder] = {
        (kind, u): encoder
        for u, model in alone.items()
        for kind, encoder in (("joint", joint[u]), ("alone", model.encoder), ("untrained", model.untrained))
    }
    classifiers = {("trained_alone", u): model.classifier for u, model in alone.items()}
    train_features = _extract_keyed(probed, train, device)
    val_features = _extract_keyed({**probed, **classifiers}, val, device)
    hits: dict[str, dict[str, Tensor]] = {u: {} for u in joint}
    for (kind, u), (values, targets) in val_features.items():
        logits = values
        if kind != "trained_alone":
            fitted = train_features[kind, u]
            indices = torch.linspace(0, len(fitted.targets) - 1, min(max_samples, len(fitted.targets))).long()
            probe = fit_linear_probe(fitted.values[indices], fitted.targets[indices], num_classes, penalty=penalty)
            logits = probe(values)
        hits[u][kind] = logits.argmax(1) == targets
    return {u: ProbeResult(**hits[u], targets=val_features["joint", u].targets) for u in joint}
