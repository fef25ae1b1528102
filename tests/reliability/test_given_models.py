"""Finished models, and functions that make them, given to train(): saved, read back and resumed."""

import contextlib
import copy

import pytest
import torch
from interruptions import CPU, Stop, assert_same_run, stopping

import checkpoints
import own_parts
from bmlr.benchmark import compare
from bmlr.cli import main
from bmlr.config import ModelOptions
from bmlr.data import SelectedModalities
from bmlr.methods import BMLR, Joint
from bmlr.runs import RunError, RunInterruptedError, find_runs, group_runs
from bmlr.training import evaluate_run, load, train
from toy import Toy

MAKERS = {"native": lambda: own_parts.make_model(Toy()), "wrapped": own_parts.make_wrapped}


def seeded(maker, seed=3):
    torch.manual_seed(seed)
    return MAKERS[maker]()


def train_toy(folder, model, method=None, **options):
    return train(Toy(24), method or BMLR(), model, trainer=CPU, run=folder, **options)


@pytest.mark.parametrize("maker", MAKERS)
def test_a_finished_model_is_trained_saved_and_read_back(tmp_path, maker):
    model = seeded(maker)
    first = copy.deepcopy(model.state_dict())
    result = train_toy(tmp_path / "run", model)
    assert any(not torch.equal(value, first[name]) for name, value in model.state_dict().items())
    other = seeded(maker, seed=4)
    loaded = load(tmp_path / "run", model=other)
    assert loaded.model is other
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name
    score = evaluate_run(tmp_path / "run", model=seeded(maker, seed=5))
    assert score.as_dict() == result.content["test"]
    again = seeded(maker)  # the finished run is reused, and the model gets its weights
    assert train_toy(tmp_path / "run", again).reused
    assert torch.equal(next(again.parameters()), next(model.parameters()))


@pytest.mark.parametrize("maker", MAKERS)
def test_a_stopped_training_of_a_finished_model_goes_on_bit_for_bit(tmp_path, maker):
    train_toy(tmp_path / "whole", seeded(maker))
    model = seeded(maker)
    first = copy.deepcopy(model.state_dict())
    with contextlib.suppress(Stop):  # nothing was kept, and the model is as before
        train_toy(tmp_path / "cut", model, stopping(BMLR(), 2, how=None))
    assert all(torch.equal(value, first[name]) for name, value in model.state_dict().items())
    for step in (2, 3):
        with pytest.raises(RunInterruptedError):
            train_toy(tmp_path / "cut", model, stopping(BMLR(), step), resume=True)
    train_toy(tmp_path / "cut", model, resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_runs_of_other_first_weights_are_other_runs_and_seeds_of_one_configuration(tmp_path):
    for seed in (0, 1):
        train(Toy(24), Joint(), seeded("native", seed), trainer=CPU, seed=seed, runs=tmp_path)
    (members,) = group_runs(find_runs([tmp_path])).values()
    assert len(members) == 2
    digests = {member.result["digest"] for member in members}
    train(Toy(24), Joint(), seeded("native", 2), trainer=CPU, seed=0, runs=tmp_path)
    assert len({record.result["digest"] for record in find_runs([tmp_path])} - digests) == 1


def test_another_model_or_none_gets_one_sentence(tmp_path, capsys):
    run = tmp_path / "run"
    train_toy(run, seeded("native"))
    with pytest.raises(ValueError, match=r"finished model, bmlr.model.MultimodalClassifier.*give the model again"):
        load(run)
    with pytest.raises(ValueError, match="Found bmlr.wrapping.WrappedModel with other layers"):
        load(run, model=seeded("wrapped"))
    with pytest.raises(ValueError, match="with other layers, or weights of other names or shapes"):
        load(run, model=own_parts.make_model(Toy(), width=5))
    for words in (["evaluate", str(run)], ["diagnose", str(run)], ["predict", str(run), "a.npy"]):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert "give the model again in Python" in error
        assert error.count("\n") == 1
    assert main(["train", "--config", str(run / "config.yaml"), "--run", str(tmp_path / "x")]) == 2
    assert "name a function that makes it by --model.net" in capsys.readouterr().err
    train_toy(tmp_path / "options", ModelOptions(width=2))
    with pytest.raises(ValueError, match="says by itself how its model is made"):
        load(tmp_path / "options", model=seeded("native"))


def test_weights_of_another_model_are_told_by_their_first_difference(tmp_path):
    run = tmp_path / "run"
    train_toy(run, ModelOptions(encoders={"audio": "own_parts.Untold"}))
    config = run / "config.yaml"
    config.write_text(config.read_text().partition("\n")[2].replace("init_args: {}", "init_args: {width: 6}"))
    with pytest.raises(RunError, match=r"is of another model: its 'encoders.audio.layer.weight' has shape \(5, 4\)"):
        load(run)


def test_models_that_do_not_fit_are_refused_before_a_file_is_written(tmp_path):
    cases = [
        (own_parts.Written(), r"Found Written: bmlr.wrap\(model, encoders, example\) makes one of it"),
        (own_parts.make_model(SelectedModalities(Toy(), ["audio"])), None),
        ("no model", "should be options, a model or a function"),
    ]
    for model, message in cases:
        if message is None:  # a model of fewer modalities is a model of these
            assert train(Toy(24), Joint(), model, trainer=CPU, runs=tmp_path / "some").content["test"]
            continue
        with pytest.raises(ValueError, match=message):
            train(Toy(24), Joint(), model, trainer=CPU, runs=tmp_path / "none")
    wide = Toy(24)
    wide.classes = ("a", "b", "c", "d")
    with pytest.raises(ValueError, match="data's task, multiclass with 4 outputs. Found multiclass with 3"):
        train(wide, Joint(), own_parts.make_model(Toy()), trainer=CPU, runs=tmp_path / "none")
    with pytest.raises(ValueError, match="make it by a function at the top of a module"):
        compare(Toy(), ["Joint"], [0], model=seeded("native"), runs=tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_function_is_kept_by_its_path_and_one_without_is_called(tmp_path):
    path = train(Toy(24), Joint(), own_parts.make_model, trainer=CPU, runs=tmp_path / "path").directory
    assert load(path).model.fusion.additive
    drawn = train(Toy(24), Joint(), lambda data: own_parts.make_model(data, 3), trainer=CPU, runs=tmp_path / "drawn")
    with pytest.raises(ValueError, match="give the model again"):
        load(drawn.directory)
    load(drawn.directory, model=own_parts.make_model(Toy(), 3))
    again = train(Toy(24), Joint(), lambda data: own_parts.make_model(data, 3), trainer=CPU, runs=tmp_path / "drawn")
    assert again.reused  # the seed draws the same weights


def test_a_whole_model_by_its_path_on_the_command_line(tmp_path, capsys):
    quick = ["--trainer.epochs", "1", "--trainer.accelerator", "cpu", "--trainer.devices", "1"]
    words = ["train", "toy.Toy", "--method", "BMLR", "--model.net", "own_parts.make_model:width=3"]
    assert main([*words, "--run", str(tmp_path / "run"), *quick]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run"), "--import", "own_parts"]) == 0
    assert main(["diagnose", str(tmp_path / "run"), "--import", "own_parts", "--probe"]) == 0
    assert "linear probe, joint encoder" in capsys.readouterr().out
    assert len(list(tmp_path.glob("toy-Unimodal-*/result.json"))) == 2
    assert main([*words, "--model.fusion", "film", "--run", str(tmp_path / "two"), *quick]) == 2
    assert "is a whole model: leave out `encoders`, `fusion`" in capsys.readouterr().err


def test_a_stopped_run_of_a_pretrained_encoder_goes_on_bit_for_bit(tmp_path):
    (tmp_path / "vit").mkdir()
    checkpoints.save_vit(tmp_path / "vit", size=8, dropout=0.5)
    options = ModelOptions(encoders={"image": f"hf/{tmp_path / 'vit'}:preprocessing=ignore"})
    train_toy(tmp_path / "whole", options)
    with pytest.raises(RunInterruptedError):
        train_toy(tmp_path / "cut", options, stopping(BMLR(), 2), resume=True)
    train_toy(tmp_path / "cut", options, resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
