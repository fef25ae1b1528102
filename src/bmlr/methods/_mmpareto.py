"""MMPareto: Pareto integration of multimodal and unimodal gradients."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from bmlr._checks import check_choice, check_positive
from bmlr.functional import pareto_weight
from bmlr.methods._support import HeadedMethod, accumulate_gradients, reduced_gradients
from bmlr.methods._types import ALL_TASKS, Conformance, Losses, MethodInfo, Remedy
from bmlr.model import MultimodalClassifier, Output


class MMPareto(HeadedMethod):
    r"""Multimodal Pareto gradient integration (Wei and Hu, 2024).

    Trained with the multimodal loss L_m = CE(y, p) and a loss L_u = CE(y, h_u(zᵘ)) per modality through a linear head
    of the method's own. In encoder u the gradients :math:`g_m` and :math:`g_u` of both (over all its parameters) are
    combined without hurting either:

    .. math:: h = 2 w_m g_m + 2 w_u g_u, \qquad
              (w_m, w_u) = \begin{cases} (\tfrac12, \tfrac12) & \cos(g_m, g_u) > 0 \text{ or one is } 0 \\
              (\gamma, 1 - \gamma) & \text{otherwise} \end{cases}, \qquad
              \gamma = \mathrm{clip}\Bigl( \frac{(g_u - g_m)^\top g_u}{\lVert g_m - g_u \rVert^2}, 0, 1 \Bigr) ,

    where γ gives the shortest vector between both, in closed form, as the solver of the official code does for two.
    Where h is shorter than the plain gradient :math:`g_m + g_u` it is brought to that length, for
    the noise that helps generalisation, and then multiplied by ``boost``. Heads and fusion keep the plain gradient.

    The length is compared per parameter tensor as in the official code, or over the whole encoder as the paper writes
    it (``rescale``). Two backward passes suffice, since L_u reaches encoder u alone; the official code makes four. With
    accumulated batches each is combined by itself and the results are added. Under distributed training the method
    averages both sets of gradients over the processes before it combines them.

    For labels and numbers both losses are those of the task; the combination of gradients does not change.

    The official code trains with SGD (2e-3, momentum 0.9, weight decay 1e-4) for 50 epochs. It makes a schedule, times
    0.1 after 30 epochs, and never steps it.

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
        paper="MMPareto: Boosting Multimodal Learning with Innocent Unimodal Assistance",
        venue="ICML 2024",
        url="https://arxiv.org/abs/2405.17730",
        family="gradient combination",
        cost="1 forward, 2 backwards",
    )
    tasks: ClassVar[tuple[str, ...]] = ALL_TASKS
    needs_separate_encoders: ClassVar[bool] = True
    min_modalities: ClassVar[int] = 1
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

    def losses(self, output: Output, targets: Tensor) -> Losses:
        """The multimodal and the unimodal losses."""
        return self.head_losses(output, targets)

    def combine_gradients(self, losses: Losses, model: MultimodalClassifier, *, scale: float | Tensor) -> None:
        """Accumulate combined gradients of the encoders, plain ones elsewhere."""
        encoders = [[p for p in model.encoders[u].parameters() if p.requires_grad] for u in model.modalities]
        plain_parameters = [p for p in (*model.fusion.parameters(), *self.parameters()) if p.requires_grad]
        parameters = [*(p for encoder in encoders for p in encoder), *plain_parameters]
        unimodal = torch.stack([value for name, value in losses.terms.items() if name != "fused"]).sum()
        fused_gradients = reduced_gradients(losses.terms["fused"] * scale, parameters, retain_graph=True)
        unimodal_gradients = reduced_gradients(unimodal * scale, parameters, retain_graph=False)

        for encoder in encoders:
            used = [p for p in encoder if p in fused_gradients or p in unimodal_gradients]
            if used:
                g_m, g_u = (
                    [gradients[p] if p in gradients else torch.zeros_like(p) for p in used]
                    for gradients in (fused_gradients, unimodal_gradients)
                )
                accumulate_gradients(used, self._combine(g_m, g_u))
        for gradients in (fused_gradients, unimodal_gradients):
            shared = [p for p in plain_parameters if p in gradients]
            accumulate_gradients(shared, [gradients[p] for p in shared])

    def _combine(self, g_m: list[Tensor], g_u: list[Tensor]) -> list[Tensor]:
        """Combined gradient h of one encoder, without waiting for the device."""
        w_m = pareto_weight(g_m, g_u)
        # Operations on all tensors at once: an encoder has a hundred, and each would be launched by itself.
        combined = torch._foreach_mul(g_m, 2 * w_m)  # noqa: SLF001  (torch has no public name)
        torch._foreach_add_(combined, torch._foreach_mul(g_u, 2 * (1 - w_m)))  # noqa: SLF001
        plain = torch._foreach_add(g_m, g_u)  # noqa: SLF001
        lengths = [torch.stack(torch._foreach_norm(vectors)) for vectors in (plain, combined)]  # noqa: SLF001
        if self.rescale == "encoder":
            lengths = [norms.norm() for norms in lengths]
        factors = self.boost * _growth(*lengths)
        torch._foreach_mul_(combined, factors if factors.ndim == 0 else list(factors.unbind()))
        return list(combined)


def _growth(plain: Tensor, combined: Tensor) -> Tensor:
    """Factor ≥ 1 that brings ``combined`` to the length ``plain``."""
    return torch.where(combined > 0, plain / combined, 1.0).clamp(min=1)
