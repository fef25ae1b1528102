"""Options of the optimiser and its schedule."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    CyclicLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    ReduceLROnPlateau,
    StepLR,
)

from bmlr._checks import check_choice, check_integer, check_non_negative, check_positive, check_unit_interval
from bmlr.config._classes import resolve_class
from bmlr.config._parts import Entry, own_modules, read_part
from bmlr.model import MultimodalClassifier
from bmlr.parameters import param_groups

NamedSchedule = Literal["constant", "step", "multistep", "cosine"]
Interval = Literal["epoch", "step"]


@dataclasses.dataclass
class OptimizerOptions:
    """Optimiser and learning-rate schedule.

    Attributes:
        name: adam, adamw or sgd.
        lr: Learning rate; by default the data set's.
        weight_decay: L2 penalty (adam, sgd) or decoupled decay (adamw).
        betas: Decay rates of Adam's moments.
        momentum: Momentum of SGD.
        groups: Options by modality, such as {audio: {lr: 3e-5, weight_decay: 0.1}, text: {freeze: true}}; fusion is
            all that follows the encoders. A frozen encoder is not trained and stays in evaluation mode.
        schedule: constant, step (times gamma every step_size epochs), multistep (times gamma at each milestone), cosine
            (to zero over the run), or a class of torch.optim.lr_scheduler or of yours, such as OneCycleLR or
            CosineAnnealingWarmRestarts:T_0=5. total_steps, T_max and max_lr may be left out: they are the length of
            the run and the rate of each group. By default the data set's.
        schedule_interval: Whether the schedule counts epochs or optimiser steps; by default steps for OneCycleLR and
            CyclicLR, else epochs.
        warmup_steps: Optimiser steps over which the rates rise linearly from zero, on top of any schedule.
        step_size: Epochs between decays of the step schedule.
        milestones: Epochs of the multistep schedule.
        gamma: Factor of a decay.
    """

    name: Literal["adam", "adamw", "sgd"] = "adam"
    lr: float | None = None
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float = 0.9
    groups: dict[str, dict[str, Any]] | None = None
    schedule: dict[str, Any] | str | None = None
    schedule_interval: Interval | None = None
    warmup_steps: int = 0
    step_size: int = 30
    milestones: tuple[int, ...] = (70,)
    gamma: float = 0.1

    def __post_init__(self) -> None:
        if self.lr is not None:
            check_positive("lr", self.lr)
        check_non_negative("weight_decay", self.weight_decay)
        check_non_negative("momentum", self.momentum)
        check_positive("gamma", self.gamma)
        check_integer("step_size", self.step_size, 1)
        check_integer("warmup_steps", self.warmup_steps, 0)
        for beta in self.betas:
            check_unit_interval("betas", beta)
        if self.schedule_interval is not None:
            check_choice("schedule_interval", self.schedule_interval, get_args(Interval))
        self.groups = _read_groups(self.groups)
        if self.schedule is not None:
            self.schedule = _read_schedule(self.schedule)

    def optimizer(
        self, model: MultimodalClassifier, method_parameters: Iterable[nn.Parameter] = (), *, fused: bool = False
    ) -> torch.optim.Optimizer:
        """The optimiser.

        Args:
            model: The model, whose encoders are frozen as ``groups`` says.
            method_parameters: Parameters of the method.
            fused: Update all parameters in one kernel, where their device has it. A loss scaler then leaves the
                unscaling to the optimiser, after methods have looked at the gradients: not for half precision.

        Raises:
            ValueError: If ``groups`` do not fit the model.
        """
        if self.lr is None:
            raise ValueError("Parameter `lr` should be given where there is no data set to take a default from.")
        groups = self.parameter_groups(model, method_parameters)
        options: dict[str, Any] = {"weight_decay": self.weight_decay}
        # With momentum the fused SGD of torch stops at a parameter that gets its first gradient after others.
        has_kernel = self.name != "sgd" or not self.momentum
        if fused and has_kernel and all(_has_fused_kernel(p) for group in groups for p in group["params"]):
            options["fused"] = True
        if self.name == "sgd":
            return torch.optim.SGD(groups, self.lr, momentum=self.momentum, **options)
        kind = torch.optim.AdamW if self.name == "adamw" else torch.optim.Adam
        return kind(groups, self.lr, betas=self.betas, **options)

    def parameter_groups(
        self, model: MultimodalClassifier, method_parameters: Iterable[nn.Parameter] = ()
    ) -> list[dict[str, Any]]:
        """Parameters of the optimiser, those without options of their own first."""
        by_option: dict[str, dict[str, Any]] = {"lr": {}, "weight_decay": {}, "freeze": {}}
        for name, options in (self.groups or {}).items():
            for option, value in options.items():
                by_option[option][name] = value
        groups = param_groups(model, by_option["lr"], by_option["weight_decay"], list(by_option["freeze"]))
        trained = [p for p in method_parameters if p.requires_grad]
        if groups[0]["name"] == "others":
            groups[0]["params"] += trained
        elif trained:
            groups.insert(0, {"params": trained, "name": "others"})
        return groups

    @property
    def own_modules(self) -> list[str]:
        """Modules of the user's that the schedule needs."""
        return own_modules([self.schedule] if isinstance(self.schedule, dict) else [])

    @property
    def interval(self) -> Interval:
        """What the schedule counts."""
        if self.schedule_interval is None and isinstance(self.schedule, dict):
            return "step" if issubclass(self._schedule_class(), (OneCycleLR, CyclicLR)) else "epoch"
        return self.schedule_interval or "epoch"

    def scheduler(
        self,
        optimizer: torch.optim.Optimizer,
        epochs: int,
        steps: Callable[[], int],
        *,
        larger_is_better: bool | None = True,
    ) -> LRScheduler | None:
        """Make the schedule, stepped once per :attr:`interval`.

        Args:
            optimizer: The optimiser.
            epochs: Epochs of the whole training.
            steps: Gives the number of optimiser steps of the whole training.
            larger_is_better: Of the monitored metric; None where it is not known yet.

        Returns:
            The schedule; None for a constant rate.

        Raises:
            ValueError: If there is no such schedule, or its parameters do not fit; the message is one sentence.
        """
        if self.schedule is None or self.schedule == "constant":
            return None
        if self.schedule == "step":
            return StepLR(optimizer, self.step_size, self.gamma)
        if self.schedule == "multistep":
            return MultiStepLR(optimizer, list(self.milestones), self.gamma)

        def length() -> int:
            return steps() if self.interval == "step" else epochs

        if self.schedule == "cosine":
            return CosineAnnealingLR(optimizer, length())
        return self._make_schedule(optimizer, length, larger_is_better)

    def _make_schedule(
        self, optimizer: torch.optim.Optimizer, length: Callable[[], int], larger_is_better: bool | None
    ) -> LRScheduler:
        """Make the schedule of a class path, with length and rates left out."""
        cls = self._schedule_class()
        arguments = dict(self._entry["init_args"])
        parameters = inspect.signature(cls).parameters
        before = [group["lr"] for group in optimizer.param_groups]
        for name, alternatives in (("total_steps", {"total_steps", "epochs"}), ("T_max", {"T_max"})):
            if name in parameters and not alternatives & set(arguments):
                arguments[name] = length()
        if "max_lr" in parameters:
            arguments.setdefault("max_lr", before)
        if issubclass(cls, ReduceLROnPlateau) and larger_is_better is not None:
            mode = "max" if larger_is_better else "min"
            if arguments.setdefault("mode", mode) != mode:
                raise ValueError(
                    f"Parameter `schedule`: ReduceLROnPlateau follows the monitored metric, whose `mode` is {mode}."
                )
        try:
            schedule = cls(optimizer, **arguments)
        except Exception as error:  # whatever parameters of wrong types cause in any class
            raise ValueError(f"Parameter `schedule`: {cls.__name__} does not take {arguments}: {error}") from error
        _check_rates(cls.__name__, before, [group["lr"] for group in optimizer.param_groups])
        return schedule

    def check(self, epochs: int, *, larger_is_better: bool | None = None) -> None:
        """Raise a ValueError if the schedule cannot be made."""
        weight = nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.SGD([weight], self.lr or 1e-3, momentum=0.9)  # some schedules move the momentum
        self.scheduler(optimizer, epochs, lambda: 1000 * epochs, larger_is_better=larger_is_better)

    @property
    def _entry(self) -> Entry:
        """Path and arguments of a schedule by its class."""
        return self.schedule if isinstance(self.schedule, dict) else {}

    def _schedule_class(self) -> type[LRScheduler]:
        return resolve_class(self._entry["class_path"], LRScheduler)


def _has_fused_kernel(parameter: nn.Parameter) -> bool:
    return parameter.device.type in {"cpu", "cuda"} and parameter.is_floating_point()


def _check_mapping(groups: object) -> None:
    if groups is not None and not isinstance(groups, Mapping):
        raise ValueError(f"Parameter `groups` should be options by modality. Found {groups!r}.")


def _read_groups(groups: Mapping[str, Mapping[str, Any]] | None) -> dict[str, dict[str, Any]] | None:
    """Options by modality, in one form for all that mean the same."""
    _check_mapping(groups)
    read: dict[str, dict[str, Any]] = {}
    for name, options in (groups or {}).items():
        where = f"groups.{name}"
        if not isinstance(options, Mapping) or not set(options) <= {"lr", "weight_decay", "freeze"}:
            raise ValueError(
                f"Parameter `{where}` should have entries among lr, weight_decay and freeze. Found {options!r}."
            )
        entries: dict[str, Any] = {}
        for option in ("lr", "weight_decay"):
            if (value := options.get(option)) is not None:
                if isinstance(value, bool) or not isinstance(value, (int, float)):
                    raise ValueError(f"Parameter `{where}.{option}` should be a number. Found {value!r}.")
                entries[option] = (check_positive if option == "lr" else check_non_negative)(f"{where}.{option}", value)
        freeze = options.get("freeze", False)
        if not isinstance(freeze, bool):
            raise ValueError(f"Parameter `{where}.freeze` should be true or false. Found {freeze!r}.")
        if freeze and entries:
            raise ValueError(f"Parameter `{where}` should have no {next(iter(entries))} where freeze is true.")
        if freeze:
            entries["freeze"] = True
        if entries:
            read[str(name)] = entries
    return read or None


def _read_schedule(schedule: Any) -> Entry | str:
    """A schedule's name, or its class path and arguments, in one form for all that mean the same."""
    if isinstance(schedule, str) and schedule in get_args(NamedSchedule):
        return schedule
    entry = read_part(schedule, "Parameter `schedule`")
    if entry["class_path"].rpartition(".")[0] in {"", "torch.optim.lr_scheduler"}:
        try:
            cls = resolve_class(entry["class_path"], LRScheduler)
        except ValueError as error:
            names = ", ".join(get_args(NamedSchedule))
            raise ValueError(
                f"Parameter `schedule` should be one of {names}, or a class of torch.optim.lr_scheduler or of yours. "
                f"{str(error).replace(' Registered are', ' That module has')}"
            ) from error
        entry["class_path"] = f"torch.optim.lr_scheduler.{cls.__name__}"
    return entry


def _check_rates(name: str, before: list[float], after: list[float]) -> None:
    """Raise a ValueError if a schedule gives one rate to groups of different rates."""
    if len(set(before)) > 1 and len(set(after)) == 1 and not math.isclose(after[0], 0.0):
        raise ValueError(
            f"Parameter `schedule`: {name} gives all groups one learning rate, and `groups` gives them different ones: "
            "leave out its rate, or give a list with one for each."
        )
