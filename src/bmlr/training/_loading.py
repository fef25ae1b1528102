"""Loaders of a data set, for the trainer and for methods between epochs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator

from bmlr._random import mixed_seed
from bmlr.batch import Batch
from bmlr.config import OptimizerOptions
from bmlr.data import Split, SplitName
from bmlr.methods import EpochContext, EpochPlan, Method
from bmlr.model import MultimodalClassifier
from bmlr.parameters import optimizer_like
from bmlr.training._evaluation import NoLoaders
from bmlr.training._optimization import OptimizedModule
from bmlr.training.loader import BatchRequest, RequestLoader, ordered_requests, planned_requests


class LoadingModule(OptimizedModule):
    """Model and method with their optimiser, and loaders of a data set.

    Args:
        model: The model.
        method: The method, set up for it.
        optimizer: Optimiser and schedule.

    Attributes:
        num_workers: Processes that load data, used with ``split``.
        seed: Seed of the order of the samples, of their random transforms and of what the method draws.
        history: One flat dictionary of numbers per finished epoch.
    """

    num_workers: int
    seed: int

    def __init__(self, model: MultimodalClassifier, method: Method, optimizer: OptimizerOptions) -> None:
        super().__init__(model, method, optimizer)
        self.history: list[dict[str, float]] = []

    @property
    def epochs_done(self) -> int:
        """Number of finished epochs, counted over resumed runs."""
        return len(self.history)

    def val_dataloader(self) -> Iterable[Batch]:
        """The validation split, in order; none where the trainer trains on a loader of its own without one."""
        if self.split is None and self.trainer.state.fn == "fit":
            return NoLoaders()
        requests = ordered_requests(
            len(self._own_split("val")),
            self.batch_size,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
        )
        return self._loader("val", requests)

    def _loader(self, split: SplitName, requests: list[BatchRequest], start: int = 0) -> RequestLoader:
        on_gpu = self.device.type == "cuda"
        return RequestLoader(
            self._own_split(split),
            requests,
            num_workers=self.num_workers,
            pin_memory=on_gpu,
            late=on_gpu,
            start=start,
        )

    def _own_split(self, name: SplitName) -> Split:
        if self.split is None:
            raise RuntimeError(
                "BalancedModule has no `data` of its own: give the trainer the loader that is missing, or the module "
                "`data`."
            )
        return self.split(name)

    def _context(self) -> EpochContext:
        if self.split is None:
            return dataclasses.replace(self.epoch_context(), seed=self.seed)
        convert, num_train = self.trainer.precision_plugin.convert_input, len(self.split("train"))

        def load(split: SplitName, requests: list[BatchRequest]) -> Iterator[Batch]:
            for batch in self._loader(split, requests):
                yield convert(batch.to(self.device))  # here the trainer converts no batch to its precision

        def in_order(split: SplitName) -> Callable[[], Iterator[Batch]]:
            return lambda: load(split, ordered_requests(len(self._own_split(split)), self.batch_size))

        def shuffled(number: int) -> Iterator[Batch]:
            seed = mixed_seed(self.seed, number)
            requests = planned_requests(EpochPlan(), num_train, self.batch_size, seed=seed, epoch=self.epochs_done)
            return load("train", requests)

        return EpochContext(
            epoch=self.epochs_done,
            max_epochs=self.trainer.max_epochs or 1,
            model=self.model,
            num_train=num_train,
            train_batches=in_order("train"),
            val_batches=in_order("val"),
            seed=self.seed,
            shuffled_batches=shuffled,
            make_optimizer=lambda parameters: optimizer_like(self.trainer.optimizers[0], parameters),
        )
