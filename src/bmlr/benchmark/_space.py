"""Spaces of parameters as they are written: ``alpha=0.1:10:log,beta=0:1``, ``alpha=0.25|0.5|1``."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from bmlr._checks import nearest_name
from bmlr.benchmark.specification import MethodSpecification, specify
from bmlr.config import OptimizerOptions

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

#: Options of the optimiser that can be searched beside a method's parameters.
OPTIMIZER = "optimizer."


@dataclasses.dataclass(frozen=True)
class Range:
    """Values a parameter may take.

    Attributes:
        name: Name of the parameter.
        low: Least value.
        high: Largest value.
        scale: linear, log or int.
        choices: The values themselves, in place of a range.
    """

    name: str
    low: float = 0.0
    high: float = 0.0
    scale: Literal["linear", "log", "int"] = "linear"
    choices: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.choices:
            return f"{self.name}={'|'.join(self.choices)}"
        scale = "" if self.scale == "linear" else f":{self.scale}"
        return f"{self.name}={self.low:g}:{self.high:g}{scale}"

    def holds(self, value: Any) -> bool:
        """Whether a value may be taken."""
        if self.choices:
            return value in self.choices
        return isinstance(value, (int, float)) and self.low <= value <= self.high

    def distribution(self) -> BaseDistribution:
        """The range as Optuna takes it."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.choices:
            return CategoricalDistribution(self.choices)
        if self.scale == "int":
            return IntDistribution(int(self.low), int(self.high))
        return FloatDistribution(self.low, self.high, log=self.scale == "log")


def parse_range(text: str) -> Range:
    """Read ``NAME=LOW:HIGH``, ``NAME=LOW:HIGH:log``, ``NAME=LOW:HIGH:int`` or ``NAME=VALUE|VALUE|…``.

    Raises:
        ValueError: If the text is none of these, or no range.

    Example:
        >>> parse_range("alpha=0.1:10:log")
        Range(name='alpha', low=0.1, high=10.0, scale='log', choices=())
        >>> parse_range("mode=ba|bb").choices
        ('ba', 'bb')
    """
    name, equals, values = text.partition("=")
    if not re.fullmatch(r"(optimizer\.)?[A-Za-z_]\w*", name) or not equals or not values:
        raise ValueError(f"Space '{text}' should be written NAME=LOW:HIGH, with :log or :int, or NAME=VALUE|VALUE.")
    if "|" in values or ":" not in values:
        choices = tuple(value.strip() for value in values.split("|"))
        if not all(choices) or len(set(choices)) < len(choices):
            raise ValueError(f"Space '{text}' should name different values between the |.")
        return Range(name, choices=choices)
    limits = values.split(":")
    scale = limits[2] if len(limits) == 3 else "linear"
    try:
        low, high = float(limits[0]), float(limits[1])
    except ValueError as error:
        raise ValueError(f"Space '{text}' should have numbers around its colon. Found '{values}'.") from error
    if len(limits) > 3 or scale not in {"linear", "log", "int"}:
        raise ValueError(f"Space '{text}' should end in its upper limit, or in :log or :int. Found '{values}'.")
    integral = scale != "int" or (low.is_integer() and high.is_integer())
    if not (math.isfinite(low) and math.isfinite(high) and low < high) or (scale == "log" and low <= 0) or not integral:
        condition = {"log": "0 < low < high", "int": "whole numbers, low < high"}.get(scale, "low < high")
        raise ValueError(f"Space '{text}' should have {condition}. Found '{values}'.")
    return Range(name, low, high, scale)  # type: ignore[arg-type]


def parse_spaces(texts: Sequence[str], methods: Sequence[MethodSpecification]) -> dict[str, dict[str, Range]]:
    """The space of every method.

    ``alpha=…,beta=…`` is for every method that has these parameters and none of its own; ``BMLR:alpha=…`` for that
    method alone.

    Args:
        texts: Spaces as written.
        methods: The methods that are compared.

    Returns:
        Ranges by parameter, by the text of the method.

    Raises:
        ValueError: If a method has no space, a space no method, or a parameter is unknown or fixed already.

    Example:
        >>> from bmlr.benchmark.specification import parse_method
        >>> spaces = parse_spaces(["alpha=0.1:10:log,beta=0:1"], [parse_method("BMLR")])
        >>> list(spaces["BMLR"])
        ['alpha', 'beta']
    """
    names = [method.text for method in methods]
    of_method: dict[str, dict[str, Range]] = {}
    common: list[dict[str, Range]] = []
    for text in texts:
        target, space = _parse_space(text, names)
        if target is None:
            common.append(space)
        elif target in of_method:
            raise ValueError(f"Method '{target}' should have one space of its own. Found two.")
        else:
            of_method[target] = space
    spaces = {}
    used: set[int] = set()
    for method in methods:
        parameters = [*method.make().hparams]
        fitting = [number for number, space in enumerate(common) if _takes(parameters, space)]
        if method.text not in of_method and not fitting:
            raise ValueError(
                f"Method '{method.text}' should have a space, so that all get the same number of trials. It has the "
                f"parameters {', '.join(parameters) or 'none'}; optimizer.lr and optimizer.weight_decay can be "
                "searched for any method."
            )
        used |= set(fitting if method.text not in of_method else ())
        shared = {name: values for number in fitting for name, values in common[number].items()}
        spaces[method.text] = of_method.get(method.text) or shared
        for name in spaces[method.text]:
            _check_parameter(name, method, parameters)
    if unused := [space for number, space in enumerate(common) if number not in used]:
        raise ValueError(f"No method takes the space of {', '.join(unused[0])}.")
    return spaces


def grid_points(space: Mapping[str, Range]) -> list[dict[str, str]]:
    """All combinations of the values of a space.

    Raises:
        ValueError: If a parameter has a range in place of values.

    Example:
        >>> grid_points({"a": Range("a", choices=("1", "2")), "b": Range("b", choices=("x",))})
        [{'a': '1', 'b': 'x'}, {'a': '2', 'b': 'x'}]
    """
    for name, values in space.items():
        if not values.choices:
            raise ValueError(f"A grid needs the values of '{name}' themselves: write {name}=VALUE|VALUE|….")
    combinations = itertools.product(*(values.choices for values in space.values()))
    return [dict(zip(space, values, strict=True)) for values in combinations]


def _parse_space(text: str, names: Sequence[str]) -> tuple[str | None, dict[str, Range]]:
    target = None
    before = text.partition("=")[0]
    if ":" in before:
        # A specification may hold colons and equals signs itself, so the longest that fits is taken.
        fitting = sorted((name for name in names if text.startswith(f"{name}:")), key=len)
        if not fitting:
            name = before.partition(":")[0]
            raise ValueError(
                f"Space '{text}' is of no method compared ({', '.join(names)}).{nearest_name(name, names)}"
            )
        target = fitting[-1]
        text = text.removeprefix(f"{target}:")
    ranges = [parse_range(item) for item in text.split(",") if item]
    if not ranges or len({values.name for values in ranges}) < len(ranges):
        raise ValueError(f"Space '{text}' should name every parameter once.")
    return target, {values.name: values for values in ranges}


def _takes(parameters: Sequence[str], space: Mapping[str, Range]) -> bool:
    return all(name in parameters or name.startswith(OPTIMIZER) for name in space)


def _check_parameter(name: str, method: MethodSpecification, parameters: Sequence[str]) -> None:
    if name in method.parameters:
        raise ValueError(f"Method '{method.text}' fixes {name}, which is to be searched.")
    if name.startswith(OPTIMIZER):
        if name.removeprefix(OPTIMIZER) not in {"lr", "weight_decay", "momentum"}:
            raise ValueError(f"Of the optimiser lr, weight_decay and momentum can be searched. Found '{name}'.")
    elif name not in parameters:
        raise ValueError(
            f"Method '{method.text}' has no parameter '{name}'. It has {', '.join(parameters)}."
            f"{nearest_name(name, parameters)}"
        )


def with_values(method: MethodSpecification, values: Mapping[str, Any]) -> MethodSpecification:
    """The method with the searched values of its parameters."""
    searched = {name: str(value) for name, value in values.items() if not name.startswith(OPTIMIZER)}
    parameters = {**method.parameters, **searched}
    return specify(method.name, parameters, method.epochs)


def with_rates(optimizer: OptimizerOptions, values: Mapping[str, Any]) -> OptimizerOptions:
    """Options of the optimiser with the searched values of its own."""
    searched: dict[str, Any] = {
        name.removeprefix(OPTIMIZER): float(value) for name, value in values.items() if name.startswith(OPTIMIZER)
    }
    return dataclasses.replace(optimizer, **searched)
