"""SMV: valuations of modalities, per sample or on the whole, and resampling by them."""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod
from typing import ClassVar, Literal

import torch
from torch import Tensor

from bmlr._checks import check_choice, check_integer, check_non_negative, check_unit_interval
from bmlr._modes import module_mode
from bmlr.batch import Batch
from bmlr.functional import shapley_values, subsets_of
from bmlr.methods._support import (
    SteppedMethod,
    check_batch,
    classification,
    missing_indices,
    output_alone,
    pass_over,
    presence,
    value_samples,
)
from bmlr.methods._types import Conformance, EpochContext, EpochPlan, Losses, MethodInfo, Pass
from bmlr.model import MultimodalClassifier, Output

_ALL, _PREFIX = "all", "keep:"
_INFO = MethodInfo(
    paper="Enhancing Multimodal Cooperation via Sample-level Modality Valuation",
    venue="CVPR 2024",
    url="https://arxiv.org/abs/2309.06255",
    family="data and alternation",
)


class _SMV(SteppedMethod):
    """Joint training on all samples and on copies with only one modality."""

    tasks_reason: ClassVar[str] = "it values modalities by predictions that are right"
    epoch_parameters: ClassVar[tuple[str, ...]] = ("warmup",)
    leaves_gradients_unset: ClassVar[bool] = True
    state_attributes: ClassVar[tuple[str, ...]] = (*SteppedMethod.state_attributes, "contributions")
    conformance: ClassVar[Conformance] = Conformance(
        short={"warmup": 1}, alters_features="trains on copies with the features of one modality alone"
    )

    warmup: int
    seed: int = 0

    def __init__(self) -> None:
        super().__init__()
        #: Mean contribution of each modality before the present epoch, by sorted name; empty in the warm-up.
        self.contributions = torch.zeros(0)

    def setup(self, model: MultimodalClassifier) -> None:
        """Check the model, and forget earlier contributions."""
        super().setup(model)
        self.contributions = torch.zeros(0)

    @property
    def plans_passes(self) -> bool:
        """Always: passes over copies after the warm-up."""
        return True

    def plan_epoch(self, context: EpochContext) -> EpochPlan:
        """One pass over all samples, and after the warm-up passes over copies, batches mixed."""
        if context.epoch < self.warmup:
            return EpochPlan()
        copies = self._copies(context)
        passes = [pass_over(_PREFIX + name, indices) for name, indices in copies.items() if indices]
        # A tag of its own: a loop that knows nothing of the copies would do without them, and not be told.
        return EpochPlan((Pass(_ALL), *passes), order="shuffled") if passes else EpochPlan()

    @abstractmethod
    def _copies(self, context: EpochContext) -> dict[str, list[int]]:
        """Samples to be trained once more with one modality alone, by its name."""

    def losses(self, output: Output, targets: Tensor) -> Losses:
        """The multimodal loss."""
        return Losses({"fused": output.task.loss(output.logits, targets)}, self._logs(output.features))

    def batch_losses(self, model: MultimodalClassifier, batch: Batch) -> Losses:
        """The multimodal loss; of one modality alone if the batch says so."""
        if not batch.tag.startswith(_PREFIX):
            return super().batch_losses(model, batch)
        check_batch(model, batch)
        kept = check_choice("tag", batch.tag.removeprefix(_PREFIX), model.modalities)
        alone = output_alone(model, batch, kept)
        z = alone.features[kept]
        features = {u: z if u == kept else model.zero_features(u, batch.inputs[u]).to(z) for u in model.modalities}
        loss = model.task.loss(model.fusion(features), batch.targets, alone.mask(kept))
        return Losses({"fused": loss, **alone.readout_losses(batch.targets)}, self._logs(features))

    def _logs(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {f"contribution_{u}": x for u, x in zip(sorted(features), self.contributions, strict=False)}


@torch.no_grad()
def contributions(output: Output, targets: Tensor) -> Tensor:
    r"""Shapley value of each modality in each sample, shape (B, M), by sorted name.

    The benefit v(S) of a subset is its size if the prediction from its features alone is right, and else 0; modalities
    that a sample lacks do not count in the size. NaN stands for samples without a target, and for modalities that a
    sample lacks.
    """
    task, names = classification(output.task), sorted(output.features)
    has = dict(zip(names, presence(output, names).unbind(1), strict=True))
    classes, benefits = task.class_indices(targets), {}
    for subset in subsets_of(names):
        is_right = task.predict(output.subset_logits(subset)) == classes
        benefits[subset] = is_right.double() * torch.stack([has[name] for name in subset]).sum(0)
    values = shapley_values(benefits)
    counted = torch.stack([has[name] for name in names], 1)
    if (has_target := task.has_target(targets)) is not None:
        counted = counted & has_target[:, None]
    return torch.stack([values[name] for name in names], 1).masked_fill(~counted, torch.nan)


class SampleSMV(_SMV):
    r"""Sample-level modality valuation (Wei et al., 2024).

    Samples come again with the modality alone that contributed little to them.

    The benefit v(S) of a subset S of the modalities is |S| if the prediction from S alone is right (the other features
    are zero), and else 0. The contribution of modality u to a sample is the Shapley value

    .. math:: \phi_u = \sum_{S \not\ni u} \frac{|S|!\,(M-|S|-1)!}{M!} \bigl( v(S \cup u) - v(S) \bigr),

    with two modalities :math:`(v(u) + v(u, w) - v(w)) / 2`, one of −0.5, 0, 0.5, 1 and 1.5. After the warm-up it is
    found before every epoch, in evaluation mode, for the whole training split. The epoch is then one pass over all
    samples, and over copies with modality u alone: 1 copy of a sample if φ lies between 0.4 and 0.9, 2 between −0.1 and
    0.4, 3 below. The loss is CE(y, f) always; in a copy the features of the others are zero, and their encoders do not
    run. An epoch has up to 1 + 2M passes over the data, five for two modalities: compare at equal data passes.

    Deviations: in the official code a batch mixes samples of all kinds, and the dropped encoders run, so that their
    batch statistics move; here a batch is of one kind, and the batches of all kinds are mixed. It values samples with
    the random crops of training, here with the transforms of evaluation. Copies of a sample in one epoch have the same
    random transforms. More than two modalities are an extension of ours by the same formula and the same limits. A
    sample is never copied with a modality it lacks, whose zero features count in no subset. BalanceBenchmark has
    benefits of 0 and 1 and zeroes inputs, and values the first batch only, since it never empties its list of results.

    Official training: Adam or SGD of momentum 0.9 (1e-3), weight decay 1e-4, learning rate divided by 10 every 30
    epochs, 60 epochs, batches of 64; the paper has 5e-5. It chooses its epoch on the test split.

    Args:
        warmup: Number of epochs of joint training at first.

    Raises:
        ValueError: If a parameter is out of its range.

    Example:
        >>> import torch, bmlr
        >>> model = bmlr.MultimodalClassifier({"a": torch.nn.Linear(4, 8), "v": torch.nn.Linear(6, 8)}, 3)
        >>> method = bmlr.methods.SampleSMV(warmup=1)
        >>> method.setup(model)
        >>> plan = method.start_epoch(bmlr.methods.EpochContext(epoch=0, max_epochs=10, model=model))
        >>> batch = bmlr.Batch({"a": torch.randn(2, 4), "v": torch.randn(2, 6)}, torch.tensor([0, 2]))
        >>> sorted(method.compute_losses(model, batch).terms)
        ['fused']
    """

    info: ClassVar[MethodInfo] = dataclasses.replace(
        _INFO, cost="after warm-up an inference pass and 1 to 1 + 2M passes per epoch, copies with 1 encoder"
    )

    def __init__(self, warmup: int = 5) -> None:
        super().__init__()
        self.warmup = check_integer("warmup", warmup, 0)

    def _copies(self, context: EpochContext) -> dict[str, list[int]]:
        values = value_samples("SampleSMV", context, lambda output, batch: contributions(output, batch.targets))
        self.contributions = values.nanmean(0).nan_to_num()
        counts = torch.stack([values < limit for limit in (0.9, 0.4, -0.1)]).sum(0)  # none where the value is NaN
        samples, names = torch.arange(len(values)), sorted(context.model.modalities)
        return {
            name: samples.repeat_interleave(counts[:, names.index(name)]).tolist() for name in context.model.modalities
        }


class ModalitySMV(_SMV):
    r"""Modality-level valuation (Wei et al., 2024).

    Random samples come again with the modality alone that contributes less.

    As :class:`SampleSMV`, with the mean contribution :math:`\bar\phi_u` of a modality over a random part Z of the
    training split. With the gap :math:`g_u = 1 - \bar\phi_u` and :math:`d = \tfrac23 (\max_u g_u - \min_u g_u)` the
    epoch has one pass over all samples and :math:`\lfloor N\,h(d) \rfloor` samples, drawn with replacement, with the
    modality of the largest gap alone; h(d) is

    .. math:: \alpha d \;\text{(linear)}, \qquad \tanh(\alpha d) \;\text{(tanh)}, \qquad \alpha d^{1.5}
              \;\text{(square)}.

    Deviations: those of :class:`SampleSMV`, and Z is drawn without replacement, in whole batches with the random
    transforms of training; the official code values the whole split first and draws from that. For more than two
    modalities d is the spread of the gaps, an extension of ours. What is wrong in the official code: it stops in its
    first epoch, since it returns a loader that exists after the warm-up only, and at the first best epoch, since it
    reads two options that it does not have; ``square`` has the power 1.5; no option reaches ``tanh`` or ``square``.

    Args:
        warmup: Number of epochs of joint training at first.
        fraction: Size of Z as a share of the training split, in [0, 1].
        alpha: Strength α ≥ 0 of resampling; 0 is joint training.
        curve: ``linear`` (default), ``tanh`` or ``square``.
        seed: Seed of the drawn samples.

    Raises:
        ValueError: If a parameter is out of its range.

    Example:
        >>> import bmlr
        >>> bmlr.methods.ModalitySMV(curve="tanh")
        ModalitySMV(warmup=5, fraction=0.2, alpha=1.0, curve='tanh', seed=0)
    """

    conformance: ClassVar[Conformance] = dataclasses.replace(
        _SMV.conformance, short={"warmup": 1, "fraction": 1.0, "alpha": 9.0}
    )
    info: ClassVar[MethodInfo] = dataclasses.replace(
        _INFO, cost="after warm-up inference over a fifth of the training split and 1 to 2 passes per epoch"
    )

    def __init__(
        self,
        warmup: int = 5,
        fraction: float = 0.2,
        alpha: float = 1.0,
        curve: Literal["linear", "tanh", "square"] = "linear",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.warmup = check_integer("warmup", warmup, 0)
        self.fraction = check_unit_interval("fraction", fraction)
        self.alpha = check_non_negative("alpha", alpha)
        self.curve = check_choice("curve", curve, ("linear", "tanh", "square"))
        self.seed = check_integer("seed", seed, 0)

    def _copies(self, context: EpochContext) -> dict[str, list[int]]:
        if not context.num_train:
            raise missing_indices("ModalitySMV")
        names, values, seen = sorted(context.model.modalities), [], 0
        with torch.no_grad(), module_mode(context.model, training=False):
            for batch in context.shuffled_batches(0):
                values.append(contributions(context.model(batch.inputs, batch.present), batch.targets).cpu())
                seen += len(batch)
                if seen >= self.fraction * context.num_train:
                    break
        self.contributions = torch.cat(values).nanmean(0)
        gaps = {name: 1 - float(self.contributions[names.index(name)]) for name in context.model.modalities}
        gaps = {name: gap for name, gap in gaps.items() if not math.isnan(gap)}  # without those that no sample of Z has
        self.contributions = self.contributions.nan_to_num()
        if not gaps:
            return {}
        weakest = max(gaps, key=lambda name: gaps[name])
        number = int(
            self.resampled_share(gaps[weakest] - min(gaps.values())) * context.num_train + 1e-9
        )  # floor of a rounded number
        drawn = torch.randint(context.num_train, (number,), generator=self.generator(context.epoch))
        return {weakest: drawn.tolist()}

    def resampled_share(self, spread: float) -> float:
        """Share h of the training split to be drawn, for the spread between the gaps."""
        d = spread * 2 / 3
        if self.curve == "tanh":
            return math.tanh(self.alpha * d)
        return self.alpha * (d**1.5 if self.curve == "square" else d)
