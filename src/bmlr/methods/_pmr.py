"""PMR: prototypes of the classes stimulate the slow modality."""

from __future__ import annotations

import math
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from bmlr._checks import check_choice, check_integer, check_non_negative, check_unit_interval
from bmlr._modes import module_mode
from bmlr.encoders.features import pooled
from bmlr.functional import log_probabilities, masked_mean, widened
from bmlr.methods._modulation import counted_sum
from bmlr.methods._support import WindowedMethod, all_reduce_sum, classification, encode_batch
from bmlr.methods._types import Conformance, EpochContext, EpochPlan, Losses, MethodInfo, Remedy
from bmlr.model import MultimodalClassifier, Output


class PMR(WindowedMethod):
    r"""Prototypical Modal Rebalance (Fan et al., 2023).

    The modality that is behind is drawn to the prototypes of its classes.

    A prototype :math:`c^u_k` is the mean feature of class k in modality u. With
    :math:`s^u_{ik} = -\lVert z^u_i - c^u_k \rVert_2` and :math:`S_u` the mean over the batch of
    :math:`\mathrm{softmax}(s^u_i)_{y_i}`, of which the paper takes the sum, the loss is

    .. math:: L = \mathrm{CE}(y, f) + \alpha \sum_u \beta_u\, \mathrm{CE}(y, s^u)
                  - \mu\, \bigl(\max_u \beta_u\bigr)\, H_{v}, \qquad
              \beta_u = \mathrm{clip}\Bigl(\frac{\max_w S_w}{S_u} - 1,\, 0,\, 1\Bigr)

    with H the mean entropy of :math:`\mathrm{softmax}(s^v)` of the modality v with the largest S, in the first
    ``entropy_epochs`` epochs only. Gradients reach the features, and neither the prototypes nor β. With two modalities
    this is the paper's pair of coefficients, of which one is zero, and its entropy term.

    Before each epoch the model looks at a random tenth of the training split in evaluation mode, and
    :math:`c \leftarrow (1 - m)\, \bar z + m\, c`; m is 0 before the first two epochs, as in the official code, so that
    nothing of the untrained encoders stays.

    ``form="official"`` is what the official code does: β is 1 for every modality with less than the largest S and 0 for
    that one, and there is no entropy term. Its training stops the term after epoch 100 of 150 (``last_epoch``), with
    SGD of momentum 0.9, weight decay 1e-4 and learning rate 1e-4 (paper 1e-3), divided by 10 every 70 epochs, and
    batches of 64.

    Deviations: the paper has two modalities; more follow by the formula above, an extension of ours. In the official
    code a class that is missing in the tenth gets a prototype of 0/0, which stays NaN; here it keeps the old one, and
    a class that never had one is looked for in the rest of the split; it keeps the origin if it is not there. Its
    prototypes are those of the validation split for AVE, and of the test split for coloured MNIST; here they are never
    of either. Its distances come from two Python loops over samples and classes. ``entropy_epochs`` is ours, within
    the paper's description "early"; so is the number of samples where a loader does not know it, all of them. Samples
    count for the modalities they have.

    Args:
        alpha: Weight α ≥ 0 of the prototypical losses; 1 or 2 in the paper.
        momentum: Share m of the old prototype, in [0, 1].
        entropy_weight: Weight μ ≥ 0 of the entropy; 0.01 to 0.001 in the paper.
        entropy_epochs: Number of epochs with the entropy term.
        fraction: Share of the training split that makes the prototypes, in [0, 1]; the official code takes all of AVE.
        form: ``paper`` (default) or ``official``.
        last_epoch: Last epoch in which the prototypes act; None is no end.

    Raises:
        ValueError: If a parameter is out of its range.

    Example:
        >>> import torch, bmlr
        >>> model = bmlr.MultimodalClassifier({"a": torch.nn.Linear(4, 8), "v": torch.nn.Linear(6, 8)}, 3)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> balancer = bmlr.Balancer(model, bmlr.methods.PMR(), optimizer, max_epochs=1)
        >>> loader = [({"a": torch.randn(5, 4), "v": torch.randn(5, 6)}, torch.arange(5) % 3)] * 3
        >>> [sorted(balancer.step(batch).terms) for batch in balancer.epoch(loader)][0]
        ['a', 'fused', 'v']
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        paper="PMR: Prototypical Modal Rebalance for Multimodal Learning",
        venue="CVPR 2023",
        url="https://arxiv.org/abs/2211.07089",
        family="labels and losses",
        cost="1 forward, 1 backward, and inference over a tenth of the training split per epoch",
    )
    tasks_reason: ClassVar[str] = "its prototypes are those of classes"
    epoch_parameters: ClassVar[tuple[str, ...]] = ("entropy_epochs",)
    remedy: ClassVar[Remedy | None] = Remedy("encoder", "draws the features of the modality behind to their classes")
    conformance: ClassVar[Conformance] = Conformance(
        short={"fraction": 0.5},
        not_mean_over_samples="β comes from scores of the whole batch",
    )

    def __init__(
        self,
        alpha: float = 1.0,
        momentum: float = 0.2,
        entropy_weight: float = 0.01,
        entropy_epochs: int = 10,
        fraction: float = 0.1,
        form: Literal["paper", "official"] = "paper",
        last_epoch: int | None = None,
    ) -> None:
        super().__init__()
        self.alpha = check_non_negative("alpha", alpha)
        self.momentum = check_unit_interval("momentum", momentum)
        self.entropy_weight = check_non_negative("entropy_weight", entropy_weight)
        self.entropy_epochs = check_integer("entropy_epochs", entropy_epochs, 0)
        self.fraction = check_unit_interval("fraction", fraction)
        self.form = check_choice("form", form, ("paper", "official"))
        self.set_window(0, last_epoch)
        self.prototypes = nn.ModuleDict()

    def setup(self, model: MultimodalClassifier) -> None:
        """Make room for the prototypes, at the origin."""
        super().setup(model)
        like, classes = next(model.parameters()), model.task.num_outputs
        self.prototypes = nn.ModuleDict(
            {name: _Prototypes(like.new_zeros(classes, width)) for name, width in model.fusion.feature_dims.items()}
        )

    def plan_epoch(self, context: EpochContext) -> EpochPlan:
        """Move the prototypes; one pass over all samples."""
        if self.is_acting:
            self._move_prototypes(context)
        return EpochPlan()

    def losses(self, output: Output, targets: Tensor) -> Losses:
        """The multimodal loss, and for each modality its prototypical loss less its entropy."""
        task = classification(output.task)
        terms = {"fused": task.loss(output.logits, targets)}
        if not (self.training and self.is_acting):
            return Losses(terms)
        similarities = {name: self._of(name).similarities(z) for name, z in output.features.items()}
        masks = {name: task.counted(targets, output.mask(name)) for name in similarities}
        sums = []
        for name, s in similarities.items():
            sums.append(counted_sum(task.confidence(s.detach(), targets), masks[name]))
        total, count = all_reduce_sum(torch.stack(sums)).unbind(1)
        scores = total / count  # NaN for a modality that no sample has
        pulls, spreads = self.coefficients(scores)
        has_entropy = self.form == "paper" and self.epoch < self.entropy_epochs
        for (name, s), pull, spread in zip(similarities.items(), pulls, spreads, strict=True):
            terms[name] = self.alpha * pull * task.loss(s, targets, output.mask(name))
            if has_entropy:
                log_p = log_probabilities(s)
                entropy = masked_mean(-(log_p.exp() * log_p).sum(1), masks[name])
                terms[name] = terms[name] - self.entropy_weight * spread * entropy
        names = [f"score_{name}" for name in similarities]
        return Losses(terms, dict(zip(names, scores.nan_to_num().unbind(), strict=True)))

    def coefficients(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients β of the prototypical losses, and those of the entropies.

        Args:
            scores: Score S of each modality, shape (M,); NaN where no sample counts.

        Returns:
            Both of shape (M,).
        """
        leading = scores.nan_to_num().max()
        ahead = torch.where(scores.isnan(), 0.0, leading / scores.clamp(min=torch.finfo(scores.dtype).tiny) - 1)
        pulls = (ahead > 0).to(scores) if self.form == "official" else ahead.clamp(0, 1)
        return pulls, torch.where(scores == leading, pulls.max(), 0.0)

    @torch.no_grad()
    def _move_prototypes(self, context: EpochContext) -> None:
        """Move the prototypes to the means of a share of the training split."""
        model, seen = context.model, 0
        needed = self.fraction * context.num_train if context.num_train else math.inf
        means = {name: _Means(self._of(name).values) for name in model.modalities}
        with module_mode(model, training=False):
            for batch in context.shuffled_batches(0):
                if seen >= needed and all(bool((self._of(u).is_known | means[u].is_known).all()) for u in means):
                    break
                classes, present = classification(model.task).class_indices(batch.targets), batch.present or {}
                for name, mean in means.items():
                    z = pooled(encode_batch(model, batch, name))
                    mean.add(z, classes, model.task.counted(batch.targets, present.get(name)))
                seen += len(batch)
        for name, mean in means.items():
            self._of(name).move(mean, self.momentum if context.epoch > 1 else 0.0)

    def _of(self, name: str) -> _Prototypes:
        if name not in self.prototypes:
            raise RuntimeError("PMR has no prototypes: call `method.setup(model)` once, before the optimiser is made.")
        return cast("_Prototypes", self.prototypes[name])


class _Means:
    """Mean features of classes, summed up batch by batch."""

    def __init__(self, like: Tensor) -> None:
        self.sums, self.counts = torch.zeros_like(widened(like)), torch.zeros_like(widened(like[:, :1]))

    def add(self, features: Tensor, classes: Tensor, mask: Tensor | None) -> None:
        """Add features (B, d) of the samples in ``mask``."""
        # A product: scattered sums would come out otherwise in every run on a GPU.
        members = F.one_hot(classes, len(self.sums)).T.to(self.sums)
        members = members if mask is None else members * mask
        self.sums += members @ features.to(self.sums)
        self.counts += members.sum(1, keepdim=True)

    @property
    def is_known(self) -> Tensor:
        """Classes with a sample, boolean, shape (C,)."""
        return self.counts.squeeze(1) > 0


class _Prototypes(nn.Module):
    """Prototypes of one modality, shape (C, d), and which classes had a sample, shape (C,)."""

    values: Tensor
    is_known: Tensor

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.register_buffer("values", values)
        self.register_buffer("is_known", torch.zeros(len(values), dtype=torch.bool, device=values.device))

    def similarities(self, features: Tensor) -> Tensor:
        """Negative distances s, shape (B, C), of features (B, d)."""
        z = widened(pooled(features))
        # The other mode takes differences of squares, which would lose small distances.
        return -torch.cdist(z, self.values.to(z), compute_mode="donot_use_mm_for_euclid_dist")

    def move(self, means: _Means, momentum: float) -> None:
        """Move to the means, with a share ``momentum`` of the old values."""
        share = momentum * self.is_known[:, None].to(means.sums)
        moved = (1 - share) * means.sums / means.counts.clamp(min=1) + share * self.values
        self.values.copy_(torch.where(means.is_known[:, None], moved.to(self.values), self.values))
        self.is_known.logical_or_(means.is_known)
