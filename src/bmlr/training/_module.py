"""One LightningModule for every method."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from bmlr.batch import Batch
from bmlr.data import MultimodalData
from bmlr.methods import EpochContext, EpochPlan, Losses, Method
from bmlr.model import MultimodalClassifier
from bmlr.training._loader import BatchRequest, RequestLoader, ordered_requests, planned_requests
from bmlr.training._options import OptimizerOptions
from bmlr.training._scores import Score, ScoreMetric, flatten_score


class NonFiniteLossError(RuntimeError):
    """A loss was NaN or infinite; the message names the step, the batch and the loss."""


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

    Attributes:
        history: One flat dictionary of numbers per finished epoch.
        val_score: Score on the validation part at the end of the last finished epoch.
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
    ) -> None:
        super().__init__()
        method.setup(model)
        self.model, self.method = model, method
        self.optimizer_options = optimizer
        self.data = data
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self.history: list[dict[str, float]] = []
        self.val_score: Score | None = None
        #: Called at the end of every epoch, before and after the method's own end of epoch.
        self.before_epoch_end: list[Callable[[BalancedModule], None]] = []
        self.after_epoch_end: list[Callable[[BalancedModule], None]] = []
        self._metric = ScoreMetric(model.modalities)
        self._losses: Losses | None = None
        self._requests: list[BatchRequest] = []
        self._planned_epoch = -1
        self._sums: dict[str, Tensor] = {}
        self._samples = 0
        self._started = 0.0
        self._restored_random_state: dict[str, Any] | None = None

    @property
    def epochs_done(self) -> int:
        """Number of finished epochs, counted over resumed runs."""
        return len(self.history)

    # Loaders

    def train_dataloader(self) -> Iterable[Batch]:
        """Batches of the epoch to come, as the method plans it; the trainer asks anew before every epoch."""
        data = self._own_data()
        if self.epochs_done >= (self.trainer.max_epochs or 1):  # resumed after its last epoch: there is none to plan
            return self._loader("train", ordered_requests(len(data.part("train")), self.batch_size))
        if self._planned_epoch != self.epochs_done:  # the trainer asks twice when it resumes; plan once
            if self._restored_random_state is not None:
                _set_random_state(self._restored_random_state)
                self._restored_random_state = None
            self._requests = planned_requests(
                self.method.start_epoch(self._context()),
                len(data.part("train")),
                self.batch_size,
                seed=self.seed,
                epoch=self.epochs_done,
                rank=self.trainer.global_rank,
                world_size=self.trainer.world_size,
            )
            self._planned_epoch = self.epochs_done
        return self._loader("train", self._requests)

    def val_dataloader(self) -> Iterable[Batch]:
        """The validation part, in order."""
        requests = ordered_requests(
            len(self._own_data().part("val")),
            self.batch_size,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
        )
        return self._loader("val", requests)

    def _loader(self, part: Any, requests: list[BatchRequest]) -> RequestLoader:
        return RequestLoader(
            self._own_data().part(part),
            requests,
            num_workers=self.num_workers,
            pin_memory=self.device.type == "cuda",
        )

    def _own_data(self) -> MultimodalData:
        if self.data is None:
            raise RuntimeError("BalancedModule has no `data`: give it some, or give the trainer loaders.")
        return self.data

    def _context(self) -> EpochContext:
        def batches(part: Any) -> Callable[[], Iterator[Batch]]:
            def iterate() -> Iterator[Batch]:
                count = len(self._own_data().part(part))
                for batch in self._loader(part, ordered_requests(count, self.batch_size)):
                    yield batch.to(self.device)

            return iterate

        return EpochContext(
            epoch=self.epochs_done,
            max_epochs=self.trainer.max_epochs or 1,
            model=self.model,
            num_train=0 if self.data is None else len(self.data.part("train")),
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
        if self.method.reduces_gradients and isinstance(self.trainer.model, DistributedDataParallel):
            self.trainer.model.require_backward_grad_sync = False

    def on_train_epoch_start(self) -> None:
        """Begin the sums of the epoch; without data of its own, also the method's epoch."""
        self._sums, self._samples, self._started = {}, 0, time.perf_counter()
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
        losses = self.method.compute_losses(self.model, batch)
        total = losses.total
        if not bool(torch.isfinite(total.detach())):
            raise NonFiniteLossError(self._describe_failure(losses, batch, batch_idx))
        self._losses = losses
        for name, value in {"loss": total, **_named_terms(losses), **losses.logs}.items():
            weighted = value.detach().float() * len(batch)
            self._sums[name] = self._sums[name] + weighted if name in self._sums else weighted
        self._samples += len(batch)
        logged = bool(self.trainer.loggers)
        self.log("loss", total.detach(), prog_bar=True, logger=logged, on_step=True, batch_size=len(batch))
        return total

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Gradients of the step, by the method; scaled as the trainer would have scaled the total."""
        if self._losses is None:
            raise RuntimeError("backward was called before training_step.")
        scale = torch.ones((), device=self.device) / self.trainer.accumulate_grad_batches
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler is not None:
            scale = scaler.scale(scale)
        self.method.backward(self._losses, self.model, scale=scale)
        self._losses = None

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Let the method change the gradients, unscaled and not yet clipped."""
        self.method.adjust_gradients(self.model)

    def on_train_epoch_end(self) -> None:
        """Close the epoch: history, the method's own end of epoch, and what is hooked to both."""
        row = {"epoch": float(self.epochs_done), "seconds": time.perf_counter() - self._started}
        row["lr"] = self.trainer.optimizers[0].param_groups[0]["lr"]
        row["samples"] = float(self._reduced(torch.tensor(float(self._samples), device=self.device)))
        for name, value in self._sums.items():
            row[f"train_{name}"] = float(self._reduced(value)) / row["samples"]
        if self.val_score is not None:
            row |= flatten_score("val", self.val_score)
        if self.trainer.loggers:
            self.log_dict({name: value for name, value in row.items() if name != "epoch"})
        for hook in self.before_epoch_end:
            hook(self)
        self.method.end_epoch(self._context())
        self.history.append(row)
        for hook in self.after_epoch_end:
            hook(self)

    def _reduced(self, value: Tensor) -> Tensor:
        reduced = self.trainer.strategy.reduce(value, reduce_op="sum")
        return reduced if isinstance(reduced, Tensor) else value

    def _describe_failure(self, losses: Losses, batch: Batch, batch_idx: int) -> str:
        terms = {name: float(value.detach()) for name, value in {**losses.terms, "total": losses.total}.items()}
        bad = {name: value for name, value in terms.items() if not math.isfinite(value)}
        inputs = [name for name, x in batch.inputs.items() if not bool(torch.isfinite(x).all())]
        where = f"epoch {self.epochs_done}, step {self.trainer.global_step}, batch {batch_idx}"
        samples = "" if batch.indices is None else f" Samples of the batch: {batch.indices.tolist()}."
        origin = f" The inputs of {', '.join(inputs)} are not finite." if inputs else " All inputs are finite."
        return f"The loss is not finite at {where}: {bad}.{origin}{samples}"

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
        """Add what Lightning does not know: the history and the random streams."""
        checkpoint["bmlr"] = {"history": self.history, "random_state": _random_state()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it back; the random streams are set when training starts."""
        self.history = checkpoint["bmlr"]["history"]
        self._restored_random_state = checkpoint["bmlr"]["random_state"]


def _as_batch(batch: Any) -> Batch:
    if isinstance(batch, Batch):
        return batch
    inputs, targets = batch
    return Batch(dict(inputs), targets)


def _named_terms(losses: Losses) -> dict[str, Tensor]:
    return {f"loss_{name}": value for name, value in losses.terms.items()}


def _random_state() -> dict[str, Any]:
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002  (the legacy stream is the one user code draws from)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [kind, np.asarray(keys).tolist(), *rest],
        "python": random.getstate(),
    }


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([value.cpu() for value in state["cuda"]])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.asarray(keys, dtype=np.uint32), *rest))  # noqa: NPY002
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
