"""``bmlr report``: runs as one page."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from bmlr._files import check_output


def execute(
    *,
    runs: list[Path],
    results: list[Path] | None = None,
    out: Path = Path("report.html"),
    baseline: str | None = None,
    title: str | None = None,
) -> None:
    """Write runs as one offline HTML page.

    Example:
        bmlr report runs --out report.html

    Args:
        runs: Runs, or folders that hold runs.
        results: Folders written by bmlr reproduce or tune, whose tables and figures are shown too.
        out: File of the page; an existing one is replaced.
        baseline: Method the differences are to; by default joint training, where there are runs of it.
        title: Title of the page.
    """
    check_output("--out", out, is_folder=False)
    from bmlr.report import write_report

    values: dict[str, list[str]] = {
        "--results": [str(folder) for folder in results or ()],
        "--out": [str(out)],
        "--baseline": [] if baseline is None else [baseline],
        "--title": [] if title is None else [title],
    }
    options = [text for name, texts in values.items() if texts for text in (name, *texts)]
    report = write_report(
        runs, out, results=results or (), baseline=baseline, title=title,
        command=shlex.join(["bmlr", "report", *map(str, runs), *options]),
    )  # fmt: skip
    begun = [run for run in report.excluded if run.is_begun]
    for run in report.excluded:
        state = run.state if run.is_begun else f"left out, {run.state}"
        print(f"{state}: {run.directory}: {run.reason}", file=sys.stderr)
    counts = {"methods": report.methods, "runs": report.runs, "not finished": len(begun)}
    counts["left out"] = len(report.excluded) - len(begun)
    shown = ", ".join(f"{name}: {number}" for name, number in counts.items())
    print(f"{'; '.join(report.sections) or 'no finished run'} ({shown})")
    print(report.path)
