"""The HTML page of a report."""

from __future__ import annotations

import base64
import dataclasses
import datetime as dt
import hashlib
import io
import os
import shlex
import struct
import urllib.parse
import warnings
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd

from bmlr import figures
from bmlr._checks import nearest_name
from bmlr._files import atomic_write_text, parse_json
from bmlr._version import __version__
from bmlr.benchmark.contents import FigureFile, read_contents
from bmlr.figures.style import RATIO_STEPS, save
from bmlr.report._classes import make_class_tables
from bmlr.report._curves import section_curves, section_measures
from bmlr.report._differences import conclude, differences_to
from bmlr.report._export import export_table
from bmlr.report._sections import ExcludedRun, MethodGroup, Section, exclude_run, make_sections, methods_text
from bmlr.report._tables import method_table, metric_table, run_table, sortable
from bmlr.runs import RunRecord, find_runs
from bmlr.runs.layout import CONFIG, DIAGNOSIS


@dataclasses.dataclass(frozen=True)
class Report:
    """A written report.

    Attributes:
        path: The page.
        sections: Headings of its sections.
        methods: Number of methods.
        runs: Number of runs in its numbers.
        excluded: Runs without a result and folders that were left out, with the reason.
    """

    path: Path
    sections: tuple[str, ...]
    methods: int
    runs: int
    excluded: tuple[ExcludedRun, ...]


def write_report(
    runs: Iterable[Path | str],
    out: Path | str = "report.html",
    *,
    results: Iterable[Path | str] = (),
    baseline: str | None = None,
    title: str | None = None,
    command: str = "",
) -> Report:
    """Write a page about runs, readable offline from one file.

    Runs on the same data under the same protocol are compared in one section. Runs of one method with the same settings
    are its seeds, shown by mean and sample standard deviation. Runs that are running, stopped or failed are listed with
    the epoch they reached, others that cannot be used with the reason.

    Args:
        runs: Directories of runs, or folders that hold runs.
        out: The page, a file named .html; an existing one is replaced.
        results: Folders that :func:`bmlr.reproduction.reproduce` or :func:`bmlr.benchmark.tune` wrote: their tables and
            figures are shown below the runs.
        baseline: Method that the others are compared with, by its name in the page or of its class; joint training if
            left out, where there are runs of it.
        title: Title of the page.
        command: What made the report, to be shown in it.

    Raises:
        FileNotFoundError: If a path does not exist, or a folder of results has no ``contents.json``.
        ValueError: If there is no run, the message says why, no method is the baseline, a folder of results is damaged,
            or ``out`` is not the name of a page.
    """
    out = Path(out)
    if out.suffix.lower() not in {".html", ".htm"} or out.is_dir():
        raise ValueError(f"`out` should be a file named .html. Found {str(out)!r}.")
    finished, excluded = _read_finished(runs)
    sections, repeated = make_sections(finished)
    excluded += repeated
    counted = len(finished) - len(repeated)
    _check_baseline(baseline, sections)
    methods = len({group.label for section in sections for group in section.groups})
    curves = [section_curves(section) for section in sections]
    groups = [group for section in sections for group in section.groups]
    heading = "Runs without a result yet"
    if groups:
        heading = f"Comparison of {methods_text(groups)}" if methods > 1 else f"Runs of {groups[0].label}"
    content = {
        "title": title or heading,
        "sections": [
            _section_content(section, measures, baseline, out)
            for section, measures in zip(sections, curves, strict=True)
        ],
        "results": [_results_content(Path(folder)) for folder in results],
        "begun": [(run, _folder_link(run.directory, out)) for run in excluded if run.is_begun],
        "excluded": [run for run in excluded if not run.is_begun],
        "runs": counted,
        "curves": {"sections": curves, "ratio_steps": RATIO_STEPS},
        "command": command,
        "version": __version__,
        "created": dt.datetime.now(dt.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
    content["exports"] = _exports(content)
    out.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(out, _render(content))
    return Report(out, tuple(section.heading for section in sections), methods, counted, tuple(excluded))


def _read_finished(paths: Iterable[Path | str]) -> tuple[list[RunRecord], list[ExcludedRun]]:
    """Finished runs, and the others with the reason of exclusion."""
    records = find_runs(paths)
    finished = [record for record in records if record.state == "finished"]
    excluded = [exclude_run(record) for record in records if record.state != "finished"]
    if not records:
        raise ValueError("`runs` should name at least one run or folder of runs. Found none.")
    if not finished and not any(run.is_begun for run in excluded):
        more = f" {len(excluded) - 1} more have none either." if len(excluded) > 1 else ""
        raise ValueError(f"There is no run to report. {records[0].directory}: {excluded[0].reason}{more}")
    return finished, excluded


def _exports(content: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Texts of all tables to copy and save, by identifier."""
    exports = {}
    for number, section in enumerate(content["sections"]):
        heading, classes = section["section"].heading, section["classes"]
        tables = {"methods": section["table"], "runs": section["run_table"]}
        tables |= {"metrics": section["metrics"]} if section["metrics"] is not None else {}
        tables |= {"classes": classes.accuracy} if classes.accuracy is not None else {}
        for index, method in enumerate(classes.methods):
            tables |= {f"classes-{index}": method.accuracy, f"confusion-{index}": method.confusion}
        for name, table in tables.items():
            exports[f"{name}-{number}"] = export_table(table, f"{heading} {table.title or name}")
    for number, result in enumerate(content["results"]):
        for index, item in enumerate(result["items"]):
            if "table" in item:
                exports[f"results-{number}-{index}"] = export_table(
                    item["table"], item["table"].title or result["title"]
                )
    return exports


def _render(content: dict[str, Any]) -> str:
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_printable
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}
    files = resources.files("bmlr.report")
    texts = {name: (files / f"page.{name}").read_text(encoding="utf-8").strip() for name in ("css", "js")}
    # Only this style and this script act in the page and nothing is fetched, even if the escaping had a hole.
    hashes = {name: f"sha256-{_base64(hashlib.sha256(text.encode()).digest())}" for name, text in texts.items()}
    template = environment.from_string((files / "page.html.jinja").read_text(encoding="utf-8"))
    return template.render(**content, **texts, hashes=hashes)


def _printable(value: Any) -> Any:
    """Escape what UTF-8 cannot hold.

    A name that is no UTF-8 has such halves of code points.
    """
    if hasattr(value, "__html__") or not isinstance(value, str | os.PathLike):
        return value
    return os.fspath(value).encode("utf-8", "backslashreplace").decode()


def _folder_link(directory: Path, out: Path) -> str:
    """Address of a run's folder, relative to the page."""
    try:
        relative = os.path.relpath(directory, out.parent)
    except ValueError:  # on another drive
        return directory.absolute().as_uri()
    return urllib.parse.quote(os.fsencode(relative).replace(os.fsencode(os.sep), b"/")) + "/"


def _check_baseline(baseline: str | None, sections: Sequence[Section]) -> None:
    """Raise if no section has the baseline; some sections may lack it."""
    labels = {group.label: None for section in sections for group in section.groups}
    if sections and baseline is not None and all(_find_baseline(section, baseline) is None for section in sections):
        raise ValueError(
            f"`baseline` should be one of {', '.join(labels)}. Found {baseline!r}.{nearest_name(baseline, labels)}"
        )


def _find_baseline(section: Section, baseline: str | None) -> MethodGroup | None:
    """First method with a title or class; joint by default."""
    name = "Joint" if baseline is None else baseline
    by_label = [group for group in section.groups if group.label == name]
    by_class = [group for group in section.groups if group.runs[0].finished_result["method"] == name]
    return next(iter(by_label or by_class), None)


def _results_content(folder: Path) -> dict[str, Any]:
    """Tables and figures of a folder, the figures as data URIs."""
    contents = read_contents(folder)
    items: list[dict[str, Any]] = []
    for item in contents.items:
        if isinstance(item, FigureFile):
            source, wide = _read_image(item.file)
            items.append({"caption": item.caption, "source": source, "wide": wide})
        else:
            items.append({"table": sortable(item)})
    return {"title": contents.title, "folder": folder, "items": items, "notes": contents.notes}


def _read_image(path: Path) -> tuple[str, bool]:
    """Data URI of a PNG file, and whether it is wide."""
    content = path.read_bytes()
    if not content.startswith(b"\x89PNG\r\n\x1a\n") or len(content) < 24:
        raise ValueError(f"{path} is not a PNG file.")
    width, height = struct.unpack(">II", content[16:24])
    return f"data:image/png;base64,{_base64(content)}", width > 1.5 * height


def _section_content(
    section: Section, curves: Mapping[str, Any], baseline_name: str | None, out: Path
) -> dict[str, Any]:
    baseline = _find_baseline(section, baseline_name)
    differences = differences_to(section, baseline)
    methods, runs_table = method_table(section, baseline, differences), run_table(section)
    classes = make_class_tables(section)
    runs = [(group, run) for group in section.groups for run in group.runs]
    return {
        "section": section,
        "conclusion": conclude(section, baseline, differences),
        "classes": classes,
        "diagnoses": [
            (group.label, run.config["seed"], text) for group, run in runs if (text := _read_diagnosis(run.directory))
        ],
        "table": methods,
        "rows": list(zip(section.groups, methods.rows, strict=True)),
        "metrics": metric_table(section),
        "run_table": runs_table,
        "run_rows": [
            {
                "group": group,
                "cells": cells,
                "config": (run.directory / CONFIG).read_text(encoding="utf-8"),
                "versions": run.finished_result.get("versions") or {},
                "directory": run.directory,
                "link": _folder_link(run.directory, out),
                "parameters": run.finished_result.get("parameters"),
                "remark": run.metrics_problem,
                "command": f"bmlr train --config {shlex.quote(str(run.directory / CONFIG))} --runs again",
            }
            for (group, run), cells in zip(runs, runs_table.rows, strict=True)
        ],
        "bars": _draw_bars(section),
        "measures": section_measures(curves),
    }


@dataclasses.dataclass(frozen=True)
class _Figure:
    """A figure as a data URI, with its caption and alternative text."""

    source: str
    caption: str
    alternative: str


def _read_diagnosis(directory: Path) -> str:
    """Verdict of the diagnosis in a run's directory, or ""."""
    try:
        content = parse_json((directory / DIAGNOSIS / "diagnosis.json").read_text(encoding="utf-8"))
        return str(content["verdict"]["paragraph"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""


def _draw_bars(section: Section) -> _Figure:
    """Bars of the test score of every method."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    form = section.form
    table = pd.DataFrame(
        {
            "method": group.label,
            form.name: run.finished_result["test"][form.name],
            **{
                f"{form.name}_{name}": run.finished_result["test"][f"unimodal_{form.name}"].get(name)
                for name in section.modalities
            },
        }
        for group in section.groups
        for run in group.runs
    )
    height = 0.9 + len(section.groups) * (0.15 * (1 + len(section.modalities)) + 0.15)
    who = f"{len(section.groups)} methods" if len(section.groups) > 1 else section.groups[0].label
    # A fixed salt: the same runs give the same bytes. Characters become outlines: the layout does not depend on fonts
    # where the page is read.
    with mpl.rc_context({"svg.hashsalt": "bmlr", "svg.fonttype": "path"}):
        figure = Figure(figsize=(7.2, height), layout="constrained")  # outside pyplot, which would keep it
        ax = figure.subplots()
        shown: dict[str, Any] = {"metric": form.name, "constant": section.constant, "label": f"test {form.label}"}
        figures.plot_methods(_numeric(table), **shown, ax=ax)
        return _Figure(
            _as_uri(figure),
            f"Test {form.title} of every method, in the epoch selected on validation",
            f"Bars of the test {form.title} of {who}, multimodal and for {' and '.join(section.modalities)}; "
            "the numbers are those of the table of methods.",
        )


def _numeric(table: pd.DataFrame) -> pd.DataFrame:
    numbers: pd.DataFrame = table.drop(columns="method").apply(pd.to_numeric)
    return numbers.assign(method=table["method"])


def _as_uri(figure: Any) -> str:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"A name in a figure has characters")  # the tables show them
        # A name longer than the figure: it is drawn, and runs out at the side.
        warnings.filterwarnings("ignore", message=r"constrained_layout not applied")
        save(figure, buffer, format="svg", transparent=True, metadata={"Date": None})
    return f"data:image/svg+xml;base64,{_base64(buffer.getvalue())}"


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
