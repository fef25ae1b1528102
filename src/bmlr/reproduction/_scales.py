"""Scales of a reproduction."""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import bmlr.data
import bmlr.methods
from bmlr._checks import check_choice
from bmlr.benchmark.specification import parse_data, scaled_method
from bmlr.config import ModelOptions, OptimizerOptions, TrainerOptions
from bmlr.data import MultimodalData
from bmlr.reproduction._paper import Experiment
from bmlr.runs import RunRecord
from bmlr.tables import Table

ScaleName = Literal["paper", "small"]
#: Data sets that ``bmlr prepare`` makes.
_PREPARED = ("crema-d", "kinetics-sounds", "ave", "mosi", "mosei")


@dataclasses.dataclass(frozen=True)
class Scale:
    """Settings of a reproduction.

    Attributes:
        epochs: Epochs.
        batch_size: Samples per step.
        lr: Learning rate of Adam; None takes the data set's.
        width: Channels of the ResNets' first stage; None takes the data set's.
        imagenet_from: Pixels of the shorter side from which all ResNets get ImageNet's stem, which costs a quarter of
            the small one; None takes it where the model's default does.
        single_passes: Whether the passes over the data that a method counts within an epoch are one of each kind.
    """

    epochs: int
    batch_size: int
    lr: float | None
    width: int | None
    imagenet_from: int | None
    single_passes: bool


#: ``paper``: Sec. IV-A2, ResNet-18 of full width and Transformers. ``small``: the same pipeline in minutes on a CPU.
SCALES: dict[str, Scale] = {
    "paper": Scale(epochs=70, batch_size=64, lr=5e-5, width=None, imagenet_from=None, single_passes=False),
    "small": Scale(epochs=10, batch_size=64, lr=1e-3, width=4, imagenet_from=24, single_passes=True),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Scale, data, seeds and options of a reproduction.

    Attributes:
        scale: paper or small.
        data: Data sets as written, in place of the experiments' own; empty takes those, or digits at small scale.
        root: Folder of prepared data, for data sets that are named without one.
        tuned: Folders of ``bmlr tune``, whose best parameters are taken for the data set they were searched on.
        seeds: Seeds.
        model: Options of the model.
        optimizer: Options of the optimiser.
        trainer: Options of the trainer.
    """

    scale: ScaleName = "small"
    data: Sequence[str] = ()
    root: Path | None = None
    tuned: Sequence[Path] = ()
    seeds: Sequence[int] = (0, 1, 2)
    model: ModelOptions = dataclasses.field(default_factory=ModelOptions)
    optimizer: OptimizerOptions = dataclasses.field(default_factory=OptimizerOptions)
    trainer: TrainerOptions = dataclasses.field(default_factory=TrainerOptions)

    def __post_init__(self) -> None:
        check_choice("scale", self.scale, SCALES)


@dataclasses.dataclass(frozen=True)
class ReproduceResult:
    """Tables, runs and files of a reproduction.

    Attributes:
        tables: Tables by experiment.
        records: All runs.
        files: What was written.
        notes: Figures that could not be drawn, with the reason.
    """

    tables: Mapping[str, Table]
    records: Sequence[RunRecord]
    files: Sequence[Path]
    notes: Sequence[str]


def data_names(experiment: Experiment, settings: Settings) -> list[str]:
    """The data sets of an experiment, as written."""
    if settings.scale == "small":
        return list(settings.data or ["digits"])
    if not settings.data:
        return list(experiment.data)
    names = [text for text in settings.data if _plain_name(text) in experiment.data]
    if not names:
        raise ValueError(
            f"{experiment.name} is about {', '.join(experiment.data)} at the paper's scale. "
            f"Found {', '.join(settings.data)}; other data sets take --scale small."
        )
    return names


def digits_note(experiments: Sequence[Experiment], settings: Settings) -> str:
    """Says that the embedded digits stand in for the paper's data; "" where data were named."""
    if settings.scale != "small" or settings.data:
        return ""
    names = dict.fromkeys(name for experiment in experiments for name in experiment.data)
    ignored = " --root is of no use for them." if settings.root is not None else ""
    return (
        f"No --data: these are runs on the embedded digits, not on the paper's data ({', '.join(names)}).{ignored} "
        "--data crema-d --root FOLDER takes its data, --scale paper its data and settings."
    )


def _plain_name(text: str) -> str:
    return text.partition(":")[0]


def make_all_data(experiments: Sequence[Experiment], settings: Settings) -> dict[str, MultimodalData]:
    """The data sets of all experiments, by how they are written."""
    texts = list(dict.fromkeys(text for experiment in experiments for text in data_names(experiment, settings)))
    data = {text: _make_data(text, settings) for text in texts}
    names = [experiment.name for experiment in data.values()]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"Option --data should name each data set once. Found {twice[0]} twice.")
    return data


def _make_data(text: str, settings: Settings) -> MultimodalData:
    """A data set, with folder and protocol of the settings by default."""
    name, _, parameters = text.partition(":")
    written = {item.partition("=")[0].strip() for item in parameters.split(",") if item}
    extra = []
    if "." not in name:
        accepted = inspect.signature(bmlr.data.get(name).__init__).parameters
        root = settings.root or os.environ.get("BMLR_DATA") or ("prepared" if name in _PREPARED else None)
        if "root" in accepted and "root" not in written and root is not None:
            extra.append(f"root={root}")
        if settings.scale == "paper" and "protocol" in accepted and "protocol" not in written:
            extra.append("protocol=paper")
    complete = ",".join([*([parameters] if parameters else []), *extra])
    return parse_data(f"{name}:{complete}" if complete else name)


def check_data(data: Iterable[MultimodalData]) -> None:
    """Raise before the first run if data are missing, naming all."""
    missing = []
    for dataset in data:
        try:
            dataset.prepare()
        except FileNotFoundError as error:
            hint = ""
            if dataset.name in _PREPARED and "bmlr prepare" not in str(error):
                hint = f" bmlr prepare {dataset.name} SOURCE {getattr(dataset, 'root', None) or 'DEST'} makes it."
            missing.append(f"{dataset.name}: {str(error).rstrip('.')}.{hint}")
    if missing:
        raise FileNotFoundError(" ".join(missing) + " Name another folder with --root, or fewer data sets with --data.")


def method_at(scale: Scale, name: str, epochs: int) -> str:
    """A method's specification for ``epochs`` epochs of data passes at a scale."""
    of = None if scale is SCALES["paper"] else SCALES["paper"].epochs
    return scaled_method(name, epochs, of=of, single_passes=scale.single_passes)


def scaled_options(settings: Settings, data: MultimodalData) -> tuple[ModelOptions, OptimizerOptions, TrainerOptions]:
    """The options, completed by the settings of the scale."""
    scale = SCALES[settings.scale]
    model, optimizer, trainer = settings.model, settings.optimizer, settings.trainer
    return (
        dataclasses.replace(model, width=model.width or scale.width, stem=model.stem or file_stem(scale, data)),
        dataclasses.replace(optimizer, lr=optimizer.lr or scale.lr),
        dataclasses.replace(
            trainer, epochs=trainer.epochs or scale.epochs, batch_size=trainer.batch_size or scale.batch_size
        ),
    )


def file_stem(scale: Scale, data: MultimodalData) -> Literal["imagenet"] | None:
    """Stem of the ResNets; None leaves the choice open."""
    kinds = ("image", "spectrogram", "frames")
    sides = [min(modality.shape[-2:]) for modality in data.modalities.values() if modality.kind in kinds]
    fits = scale.imagenet_from is not None and sides and min(sides) >= scale.imagenet_from
    return "imagenet" if fits else None
