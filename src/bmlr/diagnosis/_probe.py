"""Linear probes on frozen encoders, and what an encoder trained alone would offer them."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from bmlr._checks import check_choice, check_integer, check_non_negative, check_targets
from bmlr._modes import module_mode
from bmlr.diagnosis._readings import as_batch
from bmlr.diagnosis._state import preserved_random_state

if TYPE_CHECKING:
    from bmlr.model import MultimodalClassifier
    from bmlr.training import RunConfig

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


@dataclasses.dataclass(frozen=True)
class ModalityGap:
    """Linear probes on three encoders of one modality, read on the same samples.

    Attributes:
        joint: Whether the probe on the joint model's encoder is right, boolean, shape (N,).
        alone: Whether the probe on the encoder trained alone is.
        untrained: Whether the probe on the encoder before its training is: what a probe reads without any training.
        head: Whether the encoder trained alone is right under its own linear head.
        targets: Class indices, shape (N,).
        epoch: Epoch (from zero) whose weights of the encoder trained alone were taken.
    """

    joint: Tensor
    alone: Tensor
    untrained: Tensor
    head: Tensor
    targets: Tensor
    epoch: int

    @property
    def joint_accuracy(self) -> float:
        """Accuracy of the probe on the joint model's encoder."""
        return _rate(self.joint)

    @property
    def alone_accuracy(self) -> float:
        """Accuracy of the probe on the encoder trained alone."""
        return _rate(self.alone)

    @property
    def untrained_accuracy(self) -> float:
        """Accuracy of the probe on the encoder before its training."""
        return _rate(self.untrained)

    @property
    def head_accuracy(self) -> float:
        """Accuracy of the modality trained alone."""
        return _rate(self.head)

    @property
    def gap(self) -> float:
        """How much better a probe reads the encoder trained alone: large for an undertrained encoder."""
        return self.alone_accuracy - self.joint_accuracy

    def as_dict(self) -> dict[str, float]:
        """The numbers as plain data."""
        return {
            "joint": self.joint_accuracy,
            "alone": self.alone_accuracy,
            "untrained": self.untrained_accuracy,
            "gap": self.gap,
            "alone_head": self.head_accuracy,
            "alone_epoch": self.epoch,
            "samples": len(self.targets),
        }


def _rate(hits: Tensor) -> float:
    return float(hits.double().mean())


@dataclasses.dataclass(frozen=True)
class Trained:
    """An encoder trained alone.

    Attributes:
        encoder: The encoder, with the weights of the chosen epoch.
        head: Its linear head.
        untrained: The encoder as it was before.
        epoch: The chosen epoch, from zero.
    """

    encoder: nn.Module
    head: nn.Linear
    untrained: nn.Module
    epoch: int


def train_alone(  # noqa: PLR0913  (a training has this many parts)
    name: str,
    encoder: nn.Module,
    train: Iterable[Any],
    val: Iterable[Any],
    *,
    num_classes: int,
    epochs: int,
    optimizer: Optimise,
    scheduler: Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler | None] | None = None,
    precision: str = "32-true",
    accumulate: int = 1,
    clip: float | None = None,
    select: str = "best",
    device: torch.device | str = "cpu",
) -> Trained:
    """Train one encoder under a linear head by cross-entropy: what a modality yields by itself.

    Args:
        name: The modality.
        encoder: Encoder, trained in place; its features have shape (B, d).
        train: Training batches, iterated once per epoch.
        val: Batches by which the epoch is chosen.
        num_classes: Number of classes.
        epochs: Number of epochs.
        optimizer: Makes the optimiser from the parameters.
        scheduler: Makes the schedule, stepped per epoch, from the optimiser.
        precision: 32-true, 64-true, bf16-mixed or 16-mixed.
        accumulate: Batches per step.
        clip: Largest norm of the gradients; None does not clip.
        select: ``best`` (first epoch of the best accuracy on ``val``) or ``last``.
        device: Where to train.

    Raises:
        ValueError: If a loss is not finite or an argument does not fit.
    """
    check_choice("select", select, ("best", "last"))
    check_integer("epochs", epochs, 1)
    device = torch.device(device)
    dtype = torch.float64 if precision == "64-true" else torch.float32
    encoder = encoder.to(device=device, dtype=dtype)
    width = next(iter(extract_features({name: encoder}, _first(train)).values())).values.shape[1]
    untrained = copy.deepcopy(encoder).eval()
    head = nn.Linear(width, num_classes, device=device, dtype=dtype)
    network = nn.Sequential(encoder, head)
    updates = optimizer(network.parameters())
    schedule = None if scheduler is None else scheduler(updates)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "16-mixed" and device.type == "cuda")
    chosen: tuple[float, int, dict[str, Any]] = (-math.inf, 0, {})
    for epoch in range(epochs):
        network.train()
        for number, (x, targets, steps) in enumerate(_of_modality(name, train, device, dtype, accumulate)):
            with torch.autocast(device.type, _autocast_type(precision), enabled="mixed" in precision):
                loss = nn.functional.cross_entropy(network(x).float() if "mixed" in precision else network(x), targets)
            if not bool(loss.detach().isfinite()):
                raise ValueError(f"Training '{name}' alone: the loss is not finite in epoch {epoch}, batch {number}.")
            scaler.scale(loss / accumulate).backward()
            if not steps:
                continue
            if clip is not None:
                scaler.unscale_(updates)
                nn.utils.clip_grad_norm_(network.parameters(), clip)
            scaler.step(updates)
            scaler.update()
            updates.zero_grad()
        if schedule is not None:
            schedule.step()
        score = _head_accuracy(name, network, val, device, dtype)
        if select == "last" or score > chosen[0]:
            chosen = (score, epoch, copy.deepcopy(network.state_dict()))
    network.load_state_dict(chosen[2])
    network.eval()
    return Trained(encoder, head, untrained, chosen[1])


def _first(batches: Iterable[Any]) -> list[Any]:
    return [next(iter(batches))]


def _of_modality(
    name: str, batches: Iterable[Any], device: torch.device, dtype: torch.dtype, accumulate: int
) -> Iterable[tuple[Tensor, Tensor, bool]]:
    """Inputs and targets of the samples that have the modality, and whether a step follows."""
    following: tuple[Tensor, Tensor] | None = None
    number = 0
    for batch in map(as_batch, batches):
        mask = (batch.present or {}).get(name)
        kept = slice(None) if mask is None else mask
        x, targets = batch.inputs[name][kept], batch.targets[kept].long()
        if not len(x):
            continue
        if following is not None:
            number += 1
            yield *following, number % accumulate == 0
        following = (x.to(device, dtype=dtype if x.is_floating_point() else None), targets.to(device))
    if following is not None:
        yield *following, True


def _autocast_type(precision: str) -> torch.dtype:
    return torch.float16 if precision == "16-mixed" else torch.bfloat16


@torch.no_grad()
def _head_accuracy(
    name: str, network: nn.Module, batches: Iterable[Any], device: torch.device, dtype: torch.dtype
) -> float:
    network.eval()
    hits = [
        (network(x).argmax(1) == targets).double().cpu()
        for x, targets, _ in _of_modality(name, batches, device, dtype, 1)
    ]
    return float(torch.cat(hits).mean()) if hits else math.nan


@torch.no_grad()
def compare_probes(
    joint: Mapping[str, Callable[[Tensor], Tensor]],
    alone: Mapping[str, Trained],
    train: Iterable[Any],
    val: Iterable[Any],
    *,
    num_classes: int,
    penalty: float = 1e-3,
    most_samples: int = 20_000,
    device: torch.device | None = None,
) -> dict[str, ModalityGap]:
    """Fit a probe on each encoder's features of the training part and read all on the validation part.

    Args:
        joint: Encoders of the joint model, by modality.
        alone: Encoders trained alone, by modality.
        train: Batches the probes are fitted to, in any order, without random transforms.
        val: Batches the probes are read on.
        num_classes: Number of classes.
        penalty: L2 penalty of the probes.
        most_samples: Most samples a probe is fitted to; of more, an even choice.
        device: Where to encode; by default where each encoder is.
    """
    check_integer("most_samples", most_samples, 1)
    kinds: dict[str, Mapping[str, Callable[[Tensor], Tensor]]] = {
        "joint": joint,
        "alone": {u: found.encoder for u, found in alone.items()},
        "untrained": {u: found.untrained for u, found in alone.items()},
    }
    hits: dict[str, dict[str, Tensor]] = {u: {} for u in joint}
    targets: dict[str, Tensor] = {}
    for kind, encoders in kinds.items():
        fitted_to = extract_features(encoders, train, device=device)
        read_on = extract_features(encoders, val, device=device)
        for name, (values, labels) in fitted_to.items():
            chosen = torch.linspace(0, len(labels) - 1, min(most_samples, len(labels))).long()
            probe = fit_linear_probe(values[chosen], labels[chosen], num_classes, penalty=penalty)
            hits[name][kind] = probe(read_on[name].values).argmax(1) == read_on[name].targets
            if kind == "alone":
                targets[name] = read_on[name].targets
                head = alone[name].head
                logits = head(read_on[name].values.to(head.weight)).cpu()
                hits[name]["head"] = logits.argmax(1) == targets[name]
    return {name: ModalityGap(**hits[name], targets=targets[name], epoch=alone[name].epoch) for name in joint}


def probe_gap_of(  # noqa: PLR0913
    encoders: Mapping[str, Callable[[Tensor], Tensor]],
    make_encoder: Callable[[str], nn.Module],
    train: Iterable[Any],
    val: Iterable[Any],
    *,
    num_classes: int,
    epochs: int,
    optimizer: Optimise,
    select: str = "best",
    penalty: float = 1e-3,
    most_samples: int = 20_000,
    seed: int = 0,
) -> dict[str, ModalityGap]:
    """Linear-probe gap of encoders of your own against training alone.

    Each modality is trained alone, under a linear head, with a fresh encoder and the budget given: give that of the
    joint training. Then a linear probe is fitted to the features of either encoder and read on ``val``. A modality
    whose encoder alone offers a probe much more than the joint model's does is undertrained (the comparison of Du et
    al., "On Uni-Modal Feature Learning in Supervised Multi-Modal Learning", ICML 2023).

    Args:
        encoders: The joint model's encoders, or functions that give its features of shape (B, d), by modality.
        make_encoder: Makes a fresh encoder for a modality by its name; of the architecture of the joint model's.
        train: Training batches, iterable more than once, such as a DataLoader that shuffles.
        val: Validation batches.
        num_classes: Number of classes.
        epochs: Epochs of the training alone.
        optimizer: Makes the optimiser, such as ``lambda parameters: torch.optim.Adam(parameters, 1e-3)``.
        select: ``best`` (the epoch of the best validation accuracy) or ``last``.
        penalty: L2 penalty of the probes.
        most_samples: Most samples a probe is fitted to.
        seed: Seed of the fresh encoders' weights and of the loaders' order.

    Raises:
        ValueError: If an argument does not fit.

    Example:
        >>> import torch, bmlr
        >>> x = torch.tensor([[0.0], [0.1], [0.9], [1.0]])
        >>> batches = [bmlr.Batch({"audio": x}, torch.tensor([0, 0, 1, 1]))]
        >>> gaps = probe_gap_of({"audio": torch.nn.Linear(1, 4)}, lambda name: torch.nn.Linear(1, 4), batches, batches,
        ...                     num_classes=2, epochs=1, optimizer=lambda p: torch.optim.SGD(p, 0.1))
        >>> gaps["audio"].joint_accuracy
        1.0
    """
    with preserved_random_state():
        alone = {}
        for name, encoder in encoders.items():
            torch.manual_seed(seed)
            parameter = next(encoder.parameters(), None) if isinstance(encoder, nn.Module) else None
            alone[name] = train_alone(
                name,
                make_encoder(name),
                train,
                val,
                num_classes=num_classes,
                epochs=epochs,
                optimizer=optimizer,
                select=select,
                device="cpu" if parameter is None else parameter.device,
            )
        return compare_probes(
            encoders, alone, train, val, num_classes=num_classes, penalty=penalty, most_samples=most_samples
        )


def probe_gap(
    run: Path | str | RunConfig,
    model: MultimodalClassifier | None = None,
    *,
    part: str = "val",
    weights: str = "best",
    penalty: float = 1e-3,
    most_samples: int = 20_000,
    device: torch.device | str | None = None,
    progress: Callable[[str], None] | None = None,
) -> dict[str, ModalityGap]:
    """Linear-probe gap of a run: its encoders against the same encoders trained alone with the same budget.

    Each modality is trained alone under a linear head with the run's encoder options, optimiser, schedule, epochs,
    batch size, precision and seed; the epoch is chosen as the run's is. See :func:`probe_gap_of` for the comparison.

    Args:
        run: Directory of a run, or the configuration that ``model`` was trained by.
        model: The trained model, where ``run`` is a configuration.
        part: Part of the data the probes are read on: val or test.
        weights: ``best`` (the epoch selected on validation) or ``last``.
        penalty: L2 penalty of the probes.
        most_samples: Most training samples a probe is fitted to.
        device: Where to train and to encode; None takes a GPU where there is one and the run was not kept off it.
        progress: Told in a sentence what is being done.

    Raises:
        FileNotFoundError: If there is no run.
        ValueError: If an argument does not fit.
    """
    from bmlr.training import RunConfig, load_run

    check_choice("part", part, ("val", "test"))
    check_choice("weights", weights, ("best", "last"))
    if isinstance(run, RunConfig):
        if model is None:
            raise ValueError("`model` should be given with a configuration: the model trained by it. Found None.")
        config = run
        config.data.prepare()
    else:
        if model is not None:
            raise ValueError("`model` should be left out where `run` is a directory, which holds it.")
        with preserved_random_state():
            config, model, _ = load_run(run, weights=weights)
    place = torch.device(device) if device is not None else device_of(config)
    with preserved_random_state():
        alone = {}
        for name in model.modalities:
            if progress is not None:
                progress(f"training {name} alone for {config.trainer.epochs} epochs")
            alone[name] = _train_alone_as(config, name, select=weights, device=place)
        before = next(model.parameters()).device
        try:
            model.to(place)
            return compare_probes(
                dict(model.encoders.items()),
                alone,
                _Ordered(config, "train"),
                _Ordered(config, part),
                num_classes=model.num_classes,
                penalty=penalty,
                most_samples=most_samples,
            )
        finally:
            model.to(before)


def device_of(config: RunConfig) -> torch.device:
    """A GPU where there is one and the run was not kept off it; else the CPU."""
    wanted = config.trainer.accelerator in {"auto", "gpu", "cuda"}
    return torch.device("cuda" if wanted and torch.cuda.is_available() else "cpu")


def _train_alone_as(config: RunConfig, name: str, *, select: str, device: torch.device) -> Trained:
    """Train one modality alone as the run was trained."""
    from bmlr.training import build_model, fill_defaults

    model_options, optimizer, trainer = fill_defaults(config.data, config.model, config.optimizer, config.trainer)
    torch.manual_seed(config.seed)
    encoder = build_model(config.data, model_options).encoders[name]
    epochs = trainer.epochs or 1
    return train_alone(
        name,
        encoder,
        _Planned(config, name),
        _Ordered(config, "val"),
        num_classes=len(config.data.classes),
        epochs=epochs,
        optimizer=optimizer.optimizer,
        scheduler=lambda updates: optimizer.scheduler(updates, epochs),
        precision=trainer.precision,
        accumulate=trainer.accumulate_grad_batches,
        clip=trainer.gradient_clip_val,
        select=select,
        device=device,
    )


class _Ordered:
    """A part of a run's data, in order, without random transforms."""

    def __init__(self, config: RunConfig, part: Any) -> None:
        self.config, self.part = config, config.data.part(part)

    def __iter__(self) -> Any:
        from bmlr.training import RequestLoader, ordered_requests

        size = self.config.trainer.batch_size or self.config.data.defaults.batch_size
        requests = ordered_requests(len(self.part), size)
        return iter(RequestLoader(self.part, requests, num_workers=self.config.trainer.num_workers))


class _Planned:
    """The training part in the order and with the transforms of a run, an epoch further on every pass.

    Samples that lack the modality are left out beforehand, so that every batch is as full as in the run.
    """

    def __init__(self, config: RunConfig, name: str) -> None:
        self.config, self.part = config, config.data.part("train")
        self.indices = _indices_with(name, _Ordered(config, "train"), len(self.part))
        self.epoch = 0

    def __iter__(self) -> Any:
        from bmlr.methods import EpochPlan, Pass
        from bmlr.training import RequestLoader, planned_requests

        size = self.config.trainer.batch_size or self.config.data.defaults.batch_size
        requests = planned_requests(
            EpochPlan((Pass(indices=self.indices),)),
            len(self.part),
            size,
            seed=self.config.seed,
            epoch=self.epoch,
        )
        self.epoch += 1
        return iter(RequestLoader(self.part, requests, num_workers=self.config.trainer.num_workers))


def _indices_with(name: str, batches: Iterable[Any], count: int) -> tuple[int, ...] | None:
    """Positions of the samples that have a modality; None where no batch says that any lacks one."""
    found: list[int] = []
    start = 0
    for number, batch in enumerate(map(as_batch, batches)):
        if number == 0 and batch.present is None:
            return None
        mask = (batch.present or {}).get(name)
        found += [start + i for i in range(len(batch.targets)) if mask is None or bool(mask[i])]
        start += len(batch.targets)
    return tuple(found) if start == count else None
