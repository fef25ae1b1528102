"""CH-SIMS, UR-FUNNY, MUStARD and MultiBench's raw MOSI on files of the published layouts, by the commands."""

import json
import pickle

import numpy as np
import pytest
import torch

import bmlr.data
from bmlr.cli import main
from bmlr.data.inspection import inspect_data
from bmlr.data.inspection._traps import known_traps
from bmlr.data.sets._sentiment_store import prepare_sentiment

WIDTHS = {
    "unaligned_39.pkl": {"text": 768, "vision": 709, "audio": 33},
    "humor.pkl": {"text": 300, "vision": 371, "audio": 81},
    "sarcasm.pkl": {"text": 300, "vision": 371, "audio": 81},
    "mosi_raw.pkl": {"text": 300, "vision": 35, "audio": 74},
}


def features(rng, file, targets, *, front):
    """Padded float64 features, and the number of real steps of each sample; classes can be learnt."""
    values, lengths = {}, {}
    for modality, width in WIDTHS[file].items():
        steps = 10
        array = np.zeros((len(targets), steps, width))
        lengths[modality] = [int(n) for n in rng.integers(1, steps, len(targets))]
        for row, length, target in zip(array, lengths[modality], targets, strict=True):
            row[steps - length if front else 0 : steps if front else length] = rng.normal(size=(length, width)) + target
        values[modality] = array
    return values, lengths


def write_sims(path, sizes=(30, 10, 12)):
    """MMSA's layout: tail padding, scores in fifths, clips of a video in several splits."""
    rng = np.random.default_rng(0)
    content, clip = {}, 0
    for split, size in zip(("train", "valid", "test"), sizes, strict=True):
        scores = (rng.integers(-5, 6, size) / 5).astype(np.float32)
        values, lengths = features(rng, path.name, scores, front=False)
        tokens = np.zeros((size, 3, 10), np.float32)
        for row, length in zip(tokens, lengths["text"], strict=True):
            row[1, :length] = 1
        clips = range(clip, clip + size)
        clip += size
        content[split] = {
            **values,
            "raw_text": np.array([f"句子{n}" for n in clips]),
            "id": np.array([f"video_{n % 9:04}$_${n:04}" for n in clips]),
            "text_bert": tokens,
            "audio_lengths": lengths["audio"],
            "vision_lengths": lengths["vision"],
            "regression_labels": scores,
            **{f"regression_labels_{u}": scores[::-1].copy() for u in "TAV"},
            "classification_labels": np.sign(scores) + 1,
        }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content))
    return content


def write_multibench(path, values=(0, 1), sizes=(24, 8, 8)):
    """MultiBench's layout: front padding, labels (N, 1), plain identifiers."""
    rng = np.random.default_rng(0)
    content, first = {}, 0
    for split, size in zip(("train", "valid", "test"), sizes, strict=True):
        labels = np.asarray(values)[rng.integers(0, len(values), size)].astype(np.float64)
        arrays, _ = features(rng, path.name, labels, front=True)
        arrays["audio"][0, -1, 0] = -np.inf
        if path.name == "mosi_raw.pkl":
            names = np.array([f"v{n // 2}[{n % 2}]" for n in range(first, first + size)])
        else:
            names = np.arange(first, first + size)[:, None]
        first += size
        content[split] = {**arrays, "labels": labels[:, None], "id": names}
    path.write_bytes(pickle.dumps(content))
    return content


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BMLR_CACHE", str(tmp_path / "cache"))


def test_ch_sims(tmp_path, capsys):
    content = write_sims(tmp_path / "SIMS" / "Processed" / "unaligned_39.pkl")
    assert main(["prepare", "ch-sims", str(tmp_path), str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "5 classes, 52 samples, 0 rejected" in printed
    assert "leaves out" not in printed
    paper = bmlr.data.create("ch-sims", root=tmp_path / "out", protocol="paper", standardise=False)
    for split, published in {"train": "train", "val": "valid", "test": "test"}.items():
        scores = content[published]["regression_labels"]
        assert paper.split(split).targets.tolist() == (np.sign(scores) + 1).astype(int).tolist()
        assert paper.split(split).groups == [name.partition("$_$")[0] for name in content[published]["id"]]
        batch = paper.split(split).batch(range(len(scores)))
        for modality, shape in (("vision", 709), ("audio", 33), ("text", 768)):
            real = batch.inputs[modality].any(2).sum(1).tolist()
            stated = content[published]["text_bert"][:, 1].sum(1).tolist()
            assert real == (stated if modality == "text" else content[published][f"{modality}_lengths"])
            assert batch.inputs[modality].shape[2] == shape
    scores = np.array(paper.scores("test"))
    five = bmlr.data.create("ch-sims", root=tmp_path / "out", protocol="paper", num_classes=5)
    # From the definition: bounds −0.7, −0.1, 0.1 and 0.7, of which each belongs to the class below.
    expected = [sum(score > bound for bound in (-0.7, -0.1, 0.1, 0.7)) for score in scores]
    assert five.split("test").targets.tolist() == expected
    two = bmlr.data.create("ch-sims", root=tmp_path / "out", protocol="paper", num_classes=2)
    assert two.split("test").targets.tolist() == (scores > 0).astype(int).tolist()
    numbers = bmlr.data.create("ch-sims", root=tmp_path / "out", task="regression")
    assert numbers.split("test").targets.dtype == torch.float32
    assert numbers.hparams["task"] == "regression"
    clean = bmlr.data.create("ch-sims", root=tmp_path / "out")
    groups = {name: set(clean.split(name).groups) for name in ("train", "val", "test")}
    assert sum(len(clean.split(name)) for name in groups) == 52
    assert not groups["train"] & groups["val"]
    assert not (groups["train"] | groups["val"]) & groups["test"]
    found = inspect_data(paper)
    assert found.leaks
    assert any("source videos and their speakers are in several splits" in trap for trap in found.traps)


@pytest.mark.parametrize(
    ("name", "file", "values", "classes"),
    [
        ("ur-funny", "humor.pkl", (0, 1), ("not humorous", "humorous")),
        ("mustard", "sarcasm.pkl", (-1, 1), ("not sarcastic", "sarcastic")),
    ],
)
def test_humour_and_sarcasm(tmp_path, capsys, name, file, values, classes):
    content = write_multibench(tmp_path / file, values)
    assert main(["prepare", name, str(tmp_path), str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "2 classes, 40 samples, 0 rejected" in printed
    assert "padding in front; set to 0: 0 NaN, 3 −∞, 0 +∞" in printed
    data = bmlr.data.create(name, root=tmp_path / "out")
    assert data.protocol == "paper"
    assert data.classes == classes
    for split, published in {"train": "train", "val": "valid", "test": "test"}.items():
        assert data.split(split).targets.tolist() == (content[published]["labels"][:, 0] > 0).astype(int).tolist()
        assert data.split(split).ids == [str(number) for number in content[published]["id"][:, 0]]
    words = ["--data.root", str(tmp_path / "out")]
    assert main(["inspect", name, *words, "--data.protocol", "clean"]) == 2
    assert "Option --data.protocol should be paper. Found clean." in capsys.readouterr().err
    assert main(["inspect", name, *words, "--sheet", str(tmp_path / "s.png")]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert f"Known of {name}:" in printed
    assert "here are 40" in printed
    assert "LEAKAGE" not in printed
    run = ["train", name, *words, "--method=BMLR", "--trainer.epochs=1", "--model.width=2", "--trainer.logger=none"]
    assert main([*run, "--run", str(tmp_path / "run")]) == 0


def test_files_of_another_data_set_are_refused(tmp_path):
    write_multibench(tmp_path / "humor.pkl", (0, 1))
    (tmp_path / "sarcasm.pkl").write_bytes((tmp_path / "humor.pkl").read_bytes())
    with pytest.raises(ValueError, match="they range from 0 to 1, and those of 'mustard' are -1 and 1"):
        prepare_sentiment("mustard", tmp_path, tmp_path / "out")
    write_multibench(tmp_path / "humor.pkl", (-0.4, 0.2))
    with pytest.raises(ValueError, match="those of 'ur-funny' are 0 and 1"):
        prepare_sentiment("ur-funny", tmp_path, tmp_path / "out")
    content = write_sims(tmp_path / "unaligned_39.pkl")
    content["train"]["regression_labels"][0] = 2.4
    (tmp_path / "unaligned_39.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=r"they range from -1 to 2\.4, beyond \[-1, 1\]"):
        prepare_sentiment("ch-sims", tmp_path, tmp_path / "out")
    with pytest.raises(ValueError, match="Its widths, .*, are those of 'ch-sims'"):
        prepare_sentiment("mosi", tmp_path / "unaligned_39.pkl", tmp_path / "out")


def test_the_raw_features_of_mosi(tmp_path, capsys):
    write_multibench(tmp_path / "mosi_raw.pkl", (-2.4, -0.8, 0.0, 1.0, 2.6), sizes=(24, 8, 8))
    assert main(["prepare", "mosi", str(tmp_path), str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "7 classes, 40 samples, 0 rejected" in printed
    assert "has widths" not in printed
    data = bmlr.data.create("mosi", root=tmp_path / "out")
    assert data.split("test").groups[:2] == ["v16", "v16"]


def test_traps_are_those_of_published_data_only(tmp_path, capsys):
    assert main(["inspect", "synthetic", "--json", "--sheet", str(tmp_path / "s.png")]) == 0
    assert json.loads(capsys.readouterr().out)["traps"] == []
    for name in bmlr.data.available():
        published = name not in {"digits", "synthetic", "manifest", "arrays"}
        traps = known_traps(name, 1234, 34)
        assert bool(traps) == published, name
        if name == "kinetics-sounds":
            assert "31 to 34 classes" in traps[0]
            assert "here are 34 classes and 1,234 clips" in traps[0]
