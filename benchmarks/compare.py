"""Train methods on a data set with several seeds; print the table of their test results and draw their curves.

Finished runs are kept: a second start of the same command trains what is missing and prints the same table.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt

from bmlr import figures, methods


def main() -> None:
    """Read the arguments, train what is missing, show the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--methods",
        nargs="+",
        required=True,
        help="names; with parameters as in LFM:mode=bb, with epochs of their own as in ReconBoost:t1=1,t2=1@7",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--processes", type=int, default=2, help="runs at a time")
    parser.add_argument("--table", type=Path, help="also write the table to this file")
    parser.add_argument("--figure", type=Path, help="draw accuracy per epoch to this file")
    arguments, options = parser.parse_known_args()

    environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // arguments.processes)), **os.environ}
    jobs = [(method, seed) for seed in arguments.seeds for method in arguments.methods]

    def work(job: tuple[str, int]) -> Path:
        return run(*job, arguments.runs, options, environment)

    with ThreadPoolExecutor(arguments.processes) as pool:
        directories = dict(zip(jobs, pool.map(work, jobs), strict=True))
    results = {method: [directories[method, seed] for seed in arguments.seeds] for method in arguments.methods}
    table = format_table(results)
    print(table)
    if arguments.table:
        arguments.table.write_text(table + "\n", encoding="utf-8")
    if arguments.figure:
        draw(results, arguments.figure)


def run(method: str, seed: int, runs: Path, options: list[str], environment: dict[str, str]) -> Path:
    """Train once through the command line, unless the run is finished; return its directory."""
    specification, _, epochs = method.partition("@")
    name, _, parameters = specification.partition(":")
    given = [f"--method.{item}" for item in parameters.split(",") if item]
    if epochs:
        options = [*options, "--trainer.epochs", epochs]
    directory = runs / f"{re.sub('[:,@=]', '-', method)}-seed{seed}"
    command = [sys.executable, "-m", "bmlr", "train", "--method", name, *given, *options]
    command += ["--seed", str(seed), "--run", str(directory), "--resume", "true", "--trainer.progress", "false"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    print(f"{directory.name} done", file=sys.stderr, flush=True)
    return directory


def format_table(results: dict[str, list[Path]]) -> str:
    """Mean ± standard deviation over seeds, as a Markdown table; best fused accuracy bold."""
    contents = {
        method: [json.loads((run / "result.json").read_text(encoding="utf-8")) for run in runs]
        for method, runs in results.items()
    }
    first = next(iter(contents.values()))[0]
    modalities, pairs = list(first["test"]["unimodal_accuracy"]), list(first["test"]["ratio"])
    best = max(contents, key=lambda method: np.mean([r["test"]["accuracy"] for r in contents[method]]))
    heads = ["method", "fused (%)", *(f"{m} (%)" for m in modalities), *(f"ratio {p}" for p in pairs)]
    heads += ["data passes", "minutes"]
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for method, runs in contents.items():
        fused = spread([100 * r["test"]["accuracy"] for r in runs])
        cells = [title(method), f"**{fused}**" if method == best else fused]
        cells += [spread([100 * r["test"]["unimodal_accuracy"][m] for r in runs]) for m in modalities]
        cells += [spread([r["test"]["ratio"][p] or np.nan for r in runs], digits=2) for p in pairs]
        cells += [f"{runs[0]['data_passes']:g}", f"{np.mean([r['seconds'] for r in runs]) / 60:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    note = (
        f"Test part, {first['samples']['test']} samples, {first['protocol']} protocol, epoch selected on validation; "
        f"mean ± standard deviation over {len(next(iter(contents.values())))} seeds. "
        f"Majority rate {100 * first['majority_rate']:.1f} %."
    )
    return "\n".join([*lines, "", note])


def title(method: str) -> str:
    """Name in the literature, with the parameters that were set."""
    name, _, parameters = method.partition("@")[0].partition(":")
    known = methods.get(name).info.title
    return f"{known} ({parameters.replace(',', ', ')})" if parameters else known


def spread(values: list[float], digits: int = 1) -> str:
    """Mean ± sample standard deviation."""
    deviation = np.std(values, ddof=1) if len(values) > 1 else 0.0
    return f"{np.mean(values):.{digits}f} ± {deviation:.{digits}f}"


def draw(results: dict[str, list[Path]], path: Path) -> None:
    """A panel per method: accuracy per epoch, mean and deviation over seeds."""
    columns = min(4, len(results))
    rows = -(-len(results) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(3.6 * columns, 3 * rows), sharex=True, sharey=True, layout="constrained", squeeze=False
    )
    for ax in axes.flat[len(results) :]:
        ax.set_visible(False)
    for (method, runs), ax in zip(results.items(), axes.flat, strict=False):
        metrics: dict[str, Any] = {run.name: figures.read_metrics(run) for run in runs}
        figures.plot_accuracy(metrics, ax).set_title(title(method), fontsize=10)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
