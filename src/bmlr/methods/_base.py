"""Interface between a method and a training loop."""

from __future__ import annotations

import dataclasses
import inspect
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bmlr.batch import Batch
from bmlr.fusion import Fusion
from bmlr.methods._steps import watch_optimizers
from bmlr.methods._types import Conformance, EpochContext, EpochPlan, Losses, MethodInfo, Prediction, Remedy
from bmlr.model import MultimodalClassifier, Output
from bmlr.parameters import shared_parameters
from bmlr.tasks import Task


class Method(nn.Module, ABC):
    """A training method for a :class:`bmlr.MultimodalClassifier`.

    :class:`bmlr.Balancer` drives any method in three lines of a loop of your own. Without it a loop makes these calls:

    * once: :meth:`setup`, then an optimiser over ``[*model.parameters(), *method.parameters()]``;
    * per epoch: :meth:`start_epoch`, whose plan lists the passes over the data, and :meth:`end_epoch`;
    * per batch: :meth:`compute_losses` and :meth:`backward`;
    * per optimiser step: :meth:`adjust_gradients`, after unscaling and before clipping;
    * to evaluate: :meth:`predict`, in evaluation mode.

    Where a method is a loss and no more, ``method(model(inputs), targets).total.backward()`` is the same. A method that
    needs another call raises a RuntimeError at the next loss in training mode, or at the backward pass of the total.

    Distributed training also needs two class attributes before its first step: :attr:`leaves_gradients_unset`, by which
    DDP looks for parameters without a gradient, and :attr:`reduces_gradients`, by which it does not average gradients.

    What a method draws depends on the run's seed (:class:`EpochContext`), its own and the step, on no global stream: it
    is the same in every process and after a resume.

    All state lives in ``state_dict()``, in tensors: a model that holds a method can be saved by safetensors. A subclass
    implements :meth:`losses` alone where it can, else :meth:`batch_losses`, :meth:`combine_gradients`,
    :meth:`change_gradients`, :meth:`plan_epoch` or :meth:`finish_epoch`, on which the calls of the loop rest.
    """

    #: Bibliography, family and cost; every concrete method sets it.
    info: ClassVar[MethodInfo]
    #: Whether some steps leave parameters without a gradient, which distributed training has to expect.
    leaves_gradients_unset: ClassVar[bool] = False
    #: Whether :meth:`backward` averages gradients over processes by itself, since it combines them non-linearly.
    reduces_gradients: ClassVar[bool] = False
    #: Names of the tasks (:mod:`bmlr.tasks`) it is defined for.
    tasks: ClassVar[tuple[str, ...]] = ("multiclass",)
    #: Why it is not defined for the others, a clause.
    tasks_reason: ClassVar[str] = "it is written for class indices"
    #: Smallest number of modalities; balancing compares at least two.
    min_modalities: ClassVar[int] = 2
    #: Largest number of modalities; None is no limit.
    max_modalities: ClassVar[int | None] = None
    #: Whether every sample must have every modality.
    needs_all_modalities: ClassVar[bool] = False
    #: Whether it acts on each encoder by itself, whose parameters must then belong to one modality.
    needs_separate_encoders: ClassVar[bool] = False
    #: Constructor parameters that count epochs; a shorter training scales their defaults. `last_epoch` is the last one.
    epoch_parameters: ClassVar[tuple[str, ...]] = ()
    #: Constructor parameters whose sum is the number of passes over the data in one epoch; empty means one pass.
    pass_parameters: ClassVar[tuple[str, ...]] = ()
    #: Method whose tuned parameters this one takes over.
    shares_parameters_with: ClassVar[type[Method] | None] = None
    #: Advice to try the method, if a diagnosis should give it.
    remedy: ClassVar[Remedy | None] = None
    #: Whether it trains anything; one that only predicts is done after one epoch without steps.
    trains: ClassVar[bool] = True
    #: Why no graph can hold losses and backward of its step (``--trainer.graph``), a clause; empty if one can. A class
    #: of yours says so itself: what its step does by Python, but for setting attributes, is not done again.
    graph_reason: ClassVar[str] = ""
    #: Attributes that only training needs, such as teachers: weight files, which are for predictions, leave them out.
    training_state: ClassVar[tuple[str, ...]] = ()
    #: Attributes stored in ``state_dict()`` as tensors: integers, floats, flags, and tensors that stay on the CPU.
    state_attributes: ClassVar[tuple[str, ...]] = ("epoch", "max_epochs")
    #: What the conformance tests should expect.
    conformance: ClassVar[Conformance] = Conformance()

    def __init__(self) -> None:
        super().__init__()
        self.epoch = 0
        #: Number of epochs of the training; 0 before the first one starts.
        self.max_epochs = 0
        self._pair = ""
        self._forget_calls()

    def _forget_calls(self) -> None:
        self._is_computing = False
        self._has_open_loss = False  # a loss that no call has followed
        self._unadjusted: tuple[nn.Parameter, ...] = ()  # trained by losses whose gradients are not adjusted yet
        self._tags: frozenset[str] | None = None  # of the plan; None if it is unknown, as after a resume
        self._is_epoch_open = False

    def setup(self, model: MultimodalClassifier) -> None:
        """Check the model and make auxiliary modules, such as heads.

        Call it once, before the optimiser is made.

        Raises:
            ValueError: If the method cannot train this model.
        """
        self.check_modalities(model.modalities)
        self.check_task(model.task)
        if self.needs_separate_encoders:
            check_separate(type(self).__name__, model)
        self._forget_calls()
        # A name for the pair: copies of both, and no other model, are set up with each other.
        self._pair = model.fusion.pair = uuid.uuid4().hex
        model.fusion.untrained_by = "" if self.trains_fusion else type(self).__name__

    def required_runs(self, modalities: Collection[str]) -> dict[str, Method]:
        """Methods whose trained runs this one starts from, by a name; empty for most.

        :func:`bmlr.training.train` makes them first, by the same options, data and seed, and hands them over.
        """
        return {}

    def is_set_up_for(self, model: MultimodalClassifier) -> bool:
        """Whether :meth:`setup` was called with this model."""
        return bool(self._pair) and self._pair == model.fusion.pair

    def check_modalities(self, names: Collection[str]) -> None:
        """Check the number of modalities.

        Raises:
            ValueError: If there are fewer than :attr:`min_modalities` or more than :attr:`max_modalities`.
        """
        if len(names) < self.min_modalities:
            raise ValueError(
                f"Method {type(self).__name__} needs a model of at least {self.min_modalities} modalities. "
                f"Found {', '.join(names)}. Train a modality alone by Joint."
            )
        if self.max_modalities is not None and len(names) > self.max_modalities:
            raise ValueError(
                f"Method {type(self).__name__} is written for {self.max_modalities} modalities. "
                f"Found {', '.join(names)}: choose some of them, or another method."
            )

    def check_task(self, task: Task) -> None:
        """Check that the method is defined for a task.

        Raises:
            ValueError: If it is not; the message says why.
        """
        if task.name not in self.tasks:
            raise ValueError(
                f"Method {type(self).__name__} is defined for {' and '.join(self.tasks)} tasks only, since "
                f"{self.tasks_reason}. Found {type(task).__name__}, a {task.name} task."
            )

    # What a subclass says

    @property
    def combines_gradients(self) -> bool:
        """Whether :meth:`backward` does more than differentiate the total."""
        return type(self).combine_gradients is not Method.combine_gradients

    @property
    def changes_gradients(self) -> bool:
        """Whether :meth:`adjust_gradients` does anything."""
        return type(self).change_gradients is not Method.change_gradients

    @property
    def follows_epochs(self) -> bool:
        """Whether losses or passes depend on :meth:`start_epoch`."""
        return type(self).plan_epoch is not Method.plan_epoch or type(self).finish_epoch is not Method.finish_epoch

    @property
    def plans_passes(self) -> bool:
        """Whether :meth:`plan_epoch` may give anything but one pass over all samples."""
        return False

    @property
    def trains_fusion(self) -> bool:
        """Whether the model's multimodal logits are trained; else only :meth:`predict` predicts."""
        return True

    @abstractmethod
    def losses(self, output: Output, targets: Tensor) -> Losses:
        """Losses of a batch from the model's output."""

    def batch_losses(self, model: MultimodalClassifier, batch: Batch) -> Losses:
        """Losses of a batch from the inputs; overridden for several or partial forwards."""
        losses: Losses = self(model(batch.inputs, batch.present), batch.targets)
        return losses

    def combine_gradients(self, losses: Losses, model: MultimodalClassifier, *, scale: float | Tensor) -> None:
        """Accumulate gradients of ``scale`` times the losses."""
        (losses.total * scale).backward()

    def change_gradients(self, model: MultimodalClassifier) -> None:
        """Change the gradients of a step in place."""

    def plan_epoch(self, context: EpochContext) -> EpochPlan:
        """Passes of the epoch that begins; :attr:`epoch` is its number."""
        return EpochPlan()

    def finish_epoch(self, context: EpochContext) -> None:
        """Change weights between epochs."""

    # What a training loop calls

    def start_epoch(self, context: EpochContext) -> EpochPlan:
        """Begin an epoch and plan its passes over the training data.

        The default is one pass. A loop asks exactly once per epoch. A run that resumes within an epoch goes on with the
        plan of its checkpoint, so that draws and updates made here happen once.

        Raises:
            RuntimeError: If the method acts at the end of an epoch and the one before was not ended.
        """
        if self._is_epoch_open and type(self).finish_epoch is not Method.finish_epoch:
            raise RuntimeError(
                f"{type(self).__name__} acts at the end of epochs: call `method.end_epoch(context)` after epoch "
                f"{self.epoch}."
            )
        self.epoch, self.max_epochs = context.epoch, context.max_epochs
        plan = self.plan_epoch(context)
        self._tags, self._is_epoch_open = frozenset(entry.tag for entry in plan.passes), True
        return plan

    def end_epoch(self, context: EpochContext) -> None:
        """End an epoch."""
        self._is_epoch_open = False
        self.finish_epoch(context)

    def forward(self, output: Output, targets: Tensor) -> Losses:
        """Losses of a batch.

        Args:
            output: Output of the model for the batch.
            targets: Targets of the model's task, such as class indices, shape (B,).

        Raises:
            ValueError: If the targets do not fit the task, or the method is not defined for it.
            RuntimeError: If the loop left out a call that the method needs.
        """
        if not isinstance(output, Output):
            raise ValueError(
                "`output` should be what the model returns, a bmlr.Output. "
                f"Found {type(output).__name__}: give method(model(inputs), targets)."
            )
        self.check_task(output.task)

        def compute() -> Losses:
            output.task.check_targets(targets, output.batch_size)
            losses = self.losses(output, targets)
            readout = output.readout_losses(targets)
            return Losses({**losses.terms, **readout}, losses.logs) if readout else losses

        return self._watch(compute, output.fusion)

    def compute_losses(self, model: MultimodalClassifier, batch: Batch) -> Losses:
        """Run the model on a batch and return the losses.

        Raises:
            ValueError: If the batch does not fit.
            RuntimeError: If the loop left out a call that the method needs.
        """
        self.check_task(model.task)
        return self._watch(lambda: self.batch_losses(model, batch), model.fusion, batch.tag)

    def backward(self, losses: Losses, model: MultimodalClassifier, *, scale: float | Tensor = 1.0) -> None:
        """Accumulate gradients of ``scale`` times the losses.

        Args:
            losses: Losses of :meth:`compute_losses` for the batch.
            model: The model they were computed with.
            scale: Loss scale (mixed precision) over the number of accumulated batches.
        """
        self._has_open_loss = False
        self.combine_gradients(Losses(losses.terms, losses.logs), model, scale=scale)

    def discard_losses(self) -> None:
        """Say that no gradients follow the last loss, such as that of a batch that is left out."""
        self._has_open_loss = False

    def adjust_gradients(self, model: MultimodalClassifier) -> None:
        """Change gradients in place, once per step, after unscaling, before clipping."""
        self._unadjusted = ()
        if not self.combines_gradients:
            self._has_open_loss = False
        self.change_gradients(model)

    def _watch(self, compute: Callable[[], Losses], fusion: Fusion, tag: str = "") -> Losses:
        """Compute losses, and refuse where a call is missing; only in training, where calls follow."""
        if self._is_computing or not (self.training and torch.is_grad_enabled()):
            return compute()
        self._check_calls(fusion, tag)
        self._is_computing = True
        try:
            losses = compute()
        finally:
            self._is_computing = False
        if self.changes_gradients:
            self._unadjusted = (*fusion.parameters(), *self.parameters())
            watch_optimizers(self)
        self._has_open_loss = self.combines_gradients or self.changes_gradients
        if not self.combines_gradients:
            return losses
        return dataclasses.replace(
            losses,
            refusal=f"{type(self).__name__} combines the gradients of its losses: call "
            "`method.backward(losses, model)` in place of `losses.total.backward()`.",
        )

    def _check_calls(self, fusion: Fusion, tag: str) -> None:
        name = type(self).__name__
        if self.follows_epochs and not self.max_epochs:
            raise RuntimeError(
                f"{name} follows the epochs: call `method.start_epoch(EpochContext(epoch, max_epochs, model))` before "
                "the batches of each, or let bmlr.Balancer run the loop."
            )
        if self._tags is not None and tag not in self._tags:
            raise RuntimeError(
                f"{name} trains by passes of its own in epoch {self.epoch}: call `method.compute_losses(model, batch)` "
                f"with batches whose tag is one of {sorted(self._tags)}, or let bmlr.Balancer run the loop. "
                f"Found the tag {tag!r}."
            )
        if self._has_open_loss:
            calls = ["`method.backward(losses, model)` after every loss"] if self.combines_gradients else []
            calls += ["`method.adjust_gradients(model)` before every optimiser step"] if self.changes_gradients else []
            raise RuntimeError(
                f"{name} needs {' and '.join(calls)}, which did not come since the last loss. bmlr.Balancer makes "
                "every call; `method.discard_losses()` drops a loss on purpose."
            )

    def check_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Refuse a step of an optimiser with gradients that were not adjusted.

        Raises:
            RuntimeError: If it trained parameters of the last loss without :meth:`adjust_gradients`.
        """
        stepped = {id(p) for group in optimizer.param_groups for p in group["params"]} if self._unadjusted else set()
        if any(id(p) in stepped for p in self._unadjusted):
            self._unadjusted = ()
            raise RuntimeError(
                f"{type(self).__name__} changes gradients: call `method.adjust_gradients(model)` before every "
                "optimiser step, or let bmlr.Balancer run the loop. This step was taken without."
            )

    def labels(self, output: Output, targets: Tensor) -> Mapping[str, Tensor] | None:
        """Training labels of each modality.

        Args:
            output: Output of the model for the batch.
            targets: Targets of the model's task, such as class indices, shape (B,).

        Returns:
            Labels of shape (B, C) by name, such as distributions; None for the targets themselves.
        """
        return None

    def predict(self, output: Output) -> Prediction:
        """Multimodal and unimodal logits for evaluation."""
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
        self._forget_calls()

    @property
    def hparams(self) -> dict[str, Any]:
        """Constructor parameters by name."""
        names = inspect.signature(type(self).__init__).parameters
        return {name: getattr(self, name) for name in names if name != "self" and hasattr(self, name)}

    def __repr__(self) -> str:
        parameters = ", ".join(f"{name}={value!r}" for name, value in self.hparams.items())
        return f"{type(self).__name__}({parameters})"


def check_separate(name: str, model: MultimodalClassifier) -> None:
    """Raise a ValueError if two encoders share a parameter, which the method would change twice."""
    for first, second, _ in shared_parameters(dict(model.encoders.items())):
        raise ValueError(
            f"{name} acts on each encoder by itself and would count the parameters that '{first}' and '{second}' share "
            "twice: give each modality an encoder of its own, or choose a method of losses such as BMLR."
        )
