"""A LightningModule of one's own that trains by any method."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar

import lightning
import torch
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from bmlr._random import mixed_seed
from bmlr.batch import Batch, as_batch
from bmlr.integrations._common import check_model, check_one_pass, start_one_pass
from bmlr.loaders import batches_in_order, count_samples, shuffled_batches
from bmlr.methods import EpochContext, Losses, Method, Prediction
from bmlr.model import MultimodalClassifier
from bmlr.parameters import optimizer_like

__all__ = ["BalancedMixin"]


class BalancedMixin(lightning.LightningModule):
    """A LightningModule of one's own, trained by a method.

    Inherit from it, first where there are several bases; call :meth:`balance` at the end of ``__init__``, and return
    :meth:`balanced_loss` from ``training_step``. Accumulation, precision, clipping, DDP, checkpoints, resume, loaders,
    optimisers, schedules and logging are the trainer's and yours. The checkpoint holds the method, whose
    draws depend on the seed of ``lightning.seed_everything``. A hook of yours (``on_train_epoch_start``,
    ``on_before_optimizer_step``, ...) calls that of ``super()``.

    Example:
        >>> import lightning, torch, bmlr
        >>> from bmlr.integrations.lightning import BalancedMixin
        >>> class Classifier(BalancedMixin):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.net = bmlr.MultimodalClassifier({"a": torch.nn.Linear(4, 8), "v": torch.nn.Linear(6, 8)}, 3)
        ...         self.balance(self.net, bmlr.methods.OGMGE())
        ...     def training_step(self, batch, index):
        ...         return self.balanced_loss(batch)
        ...     def configure_optimizers(self):
        ...         return torch.optim.SGD(self.parameters(), lr=0.1)
        >>> Classifier().method.is_set_up_for(Classifier().net)
        False
    """

    method: Method
    #: Whether ``training_step`` returns a multiple of the total; else that is looked at, which waits for the device.
    _returns_total: ClassVar[bool] = False
    _classifier: MultimodalClassifier
    _open: tuple[Losses, Tensor] | None = None  # of a step whose gradients are still to come

    def balance(self, model: MultimodalClassifier, method: Method) -> None:
        """Train a model by a method; its parameters are among those of the module.

        Args:
            model: The model, such as one of :func:`bmlr.wrap`.
            method: The method.

        Raises:
            ValueError: If the method cannot train the model, or makes passes over the data of its own.
        """
        check_one_pass(method, "loaders of yours cannot: use bmlr.Balancer, or BalancedModule with `data`")
        self._connect(model, method)

    def _connect(self, model: MultimodalClassifier, method: Method) -> None:
        check_model(model)
        if not method.is_set_up_for(model):
            method.setup(model)
        self.method = method
        object.__setattr__(self, "_classifier", model)  # registered, it would stand in `state_dict()` a second time

    def to_batch(self, batch: Any) -> Batch:
        """A batch of a loader as a :class:`bmlr.Batch`; override it for batches of another form.

        Args:
            batch: A :class:`bmlr.Batch`, a pair (inputs by modality, targets), or a dictionary of inputs by name and
                ``labels``. For a wrapped model the inputs may be the arguments of its ``forward``.
        """
        if isinstance(batch, Mapping) and "labels" in batch:
            batch = ({name: value for name, value in batch.items() if name != "labels"}, batch["labels"])
        converted = as_batch(batch)
        model = self._balanced_model()
        if converted.inputs.keys() == set(model.modalities):
            return converted
        return dataclasses.replace(converted, inputs=model.split_inputs(converted.inputs))

    def balanced_loss(self, batch: Any) -> Tensor:
        """Loss of a batch, a scalar, to be returned by ``training_step``.

        Terms of yours may be added, unless the method combines gradients.

        Args:
            batch: What :meth:`to_batch` takes.

        Raises:
            RuntimeError: If the loss is not finite.
        """
        model = self._balanced_model()
        losses = self.method.compute_losses(model, self.to_batch(batch))
        total = self._open_losses(losses)
        if not bool(torch.isfinite(total.detach())):
            raise RuntimeError(
                f"The loss is not finite in epoch {self.current_epoch}, step {self.global_step}: "
                f"{ {name: float(value.detach()) for name, value in losses.terms.items()} }."
            )
        return total

    def balanced_prediction(self, batch: Any) -> Prediction:
        """Prediction of the method for a batch, for ``validation_step``.

        Args:
            batch: What :meth:`to_batch` takes.
        """
        converted = self.to_batch(batch)
        return self.method.predict(self._balanced_model()(converted.inputs, converted.present))

    def epoch_context(self) -> EpochContext:
        """Model and data for the method between epochs."""

        def batches(loader: Callable[[], Any]) -> Callable[[], Iterator[Batch]]:
            return lambda: batches_in_order(_single(loader()), convert)

        def convert(batch: Any) -> Batch:
            converted: Batch = trainer.precision_plugin.convert_input(self.to_batch(batch).to(self.device))
            return converted

        trainer = self.trainer
        if self.method.follows_epochs and (trainer.max_epochs or 0) < 1:
            raise ValueError(
                f"`max_epochs` of the trainer should be given: {type(self.method).__name__} follows the epochs."
            )
        seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))  # that of lightning.seed_everything
        return EpochContext(
            trainer.current_epoch,
            max(1, trainer.max_epochs or 1),
            self._balanced_model(),
            count_samples(_single(trainer.train_dataloader)),
            batches(lambda: trainer.train_dataloader),
            batches(lambda: trainer.val_dataloaders),
            seed,
            lambda number: shuffled_batches(
                _single(trainer.train_dataloader), convert, mixed_seed(seed, trainer.current_epoch, number)
            ),
            lambda parameters: optimizer_like(trainer.optimizers[0], parameters),
        )

    # Hooks of the trainer

    def on_train_start(self) -> None:
        """Check the strategy; switch off DDP's averaging for methods that average gradients."""
        super().on_train_start()
        name = type(self.method).__name__
        if isinstance(self.trainer.strategy, (FSDPStrategy, DeepSpeedStrategy, ModelParallelStrategy)):
            raise ValueError("FSDP and DeepSpeed are not supported: methods read whole gradients. Use ddp.")
        if not isinstance(self.trainer.model, DistributedDataParallel):
            return
        if self.method.leaves_gradients_unset and not self.trainer.model.find_unused_parameters:
            raise ValueError(
                f"{name} leaves gradients unset in some steps: give the trainer "
                "strategy='ddp_find_unused_parameters_true'."
            )
        if self.method.reduces_gradients:
            self.trainer.model.require_backward_grad_sync = False

    def on_train_epoch_start(self) -> None:
        """Start the method's epoch."""
        super().on_train_epoch_start()
        start_one_pass(self.method, self.epoch_context())

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Compute the method's gradients, scaled as the trainer scaled the loss.

        The trainer divides the loss by the accumulated batches and scales it for half precision. The method gets its
        single losses instead, with the same scale.
        """
        opened, self._open = self._open, None
        if opened is None:
            super().backward(loss, *args, **kwargs)  # a loss that is none of the method's
            return
        losses, total = opened
        (scale,) = torch.autograd.grad(loss, total, retain_graph=True)
        if self._returns_total or _is_product(loss, scale, total):
            self.method.backward(losses, self._balanced_model(), scale=scale)
            return
        if self.method.combines_gradients:
            raise RuntimeError(
                f"{type(self.method).__name__} combines the gradients of its losses: `training_step` should return "
                "balanced_loss(batch), times a factor at most, and no term of its own beside it."
            )
        super().backward(loss, *args, **kwargs)
        self.method.discard_losses()  # their gradients have come

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Adjust the gradients by the method: they are unscaled, and not yet clipped."""
        super().on_before_optimizer_step(optimizer)
        self.method.adjust_gradients(self._balanced_model())

    def on_train_epoch_end(self) -> None:
        """End the method's epoch."""
        super().on_train_epoch_end()
        self.method.end_epoch(self.epoch_context())

    def _open_losses(self, losses: Losses) -> Tensor:
        """Total of losses whose gradients are to come, without the refusal to differentiate it."""
        total = Losses(losses.terms, losses.logs).total
        self._open = (losses, total) if total.requires_grad else None
        return total

    def _balanced_model(self) -> MultimodalClassifier:
        if "_classifier" not in vars(self):
            raise RuntimeError("Call self.balance(model, method) at the end of __init__.")
        return self._classifier


def _is_product(loss: Tensor, scale: Tensor, total: Tensor) -> bool:
    """Whether a loss is the total times a factor."""
    scaled = scale * total.detach()
    return bool(torch.isclose(loss.detach(), scaled, rtol=32 * torch.finfo(scaled.dtype).eps, atol=0.0))


def _single(loaders: Any) -> Iterable[Any]:
    """The loader of a split, of which a trainer may hold a list."""
    if isinstance(loaders, list) and len(loaders) == 1 and not isinstance(loaders[0], (tuple, dict, Batch)):
        loaders = loaders[0]
    return () if loaders is None else loaders
