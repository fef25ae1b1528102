"""A run: one training with one configuration, in a directory that tells all of it."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import logging
import platform
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning
import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException
from rich.console import Console

from bmlr._files import atomic_write, atomic_write_text, remove_leftovers
from bmlr._version import __version__
from bmlr.batch import Batch
from bmlr.data import MultimodalData
from bmlr.data._base import PartName
from bmlr.methods import Method, Prediction
from bmlr.model import MultimodalClassifier
from bmlr.training._config import RunConfig, read_config
from bmlr.training._errors import RunError, RunInterruptedError
from bmlr.training._loader import RequestLoader, ordered_requests
from bmlr.training._module import BalancedModule
from bmlr.training._nonfinite import MOST_RESTORES, NonFiniteLossError
from bmlr.training._options import ModelOptions, OptimizerOptions, TrainerOptions, build_model, fill_defaults
from bmlr.training._predictions import PREDICTIONS, PredictionTable
from bmlr.training._scores import Score, evaluate
from bmlr.training._storage import (
    DamagedFileError,
    file_checksum,
    read_checkpoint,
    read_result,
    read_weights,
    write_checkpoint,
    write_result,
    write_weights,
)
from bmlr.training._termination import RunWatch, Termination

CONFIG, RESULT, METRICS, CHECKPOINT = "config.yaml", "result.json", "metrics.csv", "last.ckpt"
#: The checkpoint before the last and that of the last epoch's end, kept while the run goes on where they are needed.
PREVIOUS, EPOCH = "previous.ckpt", "epoch.ckpt"
#: What is known of losses and gradients that were not finite.
NONFINITE = "nonfinite.json"

_log = logging.getLogger("bmlr.training")


@dataclasses.dataclass(frozen=True)
class RunResult:
    """A finished run.

    Attributes:
        directory: Where it is.
        content: What ``result.json`` holds.
        reused: Whether the run had been finished before.
    """

    directory: Path
    content: dict[str, Any]
    reused: bool = False


def train(
    data: MultimodalData,
    method: Method,
    model: ModelOptions | None = None,
    optimizer: OptimizerOptions | None = None,
    trainer: TrainerOptions | None = None,
    *,
    seed: int = 0,
    runs: Path | str = "runs",
    run: Path | str | None = None,
    resume: bool = False,
) -> RunResult:
    """Train a model on a data set by a method, select the epoch on the validation part, read the test part once.

    The run is a directory: ``config.yaml`` re-runs it, ``metrics.csv`` has a row per epoch, ``tensorboard/`` the
    events, ``best.safetensors`` and ``last.safetensors`` the weights, ``last.ckpt`` what a resumed run needs,
    ``predictions.safetensors`` the classes predicted for the test part in the selected epoch, and ``result.json``,
    written last, the result. An interrupted run that is resumed goes on after its last checkpoint, which is
    taken at the end of every epoch, at every ``checkpoint_every``-th optimiser step, and at the next one on SIGTERM;
    it ends as it would have ended without the interruption. While a run goes on, ``previous.ckpt`` is the checkpoint
    before the last, to fall back to. ``nonfinite.json`` tells of losses and gradients that were not finite.

    Under the data sets' ``paper`` protocol the test part is scored after every epoch, as the papers do, and the
    result shows the last and the best of these beside the epoch selected on validation. Under ``clean`` it is read
    once, at the end, with the weights of the selected epoch (the first of the best validation accuracy).

    Args:
        data: Data set.
        method: Method.
        model: Options of the model.
        optimizer: Options of the optimiser.
        trainer: Options of the trainer.
        seed: Seed of weights, order of samples and random transforms.
        runs: Folder in which the run's directory is made, named by data, method, seed and a hash of everything else.
        run: Directory of the run, in place of a named one in ``runs``.
        resume: Continue an interrupted run. A finished run is left alone either way.

    Returns:
        The run's directory and result.

    Raises:
        RunError: If the directory cannot be written, holds another or an interrupted run, or its checkpoint cannot
            be used.
        NonFiniteLossError: If a loss is NaN or infinite.
        ValueError: If the data set, the method and the model do not fit together.
    """
    options = fill_defaults(data, model or ModelOptions(), optimizer or OptimizerOptions(), trainer or TrainerOptions())
    config = RunConfig(data, method, *options, seed)
    directory = Path(run) if run is not None else Path(runs) / config.name
    if finished := _finished(directory, config):
        return finished
    with Termination(directory) as termination, _explained(directory):
        if is_first_process():  # the others of a distributed run come to what this one has opened
            _open_directory(directory, config, resume=resume)
        data.prepare()
        termination.patient = True
        termination.check()
        keeps_pristine = config.trainer.on_nonfinite == "restore"
        state = _Retry(copy.deepcopy(method) if keeps_pristine else method)
        while True:
            try:
                return _fit(config, directory, termination, state)
            except _GoBackError as error:
                _log.warning("%s", error)
                state = _Retry(copy.deepcopy(method), error.restores, error.events)


@dataclasses.dataclass(frozen=True)
class _Retry:
    """With what a training starts: its method, how often it went back before, and what had happened until then."""

    method: Method
    restores: int = 0
    events: list[dict[str, Any]] | None = None


class _GoBackError(Exception):
    """A loss was not finite, and the run is to go back.

    Where it goes back to must not depend on where it was interrupted, or what it ends with would too: so to the end
    of the epoch before, or the beginning, and not to a checkpoint within an epoch.
    """

    def __init__(self, error: NonFiniteLossError, restores: int, events: list[dict[str, Any]]) -> None:
        super().__init__(
            f"{error} The run goes back to the end of the epoch before with half the learning rate, for the "
            f"{restores}. time of at most {MOST_RESTORES}."
        )
        self.restores, self.events = restores, events


def _fit(config: RunConfig, directory: Path, termination: Termination, state: _Retry) -> RunResult:
    """Train from the beginning or a checkpoint to the result."""
    started = time.perf_counter()
    module = _make_module(config, state.method)
    recorder = _Recorder(directory, config, termination)
    checkpoint = (_latest_checkpoint if state.events is None else _epoch_checkpoint)(directory, config)
    before = 0
    if checkpoint is not None:
        recorder.restore(checkpoint, going_back=state.events is not None)
        before = int(checkpoint.content["bmlr"]["restores"])
    restores = max(before, state.restores)

    def begin(trainer: lightning.Trainer) -> None:
        _scale_learning_rate(trainer, 0.5 ** (restores - before))
        module.restores = restores
        if state.events is not None:
            module.guard.events = list(state.events)

    module.wants_stop = lambda: termination.requested
    module.after_step.append(recorder.keep_step)
    module.after_nonfinite.append(recorder.keep_events)
    module.before_epoch_end.append(recorder.keep_weights)
    module.after_epoch_end.append(recorder.keep_progress)
    fitter = _make_trainer(config, directory, RunWatch(termination, begin), checkpoint)
    if config.trainer.on_nonfinite == "restore" and fitter.world_size > 1:
        raise ValueError("Parameter `on_nonfinite` should be stop or skip for a run of several processes.")
    try:
        with _quiet():
            fitter.fit(module, ckpt_path=None if checkpoint is None else checkpoint.path, weights_only=True)
    except NonFiniteLossError as error:
        if config.trainer.on_nonfinite != "restore":
            raise
        if restores == MOST_RESTORES:
            raise NonFiniteLossError(f"The run went back {restores} times already. {error}") from error
        raise _GoBackError(error, restores + 1, module.guard.events) from error
    if module.epochs_done < (config.trainer.epochs or 0):
        raise RunError(
            f"The run in {directory} was stopped after {module.epochs_done} of {config.trainer.epochs} epochs. "
            "Resume it with --resume."
        )
    module.to(fitter.strategy.root_device)  # where the trainer took it away from at its end
    return recorder.finish(module, seconds=time.perf_counter() - started, check=termination.check)


def _make_module(config: RunConfig, method: Method) -> BalancedModule:
    """Model and method with their first weights, which follow from the seed."""
    lightning.seed_everything(config.seed, verbose=False)
    network = build_model(config.data, config.model)
    if config.trainer.compile:
        for encoder in network.encoders.values():
            encoder.compile()
    policy = config.trainer.on_nonfinite
    module = BalancedModule(
        network,
        method,
        config.optimizer,
        data=config.data,
        batch_size=config.trainer.batch_size or config.data.defaults.batch_size,
        num_workers=config.trainer.num_workers,
        seed=config.seed,
        on_nonfinite="stop" if policy == "restore" else policy,
        max_nonfinite=config.trainer.max_nonfinite,
    )
    module.guard.action = policy
    # The trainer would convert it after a checkpoint is loaded, which would round what that holds.
    return module.double() if config.trainer.precision == "64-true" else module


def _scale_learning_rate(trainer: lightning.Trainer, factor: float) -> None:
    """Multiply the learning rate and what the schedules derive it from."""
    if factor == 1:
        return
    for optimizer in trainer.optimizers:
        for group in optimizer.param_groups:
            group.update({name: group[name] * factor for name in ("lr", "initial_lr") if name in group})
    for scheduled in trainer.lr_scheduler_configs:
        scheduled.scheduler.base_lrs = [rate * factor for rate in scheduled.scheduler.base_lrs]


@contextlib.contextmanager
def _explained(directory: Path) -> Iterator[None]:
    """Say in a sentence what has stopped a run from outside."""
    try:
        yield
    except SIGTERMException as error:
        raise RunInterruptedError(
            f"The run in {directory} was stopped by SIGTERM. Continue it with --resume, from its last checkpoint."
        ) from error
    except (FileNotFoundError, NotADirectoryError, PermissionError):  # of the data; they say which file
        raise
    except OSError as error:
        if error.errno is None:
            raise RunError(str(error)) from error
        where = f" ({error.filename})" if error.filename else ""
        raise RunError(
            f"The run in {directory} was stopped by the system: {error.strerror}{where}. "
            "Continue it with --resume once that is mended."
        ) from error
    except RuntimeError as error:
        if _is_from_outside(error):
            raise RunError(
                f"The run in {directory} was stopped because one of its processes ended: {_first_line(error)} "
                "Continue it with --resume."
            ) from error
        raise


def _is_from_outside(error: RuntimeError) -> bool:
    """Whether an error tells of another process of the run that is gone."""
    if isinstance(error, (RunError, NonFiniteLossError)):
        return False
    if str(error).startswith("DataLoader worker"):
        return True
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return False
    signs = ("gloo", "nccl", "connection closed", "connection reset", "broken pipe", "socket")
    return isinstance(error, torch.distributed.DistError) or any(sign in str(error).casefold() for sign in signs)


def _first_line(error: Exception) -> str:
    line = str(error).strip().partition("\n")[0]
    return line if line.endswith(".") else f"{line}."


def is_first_process() -> bool:
    """Whether this is the process of a run that writes and speaks."""
    return getattr(rank_zero_only, "rank", 0) == 0


def _interrupted(directory: Path, module: BalancedModule, received: str) -> RunInterruptedError:
    return RunInterruptedError(
        f"The run in {directory} was stopped by {received} with a checkpoint after step {module.trainer.global_step}, "
        f"{module.epochs_done} of {module.trainer.max_epochs} epochs done. Continue it with --resume."
    )


def load_run(directory: Path | str, *, weights: str = "best") -> tuple[RunConfig, MultimodalClassifier, Method]:
    """Read a run back: its configuration with prepared data, its model and its method, in evaluation mode on the CPU.

    Args:
        directory: Directory of the run.
        weights: ``best`` (the epoch selected on validation) or ``last``.

    Raises:
        FileNotFoundError: If there is no run.
        RunError: If its weights are missing, damaged or of another model.
    """
    directory = Path(directory)
    config = read_config(directory / CONFIG)
    config.data.prepare()
    model = build_model(config.data, config.model)
    config.method.setup(model)
    if config.trainer.precision == "64-true":
        model, _ = model.double(), config.method.double()
    _load_weights(directory / f"{weights}.safetensors", model, config.method)
    return config, model.eval(), config.method.eval()


def evaluate_run(directory: Path | str, *, part: PartName = "test", weights: str = "best") -> Score:
    """Score a run's weights on one part of its data.

    Args:
        directory: Directory of the run.
        part: train, val or test.
        weights: ``best`` or ``last``.

    Raises:
        FileNotFoundError: If there is no run.
        RunError: If its weights are missing or damaged.
    """
    config, model, method = load_run(directory, weights=weights)
    return evaluate(model, method, _batches(config, part))


@torch.no_grad()
def predict_run(
    directory: Path | str, files: Mapping[str, Path], *, weights: str = "best"
) -> dict[str, dict[str, float]]:
    """Class probabilities of one new sample, fused and by each modality alone.

    Args:
        directory: Directory of the run.
        files: A file per modality; data sets that know samples without a modality let it be left out.
        weights: ``best`` or ``last``.

    Returns:
        Probability of each class name, keyed ``fused`` and by modality given.

    Raises:
        FileNotFoundError: If the run or a file is missing.
        ValueError: If a file cannot be read as its modality.
    """
    config, model, method = load_run(directory, weights=weights)
    dtype = next(model.parameters()).dtype
    inputs = {name: x.to(dtype) for name, x in config.data.load_files(files).items()}
    present = {
        name: torch.zeros(1, dtype=torch.bool)
        for name in model.modalities
        if name not in files and not bool(inputs[name].any())  # one file may hold two: a film its sound
    }
    prediction = method.predict(model(inputs, present or None))
    unimodal = {name: values for name, values in prediction.unimodal_logits.items() if name not in present}
    logits = {"fused": prediction.logits, **unimodal}
    return {
        name: dict(zip(config.data.classes, values[0].double().softmax(0).tolist(), strict=True))
        for name, values in logits.items()
    }


class _Recorder:
    """Keeps weights, metrics and checkpoint of a run up to date, and writes its result."""

    def __init__(self, directory: Path, config: RunConfig, termination: Termination) -> None:
        self.directory, self.config, self.termination = directory, config, termination
        self.best: dict[str, Any] | None = None
        self.last_is_damaged = False
        self.test_scores: list[dict[str, Any]] = []
        self.seconds_before = 0.0
        self.started = time.perf_counter()

    def restore(self, checkpoint: _Checkpoint, *, going_back: bool) -> None:
        """Take back what :meth:`keep_progress` put into a checkpoint.

        Args:
            checkpoint: The checkpoint.
            going_back: Whether training goes back to it, rather than on from it.

        Raises:
            RunError: If the weights of the best epoch, which belong to it, are not there.
        """
        recorded = checkpoint.content["bmlr_run"]
        self.best, self.test_scores = recorded["best"], recorded["test_scores"]
        self.seconds_before, self.last_is_damaged = recorded["seconds"], checkpoint.other_is_damaged
        if self.best is not None:
            try:
                _read_run_weights(self.directory / "best.safetensors")
            except RunError as error:
                raise RunError(
                    f"{error} The run cannot go on without it: remove {CHECKPOINT} and {PREVIOUS} to start it from "
                    "its beginning."
                ) from error
        if not going_back and not checkpoint.content["bmlr"]["position"]:
            self._keep_epoch(checkpoint.path)  # should the run have been killed right before it did so

    def keep_weights(self, module: BalancedModule) -> None:
        """Keep the weights that were just validated, if they are the best so far."""
        score = module.val_score
        if score is None:
            raise RunError("The validation part was not scored.")
        if self.config.data.protocol == "paper":
            self.test_scores.append(self._score(module, "test").as_dict())
        if self.best is None or score.accuracy > self.best["validation"]["accuracy"]:
            self.best = {"epoch": module.epochs_done, "validation": score.as_dict()}
            if module.trainer.is_global_zero:
                _save_weights(self.directory / "best.safetensors", module.model, module.method)

    def keep_step(self, module: BalancedModule) -> None:
        """Write a checkpoint within an epoch, if it is time; stop if that is wanted."""
        every = self.config.trainer.checkpoint_every
        if module.stopping or (every is not None and module.trainer.global_step % every == 0):
            self._write_checkpoint(module)
        if module.stopping:
            raise _interrupted(self.directory, module, self.termination.received)

    def keep_progress(self, module: BalancedModule) -> None:
        """Write metrics and checkpoint of a finished epoch; stop if that is wanted."""
        self._write_metrics(module)
        self._write_checkpoint(module)
        if module.trainer.is_global_zero:
            self._keep_epoch(self.directory / CHECKPOINT)
        if module.stopping:
            raise _interrupted(self.directory, module, self.termination.received)

    def _keep_epoch(self, path: Path) -> None:
        """Keep the checkpoint of an epoch's end while those within the next epoch take its place."""
        if self.config.trainer.on_nonfinite == "restore":
            atomic_write(self.directory / EPOCH, lambda temporary: _link(path, temporary))

    def keep_events(self, module: BalancedModule) -> None:
        """Write down what was not finite."""
        if module.trainer.is_global_zero:
            write_result(self.directory / NONFINITE, {"events": module.guard.events})

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
        """Read the test part and write the result.

        Args:
            module: What was trained.
            seconds: How long that took.
            check: Called after every batch; raises if the run is to stop.
        """
        if self.best is None:
            raise RunError("No epoch was finished.")
        data = self.config.data
        if module.trainer.is_global_zero:
            _save_weights(self.directory / "last.safetensors", module.model, module.method)
        module.trainer.strategy.barrier()
        _load_weights(self.directory / "best.safetensors", module.model, module.method)
        predictions = PredictionTable(module.model.modalities, len(data.part("test")), module.device)

        def watch(prediction: Prediction, batch: Batch) -> None:
            predictions.add(prediction, batch)
            check()

        test = self._score(module, "test", watch)
        whole = module.trainer.strategy.reduce(predictions.values, reduce_op="sum")
        if module.trainer.is_global_zero:
            predictions.save(self.directory / PREDICTIONS, whole)
        history = pd.DataFrame(module.history)
        content: dict[str, Any] = {
            "data": data.name,
            "protocol": data.protocol,
            "method": type(module.method).__name__,
            "seed": self.config.seed,
            "test": test.as_dict(),
            "validation": self.best["validation"],
            "best_epoch": self.best["epoch"],
            "epochs": len(history),
            "data_passes": round(float(history["samples"].sum()) / len(data.part("train")), 3),
            "majority_rate": data.majority_rate("test"),
            "reshaped_share": {
                name: history[f"train_reshaped_{name}"].tolist()
                for name in module.model.modalities
                if f"train_reshaped_{name}" in history
            },
            "seconds": round(self.seconds_before + seconds, 3),
            "parameters": sum(p.numel() for p in module.parameters()),
            "samples": {part: len(data.part(part)) for part in ("train", "val", "test")},
            "nonfinite": {
                "skipped_steps": module.guard.skipped,
                "overflowed_steps": module.guard.overflowed,
                "restores": module.restores,
            },
            "digest": self.config.digest,
            "versions": _versions(),
        }
        if self.test_scores:
            best = max(range(len(self.test_scores)), key=lambda epoch: self.test_scores[epoch]["accuracy"])
            content["test_last_epoch"] = self.test_scores[-1]
            content["test_best_epoch"] = {"epoch": best, **self.test_scores[best]}
        self._write_metrics(module)  # anew, should the file of an interrupted run have been damaged meanwhile
        if module.trainer.is_global_zero:
            content["files"] = {METRICS: file_checksum(self.directory / METRICS)}
            for name in (PREVIOUS, EPOCH):
                (self.directory / name).unlink(missing_ok=True)
            content = write_result(self.directory / RESULT, content)
        return RunResult(self.directory, content)

    def _score(
        self, module: BalancedModule, part: PartName, watch: Callable[[Prediction, Batch], None] | None = None
    ) -> Score:
        trainer = module.trainer
        batches = _batches(self.config, part, rank=trainer.global_rank, world_size=trainer.world_size)
        return evaluate(module.model, module.method, batches, watch)


def _finished(directory: Path, config: RunConfig) -> RunResult | None:
    path = directory / RESULT
    if not path.exists():
        return None
    try:
        content = read_result(path)
        if not isinstance(content.get("digest"), str):
            raise DamagedFileError(f"{path} names no run.")
    except DamagedFileError as error:
        raise RunError(f"{path} is damaged ({error}). Remove it to finish the run again with --resume.") from error
    if content["digest"] != config.digest:
        raise RunError(
            f"{directory} holds another run ({content.get('method')} on {content.get('data')}). Choose another folder."
        )
    for name, checksum in content.get("files", {}).items():
        if (directory / name).exists() and file_checksum(directory / name) != checksum:
            raise RunError(f"{directory / name} is damaged. Remove {RESULT} to write both again with --resume.")
    _mend_config(directory, config)
    return RunResult(directory, content, reused=True)


def _mend_config(directory: Path, config: RunConfig) -> None:
    """Write the configuration of a finished run again if it is damaged: that it is this one, the result says."""
    path = directory / CONFIG
    try:
        if not path.exists() or read_config(path).digest == config.digest:
            return
    except ValueError:
        pass
    if is_first_process():
        _log.warning("%s was damaged and has been written again.", path)
        _write_config(directory, config)


def _open_directory(directory: Path, config: RunConfig, *, resume: bool) -> None:
    path = directory / CONFIG
    if path.exists():
        try:
            existing = read_config(path)
        except ValueError as error:
            raise RunError(
                f"{_first_line(error)} Remove {path} to have it written again from the options given."
            ) from error
        if existing.digest != config.digest:
            raise RunError(f"{directory} holds a run with another configuration. Choose another folder.")
        if not resume:
            raise RunError(f"{directory} holds an interrupted run. Continue it with --resume or choose another folder.")
    _write_config(directory, config)
    for name in (CONFIG, RESULT, METRICS, CHECKPOINT, EPOCH, NONFINITE, "best.safetensors", "last.safetensors"):
        remove_leftovers(directory / name)


def _write_config(directory: Path, config: RunConfig) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        atomic_write_text(directory / CONFIG, config.as_yaml())
    except OSError as error:
        raise RunError(f"The run folder {directory} cannot be written: {error.strerror or error}.") from error


@dataclasses.dataclass(frozen=True)
class _Checkpoint:
    """A checkpoint that was read and found whole."""

    path: Path
    content: dict[str, Any]
    other_is_damaged: bool = False


def _latest_checkpoint(directory: Path, config: RunConfig) -> _Checkpoint | None:
    """The last checkpoint of a run; the one before it where that is damaged; None where there is none."""
    last, previous = directory / CHECKPOINT, directory / PREVIOUS
    if not last.exists() and not previous.exists():
        return None
    try:
        if last.exists():  # it is not there if the run was killed between the two moves of writing it
            return _Checkpoint(last, _read_own_checkpoint(last, config))
    except DamagedFileError as error:
        if not previous.exists():
            raise RunError(
                f"The checkpoint {last} is damaged or no checkpoint. Remove it to start the run from its beginning."
            ) from error
    try:
        content = _read_own_checkpoint(previous, config)
    except DamagedFileError as error:
        raise RunError(
            f"The checkpoints {last} and {previous.name} are damaged or no checkpoints. Remove them to start the run "
            "from its beginning."
        ) from error
    if last.exists():
        _log.warning("The checkpoint %s is damaged; the run goes on from the one before it.", last)
    return _Checkpoint(previous, content, other_is_damaged=last.exists())


def _epoch_checkpoint(directory: Path, config: RunConfig) -> _Checkpoint | None:
    """The checkpoint of the last epoch's end, to go back to; None in the first epoch."""
    path = directory / EPOCH
    if not path.exists():
        return None
    try:
        return _Checkpoint(path, _read_own_checkpoint(path, config))
    except DamagedFileError as error:
        raise RunError(
            f"{error} The run cannot go back to it. Remove it to go back to the beginning instead."
        ) from error


def _link(path: Path, temporary: Path) -> None:
    """The same file under a second name, or a copy where a file cannot have two."""
    try:
        temporary.hardlink_to(path)
    except OSError:
        shutil.copyfile(path, temporary)


def _read_own_checkpoint(path: Path, config: RunConfig) -> dict[str, Any]:
    content = read_checkpoint(path)
    recorded = content.get("bmlr_run")
    if not isinstance(recorded, dict) or recorded.get("digest") != config.digest:
        raise RunError(f"The checkpoint {path} is of another run. Remove it to start this one from its beginning.")
    return content


class _LoadedCheckpoint(TorchCheckpointIO):
    """Gives the trainer what was read and checked already, rather than the file a second time."""

    def __init__(self, content: dict[str, Any]) -> None:
        super().__init__()
        self.content = content

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return self.content


def _save_weights(path: Path, model: MultimodalClassifier, method: Method) -> None:
    tensors = {
        f"{prefix}.{name}": value
        for prefix, module in (("model", model), ("method", method))
        for name, value in module.state_dict().items()
        if isinstance(value, torch.Tensor)
    }
    write_weights(path, tensors)


def _read_run_weights(path: Path) -> dict[str, torch.Tensor]:
    try:
        return read_weights(path)
    except FileNotFoundError as error:
        raise RunError(f"{path} is missing: the run has not finished an epoch.") from error
    except DamagedFileError as error:
        raise RunError(f"{path} is damaged: {error}") from error


def _load_weights(path: Path, model: MultimodalClassifier, method: Method) -> None:
    tensors = _read_run_weights(path)
    for prefix, module in (("model", model), ("method", method)):
        state = {name.removeprefix(f"{prefix}."): v for name, v in tensors.items() if name.startswith(f"{prefix}.")}
        # The extra state is plain Python (counters); it belongs to training and is not among the weights.
        expected = {name for name, value in module.state_dict().items() if isinstance(value, torch.Tensor)}
        if set(state) != expected:
            raise RunError(f"{path} does not hold this {prefix}: {sorted(set(state) ^ expected)[:4]} differ.")
        try:
            module.load_state_dict(state, strict=False)
        except RuntimeError as error:
            raise RunError(f"{path} does not fit this {prefix}: {error}") from error


def _batches(config: RunConfig, part: PartName, *, rank: int = 0, world_size: int = 1) -> RequestLoader:
    chosen = config.data.part(part)
    size = config.trainer.batch_size or config.data.defaults.batch_size
    requests = ordered_requests(len(chosen), size, rank=rank, world_size=world_size)
    return RequestLoader(chosen, requests, num_workers=config.trainer.num_workers)


def _make_trainer(
    config: RunConfig, directory: Path, watch: Callback, checkpoint: _Checkpoint | None
) -> lightning.Trainer:
    options = config.trainer
    console = Console()
    callbacks: list[Callback] = [watch]
    if options.progress:
        callbacks.append(RichProgressBar() if console.is_terminal else _EpochLines(console))
    if options.gradients:
        from bmlr.diagnosis import GradientMonitor  # reads runs itself

        callbacks.append(GradientMonitor(directory).callback())
    with _quiet():
        return lightning.Trainer(
            max_epochs=options.epochs,
            accelerator=options.accelerator,
            devices=options.devices,
            strategy=_strategy(config),
            num_nodes=options.num_nodes,
            precision=options.precision,
            accumulate_grad_batches=options.accumulate_grad_batches,
            gradient_clip_val=options.gradient_clip_val,
            callbacks=callbacks,
            plugins=None if checkpoint is None else [_LoadedCheckpoint(checkpoint.content)],
            logger=TensorBoardLogger(directory, name="", version="tensorboard"),
            log_every_n_steps=10,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=options.progress and console.is_terminal,
            num_sanity_val_steps=0,
            reload_dataloaders_every_n_epochs=1,  # a method may plan other passes for every epoch
            use_distributed_sampler=False,
        )


def _strategy(config: RunConfig) -> str:
    """The strategy, told to expect parameters without a gradient where the method leaves some."""
    options = config.trainer
    if not config.method.leaves_gradients_unset or options.strategy not in {"auto", "ddp"}:
        return options.strategy
    if options.strategy == "auto":  # Lightning's choice: ddp for several processes, else none
        with _quiet():
            probe = lightning.Trainer(
                accelerator=options.accelerator, devices=options.devices, num_nodes=options.num_nodes, logger=False,
                enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False,
            )  # fmt: skip
        if probe.world_size == 1:
            return "auto"
    return "ddp_find_unused_parameters_true"


class _EpochLines(Callback):
    """A line per epoch, for logs."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if trainer.is_global_zero and isinstance(pl_module, BalancedModule) and pl_module.val_score is not None:
            score = pl_module.val_score
            modalities = ", ".join(f"{name} {value:.3f}" for name, value in score.unimodal_accuracy.items())
            self.console.print(
                f"epoch {pl_module.epochs_done + 1}/{trainer.max_epochs}: "
                f"validation accuracy {score.accuracy:.3f} ({modalities})",
                highlight=False,
                soft_wrap=True,
            )


class _quiet(warnings.catch_warnings):  # noqa: N801  (used like its parent)
    """Silence Lightning where it advises against what is chosen here on purpose, and its advertisements."""

    def __enter__(self) -> None:
        super().__enter__()
        for message in (
            r".*does not have many workers.*",
            r".*number of training batches .* is smaller than the logging interval.*",
            r".*Found \d+ module\(s\) in eval mode.*",
            r".*GPU available but not used.*",
            r".*You're resuming from a checkpoint that ended before the epoch ended.*",
            r".*isinstance\(treespec, LeafSpec\).*",
            r".*It is recommended to use `self\.log\(.*sync_dist=True.*",
        ):
            warnings.filterwarnings("ignore", message=message)
        self._levels = {name: logging.getLogger(name).level for name in _LOGGERS}
        for name in _LOGGERS:
            logging.getLogger(name).setLevel(logging.WARNING)

    def __exit__(self, *arguments: Any) -> None:
        for name, level in self._levels.items():
            logging.getLogger(name).setLevel(level)
        super().__exit__(*arguments)


_LOGGERS = (
    "lightning.pytorch.utilities.rank_zero",
    "lightning.pytorch.accelerators.cuda",
    "lightning.pytorch.trainer.connectors.signal_connector",
    "lightning.fabric",
)


def _versions() -> dict[str, str]:
    return {
        "bmlr": __version__,
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
    }
