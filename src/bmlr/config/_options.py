"""Options of model and trainer."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

from torch import nn

from bmlr import fusion as fusions
from bmlr._checks import check_choice, check_integer, check_positive, nearest_name
from bmlr.config._classes import plain_data, resolve_class
from bmlr.config._given import GivenModel
from bmlr.config._optimizer import OptimizerOptions
from bmlr.config._parts import Entry, find_part, kind_of, own_modules, read_part
from bmlr.config._pretrained import wanted_inputs, with_checkpoint
from bmlr.data import MultimodalData, SelectedModalities
from bmlr.encoders.pretrained import is_pretrained
from bmlr.modality_dropout import check_rates
from bmlr.model import MultimodalClassifier

Precision = Literal["32-true", "64-true", "bf16-mixed", "16-mixed"]
OnNonFinite = Literal["stop", "skip"]
Graph = Literal["auto", "off"]

#: Libraries of loggers, which no extra of this one installs.
_LIBRARIES = {"WandbLogger": "wandb", "MLFlowLogger": "mlflow", "CometLogger": "comet_ml"}

#: Metadata of options that cannot change a result: runs that differ in nothing else are one configuration.
_NO_EFFECT = {"affects_result": False}


@dataclasses.dataclass
class ModelOptions:
    """Model: an encoder per modality and a fusion.

    By default images, spectrograms and frames get a ResNet-18 (with the small-input stem below 96 pixels), sequences a
    Transformer, vectors a multilayer perceptron.

    Attributes:
        modalities: Modalities of the model, such as audio or [audio,text]; by default all of the data set. A model
            of one modality is trained alone, as a unimodal baseline. Samples that have none of these modalities are
            left out of training and scores.
        encoders: Encoders by modality in place of the default ones, as in --model.encoders.image mymodel.Net:width=8:
            classes or functions of yours as module.Class, or pretrained ones, hf/NAME-or-folder of Transformers and
            timm/NAME, with frozen=true and pooling=cls. One of yours whose constructor names a parameter modality gets
            the kind and shape of its input.
        fusion: Name of the fusion: concat, sum, film, gated, bigated, mmcosine or mmtm; or a class of yours,
            as module.Class.
        net: A whole model of yours in place of encoders and fusion, as module.function or module.Class: a
            MultimodalClassifier, such as bmlr.wrap gives. A parameter named data gets the data set.
        width: Channels of the ResNets' first stage, a quarter of the width of perceptrons and Transformers; by
            default the data set's.
        stem: Stem of the ResNets: imagenet or small; by default the data set's, or else chosen by the input's size.
        unimodal: How unimodal logits are read: split, ablated or auxiliary; by default the fusion's own.
        conditioner: Modality that conditions the others (film, gated, bigated); by default the first.
        depth: Layers of the Transformers.
        heads: Attention heads of a Transformer's layer.
        dropout: Probability of dropout in the Transformers.
        positions: Positions of the Transformers: sinusoidal or learned.
    """

    modalities: tuple[str, ...] | str | None = None
    encoders: dict[str, Any] | None = None
    fusion: dict[str, Any] | str = "concat"
    net: dict[str, Any] | str | None = None
    width: int | None = None
    stem: Literal["imagenet", "small"] | None = None
    unimodal: Literal["split", "ablated", "auxiliary"] | None = None
    conditioner: str | None = None
    depth: int = 2
    heads: int = 4
    dropout: float = 0.1
    positions: Literal["sinusoidal", "learned"] = "sinusoidal"

    def __post_init__(self) -> None:
        if self.modalities is not None:
            text = isinstance(self.modalities, str)
            names = str(self.modalities).split(",") if text else [str(name) for name in self.modalities]
            self.modalities = tuple(name.strip() for name in names)
        if self.encoders is not None:
            if not isinstance(self.encoders, Mapping):
                raise ValueError(f"Parameter `encoders` should be encoders by modality. Found {self.encoders!r}.")
            parts = {str(name): read_part(part, f"Encoder '{name}'") for name, part in self.encoders.items()}
            self.encoders = {name: parts[name] for name in sorted(parts)} or None
        if not (isinstance(self.fusion, str) and set(self.fusion).isdisjoint(".:")):
            self.fusion = read_part(self.fusion, "Parameter `fusion`")
        else:
            check_choice("fusion", self.fusion, fusions.available())
        if self.net is not None:
            self.net = read_part(self.net, "Parameter `net`")
            if self.encoders or self.fusion != "concat" or self.unimodal or self.conditioner:
                raise ValueError(
                    "Parameter `net` is a whole model: leave out `encoders`, `fusion`, `unimodal` and `conditioner`."
                )
        if self.width is not None:
            check_integer("width", self.width, 1)
        check_integer("depth", self.depth, 1)
        check_integer("heads", self.heads, 1)
        check_choice("positions", self.positions, ("sinusoidal", "learned"))

    def select(self, data: MultimodalData) -> MultimodalData:
        """Restrict a data set to the modalities of the model, its inputs as pretrained encoders want them.

        Raises:
            ValueError: If the data cannot follow an encoder, or a name of ``modalities`` is unknown; the message gives
                the nearest one.
        """
        wanted = {name: inputs for name, part in (self.encoders or {}).items() if (inputs := wanted_inputs(part))}
        if wanted:
            data = data.with_preprocessing(wanted)
        return data if self.modalities is None else SelectedModalities(data, self.modalities)

    def as_dict(self) -> dict[str, Any]:
        """Plain data by name."""
        entries: dict[str, Any] = plain_data(dataclasses.asdict(self))
        return entries

    @property
    def fusion_name(self) -> str:
        """Name or path of the fusion, or of the whole model."""
        part = self.net or self.fusion
        return part if isinstance(part, str) else str(part["class_path"])

    @property
    def parts(self) -> dict[str, Entry]:
        """Entries of encoders, fusion and model that are named by path, by option."""
        named = {f"encoders.{name}": part for name, part in (self.encoders or {}).items()}
        whole = {"fusion": self.fusion, "net": self.net}
        return named | {name: part for name, part in whole.items() if isinstance(part, dict)}

    @property
    def own_modules(self) -> list[str]:
        """Modules of the user's that the model needs."""
        return own_modules(self.parts.values())


@dataclasses.dataclass
class TrainerOptions:
    """Length, hardware and precision of the training.

    Attributes:
        epochs: Number of epochs; by default the data set's.
        batch_size: Samples per step and device; by default the data set's.
        accelerator: Lightning's accelerator: auto, cpu, gpu, mps, …
        devices: Number of devices, or auto.
        strategy: Lightning's strategy: auto, ddp, …
        num_nodes: Number of machines.
        precision: 32-true, 64-true, bf16-mixed or 16-mixed.
        accumulate_grad_batches: Batches per optimiser step, which ends with its pass over the data at the latest.
        gradient_clip_val: Largest norm of the gradients, together or by modality as {audio: 1.0, fusion: 5.0}; by
            default they are not clipped.
        modality_dropout: Probability that training leaves a modality out of a sample, one for all or by modality as
            {audio: 0.3}. A sample never loses all of them.
        monitor: Validation metric by which the epoch is selected, such as accuracy, macro_f1, balanced_accuracy, nll or
            ece; by default the task's primary one: accuracy, mean_average_precision of labels, mae of numbers.
        early_stopping: Epochs without a better validation score after which training stops; by default it does not.
        num_workers: Processes that load data; 0 loads in the training process.
        threads: Threads that compute in a training process; None takes OMP_NUM_THREADS, else one for a small model and
            the free processors for a large one. Another number may change the last bits of a result.
        compile: Compile the encoders with torch.compile.
        graph: Capture forward and backward of a step as a CUDA graph: auto where that can be, off nowhere. It pays for
            small models, and has not been tried on a GPU in this version; see docs/performance.md.
        progress: Show a progress bar (on a terminal) or a line per epoch (elsewhere).
        gradients: Record gradient norms and conflict per encoder in gradients.csv, for bmlr diagnose.
        checkpoint_every: Optimiser steps between checkpoints within an epoch; by default at the ends of epochs
            only. A resumed run ends the same either way, but repeats what came after its last checkpoint.
        logger: Where the numbers of training go, beside metrics.csv: classes of lightning.pytorch.loggers or of yours,
            such as WandbLogger, MLFlowLogger:experiment_name=a, or [CSVLogger,WandbLogger] for several; none for
            nothing.
        on_nonfinite: When a loss or a gradient is not finite: stop, or skip the step and count it.
        max_nonfinite: Skipped steps in a row that stop training all the same.
    """

    epochs: int | None = None
    batch_size: int | None = None
    accelerator: str = "auto"
    devices: int | str = "auto"
    strategy: str = "auto"
    num_nodes: int = 1
    precision: Precision = "32-true"
    accumulate_grad_batches: int = 1
    gradient_clip_val: dict[str, float] | float | None = None
    modality_dropout: dict[str, float] | float = 0.0
    monitor: str | None = None
    early_stopping: int | None = None
    num_workers: int = dataclasses.field(default=0, metadata=_NO_EFFECT)
    threads: int | None = dataclasses.field(default=None, metadata=_NO_EFFECT)
    compile: bool = False
    graph: Graph = "off"
    progress: bool = dataclasses.field(default=True, metadata=_NO_EFFECT)
    gradients: bool = dataclasses.field(default=False, metadata=_NO_EFFECT)
    checkpoint_every: int | None = dataclasses.field(default=None, metadata=_NO_EFFECT)
    logger: tuple[dict[str, Any] | str, ...] | dict[str, Any] | str | None = dataclasses.field(
        default="TensorBoardLogger", metadata=_NO_EFFECT
    )
    on_nonfinite: OnNonFinite = "stop"
    max_nonfinite: int = 10

    def __post_init__(self) -> None:
        optional = ("epochs", "batch_size", "threads", "checkpoint_every", "early_stopping")
        for name in (*optional, "accumulate_grad_batches", "max_nonfinite", "num_workers"):
            value = getattr(self, name)
            if not (value is None and name in optional):
                check_integer(name, value, 0 if name == "num_workers" else 1)
        check_choice("on_nonfinite", self.on_nonfinite, get_args(OnNonFinite))
        check_choice("graph", self.graph, get_args(Graph))
        if isinstance(self.gradient_clip_val, Mapping):
            norms = self.gradient_clip_val.items()
            self.gradient_clip_val = {k: check_positive(f"gradient_clip_val.{k}", v) for k, v in norms} or None
        elif self.gradient_clip_val is not None:
            check_positive("gradient_clip_val", self.gradient_clip_val)
        self.modality_dropout = check_rates("modality_dropout", self.modality_dropout)
        if self.logger is not None and self.logger != "none":
            entries = self.logger if isinstance(self.logger, (list, tuple)) else [self.logger]
            self.logger = tuple(read_part(entry, "Parameter `logger`") for entry in entries)
        else:
            self.logger = None

    @property
    def joint_clip_val(self) -> float | None:
        """Largest joint norm of the gradients; None where they are clipped by modality or not at all."""
        return None if isinstance(self.gradient_clip_val, dict) else self.gradient_clip_val

    @property
    def loggers(self) -> list[Entry]:
        """Class paths of the loggers and their arguments."""
        return list(self.logger or ())  # type: ignore[arg-type]

    @property
    def own_modules(self) -> list[str]:
        """Modules of the user's that the loggers need."""
        return own_modules(self.loggers)

    def check(self) -> None:
        """Check that loggers and their libraries exist.

        Raises:
            ValueError: If there is no such logger.
            ModuleNotFoundError: If its library is missing; the message says how to install it.
        """
        paths = [entry["class_path"] for entry in self.loggers]
        if paths == ["TensorBoardLogger"]:
            return  # the others' module takes a while to import
        from lightning.pytorch.loggers import Logger

        for path in paths:
            name = resolve_class(path, Logger).__name__  # type: ignore[type-abstract]
            library = _LIBRARIES.get(name)
            if library and importlib.util.find_spec(library) is None:
                raise ModuleNotFoundError(f"{name} needs {library}. Run: pip install {library}", name=library)

    @staticmethod
    def affecting_result(entries: Mapping[str, Any]) -> dict[str, Any]:
        """Select the ``trainer`` entries that can change a result.

        Example:
            >>> TrainerOptions.affecting_result({"epochs": 3, "progress": False, "on_nonfinite": "stop"})
            {'epochs': 3}
        """
        fields = dataclasses.fields(TrainerOptions)
        ignored = {field.name for field in fields if not field.metadata.get("affects_result", True)}
        if entries.get("monitor") is None:
            ignored.add("monitor")
        if entries.get("graph", "off") == "off":
            ignored.add("graph")
        if entries.get("on_nonfinite", "stop") == "stop":  # a run that it stops has no result
            ignored |= {"on_nonfinite", "max_nonfinite"}
        return {name: value for name, value in entries.items() if name not in ignored}


def as_options(model: ModelOptions | Callable[..., MultimodalClassifier] | None) -> ModelOptions:
    """Options of a model, or of a function or class that makes a whole one.

    Raises:
        ValueError: If it is a finished model, or a function that cannot be found again by its path.
    """
    if isinstance(model, nn.Module):
        raise ValueError(
            "A finished model trains in its own process, by bmlr.training.train(): others make it by a function at the "
            f"top of a module, which is given in its place. Found {type(model).__name__}."
        )
    if model is None or isinstance(model, ModelOptions):
        return model or ModelOptions()
    return ModelOptions(net={"class_path": model})


def fill_defaults(
    data: MultimodalData, model: ModelOptions | GivenModel, optimizer: OptimizerOptions, trainer: TrainerOptions
) -> tuple[ModelOptions | GivenModel, OptimizerOptions, TrainerOptions]:
    """Fill open options with the defaults of the data set.

    The model's modalities come in the order of the data set, and as None where they are all of it, so that equal
    models have equal configurations; encoders of other modalities are left out.

    Raises:
        ValueError: If the data set lacks a modality of the model or of an encoder, or a class is not there.
    """

    def fill(options: Any, **defaults: Any) -> Any:
        return dataclasses.replace(options, **{k: v for k, v in defaults.items() if getattr(options, k) is None})

    defaults = data.defaults
    if isinstance(model, ModelOptions):
        model = fill(_fill_parts(data, model), width=defaults.width, stem=defaults.stem)
    optimizer = fill(optimizer, lr=defaults.lr, schedule=defaults.schedule)
    trainer = fill(trainer, epochs=defaults.epochs, batch_size=defaults.batch_size)
    optimizer.check(trainer.epochs or 1)
    trainer.check()
    return model, optimizer, trainer


def _fill_parts(data: MultimodalData, model: ModelOptions) -> ModelOptions:
    for option, part in model.parts.items():  # told now rather than by every run of a grid
        if not is_pretrained(part["class_path"]):
            find_part(kind_of(option), part["class_path"])
    encoders = model.encoders or {}
    if (model.modalities is not None or encoders) and not data.modalities:
        data.prepare()  # a table tells its modalities once it is read
    for name in encoders:
        if name not in data.modalities:
            raise ValueError(
                f"Parameter `encoders` should name modalities of the data set, {', '.join(data.modalities)}. "
                f"Found '{name}'.{nearest_name(name, data.modalities)}"
            )
    kept = data.modalities if model.modalities is None else SelectedModalities(data, model.modalities).modalities
    return dataclasses.replace(
        model,
        modalities=None if len(kept) == len(data.modalities) else tuple(kept),
        encoders={u: with_checkpoint(part, data.modalities[u].kind) for u, part in encoders.items() if u in kept},
    )
