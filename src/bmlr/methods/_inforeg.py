"""InfoReg: regulation of the acquisition of information."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from bmlr._checks import check_choice, check_modalities, check_non_negative
from bmlr.methods._base import Method
from bmlr.methods._modulation import (
    SCOPES,
    ScoredMethod,
    check_set_up,
    detached_unimodal_logits,
    mean_scores,
    score_sums,
)
from bmlr.methods._support import unimodal_losses
from bmlr.methods._types import ALL_TASKS, Conformance, EpochContext, EpochPlan, Losses, MethodInfo, Remedy
from bmlr.model import MultimodalClassifier, Output

#: Epochs of the moving mean of the official code, and its coefficients.
_MEAN_EPOCHS = 10
_LEADING, _FOLLOWING = 0.95, 0.1


class InfoReg(ScoredMethod):
    r"""Information acquisition Regulation (Huang et al., 2025).

    Encoders that are ahead are held near where they were at the start of the epoch, as long as they gain information
    fast (the prime learning window), so that the others find something left to explain. With the score :math:`s_u`, the
    mean probability of the true class in the unimodal logits, the gradient of encoder u becomes

    .. math::
        \nabla_{\theta^u} \leftarrow \nabla_{\theta^u} + \alpha_u (\theta^u - \theta^u_\text{start}), \quad
        \alpha_u = e^{\beta \tanh \Delta_u}, \quad
        \Delta_u = \operatorname{mean}_{v :\, s_v < s_u} (s_u - s_v) ,

    which is the gradient of the penalty :math:`\tfrac{\alpha_u}{2} \lVert \theta^u - \theta^u_\text{start} \rVert^2`,
    in every epoch t in which

    .. math:: (\operatorname{tr} F_u^{t-1} - \operatorname{tr} F_u^{t-2}) / \operatorname{tr} F_u^{t-1} > K,

    with :math:`\operatorname{tr} F_u` the mean over the steps of an epoch of the squared norm of the encoder's
    gradient; the first two epochs are in the window. A modality that leads nobody is left alone. Scores are those of an
    optimiser step, over accumulated batches and processes, and no step waits for the device.

    ``form="official"`` is the official code, at commit ea7b9d5:

    * s is the sum over the batch and not the mean, so that tanh is 1 and the coefficient constant: 0.95 e for the
      leading modality (audio), 0.1 e for the others.
    * The window of all encoders is that of the leading one. The change is that of two moving means over ten epochs, one
      epoch apart, which begin with ten zeros.
    * The trace is the sum of the mean squared gradients of the weights, with the penalty in them. Weights are those of
      two or more dimensions; the official code has those of ``Conv2d`` and ``Linear``, and no others in its encoders.
    * The unimodal losses are always added.

    In both forms unimodal logits are the fusion's readout, for ``concat`` with b/M as in the official code.

    Deviations: the empirical Fisher information is a mean of squared gradients of samples; as in the official code
    those of steps take their place. The paper's Eq. 8 takes −log p for a score and calls the larger one the better; the
    probability is meant. By the formula alone the modality that leads nobody would have α = 1; the paper regulates
    those with more information, and so does the code. With more than two modalities the official form takes Δ as the
    paper has it (ours). For labels and numbers the losses are those of the task and the score its confidence (ours).
    Another published version of the code, 41d887f, has K = 0.04 and a branch for the second modality that cannot be
    reached, so that audio alone is regulated.

    The penalty is part of the gradient, as in the paper, which trains by SGD (2e-3, momentum 0.9, weight decay 1e-4,
    times 0.1 after 30 epochs; 50 epochs). Adam divides it by the size of the whole gradient, as it does with weight
    decay that is not decoupled: use SGD.

    Args:
        beta: Strength β ≥ 0 of the gap; the official form has 1.
        threshold: Smallest relative growth K ≥ 0 of the trace within the window.
        unimodal_losses: Add CE of the unimodal logits (the paper's InfoReg with a star). None adds them in the official
            form only.
        form: ``paper`` or ``official``.
        leading: Leading modality of the official form; None is the model's first.

    Raises:
        ValueError: If a parameter is out of its range.

    Example:
        >>> import torch, bmlr
        >>> model = bmlr.MultimodalClassifier({"a": torch.nn.Linear(4, 8), "v": torch.nn.Linear(6, 8)}, 3)
        >>> method = bmlr.methods.InfoReg()
        >>> method.setup(model)
        >>> plan = method.start_epoch(bmlr.methods.EpochContext(epoch=0, max_epochs=10, model=model))
        >>> losses = method(model({"a": torch.randn(2, 4), "v": torch.randn(2, 6)}), torch.tensor([0, 2]))
        >>> method.backward(losses, model)
        >>> method.adjust_gradients(model)
        >>> sorted(losses.logs)
        ['score_a', 'score_v', 'window_a', 'window_v']
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        paper="Adaptive Unimodal Regulation for Balanced Multimodal Information Acquisition",
        venue="CVPR 2025",
        url="https://arxiv.org/abs/2503.18595",
        family="gradient scale",
        cost="1 forward, 1 backward, 2 passes over the gradients; a copy of the encoders",
    )
    tasks: ClassVar[tuple[str, ...]] = ALL_TASKS
    needs_separate_encoders: ClassVar[bool] = True
    remedy: ClassVar[Remedy | None] = Remedy(
        "encoder", "holds back the encoder that is ahead while it learns fast", rank=7
    )
    graph_reason: ClassVar[str] = "reads numbers on the host in its official form"
    conformance: ClassVar[Conformance] = Conformance(variants={"official": {"form": "official"}}, sorted_names=True)
    state_attributes: ClassVar[tuple[str, ...]] = (*Method.state_attributes, "traces")

    squares: Tensor
    steps: Tensor

    def __init__(
        self,
        beta: float = 1.0,
        threshold: float = 0.05,
        unimodal_losses: bool | None = None,
        form: Literal["paper", "official"] = "paper",
        leading: str | None = None,
    ) -> None:
        super().__init__()
        self.beta = check_non_negative("beta", beta)
        self.threshold = check_non_negative("threshold", threshold)
        self.unimodal_losses = unimodal_losses
        self.form = check_choice("form", form, ("paper", "official"))
        self.leading = leading
        self._coefficients: tuple[float, ...] = ()  # of the official form, by sorted name
        self._leading_column = 0
        #: Trace of each encoder in the epochs before, shape (epochs, M), by sorted name.
        self.traces = torch.zeros(0, 0, dtype=torch.float64)
        self.register_buffer("squares", torch.zeros(0))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def setup(self, model: MultimodalClassifier) -> None:
        """Forget all traces, and keep a copy of the encoders.

        Raises:
            ValueError: If the leading modality is none, or the official form finds no weight in its encoder.
        """
        super().setup(model)
        check_modalities("leading", [] if self.leading is None else [self.leading], model.modalities)
        names, leading = sorted(model.modalities), self.leading or model.modalities[0]
        self._coefficients = tuple(_LEADING if name == leading else _FOLLOWING for name in names)
        self._leading_column = names.index(leading)
        if self.form == "official" and not _weights(model.encoders[leading]):
            raise ValueError(
                "InfoReg with `form = 'official'` traces the weights of the leading encoder. "
                f"Found none in that of '{leading}': choose another `leading`, or the form 'paper'."
            )
        like = next(model.parameters())
        dtype = torch.promote_types(like.dtype, torch.float32)
        self.squares = torch.zeros(len(names), device=like.device, dtype=dtype)
        self.steps = torch.zeros((), device=like.device, dtype=torch.int64)
        self.traces = torch.zeros(0, len(names), dtype=torch.float64)
        self._keep_start(model)

    def losses(self, output: Output, targets: Tensor) -> Losses:
        """The multimodal loss, with the unimodal ones if wanted; training also adds up the scores."""
        check_set_up(self, len(self.squares), output)
        terms = {"fused": output.task.loss(output.logits, targets)}
        is_official = self.form == "official"
        if is_official if self.unimodal_losses is None else self.unimodal_losses:
            terms |= unimodal_losses(output, output.unimodal_logits, targets)
        if not self.training:
            return Losses(terms)
        sums = score_sums(output, detached_unimodal_logits(output), targets, errors=False)
        self.add_sums(sums)
        logs: dict[str, Tensor] = {}
        for u, score, is_open in zip(sorted(output.features), mean_scores(sums), self.in_window(), strict=True):
            logs |= {f"score_{u}": score, f"window_{u}": score.new_full((), float(is_open))}
        return Losses(terms, logs)

    def plan_epoch(self, context: EpochContext) -> EpochPlan:
        """Note the traces of the epoch before, and keep a copy of the encoders."""
        if steps := float(self.steps):
            trace = self.squares.double().cpu() / (1.0 if self.form == "official" else steps)
            self.traces = torch.cat([self.traces, trace[None]])[-(_MEAN_EPOCHS + 1) :]
        self.squares, self.steps = torch.zeros_like(self.squares), torch.zeros_like(self.steps)
        self._keep_start(context.model)
        return EpochPlan()

    def in_window(self) -> list[bool]:
        """Whether each encoder is in the prime learning window, by sorted name."""
        count = self.traces.shape[1]
        if self.form == "official":
            if not len(self.traces):
                return [True] * count
            values = torch.cat([torch.zeros(_MEAN_EPOCHS, dtype=torch.float64), self.traces[:, self._leading_column]])
            now, before = values[-_MEAN_EPOCHS:].mean(), values[-_MEAN_EPOCHS - 1 : -1].mean()
            return [bool(now - before > self.threshold * now)] * count
        if len(self.traces) < 2:
            return [True] * count
        now, before = self.traces[-1], self.traces[-2]
        is_open: list[bool] = (now - before > self.threshold * now).tolist()
        return is_open

    @torch.no_grad()
    def change_gradients(self, model: MultimodalClassifier) -> None:
        """Add the penalty of the encoders that are ahead, and square the gradients for the trace."""
        if (sums := self.take_sums()) is None:
            return
        strengths = self.strengths(sums)
        squares = []
        for name, strength, is_open in zip(sorted(model.encoders), strengths, self.in_window(), strict=True):
            if self.form == "paper":
                squares.append(self._squares(model.encoders[name].parameters()))
            if is_open:
                self._add_penalty(model, name, strength)
            if self.form == "official":
                squares.append(self._squares(_weights(model.encoders[name])))
        added = torch.stack(squares)
        is_finite = added.isfinite().all()  # half precision looks for its scale by steps that overflow
        self.squares = self.squares + torch.where(is_finite, added, 0.0)
        self.steps = self.steps + is_finite

    def strengths(self, sums: Tensor) -> Tensor:
        """Strength α of each penalty, shape (M,), from sums of scores and numbers of samples, shape (2, M)."""
        scores = sums[0] if self.form == "official" else mean_scores(sums)
        gaps = scores[:, None] - scores[None]
        is_led = gaps > 0
        gap = torch.where(is_led, gaps, 0.0).sum(1) / is_led.sum(1).clamp(min=1)
        if self.form == "official":
            strength = torch.stack([c * x for c, x in zip(self._coefficients, gap.tanh().exp(), strict=True)])
        else:
            strength = (self.beta * gap.tanh()).exp()
        return torch.where(gap > 0, strength, 0.0)

    def _add_penalty(self, model: MultimodalClassifier, name: str, strength: Tensor) -> None:
        """Add α (θ − θ_start) to the gradients of an encoder."""
        number = _first_numbers(model)[name]
        for i, p in enumerate(model.encoders[name].parameters()):
            if p.grad is not None:
                p.grad.add_((p - self.get_buffer(f"start_{number + i}")) * strength.to(p.dtype))

    def _squares(self, parameters: Iterable[nn.Parameter]) -> Tensor:
        """Squared norm of the gradients, or the sum of their mean squares, a scalar."""
        values = [p.grad.to(self.squares.dtype).square() for p in parameters if p.grad is not None]
        reduced = [value.mean() if self.form == "official" else value.sum() for value in values]
        return torch.stack(reduced).sum() if reduced else self.squares.new_zeros(())

    def _keep_start(self, model: MultimodalClassifier) -> None:
        numbers = _first_numbers(model)
        for name, encoder in model.encoders.items():
            for i, parameter in enumerate(encoder.parameters()):
                self.register_buffer(f"start_{numbers[name] + i}", parameter.detach().clone())


def _first_numbers(model: MultimodalClassifier) -> dict[str, int]:
    """Number of the first parameter of each encoder, by sorted name."""
    counts = {name: len(list(model.encoders[name].parameters())) for name in sorted(model.encoders)}
    ends = itertools.accumulate(counts.values())
    return {name: end - count for (name, count), end in zip(counts.items(), ends, strict=True)}


def _weights(encoder: nn.Module) -> list[nn.Parameter]:
    """Parameters that the official form traces."""
    return [p for p in encoder.parameters() if p.ndim in SCOPES["weight"]]
