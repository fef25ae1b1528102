"""The command line: wiring between arguments and the functions of the library, nothing else."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

import bmlr.data
import bmlr.methods
from bmlr._files import atomic_write
from bmlr._version import __version__
from bmlr.data import MultimodalData
from bmlr.data._preparers import prepare
from bmlr.data.inspection._report import InputReport, Inspection, inspect_data
from bmlr.data.inspection._sheet import contact_sheet
from bmlr.data.sets._table_files import ManifestOptions
from bmlr.data.store._options import PrepareOptions, PrepareResult
from bmlr.data.store._store import REJECTED
from bmlr.methods import Method

try:
    from jsonargparse import ArgumentError, ArgumentParser, Namespace
    from rich.console import Console
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    from bmlr import _commands_benchmark
    from bmlr.config import ModelOptions, OptimizerOptions, RunConfig, TrainerOptions, class_path, load_plain_yaml
    from bmlr.diagnosis import Diagnosis, diagnose_run, write_diagnosis
    from bmlr.report import Report, write_report
    from bmlr.runs import RunError
    from bmlr.training import NonFiniteLossError, evaluate_run, load_run, predict_run, train
    from bmlr.training._trainer import is_first_process
except ModuleNotFoundError as missing:
    raise SystemExit(f'bmlr: error: {missing.name} is not installed. Run: pip install "bmlr[train]"') from missing

# What a user can have caused; everything else is a fault of ours and keeps its traceback.
_EXPECTED = (ValueError, FileNotFoundError, NotADirectoryError, PermissionError, RunError, NonFiniteLossError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0, or 2 after one sentence about what was wrong."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = ArgumentParser(
        prog="bmlr", description="Balanced multimodal learning.", version=__version__, exit_on_error=False
    )
    commands = parser.add_subcommands(required=True)
    for name, (function, _) in _COMMANDS.items():
        commands.add_subcommand(name, _make_command(name, function), help=_first_line(function))
    try:
        _check_settings(arguments)
        arguments = _full_names(_with_values(_with_data_option(arguments)))
        namespace = parser.parse_args(arguments)
        chosen = parser.instantiate(namespace)
        name = chosen.subcommand
        given = chosen[name]
        given.pop("config", None)
        if module := given.pop("import", None):
            _import(module)
        function, show = _COMMANDS[name]
        show(function(**_as_arguments(given)))
    except ArgumentError as error:
        return _fail(_one_sentence(str(error)))
    except _EXPECTED as error:
        return _fail(" ".join(str(error).split()))
    except OSError as error:  # a full disk or one that fails; what a program may have done wrong is of other kinds
        return _fail(" ".join(str(error).split()))
    except RecursionError:
        return _fail("a file is nested too deeply to be what it should be.")
    except KeyboardInterrupt:
        return _fail("interrupted; a training run continues with --resume, everything else with the same command.")
    return 0


def _check_settings(arguments: Sequence[str]) -> None:
    """Raise a ValueError for a file of settings that is more than plain YAML: the parser expands aliases."""
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        name, _, value = argument.partition("=")
        path = Path(value or following)
        if name == "--config" and path.is_file():
            try:
                load_plain_yaml(path.read_text(encoding="utf-8"))
            except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
                raise ValueError(f"{path} is not a YAML file: {' '.join(str(error).split())}") from error


def _make_command(name: str, function: Callable[..., Any]) -> ArgumentParser:
    """The parser of a command."""
    command = ArgumentParser(description=_first_line(function), exit_on_error=False)
    if name == "train":
        command.add_argument("--config", action="config", help="YAML file with any of these options.")
    if name in _commands_benchmark.COMMANDS:
        _commands_benchmark.add_arguments(name, function, command)
    else:
        command.add_function_arguments(
            function,
            as_positional=name not in {"train", "methods", "inspect"},
            skip={"files", "directories", "results"},
        )
    if name == "predict":
        command.add_argument("files", nargs="+", help="One file per modality, as PATH or MODALITY=PATH.")
    if name == "report":
        command.add_argument("directories", nargs="+", metavar="RUN", help="Run, or folder that holds runs.")
        text = "Folders that bmlr reproduce or tune wrote, whose tables and figures are shown too."
        command.add_argument("--results", nargs="+", type=str, metavar="FOLDER", help=text)
    if name not in _WITHOUT_RUN:
        command.add_argument("--import", metavar="MODULE", help="Import a module of yours, which runs its code.")
    return command


def train_command(
    data: MultimodalData,
    method: Method,
    model: ModelOptions = ModelOptions(),  # noqa: B008  (the parser reads defaults from the signature)
    optimizer: OptimizerOptions = OptimizerOptions(),  # noqa: B008
    trainer: TrainerOptions = TrainerOptions(),  # noqa: B008
    seed: int = 0,
    runs: Path = Path("runs"),
    run: Path | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """Train a model on a data set by a method.

    Args:
        data: Data set, by name (see its parameters with --data.help NAME).
        method: Method, by name (see its parameters with --method.help NAME).
        model: The model.
        optimizer: Optimiser and learning-rate schedule.
        trainer: How long and on what to train.
        seed: Seed of weights, order of samples and random transforms.
        runs: Folder in which the run's directory is made, named by its configuration.
        run: Directory of the run, in place of a named one in --runs.
        resume: Continue an interrupted run.
    """
    result = train(data, method, model, optimizer, trainer, seed=seed, runs=runs, run=run, resume=resume)
    return {"directory": str(result.directory), "reused": result.reused, **result.content}


def evaluate_command(
    run: Path, split: Literal["train", "val", "test"] = "test", weights: Literal["best", "last"] = "best"
) -> dict[str, Any]:
    """Score the weights of a finished or interrupted run.

    Args:
        run: Directory of the run.
        split: Split of the data.
        weights: Those of the epoch selected on validation, or the last.
    """
    return {
        "run": str(run),
        "split": split,
        "weights": weights,
        **evaluate_run(run, split=split, weights=weights).as_dict(),
    }


def diagnose_command(
    run: Path,
    split: Literal["train", "val", "test"] = "val",
    weights: Literal["best", "last"] = "best",
    probe: bool = False,
    out: Path | None = None,
) -> tuple[Diagnosis, list[Path]]:
    """Say which modality of a run is undertrained, on what numbers, and what could be tried.

    Args:
        run: Directory of the run.
        split: Split of the data; the test split is for one final reading.
        weights: Those of the epoch selected on validation, or the last.
        probe: Train every modality alone too, which takes about as long as the run: only this tells an undertrained
            modality from one that says little.
        out: Folder for diagnosis.json, diagnosis.md and figures; by default "diagnosis" in the run's directory.
    """
    diagnosis = diagnose_run(
        run, split=split, weights=weights, probe=probe, progress=lambda line: print(line, file=sys.stderr)
    )
    return diagnosis, write_diagnosis(diagnosis, run / "diagnosis" if out is None else out)


def predict_command(
    run: Path, *, files: list[str], weights: Literal["best", "last"] = "best", json: bool = False
) -> dict[str, Any]:
    """Predict the class of one new sample from a file per modality.

    Args:
        run: Directory of the run.
        files: One file per modality, as PATH or MODALITY=PATH.
        weights: Those of the epoch selected on validation, or the last.
        json: Print JSON with all classes.
    """
    config, _, _ = load_run(run, weights=weights)
    return {"probabilities": predict_run(run, _assign_files(config, files), weights=weights), "json": json}


def methods_command(format: Literal["table", "markdown", "json"] = "table") -> dict[str, Any]:  # noqa: A002
    """List the methods: name, paper, venue, family, cost of a step, default parameters.

    Args:
        format: A table for people, Markdown for documents, JSON for programs.
    """
    rows = []
    for name in bmlr.methods.available():
        method = bmlr.methods.get(name)
        info = dataclasses.asdict(method.info)
        rows.append({"name": name, **info, "parameters": method().hparams})
    return {"rows": rows, "format": format}


def prepare_command(data: str, source: Path, dest: Path, outside: bool = False, **options: Any) -> PrepareResult:
    """Decode a data set once, from what its publisher offers to a folder that training reads.

    Args:
        data: Name of the data set; manifest for a table of your own.
        source: Folder of the published files, or the table.
        dest: Folder in which the folder of the prepared data is made.
        outside: Let a table name files outside its folder.
        **options: Those of :class:`bmlr.data.store._options.PrepareOptions`, where the parser finds them.
    """
    chosen = PrepareOptions(**options)
    if outside:
        if data != "manifest":
            raise ValueError(f"Option --outside is for manifest only. Found {data}.")
        chosen = ManifestOptions(**vars(chosen), outside=True)
    return prepare(data, source, dest, chosen)


def inspect_command(
    data: MultimodalData,
    sheet: Path | None = None,
    split: Literal["train", "val", "test"] = "train",
    per_class: int = 4,
    samples: int | None = None,
    json: bool = False,
) -> dict[str, Any]:
    """Look through a data set: counts, leakage, missing modalities, values, durations; and an image of samples.

    Args:
        data: Data set, by name, right after the command (see its parameters with --data.help NAME).
        sheet: File of the image, PNG; None for inspect-NAME.png in the working directory.
        split: Split whose samples are in the image.
        per_class: Samples of each class in the image.
        samples: Samples per split whose values are read; None reads all.
        json: Print JSON.
    """
    found = inspect_data(data, samples=samples, progress=sys.stderr.isatty())
    figure = contact_sheet(data, split=split, per_class=per_class)
    path = sheet or Path(f"inspect-{data.name}.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, lambda temporary: figure.savefig(temporary, format="png"))
    return {"found": found, "sheet": str(path), "json": json}


def report_command(
    *,
    directories: list[str],
    results: list[str] | None = None,
    out: Path = Path("report.html"),
    baseline: str | None = None,
    title: str | None = None,
) -> Report:
    """Write one HTML page about runs, which opens offline: tables, curves, figures, and what was left out.

    Args:
        directories: Runs, or folders that hold runs.
        results: Folders that bmlr reproduce or tune wrote, whose tables and figures are shown too.
        out: The page; an existing one is replaced.
        baseline: Method the differences are to; joint training if left out, where there are runs of it.
        title: Title of the page.
    """
    given = {"--results": results, "--out": [str(out)], "--baseline": [baseline], "--title": [title]}
    options = [text for name, values in given.items() if values and values[0] is not None for text in (name, *values)]
    return write_report(
        directories, out, results=results or (), baseline=baseline, title=title,
        command=shlex.join(["bmlr", "report", *directories, *options]),
    )  # fmt: skip


def _assign_files(config: RunConfig, files: Sequence[str]) -> dict[str, Path]:
    """Which file is which modality: as said, or by its suffix."""
    modalities = config.model_data.modalities
    assigned: dict[str, Path] = {}
    for text in files:
        name, separator, path = text.partition("=")
        if not (separator and name in modalities):
            path = text
            kind = _KINDS.get(Path(text).suffix.lower())
            matching = [name for name, modality in modalities.items() if modality.kind == kind]
            if len(matching) != 1:
                raise ValueError(
                    f"`files`: cannot tell the modality of {text} by its suffix. "
                    f"Write MODALITY={text} with one of {', '.join(modalities)}."
                )
            name = matching[0]
        if name in assigned:
            raise ValueError(f"`files` should hold one file per modality. Found two of '{name}'.")
        assigned[name] = Path(path)
    return assigned


_SUFFIXES = {
    "spectrogram": (".wav", ".flac", ".ogg", ".mp3"),
    "frames": (".mp4", ".flv", ".avi", ".mkv", ".webm", ".mov", ".m4v"),
    "image": (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"),
}
_KINDS = {suffix: kind for kind, suffixes in _SUFFIXES.items() for suffix in suffixes}


def _show_train(result: dict[str, Any]) -> None:
    if not is_first_process():  # the others of a distributed run have the same to say
        return
    _print_scores(
        f"{result['method']} on {result['data']} ({result['protocol']} protocol), seed {result['seed']}",
        {f"test, epoch {result['best_epoch'] + 1} (selected on validation)": result["test"]}
        | ({"test, last epoch": result["test_last_epoch"]} if "test_last_epoch" in result else {})
        | ({"test, best epoch on test (optimistic)": result["test_best_epoch"]} if "test_best_epoch" in result else {})
        | {f"validation, epoch {result['best_epoch'] + 1}": result["validation"]},
    )
    if result["reused"]:
        print("The run was finished before; nothing was trained.")
    print(f"majority rate {result['majority_rate']:.4f}, {result['seconds']:.1f} s, {result['directory']}")


def _show_diagnose(result: tuple[Diagnosis, list[Path]]) -> None:
    diagnosis, written = result
    console = Console(width=None if Console().is_terminal else 200)
    for table in diagnosis.tables():
        console.print(table)
    console.print(diagnosis.caption, style="dim", highlight=False, markup=False)
    console.print(Panel(Text(diagnosis.paragraph), title="verdict"))
    print("\n".join(map(str, written)))


def _show_evaluate(result: dict[str, Any]) -> None:
    _print_scores(str(result["run"]), {f"{result['split']}, {result['weights']} weights": result})


def _show_predict(result: dict[str, Any]) -> None:
    probabilities: dict[str, dict[str, float]] = result["probabilities"]
    if result["json"]:
        print(json.dumps(probabilities, indent=2))
        return
    table = Table("from", "class", "probability", "next")
    for name, values in probabilities.items():
        ranked = sorted(values.items(), key=lambda item: -item[1])
        rest = ", ".join(f"{label} {value:.3f}" for label, value in ranked[1:3])
        table.add_row(name, ranked[0][0], f"{ranked[0][1]:.3f}", rest)
    Console().print(table)


def _show_methods(result: dict[str, Any]) -> None:
    rows = result["rows"]
    if result["format"] == "json":
        print(json.dumps(rows, indent=2))
        return
    heads = ("name", "paper", "venue", "family", "cost", "parameters")
    cells = [
        [", ".join(f"{key}={value}" for key, value in row[head].items()) if head == "parameters" else row[head]
         for head in heads]
        for row in rows
    ]  # fmt: skip
    if result["format"] == "markdown":
        for line in (heads, ["---"] * len(heads), *cells):
            print(f"| {' | '.join(line)} |")
        return
    table = Table(*heads, show_lines=True)
    for line in cells:
        table.add_row(*line)
    Console(width=None if Console().is_terminal else 200).print(table)


def _show_report(result: Report) -> None:
    for run in result.excluded:
        print(f"left out, {run.state}: {run.directory}: {run.reason}", file=sys.stderr)
    counts = f"methods: {result.methods}, runs: {result.runs}, left out: {len(result.excluded)}"
    print(f"{'; '.join(result.sections)} ({counts})")
    print(result.path)


def _show_prepare(result: PrepareResult) -> None:
    heads = [split or "no published split" for split in result.counts]
    table = Table("class", *heads)
    for label in result.classes:
        table.add_row(label, *(str(counts[label]) for counts in result.counts.values()))
    table.add_section()
    table.add_row("all", *(str(sum(counts.values())) for counts in result.counts.values()))
    Console().print(table)
    stored = sum(sum(counts.values()) for counts in result.counts.values())
    reasons = f", listed with reasons in {result.folder / REJECTED}" if result.rejected else ""
    print(f"{len(result.classes)} classes, {stored} samples, {len(result.rejected)} rejected{reasons}")
    for note in result.notes:
        print(note)
    print(f"{result.decoded} read by this call" if result.decoded else "All was prepared before; nothing was read.")
    print(result.folder)


def _show_inspect(result: dict[str, Any]) -> None:
    found: Inspection = result["found"]
    if result["json"]:
        print(json.dumps({**found.as_dict(), "sheet": result["sheet"]}, indent=2))
        return
    console = Console(width=None if Console().is_terminal else 120)
    counts = Table("class", title=f"{found.data}, {found.protocol} protocol")
    for name in found.splits:
        counts.add_column(name, justify="right")
    for label in found.classes:
        counts.add_row(label, *(str(split.counts[label]) for split in found.splits.values()))
    counts.add_section()
    counts.add_row("all", *(str(split.samples) for split in found.splits.values()))
    counts.add_row("majority rate", *(f"{split.majority_rate:.4f}" for split in found.splits.values()))
    counts.add_row("groups", *("–" if split.groups is None else str(split.groups) for split in found.splits.values()))
    console.print(counts)
    inputs = Table("modality", "split", "missing", "values", "mean ± deviation", "NaN, inf", *_lengths_known(found))
    for modality, form in found.modalities.items():
        title = f"{modality}: {form.kind} {'×'.join(map(str, form.shape))}"
        for name, split in found.splits.items():
            inputs.add_row(title, name, *_input_cells(split.inputs[modality], _lengths_known(found)))
            title = ""
    console.print(inputs)
    if any(split.looked_at < split.samples for split in found.splits.values()):
        read = ", ".join(f"{split.looked_at} of {split.samples} ({name})" for name, split in found.splits.items())
        print(f"Values were read of a sample only: {read}.")
    for remark in found.remarks:
        print(remark)
    if found.alarms:
        console.print(Panel("\n".join(found.alarms), title="WARNING", style="bold red"), markup=False)
    print(f"Samples of each class are shown in {result['sheet']}")


def _lengths_known(found: Inspection) -> list[str]:
    """Which lengths there are to be shown."""
    inputs = [about for split in found.splits.values() for about in split.inputs.values()]
    return [what for what in ("steps", "seconds") if any(getattr(about, what) for about in inputs)]


def _input_cells(found: InputReport, lengths: Sequence[str]) -> list[str]:
    """Cells of the table of inputs."""
    values = "–" if found.least is None else f"{found.least:.3g} … {found.most:.3g}"
    mean = "–" if found.mean is None else f"{round(found.mean, 3) + 0:.3f} ± {found.deviation:.3g}"
    spreads = [getattr(found, what) for what in lengths]
    ranges = ["–" if s is None else f"{s.least:.4g} … {s.median:.4g} … {s.most:.4g}" for s in spreads]
    return [f"{100 * found.missing:.1f} %", values, mean, f"{found.nan}, {found.infinite}", *ranges]


def _print_scores(title: str, scores: dict[str, dict[str, Any]]) -> None:
    first = next(iter(scores.values()))
    heads = ["split", "fused", *first["unimodal_accuracy"], *(f"ratio {pair}" for pair in first["ratio"])]
    rows = [
        [
            name,
            f"{score['accuracy']:.4f}",
            *(f"{value:.4f}" for value in score["unimodal_accuracy"].values()),
            *("–" if value is None else f"{value:.3f}" for value in score["ratio"].values()),
        ]
        for name, score in scores.items()
    ]
    if len(first["unimodal_accuracy"]) > 2:  # the ratios of all pairs are too many columns for a terminal
        heads, *rows = ([*line] for line in zip(heads, *rows, strict=True))
    table = Table(*heads, title=title)
    for row in rows:
        table.add_row(*row)
    Console().print(table)


_COMMANDS: dict[str, tuple[Callable[..., Any], Callable[[Any], None]]] = {
    "train": (train_command, _show_train),
    "evaluate": (evaluate_command, _show_evaluate),
    "diagnose": (diagnose_command, _show_diagnose),
    "predict": (predict_command, _show_predict),
    "methods": (methods_command, _show_methods),
    "prepare": (prepare_command, _show_prepare),
    "inspect": (inspect_command, _show_inspect),
    "report": (report_command, _show_report),
    **_commands_benchmark.COMMANDS,
}

#: Commands that read no run, whose classes of the user's are imported by their names or not at all.
_WITHOUT_RUN = {"train", "methods", "prepare", "inspect", "report", *_commands_benchmark.COMMANDS}


#: Options that may stand alone, as in --resume, where the parser wants --resume true.
_SWITCHES = {
    "--resume",
    "--json",
    "--outside",
    "--probe",
    "--force",
    "--trainer.compile",
    "--trainer.progress",
    "--trainer.gradients",
}


def _with_values(arguments: list[str]) -> list[str]:
    """The arguments with "true" after every switch that stands alone."""
    completed = []
    for argument, following in zip(arguments, [*arguments[1:], "--"], strict=True):
        completed.append(argument)
        if argument in _SWITCHES and following.casefold() not in {"true", "false", "yes", "no"}:
            completed.append("true")
    return completed


def _with_data_option(arguments: list[str]) -> list[str]:
    """``inspect DATA`` as ``inspect --data DATA``: the parser takes parameters of classes with options only."""
    if arguments[:1] == ["inspect"] and len(arguments) > 1 and not arguments[1].startswith("-"):
        return ["inspect", "--data", *arguments[1:]]
    return arguments


def _import(module: str) -> None:
    """Import a module of the user's from where Python finds it, or from the working directory."""
    _find_modules_here()
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"Option --import: {module} cannot be imported: {error}.") from error


def _find_modules_here() -> None:
    """Let Python find modules in the working directory too, after all others, as ``python -m bmlr`` does."""
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)


def _full_names(arguments: list[str]) -> list[str]:
    """Replace names of data sets and methods by the paths of their classes; unknown ones raise with the nearest."""
    arguments = [_underscored(argument) for argument in arguments]
    changed = list(arguments)
    for position, argument in enumerate(arguments):
        option, separator, value = argument.partition("=")
        base = re.fullmatch(r"--(data|method)(\.help|\.class_path)?", option)
        if option == "--config":
            _check_config(Path(value if separator else (arguments[position + 1 :] or [""])[0]))
        if base is None or (not separator and position + 1 >= len(arguments)):
            continue
        path = _class_of(base[1], value if separator else arguments[position + 1])
        if separator:
            changed[position] = f"{option}={path}"
        else:
            changed[position + 1] = path
    return changed


def _underscored(argument: str) -> str:
    """An option as the parser knows it: both --train-list and --train_list are taken."""
    option, separator, value = argument.partition("=")
    return (
        f"--{option[2:].replace('-', '_')}{separator}{value}" if re.fullmatch(r"--[a-z][\w.-]*", option) else argument
    )


def _class_of(base: str, name: str) -> str:
    """Path of the class of a registered name; names with a dot are paths already."""
    if "." in name:
        if not name.startswith("bmlr."):
            _find_modules_here()
        return name
    if base == "method":
        return class_path(bmlr.methods.get(name))
    if name in bmlr.data.class_names():
        return f"bmlr.data.{name}"
    return class_path(bmlr.data.get(name))


def _check_config(path: Path) -> None:
    """Say clearly what is wrong with the names in a configuration file, before the parser says it at length."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no configuration file {path}.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a YAML file: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} should hold options by name. Found {type(content).__name__}.")
    for base in ("data", "method"):
        entry = content.get(base)
        name = entry.get("class_path") if isinstance(entry, dict) else entry
        if isinstance(name, str):
            _class_of(base, name)


def _as_arguments(given: Namespace) -> dict[str, Any]:
    return {name: Path(str(value)) if isinstance(value, os.PathLike) else value for name, value in vars(given).items()}


def _one_sentence(message: str) -> str:
    """The innermost of the parser's nested messages, on one line."""
    line = " ".join(piece.strip(" -") for piece in message.split("\n"))
    line = re.sub(r"\s+", " ", line).strip()
    line = re.sub(r"<class '([\w.]+)'>", r"\1", line)
    union = re.search(r'Parser key "([\w.]+)": .*?Subtypes: \[([^]]*)\].*Given value: (.*)', line)
    if union:
        key, types, value = union.groups()
        return f"Option --{key} should be of type {types.replace(', ', ' or ')}. Found {value}."
    return re.sub(r'^Parser key "(\w+)": Problem with given class_path \'[\w.]+\': ', r"Option --\1: ", line)


def _first_line(function: Callable[..., Any]) -> str:
    return (function.__doc__ or "").partition("\n")[0]


def _fail(message: str) -> int:
    print(f"bmlr: error: {message}", file=sys.stderr)
    return 2
