"""Train Joint, UniformBaseline and BMLR on the embedded digits; print a table and draw accuracy per epoch."""

from __future__ import annotations

import argparse
from pathlib import Path

from matplotlib import pyplot as plt
from rich.console import Console
from rich.table import Table

from bmlr import figures
from bmlr.data import create as create_data
from bmlr.methods import create as create_method
from bmlr.runs import read_metrics
from bmlr.training import train

METHODS = ("Joint", "UniformBaseline", "BMLR")


def main() -> None:
    """Run the demonstration."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder of runs and figure")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    figure, axes = plt.subplots(1, len(METHODS), figsize=(3 * len(METHODS), 2.7), sharey=True, layout="constrained")
    table: Table | None = None
    for name, ax in zip(METHODS, axes, strict=True):
        print(f"== {name}", flush=True)
        method = create_method(name)
        result = train(create_data("digits"), method, seed=arguments.seed, runs=arguments.out, resume=True)
        test = result.content["test"]
        if table is None:
            title = f"digits, test split, seed {arguments.seed} (majority rate {result.content['constant_score']:.3f})"
            unimodal = [f"{modality} (%)" for modality in test["unimodal_accuracy"]]
            table = Table(
                "method", "multimodal (%)", *unimodal, *(f"ratio {p}" for p in test["ratio"]), "seconds", title=title
            )
        table.add_row(
            name,
            f"{100 * test['accuracy']:.1f}",
            *(f"{100 * value:.1f}" for value in test["unimodal_accuracy"].values()),
            *("–" if value is None else f"{value:.2f}" for value in test["ratio"].values()),
            f"{result.content['seconds']:.0f}",
        )
        figures.plot_scores(read_metrics(result.directory), ax).set_title(name)
    figure.suptitle(f"digits: validation accuracy per epoch, seed {arguments.seed}")
    path = arguments.out / "accuracy.png"
    figure.savefig(path, dpi=200)
    console = Console()
    console = console if console.is_terminal else Console(width=100)  # logs have no width of their own
    console.print(table)
    print(f"Figure: {path}. Runs: {arguments.out}/")


if __name__ == "__main__":
    main()
