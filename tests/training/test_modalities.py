"""Runs of models that see some of a data set's modalities."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import bmlr
from bmlr.benchmark import compare_runs
from bmlr.cli import main
from bmlr.config import ModelOptions, TrainerOptions
from bmlr.data import SelectedModalities
from bmlr.data.sets._synthetic import Synthetic
from bmlr.methods import BMLR, Joint
from bmlr.report import write_report
from bmlr.runs import RunInterruptedError, find_runs, read_predictions
from bmlr.training import _recorder, evaluate_run, load, train
from toy import Toy

CPU = TrainerOptions(accelerator="cpu", devices=1, progress=False)
SMALL = {"train": 60, "val": 30, "test": 30}
MISSING = {"audio": 0.5, "image": 0.3}
ACCURACY = {"audio": 0.8, "image": 0.7, "video": 0.6}


def train_alone(tmp_path, data=None, modalities="audio", method=None, **options):
    model = ModelOptions(modalities=modalities)
    return train(data or Toy(), method or Joint(), model, trainer=CPU, runs=tmp_path, **options)


class TestSelectedModalities:
    def test_all_samples_keep_their_place_where_none_lacks_the_modality(self):
        whole, audio = Toy().split("train"), SelectedModalities(Toy(), ["audio"]).split("train")
        batch, expected = audio.batch([3, 1], augment=True, seed=1), whole.batch([3, 1], augment=True, seed=1)
        assert list(batch.inputs) == ["audio"]
        assert torch.equal(batch.inputs["audio"], expected.inputs["audio"])
        assert batch.indices.tolist() == [3, 1]
        assert torch.equal(audio.targets, whole.targets)
        assert audio.present is None
        assert audio.groups == whole.groups

    @pytest.mark.parametrize("names", [["audio"], ["audio", "image"]])
    def test_samples_without_any_of_them_are_left_out(self, names):
        data = Synthetic(accuracy=ACCURACY, samples=SMALL, missing={**MISSING, "video": 0.2})
        whole, some = data.split("val"), SelectedModalities(data, names).split("val")
        kept = np.flatnonzero(np.any([whole.present[name] for name in names], axis=0))
        assert 0 < len(kept) < len(whole)
        assert len(some) == len(kept)
        batch, expected = some.batch(range(len(some))), whole.batch(kept.tolist())
        assert batch.indices.tolist() == list(range(len(kept)))
        assert torch.equal(batch.targets, expected.targets)
        assert torch.equal(some.targets, expected.targets)
        for name in names:
            assert torch.equal(batch.inputs[name], expected.inputs[name])
            if len(names) > 1:
                assert torch.equal(batch.present[name], expected.present[name])
        if len(names) == 1:
            assert batch.present is None

    def test_none_is_left_out_where_a_modality_is_always_there(self):
        data = Synthetic(accuracy=ACCURACY, samples=SMALL, missing={"audio": 0.5})
        split = SelectedModalities(data, ["audio", "image"]).split("test")
        assert len(split) == 30
        assert list(split.present) == ["audio"]

    def test_files_of_the_others_are_not_asked_for(self, tmp_path):
        np.save(tmp_path / "x.npy", np.ones(16, dtype=np.float32))
        data = SelectedModalities(Synthetic(accuracy=ACCURACY), ["image", "audio"])
        files = dict.fromkeys(["audio", "image"], tmp_path / "x.npy")
        assert list(data.load_files(files)) == ["audio", "image"]
        with pytest.raises(ValueError, match="a file of image: no sample of the training data lacks it. Found audio"):
            data.load_files({"audio": tmp_path / "x.npy"})
        with pytest.raises(ValueError, match="files of audio, image. Found 'video'"):
            data.load_files({**files, "video": tmp_path / "x.npy"})

    def test_unknown_name(self):
        with pytest.raises(ValueError, match=r"`modalities` .* audio, image. Found 'adio'. Did you mean 'audio'\?"):
            SelectedModalities(Toy(), ["adio"])
        with pytest.raises(ValueError, match="`modalities` .* Found none"):
            SelectedModalities(Toy(), [])


def test_a_modality_alone_is_an_ordinary_run(tmp_path):
    result = train_alone(tmp_path)
    test = result.content["test"]
    assert test["unimodal_accuracy"] == {"audio": test["accuracy"]}
    assert test["ratio"] == {}
    assert test["accuracy"] > 0.5
    assert result.content["samples"] == {"train": 40, "val": 40, "test": 40}
    run = load(result.directory)
    assert run.config.model.modalities == ("audio",)
    assert run.model.modalities == ("audio",)
    assert evaluate_run(result.directory).as_dict() == test
    assert set(read_predictions(result.directory)) == {"targets", "fused", "audio"}
    assert train_alone(tmp_path).reused
    path = tmp_path / "x.npy"
    np.save(path, Toy().split("test").batch([5]).inputs["audio"][0].numpy())
    probabilities = load(result.directory).predict({"audio": path})
    assert set(probabilities) == {"fused", "audio"}
    assert sum(probabilities["fused"].values()) == pytest.approx(1)


def test_its_data_order_and_optimiser_are_those_of_the_joint_run(tmp_path):
    """The second way to the result: a loop of a few lines over one encoder and a linear layer."""
    from bmlr.training.loader import planned_requests

    result = train_alone(tmp_path, seed=3)
    torch.manual_seed(3)
    data = Toy()
    model = bmlr.MultimodalClassifier({"audio": bmlr.encoders.MLP(4, 8)}, 3)
    assert isinstance(model.fusion, bmlr.fusion.ConcatFusion)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    plan = bmlr.methods.EpochPlan()
    for epoch in range(3):
        for request in planned_requests(plan, 40, 16, seed=3, epoch=epoch):
            batch = data.split("train").batch(request.indices)
            loss = torch.nn.functional.cross_entropy(model({"audio": batch.inputs["audio"]}).logits, batch.targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    written = load_file(result.directory / "last.safetensors")
    for name, value in model.state_dict().items():
        torch.testing.assert_close(written[f"model.{name}"], value, rtol=1e-5, atol=1e-6)


def test_samples_without_the_modality_do_not_count(tmp_path):
    data = Synthetic(accuracy=ACCURACY, samples=SMALL, missing=MISSING)
    result = train_alone(tmp_path, data)
    kept = {split: int(data.split(split).present["audio"].sum()) for split in SMALL}
    assert result.content["samples"] == {
        **kept,
        "without_modality": {split: SMALL[split] - kept[split] for split in SMALL},
    }
    assert result.content["test"]["samples"] == kept["test"]
    assert result.content["data_passes"] == result.content["epochs"]
    assert len(read_predictions(result.directory)["targets"]) == kept["test"]


@pytest.mark.parametrize("steps", [1, 4, 9])
def test_an_interrupted_run_ends_as_if_it_had_not_been(tmp_path, monkeypatch, steps):
    whole = train_alone(tmp_path / "whole")

    def stop(recorder, module):
        if module.trainer.global_step == steps:
            recorder.termination.requested = module.stopping = True
        original(recorder, module)

    original = _recorder.Recorder.checkpoint_step
    end = _recorder.Recorder.checkpoint_epoch
    with monkeypatch.context() as patch, pytest.raises(RunInterruptedError):
        patch.setattr(_recorder.Recorder, "checkpoint_step", stop)
        patch.setattr(
            _recorder.Recorder,
            "checkpoint_epoch",
            lambda recorder, module: (
                setattr(module, "stopping", module.trainer.global_step >= steps),
                end(recorder, module),
            ),
        )
        train_alone(tmp_path / "part")
    resumed = train_alone(tmp_path / "part", resume=True)
    first, second = (load_file(r.directory / "last.safetensors") for r in (whole, resumed))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    ignored = {"seconds", "files", "checksum", "sha256"}
    assert {k: v for k, v in whole.content.items() if k not in ignored} == {
        k: v for k, v in resumed.content.items() if k not in ignored
    }


def test_names_tell_it_from_the_joint_run(tmp_path):
    joint, alone = train(Toy(), Joint(), trainer=CPU, runs=tmp_path), train_alone(tmp_path)
    assert joint.directory != alone.directory
    table = compare_runs(find_runs([tmp_path]), baseline="Joint")
    assert {method.label for method in table.methods} == {"Joint", "Joint:modalities=audio"}
    assert set(table.modalities) == {"audio", "image"}
    by_label = {method.label: method for method in table.methods}
    assert by_label["Joint:modalities=audio"].ratio == {}
    assert by_label["Joint:modalities=audio"].difference.mean == pytest.approx(
        alone.content["test"]["accuracy"] - joint.content["test"]["accuracy"]
    )
    report = write_report([tmp_path], tmp_path / "report.html")
    assert "modalities=audio" in report.path.read_text(encoding="utf-8")


def test_it_is_labelled_where_it_stands_by_itself(tmp_path):
    train_alone(tmp_path)
    (method,) = compare_runs(find_runs([tmp_path])).methods
    assert method.label == "Joint:modalities=audio"


def test_all_modalities_in_any_order_are_the_joint_run(tmp_path):
    joint = train(Toy(), Joint(), trainer=CPU, runs=tmp_path)
    assert train_alone(tmp_path, modalities=["image", "audio"]).directory == joint.directory


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modalities": "adio"}, r"`modalities` .* Found 'adio'. Did you mean 'audio'\?"),
        ({"modalities": []}, "`modalities` .* Found none"),
        ({"method": BMLR()}, "Method BMLR needs a model of at least 2 modalities. Found audio"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        train_alone(tmp_path / "runs", **options)
    assert not (tmp_path / "runs").exists()


# Not mmcosine: its cosine head is one of one modality, too.
@pytest.mark.parametrize("fusion", [name for name in bmlr.fusion.available() if name != "mmcosine"])
@pytest.mark.parametrize("unimodal", [None, "ablated", "auxiliary"])
def test_every_fusion_reads_one_modality_by_a_linear_layer(fusion, unimodal):
    model = bmlr.MultimodalClassifier({"a": torch.nn.Linear(4, 6)}, 3, fusion, fusion_options={"unimodal": unimodal})
    x = torch.randn(5, 4)
    output = model({"a": x})
    jacobian = torch.autograd.functional.jacobian(lambda z: model.fusion({"a": z}), output.features["a"].detach())
    other = torch.autograd.functional.jacobian(lambda z: model.fusion({"a": z}), torch.randn(5, 6))
    torch.testing.assert_close(jacobian, other)  # the same everywhere
    assert jacobian.abs().sum() > 0
    if unimodal != "auxiliary":
        torch.testing.assert_close(output.unimodal_logits["a"], output.logits)


def test_by_the_command_line(tmp_path, capsys):
    arguments = ["train", "--data", "synthetic", "--data.samples", json.dumps(SMALL), "--method", "Joint"]
    arguments += ["--trainer.epochs", "2", "--trainer.accelerator", "cpu", "--trainer.progress", "false"]
    arguments += ["--model.modalities", "audio", "--run", str(tmp_path / "run")]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "audio" in shown
    assert "video" not in shown
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert list(result["test"]["unimodal_accuracy"]) == ["audio"]
    assert main(["evaluate", str(tmp_path / "run")]) == 0
    np.save(tmp_path / "x.npy", np.zeros(16, dtype=np.float32))
    assert main(["predict", str(tmp_path / "run"), f"audio={tmp_path / 'x.npy'}"]) == 0
    assert main(["train", "--config", str(tmp_path / "run" / "config.yaml"), "--run", str(tmp_path / "again")]) == 0
    again = json.loads((tmp_path / "again" / "result.json").read_text())
    assert again["test"] == result["test"]
    arguments[arguments.index("audio")] = "[video, audio]"
    arguments[-1] = str(tmp_path / "two")
    assert main(arguments) == 0
    capsys.readouterr()
    arguments[arguments.index("[video, audio]")] = "adio"
    assert main(arguments) == 2
    assert "Did you mean 'audio'?" in capsys.readouterr().err


def test_runs_scored_on_other_samples_do_not_go_into_one_table(tmp_path):
    data = Synthetic(accuracy=ACCURACY, samples=SMALL, missing=MISSING)
    train(data, Joint(), trainer=CPU, runs=tmp_path)
    train_alone(tmp_path, data)
    with pytest.raises(ValueError, match=r"samples.test differs \(\d+ and \d+\)"):
        compare_runs(find_runs([tmp_path]))
    assert len(compare_runs(find_runs([tmp_path]), force=True).methods) == 2
