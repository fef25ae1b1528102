import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from subjects import first_of_each_way, make_run_method

import bmlr.methods
from bmlr._files import json_text
from bmlr.config import ModelOptions, OptimizerOptions, TrainerOptions, read_config
from bmlr.methods import BMLR, Joint, Method, UniformBaseline
from bmlr.runs import RunError, read_predictions
from bmlr.training import NonFiniteLossError, _reading, _recorder, evaluate_run, load, train
from toy import Toy

CPU = TrainerOptions(accelerator="cpu", devices=1, progress=False)


def trained(tmp_path, method=None, data=None, *, trainer=CPU, **options):
    return train(data or Toy(), method or BMLR(), trainer=trainer, runs=tmp_path, **options)


def weights(directory, which="last"):
    return load_file(Path(directory) / f"{which}.safetensors")


def assert_same_weights(a, b, which="last"):
    first, second = weights(a, which), weights(b, which)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_tells_all_of_itself(tmp_path):
    result = trained(tmp_path)
    names = {path.name for path in result.directory.iterdir()}
    assert names | {".lock"} == {  # which some versions of filelock remove
        "config.yaml", "metrics.csv", "result.json", "best.safetensors", "last.safetensors", "tensorboard",
        "predictions.safetensors", "data.json", ".lock",
    }  # fmt: skip
    content = json.loads((result.directory / "result.json").read_text())
    assert content == json.loads(json.dumps(result.content))
    assert content["method"] == "BMLR"
    assert content["seed"] == 0
    assert content["epochs"] == 3
    assert content["data_passes"] == 3.0
    assert set(content["test"]["unimodal_accuracy"]) == {"audio", "image"}
    assert content["test"]["samples"] == 40
    audio, image = content["test"]["unimodal_accuracy"].values()
    assert content["test"]["ratio"]["audio/image"] == pytest.approx(audio / image)
    assert {len(shares) for shares in content["reshaped_share"].values()} == {3}
    assert all(0 <= share <= 1 for shares in content["reshaped_share"].values() for share in shares)
    metrics = pd.read_csv(result.directory / "metrics.csv")
    assert metrics["epoch"].tolist() == [0, 1, 2]
    assert metrics["val_accuracy"].max() == content["validation"]["accuracy"]
    assert int(metrics["val_accuracy"].idxmax()) == content["best_epoch"]
    shares = metrics["train_reshaped_audio"] + metrics["train_reshaped_image"]
    assert (shares <= 1 + 1e-6).all()  # at most one of two modalities of a sample
    assert (result.directory / "result.json").stat().st_mode & 0o044  # others may read it


def test_predictions_are_those_the_result_counts(tmp_path):
    result = trained(tmp_path)
    predictions = read_predictions(result.directory)
    assert set(predictions) == {"targets", "fused", "audio", "image"}
    assert {array.dtype for array in predictions.values()} == {np.dtype(np.int16)}
    assert predictions["targets"].tolist() == Toy().split("test").targets.tolist()
    test = result.content["test"]
    assert (predictions["fused"] == predictions["targets"]).mean() == pytest.approx(test["accuracy"])
    for name, accuracy in test["unimodal_accuracy"].items():
        assert (predictions[name] == predictions["targets"]).mean() == pytest.approx(accuracy)
    path = result.directory / "predictions.safetensors"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"predictions.safetensors cannot be read"):
        read_predictions(result.directory)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"predictions.safetensors is missing"):
        read_predictions(result.directory)


def test_training_learns(tmp_path):
    result = trained(tmp_path, trainer=dataclasses.replace(CPU, epochs=20))
    assert result.content["test"]["accuracy"] > result.content["constant_score"] + 0.2


def test_the_same_configuration_gives_the_same_weights_and_the_name_tells_it(tmp_path):
    first, second = trained(tmp_path / "a"), trained(tmp_path / "b")
    assert first.directory.name == second.directory.name
    assert_same_weights(first.directory, second.directory)
    other = trained(tmp_path / "a", seed=1)
    assert other.directory.name != first.directory.name
    assert not torch.equal(
        weights(other.directory)["model.encoders.audio.layers.0.weight"],
        weights(first.directory)["model.encoders.audio.layers.0.weight"],
    )


def test_the_written_configuration_reruns_the_run(tmp_path):
    first = trained(
        tmp_path / "a",
        BMLR(alpha=0.5, beta=0.25),
        model=ModelOptions(fusion="film", conditioner="image"),
        optimizer=OptimizerOptions(name="sgd", schedule="multistep", milestones=(1, 2)),
    )
    config = read_config(first.directory / "config.yaml")
    again = train(config.data, config.method, config.model, config.optimizer, config.trainer, runs=tmp_path / "b")
    assert again.directory.name == first.directory.name
    assert_same_weights(first.directory, again.directory)


def test_a_finished_run_is_left_alone(tmp_path):
    first = trained(tmp_path)
    before = (first.directory / "result.json").stat().st_mtime_ns
    second = trained(tmp_path)
    assert second.reused
    assert not first.reused
    assert second.content == json.loads(json.dumps(first.content))
    assert (first.directory / "result.json").stat().st_mtime_ns == before


class Stop(Exception):
    pass


def stopping(method_class, at):
    """The method, raising Stop at the given training step of the process; its name and state stay the same."""

    def compute_losses(self, model, batch):
        self.__dict__["count"] = self.__dict__.get("count", 0) + 1
        if self.__dict__["count"] > at:
            raise Stop
        return method_class.compute_losses(self, model, batch)

    method = method_class()
    method.compute_losses = compute_losses.__get__(method)
    return method


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("method", [BMLR, UniformBaseline])
def test_an_interrupted_run_ends_as_if_it_had_not_been(tmp_path, method, workers):
    options = {
        "trainer": dataclasses.replace(CPU, epochs=4, num_workers=workers),
        "optimizer": OptimizerOptions(schedule="step", step_size=2),
    }
    whole = trained(tmp_path / "whole", method(), **options)
    for at in (4, 3):  # in the second epoch of three batches, then in the third
        with pytest.raises(Stop):
            trained(tmp_path / "cut", stopping(method, at), resume=True, **options)
    resumed = trained(tmp_path / "cut", method(), resume=True, **options)
    assert_same_weights(whole.directory, resumed.directory)
    assert_same_weights(whole.directory, resumed.directory, "best")
    drop = ["seconds"]
    first, second = (pd.read_csv(r.directory / "metrics.csv").drop(columns=drop) for r in (whole, resumed))
    pd.testing.assert_frame_equal(first, second, check_exact=True)
    for key in ("test", "validation", "best_epoch", "reshaped_share", "data_passes"):
        assert whole.content[key] == resumed.content[key]


def test_a_run_stopped_after_its_last_epoch_only_needs_its_result(tmp_path, monkeypatch):
    whole = trained(tmp_path / "whole")
    monkeypatch.setattr("bmlr.training._recorder.Recorder.finish", lambda *_, **__: (_ for _ in ()).throw(Stop()))
    with pytest.raises(Stop):
        trained(tmp_path / "cut")
    monkeypatch.undo()
    resumed = trained(tmp_path / "cut", resume=True)
    assert_same_weights(whole.directory, resumed.directory)
    assert whole.content["test"] == resumed.content["test"]


def interrupted(tmp_path):
    with pytest.raises(Stop):
        trained(tmp_path, stopping(BMLR, 4))
    return next(tmp_path.iterdir())


def test_an_interrupted_run_is_not_overwritten(tmp_path):
    interrupted(tmp_path)
    with pytest.raises(RunError, match="interrupted run. Continue it with --resume"):
        trained(tmp_path)


def test_a_folder_of_another_run_is_refused(tmp_path):
    train(Toy(), BMLR(), trainer=CPU, run=tmp_path / "x")
    with pytest.raises(RunError, match="holds another run"):
        train(Toy(), Joint(), trainer=CPU, run=tmp_path / "x")
    (tmp_path / "x" / "result.json").unlink()
    with pytest.raises(RunError, match="another configuration"):
        train(Toy(), Joint(), trainer=CPU, run=tmp_path / "x", resume=True)


@pytest.mark.parametrize("keep", [0, 10, 5000])
def test_a_truncated_checkpoint_is_named(tmp_path, keep):
    path = interrupted(tmp_path) / "last.ckpt"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(RunError, match=r"last.ckpt is damaged or no checkpoint. Remove it to start"):
        trained(tmp_path, resume=True)


def test_a_foreign_checkpoint_is_refused(tmp_path):
    path = interrupted(tmp_path) / "last.ckpt"
    torch.save({"state_dict": {}}, path)
    with pytest.raises(RunError, match=r"last.ckpt is of another run"):
        trained(tmp_path, resume=True)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path):
    path = interrupted(tmp_path) / "last.ckpt"
    marker = tmp_path / "ran"

    class Hostile:
        def __reduce__(self):
            return (Path.touch, (marker,))

    torch.save({"x": Hostile()}, path)
    with pytest.raises(RunError, match="damaged or no checkpoint"):
        trained(tmp_path, resume=True)
    assert not marker.exists()


def test_a_damaged_result_is_named(tmp_path):
    result = trained(tmp_path)
    path = result.directory / "result.json"
    path.write_text(path.read_text()[:40])
    with pytest.raises(RunError, match=r"result.json is not a JSON file.*Remove it and resume"):
        trained(tmp_path)


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"The run folder .*file.* cannot be written: Not a directory"):
        trained(tmp_path / "file")


def test_a_nan_loss_names_step_batch_sample_and_modality(tmp_path):
    with pytest.raises(NonFiniteLossError) as caught:
        trained(tmp_path, data=Toy(poison=7))
    message = str(caught.value)
    assert "epoch 1, step" in message
    assert "batch" in message
    assert "inputs of audio are not finite" in message
    samples = json.loads(message.partition("Samples of the batch: ")[2].rstrip("."))
    assert 7 in samples


def test_the_clean_protocol_reads_the_test_split_once(tmp_path, monkeypatch):
    scored = []
    original = _reading.split_batches

    def watched(config, split, **share):
        scored.append(split)
        return original(config, split, **share)

    monkeypatch.setattr(_recorder, "split_batches", watched)
    result = trained(tmp_path)
    assert scored == ["test"]
    assert "test_best_epoch" not in result.content
    assert evaluate_run(result.directory).as_dict() == result.content["test"]


def test_the_paper_protocol_shows_last_and_best_epoch_on_test(tmp_path):
    result = trained(tmp_path, data=Toy(protocol="paper"))
    content = result.content
    assert content["protocol"] == "paper"
    assert content["test_best_epoch"]["accuracy"] >= content["test_last_epoch"]["accuracy"]
    assert content["test_best_epoch"]["accuracy"] >= content["test"]["accuracy"]
    last = evaluate_run(result.directory, weights="last").as_dict()
    assert last == content["test_last_epoch"]


@pytest.mark.parametrize("method", first_of_each_way())
def test_every_method_trains_and_is_read_back(tmp_path, method):
    result = trained(tmp_path, make_run_method(method), trainer=dataclasses.replace(CPU, epochs=2))
    for split, name in (("test", "test"), ("val", "validation")):  # NaN is equal to NaN
        assert json_text(evaluate_run(result.directory, split=split).as_dict()) == json_text(result.content[name])


@pytest.mark.parametrize(
    "options",
    [{"precision": "bf16-mixed"}, {"precision": "64-true"}, {"accumulate_grad_batches": 2}, {"gradient_clip_val": 0.1}],
)
def test_trainer_options_pass_through(tmp_path, options):
    plain = trained(tmp_path, trainer=dataclasses.replace(CPU, epochs=2))
    result = trained(tmp_path, trainer=dataclasses.replace(CPU, epochs=2, **options))
    assert evaluate_run(result.directory).as_dict() == result.content["test"]
    name = "model.encoders.audio.layers.0.weight"
    assert not torch.equal(weights(plain.directory)[name].float(), weights(result.directory)[name].float())
    if options.get("precision") == "64-true":
        assert weights(result.directory)[name].dtype == torch.float64


class Recording(Joint):
    """Joint training that notes the norm of the gradients it is shown."""

    def __init__(self):
        super().__init__()
        self.norms = []

    def change_gradients(self, model):
        self.norms.append(float(torch.cat([p.grad.flatten() for p in model.parameters()]).norm()))


def test_gradients_are_adjusted_once_per_step_before_clipping(tmp_path):
    method = Recording()
    trained(tmp_path, method, trainer=dataclasses.replace(CPU, epochs=1, gradient_clip_val=1e-4))
    assert len(method.norms) == 3
    assert min(method.norms) > 1e-3
    method = Recording()
    trained(tmp_path, method, trainer=dataclasses.replace(CPU, epochs=1, accumulate_grad_batches=3))
    assert len(method.norms) == 1


def test_accumulated_batches_make_the_gradient_of_the_joined_batch(tmp_path):
    big, small = Recording(), Recording()
    data = Toy(samples=32)
    trained(tmp_path, big, data, trainer=dataclasses.replace(CPU, epochs=1, batch_size=32), model=ModelOptions(width=2))
    # Batch normalisation sees the batches apart, so only gradients of the same size can be expected here; exact
    # equality, without batch normalisation, is shown for every method in the conformance tests.
    trained(tmp_path, small, data, trainer=dataclasses.replace(CPU, epochs=1, batch_size=16, accumulate_grad_batches=2))
    assert small.norms[0] == pytest.approx(big.norms[0], rel=0.5)


def test_damaged_or_missing_weights_are_named(tmp_path):
    result = trained(tmp_path)
    path = result.directory / "best.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(RunError, match=r"best.safetensors is damaged"):
        load(result.directory)
    path.unlink()
    with pytest.raises(RunError, match=r"best.safetensors is missing"):
        load(result.directory)
    with pytest.raises(FileNotFoundError, match="There is no run in"):
        load(tmp_path / "nowhere")


def test_weights_of_another_model_are_refused(tmp_path):
    first = trained(tmp_path, UniformBaseline())
    other = trained(tmp_path, Joint())
    (first.directory / "best.safetensors").write_bytes((other.directory / "best.safetensors").read_bytes())
    with pytest.raises(RunError, match="does not hold this method"):
        load(first.directory)


def test_prediction_of_new_files_is_the_models(tmp_path):
    result = trained(tmp_path)
    batch = Toy().split("test").batch([5])
    files = {}
    for name, x in batch.inputs.items():
        files[name] = tmp_path / f"{name}.npy"
        np.save(files[name], x[0].numpy())
    probabilities = load(result.directory).predict(files)
    assert set(probabilities) == {"fused", "audio", "image"}
    model = load(result.directory).model
    with torch.no_grad():
        expected = model(batch.inputs).logits.double().softmax(1)[0].tolist()
    assert list(probabilities["fused"].values()) == pytest.approx(expected, abs=1e-6)
    assert list(probabilities["fused"]) == ["zero", "one", "two"]
    with pytest.raises(ValueError, match="`files` should hold a file for 'image'"):
        bmlr.load(str(result.directory)).predict({"audio": str(files["audio"])})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: "- a list", "should have the entries data, method"),
        (lambda text: text.replace("fusion:", "fusiom:"), "Found fusiom. Did you mean 'fusion'"),
        (lambda text: text.replace("bmlr.methods.BMLR", "os.system"), "The module os should hold the method system"),
        (lambda text: text.replace("bmlr.methods.BMLR", "bmlr.methods.BMRL"), "Did you mean 'BMLR'"),
        (lambda text: text.replace("alpha", "alhpa"), "unexpected keyword argument 'alhpa'"),
        (lambda text: text.replace("beta: 0.5", "beta: 7"), "`beta` should lie in"),
        (lambda text: "a: [", "is not a YAML file"),
    ],
)
def test_a_spoilt_configuration_is_explained(tmp_path, change, message):
    path = trained(tmp_path).directory / "config.yaml"
    path.write_text(change(path.read_text()))
    with pytest.raises(ValueError, match=message):
        read_config(path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ModelOptions(fusion="flim"), "Did you mean 'film'"),
        (lambda: ModelOptions(width=0), "`width` should be an integer of at least 1"),
        (lambda: OptimizerOptions(lr=0.0), "`lr` should be a positive"),
        (lambda: OptimizerOptions(weight_decay=-1), "`weight_decay` should be a non-negative"),
        (lambda: TrainerOptions(epochs=0), "`epochs` should be an integer of at least 1"),
        (lambda: TrainerOptions(gradient_clip_val=0.0), "`gradient_clip_val` should be a positive"),
    ],
)
def test_bad_options_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_every_parameter_of_every_method_is_readable_for_the_configuration():
    for name in bmlr.methods.available():
        method = bmlr.methods.create(name)
        again = type(method)(**method.hparams)
        assert isinstance(again, Method)
        assert again.hparams == method.hparams
