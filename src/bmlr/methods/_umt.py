"""Features of teachers that were trained alone, in joint training."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from bmlr._checks import check_non_negative
from bmlr.batch import Batch
from bmlr.encoders.features import pooled
from bmlr.functional import masked_mean, widened
from bmlr.methods._teachers import TaughtMethod
from bmlr.methods._types import ALL_TASKS, MethodInfo, Remedy
from bmlr.model import Output


class UMT(TaughtMethod):
    r"""Uni-Modal Teacher: encoders learn the features of encoders that were trained alone.

    .. math:: L = \mathrm{CE}(y, p) + w \sum_u \mathrm{mean}\,(z^u - \mathrm{sg}\, z^u_T)^2

    The teachers :math:`z^u_T` are the encoders of the runs of :class:`Unimodal`, frozen and in evaluation mode; the
    mean is over the entries of the features and the samples that have the modality, with or without a target. For
    labels and numbers the loss of the task takes the place of the cross-entropy. Predictions are those of the model.

    Deviations: the weight is that of BalanceBenchmark's code, which leaves the teachers in training mode, so that their
    batch normalisation follows the batch and their dropout draws. Its runs train by SGD (1e-2, 70 epochs).

    Teachers are in the state of a training, and not in the weights of a run, which predicts without them.

    Args:
        weight: Weight w ≥ 0 of the distance.

    Raises:
        ValueError: If the weight is negative or not finite.

    Example:
        >>> import copy, torch, bmlr
        >>> model = bmlr.MultimodalClassifier({"a": torch.nn.Linear(4, 8), "v": torch.nn.Linear(6, 8)}, 3)
        >>> trained = {name: (copy.deepcopy(model), bmlr.methods.Unimodal(name)) for name in model.modalities}
        >>> for network, single in trained.values():
        ...     single.setup(network)  # and train it
        >>> method = bmlr.methods.UMT()
        >>> method.setup(model)
        >>> method.start_from(trained, model)
        >>> batch = bmlr.Batch({"a": torch.randn(2, 4), "v": torch.randn(2, 6)}, torch.tensor([0, 2]))
        >>> sorted(method.compute_losses(model, batch).terms)
        ['a', 'fused', 'v']
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        paper="On Uni-Modal Feature Learning in Supervised Multi-Modal Learning",
        venue="ICML 2023",
        url="https://arxiv.org/abs/2305.01233",
        family="distillation",
        cost="M runs of single modalities; then 2 forwards, 1 backward",
    )
    tasks: ClassVar[tuple[str, ...]] = ALL_TASKS
    remedy: ClassVar[Remedy | None] = Remedy(
        "encoder", "lets encoders learn the features of ones trained alone", rank=8
    )

    def __init__(self, weight: float = 10.0) -> None:
        super().__init__()
        self.weight = check_non_negative("weight", weight)

    def taught_losses(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        """The distance of each modality's features to those of its teacher."""
        return {
            name: self.weight * feature_distance(z, self.teachers.features(name, batch), output.mask(name))
            for name, z in output.features.items()
        }


def feature_distance(features: Tensor, of_teacher: Tensor, mask: Tensor | None) -> Tensor:
    """Mean squared difference of features, over their entries and the samples of a mask, a scalar.

    Args:
        features: Features, shape (B, d) or (B, …, d), a sequence that is averaged over its positions.
        of_teacher: Those of the teacher, of the same shape, without gradient.
        mask: Samples that count, shape (B,); None counts all.
    """
    return masked_mean((widened(pooled(features)) - widened(pooled(of_teacher))).square().mean(1), mask)
