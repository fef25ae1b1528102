"""MCR: multimodal competition regularizer."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from bmlr._checks import check_choice, check_integer, check_non_negative, check_positive
from bmlr._modes import module_mode
from bmlr.encoders.features import pooled
from bmlr.functional import jensen_shannon, masked_mean, supervised_contrast
from bmlr.fusion import match_dtype
from bmlr.methods._base import Method, check_separate
from bmlr.methods._starting import StartingMethod, Trained, take_parts
from bmlr.methods._support import HeadedMethod, SteppedMethod, classification, with_scaled_gradient
from bmlr.methods._types import CLASSIFICATION, Conformance, Losses, MethodInfo
from bmlr.model import MultimodalClassifier, Output
from bmlr.tasks import Classification

_GAMES = {"greedy": -1.0, "individual": 0.0, "collaborative": 1.0}


class MCR(SteppedMethod, HeadedMethod, StartingMethod):
    r"""Multimodal Competition Regularizer (Kontras et al., 2025).

    Each modality is to matter for the prediction, in a game against the others.

    Let π be a permutation of the batch, :math:`\tilde p_u` the prediction with the features of modality u permuted by
    it, and :math:`D_u` the mean Jensen-Shannon divergence of :math:`\tilde p_u` and the prediction p, over samples and
    ``permutations`` draws (Eq. 8). With linear heads h_u of its own per modality,

    .. math::
        L = \mathrm{CE}(y, f) + \lambda \sum_u \mathrm{CE}(y, h_u(z^u)) - l \sum_u D_u + c\,L_{Con} .

    The game says whom :math:`D_u` trains (Eqs. 12 and 13): the encoder of u raises it, and the other encoders, by
    :math:`k \nabla D_u`, lower it (``greedy``, k = −1), leave it alone (``individual``, 0) or raise it
    (``collaborative``, 1). :math:`L_{Con}` is the supervised contrastive loss of the directions of all features of all
    modalities (Eq. 9).

    The official code (kkontras/MCR, MIT) is ``form="official"``. By the paper's text a game differentiates p as well as
    :math:`\tilde p_u`. In the code p is one tensor for all: its gradients cancel in the greedy game, and reach every
    encoder and the fusion in the others. With ``paper`` (default) only the collaborative game trains the fusion by D.
    In the code p comes from the head in training mode and the permuted predictions from evaluation mode, so that
    dropout alone makes a divergence; ``paper`` takes both in the same mode. The values of the terms differ: the code
    logs ±D_u, zero in the greedy game. Its stand-alone file leaves the bias out of the permuted logits, not out
    of p. Its clamped probabilities are log-softmax here, which needs no clamp.

    Deviations: the conditional entropy bottleneck (Eq. 11) is left out, which the paper finds useful for encoders
    pretrained without labels and harmful elsewhere. The code starts from encoders that were trained alone, at ten times
    the rate; here that is ``pretrained``, which also brings their heads, at the rate of the options for all. More than
    two modalities follow Eq. 12, each with every other. Features of different widths are contrasted after a linear
    layer each, to the smallest width. Samples without a target, or without modality u, are not counted in D_u, and
    permuted among themselves. With several labels (ours) D_u is the mean over the labels, and samples with equal labels
    are of one class in the contrast. The paper's regression is left out: the divergence is one of distributions.

    The official training (``run.sh``): Adam of rate 1e-4 and weight decay 1e-4, batches of 32; l is 0.1 on CREMA-D and
    0.01 on AVE, λ is 0.01 for ResNets and 1 for Conformers.

    Args:
        game: ``greedy`` (default), ``individual`` or ``collaborative``.
        weight: Weight l ≥ 0 of the divergences.
        unimodal: Weight λ ≥ 0 of each unimodal cross-entropy.
        contrast: Weight c ≥ 0 of the contrastive loss.
        temperature: Temperature > 0 of the contrastive loss.
        permutations: Number of permutations per batch.
        form: ``paper`` (default) or ``official``.
        dropout: Whether heads stay in training mode, with dropout, for permuted features.
        pretrained: Whether encoders and heads start from runs of :class:`Unimodal`, as in the official training.
        seed: Seed of the permutations. They depend on it and on the number of the training step alone.

    Raises:
        ValueError: If a parameter is out of its range.

    Example:
        >>> import torch, bmlr
        >>> model = bmlr.MultimodalClassifier({"a": torch.nn.Linear(4, 8), "v": torch.nn.Linear(6, 8)}, 3)
        >>> method = bmlr.methods.MCR()
        >>> method.setup(model)
        >>> output = model({"a": torch.randn(2, 4), "v": torch.randn(2, 6)})
        >>> sorted(method(output, torch.tensor([0, 2])).terms)
        ['a', 'contrast', 'fused', 'game', 'v']
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        paper="Balancing Multimodal Training Through Game-Theoretic Regularization",
        venue="NeurIPS 2025",
        url="https://arxiv.org/abs/2411.07335",
        family="labels and losses",
        cost="1 forward, 1 backward, M fusion forwards of 33 batches",
    )
    tasks: ClassVar[tuple[str, ...]] = CLASSIFICATION
    tasks_reason: ClassVar[str] = "it compares distributions over classes"
    graph_reason: ClassVar[str] = "draws the permutations of a step on the host"
    conformance: ClassVar[Conformance] = Conformance(
        short={"permutations": 3},
        variants={
            "official": {"permutations": 3, "form": "official"},
            "individual": {"permutations": 2, "form": "official", "game": "individual"},
            "collaborative": {"permutations": 2, "game": "collaborative", "dropout": True},
        },
        not_mean_over_samples="permutes features within the batch",
        not_mean_over_processes="permutes features within the batch of each process",
    )

    state_attributes: ClassVar[tuple[str, ...]] = (*SteppedMethod.state_attributes, "has_started")

    def __init__(  # noqa: PLR0913
        self,
        *,
        game: Literal["greedy", "individual", "collaborative"] = "greedy",
        weight: float = 0.1,
        unimodal: float = 0.01,
        contrast: float = 1.0,
        temperature: float = 0.5,
        permutations: int = 32,
        form: Literal["paper", "official"] = "paper",
        dropout: bool = False,
        pretrained: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.game = check_choice("game", game, tuple(_GAMES))
        self.weight, self.unimodal = check_non_negative("weight", weight), check_non_negative("unimodal", unimodal)
        self.contrast = check_non_negative("contrast", contrast)
        self.temperature = check_positive("temperature", temperature)
        self.permutations = check_integer("permutations", permutations, 1)
        self.form = check_choice("form", form, ("paper", "official"))
        self.dropout, self.pretrained = dropout, pretrained
        self.seed = check_integer("seed", seed, 0)
        #: Layers to the smallest width, for the contrast of features of different widths.
        self.projections = nn.ModuleDict()

    def setup(self, model: MultimodalClassifier) -> None:
        """Make the heads, and the layers to a common width where widths differ.

        Raises:
            ValueError: If encoders are to come from runs of their own and share parameters.
        """
        super().setup(model)
        if self.pretrained:
            check_separate(type(self).__name__, model)
        widths = model.fusion.feature_dims
        least, layers = min(widths.values()), dict[str, nn.Module]()
        if self.contrast and least < max(widths.values()):
            layers = {name: nn.Linear(width, least, bias=False) for name, width in widths.items()}
        self.projections = nn.ModuleDict(layers).to(next(model.parameters()))

    def required_runs(self, modalities: Collection[str]) -> dict[str, Method]:
        """Each modality alone, with ``pretrained``."""
        return super().required_runs(modalities) if self.pretrained else {}

    def take_runs(self, trained: Trained, model: MultimodalClassifier) -> None:
        """Copy the encoders and the heads."""
        take_parts(trained, model, self.heads)

    def losses(self, output: Output, targets: Tensor) -> Losses:
        """Cross-entropies, divergences and contrast."""
        terms = dict(self.head_losses(output, targets, self.unimodal).terms)
        task = classification(output.task)
        if self.weight:
            divergences = self._divergences(task, output, targets)
            terms["game"] = -self.weight * torch.stack(list(divergences.values())).sum()
        else:
            divergences = {}
        if self.contrast:
            terms["contrast"] = self.contrast * self._contrast(task, output, targets)
        self.step += self.training  # evaluation must not change the permutations of later steps
        return Losses(terms, {f"divergence_{name}": value.detach() for name, value in divergences.items()})

    def _divergences(self, task: Classification, output: Output, targets: Tensor) -> dict[str, Tensor]:
        """Mean divergence D_u by name, with the gradients of the game."""
        size, share = output.batch_size, _GAMES[self.game]
        keys = torch.rand(self.permutations, size, generator=self.generator(self.step), dtype=torch.float32)
        divergences = {}
        for name, z in output.features.items():
            counted = task.counted(targets, output.mask(name))
            rows = _permutations(keys.to(z.device, non_blocking=True), counted).flatten()
            routed = {
                # Detached, and not scaled by zero: encoders that nothing reaches have no gradient.
                u: x if u == name else with_scaled_gradient(x, share) if share else x.detach()
                for u, x in output.features.items()
            }
            mixed = {
                u: x[rows] if u == name else x.repeat(self.permutations, *[1] * (x.ndim - 1)) for u, x in routed.items()
            }
            logits = self._logits(output, mixed)
            if self.form == "paper":
                reference = self._logits(output, routed)
            else:
                reference = output.logits.detach() if self.game == "greedy" else output.logits
            values = jensen_shannon(
                task.choice_logits(logits), task.choice_logits(reference.repeat(self.permutations, 1))
            )
            mask = None if counted is None else counted.repeat(self.permutations)
            divergences[name] = masked_mean(task.per_sample(values), mask)
        return divergences

    def _logits(self, output: Output, features: Mapping[str, Tensor]) -> Tensor:
        """Multimodal logits of other features, with the gradient to the fusion that the game has."""
        is_frozen = self.game == "greedy" or (self.game == "individual" and self.form == "paper")
        mode = contextlib.nullcontext() if self.dropout else module_mode(output.fusion, training=False)
        with mode:
            return output.replace_features(features).subset_logits(list(features), freeze_fusion=is_frozen)

    def _contrast(self, task: Classification, output: Output, targets: Tensor) -> Tensor:
        """Supervised contrastive loss of the features of all modalities."""
        rows, masks = [], []
        for name, z in output.features.items():
            x = pooled(z)
            rows.append(self.projections[name](match_dtype(x, self.projections[name])) if self.projections else x)
            mask = task.counted(targets, output.mask(name))
            masks.append(torch.ones(len(x), dtype=torch.bool, device=x.device) if mask is None else mask)
        classes = task.class_indices(targets).view(output.batch_size, -1)
        is_same = (classes[:, None] == classes).all(2).repeat(len(rows), len(rows))
        return supervised_contrast(torch.cat(rows), is_same, temperature=self.temperature, mask=torch.cat(masks))


def _permutations(keys: Tensor, counted: Tensor | None) -> Tensor:
    """Permutations of the samples that count by the order of random keys, shape (K, B); the others are permuted too."""
    if counted is None:
        return keys.argsort(1)
    places = (~counted).long().argsort(stable=True)
    return torch.empty_like(keys, dtype=torch.int64).index_copy_(1, places, (keys + 2 * ~counted).argsort(1))
