"""From the words of a command line and the entries of a YAML file to the arguments of a command."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import bmlr.data
import bmlr.methods
from bmlr._checks import nearest_name
from bmlr.commands._explanations import explain
from bmlr.commands._user_classes import class_name, import_module, import_user_modules, noun, resolve_class
from bmlr.commands._values import BOOLEANS, convert, describe_type, mapping_item
from bmlr.commands.options import REQUIRED, Command, Option, OptionGroup, class_options, takes_any_option


@dataclasses.dataclass(frozen=True)
class _Entry:
    """Value of an option before its conversion, and the subject of a message about it."""

    value: Any
    where: str


def read_arguments(command: Command, words: Sequence[str]) -> dict[str, Any]:
    """Arguments of a command's function.

    Options of the command line count more than entries of ``--config``, wherever they stand.

    Raises:
        ValueError: If an option is unknown, missing or out of its type; the message says what to do.
    """
    positional, entries = _split(command, words)
    _assign_positional(command, positional, entries)
    if module := entries.pop("import", None):
        import_user_modules(module.value)
    entries = _expand_group_files(command, entries)
    classes = {name: _resolve_class(name, entries[name]) for name in command.classes if name in entries}
    if config := entries.pop("config", None):
        path = convert(config.value, Path, config.where)
        for name, entry in _read_config(command, path, classes).items():
            entries.setdefault(name, entry)
    _check_names(command, entries, classes)
    _check_required(command, entries, classes)
    return _build(command, entries, classes)


def find_topic(command: Command, words: Sequence[str]) -> str | None:
    """Topic of a request for help: "" for the command itself; None if there is no request.

    ``--help TOPIC`` asks for a topic, as ``--trainer.help`` and ``--method.help BMLR`` do.
    """
    for position, word in enumerate(words):
        following = [other for other in words[position + 1 : position + 2] if not other.startswith("-")]
        name, _, value = word.partition("=")
        if name in {"-h", "--help"}:
            return value or (following[0] if following else "")
        if name.startswith("--") and name.endswith(".help"):
            prefix = name[2:].removesuffix(".help")
            return (value or (following[0] if following else "")) if prefix in command.classes else prefix
    return None


def _split(command: Command, words: Sequence[str]) -> tuple[list[str], dict[str, _Entry]]:
    """Positional words, and options by name with underscores."""
    positional: list[str] = []
    entries: dict[str, _Entry] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            return [*positional, *rest], entries
        if not _is_option(word):
            positional.append(word)
            continue
        text, separator, value = word[2:].partition("=")
        name = text.replace("-", "_")
        option = _find(command, name, text)
        name = option.name
        where = f"Option --{option.shown}"
        if option.item is not None:
            values = [value] if separator else list(_take_values(rest))
            if not values:
                raise ValueError(f"{where} needs at least one value.")
            entries[name] = _Entry(values, where)
        elif separator:
            entries[name] = _Entry(value, where)
        elif option.hint is bool and not ("." in name and rest and not _is_option(rest[0])):
            entries[name] = _Entry(rest.pop(0) if rest and rest[0].casefold() in BOOLEANS else "true", where)
        elif rest and not _is_option(rest[0]):
            entries[name] = _Entry(rest.pop(0), where)
        else:
            raise ValueError(f"{where} needs a value: {_describe(option)}.")
    return positional, entries


def _is_option(word: str) -> bool:
    """Whether a word is an option; names of files may begin with one dash."""
    return word == "--" or re.match(r"--[A-Za-z]", word) is not None


def _take_values(words: list[str]) -> Iterator[str]:
    """Remove and yield the words before the next option."""
    while words and not _is_option(words[0]):
        yield words.pop(0)


def _find(command: Command, name: str, text: str) -> Option:
    """Option of a name; parameters of classes are looked up once the class is known."""
    prefix, dot, _ = name.partition(".")
    groups = [group.parameter for group in command.groups]
    if option := command.find(name):
        return option
    if dot and prefix in command.classes:
        return Option(name, Any, REQUIRED, None)
    if option := command.mapping_of(name):
        return option.entry(text[len(option.shown) + 1 :])
    if name in groups:
        return Option(name, Path, None, command.function)  # a file with the options of the group
    names = [option.shown for option in command.all_options()]
    raise ValueError(
        f"There is no option --{text}.{_nearest_option(text, names)} bmlr {command.name} --help lists the options."
    )


def _nearest_option(text: str, names: Sequence[str]) -> str:
    """Suggestion for an option, also without the prefix of its group."""
    by_last = {name.rpartition(".")[2]: name for name in reversed(names)}
    for candidates in (names, by_last):
        if suggestion := re.search(r"'(.*)'", nearest_name(text, candidates)):
            full = by_last.get(suggestion[1], suggestion[1]) if candidates is by_last else suggestion[1]
            return f" Did you mean '--{full}'?"
    return ""


def name_options(command: Command, message: str) -> str:
    """A message of a function with the names of its arguments as a user types them."""
    for option in (*command.positional, *command.options):
        typed = option.name.upper() if option in command.positional else f"Option --{option.shown}"
        message = re.sub(rf"(Parameter )?`{option.name}`", typed, message)
        message = re.sub(rf"Found `{option.name} = '?(.*?)'?`", r"Found \1", message)
    return message


def _assign_positional(command: Command, words: Sequence[str], entries: dict[str, _Entry]) -> None:
    """Give positional words their names, in order; the last may take several."""
    if command.classes and not command.positional:
        first = next(iter(command.classes))
        kind = noun(first).partition(" ")[2]
        if words and first not in entries and not words[0].startswith("-"):
            entries[first] = _Entry(words[0], f"The {kind}")
            words = words[1:]
        if words and first in entries and not words[0].startswith("-"):
            raise ValueError(f"bmlr {command.name} takes one {kind}. Found {entries[first].value}, and {words[0]} too.")
        if words:
            raise ValueError(_unexpected(command, words[0], "options only"))
        return
    remaining = list(words)
    for option in command.positional:
        label = option.name.upper()
        if remaining:
            taken = remaining if option.item is not None else remaining[:1]
            entries[option.name] = _Entry(taken if option.item is not None else taken[0], label)
            remaining = remaining[len(taken) :]
    if remaining:
        labels = (
            f"{' '.join(option.name.upper() for option in command.positional)} and options"
            if command.positional
            else "options only"
        )
        raise ValueError(_unexpected(command, remaining[0], labels))


def _unexpected(command: Command, word: str, expected: str) -> str:
    """Message for a word without an option."""
    names = [option.shown for option in command.all_options()]
    if word.startswith("-"):
        suggestion = _nearest_option(word.lstrip("-"), names)
        return f"There is no option {word}.{suggestion} bmlr {command.name} --help lists the options."
    return f"bmlr {command.name} takes {expected}. Found one word more: {word}."


def _read_config(command: Command, path: Path, classes: dict[str, type]) -> dict[str, _Entry]:
    """Entries of a file of options; ``classes`` takes those that it names."""
    entries: dict[str, _Entry] = {}
    for name, value in _read_options(path).items():
        where = f"{path}: {name}"
        if name in command.classes:
            chosen: Any = value
            parameters: Any = {}
            if isinstance(value, dict) and "class_path" in value and set(value) <= {"class_path", "init_args"}:
                chosen, parameters = value["class_path"], value.get("init_args") or {}
            if not isinstance(chosen, str) or not isinstance(parameters, dict):
                raise ValueError(f"{where} should be a name, or have the entries class_path and init_args.")
            cls = resolve_class(name, chosen, where)
            if classes.setdefault(name, cls) is not cls:
                continue  # the command line names another class: these parameters are not its own
            entries[name] = _Entry(chosen, where)
            entries |= _nested(name, parameters, where)
        elif name in {group.parameter for group in command.groups}:
            entries |= _nested(name, value, where)
        else:
            entries[str(name)] = _Entry(value, where)
    return entries


def _expand_group_files(command: Command, entries: dict[str, _Entry]) -> dict[str, _Entry]:
    """Replace a file of a group's options, as in --model FILE, by its entries."""
    expanded = dict(entries)
    for group in command.groups:
        if file := expanded.pop(group.parameter, None):
            path = convert(file.value, Path, file.where)
            for name, entry in _nested(group.parameter, _read_options(path), str(path)).items():
                expanded.setdefault(name, entry)
    return expanded


def _nested(prefix: str, value: Any, where: str) -> dict[str, _Entry]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} should hold options by name. Found {value}.")
    return {f"{prefix}.{name}": _Entry(item, f"{where}.{name}") for name, item in value.items()}


def _read_options(path: Path) -> dict[str, Any]:
    """Entries of a file of options."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no configuration file {path}.")
    from bmlr.config import read_plain_yaml

    _, content = read_plain_yaml(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} should hold options by name, as a run's config.yaml does.")
    return content


def _check_names(command: Command, entries: Mapping[str, _Entry], classes: Mapping[str, type]) -> None:
    """Raise if an entry is no option, or no parameter of the chosen class."""
    known = {option.name for option in [*command.positional, *command.all_options()]}
    for name, entry in entries.items():
        prefix, dot, parameter = name.partition(".")
        if name in known or command.mapping_of(name):
            continue
        if name == "model.given":
            raise ValueError(
                f"{entry.where}: the run was trained on a finished model, {entry.value}, which no command makes. Call "
                "bmlr.training.train() with it again, or name a function that makes it by --model.net."
            )
        if not (dot and prefix in command.classes):
            names = [option.name for option in command.all_options()]
            suggestion = _nearest_option(name, names).replace("--", "")
            raise ValueError(f"{entry.where}: there is no such option.{suggestion}")
        if prefix not in classes:
            raise ValueError(f"{entry.where} needs --{prefix} too: it is a parameter of {noun(prefix)}.")
        cls = classes[prefix]
        names = [option.name.partition(".")[2] for option in class_options(cls, f"{prefix}.")]
        if parameter not in names and not takes_any_option(cls):
            listed = f"Its parameters are {', '.join(names)}." if names else "It has none."
            raise ValueError(
                f"{entry.where}: {class_name(cls)} has no parameter {parameter}. "
                f"{listed}{nearest_name(parameter, names)}"
            )


def _check_required(command: Command, entries: Mapping[str, _Entry], classes: Mapping[str, type]) -> None:
    """Raise if an argument or option without a default is missing."""
    missing = [option for option in command.positional if option.name not in entries]
    if missing:
        labels = ", ".join(option.name.upper() for option in missing)
        raise ValueError(f"bmlr {command.name} needs {labels}: {usage(command)}")
    for name, option in command.classes.items():
        if option.default is REQUIRED and name not in classes:
            names = bmlr.data.available() if name == "data" else bmlr.methods.available()
            raise ValueError(
                f"bmlr {command.name} needs --{name}: one of {', '.join(names)}, or a class of yours as module.Class."
            )
    for name, cls in classes.items():
        for option in class_options(cls, f"{name}."):
            if option.default is REQUIRED and option.name not in entries:
                text = f"{_describe(option)}. {explain(option)}".rstrip()
                raise ValueError(f"{class_name(cls)} needs --{option.name}: {text}")


def usage(command: Command) -> str:
    """Usage of a command in one line."""
    words = [option.name.upper() + ("..." if option.item is not None else "") for option in command.positional]
    for name, option in command.classes.items():
        if name == next(iter(command.classes)):
            words.append(name.upper() if option.default is REQUIRED else f"[{name.upper()}]")
        else:
            words.append(f"--{name} NAME")
    return " ".join(["bmlr", command.name, *words, "[options]"])


def _build(command: Command, entries: Mapping[str, _Entry], classes: Mapping[str, type]) -> dict[str, Any]:
    """Arguments of the command's function."""
    consumed = {"config", "import", *(option.name for group in command.flat_groups for option in group.options)}
    own = [option for option in [*command.positional, *command.options] if option.name not in consumed]
    arguments = _convert_values(own, entries)
    groups: list[OptionGroup] = [*command.groups, *command.flat_groups]
    for group in groups:
        made = arguments[group.parameter] = _make(group.cls, group.options, entries)
        for module in getattr(made, "own_modules", ()):
            import_module(module, f"Options --{group.parameter}")
    for name, cls in classes.items():
        options = {option.name: option for option in class_options(cls, f"{name}.")}
        for entry in entries:
            if entry.startswith(f"{name}."):
                options.setdefault(entry, Option(entry, Any, None, cls))
        arguments[name] = _make(cls, list(options.values()), entries)
    return arguments


def _make(cls: type, options: Sequence[Option], entries: Mapping[str, _Entry]) -> Any:
    """Make an object of the options that were given; messages of its class name options, not parameters."""
    values = _convert_values(options, entries)
    try:
        return cls(**values)
    except ValueError as error:
        message = str(error)
        for option in [*options, *(entry for named in options for entry in _given(named, entries))]:
            field = option.name.rpartition(".")[2]
            where = entries[option.name].where if option.name in entries else f"Option --{option.shown}"
            message = message.replace(f"Parameter `{field}`", where)
            message = re.sub(rf"Found `{field} = '?(.*?)'?`", r"Found \1", message)
        raise ValueError(message) from error


def _convert_values(options: Iterable[Option], entries: Mapping[str, _Entry]) -> dict[str, Any]:
    """Values of the options that were given, by the name of the parameter."""
    values: dict[str, Any] = {}
    for option in options:
        field = option.name.rpartition(".")[2]
        for given in _given(option, entries):
            entry = entries[given.name]
            if given is not option:  # an entry of a mapping
                whole = values.get(field)
                key = given.name[len(option.name) + 1 :]
                values[field] = {**(whole if isinstance(whole, dict) else {}), key: _convert(given, entry)}
            else:
                values[field] = _convert(option, entry)
    return values


def _given(option: Option, entries: Mapping[str, _Entry]) -> list[Option]:
    """The option, if it was given, and the entries that were given one by one."""
    whole = [option] if option.name in entries else []
    if mapping_item(option.hint) is None:
        return whole
    prefix = f"{option.name}."
    return [*whole, *(option.entry(name[len(prefix) :]) for name in entries if name.startswith(prefix))]


def _convert(option: Option, entry: _Entry) -> Any:
    if option.item is None:
        return convert(entry.value, option.hint, entry.where)
    items = entry.value if isinstance(entry.value, list) else [entry.value]
    return [convert(item, option.item, entry.where) for item in items]


def _resolve_class(option: str, entry: _Entry) -> type:
    return resolve_class(option, entry.value, entry.where)


def _describe(option: Option) -> str:
    return describe_type(option.item if option.item is not None else option.hint)
