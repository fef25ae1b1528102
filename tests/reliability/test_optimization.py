"""Groups, schedules, warm-up, early stopping, clipping, dropout and loggers of a run: exact at resume."""

import dataclasses
import re
import sys

import pandas as pd
import pytest
import torch
from interruptions import CPU, Stop, assert_same_run, stopping
from safetensors.torch import load_file

import bmlr
from bmlr import cli
from bmlr.config import ModelOptions, OptimizerOptions, TrainerOptions, read_config
from bmlr.methods import BMLR
from bmlr.training import _module as module_code
from bmlr.training import train
from toy import Toy

OPTIONS = {
    "model": ModelOptions(width=2),
    "optimizer": OptimizerOptions(
        lr=0.01, groups={"audio": {"lr": 1e-3}, "image": {"weight_decay": 0.1}}, schedule="OneCycleLR", warmup_steps=3
    ),
    "trainer": dataclasses.replace(
        CPU, gradient_clip_val={"audio": 0.5}, modality_dropout={"audio": 0.4, "image": 0.2}, logger="CSVLogger"
    ),
}


class Halved(torch.optim.lr_scheduler.ExponentialLR):
    """A schedule of the user's."""

    def __init__(self, optimizer, factor=0.5):
        super().__init__(optimizer, factor)


def run(folder, method=None, **options):
    return train(Toy(24), method or BMLR(), run=folder, resume=True, **{**OPTIONS, **options})


@pytest.mark.parametrize("workers", [0, 2])
def test_all_of_them_at_once_resume_exactly_and_are_the_same_under_workers(tmp_path, workers):
    run(tmp_path / "whole")
    options = dataclasses.replace(OPTIONS["trainer"], checkpoint_every=1, num_workers=workers)
    for at in (2, 3):
        with pytest.raises(Stop):
            run(tmp_path / "cut", stopping(BMLR(), at, None), trainer=options)
    run(tmp_path / "cut", trainer=options)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    assert (
        read_config(tmp_path / "cut" / "config.yaml").digest == read_config(tmp_path / "whole" / "config.yaml").digest
    )
    plain = train(Toy(24), BMLR(), run=tmp_path / "plain", model=OPTIONS["model"], trainer=CPU)
    first, second = (load_file(tmp_path / name / "last.safetensors") for name in ("whole", "plain"))
    assert plain.content["epochs"] == 2
    assert any(not torch.equal(first[name], second[name]) for name in first)


def rates(folder, monkeypatch, **options):
    """Learning rates of the groups at every optimiser step."""
    seen = []
    original = module_code.BalancedModule.configure_optimizers

    def configure(self):
        made = original(self)
        optimizer = made["optimizer"] if isinstance(made, dict) else made
        optimizer.register_step_pre_hook(lambda o, *_: seen.append([group["lr"] for group in o.param_groups]))
        return made

    with monkeypatch.context() as patch:
        patch.setattr(module_code.BalancedModule, "configure_optimizers", configure)
        run(folder, optimizer=OptimizerOptions(lr=0.01, **options), trainer=CPU)
    return torch.tensor(seen)


def test_schedules_and_warm_up_give_the_rates_they_should(tmp_path, monkeypatch):
    """Two epochs of three steps."""
    groups = {"audio": {"lr": 0.1}}
    flat = rates(tmp_path / "flat", monkeypatch, groups=groups)
    torch.testing.assert_close(flat, torch.tensor([[0.01, 0.1]]).expand(6, 2))
    warm = rates(tmp_path / "warm", monkeypatch, groups=groups, warmup_steps=4)
    torch.testing.assert_close(warm / flat, torch.tensor([0.25, 0.5, 0.75, 1, 1, 1])[:, None].expand(6, 2))
    metrics = pd.read_csv(tmp_path / "warm" / "metrics.csv")
    assert metrics["lr"].tolist() == [0.01, 0.01]
    both = rates(tmp_path / "both", monkeypatch, schedule="step", step_size=1, warmup_steps=2)
    torch.testing.assert_close(both[:, 0], torch.tensor([0.005, 0.01, 0.01, 0.001, 0.001, 0.001]))
    cycle = rates(tmp_path / "cycle", monkeypatch, groups=groups, schedule="OneCycleLR")
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.Adam([{"params": [parameters[0]], "lr": 0.01}, {"params": [parameters[1]], "lr": 0.1}])
    reference = torch.optim.lr_scheduler.OneCycleLR(optimizer, [0.01, 0.1], total_steps=6)
    for row in cycle:
        torch.testing.assert_close(row, torch.tensor([group["lr"] for group in optimizer.param_groups]))
        optimizer.step()
        reference.step()
    own = rates(tmp_path / "own", monkeypatch, schedule={"class_path": f"{__name__}.Halved", "init_args": {}})
    torch.testing.assert_close(own[:, 0], torch.tensor([0.01] * 3 + [0.005] * 3))
    steps = rates(
        tmp_path / "steps", monkeypatch, schedule={"class_path": f"{__name__}.Halved"}, schedule_interval="step"
    )
    torch.testing.assert_close(steps[:, 0], 0.01 * 0.5 ** torch.arange(6.0))


def test_a_plateau_follows_the_score_of_validation(tmp_path):
    schedule = {"class_path": "ReduceLROnPlateau", "init_args": {"patience": 0, "threshold": 2.0}}  # never better
    result = run(
        tmp_path, optimizer=OptimizerOptions(lr=0.01, schedule=schedule), trainer=dataclasses.replace(CPU, epochs=4)
    )
    metrics = pd.read_csv(result.directory / "metrics.csv")["lr"].tolist()
    assert metrics[0] == 0.01
    assert metrics[-1] < 0.0011
    with pytest.raises(ValueError, match="ReduceLROnPlateau follows the monitored metric, whose `mode` is max"):
        run(
            tmp_path / "b",
            optimizer=OptimizerOptions(schedule={"class_path": "ReduceLROnPlateau", "init_args": {"mode": "min"}}),
        )


def test_early_stopping_ends_the_run_after_epochs_without_a_better_score_and_resumes(tmp_path, monkeypatch):
    still = {"optimizer": OptimizerOptions(lr=1e-9), "trainer": dataclasses.replace(CPU, epochs=9, early_stopping=2)}
    result = run(tmp_path / "whole", **still)
    assert (result.content["best_epoch"], result.content["epochs"]) == (0, 3)
    with monkeypatch.context() as patch:
        patch.setattr("bmlr.training._recorder.Recorder.finish", lambda *_, **__: (_ for _ in ()).throw(Stop()))
        with pytest.raises(Stop):
            run(tmp_path / "cut", **still)
    assert run(tmp_path / "cut", **still).content["epochs"] == 3
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    with pytest.raises(Stop):
        run(tmp_path / "mid", stopping(BMLR(), 7, None), **still)  # in the third epoch
    run(tmp_path / "mid", **still)
    assert_same_run(tmp_path / "whole", tmp_path / "mid")


def test_a_frozen_encoder_keeps_its_initial_weights_and_statistics(tmp_path):
    frozen = run(tmp_path / "a", optimizer=OptimizerOptions(lr=0.05, groups={"image": {"freeze": True}}), trainer=CPU)
    again = run(
        tmp_path / "b", optimizer=OptimizerOptions(lr=0.05, groups={"image": {"freeze": True}}),
        trainer=dataclasses.replace(CPU, epochs=1),
    )  # fmt: skip
    first, second = (load_file(result.directory / "last.safetensors") for result in (frozen, again))
    image = [name for name in first if name.startswith("model.encoders.image.")]
    assert any("running_mean" in name for name in image)
    assert all(torch.equal(first[name], second[name]) for name in image)
    assert any(not torch.equal(first[name], second[name]) for name in first if name.startswith("model.fusion."))


def test_loggers_change_no_result_and_write_into_the_run(tmp_path):
    options = dataclasses.replace(CPU, batch_size=4)
    plain = run(tmp_path / "plain", trainer=options)
    for name, logger in (("none", None), ("both", ("CSVLogger", {"class_path": "TensorBoardLogger"}))):
        result = run(tmp_path / name, trainer=dataclasses.replace(options, logger=logger))
        assert result.content["digest"] == plain.content["digest"]
        assert_same_run(tmp_path / "plain", tmp_path / name)
    assert not (tmp_path / "none" / "tensorboard").exists()
    assert (tmp_path / "both" / "tensorboard").is_dir()
    logged = pd.read_csv(next((tmp_path / "both" / "csv").glob("version_*/metrics.csv")))
    history, rows = pd.read_csv(tmp_path / "both" / "metrics.csv"), logged[logged["train_loss"].notna()]
    assert rows[list(history)].reset_index(drop=True).equals(history.astype(rows[list(history)].dtypes))
    assert list(logged[logged["loss"].notna()]["step"]) == list(range(9, int(rows["step"].iloc[-1]) + 1, 10)) != []


GROUPS = "--optimizer.groups={}"
WRONG = [
    (GROUPS.format("{audoi: {lr: 3e-5}}"), "`optimizer.groups` should name .*audio, image, or fusion. .*mean 'audio'"),
    (GROUPS.format("{audio: {lr: 3e-5, freeze: true}}"), "`groups.audio` should have no lr where freeze is true"),
    (GROUPS.format("{audio: {rate: 1}}"), "`groups.audio` should have entries among lr, weight_decay and freeze"),
    (GROUPS.format("{audio: {lr: fast}}"), "`groups.audio.lr` should be a number. Found 'fast'"),
    (
        GROUPS.format("{audio: {freeze: true}, image: {freeze: true}, fusion: {freeze: true}}"),
        "`freeze` should leave a part of the model to train",
    ),
    ("--optimizer.schedule=OneCycelLR", "There is no schedule 'OneCycelLR'. Did you mean 'OneCycleLR'"),
    ("--optimizer.schedule=torch.optim.lr_scheduler.Nope", "There is no schedule 'torch.optim.lr_scheduler.Nope'"),
    ("--optimizer.schedule=nowhere.Schedule", "nowhere cannot be imported"),
    ("--optimizer.schedule=toy.Toy", "The module toy should hold the schedule Toy. It has no such class"),
    ("--optimizer.schedule={class_path: StepLR, init_args: {step: 1}}", r"StepLR does not take {'step': 1}: "),
    ("--optimizer.schedule={class_path: LambdaLR}", "LambdaLR does not take .* 'lr_lambda'"),
    ("--optimizer.warmup_steps=-1", "warmup_steps should be an integer of at least 0"),
    ("--trainer.logger=WandLogger", "There is no logger 'WandLogger'. Did you mean 'WandbLogger'"),
    (
        "--trainer.logger={class_path: CSVLogger, init_args: {a: 1}}",
        r"^bmlr: error: Option --trainer.logger: CSVLogger",
    ),
    ("--trainer.logger=toy.Toy", "The module toy should hold the logger Toy"),
    ("--trainer.gradient_clip_val={audoi: 1.0}", "`trainer.gradient_clip_val` should name .*Did you mean 'audio'"),
    ("--trainer.modality_dropout={audoi: 0.1}", "`trainer.modality_dropout` should name .*Did you mean 'audio'"),
    ("--trainer.modality_dropout=1.5", r"modality_dropout should lie in \[0, 1\]"),
    ("--trainer.early_stopping=0", "early_stopping should be an integer of at least 1"),
    ("--method=AGM --trainer.modality_dropout=0.1", "AGM needs every modality in every sample"),
]


@pytest.mark.parametrize(("words", "message"), WRONG, ids=[words for words, _ in WRONG])
def test_wrong_options_are_one_sentence_and_take_no_directory(words, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command, _, rest = words.partition(" ") if words.startswith("--method") else ("--method=Joint", "", words)
    assert cli.main(["train", "digits", command, rest, "--run", "r", "--model.width", "2"]) != 0
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "r").exists()
    if "freeze: true}, fusion" not in words and "CSVLogger" not in words:  # these are made when a run begins
        for other in (["compare", "digits", "--methods"], ["tune", "digits", "--space", "weight=0:1", "--methods"]):
            name = command.partition("=")[2]
            if other[0] == "tune":
                other[3] = "alpha=0.1:1"
                name = "AGM" if name == "AGM" else "BMLR"
            assert cli.main([*other, name, rest, "--out", "o", "--model.width", "2"]) != 0
            assert re.search(message, capsys.readouterr().err)


def test_a_missing_library_of_a_logger_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"WandbLogger needs wandb. Run: pip install wandb"):
        TrainerOptions(logger="WandbLogger").check()


def test_one_rate_for_groups_of_several_is_refused():
    options = OptimizerOptions(lr=0.1, schedule={"class_path": "OneCycleLR", "init_args": {"max_lr": 0.5}})
    model = bmlr.MultimodalClassifier({"a": torch.nn.Linear(2, 3), "b": torch.nn.Linear(2, 3)}, 2)
    options.scheduler(options.optimizer(model), 2, lambda: 6)
    grouped = dataclasses.replace(options, groups={"a": {"lr": 0.01}})
    with pytest.raises(ValueError, match="OneCycleLR gives all groups one learning rate, and `groups` gives them"):
        grouped.scheduler(grouped.optimizer(model), 2, lambda: 6)
    with pytest.raises(ValueError, match="`schedule` should have arguments that a file can hold"):
        OptimizerOptions(schedule={"class_path": "LambdaLR", "init_args": {"lr_lambda": min}})


def test_a_schedule_in_steps_needs_its_length_where_epochs_are_planned_anew(tmp_path):
    cycle = OptimizerOptions(schedule="OneCycleLR")
    with pytest.raises(ValueError, match="ReconBoost plans the steps of every epoch anew"):
        run(tmp_path / "a", bmlr.methods.ReconBoost(t1=1, t2=1), optimizer=cycle, trainer=CPU)
    fixed = OptimizerOptions(schedule={"class_path": "OneCycleLR", "init_args": {"max_lr": 0.01, "total_steps": 99}})
    run(tmp_path / "b", bmlr.methods.ReconBoost(t1=1, t2=1), optimizer=fixed, trainer=CPU)


def test_classes_of_the_users_serve_in_every_command(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text(
        "import torch\nfrom lightning.pytorch.loggers import CSVLogger\n"
        "class Halved(torch.optim.lr_scheduler.ExponentialLR):\n"
        "    def __init__(self, optimizer, factor=0.5):\n        super().__init__(optimizer, factor)\n"
        "class Log(CSVLogger):\n    pass\n"
    )
    monkeypatch.chdir(tmp_path)
    words = [
        "--optimizer.schedule", "{class_path: mine.Halved, init_args: {factor: 5e-1}}", "--trainer.logger", "mine.Log",
        "--model.width", "2", "--trainer.epochs", "1", "--trainer.accelerator", "cpu", "--trainer.threads", "1",
    ]  # fmt: skip
    try:
        status = cli.main(
            ["compare", "digits", "--methods", "Joint", "--seeds", "0", "--out", "c", "--runs", "r", *words]
        )
        assert status == 0, capsys.readouterr().err
        (directory,) = (tmp_path / "r").iterdir()
        assert list(directory.glob("lightning_logs/version_0/metrics.csv"))
        assert read_config(directory / "config.yaml").optimizer.schedule["class_path"] == "mine.Halved"
    finally:
        sys.modules.pop("mine", None)
    assert cli.main(["evaluate", str(directory), "--trainer.epochs", "2"]) != 0  # it has no such option
    assert cli.main(["evaluate", str(directory)]) == 0  # which needs no schedule
