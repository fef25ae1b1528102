"""Runs that others start from: made first, once, beside them; reused, resumed, and named where they fail."""

import pytest
import torch
from safetensors.torch import load_file

import bmlr
from bmlr.benchmark._jobs import with_required
from bmlr.benchmark.grid import make_jobs, run_grid
from bmlr.benchmark.plans import make_plan
from bmlr.config import TrainerOptions
from bmlr.methods import Ensemble, Pretrained, Unimodal
from bmlr.runs import RunError
from bmlr.training import evaluate_run, load, train
from inline import CPU, SMALL, InlineEngine
from toy import Toy

OPTIONS = TrainerOptions(epochs=2, batch_size=8, accelerator="cpu", devices=1, progress=False)


def run(method, folder, **options):
    return train(Toy(24), method, trainer=OPTIONS, run=folder, **options)


def weights(result, name="best"):
    return load_file(result.directory / f"{name}.safetensors")


def same(first, second):
    assert first.keys() == second.keys()
    return all(torch.equal(first[key], second[key]) for key in first)


def test_they_are_made_beside_it_and_change_nothing_of_it(tmp_path):
    first = run(Pretrained(freeze=True), tmp_path / "one" / "run")
    beside = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert [name.rpartition("-")[0] for name in beside] == ["", *["toy-Unimodal-seed0"] * 2]
    again = run(Pretrained(freeze=True), tmp_path / "one" / "again")  # whether they are made or reused: the same run
    assert same(weights(first), weights(again))
    single = train(Toy(24), Unimodal("audio"), trainer=OPTIONS, runs=tmp_path / "one")
    assert single.reused
    best = weights(single)
    assert all(
        torch.equal(value, best[key]) for key, value in weights(first).items() if key.startswith("model.encoders.audio")
    )
    score = single.content["test"]
    assert score["unimodal_accuracy"]["audio"] == score["accuracy"]
    assert score["unimodal_accuracy"]["image"] is None or score["unimodal_accuracy"]["image"] != score["accuracy"]
    ensemble = run(Ensemble(weights="validation"), tmp_path / "one" / "ensemble")
    assert ensemble.content["epochs"] == 1
    assert ensemble.content["best_epoch"] == 0
    assert ensemble.content["data_passes"] == 0
    assert ensemble.content["test"]["unimodal_accuracy"]["audio"] == score["accuracy"]
    assert evaluate_run(ensemble.directory).as_dict()["accuracy"] == ensemble.content["test"]["accuracy"]
    assert load(ensemble.directory).method.has_started


class Stopped(Exception):
    pass


def test_an_interruption_in_one_is_resumed_by_the_same_command(tmp_path, monkeypatch):
    whole = run(Pretrained(), tmp_path / "whole" / "run")
    compute, seen = Unimodal.batch_losses, []

    def stop(self, model, batch):
        seen.append(self.modality)
        if seen.count("image") == 5:  # the second epoch of the second
            raise Stopped("Power is gone.")
        return compute(self, model, batch)

    monkeypatch.setattr(Unimodal, "batch_losses", stop)
    with pytest.raises(RunError, match="which failed: Power is gone."):
        run(Pretrained(), tmp_path / "cut" / "run")
    assert not (tmp_path / "cut" / "run").exists()
    resumed = run(Pretrained(), tmp_path / "cut" / "run", resume=True)
    assert same(weights(resumed), weights(whole))
    assert same(weights(resumed, "last"), weights(whole, "last"))


def test_one_that_fails_is_named(tmp_path, monkeypatch):
    def fail(self, model, batch):
        raise ValueError("The sensor is gone.")

    monkeypatch.setattr(Unimodal, "batch_losses", fail)
    message = (
        r"Pretrained starts from the run of Unimodal\(modality='audio'\) in .*toy-Unimodal-seed0-\w+, which failed: "
    )
    with pytest.raises(RunError, match=message + "The sensor is gone."):
        run(Pretrained(), tmp_path / "run")
    engine = InlineEngine()
    records = run_grid(
        make_jobs(Toy(), ["Joint", "Ensemble"], [0], trainer=CPU, model=SMALL), tmp_path / "grid", engine
    )
    assert [record.state for record in records] == ["finished", "failed"]
    assert "Ensemble starts from the run of Unimodal(modality='audio') in" in records[1].failure["error"]
    assert "The sensor is gone." in records[1].failure["error"]


def test_a_given_model_is_trained_by_a_method_that_starts_from_runs(tmp_path):
    def make():
        torch.manual_seed(0)
        encoders = {
            "audio": torch.nn.Linear(4, 5),
            "image": torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 5)),
        }
        return bmlr.MultimodalClassifier(encoders, 3, feature_dims={"audio": 5, "image": 5})

    model = make()
    result = run(Pretrained(freeze=True), tmp_path / "run", model=model)
    (alone,) = [p for p in tmp_path.iterdir() if "Unimodal" in p.name and "audio" in (p / "config.yaml").read_text()]
    single = load(alone, model=make())
    assert torch.equal(model.encoders["audio"].weight, single.model.encoders["audio"].weight)
    assert not torch.equal(model.encoders["audio"].weight, make().encoders["audio"].weight)
    again = make()
    assert run(Pretrained(freeze=True), tmp_path / "run", model=again).reused
    assert torch.equal(again.encoders["audio"].weight, model.encoders["audio"].weight)
    assert result.content["method"] == "Pretrained"


def test_a_grid_makes_them_once_and_first_and_plans_them(tmp_path):
    methods = ["Ensemble", "Pretrained", "Unimodal:modality=image"]
    jobs = make_jobs(Toy(), methods, [0, 1], trainer=CPU, model=SMALL)
    engine, lines = InlineEngine(), []
    plan = make_plan(jobs, tmp_path, engine)
    labels = [job.label for job in plan.jobs]
    assert labels == ["Unimodal:modality=audio", "Unimodal:modality=image", "Ensemble", "Pretrained"] * 2
    assert plan.counts().startswith(f"8 runs in {tmp_path}, 2 of them for others to start from.")
    records = run_grid(jobs, tmp_path, engine, say=lines.append)
    assert [record.label for record in records] == methods * 2
    assert all(record.state == "finished" for record in records)
    ended = [line.split("] ")[1].partition(":")[0] for line in lines if "finished in" in line]
    assert sorted(ended[:4]) == ["Unimodal"] * 4
    assert len(ended) == 8
    assert len(with_required(jobs, tmp_path)) == 6  # of finished runs nothing is asked
    assert len(engine.made) == 8
