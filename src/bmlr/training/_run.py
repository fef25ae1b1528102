"""A run: one training with one configuration, in a directory that tells all of it."""

from __future__ import annotations

import dataclasses
import json
import logging
import platform
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from bmlr._files import atomic_write, atomic_write_text
from bmlr._version import __version__
from bmlr.data import MultimodalData
from bmlr.data._base import PartName
from bmlr.methods import Method
from bmlr.model import MultimodalClassifier
from bmlr.training._config import RunConfig, read_config
from bmlr.training._loader import RequestLoader, ordered_requests
from bmlr.training._module import BalancedModule
from bmlr.training._options import ModelOptions, OptimizerOptions, TrainerOptions, build_model, fill_defaults
from bmlr.training._scores import Score, evaluate

CONFIG, RESULT, METRICS, CHECKPOINT = "config.yaml", "result.json", "metrics.csv", "last.ckpt"


class RunError(RuntimeError):
    """A run cannot start, continue or be read; the message says why and what to do."""


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
    events, ``best.safetensors`` and ``last.safetensors`` the weights, ``last.ckpt`` what a resumed run needs, and
    ``result.json``, written last, the result. An interrupted run that is resumed goes on after its last finished
    epoch and ends as it would have ended without the interruption.

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
    if (
        getattr(rank_zero_only, "rank", 0) == 0
    ):  # the other processes of a distributed run come to what this one has opened
        _open_directory(directory, config, resume=resume)
    data.prepare()

    lightning.seed_everything(seed, verbose=False)
    network = build_model(data, config.model)
    if config.trainer.compile:
        for encoder in network.encoders.values():
            encoder.compile()
    module = BalancedModule(
        network,
        method,
        config.optimizer,
        data=data,
        batch_size=config.trainer.batch_size or data.defaults.batch_size,
        num_workers=config.trainer.num_workers,
        seed=seed,
    )
    recorder = _Recorder(directory, config)
    module.before_epoch_end.append(recorder.keep_weights)
    module.after_epoch_end.append(recorder.keep_progress)
    started = time.perf_counter()
    checkpoint = directory / CHECKPOINT
    if checkpoint.exists():
        _check_checkpoint(checkpoint, config)
        recorder.restore(torch.load(checkpoint, weights_only=True, map_location="cpu"))
    fitter = _make_trainer(config, directory)
    with _quiet():
        fitter.fit(module, ckpt_path=checkpoint if checkpoint.exists() else None, weights_only=True)
    if module.epochs_done < (config.trainer.epochs or 0):
        raise RunError(
            f"The run in {directory} was stopped after {module.epochs_done} of {config.trainer.epochs} epochs. "
            "Resume it with --resume."
        )
    module.to(fitter.strategy.root_device)  # where the trainer took it away from at its end
    return recorder.finish(module, seconds=time.perf_counter() - started)


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
    present = {name: torch.zeros(1, dtype=torch.bool) for name in model.modalities if name not in files}
    prediction = method.predict(model(inputs, present or None))
    unimodal = {name: values for name, values in prediction.unimodal_logits.items() if name not in present}
    logits = {"fused": prediction.logits, **unimodal}
    return {
        name: dict(zip(config.data.classes, values[0].double().softmax(0).tolist(), strict=True))
        for name, values in logits.items()
    }


class _Recorder:
    """Keeps weights, metrics and checkpoint of a run up to date, and writes its result."""

    def __init__(self, directory: Path, config: RunConfig) -> None:
        self.directory, self.config = directory, config
        self.best: dict[str, Any] | None = None
        self.test_scores: list[dict[str, Any]] = []
        self.seconds_before = 0.0
        self.started = time.perf_counter()

    def restore(self, checkpoint: Mapping[str, Any]) -> None:
        """Take back what :meth:`keep_progress` put into the checkpoint."""
        recorded = checkpoint["bmlr_run"]
        self.best, self.test_scores = recorded["best"], recorded["test_scores"]
        self.seconds_before = recorded["seconds"]

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

    def keep_progress(self, module: BalancedModule) -> None:
        """Write metrics and checkpoint of a finished epoch."""
        recorded = {
            "digest": self.config.digest,
            "best": self.best,
            "test_scores": self.test_scores,
            "seconds": self.seconds_before + time.perf_counter() - self.started,
        }

        def save(path: Path) -> None:
            content = module.trainer._checkpoint_connector.dump_checkpoint(weights_only=False)  # noqa: SLF001
            torch.save({**content, "bmlr_run": recorded}, path)

        if module.trainer.is_global_zero:
            table = pd.DataFrame(module.history).astype({"epoch": int, "samples": int})
            atomic_write(self.directory / METRICS, lambda path: table.to_csv(path, index=False))
            atomic_write(self.directory / CHECKPOINT, save)

    def finish(self, module: BalancedModule, *, seconds: float) -> RunResult:
        """Read the test part and write the result."""
        if self.best is None:
            raise RunError("No epoch was finished.")
        data = self.config.data
        if module.trainer.is_global_zero:
            _save_weights(self.directory / "last.safetensors", module.model, module.method)
        module.trainer.strategy.barrier()
        _load_weights(self.directory / "best.safetensors", module.model, module.method)
        history = pd.DataFrame(module.history)
        content: dict[str, Any] = {
            "data": data.name,
            "protocol": data.protocol,
            "method": type(module.method).__name__,
            "seed": self.config.seed,
            "test": self._score(module, "test").as_dict(),
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
            "digest": self.config.digest,
            "versions": _versions(),
        }
        if self.test_scores:
            best = max(range(len(self.test_scores)), key=lambda epoch: self.test_scores[epoch]["accuracy"])
            content["test_last_epoch"] = self.test_scores[-1]
            content["test_best_epoch"] = {"epoch": best, **self.test_scores[best]}
        if module.trainer.is_global_zero:
            atomic_write_text(self.directory / RESULT, json.dumps(content, indent=2) + "\n")
        return RunResult(self.directory, content)

    def _score(self, module: BalancedModule, part: PartName) -> Score:
        trainer = module.trainer
        batches = _batches(self.config, part, rank=trainer.global_rank, world_size=trainer.world_size)
        return evaluate(module.model, module.method, batches)


def _finished(directory: Path, config: RunConfig) -> RunResult | None:
    path = directory / RESULT
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        digest = content["digest"]
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} is damaged ({error!r}). Remove it to finish the run again with --resume.") from error
    if digest != config.digest:
        raise RunError(
            f"{directory} holds another run ({content['method']} on {content['data']}). Choose another folder."
        )
    return RunResult(directory, content, reused=True)


def _open_directory(directory: Path, config: RunConfig, *, resume: bool) -> None:
    path = directory / CONFIG
    if path.exists():
        existing = read_config(path)
        if existing.digest != config.digest:
            raise RunError(f"{directory} holds a run with another configuration. Choose another folder.")
        if not resume:
            raise RunError(f"{directory} holds an interrupted run. Continue it with --resume or choose another folder.")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        atomic_write_text(path, config.as_yaml())
    except OSError as error:
        raise RunError(f"The run folder {directory} cannot be written: {error.strerror or error}.") from error


def _check_checkpoint(path: Path, config: RunConfig) -> None:
    try:
        content = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    except Exception as error:
        raise RunError(
            f"The checkpoint {path} is damaged or no checkpoint. Remove it to start the run from its beginning."
        ) from error
    recorded = content.get("bmlr_run") if isinstance(content, dict) else None
    if not isinstance(recorded, dict) or recorded.get("digest") != config.digest:
        raise RunError(f"The checkpoint {path} is of another run. Remove it to start this one from its beginning.")


def _save_weights(path: Path, model: MultimodalClassifier, method: Method) -> None:
    tensors = {
        f"{prefix}.{name}": value.detach().cpu().contiguous().clone()
        for prefix, module in (("model", model), ("method", method))
        for name, value in module.state_dict().items()
        if isinstance(value, torch.Tensor)
    }
    atomic_write(path, lambda temporary: save_file(tensors, temporary))


def _load_weights(path: Path, model: MultimodalClassifier, method: Method) -> None:
    if not path.is_file():
        raise RunError(f"{path} is missing: the run has not finished an epoch.")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise RunError(f"{path} is damaged: {error}") from error
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


def _make_trainer(config: RunConfig, directory: Path) -> lightning.Trainer:
    options = config.trainer
    console = Console()
    callbacks: list[Callback] = []
    if options.progress:
        callbacks.append(RichProgressBar() if console.is_terminal else _EpochLines(console))
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
    if config.trainer.strategy == "ddp" and config.method.leaves_gradients_unset:
        return "ddp_find_unused_parameters_true"
    return config.trainer.strategy


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
        ):
            warnings.filterwarnings("ignore", message=message)
        self._levels = {name: logging.getLogger(name).level for name in _LOGGERS}
        for name in _LOGGERS:
            logging.getLogger(name).setLevel(logging.WARNING)

    def __exit__(self, *arguments: Any) -> None:
        for name, level in self._levels.items():
            logging.getLogger(name).setLevel(level)
        super().__exit__(*arguments)


_LOGGERS = ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda", "lightning.fabric")


def _versions() -> dict[str, str]:
    return {
        "bmlr": __version__,
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
    }
