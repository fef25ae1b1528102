"""Remix: data remixing."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor

from bmlr._checks import check_choice, check_integer, check_non_negative
from bmlr.batch import Batch
from bmlr.functional import widened
from bmlr.methods._support import (
    HeadedMethod,
    apply_heads,
    check_batch,
    classification,
    encode_batch,
    output_alone,
    pass_over,
    read_features,
    value_samples,
)
from bmlr.methods._types import CLASSIFICATION, Conformance, EpochContext, EpochPlan, Losses, MethodInfo
from bmlr.model import MultimodalClassifier, Output

_PREFIX = "remix:"


class Remix(HeadedMethod):
    r"""Data Remixing (Ma et al., 2025).

    Each sample trains its least confident modality.

    In the first ``warmup`` epochs the loss is :math:`\mathrm{CE}(y, f) + w \sum_u \mathrm{CE}(y, h_u(z^u))` with a
    linear head h_u of the method's own per modality. Before each later epoch the model looks at the whole training
    split in evaluation mode, and every sample goes to the modality with the smallest

    .. math:: D_u = \sum_c p^u_c \log_2 (C\, p^u_c), \qquad p^u = \mathrm{softmax}(h_u(z^u)),

    the distance of its prediction from uniform in bits; the label is not looked at, and ties go to the modality
    listed last. Compared are the entropies :math:`H_u = \log C - D_u \log 2`, largest first: D of a sure prediction is
    log₂ C to float32, and the official code, which compares D, leaves such samples to rounding.
    The epoch then has one pass per modality, last listed first, of batches of its samples alone, in which the features
    of the others are zero: :math:`L = \mathrm{CE}(y, f) + \gamma\,\mathrm{CE}(y, h_u(z^u))`.

    Deviations: the official code has two modalities and concatenation; more modalities and other fusions follow by
    the same rules, an extension of ours. Its passes come in this fixed order, so that the first modality always has
    the last word in an epoch; ``order="shuffled"`` mixes the batches of all passes. Its masked encoders run: their
    batch statistics move, and their gradients are zeros, so that momentum and weight decay still move them. That is
    ``masked_encoder="run"``, here without a backward pass through them: the zeros are put in place by
    :meth:`backward`. ``skip`` leaves these encoders alone and saves their forward pass, which is another algorithm. A
    sample never goes to a modality it lacks.

    With several labels (ours) :math:`D_u` is the mean over the labels of that of the pair (1 − p, p), and the losses
    are those of the task. A predicted number has no distance from uniform.

    Args:
        warmup: Number of epochs before remixing starts.
        weight: Weight w ≥ 0 of each unimodal loss in the warm-up.
        gamma: Weight γ ≥ 0 of the unimodal loss after it.
        masked_encoder: ``run`` (default, as the official code) or ``skip``.
        order: Order of the batches: ``sequential``, one modality after another (default, as the official code), or
            ``shuffled``, those of all modalities mixed.

    Raises:
        ValueError: If a parameter is out of its range.

    Example:
        >>> import torch, bmlr
        >>> model = bmlr.MultimodalClassifier({"a": torch.nn.Linear(4, 8), "v": torch.nn.Linear(6, 8)}, 3)
        >>> method = bmlr.methods.Remix(warmup=1)
        >>> method.setup(model)
        >>> plan = method.start_epoch(bmlr.methods.EpochContext(epoch=0, max_epochs=10, model=model))
        >>> batch = bmlr.Batch({"a": torch.randn(2, 4), "v": torch.randn(2, 6)}, torch.tensor([0, 2]))
        >>> sorted(method.compute_losses(model, batch).terms)
        ['a', 'fused', 'v']
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        paper="Improving Multimodal Learning Balance and Sufficiency through Data Remixing",
        venue="ICML 2025",
        url="https://arxiv.org/abs/2506.11550",
        family="data and alternation",
        cost="after warm-up M forwards and 1 backward of one encoder, and 1 inference pass per epoch",
    )
    tasks: ClassVar[tuple[str, ...]] = CLASSIFICATION
    tasks_reason: ClassVar[str] = "it ranks modalities by the distance of predicted distributions from uniform"
    min_modalities: ClassVar[int] = 1
    epoch_parameters: ClassVar[tuple[str, ...]] = ("warmup",)
    conformance: ClassVar[Conformance] = Conformance(
        short={"warmup": 1},
        alters_features="trains on the features of one modality after the warm-up",
        variants={"skip": {"warmup": 1, "masked_encoder": "skip", "order": "shuffled"}},
    )
    leaves_gradients_unset: ClassVar[bool] = True
    state_attributes: ClassVar[tuple[str, ...]] = (*HeadedMethod.state_attributes, "assignment")

    def __init__(
        self,
        warmup: int = 10,
        weight: float = 0.5,
        gamma: float = 1.0,
        masked_encoder: Literal["run", "skip"] = "run",
        order: Literal["sequential", "shuffled"] = "sequential",
    ) -> None:
        super().__init__()
        self.warmup = check_integer("warmup", warmup, 0)
        self.weight, self.gamma = check_non_negative("weight", weight), check_non_negative("gamma", gamma)
        self.masked_encoder = check_choice("masked_encoder", masked_encoder, ("run", "skip"))
        self.order = check_choice("order", order, ("sequential", "shuffled"))
        self._start_over()

    def _start_over(self) -> None:
        #: Position of the modality each training sample is assigned to, shape (N,); empty before the first remix.
        self.assignment = torch.zeros(0, dtype=torch.int64)
        self._masked: tuple[str, ...] = ()  # encoders that the current batch leaves out, between losses and backward

    def setup(self, model: MultimodalClassifier) -> None:
        """Make one linear head per modality."""
        super().setup(model)
        self._start_over()

    @property
    def plans_passes(self) -> bool:
        """Always: a pass per modality after the warm-up."""
        return True

    def plan_epoch(self, context: EpochContext) -> EpochPlan:
        """Assign samples to modalities after the warm-up, with a pass for each."""
        if context.epoch < self.warmup:
            return EpochPlan()
        self.assignment = self._assign(context)
        passes = []
        for position, name in reversed(list(enumerate(context.model.modalities))):
            indices: list[int] = (self.assignment == position).nonzero().squeeze(1).tolist()
            if indices:
                passes.append(pass_over(_PREFIX + name, indices))
        return EpochPlan(tuple(passes), order=self.order)

    def losses(self, output: Output, targets: Tensor) -> Losses:
        """The losses of the warm-up: multimodal and weighted unimodal cross-entropies."""
        return self.head_losses(output, targets, self.weight)

    def batch_losses(self, model: MultimodalClassifier, batch: Batch) -> Losses:
        """Losses of the modality in the tag of a batch, or of the warm-up."""
        self._masked = ()
        if not batch.tag.startswith(_PREFIX):
            return super().batch_losses(model, batch)
        check_batch(model, batch)
        kept = check_choice("tag", batch.tag.removeprefix(_PREFIX), model.modalities)
        self._masked = tuple(name for name in model.modalities if name != kept)
        unimodal = output_alone(model, batch, kept)
        z = unimodal.features[kept]
        features = {kept: z}
        for name in self._masked:
            if self.masked_encoder == "run":
                with torch.no_grad():
                    zeros = torch.zeros_like(encode_batch(model, batch, name))
            else:
                zeros = model.zero_features(name, batch.inputs[name])
            features[name] = zeros.to(z)
        features = {name: features[name] for name in model.modalities}
        alone = read_features(self.heads[kept], z)
        return Losses(
            {
                "fused": model.task.loss(model.fusion(features), batch.targets),
                kept: self.gamma * model.task.loss(alone, batch.targets, unimodal.mask(kept)),
                **unimodal.readout_losses(batch.targets),
            }
        )

    def combine_gradients(self, losses: Losses, model: MultimodalClassifier, *, scale: float | Tensor) -> None:
        """Accumulate gradients, zeros for masked encoders that run."""
        super().combine_gradients(losses, model, scale=scale)
        if self.masked_encoder == "run":
            for name in self._masked:
                for parameter in model.encoders[name].parameters():
                    if parameter.requires_grad and parameter.grad is None:
                        parameter.grad = torch.zeros_like(parameter)

    def _assign(self, context: EpochContext) -> Tensor:
        return value_samples("Remix", context, lambda output, _: self.least_confident(output))

    def least_confident(self, output: Output) -> Tensor:
        """Position of the modality with the smallest D_u, shape (B,); ties to the last."""
        task, entropies = classification(output.task), []
        for name, logits in apply_heads(self, self.heads, output).items():
            entropy, mask = task.per_sample(prediction_entropy(task.choice_logits(logits))), output.mask(name)
            entropies.append(entropy if mask is None else torch.where(mask, entropy, -math.inf))
        return len(entropies) - 1 - torch.stack(entropies).flip(0).argmax(0)


def prediction_entropy(logits: Tensor) -> Tensor:
    """Entropy H = −Σ_c p_c log p_c, exact for sure predictions.

    Args:
        logits: Unnormalised predictions, shape (B, C).

    Returns:
        Nats, shape (B,): log C for uniform predictions, 0 for one-hot ones.

    Example:
        >>> import torch
        >>> prediction_entropy(torch.tensor([[0.0, 0.0], [20.0, 0.0], [40.0, 0.0]]))
        tensor([6.9315e-01, 4.3284e-08, 1.7418e-16])
    """
    # With the gaps g of the other classes below the largest logit, log Z = log(1 + Σ e^−g): the probability of the
    # largest is one to float32 beyond a gap of 17, and its logarithm would be zero.
    values = widened(logits)
    largest = values.argmax(1, keepdim=True)
    gaps = values.gather(1, largest) - values
    weights = (-gaps).exp().scatter(1, largest, 0.0)
    total = weights.sum(1)
    return total.log1p() + torch.where(weights > 0, weights * gaps, 0.0).sum(1) / (1 + total)
