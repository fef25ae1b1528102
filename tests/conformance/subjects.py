"""Every registered method as a subject of the conformance tests, and the data those tests know of particular ones.

A newly registered method is a subject at once. It gets an entry in a table below only where it needs other parameters
to show all it does within an epoch or two, or where it differs by design; each entry says why, and the tests fail on
an entry that is not true.
"""

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

import bmlr
from bmlr.methods import Losses, Method
from method_loop import MethodLoop
from zoo import make_batch, make_model

METHODS = tuple(bmlr.methods.available())
FUSIONS = ("concat", "sum", "film", "gated", "own")

#: Parameters with which a method does within a short run all that it does; the defaults for all others.
SETTINGS: dict[str, dict[str, Any]] = {
    "OPM": {"warmup": 0, "probability": 1.0},  # drops in every batch
    "DiagnosingRelearning": {"reinit_epoch": 1},  # resets after the second epoch
    "Remix": {"warmup": 1},  # remixes from the second epoch on
    "ReconBoost": {"t1": 1, "t2": 1, "hidden": 8},  # one pass of each kind
}

#: Further ways of a method, tested beside its default: label after the method's name, and parameters.
VARIANTS: dict[str, dict[str, Any]] = {
    "CML:bb": {"mode": "bb"},
    "CML:batch": {"order": "batch"},
    "MBSD:bb": {"mode": "bb"},
    "LFM:fusion": {"head": "fusion"},
    "LFM:learnable": {"alpha": "learnable", "meta_size": 4},
    "LFM:bb": {"mode": "bb"},
    "ReconBoost:bb": {"mode": "bb"},
    "Remix:skip": {"warmup": 1, "masked_encoder": "skip", "interleave": True},
    "DGL:clip": {"clip": 0.1},
}

#: Subjects of the cheap tests: all methods and the variants of those that are registered.
SUBJECTS = (*METHODS, *(label for label in VARIANTS if label.partition(":")[0] in METHODS))

#: Subjects and fusions that go together: every method with every fusion, its variants with two of them.
COMBINATIONS = [
    (subject, fusion) for subject in SUBJECTS for fusion in (FUSIONS if subject in METHODS else ("concat", "own"))
]

#: Methods whose gradients of a batch are not the mean of those of its halves, and why.
NOT_A_MEAN_OVER_SAMPLES: dict[str, str] = {
    "OPM": "draws what to drop by the sample's place in its batch, at rates of the batch's scores",
    "AGM": "scales by coefficients of the batch's scores",
    "MMPareto": "combines the gradients of a batch by weights that depend on them",
    "CML": "draws the orders of removal by the sample's place in its batch and by the step",
    "CML:batch": "draws another order of removal for every batch",
    "CML:bb": "takes the positive part of a sum over the batch",
}

#: The same for the halves that two processes see in one step.
NOT_A_MEAN_OVER_PROCESSES: dict[str, str] = {
    "CML:bb": "takes the positive part of a sum over the batch of a process",
}

#: Methods that draw or add up in the alphabetical order of the names: only names of the same order give the same bits.
ORDERS_BY_NAME = {"CML", "OGMGE", "OPM", "AGM"}

#: Methods that refuse samples without a modality, and why.
NEEDS_ALL_MODALITIES = {"AGM": "compares subsets of modalities"}

#: Methods that act in the order in which the model lists the modalities, and the parameters that fix another.
ACTS_IN_LISTED_ORDER = {"ReconBoost": lambda names: {"order": tuple(names)}}


def base(subject: str) -> str:
    """The registered name of a subject's method."""
    return subject.partition(":")[0]


def make_method(subject: str, **parameters: Any) -> Method:
    """The method of a subject, with its settings."""
    settings = VARIANTS[subject] if ":" in subject else SETTINGS.get(subject, {})
    return bmlr.methods.create(base(subject), **{**settings, **parameters})


def conditioner(fusion: str, name: str = "video") -> dict[str, str]:
    """Options that make the second modality the conditioner of the fusions that have one."""
    return {"conditioner": name} if fusion in {"film", "gated", "bigated"} else {}


def make_loop(
    subject: str,
    modalities: int = 2,
    fusion: str = "concat",
    *,
    dtype: torch.dtype = torch.float64,
    samples: int = 18,
    batch_norm: bool = False,
    autocast: bool = False,
    epochs: int | None = None,
) -> MethodLoop:
    """The miniature loop of a subject: same weights and data at every call."""
    torch.manual_seed(0)
    return MethodLoop(
        make_model(modalities, fusion, dtype=dtype, batch_norm=batch_norm, **conditioner(fusion)),
        make_method(subject),
        make_batch(modalities, samples, dtype=dtype),
        max_epochs=epochs or modalities,
        autocast=autocast,
    )


def tags(loop: MethodLoop) -> list[str]:
    """The tags of all passes the method plans, one kind of batch each, over as many epochs as there are modalities."""
    probe = copy.deepcopy(loop)
    found: dict[str, None] = {}
    for epoch in range(len(probe.model.modalities)):
        plan = probe.method.start_epoch(probe.context(epoch))
        found |= dict.fromkeys(planned.tag for planned in plan.passes)
    return list(found)


def kinds(loop: MethodLoop, batch: bmlr.Batch | None = None) -> Iterator[tuple[MethodLoop, bmlr.Batch]]:
    """A fresh copy of the loop, with its method in its first epoch, and the batch, for each kind of batch."""
    for tag in tags(loop):
        fresh = copy.deepcopy(loop)
        fresh.model.train()
        fresh.method.start_epoch(fresh.context(0))
        yield fresh, dataclasses.replace(loop.train if batch is None else batch, tag=tag)


def parameters(model: torch.nn.Module, method: Method) -> dict[str, Tensor]:
    """All parameters by name."""
    named = {f"model.{name}": p for name, p in model.named_parameters()}
    return named | {f"method.{name}": p for name, p in method.named_parameters()}


def compute(loop: MethodLoop, batch: bmlr.Batch, *, scale: float | Tensor = 1.0) -> Losses:
    """Losses of a batch, their gradients accumulated."""
    losses = loop.method.compute_losses(loop.model, batch)
    loop.method.backward(losses, loop.model, scale=scale)
    return losses


def gradients(model: torch.nn.Module, method: Method) -> dict[str, Tensor]:
    """Copies of the gradients that are set, by name; none at all is an error of the test."""
    found = {name: p.grad.clone() for name, p in parameters(model, method).items() if p.grad is not None}
    assert found
    return found


def same(first: Mapping[str, Tensor], second: Mapping[str, Tensor], *, rtol: float = 1e-9, atol: float = 1e-11) -> bool:
    """Whether both hold the same names and, nearly, the same numbers; None and zero gradients are the same."""
    names = {name for values in (first, second) for name, value in values.items() if bool(value.any())}
    return names <= (first.keys() & second.keys()) and all(
        torch.allclose(first[name], second[name], rtol=rtol, atol=atol) for name in names
    )
