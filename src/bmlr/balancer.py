"""Driver of training loops outside the library."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from bmlr._checks import check_integer
from bmlr._modes import module_mode
from bmlr._random import mixed_seed
from bmlr.batch import Batch, as_batch
from bmlr.loaders import (
    batches_in_order,
    count_samples,
    even_chunks,
    gives_samples,
    sample_loader,
    shuffled_batches,
)
from bmlr.methods import EpochContext, EpochPlan, Losses, Method, Pass, Prediction
from bmlr.model import MultimodalClassifier
from bmlr.parameters import check_clipping, clip_gradients, optimizer_like


class Balancer:
    """Drives a training loop of your own by any method, with every call that the method needs.

    The method is set up, its own parameters become a group of the optimiser, epochs follow its plan, and a step runs
    the losses, the gradients, their adjustment and the optimiser. Make it before a learning-rate schedule, which would
    not know the added group.

    Args:
        model: The model, on its device.
        method: The method.
        optimizer: Optimiser over the model's parameters.
        max_epochs: Number of epochs of the whole training, which schedules of methods go by.
        accumulate: Number of batches of an optimiser step; those left over at the end of a pass make one of their own,
            with the mean of their gradients.
        clip_norm: Largest joint norm of all gradients, or largest norm by modality, such as ``{"audio": 1.0}``, where
            ``fusion`` is all that follows the encoders and those left out are not clipped; None does not clip.
        autocast: Type of the forward passes in mixed precision, such as ``torch.bfloat16``; None is full precision.
        scaler: Scaler of the loss for ``torch.float16``.
        seed: Seed of the run, on which what the method draws depends.

    Attributes:
        epochs_done: Number of finished epochs.
        steps: Number of optimiser steps.

    Raises:
        ValueError: If the method cannot train the model, or an argument is out of its range.

    Example:
        >>> import torch, bmlr
        >>> model = bmlr.MultimodalClassifier({"a": torch.nn.Linear(4, 8), "v": torch.nn.Linear(6, 8)}, 3)
        >>> optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        >>> balancer = bmlr.Balancer(model, bmlr.methods.OGMGE(), optimizer, max_epochs=2)
        >>> loader = [({"a": torch.randn(5, 4), "v": torch.randn(5, 6)}, torch.arange(5) % 3)] * 3
        >>> for epoch in range(2):
        ...     for batch in balancer.epoch(loader):
        ...         losses = balancer.step(batch)
        >>> balancer.steps, balancer.predict(loader[0][0]).logits.shape
        (6, torch.Size([5, 3]))
    """

    _accumulation_argument = "accumulate"

    def __init__(
        self,
        model: MultimodalClassifier,
        method: Method,
        optimizer: torch.optim.Optimizer,
        *,
        max_epochs: int,
        accumulate: int = 1,
        clip_norm: float | Mapping[str, float] | None = None,
        autocast: torch.dtype | None = None,
        scaler: torch.amp.GradScaler | None = None,
        seed: int = 0,
    ) -> None:
        self.max_epochs = check_integer("max_epochs", max_epochs, 1)
        self.accumulate = check_integer("accumulate", accumulate, 1)
        if clip_norm is not None:
            check_clipping(clip_norm, model)
        self.clip_norm = clip_norm
        self.seed = check_integer("seed", seed, 0)
        if autocast is torch.float16 and scaler is None:
            raise ValueError("`scaler` should be a torch.amp.GradScaler where `autocast` is torch.float16. Found None.")
        self.model, self.method, self.optimizer = model, method, optimizer
        self.autocast, self.scaler = autocast, scaler
        if not method.is_set_up_for(model):
            method.setup(model)
        optimized = {id(p) for p in self._optimized()}
        if not any(id(p) in optimized for p in model.parameters()):
            raise ValueError("`optimizer` should train the parameters of `model`. Found none of them.")
        if added := [p for p in method.parameters() if p.requires_grad and id(p) not in optimized]:
            optimizer.add_param_group({"params": added})
        self.epochs_done = 0
        self.steps = 0
        self._accumulated = 0

    def epoch(self, train: Iterable[Any], val: Iterable[Any] | None = None) -> Iterator[Batch]:
        """Batches of the next epoch, on the model's device, by the plan of the method.

        Most methods go through ``train`` once. Others make several passes, or choose the samples of a pass; these need
        a DataLoader over a data set with a length. An epoch ends with its last batch; one that is left early does not
        count.

        Args:
            train: Loader of the training split, of :class:`bmlr.Batch` or pairs (inputs by modality, targets).
            val: Loader of the validation split, for methods that look at it.

        Raises:
            ValueError: If all epochs are done, or the method needs another kind of loader.
        """
        if self.epochs_done >= self.max_epochs:
            raise ValueError(f"`max_epochs = {self.max_epochs}` epochs are done. Give a larger number for more.")
        self._accumulated = 0
        context = EpochContext(
            self.epochs_done,
            self.max_epochs,
            self.model,
            count_samples(train),
            self._in_order(train),
            self._in_order(() if val is None else val),
            self.seed,
            lambda number: shuffled_batches(train, self._moved, mixed_seed(self.seed, self.epochs_done, number)),
            lambda parameters: optimizer_like(self.optimizer, parameters),
        )
        yield from self._planned(self.method.start_epoch(context), train)
        self.method.end_epoch(context)
        self.epochs_done += 1

    def step(self, batch: Any) -> Losses:
        """Train on a batch; every ``accumulate``-th moves the weights.

        Args:
            batch: A batch of :meth:`epoch`.

        Returns:
            The losses, without graph.

        Raises:
            RuntimeError: If the loss is not finite.
        """
        batch = self._moved(batch)
        if self._accumulated == 0:
            self.optimizer.zero_grad()
        with self._precision():
            losses = self.method.compute_losses(self.model, batch)
        values = self._checked(losses.terms)
        scale: Tensor | float = 1 / self.accumulate
        if self.scaler is not None:
            scale = self.scaler.scale(torch.tensor(scale, device=self._device))
        self.method.backward(losses, self.model, scale=scale)
        self._accumulated += 1
        if self._accumulated == self.accumulate:
            self._update()
        return Losses(values, losses.logs)

    @torch.no_grad()
    def predict(self, inputs: Mapping[str, Any], present: Mapping[str, Tensor] | None = None) -> Prediction:
        """Predictions of the method in evaluation mode; modes are restored.

        Args:
            inputs: The input of each modality, first dimension B, on any device.
            present: Presence of each modality, a boolean mask of shape (B,) per name.
        """
        batch = self._moved(Batch(dict(inputs), torch.zeros(0), None if present is None else dict(present)))
        with module_mode(self.model, self.method, training=False), self._precision():
            return self.method.predict(self.model(batch.inputs, batch.present))

    def state_dict(self) -> dict[str, Any]:
        """State of model, method, optimiser and scaler, to be stored between epochs."""
        return {
            "model": self.model.state_dict(),
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": {} if self.scaler is None else self.scaler.state_dict(),
            "epochs_done": self.epochs_done,
            "steps": self.steps,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the result of :meth:`state_dict`."""
        self.model.load_state_dict(state["model"])
        self.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])
        self.epochs_done, self.steps, self._accumulated = state["epochs_done"], state["steps"], 0

    def _checked(self, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Values of finite loss terms, without graph."""
        values = {name: value.detach() for name, value in terms.items()}
        if not bool(torch.isfinite(torch.stack(list(values.values()))).all()):
            raise RuntimeError(
                f"The loss is not finite in epoch {self.epochs_done}, step {self.steps}: "
                f"{ {name: float(value) for name, value in values.items()} }."
            )
        return values

    def _update(self) -> None:
        """Take an optimiser step."""
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        if self._accumulated < self.accumulate:  # a rest of fewer batches is their mean, too
            for parameter in self._optimized():
                if parameter.grad is not None:
                    parameter.grad *= self.accumulate / self._accumulated
        self._adjust()
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.steps += 1
        self._accumulated = 0

    def _adjust(self) -> None:
        """Adjust the unscaled gradients by the method, and clip them."""
        self.method.adjust_gradients(self.model)
        if self.clip_norm is not None:
            clip_gradients(self._optimized(), self.clip_norm, self.model)

    def _planned(self, plan: EpochPlan, train: Iterable[Any]) -> Iterator[Batch]:
        """Batches of all passes of a plan."""
        plan.check_accumulation(self._accumulation_argument, self.accumulate)
        if plan.order == "shuffled":
            loaders = [_PassLoader(train, entry) for entry in plan.passes]
            turns = torch.tensor([i for i, loader in enumerate(loaders) for _ in range(len(loader))])
            iterators = [iter(loader) for loader in loaders]
            for turn in turns[torch.randperm(len(turns))].tolist():
                yield dataclasses.replace(self._moved(next(iterators[turn])), tag=plan.passes[turn].tag)
            self._flush()
            return
        # Aligned passes share a loader: each of its batches is drawn once, and given once per pass.
        groups = [plan.passes] if plan.order == "aligned" else [(entry,) for entry in plan.passes]
        for number, entries in enumerate(groups):
            loader = train if entries[0].indices is None else _PassLoader(train, entries[0])
            is_empty = True
            for given in loader:
                batch = self._moved(given)
                for entry in entries:
                    if is_empty and entry.fresh_optimizer:
                        self.optimizer.state.clear()
                    yield dataclasses.replace(batch, tag=entry.tag)
                is_empty = False
            if is_empty:
                raise ValueError(
                    f"`train` gave no batch in pass {number + 1} of {len(groups)}. It should hold samples, and be "
                    "a loader or a list that can be gone through again."
                )
            self._flush()

    def _flush(self) -> None:
        """Take the step of the batches left over at the end of a pass."""
        if self._accumulated:
            self._update()

    def _in_order(self, loader: Iterable[Any]) -> Callable[[], Iterator[Batch]]:
        """A split in order, with the positions of its samples where they can be known."""
        return lambda: batches_in_order(loader, self._moved)

    def _moved(self, batch: Any) -> Batch:
        return as_batch(batch).to(self._device, dtype=self._dtype, non_blocking=True)

    def _optimized(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def _precision(self) -> torch.autocast:
        return torch.autocast(self._device.type, dtype=self.autocast, enabled=self.autocast is not None)

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def _dtype(self) -> torch.dtype:
        # The first parameter may be of packed integers.
        return next(p.dtype for p in self.model.parameters() if p.is_floating_point())


class _PassLoader:
    """Shuffled batches of the samples of a pass, with their positions in the split.

    Args:
        train: Loader of the split.
        entry: The pass.

    Raises:
        ValueError: If samples of the loader cannot be chosen.
    """

    def __init__(self, train: Iterable[Any], entry: Pass) -> None:
        if not gives_samples(train):
            raise ValueError(
                "`train` should be a torch DataLoader over a data set with a length, with a batch size and no sampler "
                f"of your own: the method chooses the samples of its passes. Found {type(train).__name__}."
            )
        indices = torch.arange(count_samples(train)) if entry.indices is None else torch.tensor(entry.indices)
        self._chunks = even_chunks(indices[torch.randperm(len(indices))], train.batch_size)
        self._loader = sample_loader(train, self._chunks)

    def __len__(self) -> int:
        return len(self._chunks)

    def __iter__(self) -> Iterator[Batch]:
        for chunk, given in zip(self._chunks, self._loader, strict=True):
            yield dataclasses.replace(as_batch(given), indices=chunk)
