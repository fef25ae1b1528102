"""What an inspection says of data whose content is known, and that its images show what is there."""

import functools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import bmlr.data
from axes import record_figures, shown_texts
from bmlr.batch import Batch
from bmlr.cli import main
from bmlr.data import ArraySplit, Modality, MultimodalData, Synthetic
from bmlr.data.inspection import contact_sheet, inspect_data
from bmlr.data.sets._table_store import prepare_table
from bmlr.data.store._options import PrepareOptions

sys.path.insert(0, str(Path(__file__).parent))
from table_fixtures import write_samples, write_table

SIZES = {"train": 8, "val": 4, "test": 4}


class Known(MultimodalData):
    """Vectors and images with everything about them chosen by the test.

    Args:
        protocol: clean or paper.
    """

    name = "known"
    classes = ("left", "right")

    def __init__(self, protocol: str = "clean", **changes):
        self.protocol = protocol
        self.modalities = {"code": Modality("vector", (3,)), "photo": Modality("image", (1, 4, 5))}
        rng = np.random.default_rng(0)
        self.inputs = {
            name: {"code": rng.normal(size=(n, 3)), "photo": rng.normal(size=(n, 1, 4, 5))} for name, n in SIZES.items()
        }
        self.targets = {split: np.arange(n) % 2 for split, n in SIZES.items()}
        self.groups = {split: [f"{split}{i // 2}" for i in range(n)] for split, n in SIZES.items()}
        self.present = dict.fromkeys(SIZES)
        for name, values in changes.items():
            setattr(self, name, values)

    def prepare(self):
        pass

    def split(self, name):
        return ArraySplit(self.inputs[name], self.targets[name], present=self.present[name], groups=self.groups[name])

    def load_files(self, files):
        raise ValueError("no files")


class Broken(Known):
    """A data set whose batches are changed on their way."""

    def split(self, name):
        split = super().split(name)
        whole = split.batch
        split.batch = lambda indices, **_: self.change(whole(indices))
        return split


def test_counts_groups_and_rates_are_those_of_the_splits():
    data = Known()
    data.targets["test"] = np.array([0, 0, 0, 1])
    found = inspect_data(data)
    assert {name: split.samples for name, split in found.splits.items()} == SIZES
    assert found.splits["test"].counts == {"left": 3, "right": 1}
    assert found.splits["test"].majority_rate == 0.75 == data.constant_score("test")
    assert {name: split.groups for name, split in found.splits.items()} == {"train": 4, "val": 2, "test": 2}
    assert (found.leaks, found.duplicates, found.alarms) == ((), (), ())
    assert found.remarks == (
        "The validation split has 4 samples: each is 25.0 % of it.",
        "The test split has 4 samples: each is 25.0 % of it.",
    )
    assert found.rejected is None


def test_values_are_described_without_what_is_missing_or_no_number():
    data = Known()
    there = np.array([True, False] * 4)
    data.present["train"] = {"code": there}
    data.inputs["train"]["code"][~there] = 1e9
    data.inputs["train"]["code"][0, 0] = np.nan
    data.inputs["train"]["code"][2, 1:] = np.inf, -np.inf
    found = inspect_data(data)
    report = found.splits["train"].inputs["code"]
    kept = data.inputs["train"]["code"][there].astype(np.float32)
    kept = kept[np.isfinite(kept)]
    assert (report.missing, report.nan, report.infinite) == (0.5, 1, 2)
    assert (report.min, report.max) == (kept.min(), kept.max())
    assert report.mean == pytest.approx(kept.mean(), abs=1e-6)
    assert report.std == pytest.approx(kept.std(), rel=1e-6)
    assert any("'code' of split 'train' holds 1 NaN and 2 infinite values" in alarm for alarm in found.alarms)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 120), st.floats(-1e3, 1e3))
def test_mean_and_std_do_not_depend_on_how_the_batches_fall(count, shift):
    data = Known()
    values = np.random.default_rng(count).normal(shift, 1, (count, 3))
    data.inputs["train"] = {"code": values, "photo": np.zeros((count, 1, 4, 5))}
    data.targets["train"], data.groups["train"] = np.arange(count) % 2, None
    report = inspect_data(data).splits["train"].inputs["code"]
    assert report.mean == pytest.approx(values.astype(np.float32).astype(float).mean(), rel=1e-9, abs=1e-9)
    assert report.std == pytest.approx(values.astype(np.float32).astype(float).std(), rel=1e-9)


@pytest.mark.parametrize("protocol", ["clean", "paper"])
def test_shared_groups_are_named_and_their_samples_counted(protocol):
    data = Known(protocol)
    data.groups["test"] = ["train0", "train0", "train3", "other"]
    found = inspect_data(data)
    (leak,) = found.leaks
    assert leak.splits == ("train", "test")
    assert leak.groups == ("train0", "train3")
    assert leak.samples == {"train": 4, "test": 3}
    sentence = "LEAKAGE: train and test share 2 groups (train0, train3), with 4 samples of train and 3 samples of test"
    said = found.alarms if protocol == "clean" else found.remarks
    assert len([text for text in said if "LEAKAGE" in text]) == 1
    assert said[0].startswith(sentence)
    assert ("protocol 'clean' says that splits share none" in said[0]) == (protocol == "clean")


def test_inputs_that_are_the_same_in_two_splits_are_found_but_not_silence():
    data = Known()
    data.inputs["val"]["photo"][1] = data.inputs["train"]["photo"][3]
    data.inputs["val"]["photo"][2] = data.inputs["train"]["photo"][3]
    for split in SIZES:
        data.inputs[split]["code"][0] = 0
    found = inspect_data(data)
    (same,) = found.duplicates
    assert (same.modality, same.splits, same.samples) == ("photo", ("train", "val"), {"train": 1, "val": 2})
    assert len(found.alarms) == 1
    assert found.splits["val"].inputs["code"].constant == 1
    assert "1 sample of split 'val' with a constant 'code'." in found.remarks


def test_two_modalities_with_the_same_inputs_are_an_alarm():
    data = Known()
    data.modalities["copy"] = Modality("vector", (3,))
    for name, inputs in data.inputs.items():
        inputs["copy"] = inputs["code"] if name == "train" else inputs["code"] + 1
    assert inspect_data(data).alarms == ("'code' and 'copy' are the same, number for number, in 8 samples of train.",)


def test_a_class_without_samples_is_an_alarm_in_training_and_a_remark_elsewhere():
    data = Known()
    data.targets["train"][:] = 0
    data.targets["val"][:] = 1
    found = inspect_data(data)
    assert found.alarms == ("Split 'train' has no sample of 1 of 2 classes: right.",)
    assert found.remarks[0] == "Split 'val' has no sample of 1 of 2 classes: left."


def test_without_groups_that_is_said():
    found = inspect_data(Known(groups=dict.fromkeys(SIZES)))
    assert found.splits["train"].groups is None
    assert "No groups are known" in found.remarks[0]


def test_a_sample_of_the_values_is_read_and_all_is_counted():
    found = inspect_data(Known(), samples=4)
    assert found.splits["train"].n_read == 4
    assert sum(found.splits["train"].counts.values()) == 8


def test_steps_of_sequences_are_counted_without_padding():
    data = Known()
    data.modalities = {"words": Modality("sequence", (5, 2))}
    data.inputs = {}
    for split, n in SIZES.items():
        values = np.ones((n, 5, 2)) * np.arange(1, 6)[:, None]
        values[0, 2:] = 0
        data.inputs[split] = {"words": values}
    report = inspect_data(data).splits["train"].inputs["words"]
    assert (report.steps.min, report.steps.median, report.steps.max) == (2, 5, 5)
    assert report.min == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: Batch(b.inputs, 1 - b.targets), "other targets in a batch"),
        (lambda b: Batch({"code": b.inputs["code"]}, b.targets), r"should give \['code', 'photo'\]. Found \['code'\]"),
        (lambda b: Batch({**b.inputs, "code": b.inputs["code"][:1]}, b.targets), "should give 8 of 'code' as asked"),
        (lambda b: Batch({**b.inputs, "code": b.inputs["code"][:, :2]}, b.targets), r"'code' of shape \(3,\)"),
    ],
)
def test_splits_that_break_their_promise_cannot_be_read(change, message):
    with pytest.raises(ValueError, match=message):
        inspect_data(Broken(change=change))


def test_arguments_and_targets_are_checked():
    with pytest.raises(ValueError, match="`samples` should be an integer of at least 1"):
        inspect_data(Known(), samples=0)
    with pytest.raises(ValueError, match="`per_class`"):
        contact_sheet(Known(), per_class=0)
    with pytest.raises(ValueError, match="Did you mean 'train'"):
        contact_sheet(Known(), split="trian")
    with pytest.raises(ValueError, match=r"`targets` should lie in \[0, 1\]"):
        inspect_data(Known(targets={split: np.full(n, 2) for split, n in SIZES.items()}))


def test_the_sheet_has_a_cell_per_sample_and_names_the_classes():
    data = Known()
    data.present["train"] = {"code": np.array([False] + [True] * 7)}
    figure = contact_sheet(data, per_class=3)
    assert len(figure.axes) == 2 * 2 * 3
    words = [text.get_text() for text in figure.texts]
    assert {"left", "right"} <= set(words)
    assert "code (vector, 3)" in words
    assert sum("missing" in text.get_text() for axes in figure.axes for text in axes.texts) <= 1
    few = contact_sheet(data, per_class=50)
    assert len(few.axes) == 2 * 8
    assert sum("missing" in text.get_text() for axes in few.axes for text in axes.texts) == 1


def test_colours_are_shown_as_they_were():
    data = Known()
    data.modalities = {"photo": Modality("image", (3, 4, 4))}
    mean, std = (np.array(v).reshape(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    original = {split: np.random.default_rng(n).random((n, 3, 4, 4)) for split, n in SIZES.items()}
    for inputs in (original, {split: (x - mean) / std for split, x in original.items()}):
        data.inputs = {split: {"photo": x} for split, x in inputs.items()}
        shown = contact_sheet(data, per_class=4).axes[0].images[0].get_array()
        np.testing.assert_allclose(shown, original["train"][0].transpose(1, 2, 0), atol=1e-5)


def test_time_steps_may_differ_from_batch_to_batch():
    data = Broken(change=lambda b: b)
    data.modalities = {"words": Modality("sequence", (5, 2)), "code": Modality("vector", (3,))}
    data.targets["train"], data.groups["train"] = np.arange(70) % 2, None
    sizes = {**SIZES, "train": 70}
    data.inputs = {p: {"words": np.ones((n, 5, 2)), "code": np.ones((n, 3))} for p, n in sizes.items()}

    def shorten(batch):
        batch.inputs["words"] = batch.inputs["words"][:, : 5 if int(batch.indices[0]) else 3]
        return batch

    data.change = shorten
    assert inspect_data(data).splits["train"].inputs["words"].steps.min == 3
    assert len(contact_sheet(data, per_class=40).axes) == 2 * 70


def test_more_classes_than_a_sheet_has_room_for():
    data = bmlr.data.create(
        "synthetic", num_classes=50, dimensions=50, samples={"train": 300}, accuracy={"a": 0.9, "b": 0.9}
    )
    figure = contact_sheet(data, per_class=1)
    assert any("first 40 of 50 classes" in text.get_text() for text in figure.texts)


def test_the_command_draws_class_names_as_they_are(tmp_path, monkeypatch, capsys):
    names = ["$x_1$ and $y$", "_hidden", "[music]", "a\udcffb", "x" * 30 + " 1"]
    create = Synthetic.__init__

    def renamed(self, *arguments, **options):
        create(self, *arguments, **options)
        self.classes = (*names, *self.classes[len(names) :])

    monkeypatch.setattr(Synthetic, "__init__", functools.wraps(create)(renamed))
    saved = record_figures(monkeypatch)
    assert main(["inspect", "synthetic", "--sheet", str(tmp_path / "s.png"), "--samples", "20"]) == 0
    shown = shown_texts(saved[0])
    assert {"$x_1$ and $y$", "_hidden", "[music]", "a\\udcffb", "x" * 12 + "…" + "x" * 9 + " 1"} <= shown
    assert {"class", "samples"} <= shown


def test_every_embedded_data_set_is_inspected_without_alarm(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["inspect", "digits"]) == 0
    printed = capsys.readouterr().out
    assert "majority rate" in printed
    assert "WARNING" not in printed
    assert (tmp_path / "inspect-digits.png").read_bytes().startswith(b"\x89PNG")
    arguments = ["inspect", "synthetic", "--data.missing", '{"video": 0.3}', "--json", "--sheet", "new/s.png"]
    assert main(arguments) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["alarms"] == []
    assert 0.25 < content["splits"]["train"]["inputs"]["video"]["missing"] < 0.35
    assert content["modalities"]["audio"] == {"kind": "vector", "shape": [16], "num_tokens": 0, "padding": 0}
    assert (tmp_path / "new" / "s.png").is_file()


def test_a_store_tells_durations_and_rejections_and_leakage_is_loud(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "files").mkdir()
    rows = write_samples(tmp_path / "files", 20, clips=False)
    rows = [[*row[:2], f"g{n % 4}", *row[3:5], ("train", "val", "test")[n % 3]] for n, row in enumerate(rows)]
    rows[3][3] = "nowhere.wav"
    table = write_table(tmp_path / "files" / "t.csv", rows, ["id", "label", "group", "voice", "photo", "split"])
    prepare_table(table, tmp_path / "out", PrepareOptions(workers=0, size=16, seconds=1.0, progress=False))
    assert main(["inspect", "manifest", "--data.root", "out", "--data.protocol", "paper"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "1.2 … 1.2 … 1.2" in printed
    assert "1 sample was rejected in preparation" in printed
    assert "LEAKAGE: train and val share 4 groups (g0, g1, g2, g3)" in printed
    found = inspect_data(bmlr.data.create("manifest", root=str(tmp_path / "out"), protocol="paper"))
    assert found.rejected == 1
    assert found.splits["train"].inputs["voice"].seconds.max == pytest.approx(1.2)
    assert found.splits["train"].inputs["photo"].seconds is None


def test_alarms_stand_out_and_do_not_change_the_exit_status(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = Known()
    data.groups["val"] = data.groups["train"][:4]
    monkeypatch.setattr("bmlr.data.sets._synthetic.Synthetic.split", lambda self, name: data.split(name))
    monkeypatch.setattr("bmlr.data.sets._synthetic.Synthetic.prepare", lambda self: vars(self).update(vars(data)))
    assert main(["inspect", "synthetic"]) == 0
    printed = capsys.readouterr().out
    assert "WARNING" in printed
    assert "LEAKAGE: train and val share 2 groups" in printed


def test_what_cannot_be_read_fails_with_one_sentence(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for arguments, message in (
        (["manifest", "--data.root", "nowhere"], "There is no prepared 'manifest' in nowhere"),
        (["digts"], "Did you mean 'digits'"),
        ([], "needs --data"),
    ):
        assert main(["inspect", *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_random_transforms_and_random_numbers_are_left_alone():
    before = torch.random.get_rng_state()
    inspect_data(Known())
    contact_sheet(Known())
    assert torch.equal(before, torch.random.get_rng_state())
