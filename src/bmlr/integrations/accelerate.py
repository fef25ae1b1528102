"""Loops of one's own under Accelerate, trained by any method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn

from bmlr.balancer import Balancer
from bmlr.batch import Batch
from bmlr.methods import Losses, Method
from bmlr.model import MultimodalClassifier

__all__ = ["AcceleratedBalancer"]


class AcceleratedBalancer(Balancer):
    """A :class:`bmlr.Balancer` whose devices, processes, precision and accumulation are an Accelerator's.

    It prepares the model and the optimiser; loaders are prepared by ``accelerator.prepare(loader)``, and schedules
    after it.

    Args:
        accelerator: The accelerator.
        model: The model, not prepared.
        method: The method.
        optimizer: Optimiser over the model's parameters, not prepared.
        max_epochs: Number of epochs of the whole training, which schedules of methods go by.
        clip_norm: Largest norm of the gradients, as for :class:`bmlr.Balancer`.
        seed: Seed of the run, as for :class:`bmlr.Balancer`; the same in all processes.

    Raises:
        ValueError: If the method cannot train the model, or not as the accelerator runs it; the message says why.

    Example:
        >>> import torch, bmlr
        >>> from accelerate import Accelerator
        >>> from bmlr.integrations.accelerate import AcceleratedBalancer
        >>> model = bmlr.MultimodalClassifier({"a": torch.nn.Linear(4, 8), "v": torch.nn.Linear(6, 8)}, 3)
        >>> optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        >>> balancer = AcceleratedBalancer(Accelerator(cpu=True), model, bmlr.BMLR(), optimizer, max_epochs=1)
        >>> batch = {"a": torch.randn(5, 4), "v": torch.randn(5, 6)}, torch.arange(5) % 3
        >>> [sorted(balancer.step(batch).terms) for batch in balancer.epoch([batch])], balancer.steps
        ([['a', 'fused', 'v']], 1)
    """

    _accumulation_argument = "gradient_accumulation_steps"

    def __init__(
        self,
        accelerator: Accelerator,
        model: MultimodalClassifier,
        method: Method,
        optimizer: torch.optim.Optimizer,
        *,
        max_epochs: int,
        clip_norm: float | Mapping[str, float] | None = None,
        seed: int = 0,
    ) -> None:
        name = type(method).__name__
        if accelerator.distributed_type in {
            DistributedType.DEEPSPEED,
            DistributedType.FSDP,
            DistributedType.MEGATRON_LM,
        }:
            raise ValueError("DeepSpeed, FSDP and Megatron are not supported: methods read whole gradients. Use DDP.")
        if method.plans_passes and accelerator.num_processes > 1:
            raise ValueError(
                f"{name} chooses the samples of its passes, which a loader of several processes cannot follow: train "
                "in one process, or by bmlr.training.train()."
            )
        if method.leaves_gradients_unset and accelerator.num_processes > 1:
            handler = accelerator.ddp_handler
            if handler is None or not handler.find_unused_parameters:
                raise ValueError(
                    f"{name} leaves gradients unset in some steps: give the Accelerator "
                    "kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)]."
                )
        super().__init__(
            model, method, optimizer, max_epochs=max_epochs, clip_norm=clip_norm,
            accumulate=accelerator.gradient_accumulation_steps, seed=seed,
        )  # fmt: skip
        self.accelerator = accelerator
        # One module, and one forward pass through it: otherwise DDP would not average the gradients.
        self._losses, self.optimizer = accelerator.prepare(_LossTerms(model, method), optimizer)
        if method.reduces_gradients and accelerator.num_processes > 1:
            self._losses.require_backward_grad_sync = False

    def step(self, batch: Any) -> Losses:
        """Train on a batch; the accelerator decides whether it moves the weights.

        Args:
            batch: A batch of :meth:`epoch`.

        Returns:
            The losses, without graph.

        Raises:
            RuntimeError: If the loss is not finite.
        """
        accelerator = self.accelerator
        with accelerator.accumulate(self._losses):
            with accelerator.autocast():
                terms = self._losses(self._moved(batch))
            values = self._checked(terms)
            scale: Tensor | float = 1 / accelerator.gradient_accumulation_steps
            if accelerator.scaler is not None:
                scale = accelerator.scaler.scale(torch.tensor(scale, device=self._device))
            self.method.backward(Losses(dict(terms)), self.model, scale=scale)
            self._accumulated += 1
            if accelerator.sync_gradients:
                self._update()
        return Losses(values)

    def _update(self) -> None:
        """Take an optimiser step."""
        self.accelerator.unscale_gradients(self.optimizer)
        self._adjust()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.steps += 1
        self._accumulated = 0

    def _flush(self) -> None:
        """Take the step of the batches left over at the end of a pass.

        The accelerator takes it by itself at the end of a loader that it prepared, which those of chosen samples are
        not. Several processes have none of these.
        """
        if self._accumulated and self.accelerator.num_processes == 1:
            self.accelerator.step, self.accelerator.sync_gradients = 0, True
            self._update()


class _LossTerms(nn.Module):
    """Model and method in one module."""

    def __init__(self, model: MultimodalClassifier, method: Method) -> None:
        super().__init__()
        self.model, self.method = model, method

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return self.method.compute_losses(self.model, batch).terms
