"""CGGM: classifier-guided gradient modulation."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from bmlr._checks import check_choice, check_non_negative, check_positive
from bmlr.functional import masked_mean, widened
from bmlr.methods._modulation import (
    ScoredMethod,
    accuracy_sums,
    check_set_up,
    encoder_gradients,
    fusion_slices,
    scale_gradients,
)
from bmlr.methods._support import HeadedMethod, apply_heads, unimodal_losses
from bmlr.methods._types import ALL_TASKS, Conformance, Losses, MethodInfo, Prediction, Remedy
from bmlr.model import MultimodalClassifier, Output
from bmlr.tasks import Regression

#: Added to the denominator of coefficients, as in the official code.
_SMALLEST = 1e-8


class CGGM(ScoredMethod, HeadedMethod):
    r"""Classifier-Guided Gradient Modulation (Guo et al., 2024), of magnitude and of direction.

    A linear head :math:`h_u` per modality watches its encoder: it is trained on detached features. With :math:`a_u^t`
    its accuracy in step t and :math:`\Delta_u = a_u^t - a_u^{t-1}`, the gradient of encoder u is multiplied by

    .. math:: \rho B_u^t, \qquad B_u^t = \frac{\sum_{v \ne u} \Delta_v}{\sum_v \Delta_v} ,

    so that an encoder learns faster while the others improve. The last term of the loss turns the direction in which
    the multimodal loss moves a modality to that of its own head:

    .. math:: L = \mathrm{CE}(y, f) + \sum_u \mathrm{CE}(y, h_u(\mathrm{sg}\, z^u)) +
              \frac{\lambda}{M} \sum_u \bigl( |B_u^{t-1}| - B_u^{t-1} \cos_u \bigr) .

    ``direction="gradients"`` (the paper) compares gradients: :math:`\cos_u` is the mean over the samples that have
    modality u of :math:`\cos(\nabla_{z^u} \mathrm{CE}(y, f), \mathrm{sg}\, \nabla_{z^u} \mathrm{CE}(y, h_u))`, and
    is differentiated a second time through the fusion. ``direction="weights"`` (the official code) compares the slice
    of the fusion's weight that reads modality u (``concat`` and ``sum`` only) with the weight of its head, detached.

    Accuracies are those of an optimiser step, over accumulated batches and processes. In the first step
    :math:`a^{t-1} = 0`, and before it B is 1. B is clamped to [0, ``clamp``]: accuracies of batches are noisy,
    :math:`\sum \Delta` is often nearly zero, and B is then as large as you like with either sign, so that an encoder
    climbs its loss. ``clamp=None`` is the formula as published, with the 1e-8 that the official code adds to the
    denominator. No step waits for the device.

    Deviations:

    * The paper has transformer classifiers over sequences; features here are vectors, and heads linear.
    * The official code trains the classifiers by an optimiser of their own (Adam, 5e-4). Here they are in the run's.
    * The paper compares the gradients of the last layers, which have the same shape in its models. Gradients at the
      features have the same shape in any model, and the same meaning.
    * B of the direction loss is that of the step before, as in the official code, and the cosine that of the current
      step. In the official code the cosine's gradient too is that of the step before.
    * For numbers the accuracy is minus the squared error (ours; the official code has the sign of a sentiment).

    Samples that lack a modality or a target do not count. The authors train by Adam (1e-3; 30 epochs, batches of 64,
    gradients clipped to 0.8), with ρ = 1.3 and λ = 0.2. Adam undoes a factor that stays the same for long.

    Args:
        rho: Scale ρ > 0 of the coefficients.
        weight: Weight λ ≥ 0 of the direction loss.
        direction: What the direction loss compares: ``gradients`` (paper) or ``weights`` (official code).
        clamp: Largest coefficient B > 0; the smallest is then 0. None clamps nothing.

    Raises:
        ValueError: If a parameter is out of its range.

    Example:
        >>> import torch, bmlr
        >>> model = bmlr.MultimodalClassifier({"a": torch.nn.Linear(4, 8), "v": torch.nn.Linear(6, 8)}, 3)
        >>> method = bmlr.methods.CGGM()
        >>> method.setup(model)
        >>> losses = method(model({"a": torch.randn(2, 4), "v": torch.randn(2, 6)}), torch.tensor([0, 2]))
        >>> method.backward(losses, model)
        >>> method.adjust_gradients(model)
        >>> sorted(losses.terms)
        ['a', 'direction', 'fused', 'v']
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        paper="Classifier-guided Gradient Modulation for Enhanced Multimodal Learning",
        venue="NeurIPS 2024",
        url="https://arxiv.org/abs/2411.01409",
        family="gradient scale",
        cost="1 forward, 1 backward, M heads; the fusion is differentiated twice",
    )
    tasks: ClassVar[tuple[str, ...]] = ALL_TASKS
    needs_separate_encoders: ClassVar[bool] = True
    remedy: ClassVar[Remedy | None] = Remedy("encoder", "speeds up an encoder while the others improve", rank=8)
    conformance: ClassVar[Conformance] = Conformance(sorted_names=True)

    accuracies: Tensor
    coefficients: Tensor

    def __init__(
        self,
        rho: float = 1.3,
        weight: float = 0.2,
        direction: Literal["gradients", "weights"] = "gradients",
        clamp: float | None = 2.0,
    ) -> None:
        super().__init__()
        self.rho = check_positive("rho", rho)
        self.weight = check_non_negative("weight", weight)
        self.direction = check_choice("direction", direction, ("gradients", "weights"))
        self.clamp = None if clamp is None else check_positive("clamp", clamp)
        self.register_buffer("accuracies", torch.zeros(0))
        self.register_buffer("coefficients", torch.zeros(0))

    def setup(self, model: MultimodalClassifier) -> None:
        """Make one linear head per modality, and forget accuracies and coefficients.

        Raises:
            ValueError: If weights are to be compared and the fusion has none that reads one modality alone.
        """
        super().setup(model)
        if self.direction == "weights" and not fusion_slices(model.fusion):
            raise ValueError(
                "CGGM with `direction = 'weights'` compares heads with the part of the fusion that reads one modality. "
                f"Found {type(model.fusion).__name__}, which has none: choose concat, sum or the direction 'gradients'."
            )
        like = next(model.parameters())
        dtype = torch.promote_types(like.dtype, torch.float32)
        self.accuracies = torch.zeros(len(model.modalities), device=like.device, dtype=dtype)
        self.coefficients = torch.ones(len(model.modalities), device=like.device, dtype=dtype)

    def losses(self, output: Output, targets: Tensor) -> Losses:
        """The multimodal loss, those of the heads and the direction loss; training also adds up the accuracies."""
        check_set_up(self, len(self.accuracies), output)
        task = output.task
        watched = {u: z.detach().requires_grad_(torch.is_grad_enabled()) for u, z in output.features.items()}
        logits = apply_heads(self, self.heads, output.replace_features(watched))
        terms = {"fused": task.loss(output.logits, targets), **unimodal_losses(output, logits, targets)}
        if not (self.training and torch.is_grad_enabled()):
            return Losses(terms)
        self.add_sums(accuracy_sums(output, logits, targets))
        coefficients = dict(zip(sorted(logits), self.coefficients, strict=True))
        if self.weight:
            if self.direction == "weights":
                cosines = self._weight_cosines(output)
            else:
                cosines = self._gradient_cosines(output, targets, terms, watched)
            shares = [coefficients[u].abs() - coefficients[u] * cosines[u] for u in sorted(cosines)]
            if shares:
                terms["direction"] = self.weight / len(logits) * torch.stack(shares).sum()
        return Losses(terms, {f"coefficient_{u}": b for u, b in coefficients.items()})

    @torch.no_grad()
    def change_gradients(self, model: MultimodalClassifier) -> None:
        """Multiply the gradients of each encoder by ρ B."""
        if (sums := self.take_sums()) is None:
            return
        means = sums[0] / sums[1]
        scores = (-means if isinstance(model.task, Regression) else means).to(self.accuracies.dtype)
        scores = torch.where(scores.isfinite(), scores, self.accuracies)  # no sample of a modality changes nothing
        changes = scores - self.accuracies
        total = changes.sum() + _SMALLEST
        coefficients = (total - changes) / total
        self.accuracies = scores
        self.coefficients = coefficients if self.clamp is None else coefficients.clamp(0, self.clamp)
        for name, coefficient in zip(sorted(model.encoders), self.coefficients, strict=True):
            scale_gradients(encoder_gradients(model.encoders[name]), self.rho * coefficient)

    def predict(self, output: Output) -> Prediction:
        """Logits of the model alone: the heads are for training, as in the paper."""
        return Prediction(output.logits, output.unimodal_logits)

    def _gradient_cosines(
        self, output: Output, targets: Tensor, terms: dict[str, Tensor], watched: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Mean cosine of the gradients of both losses at the features of each trained encoder."""
        names = [u for u, z in output.features.items() if z.requires_grad]
        if not names:
            return {}
        # Times the number of samples: gradients of a mean would underflow in half precision.
        fused = terms["fused"] * output.batch_size
        heads = torch.stack([terms[u] for u in names]).sum() * output.batch_size
        of_fused = torch.autograd.grad(fused, [output.features[u] for u in names], create_graph=True)
        of_heads = torch.autograd.grad(heads, [watched[u] for u in names], retain_graph=True)
        cosines = {}
        for u, first, second in zip(names, of_fused, of_heads, strict=True):
            values = F.cosine_similarity(widened(first).flatten(1), widened(second).flatten(1), dim=-1)
            cosines[u] = masked_mean(values, output.task.counted(targets, output.mask(u)))
        return cosines

    def _weight_cosines(self, output: Output) -> dict[str, Tensor]:
        """Cosine of the fusion's weights and of a head's, by name."""
        cosines = {}
        for u, (weight, columns) in fusion_slices(output.fusion).items():
            of_head = self.heads[u].get_parameter("weight").detach()
            cosines[u] = F.cosine_similarity(weight[:, columns].flatten(), of_head.flatten(), dim=0)
        return cosines
