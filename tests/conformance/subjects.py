"""Every registered method as a subject of the conformance tests.

A newly registered method is a subject at once. Where it needs other parameters to show all it does within an epoch or
two, or differs by design, its class says so (:class:`bmlr.methods.Conformance`); the tests fail on what is not true.
"""

import copy
import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import bmlr
from bmlr.methods import Losses, Method
from method_loop import MethodLoop
from zoo import make_batch, make_model

METHODS = tuple(bmlr.methods.available())
FUSIONS = ("concat", "sum", "film", "gated", "own")


def method_class(subject: str) -> type[Method]:
    """The class of a subject's method."""
    return bmlr.methods.get(base(subject))


def base(subject: str) -> str:
    """The registered name of a subject's method."""
    return subject.partition(":")[0]


#: Subjects of the cheap tests: all methods, and their variants as ``Name:variant``.
SUBJECTS = (
    *METHODS,
    *(f"{name}:{variant}" for name in METHODS for variant in method_class(name).conformance.variants),
)

_HOOKS = ("batch_losses", "combine_gradients", "change_gradients", "plan_epoch", "finish_epoch", "required_runs")


def _way(name: str) -> tuple[object, ...]:
    """What a training loop sees of a method: the hooks it has, and whether it has state of its own."""
    cls = method_class(name)
    hooks = tuple(hook for hook in _HOOKS if getattr(cls, hook) is not getattr(Method, hook))
    return hooks, cls.state_attributes != Method.state_attributes, cls().plans_passes


def first_of_each_way(subjects: Iterable[str] = METHODS) -> list[Any]:
    """Parameters of a test that trains whole runs: one method for each way to take part in a training.

    The other subjects are tests of `make test-slow`.
    """
    firsts = _firsts()
    return [pytest.param(name, marks=() if name in firsts else pytest.mark.slow) for name in subjects]


def with_two_or_three(subjects: Iterable[str]) -> list[Any]:
    """Subjects with a number of modalities as parameters: both for one method of each way, three for the others.

    The other pairs are tests of `make test-slow`.
    """
    firsts = _firsts()
    return [
        _usual_or_slow(case, base(case[0]) in firsts or case[1] == 3) for case in itertools.product(subjects, (2, 3))
    ]


def with_fusions(pairs: Iterable[tuple[str, str]], *, of_firsts: bool = True) -> list[Any]:
    """Pairs of a subject and a fusion with a number of modalities as parameters.

    ``concat`` with three and ``own`` with two; for one method of each way, unless ``of_firsts`` is False, every fusion
    with three, ``concat`` and ``own`` with two as well. The rest are tests of `make test-slow`.
    """
    cases = ((*pair, modalities) for pair in pairs for modalities in (2, 3))
    usual = {("concat", 3), ("own", 2)}
    of_first = {("concat", 2), *((fusion, 3) for fusion in FUSIONS)} if of_firsts else set()
    firsts = _firsts()
    return [
        _usual_or_slow(case, case[1:] in usual or (base(case[0]) in firsts and case[1:] in of_first)) for case in cases
    ]


def _usual_or_slow(case: tuple[Any, ...], is_usual: bool) -> Any:
    """The parameters of a case, for `make test-slow` alone unless it is a usual one."""
    return pytest.param(*case, marks=() if is_usual else pytest.mark.slow, id="-".join(map(str, case)))


def _firsts() -> set[str]:
    return set({_way(name): name for name in reversed(METHODS)}.values())


#: Subjects and fusions that go together: every method with every fusion, its variants with two of them.
COMBINATIONS = [
    (subject, fusion) for subject in SUBJECTS for fusion in (FUSIONS if subject in METHODS else ("concat", "own"))
]

#: Subjects whose gradients of a batch are not the mean of those of its halves.
NOT_MEAN_OVER_SAMPLES = [subject for subject in SUBJECTS if method_class(subject).conformance.not_mean_over_samples]

#: Subjects of which the same holds for the halves that two processes see in one step.
NOT_MEAN_OVER_PROCESSES = [subject for subject in SUBJECTS if method_class(subject).conformance.not_mean_over_processes]


def make_method(subject: str, **parameters: Any) -> Method:
    """The method of a subject, with its settings."""
    expected = method_class(subject).conformance
    settings = expected.variants[subject.partition(":")[2]] if ":" in subject else expected.short
    return method_class(subject)(**{**settings, **parameters})


def make_run_method(subject: str) -> Method:
    """The method of a subject for the runs on toy data, of audio and image."""
    parameter = method_class(subject).conformance.modality_parameter
    return make_method(subject, **({parameter: "audio"} if parameter else {}))


def trained_modalities(subject: str, modalities: Sequence[str]) -> tuple[str, ...]:
    """Modalities whose encoders a subject trains."""
    untrained = method_class(subject).conformance.untrained.get(subject.partition(":")[2], "")
    return {"": tuple(modalities), "others": tuple(modalities[:1]), "all": ()}[untrained]


def conditioner(fusion: str, name: str = "video") -> dict[str, Any]:
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


def tags(loop: MethodLoop) -> dict[str, int]:
    """The tags of all planned passes, with their first epoch, over as many epochs as there are modalities."""
    epochs: dict[str, int] = {}
    for epoch in range(len(loop.model.modalities)):
        probe = copy.deepcopy(loop)
        plan = probe.method.start_epoch(probe.context(epoch))
        epochs = {**dict.fromkeys((planned.tag for planned in plan.passes), epoch), **epochs}
    return epochs


def kinds(loop: MethodLoop, batch: bmlr.Batch | None = None) -> Iterator[tuple[MethodLoop, bmlr.Batch]]:
    """A fresh copy of the loop, with its method in the tag's epoch, and the batch, for each kind of batch."""
    for tag, epoch in tags(loop).items():
        fresh = copy.deepcopy(loop)
        fresh.model.train()
        fresh.method.start_epoch(fresh.context(epoch))
        yield fresh, dataclasses.replace(loop.train if batch is None else batch, tag=tag)


def parameters(model: torch.nn.Module, method: Method) -> dict[str, torch.nn.Parameter]:
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
    copies = {name: p.grad.clone() for name, p in parameters(model, method).items() if p.grad is not None}
    assert copies
    return copies


def same(first: Mapping[str, Tensor], second: Mapping[str, Tensor], *, rtol: float = 1e-9, atol: float = 1e-11) -> bool:
    """Whether both hold the same names and, nearly, the same numbers; None and zero gradients are the same."""
    names = {name for values in (first, second) for name, value in values.items() if bool(value.any())}
    return names <= (first.keys() & second.keys()) and all(
        torch.allclose(first[name], second[name], rtol=rtol, atol=atol) for name in names
    )
