"""One LightningModule for every method."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from lightning.pytorch.plugins.precision import Precision
from torch import Tensor

from bmlr._random import capture_random_state, restore_random_state
from bmlr.batch import Batch, as_batch
from bmlr.config import OptimizerOptions
from bmlr.data import MultimodalData
from bmlr.methods import EpochPlan, Losses, Method
from bmlr.model import MultimodalClassifier
from bmlr.tables import format_count
from bmlr.training._accumulation import Accumulation, pass_ends
from bmlr.training._epoch import EpochSums, plan_from_plain, plan_to_plain
from bmlr.training._graph import CapturedStep
from bmlr.training._guard import (
    NonFiniteLossError,
    StepGuard,
    count_nonfinite,
    describe_event,
    describe_gradient,
    describe_loss,
)
from bmlr.training._loading import LoadingModule
from bmlr.training._processes import any_process, gather, sum_over_processes
from bmlr.training._scores import flatten_score
from bmlr.training.loader import BatchRequest, ordered_requests, planned_requests


class BalancedModule(LoadingModule):
    """Train a model by any method under any Lightning trainer.

    With ``data`` the module brings its own loaders and serves every method. Without, give the trainer loaders of
    :class:`bmlr.Batch` or of pairs (inputs by modality, targets), with or without one for validation; methods that plan
    their own passes over the data then refuse to start.

    ``Trainer.validate`` and ``Trainer.test`` return accuracies, ``Trainer.predict`` the predictions of the method. A
    checkpoint holds weights and no classes: ``BalancedModule.load_from_checkpoint(path, model=..., method=...,
    optimizer=...)``.

    Args:
        model: The model.
        method: The method; its :meth:`~bmlr.Method.setup` is called here.
        optimizer: Optimiser and schedule.
        data: Prepared data set.
        batch_size: Samples per step and device, used with ``data``.
        num_workers: Processes that load data, used with ``data``.
        seed: Seed of the order of the samples, of their random transforms and of what the method draws.
        on_nonfinite: Reaction to a loss or gradient that is not finite: stop with a :class:`NonFiniteLossError`, or
            skip the step, which leaves everything as if its batches had not been drawn. Steps that the loss scaling
            of 16-mixed skips to find its scale are normal, and only counted.
        max_nonfinite: Skipped steps in a row that stop training all the same.

    Attributes:
        history: One flat dictionary of numbers per finished epoch.
        modality_dropout: Leaves modalities out of samples in training, if it is set; see :class:`bmlr.ModalityDropout`.
        clip_norm: Largest norm of the gradients by modality, such as ``{"audio": 1.0}``, if it is set; a joint norm is
            the trainer's ``gradient_clip_val``.
        val_score: Score on the validation split at the end of the last finished epoch.

    Raises:
        ValueError: If the method cannot train this model, or an option names a modality that it does not have.
    """

    _returns_total = True

    def __init__(
        self,
        model: MultimodalClassifier,
        method: Method,
        optimizer: OptimizerOptions,
        *,
        data: MultimodalData | None = None,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
        on_nonfinite: Literal["stop", "skip"] = "stop",
        max_nonfinite: int = 10,
    ) -> None:
        method.setup(model)
        super().__init__(model, method, optimizer)
        #: Gives one split of the data, which is asked for it once.
        self.split = None if data is None else functools.cache(data.split)
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self.guard = StepGuard(on_nonfinite, max_nonfinite)
        #: Asked after every batch whether training should stop; in distributed training any process stops all.
        self.wants_stop: Callable[[], bool] = lambda: False
        self.stopping = False
        #: Computes losses and gradients at once, if it is set, in place of the method.
        self.captured_step: CapturedStep | None = None
        #: Whether losses and scores are handed to the trainer, for its loggers, progress bar and callbacks.
        self.logs = True
        #: Loss of the last step, NaN before the first.
        self.step_loss = math.nan
        #: Called after every optimiser step but the last of an epoch, which the end of the epoch follows.
        self.after_step: list[Callable[[BalancedModule], None]] = []
        #: Called when a loss or gradient was not finite; ``guard.events[-1]`` describes it.
        self.after_nonfinite: list[Callable[[BalancedModule], None]] = []
        #: Called at the end of every epoch, before and after the method's own end of epoch.
        self.before_epoch_end: list[Callable[[BalancedModule], None]] = []
        self.after_epoch_end: list[Callable[[BalancedModule], None]] = []
        #: Called before every validation.
        self.before_validation: list[Callable[[BalancedModule], None]] = []
        self._plan: EpochPlan | None = None
        self._requests: list[BatchRequest] = []
        self._planned_epoch = -1
        self._position = 0  # finished batches of the epoch
        self._first_position = 0  # of these, the ones before the checkpoint the epoch was resumed from
        self._sums = EpochSums()
        #: Losses, batch and total that nobody has looked at yet.
        self._unchecked: tuple[Losses, Batch, Tensor] | None = None
        self._counts_before_epoch = (0, 0)  # skipped and overflowed steps
        self._started = 0.0
        self._rank_states: list[dict[str, Any]] | None = None  # of a loaded checkpoint, until training starts

    @property
    def _steps_per_batch(self) -> int:
        return 1 if self._plan is None else self._plan.steps_per_batch

    @property
    def steps_in_epoch(self) -> float:
        """Optimiser steps of the epoch that is planned; infinite if unknown."""
        return self._plan_steps().num_steps

    def _plan_steps(self) -> Accumulation:
        ends = [float(self.trainer.num_training_batches)] if self.split is None else pass_ends(self._requests)
        return Accumulation(self.trainer.accumulate_grad_batches, ends)

    # Loaders

    def train_dataloader(self) -> Iterable[Batch]:
        """Batches of the next epoch, planned by the method.

        The trainer asks anew before every epoch.
        """
        num_train = len(self._own_split("train"))
        if self.epochs_done >= (self.trainer.max_epochs or 1):  # resumed after the last epoch: no epoch to plan
            return self._loader("train", ordered_requests(num_train, self.batch_size))
        # Lightning asks twice when it resumes. A second `start_epoch` would draw random numbers again.
        if self._planned_epoch != self.epochs_done:
            self._first_position = self._restore_rank_state()
            if self._plan is None or not self._first_position:  # within an epoch, the checkpoint holds the plan
                self._plan = self.method.start_epoch(self._context())
            self._plan.check_accumulation("accumulate_grad_batches", self.trainer.accumulate_grad_batches)
            self._requests = planned_requests(
                self._plan,
                num_train,
                self.batch_size,
                seed=self.seed,
                epoch=self.epochs_done,
                rank=self.trainer.global_rank,
                world_size=self.trainer.world_size,
            )
            self._planned_epoch = self.epochs_done
            if self._first_position:  # Lightning begins at `on_train_batch_start`, and asks whether it stepped before
                self._accumulation = self._plan_steps()
                self._accumulation.prepare(self.trainer, self._first_position - 1)
        return self._loader("train", self._requests, self._first_position)

    # Training

    def on_train_start(self) -> None:
        """Restore the random state; check the strategy."""
        if self.split is None:
            self._restore_rank_state()
        super().on_train_start()

    def on_train_epoch_start(self) -> None:
        """Reset the sums of the epoch, and start the method's epoch.

        With ``data`` :meth:`train_dataloader` has started it. Lightning does not call this where it resumes within an
        epoch, whose sums are those of the checkpoint.
        """
        self._sums, self._started = EpochSums(), time.perf_counter()
        self._position, self._counts_before_epoch = 0, (self.guard.skipped, self.guard.overflowed)
        if self.split is not None and self._planned_epoch != self.epochs_done:
            raise RuntimeError(
                "BalancedModule with `data` brings its own batches, planned anew for every epoch: give the trainer "
                "`reload_dataloaders_every_n_epochs=1`, and `fit` no training loader."
            )
        if self.split is None:
            plan = self.method.start_epoch(self._context())
            if plan != EpochPlan():
                raise RuntimeError(
                    f"{type(self.method).__name__} plans its own passes over the data: give BalancedModule `data`."
                )
        self._accumulation = self._plan_steps()
        if self.captured_step is not None:
            self.captured_step.begin_epoch()

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        """Reset the gradients, unless a captured step has computed them."""
        if self.captured_step is None:
            super().optimizer_zero_grad(epoch, batch_idx, optimizer)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Reset the optimiser's state where the plan asks for it; tell the trainer whether a step ends."""
        self._steps.prepare(self.trainer, batch_idx)
        if self.split is not None and self._requests[batch_idx].fresh_optimizer:
            self.trainer.optimizers[0].state.clear()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Losses of a batch; the trainer calls :meth:`backward` with their total."""
        batch = as_batch(batch)
        self._check_loss()  # of the batch before, if both make one step
        number, size = self._steps.place(batch_idx)
        if number == 0:
            if self._steps.is_uneven or self.captured_step is not None:
                self.trainer.optimizers[0].zero_grad()
            self.guard.begin_step(self.model, self.method)
            self._sums.begin_step()
        self.guard.record_batch(batch)
        if self.modality_dropout is not None:
            given = batch_idx // self._steps_per_batch  # a batch that is given again lacks the same modalities
            batch = self.modality_dropout.apply(batch, (self.epochs_done, given, self.global_rank))
        if self.captured_step is None:
            losses = self.method.compute_losses(self.model, batch)
            total = self._open_losses(losses)
        else:
            losses = self.captured_step(batch, scale=1 / size, is_first=number == 0)
            total = losses.total
        # The trainer divides by its own number. A step of fewer batches is their mean, too.
        factor = self.trainer.accumulate_grad_batches / size
        scaled = total if factor == 1 else total * factor
        self._position = batch_idx + 1
        self._unchecked = (losses, batch, total.detach())
        if self._scaler() is not None:
            self._check_loss()
        if self.guard.nonfinite:
            return scaled
        terms = {f"loss_{name}": value for name, value in losses.terms.items()}
        self._sums.add({"loss": total, **terms, **losses.logs}, len(batch))
        if self.logs:
            logged = bool(self.trainer.loggers)
            self.log("loss", total.detach(), prog_bar=True, logger=logged, on_step=True, batch_size=len(batch))
        return scaled

    def _check_loss(self, *others: Tensor) -> list[bool]:
        """Read the loss of the last batch and record it if it is not finite; this waits for the device, once.

        Args:
            *others: Flags that the same wait answers, one number each, zero for no.

        Returns:
            The other flags.
        """
        if self._unchecked is None:
            return [bool(flag) for flag in others]
        (losses, batch, total), self._unchecked = self._unchecked, None
        self.step_loss, *numbers = torch.stack([total, *(flag.to(total) for flag in others)]).tolist()
        here, answers = not math.isfinite(self.step_loss), [number != 0 for number in numbers]
        # One exchange for both questions. All processes must take the same branch, or the next one would deadlock.
        nonfinite_anywhere, self.stopping = any_process(self.trainer, here, self.wants_stop())
        if nonfinite_anywhere:
            self._record_event(describe_loss(losses, batch) if here else None)
        return answers

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Compute the method's gradients; none where the step is skipped, or has computed them with the losses."""
        if self.captured_step is not None:
            return
        if not self.guard.nonfinite:
            if self._open is None or type(self.trainer.precision_plugin).pre_backward is not Precision.pre_backward:
                super().backward(loss, *args, **kwargs)
                return
            # Nobody scales the loss beyond the batches of its step: no need to differentiate it by the total.
            (losses, _), self._open = self._open, None
            self.method.backward(losses, self.model, scale=1 / self._steps.place(self._position - 1)[1])
            return
        self._open = None
        self.method.discard_losses()
        # No gradient at all: the step is skipped. But `GradScaler.step` asserts that it has seen one, and its
        # check for overflow must pass, or it would halve the scale for a loss that no scale makes finite.
        if self._scaler() is not None:
            first = self._trained_parameters()[0]
            first.grad = torch.zeros_like(first)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Adjust the gradients by the method, or skip the step.

        They are unscaled and not yet clipped. A step whose gradients are not finite is skipped.
        """
        parameters, finite = self._trained_parameters(), False
        if self.guard.nonfinite:
            self._check_loss()
        else:
            # Nothing is asked before the method has changed the gradients: every answer is a wait for the device.
            flags = [count_nonfinite(parameters)]
            self.method.adjust_gradients(self.model)
            if self.method.changes_gradients:
                flags.append(count_nonfinite(parameters))
            is_bad, *is_bad_after = self._check_loss(*flags)
            finite = not (is_bad or any(is_bad_after))
        if not self.guard.nonfinite and not finite:
            # Above a scale of one the scaling itself may have overflowed. Then the scaler skips the step and halves
            # the scale; at a smaller scale the gradient is not finite by itself.
            scaler = self._scaler()
            overflowed = is_bad and scaler is not None and scaler.get_scale() >= 1
            self.guard.overflowed += overflowed
            if not overflowed:
                self._record_event(describe_gradient(self.named_parameters(), self.guard.sample_indices()))
        if self.guard.nonfinite:
            self._sums.skip_step()
            self.guard.skip_step(parameters, describe_event(self.guard.events[-1]))
        else:
            self.guard.end_step()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Call the hooks after an optimiser step."""
        done = batch_idx + 1
        if self._steps.is_last(batch_idx) and (self.split is None or done < len(self._requests)):
            for hook in self.after_step:
                hook(self)

    def on_train_epoch_end(self) -> None:
        """Add the epoch to the history and end the method's epoch."""
        self._steps.restore(self.trainer)
        row = {"epoch": float(self.epochs_done), "seconds": time.perf_counter() - self._started}
        row["lr"] = self._learning_rate()
        samples = torch.tensor(float(self._sums.samples), device=self.device)
        # A batch that is given again counts once.
        row["samples"] = float(-(-sum_over_processes(self.trainer, samples) // self._steps_per_batch))
        for name, value in self._sums.values.items():
            row[f"train_{name}"] = float(sum_over_processes(self.trainer, value.to(self.device))) / row["samples"]
        if self.guard.policy == "skip":
            row["skipped_steps"] = float(self.guard.skipped - self._counts_before_epoch[0])
        if self._scaler() is not None:
            row["overflowed_steps"] = float(self.guard.overflowed - self._counts_before_epoch[1])
        if self.val_score is not None:
            row |= flatten_score("val", self.val_score)
        if self.logs and self.trainer.loggers:
            self.log_dict({name: value for name, value in row.items() if name != "epoch"})
        for hook in self.before_epoch_end:
            hook(self)
        self.method.end_epoch(self._context())
        self.history.append(row)
        self._position = 0
        _, self.stopping = any_process(self.trainer, False, self.wants_stop())
        for hook in self.after_epoch_end:
            hook(self)

    # A method that trains nothing

    def on_validation_start(self) -> None:
        """Call the hooks before validation."""
        for hook in self.before_validation:
            hook(self)

    def start_without_steps(self) -> None:
        """Start an epoch without batches."""
        self._started = time.perf_counter()
        self.method.start_epoch(self._context())

    def end_without_steps(self) -> None:
        """End it; its row in the history holds the validation score alone."""
        row = {"epoch": float(self.epochs_done), "seconds": time.perf_counter() - self._started, "samples": 0.0}
        self.history.append(row | ({} if self.val_score is None else dict(flatten_score("val", self.val_score))))

    def _record_event(self, event: dict[str, Any] | None) -> None:
        """Record a loss or gradient that is not finite.

        None stands for one of another process.

        Raises:
            NonFiniteLossError: Unless such steps are to be skipped.
        """
        where = {"epoch": self.epochs_done, "step": self.trainer.global_step, "batch": self._position - 1}
        events = gather(self.trainer, None if event is None else {**where, **event})
        self.guard.record_events(entry for entry in events if entry is not None)
        for hook in self.after_nonfinite:
            hook(self)
        if self.guard.policy == "stop":
            raise NonFiniteLossError(describe_event(self.guard.events[-1]))

    def _scaler(self) -> Any:
        """Loss scaler of half precision, or None."""
        return getattr(self.trainer.precision_plugin, "scaler", None)

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add history, plan, position, and random state and sums per process."""
        rank_state = {"random_state": capture_random_state(), **self._sums.state()}
        checkpoint["bmlr"] = {
            "history": self.history,
            "position": self._position,
            "plan": None if self._plan is None else plan_to_plain(self._plan),
            "seconds": time.perf_counter() - self._started,
            "processes": gather(self.trainer, rank_state),
            "guard": self.guard.state(),
            "counts_before": list(self._counts_before_epoch),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore :meth:`on_save_checkpoint`; random states later, since Lightning draws before training starts."""
        state = checkpoint["bmlr"]
        self.history, self._position = state["history"], state["position"]
        self._plan = None if state["plan"] is None else plan_from_plain(state["plan"])
        self._started = time.perf_counter() - state["seconds"]
        self._rank_states = state["processes"]
        self._counts_before_epoch = (int(state["counts_before"][0]), int(state["counts_before"][1]))
        self.guard.restore(state["guard"])

    def _restore_rank_state(self) -> int:
        """Restore random state and sums of this rank; return the batches done."""
        if self._rank_states is None:
            return 0
        states, self._rank_states = self._rank_states, None
        if self._position and len(states) != self.trainer.world_size:
            saved_by = format_count(len(states), "process", "processes")
            raise ValueError(
                f"The checkpoint was taken within an epoch by {saved_by}, and only so many can go on from it. "
                f"Found {self.trainer.world_size}."
            )
        rank_state = states[self.trainer.global_rank if len(states) == self.trainer.world_size else 0]
        if self._position:
            self._sums.restore(rank_state)
        restore_random_state(rank_state["random_state"])
        return self._position
