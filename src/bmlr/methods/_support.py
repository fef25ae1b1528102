"""Pieces shared by several methods."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from bmlr._checks import check_integer
from bmlr._modes import module_mode
from bmlr._random import mixed_seed
from bmlr.batch import Batch, concatenate_inputs, input_size, map_tensors
from bmlr.encoders.features import pooled
from bmlr.fusion import match_dtype
from bmlr.methods._base import Method
from bmlr.methods._types import EpochContext, EpochPlan, Losses, Pass, Prediction
from bmlr.model import MultimodalClassifier, Output
from bmlr.tasks import Classification, Task


class WindowedMethod(Method):
    """A method with a first and a last epoch, both included."""

    first_epoch: int
    last_epoch: int | None

    def set_window(self, first_epoch: int, last_epoch: int | None) -> None:
        """Set the epochs in which the method acts.

        A last epoch of None is no end.

        Raises:
            ValueError: If they are no range of epochs.
        """
        self.first_epoch = check_integer("first_epoch", first_epoch, 0)
        self.last_epoch = None if last_epoch is None else check_integer("last_epoch", last_epoch, first_epoch)

    @property
    def follows_epochs(self) -> bool:
        """Whether the window leaves out any epoch."""
        return super().follows_epochs or self.first_epoch > 0 or self.last_epoch is not None

    @property
    def is_acting(self) -> bool:
        """Whether the method acts in the current epoch."""
        return self.first_epoch <= self.epoch and (self.last_epoch is None or self.epoch <= self.last_epoch)


class SteppedMethod(Method):
    """A method with seeded draws and a step counter."""

    state_attributes: ClassVar[tuple[str, ...]] = (*Method.state_attributes, "step", "run_seed")

    seed: int

    def __init__(self) -> None:
        super().__init__()
        self.step = 0
        #: Seed of the run, from the context of its epochs.
        self.run_seed = 0
        self._generators: dict[torch.device, torch.Generator] = {}

    def start_epoch(self, context: EpochContext) -> EpochPlan:
        """Begin an epoch of the run that has the context's seed."""
        self.run_seed = context.seed
        return super().start_epoch(context)

    def generators(self, number: int) -> Callable[[torch.device], torch.Generator]:
        """The generators of :meth:`generator` by device, one for all draws on it."""
        return functools.cache(lambda device: self.generator(number, device))

    def generator(self, number: int, device: torch.device | str = "cpu") -> torch.Generator:
        """Generator seeded by ``seed``, the seed of the run and ``number``.

        It is the same in every process and after a resume. Each call seeds the one generator of the device anew: draw
        what one number is for before asking for the next.
        """
        place = torch.device(device)
        # Kept: a generator that is made within a step of a GPU allocates, and no graph could capture the step.
        if (kept := self._generators.get(place)) is None:
            kept = self._generators[place] = torch.Generator(place)
        return kept.manual_seed(mixed_seed(self.seed, self.run_seed, number))


class HeadedMethod(Method):
    """A method with a linear head h_u per modality."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleDict()

    def setup(self, model: MultimodalClassifier) -> None:
        """Make one linear head per modality."""
        super().setup(model)
        self.heads = unimodal_heads(model)

    def head_losses(self, output: Output, targets: Tensor, weight: float = 1.0) -> Losses:
        """Losses L(y, f) and w L(y, h_u(zᵘ)) of the present modalities, for the loss L of the task."""
        logits = apply_heads(self, self.heads, output)
        fused = output.task.loss(output.logits, targets)
        return Losses({"fused": fused, **unimodal_losses(output, logits, targets, weight)})

    def predict(self, output: Output) -> Prediction:
        """Multimodal logits of the model, unimodal logits of the heads."""
        return Prediction(output.logits, apply_heads(self, self.heads, output))


def unimodal_heads(model: MultimodalClassifier) -> nn.ModuleDict:
    """One linear head per modality, of the model's device and type."""
    like = next(model.parameters())
    return nn.ModuleDict(
        {
            name: nn.Linear(width, model.task.num_outputs, device=like.device, dtype=like.dtype)
            for name, width in model.fusion.feature_dims.items()
        }
    )


def apply_heads(method: Method, heads: nn.ModuleDict, output: Output) -> dict[str, Tensor]:
    """Logits of each head, shape (B, C).

    Raises:
        RuntimeError: If the heads were not made for this model's modalities.
    """
    if set(heads) != set(output.features):
        raise RuntimeError(
            f"{type(method).__name__} has heads for {sorted(heads)} and got features of {sorted(output.features)}: "
            "call `method.setup(model)` once, before the optimiser is made."
        )
    return {name: read_features(heads[name], z) for name, z in output.features.items()}


def read_features(head: nn.Module, features: Tensor) -> Tensor:
    """Logits of a head, shape (B, C), from features of shape (B, d); those of a sequence are averaged."""
    logits: Tensor = head(match_dtype(pooled(features), head))
    return logits


def unimodal_losses(
    output: Output, logits: Mapping[str, Tensor], targets: Tensor, weight: float = 1.0
) -> dict[str, Tensor]:
    """Losses w L(y, f_u) of logits by modality, over the samples that have it."""
    return {u: weight * output.task.loss(values, targets, output.mask(u)) for u, values in logits.items()}


# Tasks and masks


def classification(task: Task) -> Classification:
    """The task as one of choices among classes, which a method has been checked for."""
    if not isinstance(task, Classification):
        raise TypeError(f"A method of choices among classes met {task}.")
    return task


def pair_mask(output: Output, first: str, second: str) -> Tensor | None:
    """Samples with both modalities, shape (B,); None for all."""
    masks = [mask for name in (first, second) if (mask := output.mask(name)) is not None]
    return functools.reduce(torch.logical_and, masks) if masks else None


def presence(output: Output, names: Sequence[str] | None = None) -> Tensor:
    """Presence of the modalities, boolean, shape (B, M).

    Columns follow ``names``, by default the order of the model.
    """
    device = next(iter(output.features.values())).device
    everyone = torch.ones(output.batch_size, dtype=torch.bool, device=device)
    return torch.stack(
        [everyone if (mask := output.mask(name)) is None else mask for name in names or output.features], 1
    )


# Draws and processes of a distributed training


def seeded_generator(*seeds: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Generator of a stream of its own for each sequence of non-negative integers."""
    # Hashed: sums and products of seeds would meet, such as those of a late step and of the next seed.
    return torch.Generator(device).manual_seed(mixed_seed(*seeds))


def draw_per_sample(batch_size: int, columns: int, generator: torch.Generator) -> Tensor:
    """Uniform numbers in [0, 1) per sample, shape (B, columns), on the CPU.

    Under distributed training a generator in the same state in every process gives each its rows of the numbers of the
    joined batch, whose samples are dealt to the processes in turn.
    """
    rank, world = 0, 1
    if _is_distributed():
        rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    # Of one type: a model in double precision would draw other numbers than one in single.
    return torch.rand(batch_size * world, columns, generator=generator, dtype=torch.float32)[rank::world]


def all_reduce_sum(values: Tensor) -> Tensor:
    """Sum of ``values`` over all processes; the values themselves without distributed training."""
    if not _is_distributed():
        return values
    summed = values.detach().clone()
    torch.distributed.all_reduce(summed)
    return summed


def all_reduce_mean(values: Tensor) -> Tensor:
    """Mean of ``values`` over all processes; the values themselves without distributed training."""
    return all_reduce_sum(values) / world_size() if _is_distributed() else values


def world_size() -> int:
    """Number of processes of a distributed training; 1 without."""
    return torch.distributed.get_world_size() if _is_distributed() else 1


def gather_processes(values: Tensor) -> Tensor:
    """Values of all processes, shape (W, …), which have the same shape in each.

    Only those of this process carry a gradient, W times as large: the trainer averages gradients over processes, and
    each knows only its own share of them.
    """
    if not _is_distributed():
        return values[None]
    gathered = [torch.empty_like(values) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(gathered, values.detach().contiguous())
    gathered[torch.distributed.get_rank()] = with_scaled_gradient(values, len(gathered))
    return torch.stack(gathered)


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


# Gradients


def reduced_gradients(
    loss: Tensor, parameters: Sequence[nn.Parameter], *, retain_graph: bool
) -> dict[nn.Parameter, Tensor]:
    """Gradients of the parameters a loss reaches, averaged over processes."""
    gradients = torch.autograd.grad(loss, parameters, retain_graph=retain_graph, allow_unused=True)
    reached = {p: g for p, g in zip(parameters, gradients, strict=True) if g is not None}
    if not _is_distributed():
        return reached
    # One exchange of all gradients: one per tensor would wait for the network as often.
    flat = all_reduce_mean(torch.cat([g.flatten() for g in reached.values()]))
    pieces = flat.split([g.numel() for g in reached.values()])
    return {p: piece.view_as(p) for p, piece in zip(reached, pieces, strict=True)}


def accumulate_gradients(parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor]) -> None:
    """Add gradients to those the parameters hold."""
    for parameter, gradient in zip(parameters, gradients, strict=True):
        value = gradient.detach()
        parameter.grad = value if parameter.grad is None else parameter.grad + value


def with_scaled_gradient(values: Tensor, factor: float | Tensor) -> Tensor:
    """The very values, with their gradient multiplied by a factor."""
    detached = values.detach()
    scale = factor.to(values.dtype) if isinstance(factor, Tensor) else factor
    return detached + scale * (values - detached)


def keep_gradients(model: MultimodalClassifier, method: Method, modules: Iterable[nn.Module]) -> None:
    """Take the gradients of all parameters but those of some modules: without one no momentum moves them."""
    keep = {id(parameter) for module in modules for parameter in module.parameters()}
    for parameter in (*model.parameters(), *method.parameters()):
        if id(parameter) not in keep:
            parameter.grad = None


def joint_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Euclidean norm over all entries of all tensors, a scalar."""
    norm: Tensor = torch.stack([t.norm() for t in tensors]).norm()
    return norm


def steering_parameters(model: MultimodalClassifier) -> list[nn.Parameter]:
    """Parameters of a model but for its auxiliary readouts, which watch the encoders and steer nothing."""
    return [p for name, p in model.named_parameters() if not name.startswith("fusion.auxiliary.")]


# Batches


def check_batch(model: MultimodalClassifier, batch: Batch) -> None:
    """Raise a ValueError unless inputs and targets fit the model."""
    if batch.inputs.keys() != set(model.encoders):
        raise ValueError(f"`inputs` should have the modalities {list(model.encoders)}. Found {list(batch.inputs)}.")
    name, inputs = next(iter(batch.inputs.items()))
    model.task.check_targets(batch.targets, input_size(name, inputs))


def encode_batch(model: MultimodalClassifier, batch: Batch, name: str) -> Tensor:
    """Features of one modality of a batch, shape (B, d); zero where it is absent."""
    return model.encode(name, batch.inputs[name], (batch.present or {}).get(name))


def output_alone(model: MultimodalClassifier, batch: Batch, name: str) -> Output:
    """The output of one modality's encoder, without running another."""
    return Output({name: encode_batch(model, batch, name)}, model.fusion, model.task, batch.present)


def select(batch: Batch, mask: Tensor) -> Batch:
    """Samples of a batch in the boolean ``mask``, shape (B,)."""
    return Batch(
        {name: map_tensors(lambda x: x[mask], inputs) for name, inputs in batch.inputs.items()},
        batch.targets[mask],
        None if batch.present is None else {name: present[mask] for name, present in batch.present.items()},
        None if batch.indices is None else batch.indices[mask],
        batch.tag,
    )


@torch.no_grad()
def value_samples(name: str, context: EpochContext, value: Callable[[Output, Batch], Tensor]) -> Tensor:
    """Values of all training samples, first dimension N, on the CPU, from outputs in evaluation mode.

    Args:
        name: Name of the method.
        context: The context between epochs.
        value: Gives those of a batch, first dimension B.

    Raises:
        ValueError: If the batches have no indices, or leave samples out.
    """
    rows: dict[int, Tensor] = {}
    with module_mode(context.model, training=False):
        for batch in context.train_batches():
            if batch.indices is None:
                raise missing_indices(name)
            values = value(context.model(batch.inputs, batch.present), batch).cpu()
            rows |= dict(zip(batch.indices.tolist(), values, strict=True))
    if missing := context.num_train - len(rows):
        raise ValueError(
            f"The batches of the training split should cover all {context.num_train} samples. {missing} are missing."
        )
    return torch.stack([rows[index] for index in range(context.num_train)])


def missing_indices(name: str) -> ValueError:
    """The error of a method that chooses samples which cannot be told apart."""
    return ValueError(
        f"{name} needs `indices` in the batches of the training split. Found None. bmlr.Balancer knows them from a "
        "torch DataLoader over a data set with a length."
    )


def pass_over(tag: str, indices: Sequence[int]) -> Pass:
    """A pass over samples; a single one comes twice.

    Batch normalisation cannot train on one sample, and twice the same has the same gradient.
    """
    return Pass(tag, tuple(indices if len(indices) > 1 else [*indices, *indices]))


def samples_at(batches: Iterable[Batch], indices: Sequence[int]) -> Batch:
    """Batch of the samples at ``indices``, in the order of the split.

    Raises:
        ValueError: If the batches have no indices, or a sample is not among them.
    """
    wanted, pieces = torch.tensor(indices), list[Batch]()
    for batch in batches:
        if batch.indices is None:
            raise ValueError("Batches should have `indices` where a method looks for samples. Found None.")
        pieces.append(select(batch, torch.isin(batch.indices, wanted.to(batch.indices.device))))
        if sum(len(piece) for piece in pieces) == len(indices):
            names = {name for piece in pieces for name in piece.present or {}}
            return Batch(
                {name: concatenate_inputs([piece.inputs[name] for piece in pieces]) for name in batch.inputs},
                torch.cat([piece.targets for piece in pieces]),
                {name: torch.cat([_mask(piece, name) for piece in pieces]) for name in sorted(names)} or None,
            )
    count = sum(len(piece) for piece in pieces)
    raise ValueError(f"The split should hold the samples {list(indices)}. Found {count}.")


def _mask(batch: Batch, name: str) -> Tensor:
    """Presence of a modality, shape (B,), also where all samples have it."""
    return (batch.present or {}).get(name, torch.ones(len(batch), dtype=torch.bool, device=batch.targets.device))
