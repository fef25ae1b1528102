"""Average of modalities that were trained alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from bmlr._checks import check_choice
from bmlr._modes import module_mode
from bmlr.functional import log_probabilities, widened
from bmlr.methods._starting import StartingMethod, Trained, take_parts
from bmlr.methods._support import apply_heads, presence, unimodal_heads
from bmlr.methods._types import ALL_TASKS, Conformance, EpochContext, EpochPlan, Losses, MethodInfo, Prediction
from bmlr.model import MultimodalClassifier, Output
from bmlr.tasks import Classification, Multiclass, Task

Average = Literal["log-probabilities", "probabilities"]
Weights = Literal["equal", "validation"]


class Ensemble(StartingMethod):
    r"""Average of modalities that were trained alone.

    .. math:: f = \sum_u w_u \log \mathrm{softmax}\, \ell^u, \qquad \sum_u w_u = 1

    The logits ℓᵘ are those of the runs of :class:`Unimodal`, and nothing is trained any more: the run is one epoch
    without a step. Softmax of f is the prediction, the normalised geometric mean of the modalities' probabilities. The
    mean of logits is the same prediction, since both differ by a number per sample; ``probabilities`` is the arithmetic
    mean, :math:`f = \log \sum_u w_u\, \mathrm{softmax}\, \ell^u`. Of labels it is done for each, of numbers the mean
    is taken. Modalities that a sample lacks are left out, and the weights of the others sum to one.

    With ``weights="validation"`` it is tuned late fusion: the weights are those of a grid on the simplex with the
    smallest loss on the validation split (steps of 0.05 for two modalities, 0.1 for three and four, 0.2 above); equal
    weights win a tie. The test split decides nothing. A geometric mean is less certain than its modalities are
    together, so that one certain modality alone would have the smaller loss; each candidate is therefore judged at the
    best of the scales s from 1 to M, :math:`s f` in place of f, which leave the predicted class as it is.

    Du et al. (2023) call it Uni-Modal Ensemble. In the re-runs of MCR (Kontras et al., arXiv 2411.07335) on a split of
    CREMA-D by actors it is ahead of seven of the nine methods compared.

    Args:
        average: ``log-probabilities`` (geometric mean) or ``probabilities`` (arithmetic mean).
        weights: ``equal``, or tuned on the split of ``validation``.

    Raises:
        ValueError: If a parameter is none of these, or encoders share parameters, which cannot come from two runs.

    Example:
        >>> import copy, torch, bmlr
        >>> model = bmlr.MultimodalClassifier({"a": torch.nn.Linear(4, 8), "v": torch.nn.Linear(6, 8)}, 3)
        >>> trained = {name: (copy.deepcopy(model), bmlr.methods.Unimodal(name)) for name in model.modalities}
        >>> for network, single in trained.values():
        ...     single.setup(network)  # and train it
        >>> method = bmlr.methods.Ensemble()
        >>> method.setup(model)
        >>> method.start_from(trained, model)
        >>> prediction = method.predict(model({"a": torch.randn(2, 4), "v": torch.randn(2, 6)}))
        >>> prediction.logits.shape, method.modality_weights
        (torch.Size([2, 3]), {'a': 0.5, 'v': 0.5})
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        paper="On Uni-Modal Feature Learning in Supervised Multi-Modal Learning",
        venue="ICML 2023",
        url="https://arxiv.org/abs/2305.01233",
        family="baseline",
        cost="M runs of single modalities, and no training of its own",
    )
    tasks: ClassVar[tuple[str, ...]] = ALL_TASKS
    needs_separate_encoders: ClassVar[bool] = True
    trains: ClassVar[bool] = False
    conformance: ClassVar[Conformance] = Conformance(
        variants={"probabilities": {"average": "probabilities"}, "tuned": {"weights": "validation"}},
        untrained={"": "all", "probabilities": "all", "tuned": "all"},
        sorted_names=True,
    )

    def __init__(self, average: Average = "log-probabilities", weights: Weights = "equal") -> None:
        super().__init__()
        self.average = check_choice("average", average, get_args(Average))
        self.weights = check_choice("weights", weights, get_args(Weights))
        self.heads = nn.ModuleDict()
        self.register_buffer("shares", torch.zeros(0))
        self.shares: Tensor

    def setup(self, model: MultimodalClassifier) -> None:
        """Make the heads, which are still to come."""
        super().setup(model)
        self.heads = unimodal_heads(model).requires_grad_(False)
        count = len(model.modalities)
        like = next(model.parameters())
        self.shares = torch.full((count,), 1 / count, device=like.device, dtype=like.dtype)

    @property
    def trains_fusion(self) -> bool:
        """The average predicts in its place."""
        return False

    @property
    def plans_passes(self) -> bool:
        """Always: there is no pass to make."""
        return True

    @property
    def modality_weights(self) -> dict[str, float]:
        """Weights w of the modalities."""
        return dict(zip(sorted(self.heads), self.shares.tolist(), strict=True))

    def take_runs(self, trained: Trained, model: MultimodalClassifier) -> None:
        """Copy encoders and heads."""
        take_parts(trained, model, self.heads)

    def plan_epoch(self, context: EpochContext) -> EpochPlan:
        """No pass over the training data; the weights are tuned."""
        self.check_started(context.model.modalities)
        if self.weights == "validation":
            self._tune(context)
        return EpochPlan(())

    def losses(self, output: Output, targets: Tensor) -> Losses:
        """The loss of the prediction, without gradient."""
        return Losses({"fused": output.task.loss(self.predict(output).logits.detach(), targets)})

    def predict(self, output: Output) -> Prediction:
        """The average, and the logits of each modality."""
        self.check_started(list(output.features))
        logits = apply_heads(self, self.heads, output)
        names = sorted(logits)
        stacked = torch.stack([widened(logits[name]) for name in names])
        return Prediction(self._mix(output.task, stacked, presence(output, names), self.shares), logits)

    def _mix(self, task: Task, logits: Tensor, present: Tensor, weights: Tensor) -> Tensor:
        """Logits of the average, shape (B, C).

        Args:
            task: The task.
            logits: Those of the modalities, shape (M, B, C).
            present: Presence of each modality, shape (B, M).
            weights: Their weights, shape (M,).
        """
        masked = present * weights.to(logits.dtype)
        # A sample may have those of no weight alone, or none at all.
        masked = torch.where(masked.sum(1, keepdim=True) > 0, masked, present.to(logits.dtype))
        masked = torch.where(masked.sum(1, keepdim=True) > 0, masked, torch.ones_like(masked))
        shares = (masked / masked.sum(1, keepdim=True)).T[:, :, None]
        if not isinstance(task, Classification):
            return (shares * logits).sum(0)
        if not isinstance(task, Multiclass):  # a choice per label
            shares = shares.repeat_interleave(logits.shape[2], 1)
        choices = torch.stack([log_probabilities(task.choice_logits(x)) for x in logits])
        if self.average == "probabilities":
            mixed = torch.logsumexp(choices + shares.log(), 0)
        else:
            mixed = (shares * choices).sum(0)
        return mixed if isinstance(task, Multiclass) else (mixed[:, 1] - mixed[:, 0]).view_as(logits[0])

    @torch.no_grad()
    def _tune(self, context: EpochContext) -> None:
        """Take the weights of the smallest loss on the validation split."""
        model, names = context.model, sorted(self.heads)
        pieces: list[tuple[Tensor, Tensor, Tensor]] = []
        with module_mode(model, self, training=False):
            for batch in context.val_batches():
                output = model(batch.inputs, batch.present)
                of_batch = apply_heads(self, self.heads, output)
                stacked = torch.stack([widened(of_batch[name]) for name in names])
                pieces.append((stacked, presence(output, names), batch.targets))
        if not pieces:
            raise ValueError("Parameter `weights` should be 'equal' where there is no validation split. Found none.")
        logits = torch.cat([piece[0] for piece in pieces], 1)
        present, targets = (torch.cat([piece[i] for piece in pieces]) for i in (1, 2))
        best, smallest, scales = self.shares, torch.inf, self._scales(model.task, len(names))
        for weights in _simplex(len(names)):
            candidate = logits.new_tensor(weights)
            mixed = self._mix(model.task, logits, present, candidate)
            loss = min(float(model.task.loss(scale * mixed, targets)) for scale in scales)
            if loss < smallest:
                best, smallest = candidate, loss
        self.shares.copy_(best)

    def _scales(self, task: Task, count: int) -> list[float]:
        """Scales at which weights are judged; arithmetic means and numbers have none."""
        if self.average == "probabilities" or not isinstance(task, Classification):
            return [1.0]
        return [1 + step / 4 for step in range(4 * (count - 1) + 1)]


def _simplex(count: int) -> Iterator[tuple[float, ...]]:
    """Weights that sum to one: equal ones, then a grid."""
    yield (1 / count,) * count
    steps = {2: 20, 3: 10, 4: 10}.get(count, 5)

    def divide(left: int, parts: int) -> Iterator[tuple[int, ...]]:
        if parts == 1:
            yield (left,)
            return
        for first in range(left + 1):
            yield from ((first, *rest) for rest in divide(left - first, parts - 1))

    yield from (tuple(share / steps for share in shares) for shares in divide(steps, count))
