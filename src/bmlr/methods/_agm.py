"""AGM: adaptive gradient modulation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bmlr._checks import check_non_negative, check_positive
from bmlr._modes import module_mode
from bmlr.batch import Batch, map_tensors
from bmlr.functional import log_probabilities, masked_mean, shapley_values, subsets_of
from bmlr.methods._modulation import scale_gradients
from bmlr.methods._support import (
    WindowedMethod,
    all_reduce_mean,
    check_batch,
    classification,
    joint_norm,
    steering_parameters,
    with_scaled_gradient,
)
from bmlr.methods._types import ALL_TASKS, Conformance, Losses, MethodInfo, Remedy
from bmlr.model import MultimodalClassifier, Output
from bmlr.tasks import Regression, Task

_LARGEST_LOSS = -math.log(1e-8)
_LARGEST_EXPONENT = 10.0


class AGM(WindowedMethod):
    r"""Adaptive Gradient Modulation (Li et al., 2023), by Shapley values of the logits.

    The multimodal logits f are split into Shapley values :math:`m_u`, with the *inputs* of the missing modalities
    replaced by zeros; for two modalities :math:`m_a = \tfrac12 [f(a, v) - f(0, v) + f(a, 0)]`, and in general

    .. math:: m_u = \sum_{S \not\ni u} \frac{|S|!\,(M - |S| - 1)!}{M!} \bigl( f(S \cup u) - f(S) \bigr), \qquad
              f(\emptyset) = 0, \qquad \sum_u m_u = f .

    Training is joint, but the gradient that flows back into :math:`m_u` is multiplied by

    .. math:: \kappa_u = \exp\bigl(\alpha \min(R_u - r_u, 10)\bigr), \qquad
              r_u = \exp(\overline{s_v - s_u}), \quad R_u = \exp(\overline{S_v - S_u}) ,

    where :math:`s_u` is the batch mean of :math:`-\log \mathrm{softmax}(m_u)_y` (at most :math:`-\log 10^{-8}`),
    :math:`S_u` its mean over all steps before, and the bars are means over the other modalities v. Encoders and fusion
    both see the scaled mixture.

    As in the official code the forwards with zeros run in evaluation mode, with gradient: batch statistics stay those
    of real inputs. Features of real and of zero inputs are computed once per modality and subsets are formed from
    them, so that encoders run no more often with more modalities; a zero input is encoded as a single row. The first
    step has :math:`S_u = 0` and so :math:`R_u = 1`. The paper has two modalities; the means over the others
    extend it to more. Every sample must have every modality.

    For labels and numbers the loss is that of the task. With several labels :math:`s_u` is the mean over the labels of
    each label's cross-entropy (ours). For numbers it is the squared error of the prediction :math:`M m_u`, in units of
    the task's ``scale``, with the same bound: the error in place of the cross-entropy. The code of MCR (Kontras et al.,
    2025) has 1/MSE in that place, a score that is larger for the better modality, and leaves the exponents as they are,
    so that it speeds up the one that is ahead; here their sign is that of classification.

    κ reaches :math:`e^{10 \alpha}`, and its brake is clipping, which the paper leaves out: where an entry of the last
    layer's gradient is beyond ±c, all gradients are scaled down to the joint norm c, in every epoch, as in the official
    code for CREMA-D and AV-MNIST (c = 1; for UR-FUNNY 5, for MOSEI by another condition, for AVE never). Without it SGD
    can diverge at α of 2.5. The last layer is every weight of the fusion with one row per output; in a fusion without
    any, all gradients count.
    Linear readouts of unimodal logits, which steer nothing, are neither looked at nor clipped.

    Further differences from the official code:

    * It never resets κ after its last modulated epoch, so that the rest is trained with the κ of one arbitrary batch,
      and goes on with forwards of zeros. Here the rest is plainly joint.
    * The cap of 10 on R − r is that of CREMA-D; it is 7 for UR-FUNNY, and there is none for the other data sets. For
      UR-FUNNY the scores have no bound.

    The official code has α = 1 by default and modulates in its epochs 1 to 20, which are 0 to 19 here; the paper
    searches α in 0.5 to 5.

    Args:
        alpha: Strength α ≥ 0; 0 multiplies by one.
        clip: Bound c > 0 of the last layer's gradient, and joint norm of all gradients where it is passed; None does
            not clip.
        first_epoch: First epoch in which gradients are modulated. The mean scores count from the first epoch of all,
            with forwards of zeros without gradient.
        last_epoch: Last such epoch; None is no end.

    Raises:
        ValueError: If a parameter is out of its range.

    Example:
        >>> import torch, bmlr
        >>> model = bmlr.MultimodalClassifier({"a": torch.nn.Linear(4, 8), "v": torch.nn.Linear(6, 8)}, 3)
        >>> method = bmlr.methods.AGM(alpha=2.5)
        >>> method.setup(model)
        >>> plan = method.start_epoch(bmlr.methods.EpochContext(epoch=0, max_epochs=10, model=model))
        >>> batch = bmlr.Batch({"a": torch.randn(2, 4), "v": torch.randn(2, 6)}, torch.tensor([0, 2]))
        >>> losses = method.compute_losses(model, batch)
        >>> method.backward(losses, model)
        >>> method.adjust_gradients(model)
        >>> sorted(losses.logs)
        ['coefficient_a', 'coefficient_v']
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        paper="Boosting Multi-modal Model Performance with Adaptive Gradient Modulation",
        venue="ICCV 2023",
        url="https://arxiv.org/abs/2308.07686",
        family="gradient scale",
        cost="2 forwards and backwards, 1 of a single zero row, 2^M − 1 fusion forwards",
    )
    tasks: ClassVar[tuple[str, ...]] = ALL_TASKS
    needs_all_modalities: ClassVar[bool] = True
    epoch_parameters: ClassVar[tuple[str, ...]] = ("last_epoch",)
    remedy: ClassVar[Remedy | None] = Remedy(
        "encoder", "scales each modality's gradient by its share of the logits", rank=2
    )
    conformance: ClassVar[Conformance] = Conformance(
        not_mean_over_samples="scales by coefficients of the batch's scores", sorted_names=True
    )

    running_scores: Tensor
    steps: Tensor

    def __init__(
        self, alpha: float = 1.0, clip: float | None = 1.0, first_epoch: int = 0, last_epoch: int | None = 19
    ) -> None:
        super().__init__()
        self.alpha = check_non_negative("alpha", alpha)
        self.clip = None if clip is None else check_positive("clip", clip)
        self.set_window(first_epoch, last_epoch)
        self.register_buffer("running_scores", torch.zeros(0))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @property
    def changes_gradients(self) -> bool:
        """With clipping."""
        return self.clip is not None

    @property
    def is_over(self) -> bool:
        """Whether the last modulated epoch has passed."""
        return self.last_epoch is not None and self.epoch > self.last_epoch

    def setup(self, model: MultimodalClassifier) -> None:
        """Reset the running mean of each modality's score, by sorted name."""
        super().setup(model)
        like = next(model.parameters())
        dtype = torch.promote_types(like.dtype, torch.float32)  # half types would not hold a mean of many steps
        self.running_scores = torch.zeros(len(model.modalities), device=like.device, dtype=dtype)
        self.steps = torch.zeros((), device=like.device, dtype=torch.int64)

    def losses(self, output: Output, targets: Tensor) -> Losses:
        """The multimodal loss, of the epochs without modulation.

        Raises:
            RuntimeError: In an epoch with modulation, which needs the inputs: use :meth:`compute_losses`.
        """
        if self.training and not self.is_over:
            raise RuntimeError("AGM modulates by forwards with zero inputs: call `compute_losses(model, batch)`.")
        return Losses({"fused": output.task.loss(output.logits, targets)})

    def batch_losses(self, model: MultimodalClassifier, batch: Batch) -> Losses:
        """The multimodal loss, with the gradients of the modalities' contributions scaled."""
        if not self.training or self.is_over:
            return super().batch_losses(model, batch)
        if batch.present is not None:
            raise ValueError("AGM compares subsets of modalities and needs all in every sample. Found `present`.")
        if len(self.running_scores) != len(model.modalities):
            raise RuntimeError("AGM was not set up: call `method.setup(model)` once, before the optimiser is made.")
        check_batch(model, batch)
        output = model(batch.inputs)
        logits = output.logits
        with torch.set_grad_enabled(self.is_acting and torch.is_grad_enabled()):
            contributions = shapley_logits(model, batch.inputs, logits)
            coefficients = self._coefficients(contributions, batch.targets, model.task)
        readout = output.readout_losses(batch.targets)
        if not self.is_acting:  # the means of the scores count from the first epoch
            return Losses({"fused": model.task.loss(logits, batch.targets), **readout})
        modulated = torch.stack([with_scaled_gradient(m, coefficients[u]) for u, m in contributions.items()]).sum(0)
        terms = {"fused": model.task.loss(modulated, batch.targets), **readout}
        return Losses(terms, {f"coefficient_{u}": kappa for u, kappa in coefficients.items()})

    @torch.no_grad()
    def change_gradients(self, model: MultimodalClassifier) -> None:
        """Clip all gradients where one of the last layer's is beyond the bound, without waiting for the device."""
        gradients = [p.grad for p in steering_parameters(model) if p.grad is not None]
        if self.clip is None or not gradients:
            return
        looked_at = [p.grad for p in last_layer(model) if p.grad is not None] or gradients
        largest = torch.stack([g.abs().amax() for g in looked_at]).amax()
        factor = (self.clip / (joint_norm(gradients) + 1e-6)).clamp(max=1)
        scale_gradients(gradients, torch.where(largest > self.clip, factor, 1.0))

    @torch.no_grad()
    def _coefficients(self, contributions: Mapping[str, Tensor], targets: Tensor, task: Task) -> dict[str, Tensor]:
        names = sorted(contributions)
        scores = all_reduce_mean(torch.stack([_score(contributions[u], targets, task, len(names)) for u in names]))
        exponent = (_ratio(self.running_scores) - _ratio(scores)).clamp(max=_LARGEST_EXPONENT)
        self.steps = self.steps + 1
        self.running_scores = self.running_scores + (scores - self.running_scores) / self.steps
        return dict(zip(names, (self.alpha * exponent).exp(), strict=True))


def shapley_logits(model: MultimodalClassifier, inputs: Mapping[str, Any], full: Tensor) -> dict[str, Tensor]:
    """Shapley values of the modalities in the multimodal logits.

    Args:
        model: The model; its modes are restored.
        inputs: Inputs of all modalities, first dimension B.
        full: Multimodal logits of all modalities, from a forward in training mode.

    Returns:
        Values of shape (B, C) by name, which add up to ``full``.
    """
    with module_mode(model, training=False):
        real = {u: model.encode(u, x) for u, x in inputs.items()}
        rows = {u: model.encode(u, map_tensors(_zero_row, x)) for u, x in inputs.items()}
        zero = {u: z.expand(len(full), *z.shape[1:]) for u, z in rows.items()}
        values = {
            subset: full
            if len(subset) == len(inputs)
            else model.fusion({u: real[u] if u in subset else zero[u] for u in inputs})
            for subset in subsets_of(list(inputs))
        }
    contributions = shapley_values(values)
    return {u: contributions[u] for u in inputs}


def last_layer(model: MultimodalClassifier) -> list[nn.Parameter]:
    """Weights of the fusion with one row per output, but for those of readouts."""
    steering = {id(p) for p in steering_parameters(model)}
    return [
        p for p in model.fusion.parameters() if p.ndim > 1 and len(p) == model.fusion.num_outputs and id(p) in steering
    ]


def _score(contribution: Tensor, targets: Tensor, task: Task, num_modalities: int) -> Tensor:
    """Score s_u of a contribution m_u, shape (B, C): the bounded mean cross-entropy or squared error."""
    if isinstance(task, Regression):
        return task.squared_errors(num_modalities * contribution, targets).clamp(max=_LARGEST_LOSS).mean()
    choices = classification(task)
    log_p = log_probabilities(choices.choice_logits(contribution))
    losses = -log_p.gather(1, choices.class_indices(targets)[:, None]).squeeze(1)
    return masked_mean(choices.per_sample(losses.clamp(max=_LARGEST_LOSS)), task.has_target(targets))


def _zero_row(x: Tensor) -> Tensor:
    return torch.zeros_like(x[:1])


def _ratio(scores: Tensor) -> Tensor:
    """Ratio r of each modality, exp(mean of the other scores − its score), shape (M,)."""
    return ((scores.sum() - len(scores) * scores) / (len(scores) - 1)).exp()
