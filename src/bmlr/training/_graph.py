"""Forward, losses and backward of a step as one graph of the device."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from bmlr.batch import Batch, map_tensors, named_tensors
from bmlr.methods import Losses, Method
from bmlr.model import MultimodalClassifier
from bmlr.runs import RunError
from bmlr.training._errors import first_line
from bmlr.training._hardware import is_out_of_memory

_log = logging.getLogger("bmlr.training")

_Result = TypeVar("_Result")

#: Eager steps before a step is captured: libraries of the device set themselves up in the first ones.
_WARM_UP = 3
#: Graphs of equal batches for other values on the host; a value that never comes back would ask for ever more.
_MOST_GRAPHS = 4
#: Name of the gradients beside those of attributes.
_GRADIENTS = "the gradients"
_MODULE_ATTRIBUTES = frozenset(vars(nn.Module()))
_PLAIN = {bool, int, float, str, frozenset}

#: Tensors that a graph reads, and where their numbers are.
_Copies = list[tuple[Tensor, Tensor]]


class Backend(Protocol):
    """What captures the work of a device."""

    def run(self, function: Callable[[], _Result]) -> _Result:
        """Run a function as it is, where a capture of it may follow."""

    def capture(self, function: Callable[[], _Result]) -> tuple[_Result, Callable[[], None]]:
        """The result of a function whose work is not done yet, and what does it, each time into the same tensors."""


class CudaGraphs:
    """Graphs of a CUDA device.

    Args:
        device: The device.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)

    def run(self, function: Callable[[], _Result]) -> _Result:
        """Run a function on the stream of the captures: autograd ties the gradients of leaves to their first stream."""
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = function()
        current.wait_stream(self._stream)
        return result

    def capture(self, function: Callable[[], _Result]) -> tuple[_Result, Callable[[], None]]:
        """Capture a function."""
        graph = torch.cuda.CUDAGraph()
        # The thread that pins batches goes on meanwhile; in torch's own mode its calls would end the capture.
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            result = function()
        return result, graph.replay


class _Graph(NamedTuple):
    """A captured step: its tensors, by address, and what it has decided on."""

    replay: Callable[[], None]
    batch: Batch
    losses: Callable[[], Losses]
    fixed: list[int]
    before: dict[str, Any]
    after: dict[str, Any]


class CapturedStep:
    """Losses and gradients of a batch, by a graph where one fits, and eagerly where none does.

    A graph repeats kernels, not Python. It is replayed for batches of its own shapes whose samples have every modality.
    What a step reads and sets beside parameters and buffers are gradients and attributes of the method: tensors among
    them are copied to where the graph reads them, and set to what it wrote; all others have to be those of the capture,
    or the step is captured anew. A method that follows epochs is captured anew in each of them.

    Args:
        model: The model.
        method: The method, set up for it.
        backend: What captures.

    Attributes:
        replays: Number of batches that a graph computed.
    """

    def __init__(self, model: MultimodalClassifier, method: Method, backend: Backend) -> None:
        self.model, self.method, self.replays = model, method, 0
        self._backend = backend
        self._graphs: dict[Hashable, list[_Graph]] = {}
        self._runs: dict[Hashable, int] = {}
        self._modules = [module for module in (*model.modules(), *method.modules()) if module is not method]
        self._parameters = list(dict.fromkeys((*model.parameters(), *method.parameters())))

    def begin_epoch(self) -> None:
        """Drop the graphs of the epoch before where another epoch makes another step."""
        if self.method.follows_epochs:
            self._graphs.clear()

    def __call__(self, batch: Batch, *, scale: float, is_first: bool) -> Losses:
        """Losses of a batch, without graph, its gradients accumulated.

        Args:
            batch: The batch.
            scale: Factor of the gradients.
            is_first: Whether it is the first batch of an optimiser step, before which no parameter has a gradient.

        Raises:
            RunError: If the step cannot be captured.
        """
        found = self._find(batch, scale, is_first)
        if found is None:
            return self._backend.run(lambda: self._compute(batch, scale)())  # noqa: PLW0108  (both run in there)
        graph, copies = found
        _copy([*copies, *zip(_tensors(graph.batch), _tensors(batch), strict=True)])
        graph.replay()
        self._set_state(graph.after)
        self.replays += 1
        return graph.losses()

    def _find(self, batch: Batch, scale: float, is_first: bool) -> tuple[_Graph, _Copies] | None:
        """A graph for a batch, and the copies it needs; None if the batch is to run without."""
        if batch.present is not None:  # the number of samples with a modality is read on the host
            return None
        key = (*_shapes(batch), batch.tag, scale, is_first)
        graphs, runs = self._graphs.setdefault(key, []), self._runs.get(key, 0)
        self._runs[key] = runs + 1
        if runs < _WARM_UP:
            return None
        for graph in graphs:
            if (copies := self._fit(graph)) is not None:
                return graph, copies
        if len(graphs) == _MOST_GRAPHS:
            return None
        graphs.append(self._capture(batch, scale))
        if len(graphs) == _MOST_GRAPHS:
            _log.warning("%s", self._describe_changes(graphs))
        return graphs[-1], []

    def _compute(self, batch: Batch, scale: float) -> Callable[[], Losses]:
        """Compute losses and gradients; the result gives the losses, a new copy each time."""
        losses = self.method.compute_losses(self.model, batch)
        with torch.autocast(batch.targets.device.type, enabled=False):  # as where a trainer calls it
            self.method.backward(losses, self.model, scale=scale)
        return _copied_losses(losses)

    def _capture(self, batch: Batch, scale: float) -> _Graph:
        held, own = _map_batch(Tensor.clone, batch), _Owned(self._parameters)
        # A graph that kept a weight in half precision from before it would never see the weight move.
        torch.clear_autocast_cache()
        before = self._state(_attributes(self.method), own)
        self._set_state({name: value for name, value in before.items() if own.holds(value)})
        fixed = self._fixed()
        try:
            with _watched(self.method) as (reads, writes):
                losses, replay = self._backend.capture(lambda: self._compute(held, scale))
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            raise RunError(
                f"A step of {type(self.method).__name__} cannot be captured as a graph with this model: "
                f"{first_line(error)} Leave out --trainer.graph."
            ) from error
        torch.clear_autocast_cache()
        if self._fixed() != fixed:
            raise RunError(
                f"A step of {type(self.method).__name__} puts other tensors or modes into the place of parameters or "
                "buffers, which a graph would not see. Leave out --trainer.graph."
            )
        after, device = self._state(_attributes(self.method)), batch.targets.device
        for name in reads & before.keys():  # what it changed without setting it: a list, a tensor in place
            if own.holds(before[name]) or not _pair(before[name], after[name], device, []):
                writes.add(name)
        return _Graph(
            replay,
            held,
            losses,
            fixed,
            {name: value for name, value in before.items() if name in {*reads, _GRADIENTS}},
            {name: value for name, value in after.items() if name in {*writes, _GRADIENTS}},
        )

    # What a step finds and leaves

    def _state(self, names: Iterable[str], own: Callable[[Tensor], Tensor] | None = None) -> dict[str, Any]:
        """Attributes and buffers of the method, and gradients.

        Args:
            names: Names of the attributes.
            own: Gives tensors in place of the attributes' own.
        """
        state = {name: _rebuilt(getattr(self.method, name, None), own) for name in names if name != _GRADIENTS}
        return {**state, _GRADIENTS: [parameter.grad for parameter in self._parameters]}

    def _set_state(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            if name != _GRADIENTS:
                setattr(self.method, name, _rebuilt(value))
        for parameter, gradient in zip(self._parameters, state.get(_GRADIENTS, ()), strict=False):
            parameter.grad = gradient

    def _fixed(self) -> list[int]:
        """What a graph holds by address or has decided on: parameters, buffers, modes."""
        fixed = [parameter.data_ptr() for parameter in self._parameters]
        fixed += [parameter.requires_grad for parameter in self._parameters]
        for module in self._modules:  # not the method, whose own buffers are state
            fixed.append(module.training)
            fixed += [buffer.data_ptr() for _, buffer in module.named_buffers(recurse=False)]
        return fixed

    def _fit(self, graph: _Graph) -> _Copies | None:
        """The copies that a graph needs; None if it is one of another state."""
        copies: _Copies = []
        device = graph.batch.targets.device
        fits = self._fixed() == graph.fixed and _pair(graph.before, self._state(graph.before), device, copies)
        return copies if fits else None

    def _describe_changes(self, graphs: list[_Graph]) -> str:
        first, last, device = graphs[0].before, graphs[-1].before, graphs[0].batch.targets.device
        names = [name for name in first if not _pair(first[name], last.get(name), device, [])]
        return (
            f"Further steps run without a graph: {type(self.method).__name__} changes "
            f"{', '.join(names) or 'parameters, buffers or modes'} from step to step, which a graph does not see."
        )


class _Owned:
    """Copies of tensors, which nobody else holds, so that a graph may write to them."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._copies: dict[int, Tensor] = {}
        self._weights = {parameter.untyped_storage().data_ptr() for parameter in parameters}

    def __call__(self, value: Tensor) -> Tensor:
        """The copy of a tensor; a view of a weight, which follows the weight, is its own."""
        if value.untyped_storage().data_ptr() in self._weights:
            return value
        return self._copies.setdefault(id(value), value.detach().clone())

    def holds(self, value: Any) -> bool:
        """Whether a value holds a copy."""
        found: list[Tensor] = []
        _rebuilt(value, lambda tensor: found.append(tensor) or tensor)  # type: ignore[func-returns-value]
        return any(tensor is copy for tensor in found for copy in self._copies.values())


def _attributes(method: Method) -> list[str]:
    buffers = [name for name, _ in method.named_buffers(recurse=False)]
    return [*(name for name in vars(method) if name not in _MODULE_ATTRIBUTES), *buffers]


@contextlib.contextmanager
def _watched(method: Method) -> Iterator[tuple[set[str], set[str]]]:
    """Collect the names of the attributes that are read and set."""
    kind = type(method)
    reads: set[str] = set()
    writes: set[str] = set()

    def read(self: Method, name: str) -> Any:
        reads.add(name)
        return kind.__getattribute__(self, name)

    def write(self: Method, name: str, value: Any) -> None:
        writes.add(name)
        kind.__setattr__(self, name, value)

    body = {"__getattribute__": read, "__setattr__": write, "__module__": kind.__module__}
    method.__class__ = type(kind.__name__, (kind,), body)
    try:
        yield reads, writes
    finally:
        method.__class__ = kind


def _shapes(batch: Batch) -> tuple[Hashable, ...]:
    return tuple((name, x.shape, x.dtype) for name, x in _named_tensors(batch).items())


def _tensors(batch: Batch) -> list[Tensor]:
    return list(_named_tensors(batch).values())


def _named_tensors(batch: Batch) -> dict[str, Tensor]:
    others = {"targets": batch.targets} | ({} if batch.indices is None else {"indices": batch.indices})
    return named_tensors({"inputs": batch.inputs, **others})


def _map_batch(function: Callable[[Tensor], Tensor], batch: Batch) -> Batch:
    indices = None if batch.indices is None else function(batch.indices)
    inputs = {name: map_tensors(function, x) for name, x in batch.inputs.items()}
    return Batch(inputs, function(batch.targets), None, indices, batch.tag)


def _copied_losses(losses: Losses) -> Callable[[], Losses]:
    """Gives copies of losses: a replay writes new ones into the place of the old, which a log may still hold."""
    values = [value.detach() for value in (*losses.terms.values(), *losses.logs.values())]
    is_joint = len({(value.dtype, value.shape, value.device) for value in values}) == 1
    joint = torch.stack(values) if is_joint else None  # one copy in place of many
    terms, logs = list(losses.terms), list(losses.logs)

    def copied() -> Losses:
        copies = [value.clone() for value in values] if joint is None else list(joint.clone().unbind())
        return Losses(dict(zip(terms, copies, strict=False)), dict(zip(logs, copies[len(terms) :], strict=True)))

    return copied


# Trees of dictionaries, lists and tuples


def _rebuilt(value: Any, function: Callable[[Tensor], Tensor] | None = None) -> Any:
    """The value with new containers and, where a function is given, other tensors."""
    if type(value) is dict:
        return {key: _rebuilt(entry, function) for key, entry in value.items()}
    if type(value) in {list, tuple}:
        return type(value)(_rebuilt(entry, function) for entry in value)
    return function(value) if function is not None and type(value) is Tensor else value


def _pair(captured: Any, current: Any, device: torch.device, copies: _Copies) -> bool:
    """Whether two values differ in the numbers of the device's tensors only; adds the copies that make them equal."""
    kind = type(captured)
    if captured is current:
        return True
    if kind is not type(current):
        return False
    if kind is Tensor:
        return _pair_tensors(captured, current, device, copies)
    if kind is dict:
        return captured.keys() == current.keys() and all(
            _pair(value, current[key], device, copies) for key, value in captured.items()
        )
    if kind in {list, tuple}:
        return len(captured) == len(current) and all(
            _pair(value, other, device, copies) for value, other in zip(captured, current, strict=True)
        )
    return kind in _PLAIN and bool(captured == current)


def _pair_tensors(captured: Tensor, current: Tensor, device: torch.device, copies: _Copies) -> bool:
    if captured.device != device:  # of the host: its number is in the kernels
        return captured.device == current.device and torch.equal(captured, current)
    copies.append((captured, current))
    return (captured.shape, captured.dtype, captured.device) == (current.shape, current.dtype, current.device)


def _copy(pairs: _Copies) -> None:
    """Copy the second of each pair into the first, as if all at once."""
    places = {target.untyped_storage().data_ptr() for target, _ in pairs}
    sources = [x.clone() if x.untyped_storage().data_ptr() in places else x for _, x in pairs]
    with torch.no_grad():
        for (target, _), source in zip(pairs, sources, strict=True):
            target.copy_(source, non_blocking=True)
