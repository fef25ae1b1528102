"""Options of a command, read from the signature of its function."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from bmlr.commands._values import list_item, mapping_item
from bmlr.data import MultimodalData
from bmlr.methods import Method

#: Marks a dataclass whose fields are options of the command itself: --workers, not --options.workers.
FLAT = "flat"
#: Options that take the name of a class, with the class that theirs are derived from.
CLASSES: dict[str, type] = {"data": MultimodalData, "method": Method}

REQUIRED = inspect.Parameter.empty


@dataclasses.dataclass(frozen=True)
class Option:
    """Option of a command, or parameter of a class.

    Attributes:
        name: Name, with the prefix of a group, as in ``trainer.epochs``.
        hint: Type.
        default: Default; :data:`REQUIRED` if there is none.
        owner: Function or class whose docstring explains it.
    """

    name: str
    hint: Any
    default: Any
    owner: Any

    @property
    def shown(self) -> str:
        """Name as it is typed: words of a command's own options are joined by dashes."""
        return self.name if "." in self.name else self.name.replace("_", "-")

    @property
    def item(self) -> Any:
        """Type of the items of an option that takes several words; None for any other."""
        return list_item(self.hint)

    def entry(self, key: str) -> Option:
        """Option of one entry, where this one takes entries by name, as in --model.encoders.image."""
        return Option(f"{self.name}.{key}", mapping_item(self.hint), self.default, self.owner)


@dataclasses.dataclass(frozen=True)
class OptionGroup:
    """Options that are the fields of a dataclass.

    Attributes:
        parameter: Parameter of the command that takes the dataclass.
        cls: The dataclass.
        options: Its fields.
    """

    parameter: str
    cls: type
    options: tuple[Option, ...]


class Command:
    """Options of a command.

    Parameters of its function without a default are positional, but for names of classes, dataclasses are groups of
    options, and all others are options.

    Args:
        name: Name of the command.
        function: Function of the command.

    Attributes:
        positional: Positional arguments.
        options: Options of the command itself, those of flat groups included.
        groups: Groups of options, whose names begin with that of the group.
        flat_groups: Groups whose options are those of the command itself.
        classes: Options that take the name of a class.
    """

    def __init__(self, name: str, function: Callable[..., None]) -> None:
        self.name = name
        self.function = function
        self.positional: list[Option] = []
        self.options: list[Option] = []
        self.groups: list[OptionGroup] = []
        self.flat_groups: list[OptionGroup] = []
        self.classes: dict[str, Option] = {}
        hints = get_type_hints(function, include_extras=True)
        for parameter in inspect.signature(function).parameters.values():
            self._add(parameter, hints[parameter.name])
        if name == "train":
            self.options.append(Option("config", Path | None, None, self))
        if hints.get("run") is Path:  # classes of a run are those imported before it is read
            self.options.append(Option("import", str | None, None, self))

    def _add(self, parameter: inspect.Parameter, hint: Any) -> None:
        name = parameter.name
        flat = get_origin(hint) is Annotated and FLAT in get_args(hint)
        if flat:
            hint = get_args(hint)[0]
        option = Option(name, hint, parameter.default, self.function)
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            group = OptionGroup(name, hint, tuple(class_options(hint, "" if flat else f"{name}.")))
            (self.flat_groups if flat else self.groups).append(group)
            if flat:
                self.options += group.options
        elif name in CLASSES and CLASSES[name] in {hint, *get_args(hint)}:
            self.classes[name] = option
        elif parameter.default is REQUIRED:
            self.positional.append(option)
        else:
            self.options.append(option)

    def find(self, name: str) -> Option | None:
        """Option of a name, with underscores; None if there is none."""
        return next((option for option in self.all_options() if option.name == name), None)

    def mapping_of(self, name: str) -> Option | None:
        """Option that takes entries by name, of which this is one; None if there is none."""
        options = [option for option in self.all_options() if mapping_item(option.hint) is not None]
        return next((option for option in options if name.startswith(f"{option.name}.")), None)

    def all_options(self) -> list[Option]:
        """Options of the command and of its groups, without parameters of the chosen classes."""
        grouped = [option for group in self.groups for option in group.options]
        return [*self.classes.values(), *self.options, *grouped]


def class_options(cls: type, prefix: str) -> list[Option]:
    """Parameters of a class as options."""
    try:
        hints = get_type_hints(inspect.getattr_static(cls, "__init__"))
    except NameError:  # names imported for type checkers only
        hints = {}
    parameters = inspect.signature(cls).parameters.values()
    variable = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    return [
        Option(f"{prefix}{parameter.name}", hints.get(parameter.name, Any), parameter.default, cls)
        for parameter in parameters
        if parameter.kind not in variable
    ]


def takes_any_option(cls: type) -> bool:
    """Whether a class takes parameters that its signature does not name."""
    return any(
        parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in inspect.signature(cls).parameters.values()
    )
