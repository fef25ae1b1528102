"""Train one configuration into a run directory."""

from __future__ import annotations

import time
from pathlib import Path

import lightning

from bmlr.config import ModelOptions, OptimizerOptions, RunConfig, TrainerOptions, build_model, fill_defaults
from bmlr.data import MultimodalData
from bmlr.methods import Method
from bmlr.runs import RunError
from bmlr.training._checkpoints import latest_checkpoint
from bmlr.training._directory import RunResult, finished_run, open_directory
from bmlr.training._module import BalancedModule
from bmlr.training._outside import translate_errors
from bmlr.training._recorder import Recorder
from bmlr.training._termination import RunWatch, Termination
from bmlr.training._trainer import is_first_process, make_trainer, silence_lightning


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
    """Train a model on a data set by a method, select the epoch on the validation split, read the test split once.

    The run is a directory: ``config.yaml`` re-runs it, ``metrics.csv`` has a row per epoch, ``tensorboard/`` the
    events, ``best.safetensors`` and ``last.safetensors`` the weights, ``last.ckpt`` what a resumed run needs,
    ``predictions.safetensors`` the classes predicted for the test split in the selected epoch, and ``result.json``,
    written last, the result. An interrupted run that is resumed goes on after its last checkpoint, which is
    taken at the end of every epoch, at every ``checkpoint_every``-th optimiser step, and at the next one on SIGTERM;
    it ends as it would have ended without the interruption. While a run goes on, ``previous.ckpt`` is the checkpoint
    before the last, to fall back to. ``nonfinite.json`` tells of losses and gradients that were not finite.

    Under the data sets' ``paper`` protocol the test split is scored after every epoch, as the papers do, and the
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
    if finished := finished_run(directory, config):
        return finished
    with Termination(directory) as termination, translate_errors(directory):
        if is_first_process():  # the others of a distributed run come to what this one has opened
            open_directory(directory, config, resume=resume)
        data.prepare()
        termination.patient = True
        termination.check()
        return _fit(config, directory, termination)


def _fit(config: RunConfig, directory: Path, termination: Termination) -> RunResult:
    """Train from the beginning or a checkpoint to the result."""
    started = time.perf_counter()
    module = _make_module(config)
    recorder = Recorder(directory, config, termination)
    checkpoint = latest_checkpoint(directory, config)
    if checkpoint is not None:
        recorder.restore(checkpoint)
    module.wants_stop = lambda: termination.requested
    module.after_step.append(recorder.keep_step)
    module.after_nonfinite.append(recorder.keep_events)
    module.before_epoch_end.append(recorder.keep_weights)
    module.after_epoch_end.append(recorder.keep_progress)
    trainer = make_trainer(config, directory, RunWatch(termination), checkpoint)
    with silence_lightning():
        trainer.fit(module, ckpt_path=None if checkpoint is None else checkpoint.path, weights_only=True)
    if module.epochs_done < (config.trainer.epochs or 0):
        raise RunError(
            f"The run in {directory} was stopped after {module.epochs_done} of {config.trainer.epochs} epochs. "
            "Resume it with --resume."
        )
    module.to(trainer.strategy.root_device)  # Lightning moves the module to the CPU at the end of training
    return recorder.finish(module, seconds=time.perf_counter() - started, check=termination.check)


def _make_module(config: RunConfig) -> BalancedModule:
    """Model and method with their initial weights, drawn from the seed."""
    lightning.seed_everything(config.seed, verbose=False)
    network = build_model(config.data, config.model)
    if config.trainer.compile:
        for encoder in network.encoders.values():
            encoder.compile()
    module = BalancedModule(
        network,
        config.method,
        config.optimizer,
        data=config.model_data,
        batch_size=config.trainer.batch_size or config.data.defaults.batch_size,
        num_workers=config.trainer.num_workers,
        seed=config.seed,
        on_nonfinite=config.trainer.on_nonfinite,
        max_nonfinite=config.trainer.max_nonfinite,
    )
    # Convert to float64 before a checkpoint is loaded: Lightning converts after, and would round the loaded weights
    # to float32.
    return module.double() if config.trainer.precision == "64-true" else module
