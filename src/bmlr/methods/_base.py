"""Contract between a method and a training loop."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from bmlr._checks import check_targets
from bmlr.batch import Batch
from bmlr.model import MultimodalClassifier, Output

Family = Literal["baseline", "labels and losses", "gradient scale", "data and alternation", "gradient combination"]


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
        resolves_conflict: Whether to advise it first where fused and unimodal gradients conflict.
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
        alters_features: Why the fused loss is not that of the features as they are.
        sorted_names: Whether draws or sums follow the alphabetical order of the modalities.
        order_parameter: Parameter that fixes the order in which modalities act, if the order matters.
    """

    short: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    variants: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    not_mean_over_samples: str = ""
    not_mean_over_processes: str = ""
    alters_features: str = ""
    sorted_names: bool = False
    order_parameter: str = ""


@dataclasses.dataclass(frozen=True)
class Losses:
    """Named losses of a batch.

    Attributes:
        terms: The loss terms, scalars with their weights already in them, keyed by what they train.
        logs: Scalars to be logged, without gradient.

    Example:
        >>> import torch, bmlr
        >>> losses = bmlr.methods.Losses({"fused": torch.tensor(1.0), "audio": torch.tensor(2.0)})
        >>> losses.total
        tensor(3.)
    """

    terms: dict[str, Tensor]
    logs: dict[str, Tensor] = dataclasses.field(default_factory=dict)

    @property
    def total(self) -> Tensor:
        """Sum of all terms, the scalar to minimise."""
        return functools.reduce(operator.add, self.terms.values())


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Predictions of a method for a batch.

    Attributes:
        logits: Fused logits, shape (B, C).
        unimodal_logits: Logits of each modality alone, shape (B, C) each.
    """

    logits: Tensor
    unimodal_logits: dict[str, Tensor]


@dataclasses.dataclass(frozen=True)
class Pass:
    """One pass over training data.

    Attributes:
        tag: Handed to the method with every batch of the pass, as ``batch.tag``.
        indices: Training samples to go through; None is all of them.
        fresh_optimizer: Forget the optimiser's state (momenta, second moments) before the pass.
    """

    tag: str = ""
    indices: tuple[int, ...] | None = None
    fresh_optimizer: bool = False


@dataclasses.dataclass(frozen=True)
class EpochPlan:
    """Passes of an epoch.

    Attributes:
        passes: The passes, run one after another; each shuffles its samples.
        interleave: Shuffle the batches of all passes together instead.
    """

    passes: tuple[Pass, ...] = (Pass(),)
    interleave: bool = False


@dataclasses.dataclass
class EpochContext:
    """Model and data at hand between epochs.

    Attributes:
        epoch: Number of the epoch, from zero.
        max_epochs: Number of epochs of the whole training.
        model: The model in training.
        num_train: Number of training samples.
        train_batches: Gives the training split in order, with the transforms of evaluation, on the model's device.
        val_batches: The same of the validation split. The test split is out of reach on purpose.
    """

    epoch: int
    max_epochs: int
    model: MultimodalClassifier
    num_train: int
    train_batches: Callable[[], Iterable[Batch]]
    val_batches: Callable[[], Iterable[Batch]]


class Method(nn.Module, ABC):
    """A training method for a :class:`bmlr.MultimodalClassifier`.

    In a loop of your own a method is a loss::

        losses = method(model(inputs), targets)
        losses.total.backward()

    Methods that act elsewhere too need the other calls, which are harmless for all others. A training loop makes them
    in this order:

    * once: :meth:`setup`, then an optimiser over ``[*model.parameters(), *method.parameters()]``;
    * per epoch: :meth:`start_epoch`, whose plan lists the passes over the data, and :meth:`end_epoch`;
    * per batch: :meth:`compute_losses` and :meth:`backward`;
    * per optimiser step: :meth:`adjust_gradients`, after unscaling and before clipping;
    * to evaluate: :meth:`predict`.

    Distributed training also needs two class attributes before its first step: :attr:`leaves_gradients_unset`, by which
    DDP looks for parameters without a gradient, and :attr:`reduces_gradients`, by which it does not average gradients.

    All state lives in ``state_dict()``, in tensors: a model that holds a method can be saved by safetensors. A subclass
    implements :meth:`losses` alone where it can.
    """

    #: Bibliography, family and cost; every concrete method sets it.
    info: ClassVar[MethodInfo]
    #: Whether some steps leave parameters without a gradient, which distributed training has to expect.
    leaves_gradients_unset: ClassVar[bool] = False
    #: Whether :meth:`backward` averages gradients over processes by itself, since it combines them non-linearly.
    reduces_gradients: ClassVar[bool] = False
    #: Smallest number of modalities; balancing compares at least two.
    min_modalities: ClassVar[int] = 2
    #: Whether every sample must have every modality.
    needs_all_modalities: ClassVar[bool] = False
    #: Constructor parameters that count epochs; a shorter training scales their defaults.
    epoch_parameters: ClassVar[tuple[str, ...]] = ()
    #: Constructor parameters whose sum is the number of passes over the data in one epoch; empty means one pass.
    pass_parameters: ClassVar[tuple[str, ...]] = ()
    #: Method whose tuned parameters this one takes over.
    shares_parameters_with: ClassVar[type[Method] | None] = None
    #: Advice to try the method, if a diagnosis should give it.
    remedy: ClassVar[Remedy | None] = None
    #: Attributes stored in ``state_dict()`` as tensors: integers, floats, flags, and tensors that stay on the CPU.
    state_attributes: ClassVar[tuple[str, ...]] = ("epoch", "max_epochs")
    #: What the conformance tests should expect.
    conformance: ClassVar[Conformance] = Conformance()

    def __init__(self) -> None:
        super().__init__()
        self.epoch = 0
        self.max_epochs = 1

    def setup(self, model: MultimodalClassifier) -> None:
        """Check the model and make auxiliary modules, such as heads.

        Call it once, before the optimiser is made.

        Raises:
            ValueError: If the method cannot train this model.
        """
        self.check_modalities(model.modalities)

    def check_modalities(self, names: Collection[str]) -> None:
        """Check the number of modalities.

        Raises:
            ValueError: If there are fewer than :attr:`min_modalities`.
        """
        if len(names) < self.min_modalities:
            raise ValueError(
                f"Method {type(self).__name__} needs a model of at least {self.min_modalities} modalities. "
                f"Found {', '.join(names)}. Train a modality alone by Joint."
            )

    @abstractmethod
    def losses(self, output: Output, targets: Tensor) -> Losses:
        """Losses of a batch from the model's output; called through ``method(...)``."""

    def forward(self, output: Output, targets: Tensor) -> Losses:
        """Losses of a batch.

        Args:
            output: Output of the model for the batch.
            targets: Class indices, shape (B,).

        Raises:
            ValueError: If the targets do not fit.
        """
        check_targets(targets, output.batch_size, output.fusion.num_classes)
        losses = self.losses(output, targets)
        readout = output.readout_losses(targets)
        return Losses({**losses.terms, **readout}, losses.logs) if readout else losses

    def compute_losses(self, model: MultimodalClassifier, batch: Batch) -> Losses:
        """Run the model on a batch and return the losses.

        Overridden by methods with several or partial forwards.
        """
        losses: Losses = self(model(batch.inputs, batch.present), batch.targets)
        return losses

    def backward(self, losses: Losses, model: MultimodalClassifier, *, scale: float | Tensor = 1.0) -> None:
        """Accumulate gradients of ``scale`` times the losses; overridden to combine gradients.

        Args:
            losses: Losses of :meth:`compute_losses` for the batch.
            model: The model they were computed with.
            scale: Loss scale (mixed precision) over the number of accumulated batches.
        """
        (losses.total * scale).backward()

    def adjust_gradients(self, model: MultimodalClassifier) -> None:
        """Change gradients in place, once per step, after unscaling, before clipping."""

    def start_epoch(self, context: EpochContext) -> EpochPlan:
        """Begin an epoch and plan its passes over the training data.

        The default is one pass. A loop asks exactly once per epoch. A run that resumes within an epoch goes on with the
        plan of its checkpoint, so that draws and updates made here happen once.
        """
        self.epoch, self.max_epochs = context.epoch, context.max_epochs
        return EpochPlan()

    def end_epoch(self, context: EpochContext) -> None:
        """End an epoch; overridden to change weights between epochs."""

    def labels(self, output: Output, targets: Tensor) -> Mapping[str, Tensor] | None:
        """Training labels of each modality.

        Args:
            output: Output of the model for the batch.
            targets: Class indices, shape (B,).

        Returns:
            Distributions of shape (B, C) by name; None for one-hot labels.
        """
        return None

    def predict(self, output: Output) -> Prediction:
        """Fused and unimodal logits for evaluation."""
        return Prediction(output.logits, output.unimodal_logits)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """Store :attr:`state_attributes` as tensors: safetensors takes nothing else."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in self.state_attributes:
            value = getattr(self, name)
            # float64: a weight rounded to float32 would end the run elsewhere.
            dtype = torch.float64 if isinstance(value, float) else None
            destination[prefix + name] = torch.as_tensor(value, dtype=dtype).clone()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Restore :attr:`state_attributes`, each in the type it has."""
        missing_keys = args[2]
        for name in self.state_attributes:
            if (stored := state_dict.pop(prefix + name, None)) is None:
                missing_keys.append(prefix + name)
                continue
            present = getattr(self, name)
            value = stored.detach().cpu().clone() if isinstance(present, Tensor) else type(present)(stored)
            setattr(self, name, value)
        super()._load_from_state_dict(state_dict, prefix, *args)

    @property
    def hparams(self) -> dict[str, Any]:
        """Constructor parameters by name."""
        names = inspect.signature(type(self).__init__).parameters
        return {name: getattr(self, name) for name in names if name != "self" and hasattr(self, name)}

    def __repr__(self) -> str:
        parameters = ", ".join(f"{name}={value!r}" for name, value in self.hparams.items())
        return f"{type(self).__name__}({parameters})"
