"""Interface of a data set: modalities, classes, splits and batches."""

from __future__ import annotations

import dataclasses
import inspect
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from bmlr._checks import nearest_name
from bmlr.batch import Batch
from bmlr.encoders.pretrained import EncoderInput
from bmlr.tasks import Multiclass, Task

SplitName = Literal["train", "val", "test"]
SPLITS: tuple[SplitName, ...] = get_args(SplitName)
Kind = Literal["image", "spectrogram", "frames", "sequence", "vector", "text", "waveform"]


@dataclasses.dataclass(frozen=True)
class Modality:
    """Form of one modality's input; it decides the default encoder.

    Attributes:
        kind: ``image`` and ``spectrogram`` (C, H, W), ``frames`` (T, C, H, W), ``sequence`` (T, d), ``vector`` (d),
            ``text`` (T) indices of tokens, ``waveform`` (N) samples of sound. In a sequence a time step whose features
            are all zero is padding.
        shape: Shape of one sample.
        num_tokens: Number of different indices of a text; of the others 0.
        padding: Index that fills up shorter texts.
    """

    kind: Kind
    shape: tuple[int, ...]
    num_tokens: int = 0
    padding: int = 0

    @classmethod
    def from_dict(cls, entries: Mapping[str, Any]) -> Modality:
        """The form that ``dataclasses.asdict`` gave."""
        return cls(**{**entries, "shape": tuple(entries["shape"])})


@dataclasses.dataclass(frozen=True)
class TrainingDefaults:
    """Training settings of a data set, used unless given.

    The defaults are the paper's.

    Attributes:
        epochs: Number of epochs.
        batch_size: Samples per step and device.
        lr: Learning rate of Adam.
        width: Channels of the first stage of the default ResNet-18 encoders; other encoders in proportion.
        stem: Stem of these encoders; None chooses it by the input's size.
        schedule: Schedule of the learning rate.
    """

    epochs: int = 70
    batch_size: int = 64
    lr: float = 5e-5
    width: int = 64
    stem: Literal["imagenet", "small"] | None = None
    schedule: Literal["constant", "step", "multistep", "cosine"] = "constant"


class Split(ABC):
    """One split of a data set.

    It gives whole batches, so that memory-mapped arrays are read once per batch.

    Attributes:
        targets: Class indices of all samples, shape (N,), int64, or what else :attr:`MultimodalData.task` takes.
        groups: Group of each sample (speaker, actor, source video), never shared between splits under protocol
            ``clean``; None without groups.
        present: Mask of the samples that have each modality, a boolean array of shape (N,) per name; None or a name
            left out means all. Training a subset of the modalities leaves out the samples that have none of it.
        left_out: Number of samples that were left out so.
    """

    targets: Tensor
    present: Mapping[str, np.ndarray] | None = None
    groups: Sequence[str] | None = None
    left_out: int = 0

    def __len__(self) -> int:
        return len(self.targets)

    @abstractmethod
    def batch(self, indices: Sequence[int], *, augment: bool = False, seed: int = 0) -> Batch:
        """The samples at ``indices``, in their order.

        Args:
            indices: Positions in this split.
            augment: Apply the random transforms of training. They depend on ``seed`` and the sample's position
                alone, never on the batch it is in.
            seed: Seed of the random transforms; training gives another for every epoch.
        """

    def late_batch(self, indices: Sequence[int], *, augment: bool = False, seed: int = 0) -> Batch:
        """The same batch, whose inputs may be left to be finished by :meth:`bmlr.Batch.to` on a GPU.

        A split whose samples are stored in a smaller form overrides this.

        Args:
            indices: Positions in this split.
            augment: Apply the random transforms of training.
            seed: Seed of the random transforms.
        """
        return self.batch(indices, augment=augment, seed=seed)


class ArraySplit(Split):
    """A split held in arrays, in memory or memory-mapped.

    Args:
        inputs: One array per modality, first dimension N; given to the model as float32.
        targets: Class indices, shape (N,), or targets of another task; floating-point ones become float32.
        present: Mask of the samples that have each modality, a boolean array of shape (N,) per name.
        groups: Group of each sample.

    Raises:
        ValueError: If the lengths differ.

    Example:
        >>> import numpy as np
        >>> split = ArraySplit({"audio": np.zeros((3, 4)), "text": np.ones((3, 2))}, np.array([0, 1, 0]))
        >>> batch = split.batch([2, 1])
        >>> batch.targets, batch.inputs["text"].shape
        (tensor([0, 1]), torch.Size([2, 2]))
    """

    def __init__(
        self,
        inputs: Mapping[str, np.ndarray],
        targets: np.ndarray,
        *,
        present: Mapping[str, np.ndarray] | None = None,
        groups: Sequence[str] | None = None,
    ) -> None:
        lengths = {name: len(x) for name, x in {**inputs, **(present or {}), "targets": targets}.items()}
        if groups is not None:
            lengths["groups"] = len(groups)
        if len(set(lengths.values())) > 1:
            raise ValueError(f"All arrays of a split should have one length. Found {lengths}.")
        self.inputs = dict(inputs)
        kind = np.float32 if np.issubdtype(np.asarray(targets).dtype, np.floating) else np.int64
        self.targets = torch.from_numpy(np.asarray(targets, dtype=kind))
        self.present = None if present is None else dict(present)
        self.groups = groups

    def batch(self, indices: Sequence[int], *, augment: bool = False, seed: int = 0) -> Batch:
        """The samples at ``indices``; arrays have no random transforms."""
        rows = np.asarray(indices, dtype=np.int64)
        return Batch(
            {name: torch.from_numpy(np.asarray(x[rows], dtype=np.float32)) for name, x in self.inputs.items()},
            self.targets[rows],
            None if self.present is None else {u: torch.from_numpy(x[rows]) for u, x in self.present.items()},
            torch.from_numpy(rows),
        )


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """What new files need to become inputs of a model, without the data set itself.

    Every run keeps it, so that it predicts where its training data is gone.

    Attributes:
        classes: Names of the classes, in the order of the targets.
        modalities: Form of each modality's input, by name.
        entries: Further entries of the data set, as JSON.
        arrays: Statistics and the like, by name.
    """

    classes: tuple[str, ...]
    modalities: Mapping[str, Modality]
    entries: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    arrays: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


class MultimodalData(ABC):
    """A data set with its protocol.

    Making one reads its parameters only; :meth:`prepare` reads and checks files.

    Attributes:
        name: Name on the command line and in tables.
        protocol: ``clean`` (groups never shared between splits) or ``paper`` (the published split).
        classes: Names of the classes, in the order of the targets.
        modalities: Form of each modality's input, by name.
    """

    name: ClassVar[str]
    #: The paper's settings, where a data set does not say otherwise.
    defaults: TrainingDefaults = TrainingDefaults()
    #: Parameters that say where files are: the same files elsewhere are the same data.
    location_parameters: ClassVar[frozenset[str]] = frozenset({"root", "cache"})
    protocol: str
    classes: tuple[str, ...]
    modalities: dict[str, Modality]

    @abstractmethod
    def prepare(self) -> None:
        """Read, check and cache the data, once per object.

        Raises:
            FileNotFoundError: If a folder or file is missing; the message says where it was looked for.
            ValueError: If a file is not what it should be; the message names it.
        """

    @abstractmethod
    def split(self, name: SplitName) -> Split:
        """One split of the prepared data; a run asks for each once."""

    def load_files(self, files: Mapping[str, Any], modalities: Collection[str] | None = None) -> dict[str, Tensor]:
        """Inputs of one new sample from its files, shape (1, …).

        They are made as those of training were. A data set whose samples may lack a modality lets its file be
        left out and gives zeros in its place.

        Args:
            files: A file per modality, a path; or a text itself, a string.
            modalities: Modalities of the model, which need a file; None takes all of the data set.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If a file cannot be read as this modality, or a modality has no file; the message names it. Or
                if the data set reads no files, as one that does not override this.
        """
        raise ValueError(f"The data set '{self.name}' reads no new files: its class has no method load_files.")

    @property
    def task(self) -> Task:
        """What the targets are; classes, where a data set does not say otherwise."""
        return Multiclass(len(self.classes))

    @property
    def hparams(self) -> dict[str, Any]:
        """Parameters of the constructor, by name."""
        names = inspect.signature(type(self).__init__).parameters
        return {name: getattr(self, name) for name in names if name != "self" and hasattr(self, name)}

    @property
    def content_digest(self) -> str | None:
        """SHA-256 checksum of the prepared samples, wherever they lie.

        Files, and so paths, do not change it. None where the parameters alone make the data.

        Raises:
            FileNotFoundError: If the data is missing.
            ValueError: If the data cannot be read.
        """
        return None

    def with_preprocessing(self, wanted: Mapping[str, EncoderInput]) -> MultimodalData:
        """The data set with inputs as pretrained encoders want them.

        A data set that decodes its samples anew for every batch overrides this; the others have made their inputs.

        Args:
            wanted: What the encoder of a modality wants, by name.

        Raises:
            ValueError: If the data cannot follow; the message says what differs.
        """
        for name, inputs in wanted.items():
            raise ValueError(self._cannot_follow(name, inputs))
        return self

    def _cannot_follow(self, name: str, wanted: EncoderInput, reason: str = "are made once, in its own way") -> str:
        modality = self.modalities[name]
        return (
            f"The encoder of '{name}' wants {wanted}. Inputs of {self.name} are of kind '{modality.kind}' and shape "
            f"{modality.shape}, and {reason}. To take them as they are, add preprocessing=ignore to the encoder."
        )

    def preprocessing(self) -> Preprocessing | None:
        """What :meth:`load_files` needs of the prepared data.

        None, the default, where it needs all of it: runs then predict only where the data is.
        """
        return None

    def restore_preprocessing(self, preprocessing: Preprocessing) -> None:
        """Let :meth:`load_files` work without the data, by what :meth:`preprocessing` gave.

        The data set must not be prepared after that; splits are those of another object.
        """
        raise NotImplementedError(f"{type(self).__name__} gives no preprocessing.")

    def constant_score(self, split: SplitName = "test") -> float:
        """Primary metric of the best constant prediction; of classes the fraction of the most frequent one."""
        return self.task.constant_score(self.split(split).targets)


def check_files(files: Collection[str], modalities: Collection[str], optional: Collection[str] = ()) -> None:
    """Check for a file of every modality that no training sample lacks.

    Args:
        files: Modalities of the files.
        modalities: Modalities that are read.
        optional: Those that some training sample lacks.

    Raises:
        ValueError: If one is missing or unknown, or there is none.
    """
    unknown = next((name for name in files if name not in modalities), None)
    if unknown is not None or not files:
        found = "none." if unknown is None else f"'{unknown}'.{nearest_name(unknown, modalities)}"
        raise ValueError(f"`files` should name files of {', '.join(modalities)}. Found {found}")
    needed = [name for name in modalities if name not in files and name not in optional]
    if needed:
        raise ValueError(
            f"`files` should name a file of {', '.join(needed)}: no sample of the training data lacks it. "
            f"Found {', '.join(files)}."
        )
