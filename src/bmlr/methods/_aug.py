"""AUG: more classifiers for the weaker modality."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from bmlr._checks import check_choice, check_integer, check_non_negative, check_positive
from bmlr._modes import module_mode
from bmlr.encoders.features import pooled
from bmlr.functional import widened
from bmlr.fusion import match_dtype
from bmlr.methods._alternating import (
    AlternatingMethod,
    check_named_weights,
    check_weights,
    fixed_shares,
    merge_logits,
)
from bmlr.methods._modulation import counted_sum
from bmlr.methods._support import all_reduce_sum, classification
from bmlr.methods._types import CLASSIFICATION, Conformance, EpochContext, EpochPlan, Losses, MethodInfo, Prediction
from bmlr.model import MultimodalClassifier, Output


class AUG(AlternatingMethod):
    r"""AUG (Jiang et al., 2025): the weaker modality gets more classifiers, which boost each other.

    Each modality has a chain of :math:`n_u` classifiers :math:`h_{u,k}(z) = W\,\mathrm{relu}(V_{u,k} z)` with a layer
    W shared by all; both have biases. Its prediction is their sum :math:`\sum_{k \le n_u} h_{u,k}(z^u)`; the model's
    fusion is not used. On every batch each modality takes an optimiser step of its own, in the order of the model. With
    one classifier its loss is the cross-entropy. With more it is (sustained boosting)

    .. math::

       L_u = \mathrm{CE}\Bigl(\sum_{k \le n_u} h_{u,k},\, y\Bigr) + \mathrm{CE}\Bigl(\sum_{k < n_u} h_{u,k},\, y\Bigr)
       + \mathrm{CE}(h_{u,n_u}, \hat y), \qquad \hat y = y - \lambda \sum_{k < n_u} y \odot p_{u,k},

    where :math:`p_{u,k}` is the softmax of classifier k, held constant. Every :math:`t_N` epochs the scores
    :math:`s_u`, the mean over the training samples of :math:`\sum_k p_{u,k}[y]`, are compared: if the strongest
    modality's is larger than σ times the weakest one's by more than τ, the weakest gets one more classifier. The
    prediction is the mean of the modalities'.

    In the official code new layers :math:`V_{u,k}` are made after the optimiser and never given to it: they keep
    their random draw, under a shared W that learns. ``register_new=False`` is what that code trains. Its labels are
    :math:`\hat y = y - \lambda\,y \odot p` with p the softmax of the sum of the classifiers before
    (``residual_labels="official"``), and its scores the :math:`p[y]` of the softmax of the whole sum, compared by
    ratio, :math:`s_v > (\sigma + \tau) s_u` (``score="official"``). Its test weights are 0.4 of audio and 0.6 of
    video.

    Deviations: all classifiers that there can be are made at the start, so that the optimiser has them; those not yet
    in the chain have no gradient and rest. Scores come from a pass in evaluation mode before an epoch, where the
    official code adds them up in training mode during the one before; it also compares after the first epoch, and
    after the last, which adds a classifier that is never trained. σ multiplies the weaker modality's score whichever
    it is, in place of that of video. With three modalities or more (ours) the strongest and the weakest are compared;
    the official code of three gives a classifier to each with a share :math:`s_u / \sum_{v \ne u} s_v` below 0.4. Its
    codes for other data than CREMA-D scale the new classifiers by a small network that the paper does not have.
    :math:`\hat y` is never below zero (ours), where λ and the number of classifiers are large and the loss would have
    no lower bound. The official PyTorch (1.11) sets gradients of a step to zeros rather than none, so that momentum
    moves the modalities of a batch that have had their turn once more; here they rest. Samples that lack a modality
    do not count in its step, its score and its share of the prediction. With several labels (ours) p is that of what
    is true of each label; for targets that are distributions, :math:`p[y]` is the expected probability.

    Args:
        check_every: Epochs :math:`t_N` between two comparisons: 20 on CREMA-D, 10 on Kinetics-Sounds, VGGSound and
            NVGesture, 5 on Twitter, 1 on Sarcasm.
        max_classifiers: Largest number of classifiers of a modality; one that has them gets no more.
        hidden: Width of the hidden layers; 256 in the official code.
        residual_weight: Weight λ ≥ 0; of 0.1 to 1 in the paper, 0.5 in its code for CREMA-D.
        residual_labels: Probabilities in :math:`\hat y`: of each classifier (``paper``) or of their sum (``official``).
        score: Scores of a comparison: ``paper`` or ``official``.
        ratio: Factor σ > 0.
        tolerance: Margin τ ≥ 0.
        register_new: Whether the layers :math:`V_{u,k}` of new classifiers learn, as in the paper, or keep their random
            draw, as in the official code.
        weights: Weight > 0 of each modality in the prediction, such as ``{"audio": 0.4, "video": 0.6}``, of which only
            the ratios count; None weighs all alike.

    Raises:
        ValueError: If a parameter is out of its range.

    Example:
        >>> import torch, bmlr
        >>> model = bmlr.MultimodalClassifier({"a": torch.nn.Linear(4, 8), "v": torch.nn.Linear(6, 8)}, 3)
        >>> method = bmlr.methods.AUG(check_every=5)
        >>> method.setup(model)
        >>> plan = method.start_epoch(bmlr.methods.EpochContext(epoch=0, max_epochs=10, model=model))
        >>> batch = bmlr.Batch({"a": torch.randn(2, 4), "v": torch.randn(2, 6)}, torch.tensor([0, 2]), tag="modality:v")
        >>> sorted(method.compute_losses(model, batch).terms), method.num_classifiers("v")
        (['v'], 1)
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        paper="Rethinking Multimodal Learning from the Perspective of Mitigating Classification Ability Disproportion",
        venue="NeurIPS 2025",
        url="https://arxiv.org/abs/2502.20120",
        family="architecture and heads",
        cost="1 forward and 1 backward of each encoder, M optimiser steps, 1 inference pass per comparison",
    )
    tasks: ClassVar[tuple[str, ...]] = CLASSIFICATION
    tasks_reason: ClassVar[str] = "a new classifier learns what the others leave over of a label's probability"
    epoch_parameters: ClassVar[tuple[str, ...]] = ("check_every",)
    conformance: ClassVar[Conformance] = Conformance(
        short={"check_every": 1, "max_classifiers": 2, "hidden": 8},
        variants={
            "official": {
                "check_every": 1, "max_classifiers": 3, "hidden": 8, "residual_labels": "official",
                "score": "official", "register_new": False,
            }
        },
    )  # fmt: skip
    state_attributes: ClassVar[tuple[str, ...]] = (*AlternatingMethod.state_attributes, "counts")

    def __init__(  # noqa: PLR0913
        self,
        *,
        check_every: int = 20,
        max_classifiers: int = 10,
        hidden: int = 256,
        residual_weight: float = 0.5,
        residual_labels: Literal["paper", "official"] = "paper",
        score: Literal["paper", "official"] = "paper",
        ratio: float = 1.0,
        tolerance: float = 0.01,
        register_new: bool = True,
        weights: dict[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.check_every = check_integer("check_every", check_every, 1)
        self.max_classifiers = check_integer("max_classifiers", max_classifiers, 1)
        self.hidden = check_integer("hidden", hidden, 1)
        self.residual_weight = check_non_negative("residual_weight", residual_weight)
        self.residual_labels = check_choice("residual_labels", residual_labels, ("paper", "official"))
        self.score = check_choice("score", score, ("paper", "official"))
        self.ratio, self.tolerance = check_positive("ratio", ratio), check_non_negative("tolerance", tolerance)
        self.register_new = bool(register_new)
        self.weights = check_weights(weights)
        self.layers = nn.ModuleDict()  # V, a list per modality
        self.head: nn.Module = nn.ModuleDict()  # W, once it is made
        # Plain numbers: a program of torch.export cannot depend on the values of a tensor.
        self._counts: list[int] = []

    def setup(self, model: MultimodalClassifier) -> None:
        """Make all classifiers that there can be.

        Raises:
            ValueError: If ``weights`` do not name the modalities.
        """
        super().setup(model)
        check_named_weights(self.weights, model.modalities)
        like = next(model.parameters())
        self.layers = nn.ModuleDict(
            {
                name: nn.ModuleList([_linear(width, self.hidden) for _ in range(self.max_classifiers)])
                for name, width in model.fusion.feature_dims.items()
            }
        ).to(like)
        for layers in self.layers.children():
            for position, layer in enumerate(layers.children()):
                layer.requires_grad_(self.register_new or position == 0)
        self.head = _linear(self.hidden, model.task.num_outputs).to(like)
        self._counts = [1] * len(model.modalities)

    @property
    def counts(self) -> Tensor:
        """Number of classifiers of each modality, shape (M,), by sorted name."""
        return torch.tensor(self._counts, dtype=torch.int64)

    @counts.setter
    def counts(self, counts: Tensor) -> None:
        self._counts = counts.tolist()

    def num_classifiers(self, name: str) -> int:
        """Number of classifiers of modality ``name`` so far.

        Raises:
            RuntimeError: If the classifiers were not made for such a modality.
        """
        if name not in self.layers:
            raise RuntimeError(
                f"AUG has classifiers for {sorted(self.layers)} and got features of '{name}': call "
                "`method.setup(model)` once, before the optimiser is made."
            )
        return self._counts[sorted(self.layers).index(name)]

    def plan_epoch(self, context: EpochContext) -> EpochPlan:
        """Compare the modalities if it is time, and plan a pass for each."""
        if context.epoch and context.epoch % self.check_every == 0:
            weakest = self.weakest(self._scores(context))
            if weakest is not None and self.num_classifiers(weakest) < self.max_classifiers:
                self._counts[sorted(self.layers).index(weakest)] += 1
        return super().plan_epoch(context)

    def weakest(self, scores: dict[str, float]) -> str | None:
        """Modality that gets a classifier; None if scores are level."""
        if len(scores) < 2:
            return None
        weak, strong = min(scores, key=scores.__getitem__), max(scores.values())
        scale = scores[weak] if self.score == "official" else 1.0
        return weak if strong - self.ratio * scores[weak] > self.tolerance * scale else None

    def _scores(self, context: EpochContext) -> dict[str, float]:
        """Mean score of each modality over the training samples that have it."""
        sums: dict[str, Tensor] = {}
        with torch.no_grad(), module_mode(context.model, self, training=False):
            for batch in context.train_batches():
                output = context.model(batch.inputs, batch.present)
                for name in sorted(output.features):
                    chain = self._chain(name, output)
                    read = [torch.stack(chain).sum(0)] if self.score == "official" else chain
                    values = torch.stack([output.task.confidence(x, batch.targets) for x in read]).sum(0)
                    counted = output.task.counted(batch.targets, output.mask(name))
                    sums[name] = sums.get(name, 0.0) + counted_sum(values.double(), counted)
        # Running statistics may differ between processes, and all have to come to the same number of classifiers.
        totals = {name: all_reduce_sum(pair).tolist() for name, pair in sums.items()}
        return {name: total / count for name, (total, count) in totals.items() if count}

    def learners(self, name: str) -> Iterable[nn.Module]:
        """The classifiers of the modality, and their shared layer."""
        return [self.head, self.layers.get_submodule(name)]

    def modality_losses(self, name: str, output: Output, targets: Tensor) -> Losses:
        """Losses of the chain, without its newest classifier, and of that."""
        task, mask = classification(output.task), output.mask(name)
        *earlier, newest = self._chain(name, output)
        logs = {f"classifiers_{name}": newest.new_full((), float(len(earlier) + 1))}
        if not earlier:
            return Losses({name: task.loss(newest, targets, mask)}, logs)
        before = torch.stack(earlier).sum(0)
        read = [before] if self.residual_labels == "official" else earlier
        explained = torch.stack([task.choice_confidence(x.detach(), targets) for x in read]).sum(0)
        remainder = (1 - self.residual_weight * explained).clamp(min=0)
        residual = task.per_sample(remainder * task.choice_losses(newest, targets))
        terms = {
            name: task.loss(before + newest, targets, mask),
            f"{name}_before": task.loss(before, targets, mask),
            f"{name}_residual": task.average(residual, targets, mask),
        }
        return Losses(terms, logs)

    def predict(self, output: Output) -> Prediction:
        """Weighted mean of the modalities' logits, and the logits of each."""
        logits = {name: torch.stack(self._chain(name, output)).sum(0) for name in output.features}
        shares = fixed_shares(output, self.weights, next(iter(logits.values())).dtype)
        return Prediction(merge_logits(logits, shares), logits)

    def _chain(self, name: str, output: Output) -> list[Tensor]:
        """Logits of each classifier of a modality, shape (B, C)."""
        count = self.num_classifiers(name)
        layers = list(self.layers.get_submodule(name).children())[:count]
        features = match_dtype(pooled(output.features[name]), self.head)
        return [widened(self.head(layer(features).relu())) for layer in layers]


def _linear(width: int, num_outputs: int) -> nn.Linear:
    """Linear layer with the official initialisation: Xavier normal, zero bias."""
    layer = nn.Linear(width, num_outputs)
    nn.init.xavier_normal_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
