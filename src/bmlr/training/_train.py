"""Train one configuration into a run directory."""

from __future__ import annotations

import copy
import dataclasses
import logging
import time
from pathlib import Path
from typing import Any

import lightning

from bmlr.config import ModelOptions, OptimizerOptions, RunConfig, TrainerOptions, build_model, fill_defaults
from bmlr.data import MultimodalData
from bmlr.methods import Method
from bmlr.runs import RunError
from bmlr.training._checkpoints import epoch_checkpoint, latest_checkpoint
from bmlr.training._directory import RunResult, finished_run, open_directory
from bmlr.training._guard import MOST_RESTORES, NonFiniteLossError
from bmlr.training._module import BalancedModule
from bmlr.training._outside import translate_errors
from bmlr.training._recorder import Recorder
from bmlr.training._termination import RunWatch, Termination
from bmlr.training._trainer import is_first_process, make_trainer, silence_lightning

_log = logging.getLogger("bmlr.training")


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
    recorder = Recorder(directory, config, termination)
    checkpoint = (latest_checkpoint if state.events is None else epoch_checkpoint)(directory, config)
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
    fitter = make_trainer(config, directory, RunWatch(termination, begin), checkpoint)
    if config.trainer.on_nonfinite == "restore" and fitter.world_size > 1:
        raise ValueError("Parameter `on_nonfinite` should be stop or skip for a run of several processes.")
    try:
        with silence_lightning():
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
        data=config.model_data,
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
