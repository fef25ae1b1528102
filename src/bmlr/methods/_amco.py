"""AMCo: adaptive mask co-optimisation."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from bmlr._checks import check_integer, check_non_negative, check_unit_interval
from bmlr.functional import log_probabilities
from bmlr.methods._support import SteppedMethod, all_reduce_mean, classification, presence, unimodal_losses
from bmlr.methods._types import CLASSIFICATION, Conformance, Losses, MethodInfo
from bmlr.model import Output


class AMCo(SteppedMethod):
    r"""Adaptive Mask Co-optimisation (Zhou et al., 2023).

    Features of the modality the model depends on are masked. How much it depends on modality u is its share of the
    probability over all classes of all modalities,

    .. math:: q_u = \frac1B \sum_i \sum_c \mathrm{softmax}\bigl([\ell^1_i, \dots, \ell^M_i]\bigr)_{u, c} ,

    with the unimodal logits :math:`\ell^u`. Of the modality with the largest q, if it reaches σ, a share p of the d
    features, drawn anew for every batch, is set to zero before the fusion, and the others are multiplied by
    :math:`d / (d - \lfloor p d \rfloor)`. The masked multimodal loss makes the model fit the other modalities, the
    unimodal losses preserve each encoder:

    .. math::
        L = \mathrm{CE}(y, f(\text{masked})) + w \sum_u \mathrm{CE}(y, \ell^u), \qquad
        p = p_{max} \sin\Bigl( \frac\pi2 \min\bigl(1, \frac{t}{\varepsilon}\bigr) \Bigr)

    with the fraction t of the training that is over, by epochs.

    The paper has no public code and its text could not be read for this implementation. Known from its abstract is that
    a mask makes dependent modalities harder to learn and that a co-optimisation preserves them. The share q with its
    threshold, the sine and the rescaling are those of BalanceBenchmark's form of the method (σ = 0.5, ε = 0.3). These
    choices are ours and may differ from the paper:

    * t is the fraction of the training. In BalanceBenchmark t is zero at the start of every epoch and grows by a tenth
      of the epoch's number with every batch: from its second epoch on the mask is whole after a few batches.
    * :math:`p_{max}` is 0.9, where the factor is 10, the largest of BalanceBenchmark; its mask ends at 1, a modality
      switched off.
    * q is that of the same batch, without mask. BalanceBenchmark takes the first modality that has reached σ in any
      batch of the epoch.
    * Unimodal losses see all features. BalanceBenchmark's see the masked ones.
    * Any number of modalities, any fusion, each label as a choice of two classes.

    Samples that lack a modality give it no share, and one that has the dependent modality alone keeps it whole. Draws
    come from a generator seeded by ``seed``, the run's seed and the number of the step.

    Args:
        threshold: Share σ in [0, 1] from which on a modality is masked.
        ramp: Fraction ε in [0, 1] of the training at whose end the mask has its full rate; 0 begins with it.
        rate: Largest share p_max in [0, 1] of masked features.
        weight: Weight w ≥ 0 of the unimodal losses.
        seed: Seed of the masks, beside the run's.

    Raises:
        ValueError: If a parameter is out of its range.

    Example:
        >>> import torch, bmlr
        >>> model = bmlr.MultimodalClassifier({"a": torch.nn.Linear(4, 8), "v": torch.nn.Linear(6, 8)}, 3)
        >>> method = bmlr.methods.AMCo()
        >>> plan = method.start_epoch(bmlr.methods.EpochContext(epoch=3, max_epochs=10, model=model))
        >>> losses = method(model({"a": torch.randn(2, 4), "v": torch.randn(2, 6)}), torch.tensor([0, 2]))
        >>> sorted(losses.terms), sorted(losses.logs)
        (['a', 'fused', 'v'], ['dependence_a', 'dependence_v'])
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        paper="Adaptive Mask Co-optimization for Modal Dependence in Multimodal Learning",
        venue="ICASSP 2023",
        url="https://doi.org/10.1109/ICASSP49357.2023.10096641",
        family="data and alternation",
        cost="1 forward, 1 backward, 1 more readout of the fusion",
    )
    tasks: ClassVar[tuple[str, ...]] = CLASSIFICATION
    tasks_reason: ClassVar[str] = "it compares modalities by their shares of one probability over classes"
    graph_reason: ClassVar[str] = "draws the masks of a step on the host"
    conformance: ClassVar[Conformance] = Conformance(
        short={"ramp": 0.0},
        alters_features="masks features of the modality the model depends on",
        not_mean_over_samples="draws one mask per batch, of the modality with the largest share in it",
        sorted_names=True,
    )

    def __init__(
        self, threshold: float = 0.5, ramp: float = 0.3, rate: float = 0.9, weight: float = 1.0, seed: int = 0
    ) -> None:
        super().__init__()
        self.threshold = check_unit_interval("threshold", threshold)
        self.ramp = check_unit_interval("ramp", ramp)
        self.rate = check_unit_interval("rate", rate)
        self.weight = check_non_negative("weight", weight)
        self.seed = check_integer("seed", seed, 0)

    @property
    def follows_epochs(self) -> bool:
        """While the mask grows."""
        return self.ramp > 0

    @property
    def mask_rate(self) -> float:
        """Share p of masked features in the current epoch."""
        progress = self.epoch / max(self.max_epochs, 1)
        return self.rate * (math.sin(math.pi / 2 * min(1.0, progress / self.ramp)) if self.ramp else 1.0)

    def losses(self, output: Output, targets: Tensor) -> Losses:
        """The multimodal loss, in training of masked features, and the unimodal ones."""
        task, logits = output.task, output.unimodal_logits
        terms = unimodal_losses(output, logits, targets, self.weight)
        if not self.training:
            return Losses({"fused": task.loss(output.logits, targets), **terms})
        shares = self.dependence(output)
        fused = task.loss(self._mask(output, shares).logits, targets)
        logs = {f"dependence_{u}": share for u, share in zip(logits, shares, strict=True)}
        return Losses({"fused": fused, **terms}, logs)

    @torch.no_grad()
    def dependence(self, output: Output) -> Tensor:
        """Shares q, shape (M,), in the order of the model."""
        task, present = classification(output.task), presence(output)
        columns = [task.choice_logits(values) for values in output.unimodal_logits.values()]
        masks = [task.choice_mask(mask) for mask in present.unbind(1)]
        lowest = torch.finfo(columns[0].dtype).min  # not -inf: a sample may have none at all
        blocks = [values.masked_fill(~mask[:, None], lowest) for values, mask in zip(columns, masks, strict=True)]
        joint = log_probabilities(torch.cat(blocks, 1)).exp()
        return all_reduce_mean(joint.unflatten(1, (len(blocks), -1)).sum(2).mean(0))

    def _mask(self, output: Output, shares: Tensor) -> Output:
        """The output with features of the dependent modality masked."""
        generator = self.generator(self.step)
        self.step += 1
        leading = torch.zeros_like(shares, dtype=torch.bool).index_fill(0, shares.argmax(), True)
        has_others = (presence(output).sum(1) > 1)[:, None]
        features = dict(output.features)
        dependent = dict(zip(features, leading & (shares >= self.threshold), strict=True))
        for name in sorted(features):
            z = features[name]
            width = z.shape[-1]
            num_masked = int(self.mask_rate * width)
            ranks = torch.randperm(width, generator=generator).to(z.device, non_blocking=True)
            factor = width / (width - num_masked) if num_masked < width else 0.0
            masked = z * (ranks >= num_masked).to(z.dtype) * factor
            is_masked = (dependent[name] & has_others).view(-1, *[1] * (z.ndim - 1))
            features[name] = torch.where(is_masked, masked, z)
        return output.replace_features(features)
