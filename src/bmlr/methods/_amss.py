"""AMSS: adaptively masked subnetworks."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from bmlr._checks import check_choice, check_integer, check_positive
from bmlr.encoders.features import pooled
from bmlr.functional import log_probabilities, widened
from bmlr.methods._modulation import (
    ScoredMethod,
    counted_sum,
    detached_unimodal_logits,
    encoder_gradients,
)
from bmlr.methods._support import SteppedMethod
from bmlr.methods._types import Conformance, Losses, MethodInfo, Remedy
from bmlr.model import MultimodalClassifier, Output


class AMSS(SteppedMethod, ScoredMethod):
    r"""Adaptively Mask Subnetworks considering modal Significance (Yang et al., 2025); AMSS+ with ``unbiased``.

    Training is joint, but in every step only some units of each encoder are updated: of a weight with n rows (filters
    of a convolution, output units of a linear layer) :math:`\lceil n\,c_u \rceil` are drawn without replacement, with
    probabilities proportional to the squared norms of their gradients :math:`g_k`, and the gradients of all others are
    set to zero. The modality that says more about the class gets the smaller fraction:

    .. math::
        r_u = \frac{H_Y - \mathrm{CE}_u + \tfrac12}{H_u}, \qquad
        c_u = \mathrm{clamp}\bigl( \mathrm{softmax}_u(-r_u / T),\ 0.1,\ 0.9 \bigr),

    with :math:`\mathrm{CE}_u` the cross-entropy of the unimodal logits, :math:`H_u` the mean entropy of the softmax
    over the features, and :math:`H_Y = -\sum_c n_c \log \mathrm{softmax}(n)_c` for the frequencies n of the classes.
    Where a numerator is not positive all :math:`c_u` are 1/M. All are means over the samples of an optimiser step, over
    accumulated batches and processes; samples that lack a modality or a target do not count.

    AMSS+ multiplies the gradient of a drawn unit by one over its probability of being drawn, so that the update is
    that of the plain gradient on average. Here this is exact (``factor="exact"``, ours): with the keys
    :math:`\log g_k` plus Gumbel noise, of which the largest are drawn, and :math:`\kappa` the largest that is not, the
    factor is :math:`1 / (1 - \exp(-g_k e^{-\kappa}))`. ``factor="official"`` is that of the official code,
    :math:`1 / (\tilde g_k + 1/n)` with :math:`\tilde g_k = g_k / \sum_j g_j`: it is about n/2, which is
    256 in a layer of 512 filters.

    Deviations:

    * The form is that of the official code, since the text of the paper was not at hand. :math:`H_Y` is there the
      cross-entropy of frequencies taken for logits, not the entropy of the classes; the ½ keeps numerators positive.
    * The official code masks the 3 × 3 convolutions of residual blocks. Here it is every weight of the encoder
      (``scope="weight"``), also that of encoders without convolutions, or every convolution (``conv``), stem and
      shortcuts included. It also draws masks of the last layer, and never applies them.
    * By default it draws with equal probabilities (``sample_mode random``); this is its ``Adaptive``, after which the
      method is named. Where fewer units than are to be drawn have a gradient, it stops with an error.
    * Draws come from a generator seeded by ``seed``, the run and the number of the step: the same in every process, and
      after a resume. No step waits for the device.
    * With more than two modalities c is a softmax over all (ours). The official code has two.

    The official code trains by SGD (1e-2, momentum 0.9, weight decay 1e-4, stepwise schedule). Adam divides a gradient
    by its own running size, so that a unit drawn rarely takes steps as long as one drawn often.

    Args:
        temperature: Temperature T > 0; the larger it is, the more equal are the fractions.
        unbiased: Rescale the drawn gradients (AMSS+).
        factor: How AMSS+ rescales: ``exact`` or ``official``.
        scope: Gradients to mask: ``weight`` (two or more dimensions) or ``conv`` (four dimensions).
        seed: Seed of the draws.

    Raises:
        ValueError: If a parameter is out of its range.

    Example:
        >>> import torch, bmlr
        >>> model = bmlr.MultimodalClassifier({"a": torch.nn.Linear(4, 8), "v": torch.nn.Linear(6, 8)}, 3)
        >>> method = bmlr.methods.AMSS()
        >>> losses = method(model({"a": torch.randn(2, 4), "v": torch.randn(2, 6)}), torch.tensor([0, 2]))
        >>> method.backward(losses, model)
        >>> method.adjust_gradients(model)
        >>> sorted(losses.logs)
        ['fraction_a', 'fraction_v']
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        paper="Learning to Rebalance Multi-Modal Optimization by Adaptively Masking Subnetworks",
        venue="TPAMI 2025",
        url="https://arxiv.org/abs/2404.08347",
        family="gradient scale",
        cost="1 forward, 1 backward, 1 pass over the gradients with a draw per layer",
    )
    tasks_reason: ClassVar[str] = "its fractions are mutual informations with a class"
    needs_separate_encoders: ClassVar[bool] = True
    remedy: ClassVar[Remedy | None] = Remedy("encoder", "updates fewer units of the encoder that is ahead", rank=9)
    conformance: ClassVar[Conformance] = Conformance(variants={"plus": {"unbiased": True}}, sorted_names=True)

    def __init__(
        self,
        temperature: float = 0.2,
        unbiased: bool = False,
        factor: Literal["exact", "official"] = "exact",
        scope: Literal["weight", "conv"] = "weight",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.temperature = check_positive("temperature", temperature)
        self.unbiased = bool(unbiased)
        self.factor = check_choice("factor", factor, ("exact", "official"))
        self.scope = check_choice("scope", scope, ("weight", "conv"))
        self.seed = check_integer("seed", seed, 0)

    def losses(self, output: Output, targets: Tensor) -> Losses:
        """The multimodal loss; training also adds up cross-entropies, entropies and classes."""
        terms = {"fused": output.task.loss(output.logits, targets)}
        if not self.training:
            return Losses(terms)
        sums = self.sums(output, targets)
        self.add_sums(sums)
        fractions = self.fractions(sums, len(output.features))
        return Losses(terms, {f"fraction_{u}": c for u, c in zip(sorted(output.features), fractions, strict=True)})

    @torch.no_grad()
    def sums(self, output: Output, targets: Tensor) -> Tensor:
        """Cross-entropies, entropies and numbers of samples by sorted name, then classes: shape (3 M + C,)."""
        labels, rows = output.task.labels(targets), []
        for name, logits in sorted(detached_unimodal_logits(output).items()):
            mask = output.task.counted(targets, output.mask(name))
            features = log_probabilities(pooled(output.features[name].detach()))
            log_p = log_probabilities(logits)
            losses, count = counted_sum(-(labels.to(log_p.dtype) * log_p).sum(1), mask)
            entropies, _ = counted_sum(-(features.exp() * features).sum(1), mask)
            rows.append(torch.stack([losses, entropies, count]))
        has_target = output.task.has_target(targets)
        classes = (labels if has_target is None else torch.where(has_target[:, None], labels, 0.0)).sum(0)
        return torch.cat([torch.stack(rows, 1).flatten(), classes.to(rows[0].dtype)])

    def fractions(self, sums: Tensor, num_modalities: int) -> Tensor:
        """Fraction c of the units of each encoder, shape (M,), from :meth:`sums`."""
        losses, entropies, counts = sums[: 3 * num_modalities].view(3, num_modalities)
        frequencies = sums[3 * num_modalities :] / sums[3 * num_modalities :].sum()
        of_classes = -(frequencies * frequencies.log_softmax(0)).sum()
        informations = of_classes - losses / counts + 0.5
        ratios = informations / (entropies / counts) / self.temperature
        fractions = (-ratios).softmax(0).clamp(0.1, 0.9)
        is_usable = (informations > 0).all() & fractions.isfinite().all()
        return torch.where(is_usable, fractions, 1 / num_modalities)

    @torch.no_grad()
    def change_gradients(self, model: MultimodalClassifier) -> None:
        """Draw units of each encoder, and set the gradients of the others to zero."""
        if (sums := self.take_sums()) is None:
            return
        generator_on = self.generators(self.step)
        fractions = self.fractions(sums, len(model.modalities))
        for name, fraction in zip(sorted(model.encoders), fractions, strict=True):
            for gradient in encoder_gradients(model.encoders[name], self.scope):
                norms = widened(gradient).flatten(1).square().sum(1)
                draws = torch.empty_like(norms).exponential_(generator=generator_on(gradient.device))
                factors = self.factors(norms, fraction.to(norms.dtype), draws).to(gradient.dtype)
                gradient.mul_(factors.view(-1, *[1] * (gradient.ndim - 1)))
        self.step += 1

    def factors(self, norms: Tensor, fraction: Tensor, draws: Tensor) -> Tensor:
        """Factor of each unit's gradient, shape (n,); zero for those that are not drawn.

        Args:
            norms: Squared norms of the units' gradients, shape (n,).
            fraction: Fraction of the units to draw.
            draws: Numbers of the exponential distribution, shape (n,).
        """
        shares = norms / norms.sum().clamp(min=torch.finfo(norms.dtype).tiny)
        # The largest of log g plus Gumbel noise are draws without replacement, and their number need not be known here.
        keys = shares.log() - draws.log()
        ordered, order = keys.sort(descending=True, stable=True)
        count = (len(norms) * fraction).ceil()
        ranks = torch.empty_like(order).scatter_(0, order, torch.arange(len(norms), device=order.device))
        is_drawn = (ranks < count) & (shares > 0)
        if not self.unbiased:
            return is_drawn.to(norms.dtype)
        if self.factor == "official":
            factors = 1 / (shares + 1 / len(norms))
        else:
            following = ordered.gather(0, count.long().clamp(max=len(norms) - 1).view(1))
            factors = -1 / torch.expm1(-(shares.log() - following).exp())
            factors = torch.where(count < len(norms), factors, 1.0)
        return torch.where(is_drawn, factors, 0.0)
