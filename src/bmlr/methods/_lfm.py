"""LFM: a dynamically learned modality gap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from bmlr._checks import check_choice, check_integer, check_positive, check_unit_interval
from bmlr._modes import module_mode
from bmlr.batch import Batch
from bmlr.functional import alignment, masked_mean
from bmlr.methods._base import Method
from bmlr.methods._support import (
    apply_heads,
    classification,
    pair_mask,
    presence,
    samples_at,
    seeded_generator,
    unimodal_heads,
)
from bmlr.methods._types import (
    CLASSIFICATION,
    Conformance,
    EpochContext,
    EpochPlan,
    Losses,
    MethodInfo,
    Pass,
    Prediction,
)
from bmlr.model import MultimodalClassifier, Output

#: The official polynomial of α₀ in the epoch, of 200 epochs, lowest power first.
_COEFFICIENTS = (2.04623704e-1, 3.35472727e-3, 1.22989557e-4, -2.92947416e-6, 2.23835486e-8, -5.39717505e-11)
_LAST_EPOCH = 199


class LFM(Method):
    r"""Dynamically Learning Modality Gap (Yang et al., 2024).

    The weight moves between label fitting and alignment.

    .. math::
        L = 2\,(\alpha_0 \mathrm{CE}(y, o) + \alpha_1 L_{al}), \quad \alpha_0 + \alpha_1 = 1, \quad
        L_{al} = \tfrac12 [\mathrm{KL}(m \| p) + \mathrm{KL}(m \| q)], \quad m = \tfrac12 (p + q),

    for the predictions p, q of two modalities; with more than two, :math:`L_{al}` is the mean over their pairs.
    :math:`o` is the mean of the logits of one linear layer per modality (``head="late_avg"``, the official network,
    which leaves the model's fusion unused) or the model's multimodal logits (``head="fusion"``).

    α₀ is, from epoch to epoch,

    * ``fitted``: the polynomial of the official default script, from 0.20 (alignment leads) to 1 (labels lead),
      clipped to [0, 1] (the script's reaches 1.01) and stretched over the length of the run;
    * ``learnable``: moved before each epoch by the official hyper-gradient on a few samples, see ``meta_scope``;
    * ``constant``: ``label_weight``.

    Deviations: the paper describes contrastive matching, the official code has the alignment above and no
    contrastive loss; this follows the code. It holds 16 samples out of training and uses 8 of them for ``learnable``;
    here those used are held out, seen with the transforms of evaluation, by the model in evaluation mode (there: in
    training mode before the first epoch, in evaluation mode later). BalanceBenchmark's form is
    :class:`LFMBalanceBenchmark`. Samples that lack a modality are left out of its pairs, and of its share in the mean
    logits.

    With several labels (ours) the label loss is the task's, and :math:`L_{al}` is the mean over the labels of the
    alignment of their pairs (1 − p, p). Numbers have no distributions to align.

    Args:
        alpha: ``fitted``, ``learnable`` or ``constant``.
        head: ``late_avg`` or ``fusion``.
        label_weight: α₀ in [0, 1] at the start (``learnable``) or throughout (``constant``); None takes 0.05, or 0.5
            where it is constant.
        schedule_epochs: Length of run the polynomial is stretched over; None takes that of the training, 200 is the
            polynomial as it stands in the official script.
        meta_lr: Step size of the learnable α, halved every 20 epochs.
        meta_size: Number of samples for the learnable α.
        meta_scope: The step is the mean over the entries of :math:`\nabla_\theta \langle \nabla_\theta L_{tot},
            \nabla_\theta \mathrm{CE} \rangle` for the ``first`` parameter of the model, as in both codes, which give
            no reason for it, or for ``all`` parameters.
        seed: Seed of the choice of the samples held out, beside the run's.

    Raises:
        ValueError: If a parameter is out of its range.

    Example:
        >>> import torch, bmlr
        >>> model = bmlr.MultimodalClassifier({"a": torch.nn.Linear(4, 8), "v": torch.nn.Linear(6, 8)}, 3)
        >>> method = bmlr.methods.LFM()
        >>> method.setup(model)
        >>> plan = method.start_epoch(bmlr.methods.EpochContext(epoch=0, max_epochs=10, model=model))
        >>> losses = method(model({"a": torch.randn(2, 4), "v": torch.randn(2, 6)}), torch.tensor([0, 2]))
        >>> sorted(losses.terms), round(float(losses.logs["label_weight"]), 4)
        (['alignment', 'fused'], 0.2046)
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        paper="Facilitating Multimodal Classification via Dynamically Learning Modality Gap",
        venue="NeurIPS 2024",
        url="https://proceedings.neurips.cc/paper_files/paper/2024/hash/71b17f00017da0d73823ccf7fbce2d4f-Abstract-Conference.html",
        family="labels and losses",
        cost="1 forward, 1 backward; with a learnable α one double backward on a few samples per epoch",
    )
    tasks: ClassVar[tuple[str, ...]] = CLASSIFICATION
    tasks_reason: ClassVar[str] = "it aligns distributions over classes"
    conformance: ClassVar[Conformance] = Conformance(
        variants={"fusion": {"head": "fusion"}, "learnable": {"alpha": "learnable", "meta_size": 4}}
    )
    state_attributes: ClassVar[tuple[str, ...]] = (*Method.state_attributes, "current_label_weight")
    leaves_gradients_unset: ClassVar[bool] = True  # with heads of its own the fusion is not trained

    #: α₀ at the start of a learnable one.
    _first_label_weight: ClassVar[float] = 0.05
    #: Whether the model is in training mode for the learnable α.
    _meta_training: ClassVar[bool] = False

    def __init__(
        self,
        alpha: Literal["fitted", "learnable", "constant"] = "fitted",
        head: Literal["late_avg", "fusion"] = "late_avg",
        label_weight: float | None = None,
        schedule_epochs: int | None = None,
        meta_lr: float = 1e-4,
        meta_size: int = 8,
        meta_scope: Literal["first", "all"] = "first",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.alpha = check_choice("alpha", alpha, ("fitted", "learnable", "constant"))
        self.head = check_choice("head", head, ("late_avg", "fusion"))
        if label_weight is None:
            label_weight = 0.5 if self.alpha == "constant" else self._first_label_weight
        self.label_weight = check_unit_interval("label_weight", label_weight)
        self.schedule_epochs = None if schedule_epochs is None else check_integer("schedule_epochs", schedule_epochs, 1)
        self.meta_lr = check_positive("meta_lr", meta_lr)
        self.meta_size: int | None = check_integer("meta_size", meta_size, 1)
        self.meta_scope = check_choice("meta_scope", meta_scope, ("first", "all"))
        self.seed = check_integer("seed", seed, 0)
        self.heads = nn.ModuleDict()
        self._start_over()

    def _start_over(self) -> None:
        #: The weight α₀ of the label loss in the current epoch.
        self.current_label_weight = fitted_label_weight(0, 1) if self.alpha == "fitted" else self.label_weight
        self._meta_batch: Batch | None = None  # read again from the data after a restart

    def setup(self, model: MultimodalClassifier) -> None:
        """Make one linear layer per modality for ``head="late_avg"``; α starts over."""
        super().setup(model)
        self._start_over()
        if self.head == "late_avg":
            self.heads = unimodal_heads(model)

    @property
    def plans_passes(self) -> bool:
        """With a learnable α, whose samples are left out of training."""
        return self.alpha == "learnable"

    def plan_epoch(self, context: EpochContext) -> EpochPlan:
        """Move α; samples for a learnable one are left out of training."""
        if self.alpha == "fitted":
            self.current_label_weight = fitted_label_weight(context.epoch, self.schedule_epochs or context.max_epochs)
        if self.alpha != "learnable":
            return EpochPlan()
        self._learn_label_weight(context)
        return self._plan(context)

    @property
    def follows_epochs(self) -> bool:
        """Unless α is constant."""
        return self.alpha != "constant"

    @property
    def trains_fusion(self) -> bool:
        """Not with heads of its own."""
        return self.head == "fusion"

    def losses(self, output: Output, targets: Tensor) -> Losses:
        """The weighted label and alignment losses."""
        weight, logits = self.current_label_weight, self._unimodal_logits(output)
        label = output.task.loss(self._fused_logits(output, logits), targets)
        terms = {"fused": 2 * weight * label}
        if weight < 1:
            terms["alignment"] = 2 * (1 - weight) * self._alignment(output, logits)
        return Losses(terms, {"label_weight": label.new_full((), weight)})

    def predict(self, output: Output) -> Prediction:
        """The mean of the modalities' logits, or the model's multimodal logits."""
        logits = self._unimodal_logits(output)
        return Prediction(self._fused_logits(output, logits), logits)

    def _unimodal_logits(self, output: Output) -> dict[str, Tensor]:
        return apply_heads(self, self.heads, output) if self.head == "late_avg" else output.unimodal_logits

    def _fused_logits(self, output: Output, logits: dict[str, Tensor]) -> Tensor:
        if self.head == "fusion":
            return output.logits
        values = torch.stack(list(logits.values()), 1)
        if output.present is None:
            return values.mean(1)
        present = presence(output)[..., None]
        return torch.where(present, values, 0.0).sum(1) / present.sum(1).clamp(min=1)

    def _alignment(self, output: Output, logits: dict[str, Tensor]) -> Tensor:
        """L_al, the mean over the pairs of modalities."""
        task = classification(output.task)
        choices = {name: task.choice_logits(values) for name, values in logits.items()}
        pairs = []
        for u, v in combinations(logits, 2):
            values = task.per_sample(alignment(choices[u], choices[v]))
            pairs.append(masked_mean(values, pair_mask(output, u, v)))
        return torch.stack(pairs).mean()

    # The learnable α

    def _learn_label_weight(self, context: EpochContext) -> None:
        if self._meta_batch is None:
            self._meta_batch = self._meta_samples(context)
        gradient = self._hyper_gradient(context.model, self._meta_batch)
        if not math.isfinite(gradient):
            raise ValueError(f"The gradient of LFM's α should be finite. Found {gradient} in epoch {context.epoch}.")
        rate = self.meta_lr * 0.5 ** (context.epoch // 20)
        alignment_weight = 1 - self.current_label_weight - rate * gradient
        self.current_label_weight = 1 - min(max(alignment_weight, 0.05), 0.95)

    def _hyper_gradient(self, model: MultimodalClassifier, batch: Batch) -> float:
        """Mean entry of the gradient of ⟨∇L_tot, ∇CE⟩ with ∇CE held constant."""
        parameters = [p for p in (*model.parameters(), *self.parameters()) if p.requires_grad]
        # Neither fused attention nor cuDNN's recurrent layers can be differentiated twice.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), torch.backends.cudnn.flags(enabled=False):
            with module_mode(model, training=self._meta_training):
                output = model(batch.inputs, batch.present)
                logits = self._unimodal_logits(output)  # within: the fusion runs here
                fused = self._fused_logits(output, logits)
            weight, label = self.current_label_weight, model.task.loss(fused, batch.targets)
            total = weight * label + (1 - weight) * self._alignment(output, logits)
            of_label = torch.autograd.grad(label, parameters, retain_graph=True, allow_unused=True)
            of_total = torch.autograd.grad(total, parameters, create_graph=True, allow_unused=True)
            gradients = zip(parameters, of_total, of_label, strict=True)
            products = {p: (t * c).sum() for p, t, c in gradients if t is not None and c is not None}
            scope = list(products)[: 1 if self.meta_scope == "first" else None]
            product = torch.stack(list(products.values())).sum()
            second = torch.autograd.grad(product, scope, allow_unused=True, materialize_grads=True)
        return float(torch.cat([g.flatten() for g in second]).mean())

    def _plan(self, context: EpochContext) -> EpochPlan:
        """One pass over all samples but those of the learnable α."""
        held_out = set(self._held_out(context))
        return EpochPlan((Pass(indices=tuple(i for i in range(context.num_train) if i not in held_out)),))

    def _meta_samples(self, context: EpochContext) -> Batch:
        """Samples for the learnable α."""
        return samples_at(context.train_batches(), self._held_out(context))

    def _held_out(self, context: EpochContext) -> Sequence[int]:
        size = self.meta_size or 0
        if size >= context.num_train:
            raise ValueError(
                f"Parameter `meta_size` should be below the number of training samples, {context.num_train}. "
                f"Found `meta_size = {size}`."
            )
        generator = seeded_generator(self.seed, context.seed)
        indices: list[int] = torch.randperm(context.num_train, generator=generator)[:size].tolist()
        return indices


def fitted_label_weight(epoch: int, num_epochs: int) -> float:
    """Weight α₀ of the official polynomial in an epoch, clipped to [0, 1].

    Args:
        epoch: Number of the epoch, from zero; beyond the run the weight stays as it was at its end.
        num_epochs: Length of the run the polynomial is stretched over; with 200 it is the official one.

    Example:
        >>> round(fitted_label_weight(29, 200), 4), round(fitted_label_weight(69, 70), 4)
        (0.3486, 0.916)
    """
    e = min(epoch / max(num_epochs - 1, 1), 1.0) * _LAST_EPOCH
    value = sum(coefficient * e**power for power, coefficient in enumerate(_COEFFICIENTS))
    return min(max(value, 0.0), 1.0)
