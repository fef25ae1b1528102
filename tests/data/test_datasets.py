"""Datasets of dictionaries, taken as they are: what their items may be, what is wrong with one, and a run of them."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset

import bmlr
import bmlr.data
from bmlr.config import ModelOptions, OptimizerOptions, TrainerOptions
from bmlr.data import Modality
from bmlr.data.inspection import contact_sheet, inspect_data
from bmlr.methods import BMLR
from bmlr.runs import RunError
from bmlr.tasks import Multiclass, MultiLabel, Regression, Sentiment
from bmlr.training import evaluate_run, load, train

WORDS = ("bird", "dog")


def items(number, first=0, **entries):
    """Dictionaries with a sensor, a sequence, an image, a note and a class; ``entries`` gives others by position."""
    made = []
    for n in range(first, first + number):
        rng = np.random.default_rng(n)
        made.append({
            "sensor": torch.from_numpy(rng.normal(n % 2, 1, 4)),
            "steps": rng.normal(n % 2, 1, (2 + n % 3, 3)).astype(np.float32),
            "photo": Image.fromarray(rng.integers(0, 255, (8, 10, 3)).astype(np.uint8)),
            "note": f"A {WORDS[n % 2]}, seen {'here' if n % 3 else 'there'}" if n % 5 else None,
            "label": n % 2,
            **{key: make(n) for key, make in entries.items()},
        })  # fmt: skip
    return made


def made_of(parameters=None, sizes=(12, 6, 6), **entries):
    splits = [items(size, first, **entries) for size, first in zip(sizes, (0, 100, 200), strict=True)]
    return bmlr.data.from_datasets(
        *splits, **{"modalities": ["sensor", "steps", "photo", "note"], **(parameters or {})}
    )


class Jittered(Dataset[object]):
    """A torch dataset with random transforms of all three generators."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        noise = torch.randn(4) + float(np.random.normal()) + random.random()  # noqa: NPY002, S311
        return {"a": noise + index % 2, "b": torch.full((3,), float(index % 2)), "label": index % 2}


def test_values_become_inputs_by_their_form():
    data = made_of()
    data.prepare()
    forms = {name: (form.kind, form.shape) for name, form in data.modalities.items()}
    assert forms == {
        "sensor": ("vector", (4,)),
        "steps": ("sequence", (4, 3)),
        "photo": ("image", (3, 8, 10)),
        "note": ("text", (5,)),
    }
    assert data.task == Multiclass(2)
    assert data.classes == ("0", "1")
    split = data.split("train")
    batch = split.batch([5, 1, 0])
    source = items(6)
    torch.testing.assert_close(batch.inputs["sensor"][0], source[5]["sensor"].float())
    assert torch.equal(batch.inputs["steps"][1, 3:], torch.zeros(1, 3))  # three steps, padded to four
    pixels = torch.from_numpy(np.array(source[5]["photo"])).permute(2, 0, 1) / 255
    torch.testing.assert_close(batch.inputs["photo"][0], pixels)
    assert batch.present["note"].tolist() == [False, True, False]
    assert batch.inputs["note"].tolist()[0] == [0] * 5
    assert batch.targets.tolist() == [1, 1, 0]
    assert split.texts("note", [1, 0]) == ["A dog, seen here", ""]
    found = inspect_data(data)
    assert found.splits["train"].counts == {"0": 6, "1": 6}


@pytest.mark.parametrize(
    ("make", "parameters", "task", "classes"),
    [
        (lambda n: WORDS[n % 2], {}, Multiclass(2), ("bird", "dog")),
        (lambda n: WORDS[n % 2], {"classes": ["dog", "bird", "cat"]}, Multiclass(3), ("dog", "bird", "cat")),
        (lambda n: np.int64(n % 3), {}, Multiclass(3), ("0", "1", "2")),
        (lambda n: torch.tensor([1.0, n % 2, 0]), {}, MultiLabel(3), ("0", "1", "2")),
        (lambda n: ["loud", "dim"][: n % 3], {}, MultiLabel(2), ("dim", "loud")),
        (lambda n: n / 7, {}, Regression(), ()),
        (lambda n: [n / 7, n / 3], {}, Regression(2), ()),
        (lambda n: torch.tensor(n / 7), {"task": Sentiment()}, Sentiment(), ()),
    ],
)
def test_the_task_is_that_of_the_targets(make, parameters, task, classes):
    data = made_of(parameters, label=make)
    data.prepare()
    assert (data.task, data.classes) == (task, classes)
    targets = data.split("train").batch([0, 1, 2]).targets
    task.check_targets(targets, 3)
    again = type(data)(**data.hparams)  # of a run, without the datasets
    again.restore_preprocessing(data.preprocessing())
    assert (again.task, again.classes, again.modalities) == (task, classes, data.modalities)


@pytest.mark.parametrize(
    ("parameters", "entries", "message"),
    [
        ({"target": "lable"}, {}, r"Item 0 of `train` should have 'lable'. It has .* Did you mean 'label'"),
        ({"modalities": ["sensr"]}, {}, r"Item 0 of `train` should have 'sensr'.* Did you mean 'sensor'"),
        ({"modalities": "sensor"}, {}, "`modalities` should name the modalities"),
        ({}, {"label": lambda n: float("nan")}, "Item 0 of `train`: its 'label' should be finite. Found nan"),
        ({}, {"label": lambda n: None}, "its 'label' should be a class, labels or numbers. Found none"),
        ({}, {"label": lambda n: n - 1}, "should be classes from 0. Found -1"),
        ({}, {"label": lambda n: 0.5}, "are all 0.5, so that there is nothing to predict"),
        ({}, {"label": lambda n: [0] * (1 + n % 2)}, "lists should have one length"),
        ({}, {"label": lambda n: "x" if n % 2 else 1}, "should be of one kind"),
        ({"task": MultiLabel(2)}, {}, "targets of `train` do not fit the task 'multilabel'"),
        (
            {"classes": ["a"]},
            {"label": lambda n: "b"},
            "should hold all classes of the targets, a. Found 'b'",
        ),
        ({}, {"sensor": lambda n: object()}, "its 'sensor' should be numbers .* Found an object of type object"),
        ({}, {"sensor": lambda n: "x" if n else 1.0}, "Item 1 of `train`: its 'sensor' should be numbers, as before"),
        ({}, {"sensor": lambda n: None}, "`train` should have 'sensor'. Every item lacks it"),
        ({}, {"note": lambda n: f"word{n}"}, "should share words"),
        ({}, {"sensor": lambda n: np.zeros((1,) * 5)}, "at most 4 dimensions"),
    ],
)
def test_what_is_wrong_is_named(parameters, entries, message):
    with pytest.raises(ValueError, match=message):
        made_of(parameters, **entries).prepare()


def test_items_of_another_form_are_named_when_they_are_read():
    data = made_of(sensor=lambda n: np.zeros(4 if n != 3 else 5))
    with pytest.raises(ValueError, match=r"Item 3 of `train`: its 'sensor' should have shape \(4,\). Found \(5,\)"):
        data.split("train").batch([0, 3])
    data = made_of(sensor=lambda n: np.full(4, np.nan if n == 3 else 0))
    with pytest.raises(ValueError, match="should be finite"):
        data.split("train").batch([3])


def test_what_is_no_dataset_of_dictionaries_is_refused():
    class Stream(IterableDataset):
        def __iter__(self):
            yield {}

    good = items(4)
    for train_split, message in [
        (Stream(), "with a length and items by position. Found Stream"),
        ([], "`train` should hold samples"),
        ([(1, 2)], "Item 0 of `train` should be a dictionary .* Found an object of type tuple"),
        (None, "`train` should be a dataset"),
    ]:
        with pytest.raises(ValueError, match=message):
            bmlr.data.from_datasets(train_split, good, good, modalities=["sensor"]).prepare()


def test_forms_and_keys_may_be_given():
    ids = lambda n: [2 + n % 3, 5, 0]
    data = made_of({"modalities": {"words": "input_ids", "voice": "wave"},
                    "forms": {"voice": Modality("spectrogram", (1, 4, 3))}},
                   input_ids=ids, wave=lambda n: np.ones((1, 4, 3)))  # fmt: skip
    data.prepare()
    assert data.modalities["words"] == Modality("text", (3,), num_tokens=6)
    assert data.modalities["voice"].kind == "spectrogram"
    assert data.split("val").batch([0]).inputs["words"].tolist() == [ids(100)]
    assert data.split("val").texts("words", [0]) is None
    assert contact_sheet(data).axes  # tokens as stripes


def test_texts_that_differ_in_unknown_words_are_no_copies():
    known = "a bird sits on the old wall near our house in"
    said = {"train": f"{known} Rome", "val": f"{known} Oslo", "test": f"{known} ROME"}
    splits = {
        split: [{"sensor": rng.normal(size=3), "note": text, "label": 0}, {"sensor": rng.normal(size=3), "label": 1}]
        for (split, text), rng in zip(said.items(), map(np.random.default_rng, range(3)), strict=True)
    }
    splits["train"].append({"sensor": np.ones(3) / 3, "note": known, "label": 0})
    data = bmlr.data.from_datasets(**splits, modalities=["sensor", "note"])
    found = inspect_data(data)
    tokens = [data.split(name).batch([0]).inputs["note"].tolist() for name in ("train", "val")]
    assert tokens[0] == tokens[1]
    (copy,) = found.duplicates
    assert (copy.modality, copy.splits, copy.samples) == ("note", ("train", "test"), {"train": 1, "test": 1})
    said_of_it = (
        "LEAKAGE: the same 'note', word for word, is in train and test: 1 sample of train and 1 sample of test."
    )
    assert said_of_it in found.alarms + found.remarks


def test_random_transforms_depend_on_seed_and_position_alone():
    data = bmlr.data.from_datasets(Jittered(), Jittered(), Jittered(), modalities=["a", "b"])
    split = data.split("train")
    torch.manual_seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    batch = split.batch([3, 7], augment=True, seed=1).inputs["a"]
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002
    torch.testing.assert_close(split.batch([7, 0, 3], augment=True, seed=1).inputs["a"][[2, 0]], batch, atol=0, rtol=0)
    assert not torch.equal(split.batch([3, 7], augment=True, seed=2).inputs["a"], batch)
    assert torch.equal(split.batch([3]).inputs["a"], split.batch([3]).inputs["a"])


def test_the_content_is_part_of_the_run(tmp_path):
    digest = made_of().content_digest
    assert made_of().content_digest == digest
    assert made_of(sensor=lambda n: torch.zeros(4)).content_digest != digest


def test_a_run_of_datasets_trains_resumes_and_predicts(tmp_path):
    options = ModelOptions(width=4, depth=1, heads=1)
    trainer = TrainerOptions(epochs=2, batch_size=4, accelerator="cpu", devices=1)
    arguments = {"model": options, "optimizer": OptimizerOptions(lr=1e-2), "trainer": trainer, "run": tmp_path / "run"}
    result = train(made_of(), BMLR(), **arguments)
    assert result.content["data"] == "datasets"
    again = train(made_of(), BMLR(), **arguments)
    assert again.content == result.content
    with pytest.raises(RunError, match="another"):
        train(made_of(sensor=lambda n: torch.zeros(4)), BMLR(), **arguments)
    run = load(tmp_path / "run")
    new = items(1, 300)[0]
    sample = {name: new[name] for name in ("sensor", "steps", "photo")}
    answers = run.predict({**sample, "note": "a dog, seen here"})
    assert set(answers) == {"fused", "sensor", "steps", "photo", "note"}
    assert sum(answers["fused"].values()) == pytest.approx(1)
    assert "note" not in run.predict(sample)  # some samples lack it
    with pytest.raises(ValueError, match="A value of 'sensor' should be given"):
        run.predict({"note": "a dog"})
    score = evaluate_run(tmp_path / "run", data=made_of())
    assert score.as_dict()["accuracy"] == result.content["test"]["accuracy"]
    with pytest.raises(ValueError, match="give the data again"):
        evaluate_run(tmp_path / "run")
    with pytest.raises(RunError, match="does not hold the data"):
        evaluate_run(tmp_path / "run", data=made_of(sensor=lambda n: torch.zeros(4)))


def test_a_class_without_load_files_reads_none():
    class Toy(bmlr.data.MultimodalData):
        name, protocol, classes = "toy", "clean", ("a", "b")
        modalities = {"x": Modality("vector", (2,))}

        def prepare(self):
            pass

        def split(self, name):
            return bmlr.data.ArraySplit({"x": np.zeros((4, 2))}, np.array([0, 1, 0, 1]))

    with pytest.raises(ValueError, match="The data set 'toy' reads no new files: its class has no method load_files"):
        Toy().load_files({})
