"""Records a run while it trains."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from bmlr._files import atomic_write, file_checksum
from bmlr.batch import Batch
from bmlr.config import RunConfig
from bmlr.data import SPLITS, SplitName
from bmlr.methods import Prediction
from bmlr.runs import PredictionTable, RunError, RunInterruptedError
from bmlr.runs.layout import CHECKPOINT, METRICS, NONFINITE, PREDICTIONS, PREVIOUS, RESULT
from bmlr.runs.storage import (
    write_checkpoint,
    write_json,
)
from bmlr.training._checkpoints import Checkpoint
from bmlr.training._directory import RunResult
from bmlr.training._module import BalancedModule
from bmlr.training._reading import split_batches
from bmlr.training._scores import Score, evaluate
from bmlr.training._termination import Termination
from bmlr.training._trainer import software_versions
from bmlr.training._weights import load_weights, read_run_weights, save_weights


def interruption_error(directory: Path, module: BalancedModule, received: str) -> RunInterruptedError:
    return RunInterruptedError(
        f"The run in {directory} was stopped by {received} with a checkpoint after step {module.trainer.global_step}, "
        f"{module.epochs_done} of {module.trainer.max_epochs} epochs done. Continue it with --resume."
    )


class Recorder:
    """Keeps weights, metrics and checkpoint of a run up to date, and writes its result."""

    def __init__(self, directory: Path, config: RunConfig, termination: Termination) -> None:
        self.directory, self.config, self.termination = directory, config, termination
        self.best: dict[str, Any] | None = None
        self.last_is_damaged = False
        self.test_scores: list[dict[str, Any]] = []
        self.seconds_before = 0.0
        self.started = time.perf_counter()

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take back what :meth:`keep_progress` put into a checkpoint.

        Raises:
            RunError: If the weights of the best epoch, which belong to it, are not there.
        """
        recorded = checkpoint.content["bmlr_run"]
        self.best, self.test_scores = recorded["best"], recorded["test_scores"]
        self.seconds_before, self.last_is_damaged = recorded["seconds"], checkpoint.other_is_damaged
        if self.best is not None:
            try:
                read_run_weights(self.directory / "best.safetensors")
            except RunError as error:
                raise RunError(
                    f"{error} The run cannot go on without it: remove {CHECKPOINT} and {PREVIOUS} to start it from "
                    "its beginning."
                ) from error

    def keep_weights(self, module: BalancedModule) -> None:
        """Keep the weights that were just validated, if they are the best so far."""
        score = module.val_score
        if score is None:
            raise RunError("The validation split was not scored.")
        if self.config.data.protocol == "paper":
            self.test_scores.append(self._score(module, "test").as_dict())
        if self.best is None or score.accuracy > self.best["validation"]["accuracy"]:
            self.best = {"epoch": module.epochs_done, "validation": score.as_dict()}
            if module.trainer.is_global_zero:
                save_weights(self.directory / "best.safetensors", module.model, module.method)

    def keep_step(self, module: BalancedModule) -> None:
        """Write a checkpoint within an epoch, if it is time; stop if that is wanted."""
        every = self.config.trainer.checkpoint_every
        if module.stopping or (every is not None and module.trainer.global_step % every == 0):
            self._write_checkpoint(module)
        if module.stopping:
            raise interruption_error(self.directory, module, self.termination.received)

    def keep_progress(self, module: BalancedModule) -> None:
        """Write metrics and checkpoint of a finished epoch; stop if that is wanted."""
        self._write_metrics(module)
        self._write_checkpoint(module)
        if module.stopping:
            raise interruption_error(self.directory, module, self.termination.received)

    def keep_events(self, module: BalancedModule) -> None:
        """Write down what was not finite."""
        if module.trainer.is_global_zero:
            write_json(self.directory / NONFINITE, {"events": module.guard.events})

    def _write_metrics(self, module: BalancedModule) -> None:
        if module.trainer.is_global_zero:
            table = pd.DataFrame(module.history).astype({"epoch": int, "samples": int})
            atomic_write(self.directory / METRICS, lambda path: table.to_csv(path, index=False))

    def _write_checkpoint(self, module: BalancedModule) -> None:
        """Write the checkpoint; every process gives its part to the first, which writes."""
        content = module.trainer._checkpoint_connector.dump_checkpoint(weights_only=False)  # noqa: SLF001
        content["bmlr_run"] = {
            "digest": self.config.digest,
            "best": self.best,
            "test_scores": self.test_scores,
            "seconds": self.seconds_before + time.perf_counter() - self.started,
        }
        if module.trainer.is_global_zero:
            previous = None if self.last_is_damaged else self.directory / PREVIOUS
            write_checkpoint(self.directory / CHECKPOINT, content, previous=previous)
        self.last_is_damaged = False

    def finish(self, module: BalancedModule, *, seconds: float, check: Callable[[], None]) -> RunResult:
        """Read the test split and write the result.

        Args:
            module: What was trained.
            seconds: How long that took.
            check: Called after every batch; raises if the run is to stop.
        """
        if self.best is None:
            raise RunError("No epoch was finished.")
        data = self.config.model_data
        if module.trainer.is_global_zero:
            save_weights(self.directory / "last.safetensors", module.model, module.method)
        module.trainer.strategy.barrier()
        load_weights(self.directory / "best.safetensors", module.model, module.method)
        predictions = PredictionTable(module.model.modalities, len(data.split("test")), module.device)

        def watch(prediction: Prediction, batch: Batch) -> None:
            predictions.add(prediction, batch)
            check()

        test = self._score(module, "test", watch)
        whole = module.trainer.strategy.reduce(predictions.values, reduce_op="sum")
        if module.trainer.is_global_zero:
            predictions.save(self.directory / PREDICTIONS, whole)
        history = pd.DataFrame(module.history)
        samples: dict[str, Any] = {split: len(data.split(split)) for split in SPLITS}
        if data is not self.config.data:
            left_out = {split: len(self.config.data.split(split)) - samples[split] for split in SPLITS}
            samples |= {"without_modality": left_out} if any(left_out.values()) else {}
        content: dict[str, Any] = {
            "data": data.name,
            "protocol": data.protocol,
            "method": type(module.method).__name__,
            "seed": self.config.seed,
            "test": test.as_dict(),
            "validation": self.best["validation"],
            "best_epoch": self.best["epoch"],
            "epochs": len(history),
            "data_passes": round(float(history["samples"].sum()) / len(data.split("train")), 3),
            "majority_rate": data.majority_rate("test"),
            "reshaped_share": {
                name: history[f"train_reshaped_{name}"].tolist()
                for name in module.model.modalities
                if f"train_reshaped_{name}" in history
            },
            "seconds": round(self.seconds_before + seconds, 3),
            "parameters": sum(p.numel() for p in module.parameters()),
            "samples": samples,
            "nonfinite": {
                "skipped_steps": module.guard.skipped,
                "overflowed_steps": module.guard.overflowed,
            },
            "digest": self.config.digest,
            "versions": software_versions(),
        }
        if self.test_scores:
            best = max(range(len(self.test_scores)), key=lambda epoch: self.test_scores[epoch]["accuracy"])
            content["test_last_epoch"] = self.test_scores[-1]
            content["test_best_epoch"] = {"epoch": best, **self.test_scores[best]}
        self._write_metrics(module)  # anew, should the file of an interrupted run have been damaged meanwhile
        if module.trainer.is_global_zero:
            content["files"] = {METRICS: file_checksum(self.directory / METRICS)}
            (self.directory / PREVIOUS).unlink(missing_ok=True)
            content = write_json(self.directory / RESULT, content)
        return RunResult(self.directory, content)

    def _score(
        self, module: BalancedModule, split: SplitName, watch: Callable[[Prediction, Batch], None] | None = None
    ) -> Score:
        trainer = module.trainer
        batches = split_batches(self.config, split, rank=trainer.global_rank, world_size=trainer.world_size)
        return evaluate(module.model, module.method, batches, watch)
