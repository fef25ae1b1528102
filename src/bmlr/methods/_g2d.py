"""Distillation from teachers of single modalities, with weak modalities first."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from bmlr._checks import check_choice, check_integer, check_non_negative, check_positive
from bmlr.batch import Batch
from bmlr.functional import log_probabilities, masked_mean
from bmlr.methods._modulation import (
    SCOPES,
    ScoredMethod,
    encoder_gradients,
    mean_scores,
    scale_gradients,
    score_sums,
    validation_sums,
)
from bmlr.methods._support import classification
from bmlr.methods._teachers import TaughtMethod
from bmlr.methods._types import (
    CLASSIFICATION,
    Conformance,
    EpochContext,
    EpochPlan,
    MethodInfo,
    Remedy,
)
from bmlr.methods._umt import feature_distance
from bmlr.model import MultimodalClassifier, Output
from bmlr.tasks import Task


class G2D(TaughtMethod, ScoredMethod):
    r"""Gradient-Guided Distillation: learn from teachers of single modalities, weak modalities first.

    .. math::
        L = \mathrm{CE}(y, p) + \sum_u \bigl[ w_l\, T^2\, \mathrm{KL}(p^u_T \,\|\, p_T)
            + w_f\, \mathrm{mean}\,(z^u - z^u_T)^2 \bigr]

    The teachers are the runs of :class:`Unimodal`, frozen and in evaluation mode: :math:`p^u_T` are their probabilities
    at temperature T, :math:`p_T` those of the multimodal prediction, :math:`z^u_T` their features. In the first epochs
    the encoders of strong modalities get no gradient (sequential modality prioritisation): of two, the one whose
    teacher has the larger score, the mean probability of the true class. Of M modalities the weakest learns alone in
    the first of M − 1 equal parts of these epochs, the two weakest in the next, and so on (ours).

    Deviations:

    * The official code ranks the teachers anew in every batch, by the batch itself (``ranking="batch"``). By default
      they are ranked once, by the validation split. Its teachers are the epochs of best test accuracy, ours of best
      validation score.
    * It zeroes the gradients of convolutions alone (``scope="conv"``); batch normalisation learns on. Here it is every
      weight of the encoder, also of encoders without convolutions. A zero gradient is not None: momentum and weight
      decay act.
    * It prioritises in epochs 0 to 150 of 300; None is half of the training, 151 is its number. Where both teachers
      score the same it raises an error; here nothing is held back.
    * Of labels KL is the mean over them (ours). A sample that lacks a modality learns nothing from its teacher.

    Official training: SGD 1e-3, momentum 0.9, batch 16, 300 epochs. Teachers are in the state of a training, and not in
    the weights of a run, which predicts without them.

    Args:
        temperature: Temperature T > 0 of teachers and prediction.
        logit_weight: Weight w_l ≥ 0 of the distillation of predictions.
        feature_weight: Weight w_f ≥ 0 of that of features.
        prioritised_epochs: Number of epochs in which strong modalities are held; None is half of the training.
        ranking: By ``validation``, once, or by every ``batch``.
        scope: Gradients that are held: ``weight`` (matrices and convolutions), ``conv`` or ``all``.

    Raises:
        ValueError: If a parameter is out of its range.

    Example:
        >>> import copy, torch, bmlr
        >>> model = bmlr.MultimodalClassifier({"a": torch.nn.Linear(4, 8), "v": torch.nn.Linear(6, 8)}, 3)
        >>> trained = {name: (copy.deepcopy(model), bmlr.methods.Unimodal(name)) for name in model.modalities}
        >>> for network, single in trained.values():
        ...     single.setup(network)  # and train it
        >>> method = bmlr.methods.G2D(ranking="batch")
        >>> method.setup(model)
        >>> method.start_from(trained, model)
        >>> plan = method.start_epoch(bmlr.methods.EpochContext(epoch=0, max_epochs=10, model=model))
        >>> batch = bmlr.Batch({"a": torch.randn(2, 4), "v": torch.randn(2, 6)}, torch.tensor([0, 2]))
        >>> sorted(method.compute_losses(model, batch).terms)
        ['a_features', 'a_logits', 'fused', 'v_features', 'v_logits']
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        paper="G2D: Boosting Multimodal Learning with Gradient-Guided Distillation",
        venue="ICCV 2025",
        url="https://arxiv.org/abs/2506.21514",
        family="distillation",
        cost="M runs of single modalities; then 2 forwards, 1 backward",
    )
    tasks: ClassVar[tuple[str, ...]] = CLASSIFICATION
    tasks_reason: ClassVar[str] = "it distils probabilities of classes"
    needs_separate_encoders: ClassVar[bool] = True
    state_attributes: ClassVar[tuple[str, ...]] = (*TaughtMethod.state_attributes, "strengths")
    epoch_parameters: ClassVar[tuple[str, ...]] = ("prioritised_epochs",)
    remedy: ClassVar[Remedy | None] = Remedy("encoder", "lets weak modalities learn first, from teachers", rank=9)
    conformance: ClassVar[Conformance] = Conformance(
        short={"prioritised_epochs": 1},
        variants={"batch": {"prioritised_epochs": 1, "ranking": "batch"}},
        sorted_names=True,
        reads_host="looks up the encoders that it holds in scores that it keeps there",
    )

    def __init__(
        self,
        temperature: float = 1.0,
        logit_weight: float = 1.0,
        feature_weight: float = 1.0,
        prioritised_epochs: int | None = None,
        ranking: Literal["validation", "batch"] = "validation",
        scope: Literal["weight", "conv", "all"] = "weight",
    ) -> None:
        super().__init__()
        self.temperature = check_positive("temperature", temperature)
        self.logit_weight = check_non_negative("logit_weight", logit_weight)
        self.feature_weight = check_non_negative("feature_weight", feature_weight)
        if prioritised_epochs is not None:
            check_integer("prioritised_epochs", prioritised_epochs, 0)
        self.prioritised_epochs = prioritised_epochs
        self.ranking = check_choice("ranking", ranking, ("validation", "batch"))
        self.scope = check_choice("scope", scope, tuple(SCOPES))
        #: Scores of the teachers on the validation split, shape (M,), by sorted name.
        self.strengths = torch.zeros(0, dtype=torch.float64)

    def setup(self, model: MultimodalClassifier) -> None:
        """Make room for the teachers."""
        super().setup(model)
        self.strengths = torch.zeros(0, dtype=torch.float64)

    @property
    def follows_epochs(self) -> bool:
        """Always: modalities are held in the first epochs."""
        return True

    def plan_epoch(self, context: EpochContext) -> EpochPlan:
        """Rank the teachers on the validation split, before the first epoch."""
        if self.ranking == "validation" and not len(self.strengths) and self._num_held():
            self.check_started(context.model.modalities)
            self.strengths = self._score(context)
        return EpochPlan()

    def taught_losses(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        """The divergence from each teacher's prediction, and the distance of each modality's features to its own."""
        terms, of_teachers = dict[str, Tensor](), {}
        for name, z in output.features.items():
            features, mask = self.teachers.features(name, batch), output.mask(name)
            of_teachers[name] = self.teachers.logits(name, features)
            divergence = self._divergence(output.task, of_teachers[name], output.logits, mask)
            terms[f"{name}_logits"] = self.logit_weight * divergence
            terms[f"{name}_features"] = self.feature_weight * feature_distance(z, features, mask)
        if self.training and self.ranking == "batch" and self._num_held():
            self.add_sums(score_sums(output, of_teachers, batch.targets))
        return terms

    @torch.no_grad()
    def change_gradients(self, model: MultimodalClassifier) -> None:
        """Set the gradients of the strongest modalities' encoders to zero, in the first epochs."""
        sums, count = self.take_sums(), self._num_held()
        scores = mean_scores(sums) if sums is not None else self.strengths
        if not count or not len(scores):
            return
        # Held are those that fewer than `count` others surpass; of equal ones none is ahead.
        ahead = (scores[None, :] >= scores[:, None]).sum(1) - 1 < count
        for name, is_held in zip(sorted(model.encoders), ahead, strict=True):  # on the CPU, or all on the device
            gradients = encoder_gradients(model.encoders[name], self.scope)
            if sums is not None:
                scale_gradients(gradients, ~is_held)
            elif is_held and gradients:
                torch._foreach_zero_(gradients)

    def _num_held(self) -> int:
        """Number of modalities that are held in this epoch."""
        total = self.max_epochs // 2 if self.prioritised_epochs is None else self.prioritised_epochs
        others = len(self.teachers.heads) - 1
        return others - self.epoch * others // total if self.epoch < total else 0

    def _divergence(self, task: Task, teacher: Tensor, fused: Tensor, mask: Tensor | None) -> Tensor:
        """T² KL of the teacher's probabilities to the multimodal ones, the mean over the samples of a mask."""
        choices = classification(task)
        wanted, given = (log_probabilities(choices.choice_logits(x) / self.temperature) for x in (teacher, fused))
        # A class without mass adds nothing, also where its logit is −∞.
        terms = torch.where(wanted.exp() > 0, wanted.exp() * (wanted - given), 0.0)
        return self.temperature**2 * masked_mean(choices.per_sample(terms.sum(1)), mask)

    def _score(self, context: EpochContext) -> Tensor:
        """Score of each teacher on the validation split, shape (M,), on the CPU."""

        def sums(batch: Batch) -> Tensor:
            features = {name: self.teachers.features(name, batch) for name in context.model.modalities}
            logits = {name: self.teachers.logits(name, z) for name, z in features.items()}
            output = Output(features, context.model.fusion, context.model.task, batch.present)
            return score_sums(output, logits, batch.targets)

        purpose, alternative = "G2D ranks its teachers on", ", or take `ranking = 'batch'`"
        return mean_scores(validation_sums(context, sums, purpose=purpose, alternative=alternative))
