"""Recorder of a run: weights, metrics, checkpoints and the result."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bmlr._files import file_checksum
from bmlr.batch import Batch
from bmlr.config import RunConfig
from bmlr.data import SPLITS, SplitName
from bmlr.methods import Prediction
from bmlr.runs import PredictionTable, RunError, RunInterruptedError, write_metrics
from bmlr.runs.layout import CHECKPOINT, METRICS, NONFINITE, PREDICTIONS, PREVIOUS, RESULT
from bmlr.runs.storage import (
    write_checkpoint,
    write_json,
)
from bmlr.tables import format_count
from bmlr.tasks import metric_form
from bmlr.training._checkpoints import Checkpoint
from bmlr.training._directory import RunResult, remove_checkpoints
from bmlr.training._module import BalancedModule
from bmlr.training._reading import split_batches
from bmlr.training._scores import Score, evaluate
from bmlr.training._termination import Termination
from bmlr.training._trainer import software_versions
from bmlr.training._weights import load_weights, read_run_weights, save_weights


def interruption_error(directory: Path, module: BalancedModule, signal_name: str) -> RunInterruptedError:
    """Error of a run that a signal stopped after a checkpoint."""
    step, epochs = module.trainer.global_step, module.trainer.max_epochs
    return RunInterruptedError(
        f"The run in {directory} was stopped by {signal_name} with a checkpoint after step {step}, "
        f"{module.epochs_done} of {format_count(epochs or 0, 'epoch')} done. Continue it with --resume."
    )


class Recorder:
    """Recorder of weights, metrics, checkpoints and the result.

    Its ``checkpoint_*``, ``select_epoch`` and ``write_events`` methods are hooks of :class:`BalancedModule`.

    Args:
        directory: Directory of the run.
        config: Its configuration.
        termination: Handler of the signals that stop it.

    Attributes:
        best: Number and validation score of the best epoch so far; None in the first epoch.
        test_scores: Score on the test split after each epoch, under the paper protocol only.
    """

    def __init__(self, directory: Path, config: RunConfig, termination: Termination) -> None:
        self.directory, self.config, self.termination = directory, config, termination
        self.best: dict[str, Any] | None = None
        self.last_is_damaged = False  # then it must not replace the previous checkpoint
        self.test_scores: list[dict[str, Any]] = []
        self.seconds_before = 0.0
        self.started = time.perf_counter()

    def restore(self, checkpoint: Checkpoint) -> None:
        """Restore the recorder's part of a checkpoint.

        Raises:
            RunError: If the weights of the best epoch, which belong to the checkpoint, are missing or damaged.
        """
        recorded = checkpoint.content["bmlr_run"]
        self.best, self.test_scores = recorded["best"], recorded["test_scores"]
        self.seconds_before, self.last_is_damaged = recorded["seconds"], checkpoint.newer_is_damaged
        if self.best is not None:
            try:
                read_run_weights(self.directory / "best.safetensors")
            except RunError as error:
                raise RunError(
                    f"{error} The run cannot go on without it: remove {CHECKPOINT} and {PREVIOUS} to start it from "
                    "its beginning."
                ) from error

    def select_epoch(self, module: BalancedModule) -> None:
        """Save the weights just validated, if they are the best so far."""
        score = module.val_score
        if score is None:
            raise RunError("The validation split was not scored.")
        if self.config.data.protocol == "paper":
            self.test_scores.append(self._score(module, "test").as_dict())
        if self.best is None or self._is_better(module, score):
            self.best = {"epoch": module.epochs_done, "validation": score.as_dict()}
            if module.trainer.is_global_zero:
                save_weights(self.directory / "best.safetensors", module.model, module.method)

    def _is_better(self, module: BalancedModule, score: Score) -> bool:
        """Whether a validation score is better than that of the best epoch."""
        name, best = module.monitored, (self.best or {})["validation"]
        return metric_form(name).is_better(score.metrics[name], best[name])

    def checkpoint_step(self, module: BalancedModule) -> None:
        """Write a checkpoint where one is due; stop where requested.

        Raises:
            RunInterruptedError: If the run is to stop.
        """
        every = self.config.trainer.checkpoint_every
        if module.stopping or (every is not None and module.trainer.global_step % every == 0):
            self._write_checkpoint(module)
        if module.stopping:
            raise interruption_error(self.directory, module, self.termination.signal_name)

    def checkpoint_epoch(self, module: BalancedModule) -> None:
        """Write metrics and checkpoint of a finished epoch; stop where requested.

        Raises:
            RunInterruptedError: If the run is to stop.
        """
        if module.trainer.is_global_zero:  # not durable: the checkpoint holds it too
            write_metrics(self.directory, module.history, durable=False)
        self._write_checkpoint(module)
        if module.stopping:
            raise interruption_error(self.directory, module, self.termination.signal_name)
        if self.has_stopped_early(module.epochs_done):
            module.trainer.should_stop = True

    def has_stopped_early(self, epochs_done: int) -> bool:
        """Whether the selected epoch is as many epochs back as early stopping waits."""
        patience = self.config.trainer.early_stopping
        return patience is not None and self.best is not None and epochs_done - 1 - self.best["epoch"] >= patience

    def write_events(self, module: BalancedModule) -> None:
        """Write the losses and gradients that were not finite."""
        if module.trainer.is_global_zero:
            write_json(self.directory / NONFINITE, {"events": module.guard.events})

    def _write_checkpoint(self, module: BalancedModule) -> None:
        """Write a checkpoint.

        All processes take part: the first one gathers their states and writes.
        """
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
        """Score the test split with the best weights and write the result.

        Args:
            module: The trained module.
            seconds: Seconds of this training, without those before it was resumed.
            check: Called after every batch; raises where the run is to stop.
        """
        if self.best is None:
            raise RunError("No epoch was finished.")
        if module.trainer.is_global_zero:
            save_weights(self.directory / "last.safetensors", module.model, module.method)
        module.trainer.strategy.barrier()  # the best weights are written by the first process, and read by all
        load_weights(self.directory / "best.safetensors", module.model, module.method)
        test = self._predict_test(module, check)
        content = self._describe(module, test, self.best, self.seconds_before + seconds)
        if module.trainer.is_global_zero:
            write_metrics(self.directory, module.history)  # again: that of an interrupted run may have been damaged
            content["files"] = {METRICS: file_checksum(self.directory / METRICS)}
            content = write_json(self.directory / RESULT, content)
            remove_checkpoints(self.directory)
        return RunResult(self.directory, content)

    def _predict_test(self, module: BalancedModule, check: Callable[[], None]) -> Score:
        """Score the test split and write the predicted classes."""
        samples = len(self.config.split("test"))
        predictions = PredictionTable(module.model.modalities, samples, module.device, task=module.model.task)

        def on_batch(prediction: Prediction, batch: Batch) -> None:
            predictions.add(prediction, batch)
            check()

        score = self._score(module, "test", on_batch)
        # Every process has filled in its own samples, zeros elsewhere.
        table = module.trainer.strategy.reduce(predictions.values, reduce_op="sum")
        if module.trainer.is_global_zero:
            predictions.save(self.directory / PREDICTIONS, table)
        return score

    def _describe(self, module: BalancedModule, test: Score, best: dict[str, Any], seconds: float) -> dict[str, Any]:
        """The content of ``result.json``."""
        data = self.config.model_data
        history = module.history
        splits = {name: self.config.split(name) for name in SPLITS}
        samples: dict[str, Any] = {name: len(split) for name, split in splits.items()}
        if data is not self.config.data:
            left_out = {name: split.left_out for name, split in splits.items()}
            samples |= {"without_modality": left_out} if any(left_out.values()) else {}
        content: dict[str, Any] = {
            "data": data.name,
            "protocol": data.protocol,
            "classes": list(data.classes),
            "method": type(module.method).__name__,
            "seed": self.config.seed,
            "metric": test.metric,
            "monitor": module.monitored,
            "test": test.as_dict(),
            "validation": best["validation"],
            "best_epoch": best["epoch"],
            "epochs": len(history),
            "data_passes": round(sum(row["samples"] for row in history) / samples["train"], 3),
            "constant_score": data.task.constant_score(splits["test"].targets),
            "reshaped_share": {
                name: [row.get(f"train_reshaped_{name}", math.nan) for row in history]
                for name in module.model.modalities
                if any(f"train_reshaped_{name}" in row for row in history)
            },
            "seconds": round(seconds, 3),
            "parameters": sum(p.numel() for p in module.parameters()),
            "samples": samples,
            "nonfinite": {
                "skipped_steps": module.guard.skipped,
                "overflowed_steps": module.guard.overflowed,
            },
            "digest": self.config.digest,
            "data_content": self.config.data.content_digest,
            "versions": software_versions(),
        }
        if self.test_scores:
            form = metric_form(test.metric)
            values = [score[test.metric] for score in self.test_scores]
            epoch = max(range(len(values)), key=lambda number: form.order(values[number]))
            content["test_last_epoch"] = self.test_scores[-1]
            content["test_best_epoch"] = {"epoch": epoch, **self.test_scores[epoch]}
        return content

    def _score(
        self, module: BalancedModule, split: SplitName, on_batch: Callable[[Prediction, Batch], None] | None = None
    ) -> Score:
        trainer = module.trainer
        batches = split_batches(self.config, split, rank=trainer.global_rank, world_size=trainer.world_size)
        return evaluate(module.model, module.method, batches, on_batch)
