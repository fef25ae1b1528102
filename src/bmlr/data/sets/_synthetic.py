"""Synthetic modalities with known Bayes accuracy."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor

from bmlr._checks import check_choice, check_integer, check_present, nearest_name
from bmlr.data._base import (
    SPLITS,
    ArraySplit,
    Modality,
    MultimodalData,
    Preprocessing,
    SplitName,
    TrainingDefaults,
    check_files,
)
from bmlr.data.readers._files import check_file
from bmlr.data.sets._gaussians import (
    CouplingMap,
    random_rotation,
    random_waves,
    separation_of,
    simplex,
    simplex_accuracy,
)

_PURPOSES = ("targets", "missing", "latents", "rotation", "coupling", "label noise")  # of the streams of random numbers
_MAX_MODALITIES = 12  # the Bayes accuracy with missing modalities is a sum over all their subsets
_MAX_LAYERS = 20  # float32 inputs still give the latents back to 0.002 of the noise
_HARD = 6  # layers of every modality but the first, where no difficulty is given
_ACCURACY = {"audio": 0.9, "video": 0.9}
_SAMPLES = {"train": 4000, "val": 1000, "test": 2000}
_T = TypeVar("_T")


class Synthetic(MultimodalData):
    r"""Gaussian classes seen through several modalities, with known Bayes accuracy.

    The class y is uniform over C classes. Given y, the modalities are independent; modality u has a latent

    .. math::
        z^u = s_u\,v_y + \varepsilon, \qquad \varepsilon \sim \mathcal{N}(0, I_D),

    where v_1, …, v_C are the vertices of a regular simplex of edge 1 in the first C − 1 dimensions, so that all class
    means are s_u apart; the other D − C + 1 dimensions are noise. The Bayes accuracy of equidistant Gaussians is

    .. math::
        A(s) = \int \varphi(t)\,\Phi\!\left(t + \tfrac{s}{\sqrt2}\right)^{C-1} dt,

    φ and Φ being the density and distribution function of the standard normal distribution. For the simplex can be
    placed at s/√2 times the unit vectors of C dimensions, where the best decision is the largest of C independent
    Gaussians of which one has mean s/√2 and the others 0. Modalities together are a simplex again: squared distances
    add, so that all of them reach :math:`A(\sqrt{\sum_u s_u^2})`. What is given is A(s_u), as ``accuracy``; s_u is
    solved for.

    The input is the latent sent through a fixed, random, invertible map: a rotation for ``difficulty`` 0, so that a
    linear classifier is the best one; each further layer bends the space by an additive coupling,

    .. math::
        (a, b) \mapsto \left(a,\; \frac{b + \sqrt2\,\sin(W a + \phi)}{\sqrt2}\right),

    (a, b) being the two halves of the dimensions, the rows of W unit vectors and φ phases, and rotates again. A map
    that can be undone loses nothing: the Bayes accuracy stays, while the modality becomes slower to learn.

    By default two modalities are equally informative and ``video`` is harder, so that joint training is unbalanced.
    Validation accuracy in %, mean of epochs 18 to 20 and of three seeds, concatenation, batch 64, Adam with 1e-3:

    ================  ===========  ===========  ==========  ==============  ==============
    layers of video   audio alone  video alone  multimodal  audio in joint  video in joint
    ================  ===========  ===========  ==========  ==============  ==============
    0                 89.0         87.8         98.1        85.5            83.2
    3                 89.0         80.1         96.5        85.2            68.2
    6 (the default)   89.0         70.3         94.6        85.4            50.0
    Bayes accuracy    90.0         90.0         98.9        90.0            90.0
    ================  ===========  ===========  ==========  ==============  ==============

    by ``python scripts/choose_degradation.py --data synthetic --epochs 20 --seeds 0 1 2 --width 16 --candidates
    "difficulty={video: 0}" "difficulty={video: 3}" ""``; plain joint and unimodal training only were looked at.

    A sample can lack modalities (``missing``), which are then zero and marked in the batch's ``present``.

    Labels of the training split can be wrong (``label_noise``), those of validation and test never are: accuracies
    there, the Bayes accuracy and the posterior are of the true class.

    Every accuracy here is an expectation. On N test samples even the best classifier is off by a standard error of
    :math:`\sqrt{A(1-A)/N}`, in either direction.

    Args:
        accuracy: Bayes accuracy of each modality by name, in [1 / num_classes, 1): its information. The lower end is
            a modality that says nothing.
        difficulty: Number of layers of each modality's map, at most 20; 0 for names left out. By default 0 for the
            first modality and 6 for all others.
        num_classes: Number of classes C.
        dimensions: Width D of every modality's input, at least ``num_classes − 1`` and 2.
        samples: Samples per split (``train``, ``val``, ``test``); the defaults stay for those left out.
        missing: Probability in [0, 1) that a sample lacks a modality, by name; 0 for names left out. Modalities are
            lacked independently, under the condition that a sample has at least one, which makes the shares lower
            than these if all modalities can be missing.
        label_noise: Probability that a label of the training split is replaced by one of the other classes, each
            equally likely; at least 0 and below 1 − 1 / C, so that the true class stays the likeliest.
        seed: Seed of maps and samples. Each split has random numbers of its own, and each modality, by its name: what
            one modality shows does not depend on the others.

    Attributes:
        separation: Distance s_u of the class means of each modality, by name.
        bayes_accuracy: The best possible accuracy from each modality (where it is present), by name, and as ``fused``
            that from all which a sample has.

    Raises:
        ValueError: If a parameter is out of its range.

    Example:
        >>> import bmlr.data
        >>> data = bmlr.data.create("synthetic", accuracy={"audio": 0.8, "text": 0.6}, missing={"text": 0.5})
        >>> {name: round(value, 3) for name, value in data.bayes_accuracy.items()}
        {'audio': 0.8, 'text': 0.6, 'fused': 0.853}
        >>> batch = data.split("test").batch(range(2000))
        >>> best = data.posterior(batch.inputs, batch.present)["fused"].argmax(1)
        >>> found = float((best == batch.targets).float().mean())
        >>> abs(found - data.bayes_accuracy["fused"]) < 0.03  # three standard errors are 0.024
        True
    """

    name: ClassVar[str] = "synthetic"
    defaults: TrainingDefaults = TrainingDefaults(epochs=20, batch_size=64, lr=1e-3, width=16)

    def __init__(
        self,
        *,
        accuracy: dict[str, float] = _ACCURACY,
        difficulty: dict[str, int] | None = None,
        num_classes: int = 10,
        dimensions: int = 16,
        samples: dict[str, int] = _SAMPLES,
        missing: dict[str, float] | None = None,
        label_noise: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.num_classes = check_integer("num_classes", num_classes, 2)
        self.dimensions = check_integer("dimensions", dimensions, max(2, num_classes - 1))
        self.seed = check_integer("seed", seed, 0)
        self.accuracy = _checked_accuracy(accuracy, num_classes)
        self.difficulty = _checked_difficulty(difficulty, list(self.accuracy))
        self.samples = {**_SAMPLES, **_checked_names("samples", samples, SPLITS)}
        for name, count in self.samples.items():
            check_integer(f"samples['{name}']", count, 1)
        self.missing = dict.fromkeys(self.accuracy, 0.0) | _checked_names("missing", missing or {}, self.accuracy)
        for name, rate in self.missing.items():
            if not 0 <= rate < 1:
                raise ValueError(f"Parameter `missing['{name}']` should lie in [0, 1). Found {rate}.")
        if not 0 <= label_noise < 1 - 1 / num_classes:  # NaN fails this too
            raise ValueError(
                f"Parameter `label_noise` should lie in [0, {1 - 1 / num_classes:g}), so that of {num_classes} classes "
                f"the true one stays the likeliest. Found {label_noise}."
            )
        self.label_noise = float(label_noise)
        self.protocol = "clean"
        self.classes = tuple(str(label) for label in range(num_classes))
        self.modalities = {name: Modality("vector", (dimensions,)) for name in self.accuracy}
        self.separation = {name: separation_of(value, num_classes) for name, value in self.accuracy.items()}
        self._patterns = _presence_patterns(self.missing)
        self.bayes_accuracy = {**self.accuracy, "fused": sum(p * self.bayes_of(u) for u, p in self._patterns.items())}
        self._maps = {name: self._make_map(name) for name in self.accuracy}
        self._vertices = simplex(num_classes)

    def prepare(self) -> None:
        """Do nothing: a split is drawn when it is asked for."""

    def split(self, name: SplitName) -> ArraySplit:
        """One split; there are no groups."""
        check_choice("name", name, SPLITS)
        count = self.samples[name]
        targets = self._rng("targets", split=name).integers(self.num_classes, size=count)
        present = self._present(name)
        inputs = {}
        for modality, layers in self._maps.items():
            latents = self._rng("latents", modality, split=name).standard_normal((count, self.dimensions))
            latents[:, : self.num_classes - 1] += self.separation[modality] * self._vertices[targets]
            values = layers(latents).astype(np.float32)
            if modality in present:
                values[~present[modality]] = 0
            inputs[modality] = values
        if name == "train" and self.label_noise:
            targets = self._with_wrong_labels(targets)
        return ArraySplit(inputs, targets, present=present or None)

    def bayes_of(self, modalities: Iterable[str]) -> float:
        """Bayes accuracy from these modalities together; 1 / C without any.

        Raises:
            ValueError: If a name is unknown.
        """
        names = set(modalities)
        _checked_names("modalities", dict.fromkeys(names, 0), self.accuracy)
        return simplex_accuracy(math.hypot(*(self.separation[name] for name in names)), self.num_classes)

    def posterior(self, inputs: Mapping[str, Tensor], present: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """True class probabilities given the inputs, those of the Bayes classifier.

        Args:
            inputs: Inputs of some or all modalities by name, shape (B, D) each, as the splits give them.
            present: Which samples have which modality, a boolean mask of shape (B,) per name.

        Returns:
            Shape (B, C) and float64 each: given every modality alone, by name (1 / C where it is absent), and given
            all that the sample has, as ``fused``.

        Raises:
            ValueError: If a name is unknown or a shape does not fit.
        """
        _checked_names("inputs", dict(inputs), self.accuracy)
        sizes = {tuple(x.shape) for x in inputs.values()}
        if len(sizes) != 1 or any(len(size) != 2 or size[1] != self.dimensions for size in sizes):
            shapes = {name: tuple(x.shape) for name, x in inputs.items()}
            raise ValueError(f"`inputs` should have shape (B, {self.dimensions}) each, with one B. Found {shapes}.")
        check_present(present, self.accuracy, next(iter(sizes))[0])
        scores = {}
        for name, x in inputs.items():
            latents = self._maps[name].inverse(x.detach().cpu().numpy().astype(np.float64))
            score = torch.from_numpy(
                latents[:, : self.num_classes - 1] @ (self.separation[name] * self._vertices).T
            )  # log likelihoods but for a term that all classes share, for the vertices are equally far from the centre
            mask = (present or {}).get(name)
            scores[name] = score if mask is None else score.masked_fill(~mask.cpu()[:, None], 0)
        scores["fused"] = torch.stack(list(scores.values())).sum(0)
        return {name: score.softmax(1) for name, score in scores.items()}

    def load_files(self, files: Mapping[str, Path], modalities: Collection[str] | None = None) -> dict[str, Tensor]:
        """Inputs of one new sample, shape (1, D) each.

        Args:
            files: For every modality a ``.npy`` file that holds one vector of D numbers, as a row of a split's inputs.
                One that samples may lack may be left out, and is given as zeros.
            modalities: Modalities to read; None reads all.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If a file does not hold such a vector, or ``files`` does not name what is needed.
        """
        names = modalities or self.modalities
        check_files(files, names, optional=[name for name, rate in self.missing.items() if rate])
        return {
            name: torch.from_numpy(_read_vector(Path(files[name]), self.dimensions))[None]
            if name in files
            else torch.zeros(1, self.dimensions)
            for name in names
        }

    def preprocessing(self) -> Preprocessing:
        """Classes and modalities, which the parameters decide."""
        return Preprocessing(self.classes, self.modalities)

    def restore_preprocessing(self, preprocessing: Preprocessing) -> None:
        """Nothing is to be restored."""

    def _rng(
        self, purpose: str, modality: str = "", *numbers: int, split: SplitName | None = None
    ) -> np.random.Generator:
        """Generator for one split, purpose and modality.

        It follows from the names alone: other modalities do not change it.
        """
        name = int.from_bytes(hashlib.sha256(modality.encode()).digest()[:8], "little")
        split_number = 0 if split is None else 1 + SPLITS.index(split)
        return np.random.default_rng([self.seed, split_number, _PURPOSES.index(purpose), name, *numbers])

    def _make_map(self, modality: str) -> CouplingMap:
        layers = self.difficulty[modality]
        half = self.dimensions // 2
        return CouplingMap(
            [random_rotation(self._rng("rotation", modality, n), self.dimensions) for n in range(layers + 1)],
            [random_waves(self._rng("coupling", modality, n), half, self.dimensions - half) for n in range(layers)],
        )

    def _with_wrong_labels(self, targets: np.ndarray) -> np.ndarray:
        """Targets of the training split, shape (N,), some replaced by another class."""
        draws = self._rng("label noise", split="train").random((len(targets), 2))  # a row each: fewer are the first
        steps = 1 + (draws[:, 1] * (self.num_classes - 1)).astype(targets.dtype)
        return np.where(draws[:, 0] < self.label_noise, (targets + steps) % self.num_classes, targets)

    def _present(self, split: SplitName) -> dict[str, np.ndarray]:
        """Masks of the present samples, shape (N,).

        Modalities that are never missing have none.
        """
        patterns = list(self._patterns)
        draws = self._rng("missing", split=split).random(self.samples[split])
        ends = np.cumsum(list(self._patterns.values()))[:-1]  # without the last, which rounding may leave below 1
        pattern_of_sample = np.searchsorted(ends, draws, side="right")
        return {
            name: np.array([name in pattern for pattern in patterns])[pattern_of_sample]
            for name, rate in self.missing.items()
            if rate > 0
        }


def _presence_patterns(missing: Mapping[str, float]) -> dict[frozenset[str], float]:
    """Probability of each set of present modalities, at least one."""
    patterns = {}
    for present in itertools.product((True, False), repeat=len(missing)):
        names = sorted(missing)  # the order of the arguments must not matter
        factors = [1 - missing[name] if has else missing[name] for name, has in zip(names, present, strict=True)]
        if any(present) and math.prod(factors) > 0:
            patterns[frozenset(itertools.compress(names, present))] = math.prod(factors)
    total = sum(patterns.values())
    return {names: probability / total for names, probability in patterns.items()}


def _checked_names(argument: str, entries: Mapping[str, _T], allowed: Iterable[str]) -> dict[str, _T]:
    allowed = list(allowed)
    for name in entries:
        if name not in allowed:
            raise ValueError(
                f"Parameter `{argument}` should name only {', '.join(allowed)}. "
                f"Found '{name}'.{nearest_name(name, allowed)}"
            )
    return dict(entries)


def _checked_accuracy(accuracy: Mapping[str, float], num_classes: int) -> dict[str, float]:
    if not 2 <= len(accuracy) <= _MAX_MODALITIES:
        raise ValueError(
            f"Parameter `accuracy` should name 2 to {_MAX_MODALITIES} modalities. Found {len(accuracy)}: "
            f"{', '.join(accuracy)}."
        )
    for name, value in accuracy.items():
        if not (isinstance(name, str) and name.isidentifier()) or name == "fused":
            raise ValueError(
                "Parameter `accuracy` should name modalities by letters, digits and '_', and none 'fused'. "
                f"Found {name!r}."
            )
        if not 1 / num_classes <= value < 1:  # NaN fails this too
            raise ValueError(
                f"Parameter `accuracy['{name}']` should lie in [{1 / num_classes}, 1), from chance among "
                f"{num_classes} classes up. Found {value}."
            )
    return {name: float(value) for name, value in accuracy.items()}


def _checked_difficulty(difficulty: Mapping[str, int] | None, names: list[str]) -> dict[str, int]:
    if difficulty is None:
        return {name: _HARD if index else 0 for index, name in enumerate(names)}
    entries = _checked_names("difficulty", difficulty, names)
    for name, layers in entries.items():
        if check_integer(f"difficulty['{name}']", layers, 0) > _MAX_LAYERS:
            raise ValueError(f"Parameter `difficulty['{name}']` should be at most {_MAX_LAYERS}. Found {layers}.")
    return {name: entries.get(name, 0) for name in names}


def _read_vector(path: Path, dimensions: int) -> np.ndarray:
    """Read a vector (D,) from a ``.npy`` file, float32."""
    check_file(path, "file")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)  # mapped: a size the header invents takes no memory
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path} cannot be read as a .npy file: {error}") from error
    if not isinstance(array, np.ndarray) or array.shape != (dimensions,) or array.dtype.kind not in "fiu":
        content = f"shape {array.shape} of {array.dtype}" if isinstance(array, np.ndarray) else "an archive of arrays"
        raise ValueError(f"{path} should hold a vector of {dimensions} real numbers. Found {content}.")
    if not np.all(np.abs(array.astype(np.float64)) <= np.finfo(np.float32).max):  # NaN fails this too
        raise ValueError(f"{path} should hold numbers that float32 can. Found NaN, infinity or larger ones.")
    return array.astype(np.float32)
