"""Programs of a model give the answers that the run itself gives."""

import json
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import bmlr
import checkpoints
from bmlr.cli import main
from bmlr.config import TrainerOptions
from bmlr.diagnosis import measure_run_robustness
from bmlr.encoders.pretrained import load
from bmlr.export import export_model
from bmlr.methods import LFM, ReconBoost
from bmlr.runs import RunError, read_result
from bmlr.training import train
from method_loop import set_up
from toy import Toy


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of a method that does not predict by the model's own logits."""
    trainer = TrainerOptions(epochs=2, accelerator="cpu", devices=1, progress=False)
    return train(Toy(), ReconBoost(), trainer=trainer, run=tmp_path_factory.mktemp("runs") / "boost").directory


def test_the_program_of_a_run_scores_as_the_run(run, capsys):
    assert main(["export", str(run), "--formats", "pt2"]) == 0
    printed = capsys.readouterr().out
    assert "model.pt2: logits differ from the model's own by at most" in printed
    assert str(run / "export" / "model.pt2") in printed
    extra = {"classes": "", "modalities": ""}
    program = torch.export.load(run / "export" / "model.pt2", extra_files=extra).module()
    assert json.loads(extra["classes"]) == ["zero", "one", "two"]
    batch = Toy().split("test").batch(range(40))
    logits = program(batch.inputs)
    hits = {name: float((x.argmax(1) == batch.targets).float().mean()) for name, x in logits.items()}
    test = read_result(run)["test"]
    expected = {"logits": test["accuracy"], **{f"{u}_logits": x for u, x in test["unimodal_accuracy"].items()}}
    assert hits == pytest.approx(expected)
    loaded = bmlr.load(run)
    with torch.no_grad(), pytest.raises(RuntimeError, match="leaves the fusion of the model untrained"):
        loaded.model(batch.inputs).logits  # noqa: B018  (the model's own logits are no answer)
    card = (run / "export" / "README.md").read_text()
    for name, accuracy in {"multimodal": test["accuracy"], **test["unimodal_accuracy"]}.items():
        assert f"| {name} | {100 * accuracy:.1f} % [" in card
    measured = measure_run_robustness(run, {"audio": 1.0}).fixed
    assert f"| audio | {measured.scores['fused'].percent} | {measured.lost.percent} |" in card
    assert "Samples: 40 train, 40 val, 40 test" in card
    assert 'program({"audio": audio, "image": image})["logits"]' in card
    assert "onnx" not in card
    assert set(load_file(run / "export" / "model.safetensors")) == set(loaded.model.state_dict())
    assert set(load_file(run / "export" / "method.safetensors")) == set(loaded.method.state_dict())


def two_modalities():
    torch.manual_seed(0)
    model = bmlr.MultimodalClassifier({"audio": nn.Linear(4, 8), "text": nn.Linear(6, 8)}, 3)
    return model, {"audio": torch.randn(4, 4), "text": torch.randn(4, 6)}


def test_onnx_has_names_masks_and_any_batch_size(tmp_path):
    import onnxruntime

    model, example = two_modalities()
    method = LFM()
    method.setup(model)
    export = export_model(model, example, tmp_path, method=method, masks=True, classes=["a", "b", "c"])
    assert [path.name for path in export.files] == [
        "method.safetensors", "model.onnx", "model.pt2", "model.safetensors",
    ]  # fmt: skip
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    assert [(x.name, x.shape) for x in session.get_inputs()] == [
        ("audio", ["batch", 4]), ("text", ["batch", 6]), ("audio_present", ["batch"]), ("text_present", ["batch"]),
    ]  # fmt: skip
    assert [x.name for x in session.get_outputs()] == ["logits", "audio_logits", "text_logits"]
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == ["a", "b", "c"]
    inputs = {"audio": torch.randn(7, 4), "text": torch.full((7, 6), torch.nan)}
    present = {"audio": torch.ones(7, dtype=torch.bool), "text": torch.zeros(7, dtype=torch.bool)}
    feed = {**inputs, **{f"{name}_present": mask for name, mask in present.items()}}
    logits, alone, _ = session.run(None, {name: x.numpy() for name, x in feed.items()})
    with torch.no_grad():
        expected = method.eval().predict(model.eval()(inputs, present))
    np.testing.assert_allclose(logits, expected.logits.numpy(), atol=1e-5)
    np.testing.assert_allclose(alone, expected.unimodal_logits["audio"].numpy(), atol=1e-5)


PREDICTING = [name for name in bmlr.methods.available() if bmlr.methods.get(name).predict is not bmlr.Method.predict]


@pytest.mark.parametrize(
    ("name", "options"),
    [*((name, {}) for name in PREDICTING), ("LFM", {"head": "fusion"}), ("BMLR", {})],
)
def test_every_prediction_of_a_method_can_be_traced(tmp_path, name, options):
    model, example = two_modalities()
    method = bmlr.methods.get(name)(**options)
    set_up(method, model)
    if hasattr(method, "num_members"):
        method.num_members = 2
    export_model(model, example, tmp_path, method=method, formats=["pt2"], masks=True)
    program = torch.export.load(tmp_path / "model.pt2").module()
    present = {"audio": torch.tensor([True, True, False]), "text": torch.tensor([True, False, True])}
    inputs = {"audio": torch.randn(3, 4), "text": torch.randn(3, 6)}
    with torch.no_grad():
        expected = method.eval().predict(model.eval()(inputs, present))
    torch.testing.assert_close(program(inputs, present)["logits"], expected.logits)


def test_pretrained_encoders_of_text_and_images_are_exported(tmp_path):
    for name in ("bert", "vit"):
        (tmp_path / name).mkdir()
        getattr(checkpoints, f"save_{name}")(tmp_path / name)
    encoders = {"words": load(f"hf/{tmp_path / 'bert'}", "text"), "photo": load(f"hf/{tmp_path / 'vit'}", "image")}
    model = bmlr.MultimodalClassifier(encoders, 3)
    example = {"words": torch.randint(3, 20, (4, 6)), "photo": torch.randn(4, 3, 16, 16)}
    export_model(model, example, tmp_path / "out", formats=["pt2"])
    program = torch.export.load(tmp_path / "out" / "model.pt2").module()
    padded = {"words": torch.tensor([[7, 8, 9, 0, 0, 0]]), "photo": torch.randn(1, 3, 16, 16)}
    with torch.no_grad():
        torch.testing.assert_close(program(padded)["logits"], model.eval()(padded).logits)


class Net(nn.Module):
    """A model that somebody already has."""

    def __init__(self):
        super().__init__()
        self.ear = nn.LSTM(4, 8, batch_first=True)
        self.words = nn.Embedding(11, 6)
        self.classifier = nn.Sequential(nn.Dropout(0.5), nn.Linear(14, 3))

    def listen(self, audio):
        return self.ear(audio)[0][:, -1]

    def read(self, ids, mask):
        weight = mask[..., None].float()
        return (self.words(ids) * weight).sum(1) / weight.sum(1)

    def forward(self, audio, ids, mask):
        return {"logits": self.classifier(torch.cat([self.listen(audio), self.read(ids, mask)], 1))}


@pytest.mark.parametrize("masks", [False, True])
def test_a_wrapped_model_is_exported_and_keeps_its_names(tmp_path, masks):
    batch = {"audio": torch.randn(3, 5, 4), "ids": torch.randint(11, (3, 7)), "mask": torch.ones(3, 7).long()}
    net = Net()
    model = bmlr.wrap(net, {"audio": "listen", "text": "read"}, batch, inputs={"text": ("ids", "mask")})
    export_model(model, model.split_inputs(batch), tmp_path, formats=["pt2"], masks=masks)
    program = torch.export.load(tmp_path / "model.pt2").module()
    one = model.split_inputs({name: x[:1] for name, x in batch.items()})
    present = ({"audio": torch.tensor([True]), "text": torch.tensor([False])},) if masks else ()
    with torch.no_grad():
        torch.testing.assert_close(program(one, *present)["logits"], model.eval()(one, *present).logits)
    assert Net().load_state_dict(load_file(tmp_path / "model.safetensors")) is not None


def test_a_program_with_other_answers_is_not_written(tmp_path):
    class Changing(nn.Linear):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return super().forward(x) + self.calls

    _, example = two_modalities()
    model = bmlr.MultimodalClassifier({"audio": Changing(4, 8), "text": nn.Linear(6, 8)}, 3)
    with pytest.raises(RunError, match=r"The torch.export program gives other logits than the model.*Nothing was wr"):
        export_model(model, example, tmp_path, formats=["pt2"])
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_cannot_be_exported_is_named_as_such(tmp_path):
    class Branching(nn.Linear):
        def forward(self, x):
            return super().forward(x if x.sum() > 0 else -x)

    _, example = two_modalities()
    model = bmlr.MultimodalClassifier({"audio": Branching(4, 8), "text": nn.Linear(6, 8)}, 3)
    with pytest.raises(RunError, match=r"The model cannot be exported: .* should not depend on values"):
        export_model(model, example, tmp_path, formats=["pt2"])
    with pytest.raises(ValueError, match=r"one of pt2, onnx. Found `formats = 'onxx'`. Did you mean 'onnx'"):
        export_model(model, example, tmp_path, formats=["onxx"])


def test_without_onnx_a_sentence_says_what_to_install(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(["export", str(run), "--formats", "onnx", "--out", str(tmp_path / "out")]) == 2
    assert 'onnxruntime is not installed. Run: pip install "bmlr[export]"' in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []
