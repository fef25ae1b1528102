"""CML: calibrated multimodal learning."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from bmlr._checks import check_choice, check_integer, check_non_negative
from bmlr._modes import preserved_buffers
from bmlr.encoders.features import masked_features
from bmlr.functional import log_probabilities, masked_mean
from bmlr.methods._support import (
    SteppedMethod,
    WindowedMethod,
    classification,
    draw_per_sample,
    presence,
)
from bmlr.methods._types import CLASSIFICATION, Conformance, Losses, MethodInfo, Prediction
from bmlr.model import Output
from bmlr.tasks import Task


class CML(SteppedMethod, WindowedMethod):
    r"""Calibrating Multimodal Learning (Ma et al., 2023).

    Confidence must not rise when a modality is removed.

    Modalities are removed one after another in random order, :math:`S_0 \supset S_1 \supset \dots \supset S_{M-1}`,
    by replacing their features with zero before the fusion. With the logits :math:`f_S` of a subset and its
    confidence :math:`q_k = \max_c \mathrm{softmax}(f_{S_k})_c`,

    .. math::
        L = \frac1M \sum_{k=0}^{M-1} \mathrm{CE}(y, f_{S_k}) + \lambda R, \qquad
        R = \sum_{k=1}^{M-1} \frac1B \sum_i s_{k,i} \max(0, q_{k,i} - q_{k-1,i}),

    where s is 0 where the smaller subset is right and the larger wrong, else 1. Nothing is detached.

    Deviations: the official code has no network for audio and video (its CPM-Nets and MIWAE complete missing views);
    here its ranking loss, its mask s and its order of removal, drawn for each sample, are applied to a fusion, with
    means over the batch for sums. Unimodal predictions are those of the subset of one modality, which were trained.
    The default λ of 6.4 is BalanceBenchmark's λ = 0.1 times its batch size of 64, since
    a mean replaces the sum; its own form is :class:`CMLBalanceBenchmark`. Where samples lack a modality, a subset
    counts for those that have at least one of its modalities.

    With several labels (ours) q and s are those of each label, with the confidence max(p, 1 − p), and the ranking loss
    is the mean over them. Numbers have no confidence.

    Args:
        weight: Weight λ ≥ 0 of the ranking loss.
        order: How often an order of removal is drawn: for each ``sample``, ``batch`` or ``epoch``.
        first_epoch: First epoch, from zero, in which the method acts; outside its epochs the loss is the plain
            multimodal cross-entropy.
        last_epoch: Last epoch in which it acts; None is no end.
        seed: Seed of the orders of removal, beside the run's. They depend on both and on the number of the training
            step alone.

    Raises:
        ValueError: If a parameter is out of its range.

    Example:
        >>> import torch, bmlr
        >>> model = bmlr.MultimodalClassifier({"a": torch.nn.Linear(4, 8), "v": torch.nn.Linear(6, 8)}, 3)
        >>> output = model({"a": torch.randn(2, 4), "v": torch.randn(2, 6)})
        >>> sorted(bmlr.methods.CML()(output, torch.tensor([0, 2])).terms)
        ['calibration', 'fused', 'subsets']
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        paper="Calibrating Multimodal Learning",
        venue="ICML 2023",
        url="https://proceedings.mlr.press/v202/ma23i.html",
        family="labels and losses",
        cost="1 forward, 1 backward, M fusion forwards",
    )
    tasks: ClassVar[tuple[str, ...]] = CLASSIFICATION
    tasks_reason: ClassVar[str] = "it ranks the confidence of predictions, which numbers do not have"
    graph_reason: ClassVar[str] = "draws the orders of removal on the host"
    conformance: ClassVar[Conformance] = Conformance(
        variants={"batch": {"order": "batch"}},
        not_mean_over_samples="draws the orders of removal by the sample's place in its batch and by the step",
        sorted_names=True,
    )

    def __init__(
        self,
        weight: float = 6.4,
        order: Literal["sample", "batch", "epoch"] = "sample",
        first_epoch: int = 0,
        last_epoch: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.weight = check_non_negative("weight", weight)
        self.order = check_choice("order", order, ("sample", "batch", "epoch"))
        self.set_window(first_epoch, last_epoch)
        self.seed = check_integer("seed", seed, 0)

    @property
    def follows_epochs(self) -> bool:
        """With a window, or orders drawn per epoch."""
        return super().follows_epochs or self.order == "epoch"

    def losses(self, output: Output, targets: Tensor) -> Losses:
        """Cross-entropies of the nested subsets and their ranking loss."""
        if not self.is_acting:
            return Losses({"fused": output.task.loss(output.logits, targets)})
        ranks = self.removal_ranks(output)
        if self.order == "sample":
            ranks = ranks.to(output.logits.device, non_blocking=True)
        self.step += self.training  # evaluation must not change the orders of later steps
        keeps = [ranks >= removed for removed in range(1, len(output.features))]
        subsets = [self._subset(output, keep) for keep in keeps]
        masks = [_nonempty(output, keep) for keep in keeps]
        entropies = [output.task.loss(f, targets, mask) for f, mask in zip(subsets, masks, strict=True)]
        return Losses(
            {
                "fused": output.task.loss(output.logits, targets) / len(output.features),
                "subsets": torch.stack(entropies).sum() / len(output.features),
                "calibration": self.weight * self._ranking(output.task, [output.logits, *subsets], masks, targets),
            }
        )

    def predict(self, output: Output) -> Prediction:
        """Multimodal logits, and those of subsets of one modality."""
        if output.fusion.unimodal_readout == "auxiliary":
            return super().predict(output)
        return Prediction(output.logits, {name: output.subset_logits((name,)) for name in output.features})

    def removal_ranks(self, output: Output) -> Tensor:
        """Rank of each modality in the order of removal, from zero.

        Returns:
            Integers on the CPU, shape (B, M) where the order is drawn for each sample, else (1, M). Columns are the
            modalities sorted by name, so that the orders do not depend on how the model lists them.
        """
        generator = self.generator(self.epoch if self.order == "epoch" else self.step)
        if self.order == "sample":
            return draw_per_sample(output.batch_size, len(output.features), generator).argsort(1)
        return torch.rand(1, len(output.features), generator=generator, dtype=torch.float32).argsort(1)

    def _subset(self, output: Output, keep: Tensor) -> Tensor:
        names = sorted(output.features)
        if self.order != "sample":
            return output.subset_logits([name for name, kept in zip(names, keep[0].tolist(), strict=True) if kept])
        features = {}
        for name, z in output.features.items():
            features[name] = masked_features(z, keep[:, names.index(name)])
        with preserved_buffers(output.fusion):  # running statistics are those of all features
            return output.replace_features(features).logits

    def _ranking(self, task: Task, logits: list[Tensor], masks: list[Tensor | None], targets: Tensor) -> Tensor:
        """Ranking loss R: rises of confidence from each subset to the next smaller."""
        task = classification(task)
        classes = task.class_indices(targets)
        log_p = [log_probabilities(task.choice_logits(f)) for f in logits]
        confidence = [values.amax(1).exp() for values in log_p]
        correct = [values.argmax(1) == classes for values in log_p]
        terms = []
        for k, mask in enumerate(masks, start=1):
            is_deserved = correct[k] & ~correct[k - 1]
            values = task.per_sample(self._penalties(confidence[k] - confidence[k - 1], is_deserved))
            terms.append(self._reduce(values, task.counted(targets, mask)))
        return torch.stack(terms).sum()

    def _penalties(self, rises: Tensor, is_deserved: Tensor) -> Tensor:
        """The positive, undeserved rises, shape (N,)."""
        return torch.where(is_deserved, 0.0, F.relu(rises))

    def _reduce(self, values: Tensor, mask: Tensor | None) -> Tensor:
        """Mean over the samples, shape (B,)."""
        return masked_mean(values, mask)


def _nonempty(output: Output, keep: Tensor) -> Tensor | None:
    """Samples with a kept modality, shape (B,); None for all."""
    if output.present is None:
        return None
    present = presence(output)[:, [list(output.features).index(name) for name in sorted(output.features)]]
    return (keep.to(present.device, non_blocking=True) & present).any(1)
