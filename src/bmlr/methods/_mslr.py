"""MSLR: modality-specific learning rates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from bmlr._checks import check_integer, check_modalities, check_positive
from bmlr.batch import Batch
from bmlr.methods._base import Method
from bmlr.methods._modulation import (
    accuracy_sums,
    check_set_up,
    encoder_gradients,
    lead,
    scale_gradients,
    validation_sums,
)
from bmlr.methods._types import ALL_TASKS, Conformance, EpochContext, EpochPlan, Losses, MethodInfo, Remedy
from bmlr.model import MultimodalClassifier, Output


class MSLR(Method):
    r"""Modality-Specific Learning Rates (Yao and Mihalcea, 2022), as the authors of MCR have them.

    Training is joint, and the gradient of each encoder is multiplied by a rate of its modality, which follows its own
    accuracy on the validation split:

    .. math:: \nabla_{\theta^u} \leftarrow \lambda_u \frac{a_u^t}{\tfrac15 \sum_{i=1}^5 a_u^{t-i}}
              \nabla_{\theta^u}, \qquad t > 5,

    where :math:`a_u^t` is the accuracy of the unimodal logits before epoch t, counted from zero. Up to epoch 5 the rate
    is :math:`\lambda_u` alone. A modality that goes on improving learns faster, one that has begun to overfit slower.

    The validation split is read once before every epoch but the first. Samples that lack the modality or a target do
    not count. The unimodal logits are the fusion's own readout. With several labels the accuracy is the fraction of
    right labels (ours). For numbers it is the squared error, and the ratio is the other way round (ours).

    The paper sets rates by those with which unimodal models train best, and varies them by three strategies; this is
    the form in the repository of MCR, whose rates are 1. Adam divides a gradient by its own running size, and soon
    trains as if there were no factor: use SGD, or learning rates of the optimiser's own (``bmlr.param_groups``).

    Args:
        rates: Rate λ > 0 of each modality, such as ``{"audio": 0.5}``; 1 for those left out.
        memory: Number of epochs of the mean, and of first epochs without it; 5 in that code.

    Raises:
        ValueError: If a parameter is out of its range, or there is no validation split.

    Example:
        >>> import torch, bmlr
        >>> model = bmlr.MultimodalClassifier({"a": torch.nn.Linear(4, 8), "v": torch.nn.Linear(6, 8)}, 3)
        >>> method = bmlr.methods.MSLR(rates={"a": 0.5})
        >>> method.setup(model)
        >>> plan = method.start_epoch(bmlr.methods.EpochContext(epoch=0, max_epochs=10, model=model))
        >>> losses = method(model({"a": torch.randn(2, 4), "v": torch.randn(2, 6)}), torch.tensor([0, 2]))
        >>> method.backward(losses, model)
        >>> method.adjust_gradients(model)
        >>> {name: float(rate) for name, rate in losses.logs.items()}
        {'rate_a': 0.5, 'rate_v': 1.0}
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        paper="Modality-specific Learning Rates for Effective Multimodal Additive Late-fusion",
        venue="Findings of ACL 2022",
        url="https://aclanthology.org/2022.findings-acl.143",
        family="gradient scale",
        cost="1 forward, 1 backward; per epoch a forward of the validation split",
    )
    tasks: ClassVar[tuple[str, ...]] = ALL_TASKS
    needs_separate_encoders: ClassVar[bool] = True
    epoch_parameters: ClassVar[tuple[str, ...]] = ("memory",)
    remedy: ClassVar[Remedy | None] = Remedy("encoder", "slows down the encoders that no longer improve", rank=6)
    conformance: ClassVar[Conformance] = Conformance(short={"memory": 1})
    state_attributes: ClassVar[tuple[str, ...]] = (*Method.state_attributes, "accuracies")

    factors: Tensor

    def __init__(self, rates: Mapping[str, float] | None = None, memory: int = 5) -> None:
        super().__init__()
        self.rates = None if rates is None else {u: check_positive(f"rates['{u}']", rate) for u, rate in rates.items()}
        self.memory = check_integer("memory", memory, 1)
        #: Validation accuracy before each epoch but the first, shape (epochs, M), by sorted name.
        self.accuracies = torch.zeros(0, 0, dtype=torch.float64)
        self.register_buffer("factors", torch.ones(0))

    def setup(self, model: MultimodalClassifier) -> None:
        """Forget accuracies, and begin with the given rates.

        Raises:
            ValueError: If a rate is of no modality.
        """
        super().setup(model)
        check_modalities("rates", self.rates or (), model.modalities)
        self.accuracies = torch.zeros(0, len(model.modalities), dtype=torch.float64)
        self._set_factors(torch.ones(len(model.modalities)), model)

    def losses(self, output: Output, targets: Tensor) -> Losses:
        """The multimodal loss."""
        check_set_up(self, len(self.factors), output)
        logs = {f"rate_{u}": rate for u, rate in zip(sorted(output.features), self.factors, strict=True)}
        return Losses({"fused": output.task.loss(output.logits, targets)}, logs if self.training else {})

    def plan_epoch(self, context: EpochContext) -> EpochPlan:
        """Score the modalities on the validation split, and set the factors of the epoch."""
        if context.epoch > 0:
            scores = self._scores(context)
            if len(self.accuracies) >= self.memory:
                self._set_factors(
                    lead(scores, self.accuracies[-self.memory :].mean(0), context.model.task), context.model
                )
            self.accuracies = torch.cat([self.accuracies, scores[None]])[-self.memory :]
        return EpochPlan()

    @torch.no_grad()
    def change_gradients(self, model: MultimodalClassifier) -> None:
        """Multiply the gradients of each encoder by its factor."""
        for name, factor in zip(sorted(model.encoders), self.factors, strict=True):
            scale_gradients(encoder_gradients(model.encoders[name]), factor)

    def _set_factors(self, ratios: Tensor, model: MultimodalClassifier) -> None:
        rates = torch.tensor([(self.rates or {}).get(u, 1.0) for u in sorted(model.modalities)], dtype=torch.float64)
        like = next(model.parameters())
        # A modality that nothing is known about, or that was never right, keeps its rate.
        self.factors = (rates * ratios.nan_to_num(nan=1.0, posinf=1.0)).to(
            like.device, torch.promote_types(like.dtype, torch.float32)
        )

    def _scores(self, context: EpochContext) -> Tensor:
        """Validation accuracies or errors, shape (M,), on the CPU; NaN for a modality that no sample has."""

        def sums(batch: Batch) -> Tensor:
            output = context.model(batch.inputs, batch.present)
            return accuracy_sums(output, output.unimodal_logits, batch.targets)

        totals = validation_sums(context, sums, purpose="MSLR follows")
        return totals[0] / totals[1]
