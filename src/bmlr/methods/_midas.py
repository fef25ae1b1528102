"""MIDAS: misaligned samples with soft labels."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from bmlr._checks import check_choice, check_integer, check_non_negative
from bmlr._modes import preserved_buffers
from bmlr.encoders.features import pooled
from bmlr.functional import log_probabilities, masked_mean, unit_rows, widened
from bmlr.methods._support import (
    HeadedMethod,
    SteppedMethod,
    all_reduce_sum,
    apply_heads,
    classification,
    presence,
    unimodal_losses,
)
from bmlr.methods._types import CLASSIFICATION, Conformance, EpochContext, EpochPlan, Losses, MethodInfo
from bmlr.model import MultimodalClassifier, Output


class MIDAS(SteppedMethod, HeadedMethod):
    r"""Misalignment-based data augmentation (Hwang et al., 2025).

    Modalities of samples of different classes are put together, with a label that is shared by their confidences.

    In the first ``warmup`` epochs only :math:`L_{uni} = \sum_u \mathrm{CE}(y, h_u(z^u))` is minimised, with a linear
    head h_u of the method's own per modality. After them a sample i meets drawn ones of another class, one for each
    other modality. From these M sources M misaligned samples are made, in each of which every modality comes from
    another source; for two modalities they are :math:`(z^1_i, z^2_j)` and :math:`(z^1_j, z^2_i)`. With :math:`y^{(u)}`
    the class of the source of u, :math:`p^u = \mathrm{softmax}(h_u)` and :math:`\tilde p` the prediction of the
    misaligned sample,

    .. math::
        \tilde c_u = \frac{p^u_{y^{(u)}}}{\sum_v p^v_{y^{(v)}}}, \qquad
        L = \mathrm{CE}(y, f) + L_{uni} + \lambda\, \mathbb{E}\Big[ w \sum_u \alpha_u \tilde c_u
        (-\log \tilde p_{y^{(u)}}) \Big],

    where the mean is over all misaligned samples (Eqs. 2 to 4, 9 to 11). :math:`w = 1 + (s + 1) / 2` favours hard ones:
    s is the cosine of a replaced feature of i and what replaces it, the mean over the replaced ones (Eq. 8). α starts
    at 1 in every epoch. After each batch, for the modality of the least mean :math:`\tilde c` alone (Eqs. 5 to 7),

    .. math::
        \alpha_u \leftarrow \max\Big(1, \alpha_u + \eta\, \mathbb{E}\Big[\tilde c_u -
        \frac{\tilde p_{y^{(u)}}}{\sum_v \tilde p_{y^{(v)}}}\Big]\Big), \qquad \alpha_v \leftarrow 1 \text{ for others.}

    :math:`\tilde c`, w and α have no gradient. Features are swapped, not inputs, as in the paper's appendix.

    Inferred: the text of the paper that could be read has lost its displayed equations, and the official code could not
    be had. Eqs. 2, 3, 5, 7 and 8 follow from the prose and Algorithm 1. The form of w is that of two public notes on
    the paper (the prose says only that harder samples weigh more); ``cosine`` is max(0, s), ``none`` is 1. The notes
    put a sign around the difference in α's update, ``update="sign"``; the prose calls it the batch-averaged difference,
    the default. The length of the warm-up is not in the text: 5 epochs is ours. So is the mean over the M misaligned
    samples where Eq. 11 has one, and, beyond two modalities, that they are the M rotations of the sources in the order
    of their names, and that partners may be one sample.

    Deviations: a sample without a partner, as in a batch of one class, has no misaligned samples, and neither does one
    that lacks a modality or a target. With several labels (ours) another class is another set of labels, and each label
    has its own :math:`\tilde c`; the mean is over them. Of soft targets the most probable class is swapped. Class
    weights and label smoothing do not act on misaligned samples. In distributed training each process swaps within its
    batch, and α follows the means over all.

    The official training: SGD with momentum 0.9, weight decay 1e-4 and rate 1e-3 (UCF-101, MOSI 1e-2), batches of 64,
    70 epochs with a tenth of the rate from epoch 50 (Food-101 30, 15), splits of its own of 70 : 10 : 20.

    Args:
        weight: Weight λ ≥ 0 of the misaligned samples; 5 for Kinetics-Sounds, 1 elsewhere; at 5 Food-101 collapsed.
        step_size: Step η ≥ 0 of α.
        warmup: Number of epochs that train by the unimodal losses alone.
        hardness: Weight w of a misaligned sample: ``shifted`` (default), ``cosine`` or ``none``.
        update: α follows the ``difference`` (default) or its ``sign``.
        seed: Seed of the partners. They depend on it and on the number of the training step alone.

    Raises:
        ValueError: If a parameter is out of its range.

    Example:
        >>> import torch, bmlr
        >>> model = bmlr.MultimodalClassifier({"a": torch.nn.Linear(4, 8), "v": torch.nn.Linear(6, 8)}, 3)
        >>> method = bmlr.methods.MIDAS(warmup=0)
        >>> method.setup(model)
        >>> plan = method.start_epoch(bmlr.methods.EpochContext(epoch=0, max_epochs=10, model=model))
        >>> losses = method(model({"a": torch.randn(2, 4), "v": torch.randn(2, 6)}), torch.tensor([0, 2]))
        >>> sorted(losses.terms)
        ['a', 'fused', 'misaligned', 'v']
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        paper="MIDAS: Misalignment-based Data Augmentation Strategy for Imbalanced Multimodal Learning",
        venue="NeurIPS 2025",
        url="https://arxiv.org/abs/2509.25831",
        family="data and alternation",
        cost="1 forward, 1 backward, 1 fusion forward of M batches",
    )
    tasks: ClassVar[tuple[str, ...]] = CLASSIFICATION
    tasks_reason: ClassVar[str] = "it puts together samples of different classes"
    epoch_parameters: ClassVar[tuple[str, ...]] = ("warmup",)
    leaves_gradients_unset: ClassVar[bool] = True
    graph_reason: ClassVar[str] = "draws the partners of a step on the host"
    conformance: ClassVar[Conformance] = Conformance(
        short={"warmup": 0, "step_size": 1.0},
        variants={"sign": {"warmup": 0, "hardness": "cosine", "update": "sign"}},
        not_mean_over_samples="puts together samples of one batch",
        not_mean_over_processes="puts together samples of each process",
        sorted_names=True,
    )

    alpha: Tensor

    def __init__(
        self,
        weight: float = 1.0,
        step_size: float = 0.05,
        warmup: int = 5,
        hardness: Literal["shifted", "cosine", "none"] = "shifted",
        update: Literal["difference", "sign"] = "difference",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.weight, self.step_size = check_non_negative("weight", weight), check_non_negative("step_size", step_size)
        self.warmup = check_integer("warmup", warmup, 0)
        self.hardness = check_choice("hardness", hardness, ("shifted", "cosine", "none"))
        self.update = check_choice("update", update, ("difference", "sign"))
        self.seed = check_integer("seed", seed, 0)
        #: Weight α of each modality, by sorted name, shape (M,).
        self.register_buffer("alpha", torch.ones(0))

    def setup(self, model: MultimodalClassifier) -> None:
        """Make one linear head per modality, and its weight."""
        super().setup(model)
        like = next(model.parameters())
        self.alpha = torch.ones(len(model.modalities), device=like.device, dtype=widened(like).dtype)

    def plan_epoch(self, context: EpochContext) -> EpochPlan:
        """One pass, with weights of 1."""
        self.alpha.fill_(1)
        return EpochPlan()

    def losses(self, output: Output, targets: Tensor) -> Losses:
        """Aligned, unimodal and misaligned losses; in the warm-up the unimodal ones alone."""
        task, heads = classification(output.task), apply_heads(self, self.heads, output)
        terms = unimodal_losses(output, heads, targets)
        if self.epoch < self.warmup:
            with torch.no_grad(), preserved_buffers(output.fusion):  # shown, and trained by nothing yet
                terms["fused"] = task.loss(output.fusion(output.features), targets)
            return Losses(terms)
        terms["fused"] = task.loss(output.logits, targets)
        names = sorted(output.features)
        sources, usable = self._sources(output, targets)
        mixed = {name: output.features[name][rows] for name, rows in zip(names, sources, strict=True)}
        with preserved_buffers(output.fusion):  # running statistics are those of aligned samples
            logits = output.replace_features({name: mixed[name] for name in output.features}).logits
        classes = task.class_indices(targets).view(output.batch_size, -1)
        log_p = log_probabilities(task.choice_logits(logits))
        labels = [classes[rows].flatten() for rows in sources]
        fused = torch.stack([log_p.gather(1, y[:, None]).squeeze(1) for y in labels])
        alone = torch.stack(
            [
                log_probabilities(task.choice_logits(heads[name].detach()[rows])).gather(1, y[:, None]).squeeze(1)
                for name, rows, y in zip(names, sources, labels, strict=True)
            ]
        )
        shares, predicted = alone.softmax(0), fused.detach().softmax(0)
        values = task.per_sample(-(self.alpha[:, None].clone() * shares * fused).sum(0))
        terms["misaligned"] = self.weight * masked_mean(self._hardness(output, sources) * values, usable)
        logs = {f"weight_{name}": value for name, value in zip(names, self.alpha.clone(), strict=True)}
        if self.training:  # evaluation must change neither later weights nor later partners
            means = [torch.stack([task.per_sample(row) for row in rows]) for rows in (shares, predicted)]
            self._update_alpha(means[0], means[1], usable)
            self.step += 1
        return Losses(terms, logs)

    def _sources(self, output: Output, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Source of each modality of each misaligned sample, shape (M, M·B), and which there are, shape (M·B,)."""
        size, modalities, device = output.batch_size, len(output.features), targets.device
        classes = classification(output.task).class_indices(targets).view(size, -1)
        complete = presence(output).all(1)
        counted = output.task.counted(targets, complete)
        complete = complete if counted is None else counted
        allowed = (classes[:, None] != classes).any(2) & complete[:, None] & complete
        generator = self.generator(self.step)
        keys = torch.rand(modalities - 1, size, size, generator=generator, dtype=torch.float32)
        partners = torch.where(allowed, keys.to(device, non_blocking=True), -1.0).argmax(2)
        own = torch.arange(size, device=device)[None]
        candidates = torch.cat([own, partners])  # sources of each sample, itself first
        rotations = [candidates.roll(-shift, 0) for shift in range(modalities)]
        return torch.cat(rotations, 1), allowed.any(1).repeat(modalities)

    def _hardness(self, output: Output, sources: Tensor) -> Tensor:
        """Weight w of each misaligned sample, shape (M·B,)."""
        if self.hardness == "none":
            return sources.new_ones(sources.shape[1], dtype=torch.float32)
        own = torch.arange(output.batch_size, device=sources.device).repeat(len(sources))
        cosines = []
        for name, rows in zip(sorted(output.features), sources, strict=True):
            z = unit_rows(widened(pooled(output.features[name]).detach()))
            cosines.append(torch.where(rows == own, 0.0, (z[own] * z[rows]).sum(1)))
        cosine = torch.stack(cosines).sum(0) / (sources != own).sum(0).clamp(min=1)
        return 1 + (cosine + 1) / 2 if self.hardness == "shifted" else cosine.clamp(min=0)

    def _update_alpha(self, shares: Tensor, predicted: Tensor, usable: Tensor) -> None:
        """Move the weight of the weakest modality, from values of shape (M, M·B)."""
        sums = [torch.where(usable, x, 0.0).sum(1) for x in (shares, predicted)]
        totals = all_reduce_sum(torch.cat([*sums, usable.sum()[None].to(shares.dtype)]))
        count = totals[-1]
        target, prediction = (totals[:-1] / count.clamp(min=1)).chunk(2)
        difference = target - prediction
        step = difference.sign() if self.update == "sign" else difference
        weakest = torch.arange(len(target), device=target.device) == target.argmin()
        moved = torch.where(weakest, (self.alpha + self.step_size * step).clamp(min=1), 1.0)
        self.alpha.copy_(torch.where(count > 0, moved, self.alpha))
