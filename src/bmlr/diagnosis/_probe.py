"""How far a modality is behind what it could do."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bmlr._checks import check_choice, check_integer
from bmlr._random import preserved_random_state

if TYPE_CHECKING:
    from bmlr.config import RunConfig
    from bmlr.model import MultimodalClassifier
from bmlr.diagnosis._alone import Ordered, Trained, train_alone, train_alone_as
from bmlr.diagnosis._linear import Optimise, device_of, extract_features, fit_linear_probe


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
    """Fit a probe on each encoder's features of the training split and read all on the validation split.

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
    split: str = "val",
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
        split: Split of the data the probes are read on: val or test.
        weights: ``best`` (the epoch selected on validation) or ``last``.
        penalty: L2 penalty of the probes.
        most_samples: Most training samples a probe is fitted to.
        device: Where to train and to encode; None takes a GPU where there is one and the run was not kept off it.
        progress: Told in a sentence what is being done.

    Raises:
        FileNotFoundError: If there is no run.
        ValueError: If an argument does not fit.
    """
    from bmlr.config import RunConfig
    from bmlr.training import load_run

    check_choice("split", split, ("val", "test"))
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
            alone[name] = train_alone_as(config, name, select=weights, device=place)
        before = next(model.parameters()).device
        try:
            model.to(place)
            return compare_probes(
                dict(model.encoders.items()),
                alone,
                Ordered(config, "train"),
                Ordered(config, split),
                num_classes=model.num_classes,
                penalty=penalty,
                most_samples=most_samples,
            )
        finally:
            model.to(before)
