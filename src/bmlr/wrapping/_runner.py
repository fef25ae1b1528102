"""Passes through a model: whole, up to an encoder, or from given features on."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bmlr.wrapping._sites import Site, features_of, logits_of, map_values, tensors_in


class _Encoded(Exception):  # noqa: N818
    """End of a forward pass in which the wanted encoder has run."""


class Runner:
    """Passes through a model: whole, up to an encoder, or from given features on.

    In the last two, all that belongs to another encoder returns what it returned for an example: it costs nothing, and
    its running statistics stay as they are.

    Args:
        net: The model.
        sites: Where the features of each modality come from.
        head: Where the logits come from; None for what the model returns.
    """

    def __init__(self, net: nn.Module, sites: dict[str, Site], head: Site | None) -> None:
        self.net, self.sites, self.head = net, sites, head
        self.example: dict[str, Any] = {}
        self.size = 0
        self.features: dict[str, Tensor] = {}
        self.stand_ins: dict[str, list[tuple[Site, Any]]] = {}

    def run(self, arguments: Mapping[str, Any]) -> tuple[dict[str, Tensor], Tensor]:
        """Features and logits of a batch."""
        calls: dict[str, list[Any]] = {label: [] for label in (*self.sites, "head")}
        with contextlib.ExitStack() as stack:
            for name, site in self.sites.items():
                stack.enter_context(site.watched(calls[name].append))
            if self.head is not None:
                stack.enter_context(self.head.watched(calls["head"].append))
            returned = self.net(**arguments)
        for name, site in (*self.sites.items(), *((("head", self.head),) if self.head else ())):
            if len(calls[name]) != 1:
                raise ValueError(
                    f"'{site.label}' should run exactly once in a forward pass of the model. It ran "
                    f"{len(calls[name])} times: name another module. One that two modalities share needs a module "
                    "around each use."
                )
        features = {name: features_of(calls[name][0], name) for name in self.sites}
        return features, logits_of(calls["head"][0] if self.head else returned)

    def remember(self, arguments: Mapping[str, Any], encoders: Mapping[str, nn.Module]) -> None:
        """Run an example and keep what its encoders return."""
        outputs: dict[int | str, Any] = {}
        with contextlib.ExitStack() as stack:
            for module in self.net.modules():
                hook = module.register_forward_hook(lambda m, _, output: outputs.__setitem__(id(m), output))
                stack.callback(hook.remove)
            for name, site in self.sites.items():
                if site.attribute != "forward":
                    stack.enter_context(site.watched(functools.partial(outputs.__setitem__, name)))
            self.net(**arguments)
        for name, site in self.sites.items():
            output = outputs[id(site.owner)] if site.attribute == "forward" else outputs[name]
            self.features[name] = features_of(output, name)
            tops = [Site(module, "forward", name) for module in encoders[name].children()]
            inside = any(module is site.owner for top in tops for module in top.owner.modules())
            # A method, or a module without parameters behind the encoder, such as a pooling, is replaced by itself.
            self.stand_ins[name] = [] if site.attribute == "forward" and inside else [(site, output)]
            for top in tops:
                self.stand_ins[name] += _stand_ins(top, site, self.features[name], outputs)
        self.example, self.size = dict(arguments), len(next(iter(self.features.values())))

    def encode(self, name: str, arguments: Mapping[str, Any], size: int) -> Tensor:
        """Features of one modality; the pass ends at its encoder."""
        device = tensors_in(arguments)[0].device
        outputs: list[Any] = []

        def stop(output: Any) -> None:
            outputs.append(output)
            raise _Encoded

        def expand(x: Tensor) -> Tensor:
            return self._expand(x, size, device)

        with contextlib.ExitStack() as stack:
            for other in self.sites:
                if other != name:
                    self._replace(stack, other, expand)
            stack.enter_context(self.sites[name].watched(stop))
            with contextlib.suppress(_Encoded):
                self.net(**{**map_values(expand, self.example), **arguments})
        return features_of(outputs[0], name)

    def fuse(self, features: Mapping[str, Tensor]) -> Tensor:
        """Logits of given features; the inputs, and whatever else encoders return, are NaN."""
        like = next(iter(features.values()))

        def poison(x: Tensor) -> Tensor:
            x = self._expand(x, like.shape[0], like.device)
            return torch.full_like(x, torch.nan) if x.is_floating_point() else x

        def replace(example: Tensor, z: Tensor, x: Tensor) -> Tensor:
            return z if x is example else poison(x)

        logits: list[Any] = []
        with contextlib.ExitStack() as stack:
            for name, z in features.items():
                self._replace(stack, name, functools.partial(replace, self.features[name], z))
            if self.head is not None:
                stack.enter_context(self.head.watched(logits.append))
            returned = self.net(**map_values(poison, self.example))
        return logits_of(logits[0] if logits else returned)

    def _replace(self, stack: contextlib.ExitStack, name: str, function: Callable[[Tensor], Tensor]) -> None:
        for site, output in self.stand_ins[name]:
            stack.enter_context(site.patched(_Constant(map_values(function, output))))

    def _expand(self, x: Tensor, size: int, device: torch.device) -> Tensor:
        """What belongs to the example's first sample, repeated."""
        return (x[:1].expand(size, *x.shape[1:]) if x.ndim and x.shape[0] == self.size else x).to(device)


class _Constant:
    """A function that returns the same for all arguments."""

    def __init__(self, output: Any) -> None:
        self.output = output

    def __call__(self, *_: Any, **__: Any) -> Any:
        return self.output


def _stand_ins(top: Site, site: Site, features: Tensor, outputs: Mapping[Any, Any]) -> list[tuple[Site, Any]]:
    """Modules of an encoder to replace, with what each returned: as few as keep the features replaceable."""
    if id(top.owner) not in outputs:
        return []
    output = outputs[id(top.owner)]
    inner = site.attribute == "forward" and any(module is site.owner for module in top.owner.modules())
    if top.owner is site.owner or not inner or any(x is features for x in tensors_in(output)):
        return [(top, output)]
    children = [Site(child, "forward", top.label) for child in top.owner.children()]
    return [entry for child in children for entry in _stand_ins(child, site, features, outputs)]
