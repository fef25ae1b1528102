"""Tables of several labels, of numbers, of texts and of frames of any channels: from the table to a prediction."""

import csv
import json
import re

import numpy as np
import pytest
import torch

import bmlr.data
from bmlr.cli import main
from bmlr.config import ModelOptions, OptimizerOptions, RunConfig, TrainerOptions, build_model, fill_defaults
from bmlr.data.sets._table_files import parse_table
from bmlr.data.sets._table_store import prepare_table
from bmlr.data.store._options import PrepareOptions
from bmlr.data.transforms._tokens import Vocabulary, split_words
from bmlr.methods import BMLR, Joint
from bmlr.tasks import MultiLabel, Regression
from bmlr.training import LoadedRun

OPTIONS = PrepareOptions(workers=0, size=16, progress=False, max_rejected=0.5)
TRAIN = ["train", "--data", "manifest", "--data.root", "out", "--method", "Joint", "--trainer.epochs", "1"]
WORDS = ("bird", "dog", "cat")


def write_table(folder, targets, *, column="label", captions=None):
    """A table of ``targets`` with a vector each and a caption, and its vectors."""
    rng = np.random.default_rng(0)
    rows = []
    for number, target in enumerate(targets):
        np.save(folder / f"a{number}.npy", rng.normal(size=3))
        caption = captions[number] if captions else f"A {WORDS[number % 3]}, seen {number % 2} times"
        rows.append([f"s{number}", target, f"a{number}.npy", caption])
    path = folder / "t.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["id", column, "a", "caption:text"], *rows])
    return path


def prepared(folder, targets, **arguments):
    parameters = {name: arguments.pop(name) for name in ("max_tokens", "tokeniser") if name in arguments}
    result = prepare_table(write_table(folder, targets, **arguments), folder / "out", OPTIONS)
    data = bmlr.data.create("manifest", root=folder / "out", **parameters)
    data.prepare()
    return result, data


# Several labels


def test_several_labels_are_zeros_and_ones(tmp_path):
    targets = ["loud", "bright|loud", "|", " bright | bright ", "loud|dim", "dim"] * 5
    result, data = prepared(tmp_path, targets)
    assert data.task == MultiLabel(3)
    assert data.classes == ("bright", "dim", "loud")
    assert result.counts == {"": {"bright": 10, "dim": 10, "loud": 15}}
    assert result.samples == {"": 30}
    wanted = [[0, 0, 1], [1, 0, 1], [0, 0, 0], [1, 0, 0], [0, 1, 1], [0, 1, 0]] * 5
    np.testing.assert_array_equal(data.store.targets, np.array(wanted, dtype=np.float32))
    batch = data.split("train").batch([0, 1])
    data.task.check_targets(batch.targets, 2)
    shares = [data.split(name).targets.mean(0) for name in ("val", "test")]
    assert all((share > 0).all() for share in shares)  # rare labels are in every split


def test_a_table_without_a_separator_is_of_classes():
    assert parse_table(b"label,a,b\nx,1.npy,2.npy\n", "t").task == "multiclass"
    assert parse_table(b"label,a,b\nx,1.npy,2.npy\nx|y,1.npy,2.npy\n", "t").task == "multilabel"
    assert parse_table(b"target,a,b\n1,1.npy,2.npy\n", "t").task == "regression"


def test_labels_without_a_meaning_are_told(tmp_path):
    result, _ = prepared(tmp_path, ["on|x", "on", "on|y|x", "on|rare", "on|nan", ""] * 5 + ["on|once"])
    text = " ".join(result.notes)
    assert "every sample has the label 'on', which so tells nothing" in text
    assert "1 class has at most 2 samples: 'once'" in text
    assert "10 of 31 samples have no label ('nan') and are left out" in text


# Numbers


def test_numbers_are_targets_of_regression(tmp_path):
    numbers = [str(round(0.1 * n - 1, 2)) for n in range(30)]
    result, data = prepared(tmp_path, numbers, column="target")
    assert data.task == Regression()
    assert data.classes == ()
    assert result.numbers[""].min == pytest.approx(-1)
    assert data.store.targets.dtype == np.float32
    np.testing.assert_allclose(data.store.targets, np.array(numbers, dtype=float), atol=1e-6)
    batch = data.split("train").batch([0, 1])
    data.task.check_targets(batch.targets, 2)
    for name in ("val", "test"):  # every split spans the range
        assert data.split(name).targets.max() > data.split(name).targets.min()


def test_targets_that_are_none_are_left_out_or_rejected(tmp_path):
    numbers = [f"{0.1 * n:.1f}" for n in range(20)] + ["nan", "", "many", "inf"]
    result, data = prepared(tmp_path, numbers, column="target")
    assert len(data.store) == 20
    assert "2 of 24 samples have no target and are left out" in " ".join(result.notes)
    reasons = {rejection.id: rejection.reason for rejection in result.rejected}
    assert reasons["s22"] == "row 24: column 'target' should hold a number. It holds 'many'."
    assert "It holds 'inf'" in reasons["s23"]


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        (
            [str(n % 3) for n in range(20)],
            "3 whole numbers only (0, 1, 2). If they are classes, name the column 'label'",
        ),
        ([*[f"{n / 7:.3f}" for n in range(20)], "-999"], "1 of 21 targets are far from all others, such as -999"),
        ([f"{20000 + 10 * n}.5" for n in range(20)], "Divide them by 10000, say."),
        ([f"0,{n + 1}" for n in range(20)], "Commas in the targets are decimal: 0,1 is 0.1."),
        ([*[f"{n}.5" for n in range(19)], "1,500"], "It holds '1,500'. Write 1234.5, without commas"),
    ],
)
def test_odd_numbers_are_named(tmp_path, numbers, message):
    result, _ = prepared(tmp_path, numbers, column="target")
    assert message in " ".join([*result.notes, *(rejection.reason for rejection in result.rejected)])


def test_a_constant_target_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"The targets of .*t\.csv are all 3, so that there is nothing to predict"):
        prepared(tmp_path, ["3", "3.0"] * 10, column="target")


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ("label,target,a,b", "It has both: head one of them 'NAME:extra'"),
        ("targt,a,b", "Is it 'targt'?"),
        ("label,a,remark", "name it 'remark:text' if it holds texts"),
    ],
)
def test_a_table_says_what_its_targets_are(head, message):
    cells = ",".join("a remark" if name == "remark" else f"{name}.npy" for name in head.split(","))
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_table(f"{head}\n{cells}\n".encode(), "t.csv")


# Texts


def test_words_are_those_of_several_training_texts(tmp_path):
    captions = [f"The {WORDS[n % 3]} {'flies' if n % 2 else 'rests'}. Only{n}!" for n in range(30)]
    _, data = prepared(tmp_path, ["x", "y"] * 15, captions=captions)
    form = data.modalities["caption"]
    assert (form.kind, form.num_tokens, form.padding) == ("text", 2 + 8, 0)
    train = data.split("train")
    tokens = train.batch([0]).inputs["caption"]
    assert tokens.dtype == torch.int64
    assert tokens.shape == (1, 6)
    assert tokens[0, 4] == 1  # a word of one text only is unknown
    kept = bmlr.data.create("manifest", root=tmp_path / "out")
    kept.restore_preprocessing(data.preprocessing())
    row = int(train.rows[0])
    new = kept.load_files({"a": tmp_path / f"a{row}.npy", "caption": captions[row]})
    torch.testing.assert_close(new["caption"], tokens)


def test_texts_may_be_files_and_may_be_missing(tmp_path):
    rows = ["id,label,a,caption"]
    for number in range(20):
        np.save(tmp_path / f"a{number}.npy", np.random.default_rng(number).normal(size=3))
        (tmp_path / f"c{number}.txt").write_text(f"a {WORDS[number % 3]}\n", encoding="utf-8")
        rows.append(f"s{number},{'xy'[number % 2]},a{number}.npy,{f'c{number}.txt' if number % 4 else ''}")
    (tmp_path / "c1.txt").write_bytes(b"caf\xe9 au lait")
    (tmp_path / "t.csv").write_text("\n".join(rows), encoding="utf-8")
    result = prepare_table(tmp_path / "t.csv", tmp_path / "out", OPTIONS)
    assert [rejection.id for rejection in result.rejected] == ["s1"]
    assert "should be text in UTF-8" in result.rejected[0].reason
    data = bmlr.data.create("manifest", root=tmp_path / "out")
    train = data.split("train")
    batch = train.batch(range(len(train)))
    absent = ~batch.present["caption"]
    assert absent.any()
    assert not batch.inputs["caption"][absent].any()
    assert batch.inputs["caption"][~absent].any(1).all()


def test_long_texts_are_cut_and_counted(tmp_path):
    captions = ["word " * (10 if n == 3 else 2) for n in range(20)]
    _, data = prepared(tmp_path, ["x", "y"] * 10, captions=captions, max_tokens=4)
    assert data.modalities["caption"].shape == (4,)
    (remark,) = data.remarks
    assert remark.startswith("1 of 20 texts of 'caption' have more than 4 tokens, up to 10. Their first 4 are used;")


def test_texts_that_share_no_word_are_refused(tmp_path):
    with pytest.raises(ValueError, match="should share words. No word is in two of them"):
        prepared(tmp_path, ["x", "y"] * 10, captions=[f"word{n}" for n in range(20)])


def test_words_of_all_scripts():
    assert split_words("Ein Über-Hund, naïve café") == ["ein", "über", "-", "hund", ",", "naïve", "café"]
    assert split_words("我喜欢 cats") == ["我", "喜", "欢", "cats"]
    vocabulary = Vocabulary.of_texts(["b a", "a b c", "c"], 2)
    assert vocabulary.words == ("a", "b")  # of equal frequency in the order of the alphabet
    assert vocabulary.encode("", 5)[0].tolist() == [1]  # a text is never padding alone


def test_a_tokeniser_of_hugging_face_makes_the_tokens(tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = tmp_path / "tokeniser"
    folder.mkdir()
    (folder / "vocab.txt").write_text(
        "\n".join(["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]", "a", "bird", "dog", ","])
    )
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    _, data = prepared(tmp_path, ["x", "y"] * 10, tokeniser=f"hf/{folder}")
    own = transformers.AutoTokenizer.from_pretrained(folder)
    train = data.split("train")
    tokens = train.batch([0, 1, 2]).inputs["caption"]
    texts = train.texts("caption", [0, 1, 2])
    wanted = own(texts, padding="max_length", max_length=tokens.shape[1], return_tensors="pt")["input_ids"]
    torch.testing.assert_close(tokens, wanted)
    assert data.modalities["caption"].padding == own.pad_token_id
    digest = data.content_digest
    (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text().replace('"bird"', '"birds"'))
    bmlr.data.transforms._tokens.load_tokeniser.cache_clear()
    assert data.content_digest != digest
    with pytest.raises(ValueError, match=r"There is no tokeniser hf/.*nowhere"):
        bmlr.data.create("manifest", root=tmp_path / "out", tokeniser=f"hf/{tmp_path}/nowhere").prepare()
    with pytest.raises(ValueError, match=r"`tokeniser` should be 'words' or 'hf/NAME-or-folder'. Found"):
        bmlr.data.create("manifest", root="out", tokeniser="bert")


# Frames of any channels


def frames_of(number, shape, dtype="float32"):
    values = np.random.default_rng(number).normal(3, 2, shape)
    return values.astype(dtype) if dtype == "float32" else (values.clip(0, 6) * 40).astype(dtype)


def test_frames_are_arrays_or_folders_of_any_channels(tmp_path):
    rows = ["label,move:flow,depth:frames,spectral:frames"]
    for number in range(20):
        np.save(tmp_path / f"m{number}.npy", frames_of(number, (4, 2, 16, 20)))
        np.save(tmp_path / f"d{number}.npy", frames_of(number + 50, (3 + number % 2, 20, 16), "uint8"))
        (tmp_path / f"s{number}").mkdir()
        for time in range(11):
            np.save(tmp_path / f"s{number}" / f"frame{time}.npy", frames_of(time, (16, 16, 5)) + 20 * time)
        rows.append(f"{'xy'[number % 2]},m{number}.npy,d{number}.npy,s{number}")
    (tmp_path / "t.csv").write_text("\n".join(rows))
    prepare_table(tmp_path / "t.csv", tmp_path / "out", OPTIONS)
    data = bmlr.data.create("manifest", root=tmp_path / "out", frames=4)
    data.prepare()
    shapes = {name: form.shape for name, form in data.modalities.items()}
    assert shapes == {"move": (4, 2, 16, 16), "depth": (4, 1, 16, 16), "spectral": (4, 5, 16, 16)}
    row = data.store.samples[0]
    assert data.store.values("spectral", 0)[:, 0, 0, 0].argmax() == 10  # frame10 is the last, not the third
    assert row.files["spectral"]["seconds"] == 11
    train = data.split("train")
    values = train.batch(range(len(train))).inputs
    for name in shapes:  # by channel over the training split
        torch.testing.assert_close(values[name].mean((0, 1, 3, 4)), torch.zeros(shapes[name][1]), atol=0.2, rtol=0)
        torch.testing.assert_close(values[name].std((0, 1, 3, 4)), torch.ones(shapes[name][1]), atol=0.3, rtol=0)
    assert train.forms["move"].flip == 0  # a mirror would reverse the direction
    assert train.forms["depth"].flip == 0.5
    new = data.load_files({"move": tmp_path / "m0.npy", "depth": tmp_path / "d0.npy", "spectral": tmp_path / "s0"})
    position = next((name, rows.tolist().index(0)) for name, rows in data._rows.items() if 0 in rows)
    seen = data.split(position[0]).batch([position[1]]).inputs
    for name, value in new.items():
        torch.testing.assert_close(value, seen[name])


@pytest.mark.parametrize(
    ("shape", "message"),
    [((4, 5), r"should hold frames of shape \(T, H, W, C\)"), ((2, 80, 90, 99), "at most 64 channels")],
)
def test_arrays_that_are_no_frames_are_rejected(tmp_path, shape, message):
    rows = ["label,move:flow,a"]
    for number in range(20):
        np.save(tmp_path / f"m{number}.npy", frames_of(number, shape if number == 5 else (2, 8, 8, 2)))
        np.save(tmp_path / f"a{number}.npy", frames_of(number, 3))
        rows.append(f"{'xy'[number % 2]},m{number}.npy,a{number}.npy")
    (tmp_path / "t.csv").write_text("\n".join(rows))
    result = prepare_table(tmp_path / "t.csv", tmp_path / "out", OPTIONS)
    assert len(result.rejected) == 1
    assert re.search(message, result.rejected[0].reason)


# From the table to a prediction


def test_a_pretrained_encoder_of_texts_has_its_tokens_also_where_its_checkpoint_is_gone(tmp_path, capsys, monkeypatch):
    transformers = pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "bert"
    folder.mkdir()
    words = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]", "a", "bird", "dog", "cat", "seen", ","]
    (folder / "vocab.txt").write_text("\n".join(words))
    tokeniser = transformers.BertTokenizerFast(str(folder / "vocab.txt"))
    tokeniser.save_pretrained(folder)
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    transformers.BertModel(
        transformers.BertConfig(
            vocab_size=len(words), **size, max_position_embeddings=16, pad_token_id=tokeniser.pad_token_id
        )
    ).save_pretrained(folder)
    prepare_table(write_table(tmp_path, ["x", "y"] * 12), tmp_path / "out", OPTIONS)
    line = [
        "train",
        "--data",
        "manifest",
        "--data.root",
        "out",
        "--method",
        "Joint",
        "--trainer.epochs",
        "1",
        "--run",
        "r",
    ]
    line += ["--trainer.accelerator", "cpu", "--model.width", "4", "--model.encoders.caption", f"hf/{folder}"]
    assert main(line) == 0, capsys.readouterr().err
    kept = json.loads((tmp_path / "r" / "data.json").read_text())["preprocessing"]
    assert kept["modalities"]["caption"]["padding"] == tokeniser.pad_token_id
    folder.rename(tmp_path / "gone")
    capsys.readouterr()
    assert main(["predict", "r", "caption=A cat, seen", "a=a0.npy", "--json"]) == 0, capsys.readouterr().err
    (answer,) = json.loads(capsys.readouterr().out)
    assert sum(answer["probabilities"]["caption"].values()) == pytest.approx(1)
    assert main(["predict", "r", "caption=cat.txt", "a=a0.npy"]) == 2
    assert "There is no text file cat.txt" in capsys.readouterr().err


def test_one_modality_of_numbers_is_trained_alone(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, data = prepared(tmp_path, [f"{n / 7:.3f}" for n in range(30)], column="target")
    assert bmlr.data.SelectedModalities(data, ["a"]).task == Regression()
    line = [*TRAIN, "--run", "r"]
    line += ["--model.modalities", "a", "--model.width", "4", "--trainer.accelerator", "cpu"]
    assert main(line) == 0, capsys.readouterr().err


@pytest.mark.parametrize("column", ["label", "target"])
def test_labels_and_numbers_are_learnt_and_predicted(tmp_path, capsys, monkeypatch, column):
    monkeypatch.chdir(tmp_path)
    targets = [
        ["loud", "loud|dim", "|"][n % 3] if column == "label" else f"{n % 3 - 1 + n / 1000:.3f}" for n in range(30)
    ]
    _, data = prepared(tmp_path, targets, column=column)
    torch.manual_seed(0)
    options = fill_defaults(data, ModelOptions(width=4, depth=1, heads=1), OptimizerOptions(), TrainerOptions())
    model, method = build_model(data, options[0]), BMLR() if column == "label" else Joint()
    method.setup(model)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    batch = data.split("train").batch(range(len(data.split("train"))))
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        losses.append(data.task.loss(model(batch.inputs, batch.present).logits, batch.targets))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0] / 3
    run = LoadedRun(RunConfig(data, method, *options, 0), model.eval(), method.eval())
    monkeypatch.setattr("bmlr.training.load", lambda *_, **__: run)
    line = ["predict", "r", "a=a1.npy", "caption=A dog, seen 1 times"]
    assert main([*line, "--json"]) == 0, capsys.readouterr().err
    (answer,) = json.loads(capsys.readouterr().out)
    if column == "label":
        assert answer["labels"] == ["dim", "loud"]
        assert all(0 <= value <= 1 for value in answer["probabilities"]["fused"].values())
    else:
        assert answer["targets"]["fused"]["target"] == pytest.approx(0, abs=0.5)
    assert main(line) == 0
    assert column in capsys.readouterr().out
    (tmp_path / "new.csv").write_text('id,a,caption\nbirds,a0.npy,"A bird, seen 0 times"\nnone,gone.npy,A dog\n')
    assert main(["predict", "r", "new.csv", "--out", "out.csv"]) == 2
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        first, second = csv.DictReader(file)
    wanted = {"label": ("labels", "labels by a"), "target": ("target", "target by a")}[column]
    assert set(wanted) <= set(first)
    assert first["sample"] == "birds"
    assert (first["labels"] == "loud") if column == "label" else (abs(float(first["target"]) + 1) < 0.5)
    assert "gone.npy" in second["error"]
