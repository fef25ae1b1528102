"""Learning rates, weight decay, freezing and clipping by modality."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from bmlr._checks import check_non_negative, check_positive, nearest_name
from bmlr.model import FUSION, MultimodalClassifier


def param_groups(
    model: MultimodalClassifier,
    lr: Mapping[str, float] | None = None,
    weight_decay: Mapping[str, float] | None = None,
    freeze: Collection[str] = (),
) -> list[dict[str, Any]]:
    """Parameter groups of an optimiser, with options by modality.

    Parameters without an option of their own come first, and get those of the optimiser. Frozen encoders are in no
    group: their parameters are not trained, and they stay in evaluation mode, so that their batch normalisation keeps
    its statistics and their dropout draws nothing.

    Args:
        model: The model; freezing changes it, see :meth:`bmlr.MultimodalClassifier.freeze`.
        lr: Learning rate by modality; ``fusion`` is all that follows the encoders.
        weight_decay: Weight decay by modality.
        freeze: Modalities whose encoders are not trained.

    Raises:
        ValueError: If a modality is unknown or frozen and given an option too, nothing is left to train, or two
            modalities of different options share a parameter.

    Example:
        >>> import torch, bmlr
        >>> model = bmlr.MultimodalClassifier({"audio": torch.nn.Linear(4, 8), "text": torch.nn.Linear(6, 8)}, 3)
        >>> groups = bmlr.param_groups(model, lr={"audio": 3e-5}, freeze=["text"])
        >>> optimizer = torch.optim.Adam(groups, lr=1e-3)
        >>> [(group["name"], group["lr"], len(group["params"])) for group in optimizer.param_groups]
        [('others', 0.001, 2), ('audio', 3e-05, 2)]
    """
    freeze = [freeze] if isinstance(freeze, str) else list(freeze)
    options: dict[str, dict[str, float]] = {}
    for argument, values in (("lr", lr or {}), ("weight_decay", weight_decay or {})):
        check_parts(argument, values, model.modalities)
        check = check_positive if argument == "lr" else check_non_negative
        for name, value in values.items():
            if name in freeze:
                raise ValueError(
                    f"`{argument}` names '{name}', which `freeze` keeps from training: leave out one of the two."
                )
            options.setdefault(name, {})[argument] = check(f"{argument}['{name}']", value)
    check_parts("freeze", freeze, model.modalities)
    _check_shared(model, options, freeze)
    model.freeze(*freeze)
    parts = _parts(model)
    own = {id(p): name for name in options for p in parts[name].parameters()}
    groups: dict[str, list[nn.Parameter]] = {"": [], **{name: [] for name in options}}
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups[own.get(id(parameter), "")].append(parameter)
    if not any(groups.values()):
        raise ValueError("`freeze` should leave a part of the model to train. Nothing is left.")
    return [
        {"params": parameters, "name": name or "others", **options.get(name, {})}
        for name, parameters in groups.items()
        if parameters
    ]


def optimizer_like(optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Optimiser of the same kind over some of the parameters of another, without any state.

    Each parameter keeps its options, such as its present learning rate. Parameters that the other does not train are
    left out. The hooks of the other are not called.

    Raises:
        ValueError: If the other trains none of the parameters.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(4, 3)
        >>> optimizer = torch.optim.AdamW(model.parameters(), lr=0.5, weight_decay=0.1)
        >>> other = optimizer_like(optimizer, [model.bias])
        >>> type(other).__name__, other.param_groups[0]["lr"], len(other.param_groups[0]["params"])
        ('AdamW', 0.5, 1)
    """
    inner = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
    wanted = {id(p) for p in parameters}
    groups = [{**group, "params": [p for p in group["params"] if id(p) in wanted]} for group in inner.param_groups]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise ValueError("`parameters` should be among those of the optimiser. Found none of them there.")
    # A copy, since constructors do not take all of their own defaults back, such as AdamW's.
    made: torch.optim.Optimizer = copy.copy(inner)
    made.param_groups, made.state = groups, defaultdict(dict)
    return made


def check_parts(argument: str, names: Iterable[str], modalities: Collection[str]) -> None:
    """Raise a ValueError unless all names are modalities or ``fusion``."""
    allowed = [*modalities, FUSION]
    for name in names:
        if name not in allowed:
            raise ValueError(
                f"`{argument}` should name modalities of the model, {', '.join(modalities)}, or {FUSION}. "
                f"Found '{name}'.{nearest_name(name, allowed)}"
            )


def check_clipping(max_norm: float | Mapping[str, float], model: MultimodalClassifier) -> None:
    """Raise a ValueError unless norms are positive and, if they are by modality, fit the model."""
    for norm in max_norm.values() if isinstance(max_norm, Mapping) else (max_norm,):
        check_positive("clip_norm", norm)
    if isinstance(max_norm, Mapping):
        check_parts("clip_norm", max_norm, model.modalities)
        for first, second, name in _shared(model):
            if first in max_norm or second in max_norm:
                raise ValueError(
                    f"'{first}' and '{second}' share '{name}', so that their gradients have no norm each: "
                    "clip the joint norm, by one number."
                )


def clip_gradients(
    parameters: Iterable[Tensor], max_norm: float | Mapping[str, float], model: MultimodalClassifier
) -> None:
    """Clip the joint norm of all gradients, or the norm of each modality.

    Args:
        parameters: All trained parameters.
        max_norm: Largest norm of all gradients, or by modality; modalities left out are not clipped.
        model: The model.
    """
    if not isinstance(max_norm, Mapping):
        clip_grad_norm_(parameters, max_norm)
        return
    parts = _parts(model)
    for name, norm in max_norm.items():
        clip_grad_norm_(parts[name].parameters(), norm)


def shared_parameters(parts: Mapping[str, nn.Module]) -> Iterator[tuple[str, str, nn.Parameter]]:
    """Pairs of parts that share a parameter, with the parameter.

    Args:
        parts: Modules by name.
    """
    owners: dict[int, str] = {}
    for name, part in parts.items():
        for parameter in part.parameters():
            owner = owners.setdefault(id(parameter), name)
            if owner != name:
                yield owner, name, parameter


def _parts(model: MultimodalClassifier) -> dict[str, nn.Module]:
    """The encoders and the fusion."""
    return {**dict(model.encoders.items()), FUSION: model.fusion}


def _shared(model: MultimodalClassifier) -> Iterator[tuple[str, str, str]]:
    """Pairs of parts that share a parameter, with its name."""
    names = {id(p): name for name, p in model.named_parameters()}
    return ((first, second, names[id(p)]) for first, second, p in shared_parameters(_parts(model)))


def _check_shared(
    model: MultimodalClassifier, options: Mapping[str, Mapping[str, float]], freeze: Collection[str]
) -> None:
    for first, second, name in _shared(model):
        if options.get(first) != options.get(second) or (first in freeze) != (second in freeze):
            raise ValueError(
                f"'{first}' and '{second}' share the parameter '{name}': give both the same learning rate and weight "
                "decay, and freeze both or neither."
            )
