"""Encoders of Transformers and timm: features, pooling, freezing, and checkpoints that are refused."""

import json
import logging
import shutil

import pytest
import torch
from transformers import AutoModel

import bmlr
import checkpoints
import fake_timm
from bmlr.encoders.pretrained import PretrainedEncoder, describe, load, tokenize


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A checkpoint of each kind."""
    root = tmp_path_factory.mktemp("checkpoints")
    names = ("vit", "resnet", "bert", "wav2vec", "ast", "clip", "t5")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    for name in names:
        (root / name).mkdir()
        getattr(checkpoints, f"save_{name}")(root / name)
    return {name: root / name for name in names}


IDS = torch.tensor([[7, 8, 9, 10], [7, 8, 0, 0]])  # the second text has two tokens of padding


def test_text_is_pooled_over_its_tokens_and_not_its_padding(folders):
    x = IDS.float()  # data sets give float32
    hidden = AutoModel.from_pretrained(folders["bert"])(input_ids=IDS, attention_mask=(IDS != 0).long())
    expected = {
        "mean": torch.stack([hidden.last_hidden_state[0].mean(0), hidden.last_hidden_state[1, :2].mean(0)]),
        "cls": hidden.last_hidden_state[:, 0],
        "pooler": hidden.pooler_output,
    }
    for pooling, features in expected.items():
        encoder = load(f"hf/{folders['bert']}", "text", pooling=pooling).eval()
        torch.testing.assert_close(encoder(x), features)
        by_name = encoder({"input_ids": IDS, "attention_mask": (IDS != 0).long()})
        torch.testing.assert_close(by_name, features)
    assert "net.pooler.dense.weight" not in load(f"hf/{folders['bert']}", "text").model.state_dict()


@pytest.mark.parametrize(
    ("name", "kind", "shape", "width"),
    [
        ("vit", "image", (3, 16, 16), 16),
        ("vit", "image", (1, 16, 16), 16),  # grey
        ("vit", "frames", (2, 3, 16, 16), 16),
        ("resnet", "image", (3, 16, 16), 12),
        ("clip", "image", (3, 16, 16), 16),
        ("clip", "text", (6,), 16),
        ("t5", "text", (6,), 16),
        ("wav2vec", "waveform", (400,), 16),
        ("ast", "sequence", (24, 16), 16),
        ("ast", "spectrogram", (1, 16, 24), 16),
    ],
)
def test_every_kind_of_input_gives_features_that_train(folders, name, kind, shape, width):
    encoder = load(f"hf/{folders[name]}", kind, shape, gradient_checkpointing=name in {"bert", "vit", "t5"})
    x = torch.randint(3, 20, (2, *shape)).float() if kind == "text" else torch.randn(2, *shape)
    features = encoder(x)
    assert features.shape == (2, width) == (2, encoder.num_features)
    features.sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters())


def test_frames_are_the_mean_of_their_images(folders):
    frames = torch.randn(2, 3, 3, 16, 16)
    of_frames = load(f"hf/{folders['vit']}", "frames", (3, 3, 16, 16)).eval()
    of_images = load(f"hf/{folders['vit']}", "image").eval()
    expected = torch.stack([of_images(frames[:, step]) for step in range(3)]).mean(0)
    torch.testing.assert_close(of_frames(frames), expected)


def test_processors_are_told_as_values_of_images_in_zero_to_one(folders):
    vit, resnet = (load(f"hf/{folders[name]}").input for name in ("vit", "resnet"))
    assert (vit.size, vit.mean, vit.std) == ((16, 16), (0.25,) * 3, (0.5,) * 3)
    assert (resnet.size, resnet.mean, resnet.std) == ((16, 16), (0.5,) * 3, (0.5,) * 3)  # v/127.5 − 1
    assert load(f"hf/{folders['wav2vec']}", "waveform", (400,)).input.sample_rate == 16000
    assert load(f"hf/{folders['bert']}", "text").input.max_length == 32


def test_texts_become_tokens_of_the_checkpoint(folders):
    tokens = tokenize(str(folders["bert"]), ["w1 w2", "w3"], max_length=8)
    assert tokens["input_ids"].tolist() == [[2, 6, 7, 3], [2, 8, 3, 0]]
    assert tokens["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    with pytest.raises(ValueError, match="has no tokeniser of Transformers"):
        tokenize(str(folders["vit"]), ["w1"])


def test_a_frozen_encoder_stays_as_it_is(folders):
    encoder = load(f"hf/{folders['vit']}", frozen=True)
    encoder.train()
    assert encoder.training
    assert not encoder.model.training
    assert not encoder(torch.randn(2, 3, 16, 16)).requires_grad


@pytest.mark.parametrize("method", ["Joint", "BMLR", "OGMGE", "AGM", "DGL", "MMPareto", "CML", "MBSD", "OPM"])
def test_methods_train_beside_a_frozen_encoder(folders, method):
    vit = load(f"hf/{folders['vit']}", frozen=True)
    model = bmlr.MultimodalClassifier({"image": vit, "audio": torch.nn.Linear(4, 8)}, 3)
    before = {name: p.clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    balancer = bmlr.Balancer(model, bmlr.methods.create(method), optimizer, max_epochs=2)
    batch = {"image": torch.randn(6, 3, 16, 16), "audio": torch.randn(6, 4)}, torch.tensor([0, 1, 2, 0, 1, 2])
    for _ in range(2):
        for part in balancer.epoch([batch]):
            balancer.step(part)
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert "encoders.audio.weight" in changed
    assert not [name for name in changed if name.startswith("encoders.image")]


def test_an_encoder_made_again_without_its_folder_is_the_same(folders, tmp_path):
    folder = shutil.copytree(folders["bert"], tmp_path / "gone")
    checkpoint = json.loads(json.dumps(describe(f"hf/{folder}", "text")))
    first = PretrainedEncoder(f"hf/{folder}", "text", (4,), checkpoint).eval()
    shutil.rmtree(folder)
    second = PretrainedEncoder(f"hf/{folder}", "text", (4,), checkpoint, weights=False).eval()
    second.load_state_dict(first.state_dict())
    torch.testing.assert_close(second(IDS), first(IDS), rtol=0, atol=0)


def damage(folder, how):
    if how == "missing weights":
        (folder / "model.safetensors").unlink()
    elif how == "pickle":  # which could run code
        (folder / "model.safetensors").unlink()
        torch.save({}, folder / "pytorch_model.bin")
    elif how == "code":
        entries = json.loads((folder / "config.json").read_text())
        entries |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModel": "mine.Model"}}
        (folder / "config.json").write_text(json.dumps(entries))
        (folder / "mine.py").write_text("raise SystemExit('code of the checkpoint ran')")
    elif how == "another":
        entries = json.loads((folder / "config.json").read_text()) | {"num_hidden_layers": 3}
        (folder / "config.json").write_text(json.dumps(entries))
    elif how == "no processor":
        (folder / "preprocessor_config.json").unlink()
    elif how == "no config":
        (folder / "config.json").unlink()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing weights", "weights of hf/.* cannot be loaded"),
        ("pickle", "weights of hf/.* cannot be loaded"),
        ("code", "needs code of its own, which is never run"),
        ("another", "is a checkpoint of another model than its config.json says: it lacks .*layers?.2"),
        ("no config", "is no checkpoint of Transformers"),
    ],
)
def test_checkpoints_that_cannot_be_taken_say_why(folders, tmp_path, how, message):
    folder = shutil.copytree(folders["vit"], tmp_path / "damaged")
    damage(folder, how)
    with pytest.raises(ValueError, match=message) as error:
        load(f"hf/{folder}", shape=(3, 16, 16))
    assert "\n" not in str(error.value)


def test_a_configuration_that_names_a_kernel_of_a_repository_loads_none(folders, tmp_path):
    """Transformers would fetch the repository, and run it."""
    folder = shutil.copytree(folders["vit"], tmp_path / "vit")
    entries = json.loads((folder / "config.json").read_text()) | {"attn_implementation": "somebody/kernel"}
    (folder / "config.json").write_text(json.dumps(entries))
    encoder = load(f"hf/{folder}")
    assert encoder.model.net.config._attn_implementation in {"sdpa", "eager"}
    checkpoint = describe(f"hf/{folder}", "image")
    checkpoint["config"]["_attn_implementation"] = "somebody/kernel"  # in the configuration of a run
    again = PretrainedEncoder(f"hf/{folder}", "image", (3, 16, 16), checkpoint, weights=False)
    assert again.model.net.config._attn_implementation in {"sdpa", "eager"}


@pytest.mark.parametrize(
    ("name", "kind", "options", "message"),
    [
        ("bert", "image", {"shape": (3, 16, 16)}, "takes tokens of the tokeniser.*cannot be the encoder of.*'image'"),
        ("vit", "image", {"shape": (3, 40, 40)}, r"fails on inputs of shape \(3, 40, 40\)"),
        ("vit", "image", {"pooling": "max"}, "should be one of mean, cls, pooler. Found max"),
        ("vit", "image", {"pooling": "pooler"}, "has no trained pooler: its checkpoint lacks pooler.dense"),
        ("resnet", "image", {"pooling": "cls"}, "has no tokens"),
        ("t5", "text", {"pooling": "pooler"}, "has no pooler"),
    ],
)
def test_what_does_not_fit_a_model_is_told(folders, name, kind, options, message):
    with pytest.raises(ValueError, match=message):
        load(f"hf/{folders[name]}", kind, **options)


def test_names_without_a_model_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"written hf/NAME, hf/FOLDER or timm/NAME. Found 'vit'"):
        describe("vit", "image")
    (tmp_path / "somewhere").mkdir()
    with pytest.raises(ValueError, match="There is no folder .*somewher with.* Did you mean 'somewhere'"):
        describe(f"hf/{tmp_path}/somewher", "image")
    with pytest.raises(
        ValueError, match="hf/nobody/nothing is no checkpoint of Transformers, in a folder or on the hub"
    ):
        describe("hf/nobody/nothing", "image")


def test_timm_by_its_interface(tmp_path, monkeypatch):
    fake_timm.install(monkeypatch)
    saved = fake_timm.save(tmp_path / "net", width=9)
    name = f"timm/local-dir:{tmp_path / 'net'}"
    encoder = load(name)
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(encoder(x), saved.conv(x).mean((2, 3)))
    assert (encoder.num_features, encoder.input.mean, encoder.input.size) == (9, (0.2,) * 3, (16, 16))
    highest = load(name, pooling="max", frozen=True, gradient_checkpointing=True)
    torch.testing.assert_close(highest(x), saved.conv(x).amax((2, 3)))
    assert not highest.model.net.checkpointed  # frozen, it is in evaluation mode
    trained = load(name, gradient_checkpointing=True)
    for mode in (True, False):
        trained.train(mode)(x)
        assert trained.model.net.checkpointed == mode
    checkpoint = json.loads(json.dumps(describe(name, "image")))
    shutil.rmtree(tmp_path / "net")
    again = PretrainedEncoder(name, "image", (3, 16, 16), checkpoint, weights=False)
    again.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(again(x), encoder(x), rtol=0, atol=0)
    fake_timm.save(tmp_path / "net", width=8)
    with pytest.raises(ValueError, match="is not the checkpoint that this run began with"):
        PretrainedEncoder(name, "image", (3, 16, 16), checkpoint)
    with pytest.raises(ValueError, match=r"There is no model 'resnt18' in timm 1.0.0. Did you mean 'resnet18'\?"):
        load("timm/resnt18")
    with pytest.raises(ValueError, match="timm/tiny.a1 cannot be made: No pretrained weights exist"):
        load("timm/tiny.a1")
    with pytest.raises(ValueError, match="cannot be the encoder of a modality of kind 'text'"):
        load(name, "text", (4,))


def test_without_timm_its_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(ModuleNotFoundError, match=r'timm is not installed. Run: pip install "bmlr\[timm\]"'):
        load("timm/resnet18")
