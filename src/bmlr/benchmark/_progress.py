"""Lines about the runs of a grid while they go on."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bmlr._console import make_console
from bmlr.benchmark._jobs import Job
from bmlr.runs import read_metrics
from bmlr.runs.layout import LOG, METRICS
from bmlr.tables import format_duration
from bmlr.tasks import metric_form

if TYPE_CHECKING:
    from rich.live import Live

_PAUSE = 30.0  # seconds between two lines of a run where they cannot be refreshed


@dataclasses.dataclass
class _Watched:
    """A run under way, as its files show it.

    Attributes:
        job: Its job.
        title: Its name in lines.
        log: Time of the last change of its log before this grid; None without one.
        begun: When it began here; None before.
        epochs_before: Epochs that were done before that.
        metrics: Time of the last change of its metrics.
        epochs: Epochs done.
        score: Last validation score by the monitored metric, as text.
        said: When the last line was printed.
    """

    job: Job
    title: str
    log: int | None
    begun: float | None = None
    epochs_before: int = 0
    metrics: int | None = None
    epochs: int = 0
    score: str = "–"
    said: float = 0.0


class Progress:
    """Lines about the runs of a grid.

    In a terminal, a line per run under way is refreshed. Elsewhere one is printed now and then.

    Args:
        jobs: All jobs of the grid.
        runs: Folder of the runs.
        say: Takes the lines, in place of the error stream; those of runs under way are left out.
    """

    def __init__(self, jobs: Sequence[Job], runs: Path, say: Callable[[str], None] | None = None) -> None:
        self._runs, self._given = runs, say
        self._watched = {
            job.directory(runs): _Watched(job, title, _changed(job.directory(runs) / LOG))
            for job, title in zip(jobs, run_titles(jobs), strict=True)
        }
        self._live: Live | None = None

    def __enter__(self) -> Progress:
        console = make_console(stderr=True)
        if self._given is None and console.is_terminal:
            from rich.live import Live

            self._live = Live(console=console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def say(self, line: str) -> None:
        """Print a line that stays."""
        if self._given is not None:
            self._given(line)
        elif self._live is not None:
            self._live.console.print(line, soft_wrap=True)
        else:
            print_line(line)

    def end(self, job: Job, outcome: str) -> None:
        """Say how a run ended."""
        watched = self._watched.pop(job.directory(self._runs))
        self.say(f"{watched.title}: {outcome}")

    def show(self) -> None:
        """Show the runs under way."""
        if self._given is not None:
            return
        now = time.time()
        lines = []
        for directory, watched in self._watched.items():
            _look(watched, directory)
            if watched.begun is None:
                continue
            line = _line(watched, now)
            lines.append(line)
            if self._live is None and now - max(watched.said, watched.begun) >= _PAUSE:
                watched.said = now
                print_line(line)
        if self._live is not None:
            from rich.text import Text

            self._live.update(Text("\n".join(lines), no_wrap=True, overflow="ellipsis"), refresh=True)


def print_line(line: str) -> None:
    """Print a line to the error stream."""
    print(line, file=sys.stderr, flush=True)


def run_titles(jobs: Sequence[Job]) -> list[str]:
    """Names of runs in lines: place, label and seed, and what else tells them apart.

    Example:
        >>> import bmlr.data
        >>> from bmlr.benchmark.grid import make_jobs
        >>> run_titles(make_jobs(bmlr.data.create("digits"), ["Joint", "BMLR"], [0]))
        ['[1/2] Joint seed 0', '[2/2] BMLR seed 0']
    """
    several_data = len({job.config.data.name for job in jobs}) > 1
    several_fusions = len({job.config.model.fusion_name for job in jobs}) > 1
    titles = []
    for place, job in enumerate(jobs, start=1):
        words = [job.config.data.name] if several_data else []
        words += [job.label, f"({job.config.model.fusion_name})"] if several_fusions else [job.label]
        titles.append(job.title or f"[{place}/{len(jobs)}] {' '.join(words)} seed {job.config.seed}")
    return titles


def _look(watched: _Watched, directory: Path) -> None:
    """Read anew what has changed of a run."""
    if watched.begun is None:
        log = _changed(directory / LOG)
        if log is None or log == watched.log:
            return
        watched.begun = log / 1e9  # by the clock of files, which is behind that of the process by a few milliseconds
    metrics = _changed(directory / METRICS)
    if metrics is None or metrics == watched.metrics:
        return
    first, watched.metrics = watched.metrics is None and metrics / 1e9 < watched.begun, metrics
    table: Any = read_metrics(directory)
    watched.epochs = len(table)
    # The primary metric is the first of the table.
    names = [str(name).removeprefix("val_") for name in table if str(name).startswith("val_")]
    name = watched.job.config.trainer.monitor or next(iter(names), "")
    watched.score = metric_form(name).text(float(table[f"val_{name}"].iloc[-1])) if name in names else "–"
    if first:  # a resumed run
        watched.epochs_before = watched.epochs


def _line(watched: _Watched, now: float) -> str:
    epochs = watched.job.config.trainer.epochs or 0
    if not watched.epochs:
        return f"{watched.title}: epoch 1/{epochs}"
    texts = [f"epoch {watched.epochs}/{epochs}", f"val {watched.score}"]
    done = watched.epochs - watched.epochs_before
    if done and watched.metrics is not None and watched.begun is not None:
        pace = max(0.0, watched.metrics / 1e9 - watched.begun) / done
        left = max(0.0, pace * (epochs - watched.epochs) - (now - watched.metrics / 1e9))
        texts.append(f"{format_duration(left)} left")
    return f"{watched.title}: {', '.join(texts)}"


def _changed(path: Path) -> int | None:
    """Time of the last change of a file; None without one."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None
