"""Train one configuration into a run directory."""

from __future__ import annotations

import contextlib
import inspect
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import lightning
from torch import nn

from bmlr.config import (
    GivenModel,
    ModelOptions,
    OptimizerOptions,
    RunConfig,
    TrainerOptions,
    as_options,
    build_model,
    fill_defaults,
)
from bmlr.data import MultimodalData
from bmlr.methods import Method
from bmlr.modality_dropout import ModalityDropout
from bmlr.model import MultimodalClassifier
from bmlr.runs import RunError
from bmlr.tables import format_count
from bmlr.tasks import metric_form
from bmlr.training._checkpoints import LoadedCheckpoint, latest_checkpoint
from bmlr.training._directory import RunResult, finished_run, lock_directory, open_directory
from bmlr.training._errors import translate_errors
from bmlr.training._hardware import check_hardware
from bmlr.training._loggers import finish_loggers, log_epoch, start_loggers
from bmlr.training._module import BalancedModule
from bmlr.training._processes import is_first_process
from bmlr.training._recorder import Recorder
from bmlr.training._required import start_from_required_runs
from bmlr.training._scores import check_monitor
from bmlr.training._termination import RunWatch, Termination
from bmlr.training._threads import restored_threads
from bmlr.training._trainer import make_trainer, silence_lightning
from bmlr.training._weights import load_weights


def train(
    data: MultimodalData,
    method: Method,
    model: ModelOptions | GivenModel | MultimodalClassifier | Callable[..., MultimodalClassifier] | None = None,
    optimizer: OptimizerOptions | None = None,
    trainer: TrainerOptions | None = None,
    *,
    seed: int = 0,
    runs: Path | str = "runs",
    run: Path | str | None = None,
    resume: bool = False,
) -> RunResult:
    """Train one configuration into a run directory.

    The epoch is selected on validation, and the test split is scored. Runs that the method starts from
    (:meth:`bmlr.Method.required_runs`) are made first, by the same options and seed, in folders beside the run's
    directory; finished ones are reused, interrupted ones resumed. The directory holds:

    * ``config.yaml``: the configuration, which re-runs it;
    * ``metrics.csv``: a row per epoch; ``tensorboard/``, or what ``logger`` says: the same as events;
    * ``best.safetensors``, ``last.safetensors``: weights of the selected and the last epoch;
    * ``data.json``, ``data.safetensors``: what new files need to be read as the training data was;
    * ``last.ckpt``, ``previous.ckpt``: the last two checkpoints, until the run is finished;
    * ``predictions.safetensors``: predictions for the test split in the selected epoch;
    * ``nonfinite.json``: losses and gradients that were not finite, if there were any;
    * ``result.json``, written last: the result.

    Checkpoints are written at the end of every epoch, at every ``checkpoint_every``-th optimiser step, and on SIGTERM
    or Ctrl-C after the current step. A resumed run continues from the last one and ends bit for bit as without
    interruption.

    Under the ``clean`` protocol of a data set, the test split is read once, at the end, with the weights of the
    selected epoch: the first of the best validation score, by the metric ``trainer.monitor`` or the task's primary one,
    of classes accuracy. Under ``paper`` it is also scored after every epoch, as the papers do, and the result shows the
    last and the best of these scores.

    Args:
        data: Data set.
        method: Method.
        model: Options of the model; or a finished model, which is trained in place and has its first weights again if
            training stops early; or a function or class that makes one, and gets the data set where it names a
            parameter ``data``. A run of a finished model is read back by giving it again.
        optimizer: Options of the optimiser.
        trainer: Options of the trainer.
        seed: Seed of weights, order of samples and random transforms.
        runs: Folder of the run's directory, which is named by data, method, seed and a hash of the configuration.
        run: Directory of the run; None takes the named one in ``runs``.
        resume: Continue an interrupted run. A finished run is returned as it is, either way.

    Returns:
        The run's directory and result.

    Raises:
        RunError: If the directory cannot be written, holds another or an interrupted run, its checkpoint cannot be
            used, or a run that the method starts from failed.
        RunInterruptedError: If a signal stopped the run; it can be resumed.
        KeyboardInterrupt: If Ctrl-C stopped it, likewise; the message says what is kept.
        NonFiniteLossError: If a loss or gradient is NaN or infinite, unless such steps are skipped.
        ValueError: If the data set, the method and the model do not fit together, or this machine lacks the device or
            the precision. Nothing has been written then.
    """
    chosen = _as_model(model, data, seed)
    filled = fill_defaults(data, chosen, optimizer or OptimizerOptions(), trainer or TrainerOptions())
    config = RunConfig(data, method, *filled, seed)
    directory = (Path(run) if run is not None else Path(runs) / config.name).expanduser()
    if finished := finished_run(directory, config):
        if isinstance(chosen, GivenModel) and chosen.network is not None:  # trained in place, this time too
            method.setup(chosen.network)
            load_weights(directory / "best.safetensors", chosen.network, method)
        return finished
    with chosen.restored_after_errors() if isinstance(chosen, GivenModel) else contextlib.nullcontext():
        return _train(config, directory, resume=resume)


def _train(config: RunConfig, directory: Path, *, resume: bool) -> RunResult:
    """Train a configuration that is not finished."""
    check_hardware(config.trainer)
    with Termination(directory) as termination, translate_errors(directory, config.batch_size), restored_threads():
        fitter = make_trainer(config, directory, RunWatch(termination))
        config.data.prepare()
        module = make_module(config)
        start_from_required_runs(config, directory, module.model, train)
        # Only now: a run that the machine, the data or the method refuses has not taken its directory.
        with lock_directory(directory):
            if is_first_process():  # two processes that write one file would race
                open_directory(directory, config, resume=resume)
            termination.deferred = True
            termination.raise_if_requested()
            return _fit(config, directory, module, fitter, termination)


def _fit(
    config: RunConfig, directory: Path, module: BalancedModule, trainer: lightning.Trainer, termination: Termination
) -> RunResult:
    """Train from the beginning or the last checkpoint, and write the result."""
    started = time.perf_counter()
    recorder = Recorder(directory, config, termination)
    checkpoint = latest_checkpoint(directory, config)
    if checkpoint is not None:
        recorder.restore(checkpoint)
        trainer.strategy.checkpoint_io = LoadedCheckpoint(checkpoint.content)
        if recorder.has_stopped_early(len(checkpoint.content["bmlr"]["history"])):  # only the result is missing
            trainer.fit_loop.max_epochs = len(checkpoint.content["bmlr"]["history"])
    module.wants_stop = lambda: termination.requested
    module.logs = False  # to the run's own loggers and progress bar, without Lightning's collection of every value
    module.after_epoch_end.append(log_epoch)
    module.after_step.append(recorder.checkpoint_step)
    module.after_nonfinite.append(recorder.write_events)
    module.before_epoch_end.append(recorder.select_epoch)
    module.after_epoch_end.append(recorder.checkpoint_epoch)
    with silence_lightning():
        start_loggers(trainer, config)
        try:
            if not config.method.trains:
                return _score_alone(module, trainer, recorder, started)
            trainer.fit(module, ckpt_path=None if checkpoint is None else checkpoint.path, weights_only=True)
        finally:
            finish_loggers(trainer)
    if module.epochs_done < (config.trainer.epochs or 0) and not recorder.has_stopped_early(module.epochs_done):
        epochs = format_count(config.trainer.epochs or 0, "epoch")
        raise RunError(
            f"The run in {directory} was stopped after {module.epochs_done} of {epochs}. Resume it with --resume."
        )
    return _finish(module, trainer, recorder, started)


def _score_alone(module: BalancedModule, trainer: lightning.Trainer, recorder: Recorder, started: float) -> RunResult:
    """Score a method that trains nothing: one epoch without a step."""
    module.before_validation.append(BalancedModule.start_without_steps)
    trainer.validate(module, verbose=False)
    recorder.select_epoch(module)
    module.end_without_steps()
    return _finish(module, trainer, recorder, started)


def _finish(module: BalancedModule, trainer: lightning.Trainer, recorder: Recorder, started: float) -> RunResult:
    module.to(trainer.strategy.root_device)  # Lightning moves the module to the CPU when it is done
    check = recorder.termination.raise_if_requested
    return recorder.finish(module, seconds=time.perf_counter() - started, check=check)


def _as_model(
    model: ModelOptions | GivenModel | MultimodalClassifier | Callable[..., MultimodalClassifier] | None,
    data: MultimodalData,
    seed: int,
) -> ModelOptions | GivenModel:
    """Options of a model, however it is given, or the finished model.

    Raises:
        ValueError: If it is none of these, or does not fit the data set.
    """
    if isinstance(model, GivenModel):
        return model
    if isinstance(model, nn.Module):
        if not isinstance(model, MultimodalClassifier):
            raise ValueError(
                f"`model` should be a bmlr.MultimodalClassifier. Found {type(model).__name__}: "
                "bmlr.wrap(model, encoders, example) makes one of it."
            )
        return GivenModel.of(model, data)
    if model is not None and not isinstance(model, ModelOptions) and not callable(model):
        raise ValueError(f"`model` should be options, a model or a function that makes one. Found {model!r}.")
    try:
        return as_options(model)
    except ValueError:  # of a function that is not found again by its path, the model itself is given
        lightning.seed_everything(seed, verbose=False)
        make: Callable[..., MultimodalClassifier] = model  # type: ignore[assignment]
        made = make(data) if "data" in inspect.signature(make).parameters else make()
        return _as_model(made, data, seed)


def make_module(config: RunConfig) -> BalancedModule:
    """Model and method with their initial weights, drawn from the seed."""
    lightning.seed_everything(config.seed, verbose=False)
    network = build_model(config.model_data, config.model)
    if config.trainer.compile:
        for encoder in network.encoders.values():
            encoder.compile()
    module = BalancedModule(
        network,
        config.method,
        config.optimizer,
        batch_size=config.batch_size,
        num_workers=config.trainer.num_workers,
        seed=config.seed,
        on_nonfinite=config.trainer.on_nonfinite,
        max_nonfinite=config.trainer.max_nonfinite,
    )
    module.split = config.split
    options = config.trainer
    module.clip_norm = options.gradient_clip_val if isinstance(options.gradient_clip_val, Mapping) else None
    module.modality_dropout = (
        ModalityDropout(options.modality_dropout, config.seed) if options.modality_dropout else None
    )
    module.monitor = check_monitor(options.monitor, module.model.task)
    module.check_options()
    better = metric_form(module.monitored).larger_is_better
    config.optimizer.check(config.trainer.epochs or 1, larger_is_better=better)
    # Convert to float64 before a checkpoint is loaded: Lightning converts after, and would round the loaded weights
    # to float32.
    return module.double() if config.trainer.precision == "64-true" else module
