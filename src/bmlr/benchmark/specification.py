"""Specifications of methods and data sets in text: ``LFM:alpha=constant``, ``ReconBoost:t1=1,t2=1@7``."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Mapping
from typing import Any

import bmlr.data
import bmlr.methods
from bmlr._checks import check_integer, nearest_name
from bmlr.config import import_user_module, split_specification
from bmlr.data import MultimodalData
from bmlr.methods import Method
from bmlr.runs.settings import text_of


@dataclasses.dataclass(frozen=True)
class MethodSpecification:
    """A method with its parameters and, optionally, its own epochs.

    Attributes:
        text: Text of the specification, the label of its runs in lines, tables and figures.
        name: Name of a registered method, or path of a class of the user's.
        parameters: Its parameters, as text.
        epochs: Epochs of this method alone; one with several passes per epoch needs fewer.
    """

    text: str
    name: str
    parameters: Mapping[str, str]
    epochs: int | None = None

    def make(self) -> Method:
        """A new object of the method.

        Raises:
            ValueError: If the method or a parameter is unknown, or a value is out of its range.
        """
        cls = _own_class(self.name) if "." in self.name else bmlr.methods.get(self.name)
        return _construct(cls, self.parameters, f"Method '{self.text}'")  # type: ignore[no-any-return]


def parse_method(text: str) -> MethodSpecification:
    """Read ``NAME``, ``NAME:parameter=value,…`` or either with ``@EPOCHS`` behind it.

    Raises:
        ValueError: If the text is none of these, or there is no such method.

    Example:
        >>> parse_method("reconboost:t1=1, t2=1@7").text
        'ReconBoost:t1=1,t2=1@7'
    """
    specification, separator, epochs = text.partition("@")
    if separator and not re.fullmatch(r"[1-9][0-9]*", epochs):
        raise ValueError(f"Method '{text}' should name its epochs after the @ as a positive integer. Found '{epochs}'.")
    name, parameters = split_specification(specification, f"Method '{text}'")
    if "." not in name:
        name = bmlr.methods.get(name).__name__
    return specify(name, parameters, check_integer("epochs", int(epochs), 1) if separator else None)


def specify(name: str, parameters: Mapping[str, str], epochs: int | None = None) -> MethodSpecification:
    """The specification of a method, with its text."""
    written = ",".join(f"{key}={value}" for key, value in parameters.items())
    text = f"{name}{f':{written}' if written else ''}{'' if epochs is None else f'@{epochs}'}"
    return MethodSpecification(text, name, parameters, epochs)


def method_text(method: Method) -> str:
    """The specification of a method as text, with the parameters that are not its defaults.

    Example:
        >>> import bmlr
        >>> method_text(bmlr.methods.Unimodal("audio"))
        'Unimodal:modality=audio'
    """
    defaults = {name: entry.default for name, entry in inspect.signature(type(method)).parameters.items()}
    changed = {name: text_of(value) for name, value in method.hparams.items() if value != defaults.get(name)}
    return specify(type(method).__name__, changed).text


def scaled_method(name: str, epochs: int, *, of: int | None = None, single_passes: bool = True) -> str:
    """A method's specification for ``epochs`` epochs of data passes.

    A method whose epoch is several passes over the data gets fewer epochs.

    Args:
        name: Name of the method.
        epochs: Epochs of a method with one pass over the data in each.
        of: Epochs that defaults which count epochs are meant for: they shrink in proportion, so that a warm-up ends in
            time; None leaves them.
        single_passes: Whether the passes that a method counts within an epoch are one of each kind.

    Example:
        >>> scaled_method("MIDAS", 14, of=70), scaled_method("ReconBoost", 14, of=70)
        ('MIDAS:warmup=1', 'ReconBoost:t1=1,t2=1@7')
    """
    method = bmlr.methods.get(name)
    defaults = method().hparams
    parameters: dict[str, int] = {}
    counting = [key for key in method.epoch_parameters if of is not None and defaults[key] is not None]
    for key in counting:
        counted = int(key == "last_epoch")  # the last of the epochs from 0, one more than its number
        parameters[key] = max(1, round(epochs / (of or 1) * (defaults[key] + counted))) - counted
    if single_passes:
        parameters |= dict.fromkeys(method.pass_parameters, 1)
    passes = sum({**defaults, **parameters}[key] for key in method.pass_parameters)
    return specify(
        name, {k: str(v) for k, v in parameters.items()}, max(2, round(epochs / passes)) if passes else None
    ).text


def parse_data(text: str) -> MultimodalData:
    """Make a data set from ``NAME`` or ``NAME:parameter=value,…``.

    Raises:
        ValueError: If the data set or a parameter is unknown, or a value is out of its range.

    Example:
        >>> parse_data("digits:audio_snr_db=10").audio_snr_db
        10.0
    """
    name, parameters = split_specification(text, f"Data set '{text}'")
    cls = _own_class(name) if "." in name else bmlr.data.get(name)
    return _construct(cls, parameters, f"Data set '{text}'")  # type: ignore[no-any-return]


def _construct(cls: type, parameters: Mapping[str, str], where: str) -> Any:
    """Make an object of a class from parameters as text.

    They are converted by the types of its constructor, as the command line does.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    accepted = list(inspect.signature(cls).parameters)
    if unknown := [name for name in parameters if name not in accepted]:
        has = f"It has {', '.join(accepted)}." if accepted else "It has none."
        raise ValueError(f"{where} has no parameter {unknown[0]}. {has}{nearest_name(unknown[0], accepted)}")
    parser = ArgumentParser(exit_on_error=False)
    prefix = "class_arguments"  # not a word of any message
    parser.add_class_arguments(cls, prefix)
    try:
        values = parser.parse_args([f"--{prefix}.{name}={value}" for name, value in parameters.items()])
        return parser.instantiate(values)[prefix]
    except (ArgumentError, ValueError) as error:
        reason = re.sub(r"\s+", " ", str(error)).replace(f"{prefix}.", "").strip()
        raise ValueError(f"{where}: {reason}") from error


def _own_class(path: str) -> type:
    """Import a class of the user's by its path."""
    module, _, name = path.rpartition(".")
    try:
        import_user_module(module)
        cls = getattr(sys.modules[module], name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{path} cannot be imported: {error}.") from error
    if not (isinstance(cls, type) and issubclass(cls, (Method, MultimodalData))):
        raise ValueError(f"{path} should be a class of a method or a data set. Found {cls!r}.")
    return cls
