"""Data sets of one file of named arrays, in every format, and the published ones."""

import os
import shlex
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse
from scipy.io import savemat
from sklearn.feature_extraction.text import TfidfVectorizer

import bmlr.data
from bmlr.cli import main
from bmlr.data.inspection import Duplicates, inspect_data
from bmlr.data.readers._named_arrays import open_arrays
from bmlr.data.transforms._tfidf import TfIdf
from bmlr.data.transforms._tokens import split_words
from bmlr.tasks import Multiclass, MultiLabel, Regression

COUNT = 40
RNG = np.random.default_rng(0)
LABELS = np.arange(COUNT) % 2
X = RNG.normal(3, 2, (COUNT, 5)) + LABELS[:, None]
T = RNG.normal(size=(COUNT, 6, 3))
SPLIT = np.array(["train"] * 20 + ["dev"] * 10 + ["test"] * 10)
NAMES = {"modalities": {"image": "x", "walk": "t"}, "labels": "y"}


def saved(folder, **changes):
    """An npz file with arrays x, t, y and split, some of them others or left out."""
    arrays = {"x": X, "t": T, "y": LABELS, "split": SPLIT} | changes
    path = Path(folder) / "x.npz"
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def made(path, **options):
    data = bmlr.data.create("arrays", file=path, **{**NAMES, "split": "split", **options})
    data.prepare()
    return data


def test_values_splits_and_forms(tmp_path):
    lengths = RNG.integers(1, 7, COUNT)
    data = made(saved(tmp_path, n=lengths, who=np.arange(COUNT) // 2), lengths={"walk": "n"}, groups="who")
    assert {name: len(data.split(name)) for name in bmlr.data.SPLITS} == {"train": 20, "val": 10, "test": 10}
    assert (data.modalities["image"].kind, data.modalities["walk"].shape) == ("vector", (6, 3))
    batch = data.split("val").batch(range(10))
    np.testing.assert_allclose(batch.inputs["image"], (X[20:30] - X[:20].mean(0)) / X[:20].std(0), rtol=1e-4)
    steps = np.concatenate([walk[:length] for walk, length in zip(T[:20], lengths[:20], strict=True)])
    expected = (T[23, : lengths[23]] - steps.mean(0)) / steps.std(0)
    np.testing.assert_allclose(batch.inputs["walk"][3, : lengths[23]], expected, rtol=1e-4, atol=1e-5)
    assert not batch.inputs["walk"][3, lengths[23] :].any()
    assert data.split("test").groups[:2] == ["15", "15"]
    raw = made(saved(tmp_path), standardise=False).split("train").batch([7]).inputs["image"]
    np.testing.assert_allclose(raw[0], X[7], rtol=1e-6)


def write_npz(path):
    np.savez(path, x=X, t=T, y=LABELS, split=SPLIT.astype("S"))


def write_safetensors(path):
    from safetensors.numpy import save_file

    save_file({"x": X, "t": T, "y": LABELS, "split": np.array([0] * 20 + [1] * 10 + [2] * 10)}, path)


def write_matlab(path):
    words = np.array([*SPLIT, ""], dtype=object)[:-1]
    savemat(path, {"x": sparse.csc_matrix(X.T), "t": T, "y": LABELS + 1.0, "split": words})


def write_hdf5(path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        file.update({"x": X, "t": T, "y": LABELS, "split": SPLIT.astype("S")})


@pytest.mark.parametrize("write", [write_npz, write_safetensors, write_matlab, write_hdf5])
def test_every_format_gives_the_same_samples(tmp_path, write):
    path = tmp_path / "file of arrays"
    with path.open("wb") as file:
        write(file if write in {write_npz, write_matlab} else path)
    values = {"train": 0, "val": 1, "test": 2} if write is write_safetensors else None
    data = made(path, split_values=values)
    for name in bmlr.data.SPLITS:
        batch, expected = (d.split(name).batch(range(10)) for d in (data, made(saved(tmp_path))))
        for modality in ("image", "walk"):
            np.testing.assert_allclose(batch.inputs[modality], expected.inputs[modality], rtol=1e-5, atol=1e-6)
        assert batch.targets.tolist() == expected.targets.tolist()
    assert data.classes == (("1", "2") if write is write_matlab else ("0", "1"))


def test_hdf5_of_matlab_is_turned_and_its_cells_are_found(tmp_path):
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "new.mat"
    with h5py.File(path, "w", userblock_size=512) as file:
        for number, view in enumerate((X, X[:, :3]), 1):
            file[f"#refs#/{number}"] = view.T
        file["X"] = np.array([[file["#refs#/1"].ref], [file["#refs#/2"].ref]], dtype=h5py.ref_dtype)
        file["Y"] = LABELS[None].astype(float)
        sparse_matrix = sparse.csc_matrix(X)
        for part in ("data", "indices", "indptr"):
            file[f"s/{ {'indices': 'ir', 'indptr': 'jc'}.get(part, part) }"] = getattr(sparse_matrix, part)
        file["s"].attrs["MATLAB_sparse"] = COUNT
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file".ljust(128))
    arrays = open_arrays(path)
    np.testing.assert_array_equal(arrays["s"], X)
    data = bmlr.data.create("arrays", file=path, modalities={"view": "X"}, labels="Y")
    data.prepare()
    assert {name: form.shape for name, form in data.modalities.items()} == {"view1": (5,), "view2": (3,)}
    assert data.task == Multiclass(2)


def test_cells_of_matlab_are_views_whose_samples_the_labels_tell(tmp_path):
    cells = np.empty((1, 2), dtype=object)
    cells[0, 0], cells[0, 1] = X.T, T[:, 0]
    savemat(tmp_path / "views.mat", {"X": cells, "gt": LABELS[None] + 1})
    options = {"file": tmp_path / "views.mat", "modalities": {"view": "X"}, "labels": "gt"}
    data = bmlr.data.create("arrays", **options)
    data.prepare()
    assert [form.shape for form in data.modalities.values()] == [(5,), (3,)]
    assert data.remarks == ["Samples of 'view1', of shape (5, 40), are its columns."]
    assert data.task == Multiclass(2)
    cells[0, 1] = np.eye(COUNT)
    savemat(tmp_path / "views.mat", {"X": cells, "gt": LABELS[None] + 1})
    with pytest.raises(ValueError, match="'view2' .* could be rows or columns. Set `samples = rows`"):
        bmlr.data.create("arrays", **options).prepare()


@pytest.mark.parametrize(
    ("labels", "options", "task", "classes", "first"),
    [
        (LABELS + 1, {}, Multiclass(2), ("1", "2"), [0, 1]),
        (np.array(["cat", "dog"])[LABELS], {}, Multiclass(2), ("cat", "dog"), [0, 1]),
        (np.eye(2)[1 - LABELS], {}, Multiclass(2), ("0", "1"), [1, 0]),
        (np.eye(2)[LABELS], {"task": "multilabel"}, MultiLabel(2), ("0", "1"), [[1, 0], [0, 1]]),
        (np.array([[1, 1], [0, 0]])[LABELS], {"classes": "names"}, MultiLabel(2), ("off", "on"), [[1, 1], [0, 0]]),
        (LABELS + 1, {"classes": "names"}, Multiclass(2), ("off", "on"), [0, 1]),
        (X[:, 0], {}, Regression(), (), None),
        (LABELS * 1.0, {}, Regression(), (), [0, 1]),
        (LABELS * 1.0, {"task": "multiclass"}, Multiclass(2), ("0", "1"), [0, 1]),
    ],
)
def test_the_form_of_labels_is_the_task(tmp_path, labels, options, task, classes, first):
    data = made(saved(tmp_path, y=labels, names=np.array(["off", "on"])), **options)
    assert (data.task, data.classes) == (task, classes)
    if first is not None:
        assert data.split("train").targets[:2].tolist() == first


@pytest.mark.parametrize(("form", "name"), [("{0}_{1}", "{0}"), ("{1}_{0}", "*_{0}")])
def test_each_split_may_have_arrays_of_its_own(tmp_path, form, name):
    pieces = dict(zip(("training", "dev", "testing"), np.split(np.arange(COUNT), [20, 30]), strict=True))
    arrays = {
        form.format(letter, word): array[rows]
        for word, rows in pieces.items()
        for letter, array in (("x", X), ("t", T), ("y", LABELS))
    }
    np.savez(tmp_path / "x.npz", **arrays)
    modalities = {"image": name.format("x"), "walk": name.format("t")}
    data = made(tmp_path / "x.npz", modalities=modalities, labels=name.format("y"), split=None)
    assert [len(data.split(split)) for split in bmlr.data.SPLITS] == [20, 10, 10]
    assert data.split("val").targets.tolist() == LABELS[20:30].tolist()


def test_splits_are_drawn_by_class_and_group_where_none_are_given(tmp_path):
    groups = np.repeat(np.arange(COUNT // 2), 2)
    path = saved(tmp_path, who=groups, part=np.where(np.arange(COUNT) < 30, 0, 1))
    for options in ({"split": None}, {"split": "part", "split_values": {"train": 0, "test": 1}}):
        data = made(path, groups="who", val_fraction=0.2, **options)
        members = [set(data.split(name).groups) for name in bmlr.data.SPLITS]
        assert all(members)
        assert len(set.union(*members)) == sum(map(len, members)) == COUNT // 2
        assert all(data.split(name).targets.float().mean() == 0.5 for name in bmlr.data.SPLITS)
    assert len(data.split("test")) == 10


def test_a_group_in_two_splits_is_told(tmp_path):
    path = saved(tmp_path, who=np.arange(COUNT) % 15)
    with pytest.raises(ValueError, match="The file's split puts 15 of 15 groups in several splits"):
        made(path, groups="who").split("train")
    assert len(made(path, groups="who", protocol="paper").split("train")) == 20
    with pytest.raises(ValueError, match="cannot be 'paper' where splits are drawn"):
        made(path, split=None, protocol="paper")


def test_a_yaml_file_beside_says_what_the_options_leave_open(tmp_path):
    path = saved(tmp_path, z=X[:, :2])
    notes = path.with_suffix(".yaml")
    notes.write_text("modalities: {image: x, walk: t}\nlabels: y\nsplit: split\n")
    data = bmlr.data.create("arrays", file=path)
    data.prepare()
    assert data.modalities["image"].shape == (5,)
    assert "labels" not in data.hparams
    other = bmlr.data.create("arrays", file=path, modalities={"image": "z", "walk": "t"})
    other.prepare()
    assert other.modalities["image"].shape == (2,)
    assert other.content_digest != data.content_digest == made(path).content_digest
    notes.write_text("label: y")
    with pytest.raises(ValueError, match="Found 'label'. Did you mean 'labels'"):
        bmlr.data.create("arrays", file=path).prepare()


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"x": X[:30]}, {}, r"'image' of .* should have 40 samples, as the labels. Found shape \(30, 5\)"),
        ({"x": np.where(np.arange(COUNT)[:, None] == 17, np.nan, X)}, {}, r"'image' .* in 1 of 40 rows \(17, counted"),
        ({"x": X.T}, {}, "If samples are columns, set `samples = columns`"),
        ({"x": np.ones((COUNT, 3))}, {}, "'image' should not be the same in every sample of the training split"),
        ({"x": X.astype(object)}, {}, "array 'x' holds Python objects, and reading these could execute code"),
        ({"x": X + 1j}, {}, "Array 'x' of .* should hold real numbers or texts. Found complex128"),
        ({"x": np.zeros((COUNT, 2, 2, 2))}, {}, "vectors .* or sequences"),
        ({"x": None}, {}, "has no array 'x'. It has t, y, split"),
        ({}, {"labels": None}, "`labels` should name arrays .* --data.labels NAME or in x.yaml"),
        ({}, {"modalities": {"image": "x"}}, "at least 2 arrays"),
        ({"y": LABELS[:, None] * np.ones((1, 2)) * 2}, {}, "should be zeros and ones"),
        ({"y": LABELS * np.nan}, {}, "Row 0, counted from 0, is not"),
        ({"y": np.arange(COUNT) % 4 - 1}, {}, "-1 beside 0, 1, 2"),
        ({"y": np.zeros(COUNT, int)}, {}, r"two classes or more. Found \[0\]"),
        ({"split": LABELS}, {}, r"unless `split_values` says what its values mean, as in .*Found \[0, 1\]"),
        ({"split": LABELS}, {"split_values": {"train": 0, "test": 2}}, r"`split_values\['test'\]` should be .*Found 2"),
        ({"y": None, "y_train": LABELS}, {}, "has only y_train"),
        ({"n": np.full(COUNT, 7)}, {"lengths": {"walk": "n"}}, "lengths from 0 to 6"),
        ({}, {"lengths": {"image": "y"}}, "should name sequences"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(tmp_path, changes, options, message):
    with pytest.raises(ValueError, match=message):
        made(saved(tmp_path, **changes), **options)


def test_other_files_are_refused_by_their_content(tmp_path):
    path = tmp_path / "x.npz"
    path.write_bytes(bytes(range(128, 256)))
    with pytest.raises(ValueError, match="Its content is none of these"):
        open_arrays(path)
    path.write_bytes(saved(tmp_path).read_bytes()[:2000])
    with pytest.raises(ValueError, match="cannot be read as a file of arrays"):
        open_arrays(path)
    with pytest.raises(FileNotFoundError, match="There is no file of arrays"):
        open_arrays(tmp_path / "none.npz")


def test_constant_features_and_classes_without_training_are_told(tmp_path):
    x = np.column_stack((X, np.ones(COUNT)))
    labels = np.where(np.arange(COUNT) == 35, 2, LABELS)
    with pytest.warns(UserWarning, match="No training sample is of class 2"):
        data = made(saved(tmp_path, x=x, y=labels))
    assert data.remarks == ["1 of 6 features of 'image' are constant in training."]


def test_tf_idf_is_that_of_scikit_learn():
    texts = ["the red bird sings", "the dog", "a red dog, the dog", "a bird sings"]
    tfidf = TfIdf.of_texts(texts, 100, "The texts")
    oracle = TfidfVectorizer(tokenizer=split_words, token_pattern=None, vocabulary=list(tfidf.words)).fit(texts)
    np.testing.assert_allclose(
        tfidf.vectors(["the dog sings", *texts]), oracle.transform(["the dog sings", *texts]).toarray(), rtol=1e-6
    )


def test_texts_are_compared_as_written_not_as_tf_idf(tmp_path):
    notes = np.array([f"{'good' if label else 'bad'} film" for label in LABELS], dtype=object)
    long = "one two three four five six seven eight nine"
    notes[[0, 1, 20, 30]] = [long, long, f"{long} Oslo", f"{long} Rome"]
    notes[31] = notes[30].upper()
    data = made(saved(tmp_path, t=notes.astype(str)), modalities={"image": "x", "note": "t"})
    same = [split.batch([0]).inputs["note"].tolist() for split in (data.split("val"), data.split("test"))]
    assert same[0] == same[1]  # the words of one text are in no vocabulary
    assert inspect_data(data).duplicates == ()
    notes[0] = notes[30]
    again = made(saved(tmp_path, t=notes.astype(str)), modalities={"image": "x", "note": "t"})
    assert inspect_data(again).duplicates == (
        Duplicates("note", ("train", "test"), {"train": 1, "test": 2}, "word for word"),
    )
    assert again.split("test").texts("note", [1, 0]) == [notes[31], notes[30]]
    assert again.split("test").texts("image", [0]) is None


def test_a_run_predicts_without_its_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    texts = np.array(["a red bird", "the grey dog"])[LABELS]
    path = saved(tmp_path, t=texts)
    line = (
        f"train arrays --data.file {path} --data.modalities '{{image: x, text: t}}' --data.labels y --data.split split"
    )
    small = "--method Joint --trainer.epochs 1 --model.width 2 --trainer.accelerator cpu --run run"
    assert main(shlex.split(f"{line} {small}")) == 0
    assert main(["evaluate", "run"]) == 0
    data = bmlr.data.create("arrays", file=path, modalities={"image": "x", "text": "t"}, labels="y", split="split")
    data.prepare()
    np.save("new.npy", X[3].astype(np.float32))
    inputs = data.load_files({"image": "new.npy", "text": "a red bird"})
    expected = data.split("train").batch([3]).inputs["image"]
    np.testing.assert_allclose(inputs["image"], expected, rtol=1e-5)
    path.unlink()
    assert main(["predict", "run", "image=new.npy", "text=a red bird"]) == 0
    capsys.readouterr()
    np.save("new.npy", X[3, :4])
    assert main(["predict", "run", "image=new.npy", "text=a red bird"]) == 2
    assert "should have shape (5,) as 'image'. Found (4,)" in capsys.readouterr().err


def published(folder, name, **arrays):
    (folder / name).mkdir()
    np.savez(folder / name / "data.npz", **arrays)


def test_wiki_keeps_articles_apart(tmp_path):
    documents = np.array([f"a{row // 4}-{row % 4}" for row in range(COUNT)])
    split = (np.arange(COUNT) >= 30).astype(int)
    split[[0, 4]] = 1  # sections of articles that are in training too
    published(
        tmp_path, "wiki", image=X, text=X[:, ::-1], label=np.arange(COUNT) // 2 % 2, split=split,
        class_names=np.array(["art", "sport"]), document=documents,
    )  # fmt: skip
    clean, paper = (bmlr.data.create("wiki", root=tmp_path, protocol=p, val_fraction=0.3) for p in ("clean", "paper"))
    assert clean.split("test").groups == paper.split("test").groups
    members = [set(clean.split(name).groups) for name in bmlr.data.SPLITS]
    assert sum(map(len, members)) == len(set.union(*members))
    assert sum(len(paper.split(name)) for name in bmlr.data.SPLITS) == COUNT
    assert set(paper.split("train").groups) & set(paper.split("test").groups) == {"a0", "a1", "a7"} & set(
        paper.split("train").groups
    )
    assert clean.classes == ("art", "sport")


def test_mosi_utterances_warn_of_features_that_have_seen_labels(tmp_path, recwarn):
    folds = np.repeat([0, 1, 2], [20, 10, 10])
    published(
        tmp_path, "mosi", text=X, audio=X + 1, video=X + 2, label=LABELS, split=(np.arange(COUNT) < 10).astype(int),
        standard_fold=folds, video_id=np.arange(COUNT) // 2, transcript=np.array(["good film", "bad film"])[LABELS],
    )  # fmt: skip
    free = bmlr.data.create("mosi-utterances", root=tmp_path / "mosi")
    assert [len(free.split(name)) for name in bmlr.data.SPLITS] == [20, 10, 10]
    assert list(free.modalities) == ["text", "audio"]
    assert not [w for w in recwarn if "labels" in str(w.message)]
    seen = bmlr.data.create("mosi-utterances", root=tmp_path / "mosi", features="published")
    with pytest.warns(UserWarning, match="have seen the training labels"):
        seen.prepare()
    assert list(seen.modalities) == ["text", "audio", "video"]
    assert len(seen.split("test")) == 10
    with pytest.raises(FileNotFoundError, match=r"wiki/data.npz .*--data.root"):
        bmlr.data.create("wiki", root=tmp_path).prepare()


REAL = Path(os.environ.get("BMLR_DATA") or Path(__file__).parents[2] / ".." / "shared" / "data")
SIZES = {
    "wiki": (1068, 119, 693),
    "mfeat": (1440, 160, 400),
    "mmmo": (220, 40, 80),
    "mosi-utterances": (1284, 229, 686),
}


@pytest.mark.realdata
@pytest.mark.parametrize("name", SIZES)
def test_real_data(name):
    data = bmlr.data.create(name, root=REAL)
    if not (REAL / data.folder / "data.npz").is_file():
        pytest.skip(f"There is no {data.folder}/data.npz in {REAL} (set BMLR_DATA).")
    assert tuple(len(data.split(split)) for split in bmlr.data.SPLITS) == SIZES[name]
    for modality, inputs in data.split("train").batch(range(SIZES[name][0])).inputs.items():
        steps = inputs[inputs.any(-1)] if inputs.ndim == 3 else inputs
        assert abs(float(steps.mean())) < 1e-3, modality
        assert 0.9 < float(steps.std()) < 1.01, modality
