"""``bmlr train``: one run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bmlr.commands._printing import describe_samples, print_scores
from bmlr.config import ModelOptions, OptimizerOptions, TrainerOptions
from bmlr.data import MultimodalData
from bmlr.methods import Method
from bmlr.tasks import metric_form

if TYPE_CHECKING:
    from bmlr import training


def execute(
    data: MultimodalData,
    method: Method,
    model: ModelOptions = ModelOptions(),  # noqa: B008  (the parser reads defaults from the signature)
    optimizer: OptimizerOptions = OptimizerOptions(),  # noqa: B008
    trainer: TrainerOptions = TrainerOptions(),  # noqa: B008
    seed: int = 0,
    runs: Path = Path("runs"),
    run: Path | None = None,
    resume: bool = False,
) -> None:
    """Train a model on a data set by a method.

    Example:
        bmlr train digits --method BMLR --run runs/digits
        bmlr train manifest --data.root prepared --method BMLR --model.width 16 --trainer.epochs 30

    Args:
        data: Data set.
        method: Method.
        model: Encoders and fusion.
        optimizer: Optimiser and schedule of the learning rate.
        trainer: Length of training, hardware and checkpoints.
        seed: Seed of weights, order of samples and random transforms.
        runs: Folder for the run's directory, whose name is made from the configuration.
        run: Directory of the run, instead of one in --runs.
        resume: Continue an interrupted run.
    """
    from bmlr import training

    result = training.train(data, method, model, optimizer, trainer, seed=seed, runs=runs, run=run, resume=resume)
    if training.is_first_process():  # every process of a distributed run gets here
        _print(result)


def _print(result: training.RunResult) -> None:
    content: dict[str, Any] = result.content
    epoch = content["best_epoch"] + 1
    scores = {
        f"test, epoch {epoch} (selected on validation)": content["test"],
        "test, last epoch": content.get("test_last_epoch"),
        "test, best epoch on test (optimistic)": content.get("test_best_epoch"),
        f"validation, epoch {epoch}": content["validation"],
    }
    print_scores(
        f"{content['method']} on {content['data']} ({content['protocol']} protocol), seed {content['seed']}",
        {name: score for name, score in scores.items() if score is not None},
        content["metric"],
    )
    print(describe_samples("test", content["test"], content["metric"]))
    if result.reused:
        print("The run was finished before; nothing was trained.")
    constant = metric_form(content["metric"]).constant_text(content["constant_score"])
    print(f"{constant}, {content['seconds']:.1f} s, {result.directory}")
