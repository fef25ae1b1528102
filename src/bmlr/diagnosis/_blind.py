"""Blind-modality test: whether a score changes when a modality is changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
from torch import Tensor, nn

from bmlr._checks import check_integer, check_non_negative
from bmlr._modes import module_mode
from bmlr.batch import Batch, named_tensors
from bmlr.diagnosis._predictions import check_batch
from bmlr.diagnosis._removal import modules_of
from bmlr.diagnosis._replacements import RemovalMode, RemovalOptions, Replacements, is_mask, make_replacements
from bmlr.diagnosis._resampling import IntervalEstimate, ResampledMeans
from bmlr.diagnosis._sample_scores import (
    HOW,
    InputBatches,
    SampleScore,
    ScoreAndAnswer,
    ScoreCollector,
    classifier_functions,
    pairs_of,
    plain_functions,
)
from bmlr.diagnosis._tables import plain_values
from bmlr.methods import Method
from bmlr.model import MultimodalClassifier
from bmlr.tables import Cell, Table, format_count

Status: TypeAlias = Literal["used", "blind", "no gain", "harmful", "disturbed", "unclear"]
#: Ways of changing a modality, with what they do to its input.
WAYS: dict[str, RemovalMode] = {"shuffled": "shuffle", "removed": "mean", "noise": "noise"}
#: Fewer samples have no verdict.
_MIN_SAMPLES = 30


@dataclasses.dataclass(frozen=True)
class WayEffect:
    """Effect of one way of changing a modality.

    Attributes:
        score: Mean score with the modality changed.
        worse_by: By how much the mean score gets worse; negative if it gets better.
        sample_change: Mean absolute change of the scores of single samples, which does not cancel.
        answer_change: Mean absolute change of the answers' entries; of classes and other integers, the fraction of
            entries that change. None without answers.
    """

    score: IntervalEstimate
    worse_by: IntervalEstimate
    sample_change: IntervalEstimate
    answer_change: IntervalEstimate | None = None


@dataclasses.dataclass(frozen=True)
class BlindModalityTest:
    """Whether a model looks at its modalities.

    Attributes:
        subject: Model and data, for captions.
        score_name: Name of the score, such as ``loss``.
        samples: Number of samples.
        score: Mean score with the inputs as they are.
        margin: Smallest change of the score that counts.
        effects: Effect of each way on each modality, by name and way.
        status: Verdict on each modality: ``used`` (the score is worse with other samples' inputs), ``blind`` (no way
            changes the score of single samples), ``no gain`` (they change, their mean does not), ``harmful`` (the mean
            is better), ``disturbed`` (only inputs that are not real, removed or noise, change it) or ``unclear``.
    """

    subject: str
    score_name: str
    samples: int
    score: IntervalEstimate
    margin: float
    effects: dict[str, dict[str, WayEffect]]
    status: dict[str, Status]

    @property
    def paragraph(self) -> str:
        """The verdict, a sentence per modality."""
        return " ".join(self._sentence(name, status) for name, status in self.status.items())

    def _sentence(self, name: str, status: Status) -> str:
        effects = self.effects[name]
        label, before = self.score_name, f"{self.score.value:.3g}"
        if status == "blind":
            largest = max(effect.sample_change.high for effect in effects.values())
            never = all(effect.sample_change.value == 0 for effect in effects.values())
            change = "not at all" if never else f"by less than {largest:.2g} for a sample on average"
            *others, last = (HOW[way] for way in effects)
            ways = f"{', '.join(others)} or {last}"
            return f"The model is blind to {name}: its {label} of {before} changes {change} when {name} is {ways}."
        shuffled = effects["shuffled"]
        worse = _signed(shuffled.worse_by)
        if status == "used":
            how = HOW["shuffled"]
            return f"The model uses {name}: its {label} of {before} gets worse by {worse} when {name} is {how}."
        if status == "harmful":
            return (
                f"The model would do better without what it takes from {name}: its {label} of {before} gets better by "
                f"{_signed(shuffled.worse_by, -1)} when {name} is {HOW['shuffled']}."
            )
        if status == "no gain":
            return (
                f"The model looks at {name} without gain: the {label} of single samples changes by "
                f"{shuffled.sample_change.value:.2g} when {name} is {HOW['shuffled']}, their mean does not "
                f"({worse}, less than {self.margin:.2g})."
            )
        if status == "disturbed":
            other = max(effects, key=lambda way: effects[way].sample_change.value)
            return (
                f"The model does not use the content of {name}: {name} {HOW['shuffled']} changes nothing. Only an "
                f"input unlike any real one does: {HOW[other]}, the {label} changes by "
                f"{effects[other].sample_change.value:.2g}."
            )
        few = f": {format_count(self.samples, 'sample is', 'samples are')} few" if self.samples < _MIN_SAMPLES else ""
        better = shuffled.worse_by.value < 0
        change = f"better by {_signed(shuffled.worse_by, -1)}" if better else f"worse by {worse}"
        return (
            f"Whether the model uses {name} is unclear{few}; its {label} gets {change} when {name} is "
            f"{HOW['shuffled']}."
        )

    @property
    def caption(self) -> str:
        """Number of samples, score, margin and meaning of the intervals."""
        return (
            f"{self.subject}: {format_count(self.samples, 'sample')}, mean {self.score_name} {self.score}. Changes "
            f"below {self.margin:.2g} count as none. In brackets 95 % intervals by bootstrap over the samples."
        )

    def tables(self) -> tuple[Table, ...]:
        """A row per modality and way."""
        has_answers = any(effect.answer_change for effects in self.effects.values() for effect in effects.values())
        heads = ["modality", "changed by", self.score_name, "worse by", "change per sample"]
        rows = [
            [
                Cell(name),
                Cell(way),
                *(Cell(str(value)) for value in (effect.score, effect.worse_by, effect.sample_change)),
                *([Cell(str(effect.answer_change))] if has_answers else []),
            ]
            for name, effects in self.effects.items()
            for way, effect in effects.items()
        ]
        return (Table([*heads, *(["answers changed by"] if has_answers else [])], rows),)

    def to_markdown(self) -> str:
        """Paragraph and table as Markdown."""
        tables = [table.markdown() for table in self.tables()]
        return "\n\n".join([f"# Blind-modality test of {self.subject}", self.paragraph, self.caption, *tables]) + "\n"

    def as_dict(self) -> dict[str, Any]:
        """All numbers for JSON, with None for NaN and infinity."""
        return {
            "subject": self.subject,
            "score_name": self.score_name,
            "samples": self.samples,
            "score": plain_values(self.score),
            "margin": self.margin,
            "effects": plain_values(self.effects),
            "status": dict(self.status),
            "paragraph": self.paragraph,
        }


def blind_modality_test(  # noqa: PLR0913  (one call says all of a model and its score)
    score: SampleScore | MultimodalClassifier,
    batches: Iterable[Any],
    *,
    module: nn.Module | Sequence[nn.Module] | None = None,
    method: Method | None = None,
    modalities: Sequence[str] | None = None,
    baselines: Mapping[str, Any] | None = None,
    answer: Callable[[dict[str, Any]], Tensor] | None = None,
    larger_is_better: bool = False,
    margin: float | None = None,
    n_draws: int = 4,
    pool_size: int = 512,
    n_resamples: int = 1000,
    seed: int = 0,
    score_name: str = "loss",
    subject: str = "model",
) -> BlindModalityTest:
    """Test whether a model looks at each of its modalities, by any score of its samples.

    The score is compared with that of the same samples, where one modality is

    * ``shuffled``: taken from other samples, a real input that no longer fits;
    * ``removed``: taken away, replaced by the baseline given, else by the mean input. Integers, such as words, have no
      mean: without a baseline they are not removed;
    * ``noise``: normal noise of the input's mean and standard deviation; of integers, entries drawn from all. Masks
      (boolean, or with "mask" in their name) stay.

    The verdict rests on ``shuffled``. What is removed or noise is unlike any real input, and can disturb a model that
    makes no use of the modality.

    Args:
        score: Gives the score of each sample, shape (B,), from inputs by modality and targets, such as a loss with
            ``reduction="none"``. Or a :class:`bmlr.MultimodalClassifier`, whose score is the loss of its task and whose
            answers are its predictions.
        batches: Pairs (inputs by modality, targets) or :class:`bmlr.Batch`, iterable more than once. Targets may be
            anything that ``score`` takes. The input of a modality is a tensor, or a dictionary or tuple of tensors.
        module: The model behind ``score`` (or several, or an empty list), to switch to evaluation mode.
        method: Method whose predictions count, of a :class:`bmlr.MultimodalClassifier`; None takes the model's logits.
        modalities: Modalities to test; None takes all inputs of the first batch.
        baselines: Input of a modality that is taken away, of the shape of one sample, such as a blank picture.
        answer: Gives the model's answers, shape (B, …), if their change is to be shown too.
        larger_is_better: Whether a larger score is better, as of a detector's; a smaller one is, as of a loss.
        margin: Smallest change of the score that counts; None takes 2 % of the mean absolute score.
        n_draws: Draws per sample of ``shuffled`` and ``noise``, over which changes are averaged.
        pool_size: Samples kept, from which these are drawn.
        n_resamples: Bootstrap resamples of the intervals.
        seed: Seed of draws and resamples.
        score_name: Name of the score.
        subject: Model and data, for captions.

    Raises:
        ValueError: If an argument does not fit, or scores are not one finite number per sample.

    Example:
        >>> import torch
        >>> from torch.nn import functional as F
        >>> _ = torch.manual_seed(0)
        >>> policy = torch.nn.Linear(3, 2)  # it never looks at the camera
        >>> def loss(inputs, actions):
        ...     return F.mse_loss(policy(inputs["state"]), actions, reduction="none").mean(1)
        >>> state = torch.randn(64, 3)
        >>> batches = [({"camera": torch.randn(64, 1, 8, 8), "state": state}, policy(state).detach())]
        >>> blind_modality_test(loss, batches, module=policy).status
        {'camera': 'blind', 'state': 'used'}
    """
    if iter(batches) is batches:
        raise ValueError("`batches` should be iterable more than once, such as a list or a DataLoader.")
    check_integer("n_draws", n_draws, 1)
    if margin is not None:
        check_non_negative("margin", margin)
    first = next(iter(InputBatches(batches)), None)
    if first is None:
        raise ValueError("`batches` should hold at least one sample. Found none.")
    names = list(first.inputs if modalities is None else modalities)
    check_batch(first, names, 0)
    options = RemovalOptions(None, names, baselines or {}, n_draws, pool_size)
    ways = {way: _replacements(way, names, first, batches, options, seed) for way in WAYS}
    if isinstance(score, MultimodalClassifier):
        modules = [score] if method is None else [score, method]
        functions: ScoreAndAnswer = classifier_functions(score, method)
    else:
        modules = modules_of(score, module)
        functions = plain_functions(score, answer)
    collector = ScoreCollector(functions, ways, modules, n_draws)
    with module_mode(*modules, training=False):
        for number, pair in enumerate(pairs_of(batches)):
            collector.add(*pair, number)
    columns = collector.columns()
    sign = -1.0 if larger_is_better else 1.0
    means = _resample(columns, collector.tested, sign, n_resamples, seed)
    if margin is None:
        margin = 0.02 * float(np.abs(columns["score"]).mean())
    effects: dict[str, dict[str, WayEffect]] = {name: {} for name in names}
    for name, way in collector.tested:
        changed = f"{name}/{way}/answer"
        estimate = means[name, way].estimate
        effects[name][way] = WayEffect(
            estimate("score"),
            estimate("worse_by"),
            estimate("sample_change"),
            estimate("answer_change") if changed in columns else None,
        )
    samples = len(columns["score"])
    return BlindModalityTest(
        subject,
        score_name,
        samples,
        ResampledMeans({"score": columns["score"]}, n_resamples=n_resamples, seed=seed).estimate("score"),
        margin,
        effects,
        {name: "unclear" if samples < _MIN_SAMPLES else _judge(by_way, margin) for name, by_way in effects.items()},
    )


def _judge(effects: Mapping[str, WayEffect], margin: float) -> Status:
    shuffled = effects["shuffled"]
    worse, change = shuffled.worse_by, shuffled.sample_change
    if worse.low > 0 and worse.value > margin:
        return "used"
    if worse.high < 0 and worse.value < -margin:
        return "harmful"
    if _is_none(change, margin):
        return "blind" if all(_is_none(effect.sample_change, margin) for effect in effects.values()) else "disturbed"
    if change.low > margin and -margin <= worse.low and worse.high <= margin:
        return "no gain"
    return "unclear"


def _is_none(change: IntervalEstimate, margin: float) -> bool:
    """Whether a change counts as none; of no single sample, also where the samples are few."""
    return change.value == 0 or change.high <= margin


def _resample(
    columns: Mapping[str, np.ndarray], tested: Sequence[tuple[str, str]], sign: float, n_resamples: int, seed: int
) -> dict[tuple[str, str], ResampledMeans]:
    """Resampled means of each modality and way; the same seed makes the same resamples."""
    means = {}
    for name, way in tested:
        changed = f"{name}/{way}"
        scores = columns[f"{changed}/score"]
        table = {
            "score": scores,
            "worse_by": sign * (scores - columns["score"]),
            "sample_change": columns[f"{changed}/sample"],
        }
        if f"{changed}/answer" in columns:
            table["answer_change"] = columns[f"{changed}/answer"]
        resampled = means[name, way] = ResampledMeans(table, n_resamples=n_resamples, seed=seed)
        if not np.isin(columns["score"], (0, 1)).all():  # a loss that never changes is no proportion of zero
            resampled.proportions.clear()
    return means


def _replacements(
    way: str, names: Sequence[str], first: Batch, batches: Iterable[Any], options: RemovalOptions, seed: int
) -> Replacements:
    """Replacements of a way; of words, which have no mean, none for ``removed`` without a baseline.

    What has a mean is told from the ``first`` batch.
    """
    mode, given = WAYS[way], options.baselines if way == "removed" else {}
    if mode == "mean":
        names = [
            name
            for name in names
            if name in given
            or all(x.is_floating_point() or is_mask(key, x) for key, x in named_tensors(first.inputs[name]).items())
        ]
    options = dataclasses.replace(options, mode=mode, baselines=given, modalities=names)
    return make_replacements(names, InputBatches(batches), options, seed) if names else Replacements({}, "")


def _signed(estimate: IntervalEstimate, sign: float = 1) -> str:
    low, high = sorted((sign * estimate.low, sign * estimate.high))
    return f"{sign * estimate.value:.3g} [{low:.3g}, {high:.3g}]"
