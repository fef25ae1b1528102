"""Scores of samples as they are and with each modality changed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from bmlr.batch import Batch, input_size, map_tensors
from bmlr.diagnosis._removal import device_of
from bmlr.diagnosis._replacements import Replacements, chosen_inputs
from bmlr.methods import Method
from bmlr.model import MultimodalClassifier

#: Score of each sample, shape (B,), from inputs by modality and targets.
SampleScore: TypeAlias = Callable[[dict[str, Any], Any], Tensor]
_Presence: TypeAlias = Mapping[str, Tensor] | None
#: Score of each sample, and what gives the answers if they are to be compared, once the scores are found right.
ScoreAndAnswer: TypeAlias = Callable[[dict[str, Any], Any, _Presence], tuple[Tensor, Callable[[], Tensor] | None]]

#: What each way does to a modality.
HOW = {"shuffled": "taken from other samples", "removed": "taken away", "noise": "replaced by noise"}


class ScoreCollector:
    """Scores of every sample as it is and with each modality changed."""

    def __init__(
        self,
        score_and_answer: ScoreAndAnswer,
        ways: Mapping[str, Replacements],
        modules: Sequence[nn.Module],
        n_draws: int,
    ) -> None:
        self._score_and_answer, self._ways, self._n_draws = score_and_answer, ways, n_draws
        self._device = device_of(modules) or torch.device("cpu")
        self._columns: dict[str, list[Tensor]] = {}
        #: Modalities and ways, in the order of the table.
        self.tested = [
            (name, way) for name in ways["shuffled"].by_name for way, made in ways.items() if name in made.by_name
        ]

    @torch.no_grad()
    def add(self, inputs: dict[str, Any], targets: Any, present: Mapping[str, Tensor] | None, number: int) -> None:
        """Add a batch."""
        inputs = {name: map_tensors(lambda x: x.to(self._device), x) for name, x in inputs.items()}
        present = None if present is None else {name: mask.to(self._device) for name, mask in present.items()}
        with contextlib.suppress(ValueError):  # of targets that are no tensors the score itself takes care
            targets = map_tensors(lambda x: x.to(self._device), targets)
        intact, answers = self._evaluate(inputs, targets, present, number, "as it is")
        self._append("score", intact)
        for name, way in self.tested:
            replacements = self._ways[way]
            mask = (present or {}).get(name)
            draws: list[list[Tensor]] = []
            for _ in range(self._n_draws if replacements.n_draws > 1 else 1):
                replaced = chosen_inputs(mask, replacements.by_name[name](inputs[name]), inputs[name])
                changed = {**inputs, name: replaced}
                scores, others = self._evaluate(changed, targets, present, number, f"with {name} {HOW[way]}")
                draw = [scores, (scores - intact).abs()]
                if answers is not None and others is not None:
                    draw.append(_answer_change(answers, others))
                draws.append(draw)
            for kind, values in zip(("score", "sample", "answer"), zip(*draws, strict=True), strict=False):
                mean = torch.stack(values).mean(0)
                self._append(f"{name}/{way}/{kind}", mean if mask is None else torch.where(mask.cpu(), mean, torch.nan))

    def columns(self) -> dict[str, np.ndarray]:
        """Values of all samples by column."""
        return {name: torch.cat(values).numpy() for name, values in self._columns.items()}

    def _append(self, name: str, values: Tensor) -> None:
        self._columns.setdefault(name, []).append(values)

    def _evaluate(
        self, inputs: dict[str, Any], targets: Any, present: _Presence, number: int, state: str
    ) -> tuple[Tensor, Tensor | None]:
        """Checked scores, and answers."""
        scores, answer = self._score_and_answer(inputs, targets, present)
        count = _size(inputs)
        if not isinstance(scores, Tensor) or tuple(scores.shape) != (count,):
            found = f"shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
            raise ValueError(
                f"`score` should give one number per sample, shape ({count},), such as a loss with "
                f"reduction='none' and the mean over all other dimensions. Found {found}."
            )
        if not bool(scores.isfinite().all()):
            raise ValueError(f"`score` gives NaN or infinite numbers in batch {number}, {state}.")
        return scores.detach().cpu().double(), None if answer is None else answer().cpu()


def plain_functions(score: SampleScore, answer: Callable[[dict[str, Any]], Tensor] | None) -> ScoreAndAnswer:
    """Score and answers of functions that know no masks of presence."""
    return lambda inputs, targets, present: (
        score(dict(inputs), targets),
        None if answer is None else lambda: answer(dict(inputs)),
    )


def classifier_functions(model: MultimodalClassifier, method: Method | None) -> ScoreAndAnswer:
    """Loss of the task of each sample, and predictions."""
    dtype = next(model.parameters()).dtype

    def score_and_answer(
        inputs: dict[str, Any], targets: Any, present: _Presence
    ) -> tuple[Tensor, Callable[[], Tensor]]:
        typed = {u: map_tensors(lambda x: x.to(dtype) if x.is_floating_point() else x, x) for u, x in inputs.items()}
        output = model(typed, present)
        logits = output.logits if method is None else method.predict(output).logits
        return model.task.sample_losses(logits, targets), lambda: model.task.predict(logits)

    return score_and_answer


def _answer_change(before: Tensor, after: Tensor) -> Tensor:
    change = (before.double() - after.double()).abs() if before.is_floating_point() else (before != after).double()
    return change.reshape(len(before), -1).mean(1)


def pairs_of(batches: Iterable[Any]) -> Iterator[tuple[dict[str, Any], Any, Mapping[str, Tensor] | None]]:
    """Inputs, targets and presence of every batch."""
    for batch in batches:
        if isinstance(batch, Batch):
            yield batch.inputs, batch.targets, batch.present
        elif isinstance(batch, (tuple, list)) and len(batch) == 2 and isinstance(batch[0], Mapping):
            yield dict(batch[0]), batch[1], None
        else:
            raise ValueError(
                "Batches should be bmlr.Batch or pairs (inputs by modality, targets), such as "
                f'({{"camera": ..., "state": ...}}, actions). Found {type(batch).__name__}.'
            )


class InputBatches:
    """The batches without their targets, which may be anything."""

    def __init__(self, batches: Iterable[Any]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[Batch]:
        for inputs, _, present in pairs_of(self._batches):
            count = _size(inputs)
            yield Batch(inputs, torch.zeros(count), None if present is None else dict(present))


def _size(inputs: Mapping[str, Any]) -> int:
    name, first = next(iter(inputs.items()))
    return input_size(name, first)
