"""QMF: quality-aware multimodal fusion."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from bmlr._checks import check_choice, check_non_negative, check_positive
from bmlr.batch import Batch
from bmlr.functional import masked_mean, widened
from bmlr.methods._support import HeadedMethod, apply_heads, classification, gather_processes, unimodal_losses
from bmlr.methods._types import Conformance, EpochContext, EpochPlan, Losses, MethodInfo, Pass, Prediction
from bmlr.model import MultimodalClassifier, Output

_TAG = "qmf"


class QMF(HeadedMethod):
    r"""Quality-aware Multimodal Fusion (Zhang et al., 2023): late fusion weighted by confidences.

    Each modality has a linear head with logits :math:`\ell_u`, and a confidence by the energy of its prediction:

    .. math::
        c_u = \tfrac{1}{10} \log \sum_k \exp \ell_{u,k}, \qquad f = \sum_u \mathrm{sg}(c_u)\, \ell_u, \qquad
        L = \mathrm{CE}(y, f) + \sum_u [\mathrm{CE}(y, \ell_u) + \lambda R_u],

    with sg(·) the stop-gradient. :math:`R_u` ranks confidences by the history of losses: of two samples the one that
    was harder so far should be the less sure. With :math:`h_i` the sum of the losses :math:`\mathrm{CE}(y_i,
    \ell_{u,i})` of all steps in which sample i was trained, and :math:`\kappa_i` this sum scaled to [0, 1] over the
    training split,

    .. math::
        R_u = \frac1B \sum_i \max\bigl(0,\ \mathrm{sign}(\kappa_i - \kappa_j)(c_{u,i} - c_{u,j})
              \pm |\kappa_i - \kappa_j|\bigr)

    where j is the sample after i in the batch, and the first after the last.

    Deviations from the official code (QingyangZhang/QMF; text and image):

    * The margin :math:`|\kappa_i - \kappa_j|` is what c is to differ by, at least (``margin="required"``, +), as in
      correctness ranking (Moon et al., 2020), from which it is taken. The code turned the ranking round, from
      correctness to losses, and left the sign of the margin: a pair costs something only where the harder sample is
      the surer one by more than that (``margin="allowed"``, −).
    * λ is 1 in its code for text and image, and 0.1 in that for depth images. That one also lets gradients through the
      weights c of f, and ranks before the history has its first entry, which divides zero by zero: as the file reads,
      its first loss is NaN.
    * Its logarithm of a sum of exponentials overflows in single precision from logits of 89 on; here it does not.
    * A modality that a sample lacks has no weight, and is ranked only among samples that have it (ours). In distributed
      training the histories are those of all processes. The fusion of the model is not trained.

    A confidence is negative where all logits of a modality are far below zero; its prediction then counts the other way
    round, there as here.

    The official recipe is Adam, 5e-5 with batches of 32 times 24 accumulated for text and image, 1e-4 with 256 times 3
    for depth images; the rate falls where validation accuracy does not rise.

    Args:
        weight: Weight λ ≥ 0 of the ranking.
        margin: Whether the margin is ``required`` or ``allowed``, as in the official code.
        temperature: Divisor of the log-sum-exp in c, > 0.

    Raises:
        ValueError: If a parameter is out of its range.

    Example:
        >>> import torch, bmlr
        >>> model = bmlr.MultimodalClassifier({"a": torch.nn.Linear(4, 8), "v": torch.nn.Linear(6, 8)}, 3)
        >>> method = bmlr.methods.QMF()
        >>> method.setup(model)
        >>> context = bmlr.methods.EpochContext(epoch=0, max_epochs=10, model=model, num_train=2)
        >>> tag = method.start_epoch(context).passes[0].tag
        >>> inputs, indices = {"a": torch.randn(2, 4), "v": torch.randn(2, 6)}, torch.tensor([0, 1])
        >>> batch = bmlr.Batch(inputs, torch.tensor([0, 2]), indices=indices, tag=tag)
        >>> sorted(method.compute_losses(model, batch).terms)
        ['a', 'a_ranking', 'fused', 'v', 'v_ranking']
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        paper="Provable Dynamic Fusion for Low-Quality Multimodal Data",
        venue="ICML 2023",
        url="https://proceedings.mlr.press/v202/zhang23ar.html",
        family="fusion and inference",
    )
    tasks_reason: ClassVar[str] = "its confidence is the log-sum-exp over classes"
    min_modalities: ClassVar[int] = 1
    leaves_gradients_unset: ClassVar[bool] = True  # the fusion is not trained
    state_attributes: ClassVar[tuple[str, ...]] = (*HeadedMethod.state_attributes, "history")
    conformance: ClassVar[Conformance] = Conformance(
        not_mean_over_samples="ranks neighbours in a batch",
        not_mean_over_processes="ranks neighbours in the batch of a process",
        sorted_names=True,
    )

    def __init__(
        self, weight: float = 0.1, margin: Literal["required", "allowed"] = "required", temperature: float = 10.0
    ) -> None:
        super().__init__()
        self.weight = check_non_negative("weight", weight)
        self.margin = check_choice("margin", margin, ("required", "allowed"))
        self.temperature = check_positive("temperature", temperature)
        #: Sum of the losses of each training sample, shape (M, N), by sorted name; empty before the first epoch.
        self.history = torch.zeros(0, 0)

    def setup(self, model: MultimodalClassifier) -> None:
        """Make one linear head per modality and forget the history."""
        super().setup(model)
        self.history = torch.zeros(0, 0)

    @property
    def plans_passes(self) -> bool:
        """Always: it needs to know which samples it trains on."""
        return True

    @property
    def trains_fusion(self) -> bool:
        """Its own sum predicts in its place."""
        return False

    def plan_epoch(self, context: EpochContext) -> EpochPlan:
        """One pass over all samples by their positions.

        Raises:
            ValueError: If the number of training samples is unknown, or another than before.
        """
        if not context.num_train:
            raise ValueError(
                "QMF keeps a history of each training sample: `num_train` should be their number. Found 0. "
                "bmlr.Balancer knows it from a torch DataLoader over a data set with a length."
            )
        if not self.history.numel():
            like = next(context.model.parameters())
            dtype = torch.promote_types(like.dtype, torch.float32)
            self.history = torch.zeros(len(self.heads), context.num_train, dtype=dtype, device=like.device)
        if self.history.shape[1] != context.num_train:
            raise ValueError(
                f"`num_train` should be {self.history.shape[1]}, the number of samples in QMF's history. "
                f"Found {context.num_train}."
            )
        return EpochPlan((Pass(_TAG, tuple(range(context.num_train))),))

    def losses(self, output: Output, targets: Tensor) -> Losses:
        """The losses without ranking, in evaluation.

        Raises:
            RuntimeError: In training, where samples have to be known: use :meth:`compute_losses`.
        """
        if self.training:
            raise RuntimeError(
                "QMF keeps a history of each sample: call `compute_losses(model, batch)` with `indices`."
            )
        return self._classification_losses(output, apply_heads(self, self.heads, output), targets)

    def batch_losses(self, model: MultimodalClassifier, batch: Batch) -> Losses:
        """Cross-entropies and, in training, the ranking of confidences."""
        if not self.training:
            return super().batch_losses(model, batch)
        if batch.indices is None:
            raise RuntimeError(
                "QMF needs `indices` in its batches, the position of each sample in the training split. Found None. "
                "bmlr.Balancer and BalancedModule with `data` give them."
            )
        output = model(batch.inputs, batch.present)
        model.task.check_targets(batch.targets, output.batch_size)
        logits = apply_heads(self, self.heads, output)
        losses = self._classification_losses(output, logits, batch.targets)
        if not self.history.numel():  # before the first epoch there is nothing to rank by
            return losses
        self.history = self._updated_history(output, logits, batch.targets, batch.indices)
        lowest, highest = self.history.aminmax(dim=1, keepdim=True)
        hardness = (self.history - lowest) / (highest - lowest).clamp(min=torch.finfo(self.history.dtype).tiny)
        for row, name in enumerate(sorted(logits)):
            mask = output.task.counted(batch.targets, output.mask(name))
            ranking = self._ranking(self.confidence(logits[name]), hardness[row, batch.indices], mask)
            losses.terms[f"{name}_ranking"] = self.weight * ranking
        return Losses({**losses.terms, **output.readout_losses(batch.targets)})

    def predict(self, output: Output) -> Prediction:
        """The sum of the heads' logits, weighted by their confidences."""
        logits = apply_heads(self, self.heads, output)
        return Prediction(self._fused_logits(output, logits), logits)

    def confidence(self, logits: Tensor) -> Tensor:
        """Confidence c of each sample, shape (B,), from logits, shape (B, C)."""
        energy: Tensor = widened(logits).logsumexp(1)
        return energy / self.temperature

    def _fused_logits(self, output: Output, logits: dict[str, Tensor]) -> Tensor:
        terms = []
        for name, values in logits.items():
            weighted, mask = self.confidence(values).detach()[:, None] * widened(values), output.mask(name)
            terms.append(weighted if mask is None else torch.where(mask[:, None], weighted, 0.0))
        return torch.stack(terms).sum(0)

    def _classification_losses(self, output: Output, logits: dict[str, Tensor], targets: Tensor) -> Losses:
        fused = output.task.loss(self._fused_logits(output, logits), targets)
        return Losses({"fused": fused, **unimodal_losses(output, logits, targets)})

    @torch.no_grad()
    def _updated_history(self, output: Output, logits: dict[str, Tensor], targets: Tensor, indices: Tensor) -> Tensor:
        """The history with the losses of a batch, of all processes, added."""
        task, rows = classification(output.task), []
        for name in sorted(logits):
            values = task.choice_losses(logits[name], targets)
            mask = task.counted(targets, output.mask(name))
            rows.append(values if mask is None else torch.where(mask, values, 0.0))
        history = self.history.to(indices.device, non_blocking=True)  # a restored one is on the CPU
        losses = gather_processes(torch.stack(rows).to(history.dtype))  # (W, M, B)
        positions = gather_processes(indices)
        return history.index_add(1, positions.flatten(), losses.transpose(0, 1).flatten(1))

    def _ranking(self, confidence: Tensor, hardness: Tensor, mask: Tensor | None) -> Tensor:
        """Ranking loss R of a modality over the pairs of neighbours."""
        difference = hardness - hardness.roll(-1)
        margin = difference.abs() if self.margin == "required" else -difference.abs()
        lead = difference.sign() * (confidence - confidence.roll(-1))
        pairs = None if mask is None else mask & mask.roll(-1)
        return masked_mean((lead + margin).relu(), pairs)
