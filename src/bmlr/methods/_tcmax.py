"""TCMax: total correlation of features and labels."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from bmlr._checks import check_integer
from bmlr._modes import preserved_buffers
from bmlr.functional import masked_mean, widened
from bmlr.fusion import match_dtype
from bmlr.methods._support import SteppedMethod, classification, gather_processes
from bmlr.methods._types import CLASSIFICATION, Conformance, Losses, MethodInfo
from bmlr.model import Output
from bmlr.tasks import Classification

#: Tuples of a fusion that is no sum: all there are up to this number, else so many drawn ones.
_MOST_TUPLES = 4096
#: Logarithm of what does not count: finite, since the gradient of a mean of nothing would be NaN.
_NOTHING = -1e30


class TCMax(SteppedMethod):
    r"""Total correlation maximisation (Yu et al., 2026).

    Features and labels are told from features and labels put together at random.

    With a lower bound of the total correlation :math:`TC(z^1, \dots, z^M, y)` whose critic is the classifier itself,

    .. math::
        L = -\frac1B \sum_i f(z^1_i, \dots, z^M_i)_{y_i} + \log \frac{1}{B^M} \sum_{j_1, \dots, j_M} \sum_c
        \exp f(z^1_{j_1}, \dots, z^M_{j_M})_c .

    It is computed as two terms. ``fused`` is the cross-entropy; ``alignment`` is what the total correlation has beyond
    it, the same bound of the modalities' mutual information with the critic :math:`s(z) = \log \sum_c \exp f(z)_c`:

    .. math:: L = \mathrm{CE}(y, f) + \log \frac{1}{B^M} \sum_{j_1, \dots, j_M} e^{s(z^1_{j_1}, \dots, z^M_{j_M})}
        - \frac1B \sum_i s(z_i) .

    Where the multimodal logits are a sum over modalities, :math:`f = \sum_u f^u`, the sum over tuples factorises and
    costs O(B·M·C): :math:`\log \sum_c \exp \sum_u \log \frac1B \sum_j \exp f^u_{j,c}`. Other fusions run on all
    tuples of the batch, or, beyond 4096, on as many drawn ones. Prediction is unchanged.

    Deviations: the official code (hubaak/TCMax, MIT, two modalities) adds log B, a constant. It subtracts the mean
    logit before the exponential, which overflows where one logit is far above the mean; here it is the
    log-sum-exp. Its subsampled form (``--TCMax_sample_num``) divides by the number of classes, constants too, fails
    with a TypeError for a fusion that is no sum, since it indexes what the fusion returns, three tensors, and where it
    says one permutation it draws with replacement. For images with texts its training loop replaces the loss by the
    two unimodal parts. The paper's shared head is not among the fusions here. More than two modalities are the paper's
    formula.

    With several labels (ours) each label is a choice of its own between two classes, and the loss is the mean over
    them. Class weights and label smoothing act on the cross-entropy. A sample that lacks a modality has its zero
    features in tuples too: without them the bound would not hold. Samples without a target are in no term. In
    distributed training the sum over modalities takes in the batches of all processes; tuples of other fusions are
    those of each process.

    The official training: SGD of rate 0.001, batches of 32 (Kinetics-Sounds 64), 3 frames, 200 epochs (UCF-101 400,
    VGGSound 100) with a tenth of the rate from epoch 170, 150, 300 or 70.

    Args:
        samples: Number of tuples drawn per batch, for every fusion; 0 is one random permutation of each modality but
            the first. None (default) is the exact sum where it can be had, as above.
        seed: Seed of the draws. They depend on it and on the number of the training step alone.

    Raises:
        ValueError: If a parameter is out of its range.

    Example:
        >>> import torch, bmlr
        >>> model = bmlr.MultimodalClassifier({"a": torch.nn.Linear(4, 8), "v": torch.nn.Linear(6, 8)}, 3)
        >>> output = model({"a": torch.randn(2, 4), "v": torch.randn(2, 6)})
        >>> sorted(bmlr.methods.TCMax()(output, torch.tensor([0, 2])).terms)
        ['alignment', 'fused']
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        paper="Multimodal Classification via Total Correlation Maximization",
        venue="ICLR 2026",
        url="https://arxiv.org/abs/2602.13015",
        family="labels and losses",
        cost="1 forward, 1 backward; for fusions that are no sum 1 fusion forward of up to 4096 samples",
    )
    tasks: ClassVar[tuple[str, ...]] = CLASSIFICATION
    tasks_reason: ClassVar[str] = "it sums over all classes, which numbers do not have"
    graph_reason: ClassVar[str] = "draws tuples on the host where there are many"
    conformance: ClassVar[Conformance] = Conformance(
        variants={"samples": {"samples": 16}, "permutation": {"samples": 0}},
        not_mean_over_samples="compares each sample with the others of its batch",
        not_mean_over_processes="compares, where the fusion is no sum, the samples of each process",
        sorted_names=True,
    )

    def __init__(self, samples: int | None = None, seed: int = 0) -> None:
        super().__init__()
        self.samples = None if samples is None else check_integer("samples", samples, 0)
        self.seed = check_integer("seed", seed, 0)

    def losses(self, output: Output, targets: Tensor) -> Losses:
        """Multimodal cross-entropy and the alignment of the modalities."""
        task, counted = classification(output.task), output.task.counted(targets, None)
        joint = masked_mean(task.per_sample(_energies(task, output.logits).flatten()), counted)
        if self.samples is None and output.fusion.additive:
            product = _factorised(task, output, counted)
        else:
            product = self._over_tuples(task, output, counted)
        self.step += self.training  # evaluation must not change the draws of later steps
        alignment = product.mean() - joint
        if counted is not None:
            alignment = alignment * counted.any()
        return Losses({"fused": task.loss(output.logits, targets), "alignment": alignment})

    def _over_tuples(self, task: Classification, output: Output, counted: Tensor | None) -> Tensor:
        """Logarithm of the mean of exp s over tuples, shape (K,)."""
        names = sorted(output.features)
        rows, is_tuple = self._tuples(output, len(names), counted)
        columns = dict(zip(names, rows.unbind(1), strict=True))
        mixed = {name: z[columns[name]] for name, z in output.features.items()}
        with preserved_buffers(output.fusion):  # running statistics are those of the samples as they are
            logits = output.replace_features(mixed).logits
        return _log_mean(_energies(task, logits), is_tuple)

    def _tuples(self, output: Output, modalities: int, counted: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Samples of each tuple, shape (S, M), and which tuples count, shape (S,)."""
        size, device = output.batch_size, next(iter(output.features.values())).device
        if self.samples is None and size**modalities <= _MOST_TUPLES:
            rows = torch.cartesian_prod(*[torch.arange(size, device=device)] * modalities)
            return rows, None if counted is None else counted[rows].all(1)
        generator = self.generator(self.step)
        flags = torch.ones(size, dtype=torch.bool, device=device) if counted is None else counted
        if self.samples == 0:
            keys = torch.rand(size, modalities, generator=generator, dtype=torch.float32)
            keys[:, 0] = torch.arange(size) / size
            # Samples that do not count come last in every column: no tuple is half of them.
            rows = (keys.to(device, non_blocking=True) + 2 * ~flags[:, None]).argsort(0)
            return rows, None if counted is None else flags[rows[:, 0]]
        number = self.samples or _MOST_TUPLES
        draws = torch.rand(number, modalities, generator=generator, dtype=torch.float32)
        count = flags.sum().clamp(min=1)
        order = flags.long().argsort(descending=True, stable=True)
        places = (draws.to(device, non_blocking=True) * count).long()
        return order[torch.minimum(places, count - 1)], None


def _energies(task: Classification, logits: Tensor) -> Tensor:
    """The critic s = log Σ_c exp f_c of each choice, shape (B, K); K is 1 for classes."""
    return widened(task.choice_logits(logits)).logsumexp(1).view(len(logits), -1)


def _log_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Logarithm of the mean of exp over the first dimension, of what the mask keeps."""
    if mask is None:
        return values.logsumexp(0) - math.log(len(values))
    kept = torch.where(mask.view(-1, *[1] * (values.ndim - 1)), values, _NOTHING)
    return kept.logsumexp(0) - mask.sum().clamp(min=1).to(values.dtype).log()


def _factorised(task: Classification, output: Output, counted: Tensor | None) -> Tensor:
    """The same over all tuples of a sum f = Σ_u f^u, and of all processes, shape (K,)."""
    fusion = output.fusion
    with preserved_buffers(fusion):
        terms = fusion.split({name: match_dtype(z, fusion) for name, z in output.features.items()})
    means = []
    for name in sorted(terms):
        choices = widened(task.choice_logits(terms[name]))
        means.append(_log_mean(choices.view(output.batch_size, -1, choices.shape[1]), counted))
    local = torch.stack(means)
    size = local.new_full((), output.batch_size) if counted is None else counted.sum().to(local.dtype)
    sizes = gather_processes(size)
    shares = (sizes / sizes.sum().clamp(min=1)).clamp(min=math.exp(-60)).log()
    every = gather_processes(local) + shares.view(-1, *[1] * local.ndim)
    return every.logsumexp(0).sum(0).logsumexp(1)
