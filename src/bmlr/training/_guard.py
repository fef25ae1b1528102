"""Detection of non-finite losses and gradients, and skipped steps."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bmlr._checks import check_choice, check_integer
from bmlr.batch import Batch, tensors_of
from bmlr.methods import Losses, Method
from bmlr.tables import format_count, list_first

#: Stop with an error, or skip the step.
Policy = Literal["stop", "skip"]

_MAX_EVENTS = 1000  # kept with their batches; further ones are only counted

_MODULE_ATTRIBUTES = frozenset(vars(nn.Module()))


class NonFiniteLossError(RuntimeError):
    """A loss or gradient is NaN or infinite.

    The message names the step, the batch and the loss.
    """


class StepGuard:
    """Counter of non-finite steps, and undo of their forward passes.

    A step is skipped as if its batches had not been drawn: gradients are dropped, so that no optimiser moves
    anything, and the buffers of the model (running statistics) and the state of the method are restored.

    Args:
        policy: stop or skip.
        max_in_row: Skipped steps in a row that stop training all the same.

    Attributes:
        nonfinite: Whether a loss or gradient of the current step is not finite, in any process.
        skipped: Number of skipped steps.
        overflowed: Number of steps that the loss scaling of half precision skipped, which it does to find its scale.
        events: The losses and gradients that were not finite, with the samples of their batches.
    """

    def __init__(self, policy: Policy, max_in_row: int) -> None:
        self.policy = check_choice("on_nonfinite", policy, ("stop", "skip"))
        self.max_in_row = check_integer("max_nonfinite", max_in_row, 1)
        self.nonfinite = False
        self.skipped = 0
        self.overflowed = 0
        self.events: list[dict[str, Any]] = []
        self._in_row = 0
        self._indices: list[Tensor] = []
        self._before_step: _Snapshot | None = None

    def begin_step(self, model: nn.Module, method: Method) -> None:
        """Begin an optimiser step."""
        self.nonfinite, self._indices = False, []
        self._before_step = _Snapshot(model, method) if self.policy == "skip" else None

    def record_batch(self, batch: Batch) -> None:
        """Record the samples of a batch of the step."""
        if batch.indices is not None:
            self._indices.append(batch.indices)

    def sample_indices(self) -> list[int]:
        """Indices of the step's samples, as far as its batches hold them."""
        return [int(index) for indices in self._indices for index in indices.tolist()]

    def record_events(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Record events of all processes and mark the step non-finite."""
        self.nonfinite = True
        self.events += [{**event, "action": self.policy} for event in events]
        del self.events[_MAX_EVENTS:]

    def skip_step(self, parameters: Iterable[nn.Parameter], message: str) -> None:
        """Undo the step.

        Args:
            parameters: Parameters of the optimiser, whose gradients are dropped.
            message: Description of the last event, for the error.

        Raises:
            NonFiniteLossError: If as many steps in a row were skipped as ``max_nonfinite`` allows.
        """
        for parameter in parameters:
            parameter.grad = None
        if self._before_step is not None:
            self._before_step.restore()
        self.skipped += 1
        self._in_row += 1
        if self._in_row >= self.max_in_row:
            skipped = format_count(self._in_row, "step was", "steps in a row were")
            raise NonFiniteLossError(f"{skipped} skipped, as many as `max_nonfinite` allows. {message}")

    def end_step(self) -> None:
        """End a step after its update."""
        self._in_row = 0
        self._before_step = None

    def state(self) -> dict[str, Any]:
        """Counts and events for a checkpoint."""
        return {
            "skipped": self.skipped,
            "overflowed": self.overflowed,
            "in_row": self._in_row,
            "events": copy.deepcopy(self.events),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the result of :meth:`state`."""
        self.skipped, self.overflowed = state["skipped"], state["overflowed"]
        self._in_row, self.events = state["in_row"], list(state["events"])


class _Snapshot:
    """Buffers and state of the method, which a forward pass may change."""

    def __init__(self, model: nn.Module, method: Method) -> None:
        self.method = method
        self.buffers = [
            (module, name, value.clone())
            for root in (model, method)
            for module in root.modules()
            for name, value in module.named_buffers(recurse=False)
        ]
        # Attributes a method sets in its forward but does not save, such as this batch's coefficients.
        self.attributes = {
            name: value.clone() if isinstance(value, Tensor) else value
            for name, value in vars(method).items()
            if name not in _MODULE_ATTRIBUTES
        }

    @torch.no_grad()
    def restore(self) -> None:
        vars(self.method).update(self.attributes)
        for module, name, value in self.buffers:
            # In place: DDP and compiled encoders hold the tensor itself.
            module.get_buffer(name).copy_(value)


@torch.no_grad()
def count_nonfinite(parameters: Iterable[nn.Parameter]) -> Tensor:
    """A scalar that is zero where all gradients are finite, without waiting for the device.

    Parameters without a gradient count as finite.

    Example:
        >>> import torch
        >>> p = torch.nn.Parameter(torch.zeros(2))
        >>> p.grad = torch.tensor([1e38, 3e38])  # whose 2-norm would overflow
        >>> count_nonfinite([p])
        tensor(0.)
    """
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for parameter in parameters:
        if (gradient := parameter.grad) is not None:
            values = gradient.coalesce().values() if gradient.is_sparse else gradient
            values = torch.view_as_real(values) if values.is_complex() else values
            if not values.is_contiguous() and 0 in values.stride():
                values = values.contiguous()  # expanded: the check writes each entry
            groups.setdefault((values.device, values.dtype), []).append(values)
    flags = []
    for (device, _), gradients in groups.items():
        flag, scale = torch.zeros((), device=device), _one(device)
        # The check of `torch.amp.GradScaler`, one kernel for all tensors, here with a scale of one: a reduction per
        # tensor takes twenty times as long, and a sum or a 2-norm may overflow where every entry is finite.
        torch._amp_foreach_non_finite_check_and_unscale_(gradients, flag, scale)
        flags.append(flag)
    if len(flags) == 1:
        return flags[0]
    return torch.stack([flag.to(flags[0].device) for flag in flags]).sum() if flags else torch.zeros(())


@functools.cache
def _one(device: torch.device) -> Tensor:
    return torch.ones((), device=device)


def describe_loss(losses: Losses, batch: Batch) -> dict[str, Any]:
    """Describe the non-finite losses and inputs of a batch."""
    terms = {name: float(value.detach()) for name, value in {**losses.terms, "total": losses.total}.items()}
    return {
        "what": "loss",
        "values": {name: str(value) for name, value in terms.items() if not math.isfinite(value)},
        "inputs": [
            name for name, x in batch.inputs.items() if not all(bool(torch.isfinite(t).all()) for t in tensors_of(x))
        ],
        "samples": [] if batch.indices is None else batch.indices.tolist(),
    }


def describe_gradient(named: Iterable[tuple[str, nn.Parameter]], samples: list[int]) -> dict[str, Any]:
    """Describe the non-finite gradients of a step."""
    values: dict[str, Tensor] = {name: p.grad for name, p in named if p.grad is not None}
    return {
        "what": "gradient",
        "values": {name: str(float(g.abs().max())) for name, g in values.items() if not bool(torch.isfinite(g).all())},
        "inputs": [],
        "samples": samples,
    }


def describe_event(event: Mapping[str, Any]) -> str:
    """An event as a sentence."""
    where = f"epoch {event['epoch'] + 1}, step {event['step']}, batch {event['batch']}"
    samples = f" Samples of the batch: {event['samples']}." if event["samples"] else ""
    if event["what"] == "gradient":
        return f"The gradient is not finite at {where}: that of {list_first(list(event['values']), 3)}.{samples}"
    values = "{" + ", ".join(f"{name!r}: {value}" for name, value in event["values"].items()) + "}"
    inputs = event["inputs"]
    origin = f" The inputs of {', '.join(inputs)} are not finite." if inputs else " All inputs are finite."
    return f"The loss is not finite at {where}: {values}.{origin}{samples}"
