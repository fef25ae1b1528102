"""DGL: disentangled gradient learning."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from bmlr._checks import check_choice, check_positive
from bmlr.fusion import FiLMFusion, GatedFusion, SumFusion
from bmlr.methods._base import Method
from bmlr.methods._support import steering_parameters
from bmlr.methods._types import ALL_TASKS, Conformance, Losses, MethodInfo, Prediction, Remedy
from bmlr.model import MultimodalClassifier, Output
from bmlr.tasks import Regression


class DGL(Method):
    r"""Disentangled Gradient Learning (Wei et al., 2025).

    Each encoder and the fusion have a loss of their own.

    .. math::
        \nabla_{\theta^u} = \alpha \nabla \mathrm{CE}(y, f_u), \qquad \nabla_{\Theta} = \nabla \mathrm{CE}(y, f),

    for each encoder θᵘ and the fusion Θ, where f is the fusion of detached features and :math:`f_u` is read through
    the frozen fusion; for concatenation :math:`f_u = W^u z^u + b`, with the whole bias. The official code runs two
    backward passes and clears gradients in between; this is one backward pass over
    :math:`\mathrm{CE}(y, f) + \alpha \sum_u \mathrm{CE}(y, f_u)` with the same gradients. All gradients are then
    clipped to a joint norm (:meth:`adjust_gradients`).

    Under Adam α has next to no effect: an encoder's gradient is a multiple of α, and Adam undoes scale.
    α was 4 and 5 on CREMA-D and 2 and 3 on Kinetics-Sounds in the official scripts (SGD, learning rate 0.002).

    Deviations: by default :math:`f_u` is, for every fusion, the multimodal logits with the other features replaced by
    zero; that is the official form for ``concat``. :meth:`predict` reads the same :math:`f_u`, as the official code
    does, unless the fusion has auxiliary heads. ``surrogate="official"`` takes the forms of the official code for
    three others. ``sum`` reads each modality with its own bias only. ``gated`` reads :math:`\sigma(h_u) \odot h_u`
    for :math:`h_u` the gate or projection of modality u, and detaches :math:`h_u` in the multimodal logits, so that
    gates and projections are **never trained**, there as here. ``film``: each modality is its own conditioner. (The
    official "FiLM" is a bilinear layer: it takes outer products of each modality with itself.) Any other fusion keeps
    the general form. Samples that lack a modality are left out of its unimodal loss.

    For labels and numbers the loss of the task takes the place of the cross-entropy, an extension of ours. For numbers
    :math:`f_u` is the fusion's own unimodal prediction, such as :math:`M W^u z^u + b` for concatenation: where the sum
    of all terms and each single one were to predict the same number, encoders would grow and the fusion shrink without
    end.

    Args:
        alpha: Weight α > 0 of the unimodal losses.
        clip: Largest joint L2 norm of all gradients, 40 in the official code; None does not clip.
        surrogate: How :math:`f_u` is read: ``zero`` (default) or ``official``.

    Raises:
        ValueError: If a parameter is out of its range.

    Example:
        >>> import torch, bmlr
        >>> model = bmlr.MultimodalClassifier({"a": torch.nn.Linear(4, 8), "v": torch.nn.Linear(6, 8)}, 3)
        >>> method = bmlr.methods.DGL(alpha=5.0)
        >>> losses = method(model({"a": torch.randn(2, 4), "v": torch.randn(2, 6)}), torch.tensor([0, 2]))
        >>> method.backward(losses, model)
        >>> method.adjust_gradients(model)
        >>> sorted(losses.terms)
        ['a', 'fused', 'v']
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        paper="Boosting Multimodal Learning via Disentangled Gradient Learning",
        venue="ICCV 2025",
        url="https://arxiv.org/abs/2507.10213",
        family="labels and losses",
        cost="1 forward, 1 backward, M + 1 fusion forwards",
    )
    tasks: ClassVar[tuple[str, ...]] = ALL_TASKS
    min_modalities: ClassVar[int] = 1
    remedy: ClassVar[Remedy | None] = Remedy("decision", "trains every encoder by a loss of its own only", rank=4)
    conformance: ClassVar[Conformance] = Conformance(variants={"clip": {"clip": 0.1}})

    def __init__(
        self, alpha: float = 4.0, clip: float | None = 40.0, surrogate: Literal["zero", "official"] = "zero"
    ) -> None:
        super().__init__()
        self.alpha = check_positive("alpha", alpha)
        self.clip = None if clip is None else check_positive("clip", clip)
        self.surrogate = check_choice("surrogate", surrogate, ("zero", "official"))

    def setup(self, model: MultimodalClassifier) -> None:
        """Check the task, and for the official reading of FiLM the feature widths.

        Raises:
            ValueError: If the official reading is not defined for the task, or the feature widths differ.
        """
        super().setup(model)
        if self.surrogate == "official" and isinstance(model.task, Regression):
            raise ValueError("DGL with `surrogate = 'official'` is defined for logits only. Found a regression task.")
        dims = model.fusion.feature_dims
        if self.surrogate == "official" and isinstance(model.fusion, FiLMFusion) and len(set(dims.values())) > 1:
            raise ValueError(
                "DGL with `surrogate = 'official'` conditions each modality on itself in a FiLM fusion, so that all "
                f"`feature_dims` should be equal. Found {dims}."
            )

    def losses(self, output: Output, targets: Tensor) -> Losses:
        """The multimodal loss for the fusion, unimodal losses for the encoders."""
        terms = {"fused": output.task.loss(self._fused_logits(output), targets)}
        for name in output.features:
            logits = self._unimodal_logits(output, name, freeze_fusion=True)
            terms[name] = self.alpha * output.task.loss(logits, targets, output.mask(name))
        return Losses(terms)

    def change_gradients(self, model: MultimodalClassifier) -> None:
        """Clip the joint norm of all gradients, as the official code."""
        if self.clip is not None:
            torch.nn.utils.clip_grad_norm_(steering_parameters(model), self.clip)

    def predict(self, output: Output) -> Prediction:
        """Multimodal logits, and the trained unimodal ones."""
        if output.fusion.unimodal_readout == "auxiliary":
            return super().predict(output)
        alone = {name: self._unimodal_logits(output, name, freeze_fusion=False) for name in output.features}
        return Prediction(output.logits, alone)

    def _fused_logits(self, output: Output) -> Tensor:
        fusion = output.fusion
        if self.surrogate == "official" and isinstance(fusion, GatedFusion) and fusion.conditioned:
            return _gated_logits(fusion, output.detached_features)
        return output.decision_logits

    def _unimodal_logits(self, output: Output, name: str, *, freeze_fusion: bool) -> Tensor:
        fusion = output.fusion
        if isinstance(output.task, Regression):
            return (output.encoder_logits if freeze_fusion else output.unimodal_logits)[name]
        if self.surrogate == "official":
            if isinstance(fusion, GatedFusion) and fusion.conditioned:
                return _self_gated_logits(fusion, output.features[name], name)
            if isinstance(fusion, FiLMFusion):
                alone = output.replace_features(dict.fromkeys(output.features, output.features[name]))
                return alone.subset_logits(list(output.features), freeze_fusion=freeze_fusion)
        logits = output.subset_logits((name,), freeze_fusion=freeze_fusion)
        if self.surrogate == "official" and isinstance(fusion, SumFusion):
            biases = [head.get_parameter("bias").detach() for u, head in fusion.heads.items() if u != name]
            return logits - torch.stack(biases).sum(0) if biases else logits
        return logits


def _gated_logits(fusion: GatedFusion, features: dict[str, Tensor]) -> Tensor:
    """Multimodal logits, shape (B, C), with gradient to the last layers only."""
    terms = []
    for name in fusion.conditioned:
        gate = _linear(fusion.gates[name], features[fusion.conditioner]).sigmoid()
        terms.append(fusion.heads[name](gate * _linear(fusion.projections[name], features[name])))
    return torch.stack(terms).sum(0)


def _self_gated_logits(fusion: GatedFusion, features: Tensor, name: str) -> Tensor:
    """Logits fc(σ(h) ⊙ h), shape (B, C), for the encoder only."""
    if name == fusion.conditioner:
        hidden = {target: _linear(fusion.gates[target], features) for target in fusion.conditioned}
    else:
        hidden = {name: _linear(fusion.projections[name], features)}
    return torch.stack([_linear(fusion.heads[target], h.sigmoid() * h) for target, h in hidden.items()]).sum(0)


def _linear(layer: nn.Module, features: Tensor) -> Tensor:
    """A linear layer with its parameters frozen."""
    weight, bias = layer.get_parameter("weight").detach(), layer.get_parameter("bias").detach()
    return F.linear(features.to(weight.dtype), weight, bias)
