"""One LightningModule for every method."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import lightning
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from bmlr._random import capture_random_state, restore_random_state
from bmlr.batch import Batch
from bmlr.config import OptimizerOptions
from bmlr.data import MultimodalData
from bmlr.methods import EpochContext, EpochPlan, Losses, Method, Pass
from bmlr.model import MultimodalClassifier
from bmlr.training._guard import NonFiniteLossError, StepGuard, all_finite, describe_gradient, describe_loss, sentence
from bmlr.training._scores import Score, ScoreMetric, flatten_score
from bmlr.training.loader import BatchRequest, RequestLoader, ordered_requests, planned_requests


class BalancedModule(lightning.LightningModule):
    """Trains a model by any method, under any Lightning trainer.

    With ``data`` the module brings its own loaders and serves every method. Without, give the trainer loaders of
    :class:`bmlr.Batch` or of pairs (inputs by modality, targets); methods that plan their own passes over the data
    then refuse to start.

    Args:
        model: The model.
        method: The method; its :meth:`~bmlr.Method.setup` is called here.
        optimizer: Optimiser and schedule.
        data: Prepared data set.
        batch_size: Samples per step and device, used with ``data``.
        num_workers: Processes that load data, used with ``data``.
        seed: Seed of the order of the samples and of their random transforms, used with ``data``.
        on_nonfinite: What to do when a loss or a gradient is not finite: stop with a :class:`NonFiniteLossError`, or
            skip the step, which leaves everything as if its batches had not been drawn. Steps that the loss scaling
            of 16-mixed skips to find its scale are normal, and only counted.
        max_nonfinite: Skipped steps in a row that stop training all the same.

    Attributes:
        history: One flat dictionary of numbers per finished epoch.
        val_score: Score on the validation split at the end of the last finished epoch.
    """

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
        super().__init__()
        method.check_modalities(model.modalities)
        method.setup(model)
        self.model, self.method = model, method
        self.optimizer_options = optimizer
        self.data = data
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self.history: list[dict[str, float]] = []
        self.val_score: Score | None = None
        self.guard = StepGuard(on_nonfinite, max_nonfinite)
        #: Asked after every batch whether training is to stop; under distributed training one process's yes is all's.
        self.wants_stop: Callable[[], bool] = lambda: False
        self.stopping = False
        #: Called after every optimiser step but the last of an epoch, which the end of the epoch follows.
        self.after_step: list[Callable[[BalancedModule], None]] = []
        #: Called when a loss or gradient was not finite, with what happened last in ``guard.events``.
        self.after_nonfinite: list[Callable[[BalancedModule], None]] = []
        #: Called at the end of every epoch, before and after the method's own end of epoch.
        self.before_epoch_end: list[Callable[[BalancedModule], None]] = []
        self.after_epoch_end: list[Callable[[BalancedModule], None]] = []
        self._metric = ScoreMetric(model.modalities)
        self._losses: Losses | None = None
        self._plan: EpochPlan | None = None
        self._requests: list[BatchRequest] = []
        self._planned_epoch = -1
        self._position = 0  # batches of the epoch that are done
        self._first_position = 0  # of them, those before the checkpoint this epoch was resumed from
        self._sums: dict[str, Tensor] = {}
        self._samples = 0
        self._sums_before: tuple[dict[str, Tensor], int] = ({}, 0)
        self._counts_before = (0, 0)
        self._started = 0.0
        self._restored: list[dict[str, Any]] | None = None

    @property
    def epochs_done(self) -> int:
        """Number of finished epochs, counted over resumed runs."""
        return len(self.history)

    # Loaders

    def train_dataloader(self) -> Iterable[Batch]:
        """Batches of the epoch to come, as the method plans it; the trainer asks anew before every epoch."""
        data = self._own_data()
        if self.epochs_done >= (self.trainer.max_epochs or 1):  # resumed after its last epoch: there is none to plan
            return self._loader("train", ordered_requests(len(data.split("train")), self.batch_size))
        if self._planned_epoch != self.epochs_done:  # the trainer asks twice when it resumes; plan once
            self._first_position = self._take_back()
            if self._plan is None or not self._first_position:  # within an epoch the plan is that of the checkpoint
                self._plan = self.method.start_epoch(self._context())
            self._requests = planned_requests(
                self._plan,
                len(data.split("train")),
                self.batch_size,
                seed=self.seed,
                epoch=self.epochs_done,
                rank=self.trainer.global_rank,
                world_size=self.trainer.world_size,
            )
            self._planned_epoch = self.epochs_done
        return self._loader("train", self._requests, self._first_position)

    def val_dataloader(self) -> Iterable[Batch]:
        """The validation split, in order."""
        requests = ordered_requests(
            len(self._own_data().split("val")),
            self.batch_size,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
        )
        return self._loader("val", requests)

    def _loader(self, split: Any, requests: list[BatchRequest], start: int = 0) -> RequestLoader:
        return RequestLoader(
            self._own_data().split(split),
            requests,
            num_workers=self.num_workers,
            pin_memory=self.device.type == "cuda",
            start=start,
        )

    def _own_data(self) -> MultimodalData:
        if self.data is None:
            raise RuntimeError("BalancedModule has no `data`: give it some, or give the trainer loaders.")
        return self.data

    def _context(self) -> EpochContext:
        def batches(split: Any) -> Callable[[], Iterator[Batch]]:
            def iterate() -> Iterator[Batch]:
                count = len(self._own_data().split(split))
                for batch in self._loader(split, ordered_requests(count, self.batch_size)):
                    yield batch.to(self.device)

            return iterate

        return EpochContext(
            epoch=self.epochs_done,
            max_epochs=self.trainer.max_epochs or 1,
            model=self.model,
            num_train=0 if self.data is None else len(self.data.split("train")),
            train_batches=batches("train"),
            val_batches=batches("val"),
        )

    # Training

    def configure_optimizers(self) -> Any:
        """The optimiser over model and method, and its schedule per epoch."""
        parameters = [p for p in (*self.model.parameters(), *self.method.parameters()) if p.requires_grad]
        optimizer = self.optimizer_options.optimizer(parameters)
        scheduler = self.optimizer_options.scheduler(optimizer, self.trainer.max_epochs or 1)
        return optimizer if scheduler is None else {"optimizer": optimizer, "lr_scheduler": scheduler}

    def on_train_start(self) -> None:
        """Leave the averaging of gradients over processes to a method that does it by itself."""
        if self.data is None:
            self._take_back()
        if self.method.reduces_gradients and isinstance(self.trainer.model, DistributedDataParallel):
            self.trainer.model.require_backward_grad_sync = False

    def on_train_epoch_start(self) -> None:
        """Begin the sums of the epoch; without data of its own, also the method's epoch."""
        self._sums, self._samples, self._started = {}, 0, time.perf_counter()
        self._position, self._counts_before = 0, (self.guard.skipped, self.guard.overflowed)
        if self.data is None:
            plan = self.method.start_epoch(self._context())
            if plan != EpochPlan():
                raise RuntimeError(
                    f"{type(self.method).__name__} plans its own passes over the data: give BalancedModule `data`."
                )

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Forget the optimiser's state where the plan says so."""
        if self.data is not None and self._requests[batch_idx].fresh_optimizer:
            self.trainer.optimizers[0].state.clear()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Losses of a batch; the trainer calls :meth:`backward` with their total."""
        batch = _as_batch(batch)
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self.guard.begin(self.model, self.method)
            self._sums_before = (dict(self._sums), self._samples)
        self.guard.saw(batch)
        losses = self.method.compute_losses(self.model, batch)
        total = losses.total
        finite = bool(torch.isfinite(total.detach()))
        spoilt, self.stopping = self._agree(not finite, self.wants_stop())
        self._position = batch_idx + 1
        self._losses = losses
        if spoilt:
            self._note(None if finite else describe_loss(losses, batch))
            return total
        for name, value in {"loss": total, **_named_terms(losses), **losses.logs}.items():
            weighted = value.detach().float() * len(batch)
            self._sums[name] = self._sums[name].to(weighted.device) + weighted if name in self._sums else weighted
        self._samples += len(batch)
        logged = bool(self.trainer.loggers)
        self.log("loss", total.detach(), prog_bar=True, logger=logged, on_step=True, batch_size=len(batch))
        return total

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Gradients of the step, by the method; scaled as the trainer would have scaled the total."""
        if self._losses is None:
            raise RuntimeError("backward was called before training_step.")
        losses, self._losses = self._losses, None
        scaler = self._scaler()
        if self.guard.spoilt:
            if scaler is not None:  # it insists on having seen a gradient
                first = self._parameters_in_training()[0]
                first.grad = torch.zeros_like(first)
            return
        scale = torch.ones((), device=self.device) / self.trainer.accumulate_grad_batches
        if scaler is not None:
            scale = scaler.scale(scale)
        self.method.backward(losses, self.model, scale=scale)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Let the method change the gradients, unscaled and not yet clipped; leave out what is not finite."""
        parameters = self._parameters_in_training()
        if not self.guard.spoilt:
            scaler = self._scaler()
            finite = all_finite(parameters)
            # Above a scale of one it may be the scaling that overflowed: then the scaler skips the step by itself.
            overflowed = not finite and scaler is not None and scaler.get_scale() >= 1
            self.guard.overflowed += overflowed
            if finite or overflowed:
                self.method.adjust_gradients(self.model)
            if finite and type(self.method).adjust_gradients is not Method.adjust_gradients:
                finite = all_finite(parameters)
            if not (finite or overflowed):
                self._note(describe_gradient(self.named_parameters(), self.guard.samples()))
        if self.guard.spoilt:
            self._sums, self._samples = self._sums_before
            self.guard.leave_out(parameters, sentence(self.guard.events[-1]))
        else:
            self.guard.finished()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """After an optimiser step, call what is hooked to it."""
        done = batch_idx + 1
        if done % self.trainer.accumulate_grad_batches == 0 and (self.data is None or done < len(self._requests)):
            for hook in self.after_step:
                hook(self)

    def on_train_epoch_end(self) -> None:
        """Close the epoch: history, the method's own end of epoch, and what is hooked to both."""
        row = {"epoch": float(self.epochs_done), "seconds": time.perf_counter() - self._started}
        row["lr"] = self.trainer.optimizers[0].param_groups[0]["lr"]
        row["samples"] = float(self._reduced(torch.tensor(float(self._samples), device=self.device)))
        for name, value in self._sums.items():
            row[f"train_{name}"] = float(self._reduced(value.to(self.device))) / row["samples"]
        if self.guard.policy == "skip":
            row["skipped_steps"] = float(self.guard.skipped - self._counts_before[0])
        if self._scaler() is not None:
            row["overflowed_steps"] = float(self.guard.overflowed - self._counts_before[1])
        if self.val_score is not None:
            row |= flatten_score("val", self.val_score)
        if self.trainer.loggers:
            self.log_dict({name: value for name, value in row.items() if name != "epoch"})
        for hook in self.before_epoch_end:
            hook(self)
        self.method.end_epoch(self._context())
        self.history.append(row)
        self._position = 0
        _, self.stopping = self._agree(False, self.wants_stop())
        for hook in self.after_epoch_end:
            hook(self)

    def _reduced(self, value: Tensor) -> Tensor:
        reduced = self.trainer.strategy.reduce(value, reduce_op="sum")
        return reduced if isinstance(reduced, Tensor) else value

    def _agree(self, *flags: bool) -> tuple[bool, ...]:
        """The flags; under distributed training each is set if it is in any process."""
        if self.trainer.world_size == 1:
            return flags
        shared = torch.tensor(flags, dtype=torch.int32, device=self.device)
        torch.distributed.all_reduce(shared, op=torch.distributed.ReduceOp.MAX)
        return tuple(bool(flag) for flag in shared.tolist())

    def _note(self, event: dict[str, Any] | None) -> None:
        """Record that the step is not finite, as all processes found it.

        Raises:
            NonFiniteLossError: Unless such steps are to be skipped.
        """
        where = {"epoch": self.epochs_done, "step": self.trainer.global_step, "batch": self._position - 1}
        found = self._gather(None if event is None else {**where, **event})
        self.guard.note(each for each in found if each is not None)
        for hook in self.after_nonfinite:
            hook(self)
        if self.guard.policy == "stop":
            raise NonFiniteLossError(sentence(self.guard.events[-1]))

    def _gather(self, value: Any) -> list[Any]:
        """The values of all processes, by rank."""
        if self.trainer.world_size == 1:
            return [value]
        values = [None] * self.trainer.world_size
        torch.distributed.all_gather_object(values, value)
        return values

    def _parameters_in_training(self) -> list[torch.nn.Parameter]:
        return [p for group in self.trainer.optimizers[0].param_groups for p in group["params"]]

    def _scaler(self) -> Any:
        """The loss scaling of half precision, or None."""
        return getattr(self.trainer.precision_plugin, "scaler", None)

    # Validation

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Count a batch."""
        batch = _as_batch(batch)
        self._metric.update(self.method.predict(self.model(batch.inputs, batch.present)), batch)

    def on_validation_epoch_end(self) -> None:
        """Form the score and log it."""
        self.val_score = self._metric.compute()
        self._metric.reset()
        self.log("val_accuracy", self.val_score.accuracy, prog_bar=True, logger=False)

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what Lightning does not know: history, plan, place in the epoch, and what each process has of its own."""
        own = {
            "random_state": capture_random_state(),
            "sums": {name: value.cpu() for name, value in self._sums.items()},
            "samples": self._samples,
        }
        checkpoint["bmlr"] = {
            "history": self.history,
            "position": self._position,
            "plan": None if self._plan is None else _plain_plan(self._plan),
            "seconds": time.perf_counter() - self._started,
            "processes": self._gather(own),
            "guard": self.guard.state(),
            "counts_before": list(self._counts_before),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it back; the random streams are set when training starts."""
        state = checkpoint["bmlr"]
        self.history, self._position = state["history"], state["position"]
        self._plan = None if state["plan"] is None else _plan_of(state["plan"])
        self._started = time.perf_counter() - state["seconds"]
        self._restored = state["processes"]
        self._counts_before = (int(state["counts_before"][0]), int(state["counts_before"][1]))
        self.guard.restore(state["guard"])

    def _take_back(self) -> int:
        """Set this process's own part of a loaded checkpoint, if there is one; the batches done of its epoch."""
        if self._restored is None:
            return 0
        processes, self._restored = self._restored, None
        if self._position and len(processes) != self.trainer.world_size:
            raise ValueError(
                f"The checkpoint was taken within an epoch by {len(processes)} processes, and only so many can go on "
                f"from it. Found {self.trainer.world_size}."
            )
        own = processes[self.trainer.global_rank if len(processes) == self.trainer.world_size else 0]
        if self._position:
            self._sums, self._samples = dict(own["sums"]), own["samples"]
        restore_random_state(own["random_state"])
        return self._position


def _plain_plan(plan: EpochPlan) -> dict[str, Any]:
    passes = [
        {
            "tag": planned.tag,
            "indices": None if planned.indices is None else torch.tensor(planned.indices, dtype=torch.int64),
            "fresh_optimizer": planned.fresh_optimizer,
        }
        for planned in plan.passes
    ]
    return {"passes": passes, "interleave": plan.interleave}


def _plan_of(plain: dict[str, Any]) -> EpochPlan:
    passes = [
        Pass(
            planned["tag"],
            None if planned["indices"] is None else tuple(planned["indices"].tolist()),
            planned["fresh_optimizer"],
        )
        for planned in plain["passes"]
    ]
    return EpochPlan(tuple(passes), plain["interleave"])


def _as_batch(batch: Any) -> Batch:
    if isinstance(batch, Batch):
        return batch
    inputs, targets = batch
    return Batch(dict(inputs), targets)


def _named_terms(losses: Losses) -> dict[str, Tensor]:
    return {f"loss_{name}": value for name, value in losses.terms.items()}
