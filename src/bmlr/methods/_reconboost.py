"""ReconBoost: boosting for modality reconcilement."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from bmlr._checks import check_choice, check_integer, check_non_negative, check_positive
from bmlr._modes import module_mode
from bmlr.batch import Batch
from bmlr.functional import log_probabilities, masked_mean, widened
from bmlr.methods._base import Method
from bmlr.methods._support import check_batch, classification, encode_batch, keep_gradients, read_features
from bmlr.methods._types import ALL_TASKS, Conformance, EpochContext, EpochPlan, Losses, MethodInfo, Pass, Prediction
from bmlr.model import MultimodalClassifier, Output
from bmlr.tasks import Regression

_BOOST, _RECTIFY = "boost:", "rectify"


class ReconBoost(Method):
    r"""ReconBoost (Hua et al., 2024): modalities boost each other in turns.

    Each modality is a learner :math:`f_u = H(z^u)`; the ensemble is :math:`F = r \sum_u f_u` with a learnable boost
    rate r. The model's fusion is not used, so that every fusion gives the same training. A stage updates modality k
    in ``t1`` passes over the data with the others held still, then all together in ``t2`` passes (global
    rectification, :math:`\mathrm{CE}(y, F)`). For :math:`q = \mathrm{softmax}(F_{-k})`, the ensemble without k, and
    :math:`p = \mathrm{softmax}(f_k)`, the loss of a sample in the former is

    .. math:: \ell_i = -\tfrac1C (w_1 - w_2\, q_{i,y}) \log p_{i,y}

    as in the official code: cross-entropy, weighted down where the others already predict the label.

    **An epoch is one stage**: t1 + t2 passes over the data, 8 by default, and modality k is the one whose turn it is.
    The ensemble grows from the first modality on, a modality without ensemble learns with q = 1, and predictions come
    from the ensemble so far. BalanceBenchmark's form is :class:`ReconBoostBalanceBenchmark`. Compare methods by data
    passes.

    Deviations: the memory consolidation term of both codes is :math:`\alpha\,\mathrm{MSE}` between two detached
    predictions; having no gradient, it is left out (``mcr="none"``) and saves a forward pass; ``mcr="real"`` lets it
    act on f_k, towards the modality updated before. The official audio-visual results start from separately trained
    encoders; load yours into the model and set ``pretrained``. Its nets then keep their own heads until their first
    stage; here all have the heads of this method. Its selection of the best stage on the test split is left out.
    Samples that lack modality k do not count in its stage, and a modality they lack adds nothing to F.

    With several labels (ours) p and q are those of each label, C is 2, and the loss is the mean over the labels. For
    numbers (ours) modality k learns what the others leave over, as boosting does: its loss is the task's of
    :math:`F_{-k} + r f_k` with :math:`F_{-k}` and r held still, and w₁ and w₂ have no part. Its unimodal prediction is
    its share :math:`r f_k` of the ensemble.

    Args:
        t1: Passes with one modality per stage.
        t2: Passes with all per stage; 0 leaves rectification out.
        w1: Weight w₁ > 0; 5 on CREMA-D, 4 on AVE and ModelNet40, 1 on MOSI and MOSEI.
        w2: Weight w₂ in [0, w₁]; 1 on all but MOSI and MOSEI, where it is 0.25.
        r_init: Start of the boost rate r.
        r_learnable: Whether r is learned, in rectification.
        shared_head: One H for all modalities, as in both codes, or one for each; None shares it where the feature
            widths are equal, as they are there.
        hidden: Width of the hidden layer of H; 0 is a linear layer.
        reset_optimizer_per_phase: Whether each phase starts with a fresh optimiser.
        mcr: Memory consolidation, ``none`` (default) or ``real``.
        mcr_weight: Weight α ≥ 0 of ``mcr="real"``.
        clean_bn: Whether the modalities held still run in evaluation mode; in both codes they run in training mode,
            and their batch statistics move.
        pretrained: Whether all modalities are in the ensemble from the start.
        order: The modalities in the order of their turns; None takes the model's.

    Raises:
        ValueError: If a parameter is out of its range.

    Example:
        >>> import torch, bmlr
        >>> model = bmlr.MultimodalClassifier({"a": torch.nn.Linear(4, 8), "v": torch.nn.Linear(6, 8)}, 3)
        >>> method = bmlr.methods.ReconBoost(w1=4.0)
        >>> method.setup(model)
        >>> plan = method.start_epoch(bmlr.methods.EpochContext(epoch=0, max_epochs=10, model=model))
        >>> batch = bmlr.Batch({"a": torch.randn(2, 4), "v": torch.randn(2, 6)}, torch.tensor([0, 2]), tag="boost:a")
        >>> sorted(method.compute_losses(model, batch).terms)
        ['a']
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        paper="ReconBoost: Boosting Can Achieve Modality Reconcilement",
        venue="ICML 2024",
        url="https://arxiv.org/abs/2405.09321",
        family="data and alternation",
        cost="t1 + t2 passes per epoch; in t1 1 forward and the backward of one encoder",
    )
    tasks: ClassVar[tuple[str, ...]] = ALL_TASKS
    needs_separate_encoders: ClassVar[bool] = True
    min_modalities: ClassVar[int] = 1
    pass_parameters: ClassVar[tuple[str, ...]] = ("t1", "t2")
    conformance: ClassVar[Conformance] = Conformance(short={"t1": 1, "t2": 1, "hidden": 8}, order_parameter="order")
    leaves_gradients_unset: ClassVar[bool] = True
    state_attributes: ClassVar[tuple[str, ...]] = (*Method.state_attributes, "num_members")

    def __init__(  # noqa: PLR0913
        self,
        *,
        t1: int = 4,
        t2: int = 4,
        w1: float = 5.0,
        w2: float = 1.0,
        r_init: float = 1.0,
        r_learnable: bool = True,
        shared_head: bool | None = None,
        hidden: int = 256,
        reset_optimizer_per_phase: bool = True,
        mcr: Literal["none", "real"] = "none",
        mcr_weight: float = 0.5,
        clean_bn: bool = False,
        pretrained: bool = False,
        order: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.t1, self.t2 = check_integer("t1", t1, 1), check_integer("t2", t2, 0)
        self.w1, self.w2 = check_positive("w1", w1), check_non_negative("w2", w2)
        if self.w2 > self.w1:
            raise ValueError(f"Parameter `w2` should be at most `w1 = {w1}`. Found `w2 = {w2}`.")
        self.r_init = check_positive("r_init", r_init)
        self.r_learnable, self.shared_head = r_learnable, shared_head
        self.hidden = check_integer("hidden", hidden, 0)
        self.reset_optimizer_per_phase = reset_optimizer_per_phase
        self.mcr = check_choice("mcr", mcr, ("none", "real"))
        self.mcr_weight = check_non_negative("mcr_weight", mcr_weight)
        self.clean_bn, self.pretrained = clean_bn, pretrained
        self.order = None if order is None else tuple(order)
        self.heads: nn.Module = nn.ModuleDict()
        self.boost_rate = nn.Parameter(torch.tensor(self.r_init), requires_grad=r_learnable)
        self._is_shared = False
        #: Modalities in the order of their turns.
        self.turns: tuple[str, ...] = ()
        self.num_members = 0
        self._active: str | None = None  # learning modality of the current batch, until the optimiser step

    def setup(self, model: MultimodalClassifier) -> None:
        """Make the heads.

        Raises:
            ValueError: If ``order`` does not name the model's modalities, a shared head meets unequal widths, or
                consolidation, which compares classes, a regression.
        """
        super().setup(model)
        if self.mcr != "none" and isinstance(model.task, Regression):
            raise ValueError(
                f"Parameter `mcr` should be 'none' for a regression task, whose modalities learn residuals. "
                f"Found `mcr = {self.mcr!r}`."
            )
        self.turns = self.order or model.modalities
        if sorted(self.turns) != sorted(model.modalities):
            raise ValueError(f"Parameter `order` should name {list(model.modalities)} once. Found {list(self.turns)}.")
        widths = model.fusion.feature_dims
        equal = len(set(widths.values())) == 1
        if self.shared_head and not equal:
            raise ValueError(
                "Parameter `shared_head` should be False where feature widths differ. "
                f"Found `shared_head = True` for {widths}."
            )
        like = next(model.parameters())
        self._is_shared = equal if self.shared_head is None else self.shared_head
        heads = {
            name: _head(width, self.hidden, model.task.num_outputs)
            for name, width in list(widths.items())[: 1 if self._is_shared else None]
        }
        self.heads = (next(iter(heads.values())) if self._is_shared else nn.ModuleDict(heads)).to(like)
        self.num_members = len(self.turns)
        self.boost_rate.data = self.boost_rate.data.to(like).fill_(self.r_init)

    @property
    def plans_passes(self) -> bool:
        """Always: passes of one modality, and of rectification."""
        return True

    def plan_epoch(self, context: EpochContext) -> EpochPlan:
        """Plan the passes of each stage of the epoch."""
        self._check_setup()
        passes = []
        for name in self._stages(context.epoch):
            for tag, count in ((_BOOST + name, self.t1), (_RECTIFY, self.t2)):
                passes += [Pass(tag, fresh_optimizer=self.reset_optimizer_per_phase and i == 0) for i in range(count)]
        return EpochPlan(tuple(passes))

    def _stages(self, epoch: int) -> tuple[str, ...]:
        """The modality in turn; the ensemble grows by it."""
        self.num_members = len(self.turns) if self.pretrained else min(epoch + 1, len(self.turns))
        return (self.turns[epoch % len(self.turns)],)

    @property
    def trains_fusion(self) -> bool:
        """The ensemble predicts in its place."""
        return False

    def losses(self, output: Output, targets: Tensor) -> Losses:
        """The loss of global rectification, CE(y, F)."""
        fused = output.task.loss(self._ensemble(output, self.members), targets)
        return Losses({"fused": fused}, {"boost_rate": self.boost_rate.detach()})

    def batch_losses(self, model: MultimodalClassifier, batch: Batch) -> Losses:
        """Losses of the modality in the tag of a batch, or of rectification."""
        self._check_setup()
        check_batch(model, batch)
        self._active = None
        if not batch.tag.startswith(_BOOST):
            losses: Losses = self(self._encode(model, batch, self.members), batch.targets)
            return losses
        active = check_choice("tag", batch.tag.removeprefix(_BOOST), self.turns)
        learner = self._encode(model, batch, (active,))
        logits = self._learner_logits(active, learner)  # before the others: autocast caches what it casts first
        ensemble = self._encode(model, batch, tuple(name for name in self.members if name != active), still=True)
        self._active = active
        terms = {active: self._boosting_loss(logits, ensemble, batch.targets, learner.mask(active))}
        if (consolidation := self._consolidation(logits, ensemble, active)) is not None:
            terms[f"{active}_consolidation"] = masked_mean(consolidation, learner.mask(active))
        return Losses({**terms, **learner.readout_losses(batch.targets)}, {"boost_rate": self.boost_rate.detach()})

    def change_gradients(self, model: MultimodalClassifier) -> None:
        """Keep the gradients of the learning modality only.

        The others become None, so that no optimiser moves their parameters.
        """
        if self._active is None:
            return
        keep_gradients(model, self, [model.encoders[self._active], self._head(self._active), model.fusion])

    def predict(self, output: Output) -> Prediction:
        """Ensemble F so far, and the learner of each modality."""
        fused = self._ensemble(output, self.members)
        alone = {name: self._learner_logits(name, output) for name in output.features}
        if isinstance(output.task, Regression):
            alone = {name: self.boost_rate * logits for name, logits in alone.items()}
        return Prediction(fused, alone)

    @property
    def members(self) -> tuple[str, ...]:
        """Modalities in the ensemble, the first of :attr:`turns`."""
        return self.turns[: self.num_members]

    def _encode(
        self, model: MultimodalClassifier, batch: Batch, names: Sequence[str], *, still: bool = False
    ) -> Output:
        """Features of the named modalities; ``still`` without gradient."""
        features = {}
        for name in names:
            held = module_mode(model.encoders[name], training=False) if still and self.clean_bn else nullcontext()
            with torch.set_grad_enabled(torch.is_grad_enabled() and not still), held:
                features[name] = encode_batch(model, batch, name)
        return Output(features, model.fusion, model.task, batch.present)

    def _check_setup(self) -> None:
        if not self.turns:
            raise RuntimeError(
                f"{type(self).__name__} has no heads: call `method.setup(model)` once, before the optimiser is made."
            )

    def _head(self, name: str) -> nn.Module:
        return self.heads if self._is_shared else self.heads.get_submodule(name)

    def _learner_logits(self, name: str, output: Output) -> Tensor:
        """Logits f_u of a learner, shape (B, C)."""
        return widened(read_features(self._head(name), output.features[name]))

    def _ensemble(self, output: Output, names: Sequence[str]) -> Tensor:
        """Ensemble r Σ f_u of the modalities present, shape (B, C)."""
        self._check_setup()
        terms = []
        for name in names:
            logits, mask = self._learner_logits(name, output), output.mask(name)
            terms.append(logits if mask is None else torch.where(mask[:, None], logits, 0.0))
        return self.boost_rate * torch.stack(terms).sum(0)

    def _boosting_loss(self, logits: Tensor, ensemble: Output, targets: Tensor, mask: Tensor | None) -> Tensor:
        """Mean of (w₁ − w₂ q_y) times the loss over C, with q = 1 for an empty ensemble; the loss of a residual."""
        fused = self._ensemble(ensemble, list(ensemble.features)).detach() if ensemble.features else None
        if isinstance(ensemble.task, Regression):
            share = self.boost_rate.detach() * logits
            return ensemble.task.loss(share if fused is None else fused + share, targets, mask)
        task = classification(ensemble.task)
        losses = task.choice_losses(logits, targets)
        explained = torch.ones_like(losses) if fused is None else task.choice_confidence(fused, targets)
        weight = (self.w1 - self.w2 * explained) / task.choice_logits(logits).shape[1]
        return task.average(task.per_sample(weight * losses), targets, mask)

    def _consolidation(self, logits: Tensor, ensemble: Output, active: str) -> Tensor | None:
        """Consolidation α (p − p_prev)², shape (B,); None if off."""
        previous = self.turns[self.turns.index(active) - 1]
        if self.mcr == "none" or self.epoch == 0 or previous not in ensemble.features:
            return None
        task = classification(ensemble.task)
        target = log_probabilities(task.choice_logits(self._learner_logits(previous, ensemble))).exp().detach()
        predicted = log_probabilities(task.choice_logits(logits)).exp()
        return self.mcr_weight * task.per_sample(F.mse_loss(predicted, target, reduction="none").mean(1))


def _head(width: int, hidden: int, num_outputs: int) -> nn.Module:
    if not hidden:
        return nn.Linear(width, num_outputs)
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, num_outputs))
