"""Facts of a method, and what it exchanges with a training loop."""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bmlr._checks import check_choice
from bmlr.batch import Batch
from bmlr.model import MultimodalClassifier

Family = Literal[
    "baseline",
    "labels and losses",
    "gradient scale",
    "data and alternation",
    "gradient combination",
    "architecture and heads",
    "distillation",
    "fusion and inference",
]


#: Names of all tasks, for methods whose losses are those of the task.
ALL_TASKS = ("multiclass", "multilabel", "regression")
#: Names of the tasks of choices among classes.
CLASSIFICATION = ("multiclass", "multilabel")


@dataclasses.dataclass(frozen=True)
class MethodInfo:
    """Bibliography, family and cost of a method.

    Attributes:
        paper: Title of the paper.
        venue: Where it was published.
        url: Where it can be read.
        family: By where the method acts.
        cost: Encoder forwards and backwards of a training step, in units of the joint step.
    """

    paper: str
    venue: str
    url: str
    family: Family
    cost: str = "1 forward, 1 backward"


@dataclasses.dataclass(frozen=True)
class Remedy:
    """Advice to try a method against an undertrained modality.

    Attributes:
        target: Where the modality is behind.
        action: What the method does about it, a phrase that begins with a verb.
        rank: Position among the remedies of the same target, smallest first.
        resolves_conflict: Whether to advise it first where multimodal and unimodal gradients conflict.
    """

    target: Literal["encoder", "decision"]
    action: str
    rank: int = 9
    resolves_conflict: bool = False


@dataclasses.dataclass(frozen=True)
class Conformance:
    """Special expectations of the conformance tests.

    Attributes:
        short: Parameters with which two epochs exercise the whole method.
        variants: Further parameters to test, by a label.
        not_mean_over_samples: Why the gradient of a batch is not the mean of those of its halves.
        not_mean_over_processes: Why that also holds for the halves of two processes.
        alters_features: Why the multimodal loss is not that of the features as they are.
        sorted_names: Whether draws or sums follow the alphabetical order of the modalities.
        order_parameter: Parameter that fixes the order in which modalities act, if the order matters.
        modality_parameter: Parameter that names a modality of the model.
        reads_host: Why the host reads a number within a step; a tensor that lives on the host, so that no device is
            waited for.
        untrained: Encoders that training leaves as they are, by the label of a variant, "" for :attr:`short`: ``all``,
            or ``others`` than the named one.
    """

    short: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    variants: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    not_mean_over_samples: str = ""
    not_mean_over_processes: str = ""
    alters_features: str = ""
    sorted_names: bool = False
    order_parameter: str = ""
    modality_parameter: str = ""
    reads_host: str = ""
    untrained: Mapping[str, Literal["others", "all"]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Losses:
    """Named losses of a batch.

    Attributes:
        terms: The loss terms, scalars with their weights already in them, keyed by what they train.
        logs: Scalars to be logged, without gradient.
        refusal: Why :attr:`total` cannot be differentiated; empty if it can.

    Example:
        >>> import torch, bmlr
        >>> losses = bmlr.methods.Losses({"fused": torch.tensor(1.0), "audio": torch.tensor(2.0)})
        >>> losses.total
        tensor(3.)
    """

    terms: dict[str, Tensor]
    logs: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    refusal: str = dataclasses.field(default="", repr=False)

    @property
    def total(self) -> Tensor:
        """Sum of all terms, the scalar to minimise."""
        total = functools.reduce(operator.add, self.terms.values())
        if self.refusal and total.requires_grad:
            total = total.view_as(total)  # a node of its own: the only term may be the sum itself
            total.register_hook(self._refuse)
        return total

    def _refuse(self, gradient: Tensor) -> None:
        raise RuntimeError(self.refusal)


@dataclasses.dataclass  # Lightning moves predictions to the CPU, which a frozen class would refuse
class Prediction:
    """Predictions of a method for a batch.

    Attributes:
        logits: Multimodal logits, shape (B, C); ``task.predict(logits)`` makes classes, labels or numbers of them.
        unimodal_logits: Logits of each modality alone, shape (B, C) each.
    """

    logits: Tensor
    unimodal_logits: dict[str, Tensor]


@dataclasses.dataclass(frozen=True)
class Pass:
    """One pass over training data.

    Attributes:
        tag: Handed to the method with every batch of the pass, as ``batch.tag``.
        indices: Training samples to go through; None is all of them. A sample named several times comes as often,
            each time with the same random transforms.
        fresh_optimizer: Forget the optimiser's state (momenta, second moments) before the pass.
    """

    tag: str = ""
    indices: tuple[int, ...] | None = None
    fresh_optimizer: bool = False


@dataclasses.dataclass(frozen=True)
class EpochPlan:
    """Passes of an epoch.

    Attributes:
        passes: The passes; each shuffles its samples.
        order: ``sequential`` runs one pass after another; ``shuffled`` mixes the batches of all passes; ``aligned``
            shuffles all passes alike and gives the k-th batch of each in turn, so that a method takes several steps on
            the same batch, with the same random transforms.

    Raises:
        ValueError: If the order is unknown, or aligned passes go through different samples.

    Example:
        >>> import bmlr
        >>> plan = bmlr.methods.EpochPlan((bmlr.methods.Pass("a"), bmlr.methods.Pass("v")), order="aligned")
        >>> plan.steps_per_batch
        2
    """

    passes: tuple[Pass, ...] = (Pass(),)
    order: Literal["sequential", "shuffled", "aligned"] = "sequential"

    def __post_init__(self) -> None:
        check_choice("order", self.order, ("sequential", "shuffled", "aligned"))
        if self.order == "aligned" and any(entry.indices != self.passes[0].indices for entry in self.passes):
            sizes = {entry.tag: "all" if entry.indices is None else len(entry.indices) for entry in self.passes}
            raise ValueError(
                f"`passes` of `order = 'aligned'` should go through the same samples. Found passes of {sizes} samples, "
                "which are not the same ones."
            )

    @property
    def steps_per_batch(self) -> int:
        """Times a batch is given in a row: the number of aligned passes, else 1."""
        return len(self.passes) if self.order == "aligned" else 1

    def check_accumulation(self, argument: str, accumulate: int) -> None:
        """Check the number of batches of an optimiser step.

        Raises:
            ValueError: If a step would mix aligned passes.
        """
        if accumulate > 1 and self.steps_per_batch > 1:
            raise ValueError(
                f"`{argument}` should be 1, since the method takes {self.steps_per_batch} optimiser steps on every "
                f"batch. Found {accumulate}: give larger batches instead."
            )


def _no_batches(*_: Any) -> Iterable[Batch]:
    raise RuntimeError(
        "The method looks at data between epochs: give EpochContext `num_train`, `train_batches`, `val_batches` and "
        "`shuffled_batches`, or let bmlr.Balancer run the loop."
    )


def _no_optimizer(_: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    raise RuntimeError(
        "The method trains copies of its own between epochs: give EpochContext `make_optimizer`, or let bmlr.Balancer "
        "run the loop."
    )


@dataclasses.dataclass
class EpochContext:
    """Model and data at hand between epochs.

    Attributes:
        epoch: Number of the epoch, from zero.
        max_epochs: Number of epochs of the whole training.
        model: The model in training.
        num_train: Number of training samples, 0 if unknown.
        train_batches: Gives the training split in order, with the transforms of evaluation, on the model's device.
        val_batches: The same of the validation split. The test split is out of reach on purpose.
        seed: Seed of the run, at least 0, on which the draws of methods depend beside their own.
        shuffled_batches: Gives the training split as an epoch of training sees it, shuffled and with the random
            transforms of training. Its argument is a number of the method's: another number is another order. The
            order is the same in every process, which all go through the whole split. A loader whose samples cannot be
            chosen comes in its own order.
        make_optimizer: Makes an optimiser of the run's kind over some of the run's parameters, with their present
            learning rates and other options, and without any state.
    """

    epoch: int
    max_epochs: int
    model: MultimodalClassifier
    num_train: int = 0
    train_batches: Callable[[], Iterable[Batch]] = _no_batches
    val_batches: Callable[[], Iterable[Batch]] = _no_batches
    seed: int = 0
    shuffled_batches: Callable[[int], Iterable[Batch]] = _no_batches
    make_optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] = _no_optimizer
