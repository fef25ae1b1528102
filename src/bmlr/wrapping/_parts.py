"""Encoders and head of a model, told apart by the parameters that features depend on."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bmlr.fusion import Fusion
from bmlr.wrapping._runner import Runner
from bmlr.wrapping._sites import Site


class WrappedFusion(Fusion):
    """All of a model that follows its encoders."""

    def __init__(
        self, runner: Runner, dims: Mapping[str, int], num_outputs: int, encoders: Collection[nn.Module]
    ) -> None:
        super().__init__(dims, num_outputs)
        self.net = runner.net
        self._runner = runner
        self._owners = list(encoders)  # themselves and not their ids, which a copy of the model does not have

    def fused(self, features: Mapping[str, Tensor]) -> Tensor:
        """Multimodal logits, shape (B, C), from features of shape (B, d) or (B, …, d) per modality."""
        return self._runner.fuse(features)

    def named_modules(self, *arguments: Any, **options: Any) -> Iterator[tuple[str, nn.Module]]:
        """Modules that no encoder owns: the running statistics of encoders are none of the head's."""
        owned = {id(module) for encoder in self._owners for module in encoder.modules()}
        for name, module in super().named_modules(*arguments, **options):
            if id(module) not in owned:
                yield name, module

    def named_parameters(self, *arguments: Any, **options: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters Θ, those that no encoder owns."""
        owned = {id(parameter) for encoder in self._owners for parameter in encoder.parameters()}
        for name, parameter in super().named_parameters(*arguments, **options):
            if id(parameter) not in owned:
                yield name, parameter


class EncoderParts(nn.Module):
    """Modules and parameters of one modality, wherever they stand in a model."""

    def __init__(self, net: nn.Module, parameters: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self._collect(net, "", {id(p) for p in parameters})

    def _collect(self, module: nn.Module, label: str, owned: set[int]) -> None:
        for name, child in module.named_children():
            path = f"{label}.{name}" if label else name
            parameters = [id(p) for p in child.parameters()]
            if parameters and owned.issuperset(parameters):
                self.add_module(path.replace(".", "_"), child)
            else:
                self._collect(child, path, owned)
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in owned:
                self.register_parameter(f"{label}.{name}".replace(".", "_"), parameter)


@contextlib.contextmanager
def all_trainable(net: nn.Module) -> Iterator[None]:
    """Let gradients reach frozen parameters too, to see which modality they belong to."""
    frozen = [p for p in net.parameters() if not p.requires_grad and p.is_floating_point()]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        with torch.enable_grad():
            yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def owned_parameters(net: nn.Module, features: Tensor, site: Site) -> list[nn.Parameter]:
    """Parameters that the features depend on, and those of the encoder that was named."""
    parameters = [p for p in net.parameters() if p.requires_grad]
    reached = {id(p) for p in (site.owner.parameters() if site.attribute == "forward" else ())}
    if features.requires_grad:
        gradients = torch.autograd.grad(features.sum(), parameters, retain_graph=True, allow_unused=True)
        reached |= {id(p) for p, gradient in zip(parameters, gradients, strict=True) if gradient is not None}
    return [p for p in net.parameters() if id(p) in reached]
