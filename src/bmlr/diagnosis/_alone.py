"""A modality trained alone."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bmlr._checks import check_choice, check_integer
from bmlr.batch import as_batch

if TYPE_CHECKING:
    from bmlr.config import RunConfig
from bmlr.diagnosis._linear import Optimise, autocast_type, extract_features


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


def train_alone(  # noqa: PLR0913  (a training has this many splits)
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
            with torch.autocast(device.type, autocast_type(precision), enabled="mixed" in precision):
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


def train_alone_as(config: RunConfig, name: str, *, select: str, device: torch.device) -> Trained:
    """Train one modality alone as the run was trained."""
    from bmlr.config import build_model, fill_defaults

    model_options, optimizer, trainer = fill_defaults(config.data, config.model, config.optimizer, config.trainer)
    torch.manual_seed(config.seed)
    encoder = build_model(config.data, model_options).encoders[name]
    epochs = trainer.epochs or 1
    return train_alone(
        name,
        encoder,
        _Planned(config, name),
        Ordered(config, "val"),
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


class Ordered:
    """A split of a run's data, in order, without random transforms."""

    def __init__(self, config: RunConfig, split: Any) -> None:
        self.config, self.split = config, config.model_data.split(split)

    def __iter__(self) -> Any:
        from bmlr.training.loader import RequestLoader, ordered_requests

        size = self.config.trainer.batch_size or self.config.data.defaults.batch_size
        requests = ordered_requests(len(self.split), size)
        return iter(RequestLoader(self.split, requests, num_workers=self.config.trainer.num_workers))


class _Planned:
    """The training split in the order and with the transforms of a run, an epoch further on every pass.

    Samples that lack the modality are left out beforehand, so that every batch is as full as in the run.
    """

    def __init__(self, config: RunConfig, name: str) -> None:
        self.config, self.split = config, config.model_data.split("train")
        self.indices = _indices_with(name, Ordered(config, "train"), len(self.split))
        self.epoch = 0

    def __iter__(self) -> Any:
        from bmlr.methods import EpochPlan, Pass
        from bmlr.training.loader import RequestLoader, planned_requests

        size = self.config.trainer.batch_size or self.config.data.defaults.batch_size
        requests = planned_requests(
            EpochPlan((Pass(indices=self.indices),)),
            len(self.split),
            size,
            seed=self.config.seed,
            epoch=self.epoch,
        )
        self.epoch += 1
        return iter(RequestLoader(self.split, requests, num_workers=self.config.trainer.num_workers))


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
