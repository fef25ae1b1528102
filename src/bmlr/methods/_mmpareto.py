"""MMPareto: Pareto integration of multimodal and unimodal gradients (ICML 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from bmlr._checks import check_choice, check_positive
from bmlr.functional import soft_cross_entropy
from bmlr.methods._base import Conformance, Losses, Method, MethodInfo, Prediction, Remedy
from bmlr.methods._joint import apply_heads, unimodal_heads
from bmlr.methods._support import all_reduce_mean
from bmlr.model import MultimodalClassifier, Output


class MMPareto(Method):
    r"""Multimodal Pareto gradient integration (Wei and Hu, ICML 2024).

    Trained with the fused loss L_m = CE(y, p) and a loss L_u = CE(y, h_u(zᵘ)) per modality through a linear head of
    the method's own. In encoder u the gradients :math:`g_m` and :math:`g_u` of both (over all its parameters) are
    combined without hurting either:

    .. math:: h = 2 w_m g_m + 2 w_u g_u, \qquad
              (w_m, w_u) = \begin{cases} (\tfrac12, \tfrac12) & \cos(g_m, g_u) > 0 \\
              (\gamma, 1 - \gamma) & \text{otherwise} \end{cases}, \qquad
              \gamma = \mathrm{clip}\Bigl( \frac{(g_u - g_m)^\top g_u}{\lVert g_m - g_u \rVert^2}, 0, 1 \Bigr) ,

    where γ gives the shortest vector between both, in closed form (the official code runs a Frank–Wolfe solver with
    the same optimum). Where h is shorter than the plain gradient :math:`g_m + g_u` it is brought to that length, for
    the noise that helps generalisation, and then multiplied by ``boost``. Heads and fusion keep the plain gradient.

    The length is compared per parameter tensor as in the official code, or over the whole encoder as the paper writes
    it (``rescale``). Two backward passes suffice, since L_u reaches encoder u alone; the official code makes four. With
    accumulated batches each is combined by itself and the results are added. Under distributed training the method
    averages both sets of gradients over the processes before it combines them.

    The official code trains with SGD (2e-3, momentum 0.9, weight decay 1e-4, times 0.1 after 30 epochs), 50 epochs.

    Args:
        boost: Factor > 0 on the encoders' combined gradients; 1.5 in the official code.
        rescale: Compare lengths per ``tensor`` (official code) or per ``encoder`` (paper).

    Raises:
        ValueError: If a parameter is out of its range.

    Example:
        >>> import torch, bmlr
        >>> model = bmlr.MultimodalClassifier({"a": torch.nn.Linear(4, 8), "v": torch.nn.Linear(6, 8)}, 3)
        >>> method = bmlr.methods.MMPareto()
        >>> method.setup(model)
        >>> losses = method(model({"a": torch.randn(2, 4), "v": torch.randn(2, 6)}), torch.tensor([0, 2]))
        >>> method.backward(losses, model)  # in place of losses.total.backward()
        >>> model.encoders["a"].weight.grad.shape
        torch.Size([8, 4])
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        title="MMPareto",
        paper="MMPareto: Boosting Multimodal Learning with Innocent Unimodal Assistance",
        venue="ICML 2024",
        url="https://arxiv.org/abs/2405.17730",
        family="gradient combination",
        cost="1 forward, 2 backwards",
    )
    remedy: ClassVar[Remedy | None] = Remedy(
        "encoder", "lets unimodal losses train the encoders without conflict", rank=3, resolves_conflict=True
    )
    conformance: ClassVar[Conformance] = Conformance(
        not_mean_over_samples="combines the gradients of a batch by weights that depend on them"
    )
    reduces_gradients: ClassVar[bool] = True

    def __init__(self, boost: float = 1.5, rescale: Literal["tensor", "encoder"] = "tensor") -> None:
        super().__init__()
        self.boost = check_positive("boost", boost)
        self.rescale = check_choice("rescale", rescale, ("tensor", "encoder"))
        self.heads = nn.ModuleDict()

    def setup(self, model: MultimodalClassifier) -> None:
        """Make one linear head per modality."""
        self.heads = unimodal_heads(model)

    def losses(self, output: Output, targets: Tensor) -> Losses:
        """The fused and the unimodal cross-entropies."""
        terms = {"fused": soft_cross_entropy(output.logits, targets)}
        for name, logits in apply_heads(self, self.heads, output).items():
            terms[name] = soft_cross_entropy(logits, targets, mask=output.mask(name))
        return Losses(terms)

    def backward(self, losses: Losses, model: MultimodalClassifier, *, scale: float | Tensor = 1.0) -> None:
        """Accumulate the combined gradients of the encoders and the plain ones of everything else."""
        encoders = [[p for p in model.encoders[u].parameters() if p.requires_grad] for u in model.modalities]
        others = [p for p in (*model.fusion.parameters(), *self.parameters()) if p.requires_grad]
        parameters = [*(p for encoder in encoders for p in encoder), *others]
        unimodal = torch.stack([value for name, value in losses.terms.items() if name != "fused"]).sum()
        fused_gradients = _gradients(losses.terms["fused"] * scale, parameters, retain_graph=True)
        unimodal_gradients = _gradients(unimodal * scale, parameters, retain_graph=False)

        for encoder in encoders:
            used = [p for p in encoder if p in fused_gradients or p in unimodal_gradients]
            if used:
                g_m = [fused_gradients.get(p, torch.zeros_like(p)) for p in used]
                g_u = [unimodal_gradients.get(p, torch.zeros_like(p)) for p in used]
                _accumulate(used, self._combine(g_m, g_u))
        for gradients in (fused_gradients, unimodal_gradients):
            shared = [p for p in others if p in gradients]
            _accumulate(shared, [gradients[p] for p in shared])

    def predict(self, output: Output) -> Prediction:
        """Fused logits of the model, unimodal logits of the heads."""
        return Prediction(output.logits, apply_heads(self, self.heads, output))

    def _combine(self, g_m: list[Tensor], g_u: list[Tensor]) -> list[Tensor]:
        """The gradient h of one encoder, per tensor; no value leaves the device."""
        w_m = pareto_weight(g_m, g_u)
        combined = [2 * w_m * m + 2 * (1 - w_m) * u for m, u in zip(g_m, g_u, strict=True)]
        plain = [m + u for m, u in zip(g_m, g_u, strict=True)]
        if self.rescale == "tensor":
            factors = [_growth(p.norm(), h.norm()) for p, h in zip(plain, combined, strict=True)]
        else:
            factors = [_growth(_norm(plain), _norm(combined))] * len(combined)
        return [self.boost * factor * h for factor, h in zip(factors, combined, strict=True)]


def pareto_weight(g_m: Sequence[Tensor], g_u: Sequence[Tensor]) -> Tensor:
    """Weight w_m of the first of two gradients in [0, 1], a scalar; the other has 1 − w_m.

    Args:
        g_m: Gradient of the fused loss, tensor by tensor.
        g_u: Gradient of the unimodal loss in the same tensors.
    """
    product = torch.stack([(m * u).sum() for m, u in zip(g_m, g_u, strict=True)]).sum()
    gap = [m - u for m, u in zip(g_m, g_u, strict=True)]
    numerator = -torch.stack([(d * u).sum() for d, u in zip(gap, g_u, strict=True)]).sum()
    distance = torch.stack([(d * d).sum() for d in gap]).sum()
    gamma = (numerator / distance).clamp(0, 1)
    return torch.where((product > 0) | (distance == 0), 0.5, gamma)


def _gradients(loss: Tensor, parameters: Sequence[nn.Parameter], *, retain_graph: bool) -> dict[nn.Parameter, Tensor]:
    """Gradient of each parameter the loss reaches, averaged over processes."""
    found = torch.autograd.grad(loss, parameters, retain_graph=retain_graph, allow_unused=True)
    reached = {p: g for p, g in zip(parameters, found, strict=True) if g is not None}
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return reached
    flat = all_reduce_mean(torch.cat([g.flatten() for g in reached.values()]))
    pieces = flat.split([g.numel() for g in reached.values()])
    return {p: piece.view_as(p) for p, piece in zip(reached, pieces, strict=True)}


def _accumulate(parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor]) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        value = gradient.detach()
        parameter.grad = value if parameter.grad is None else parameter.grad + value


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    norm: Tensor = torch.stack([t.norm() for t in tensors]).norm()
    return norm


def _growth(plain: Tensor, combined: Tensor) -> Tensor:
    """What brings ``combined`` to the length of ``plain`` where it is shorter; 1 where it is not, or is zero."""
    return torch.where(combined > 0, plain / combined, 1.0).clamp(min=1)
