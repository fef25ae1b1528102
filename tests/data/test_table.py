"""A table of one's own: what it may hold, what is wrong with each row, and from there to a prediction."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import bmlr.data
from bmlr._files import with_checksum
from bmlr.cli import main
from bmlr.data.sets._table_files import KINDS, list_samples, parse_table, read_table
from bmlr.data.sets._table_store import prepare_table
from bmlr.data.store._options import PrepareOptions
from bmlr.data.store._store import open_store, read_rejected

sys.path.insert(0, str(Path(__file__).parent))
from media_fixtures import write_mp4
from restored import assert_read_without_data
from table_fixtures import HEAD, LABELS, write_samples, write_table

CPU = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.batch_size", "8"]
OPTIONS = PrepareOptions(workers=0, size=16, seconds=1.0, progress=False, max_rejected=0.9)
PLACE = Path("t.csv")
LONGER = pytest.mark.filterwarnings("ignore:.*are used, as in training")  # sounds of 1.2 s, of which 1 s is read


def parse(text, encoding="utf-8"):
    return parse_table(text.encode(encoding), PLACE)


def write_vectors(folder, rows, head=("id", "label", "split", "group", "a", "b")):
    """Rows of a table with two modalities of vectors in .npy files, which are written where they have a name."""
    rng = np.random.default_rng(0)
    for row in rows:
        for cell in row[4:6]:
            if cell and not (folder / cell).exists():
                np.save(folder / cell, rng.normal(size=3))
    return write_table(folder / "t.csv", rows, list(head))


def vector_rows(count=24, *, split=(), groups=2):
    """Rows with an id, a label of two, a split in turn if there are any, and ``groups`` rows per group."""
    return [
        [f"s{n}", ("one", "two")[n % 2], split[n % len(split)] if split else "", f"g{n // groups}", f"a{n}.npy",
         f"b{n}.npy"]
        for n in range(count)
    ]  # fmt: skip


def prepared(folder, rows, **parameters):
    prepare_table(write_vectors(folder, rows), folder / "out", OPTIONS)
    return bmlr.data.create("manifest", root=folder / "out", **parameters)


# The table


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_tables_of_all_spreadsheets_read_the_same(tmp_path, delimiter, ends, encoding):
    rows = [['an "id"; quoted, too', "Größe zwei", "Пример 1.wav", "图.png"], ["b", "x", "", "y.png"]]
    path = write_table(
        tmp_path / "t.csv", rows, ["id", "label", "voice", "photo"], delimiter=delimiter, encoding=encoding, ends=ends
    )
    table = read_table(path)
    assert dict(table.kinds) == {"voice": "audio", "photo": "image"}
    assert [(number, list(cells)) for number, cells in table.rows] == [(2, rows[0]), (3, rows[1])]


def test_cells_may_hold_delimiters_quotes_and_line_breaks():
    table = parse('label,"a","b"\n"x, ""y""\nz","1,\n2.npy",3.npy\nw,4.npy,5.npy\n')
    assert table.rows == [(2, ['x, "y"\nz', "1,\n2.npy", "3.npy"]), (3, ["w", "4.npy", "5.npy"])]


def test_blank_rows_are_skipped_and_numbers_stay_those_of_the_spreadsheet():
    table = parse("label,a,b\n\nx,1.npy,2.npy\n,,\ny, 3.npy ,4.npy\n")
    assert table.rows == [(3, ["x", "1.npy", "2.npy"]), (5, ["y", "3.npy", "4.npy"])]


@pytest.mark.parametrize(("word", "kind"), KINDS.items())
def test_kinds_are_told_by_the_head(word, kind):
    kinds = parse(f"label,a : {word.upper()},b:array,c:image\nx,1.dat,2.dat,3.dat\n").kinds
    assert kinds.get("a") == (None if kind == "extra" else kind)


def test_kinds_are_told_by_the_suffixes():
    table = parse("Label,a,b,c,d\nx,1.WAV,dir.d/2.JPG,3.mp4,4.npy\ny,1.m4a,,3.webm,\n")
    assert dict(table.kinds) == {"a": "audio", "b": "image", "c": "video", "d": "array"}
    assert "label" in table.columns


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "should begin with the names of its columns"),
        (",,\n", "should begin with the names of its columns"),
        ("label,a,b\n", "should have a row per sample"),
        ("label,a,b\n,,\n\n", "should have a row per sample"),
        (
            "lable,a,b\nx,1.npy,2.npy\n",
            "should have a column 'label', or 'target' for numbers. Found lable, a, b. Is it 'lable'?",
        ),
        ("label,a,,b\nx,1.npy,,2.npy\n", "column 3 should have a name"),
        ("label,a,a\nx,1.npy,2.npy\n", "column 3 should have a name of its own. 'a' is that of column 2"),
        ("label,a,LABEL\nx,1.npy,2.npy\n", "column 3 should have a name of its own"),
        (
            "label,a:imag,b\nx,1.png,2.npy\n",
            "column 2 should have a kind among .* Found 'a:imag'. Did you mean 'image'",
        ),
        ("label:image,a,b\nx,1.png,2.npy\n", "column 1 should have no kind"),
        ("label,größe,b\nx,1.png,2.npy\n", "column 2: .* letters, digits.* Found 'größe'"),
        ("label,fused,b\nx,1.png,2.npy\n", "should not be named 'fused'"),
        ("label,keys,b\nx,1.png,2.npy\n", "should not be named 'keys'"),
        ("label,a_offsets,b\nx,1.png,2.npy\n", "should not be named 'a_offsets'"),
        ("label,gruop,a,b\nx,7,1.npy,2.npy\n", "column 'gruop' is unknown: '7' in row 2 .* Did you mean 'group'"),
        (
            "label,a,b\nx,1.npy,2.npy\ny,1.png,3.npy\n",
            r"column 'a' holds files of several kinds \(array in row 2, image",
        ),
        ("label,a,b\nx,1.npy,\ny,2.npy,\n", "column 'b' should hold paths of files or texts. All its cells are empty"),
        ("label,a:image,b\nx,,1.npy\n", "column 'a' should hold paths of files"),
        ("label,a\nx,1.npy\n", r"at least 2 modalities. Found a.$"),
        ('label,a,b\nx,1.npy,2.npy\ny,"1.npy,2.npy\n', "cannot be read as CSV: row 3"),
        ('label,a,b\nx,"1".npy,2.npy\n', "cannot be read as CSV: row 2"),
    ],
)
def test_a_table_that_is_none_is_refused_with_its_place(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)


def test_other_encodings_are_refused_with_what_to_do():
    with pytest.raises(ValueError, match="UTF-8.* at byte 2.*save it as 'CSV UTF-8'"):
        parse("größe,label\n", "latin-1")
    with pytest.raises(FileNotFoundError, match=r"There is no table nowhere\.csv"):
        read_table(Path("nowhere.csv"))


WORDS = ["label", "id", "split", "group", "a:image", "x.png", "b.npy", "", "../x", '"', "\0"]
CELLS = st.one_of(st.sampled_from(WORDS), st.text(max_size=8))
HEADED = st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=5).map(
    lambda rows: "label,a:image,b:array\n" + "\n".join(f"x,{a},{b}" for a, b in rows)
)
LOOSE = st.lists(st.lists(CELLS, max_size=5), max_size=6).map(lambda rows: "\n".join(map(",".join, rows)))


@settings(deadline=None, max_examples=150)
@given(st.one_of(st.binary(max_size=200), st.one_of(HEADED, LOOSE).map(lambda text: text.encode(errors="replace"))))
def test_whatever_the_bytes_a_table_is_read_or_refused(content):
    try:
        table = parse_table(content, PLACE)
    except ValueError:
        return
    items = list_samples(table)
    assert len(items) == len(table.rows)
    assert len({item.id for item in items}) == len(items)
    assert all(item.problem.startswith(f"row {n}: ") for item, (n, _) in zip(items, table.rows, strict=True))


def test_what_is_wrong_with_a_row_is_said_with_row_and_column(tmp_path):
    rows = vector_rows(2, split=("train", "test"))
    rows += [
        ["s0", "one", "train", "", "a0.npy", "b0.npy"],
        ["s3", "", "train", "", "a0.npy", "b0.npy"],
        ["s4", "one", "trian", "", "a0.npy", "b0.npy"],
        ["s5", "one", "", "", "a0.npy", "b0.npy"],
        ["s6", "one", "train", "", "", ""],
        ["s7", "one", "train", "", "a0.npy", "nope.npy"],
        ["s8", "one", "train"],
        ["", "one", "DEV", "", "a0.npy", ""],
        ["s10", "", "nope", "", "a0.npy", "a\0b.npy"],
    ]
    path = write_vectors(tmp_path, rows[:2])
    write_table(path, rows, ["id", "label", "split", "group", "a", "b"])
    items = list_samples(read_table(path))
    problems = {item.id: item.problem for item in items}
    assert problems["s0"] is problems["s1"] is problems["row-11"] is None
    assert problems["s0 (row 4)"] == "row 4: column 'id' repeats 's0' of row 2"
    assert problems["s3"] is None  # a missing label is found with all others, below
    assert problems["s4"] == "row 6: column 'split' holds 'trian', which is none of train, val, test"
    assert problems["s5"] == "row 7: column 'split' is empty, that of other rows is not"
    assert problems["s6"] == "row 8: it has no file of any modality"
    assert problems["s7"] == "row 9: column 'b': there is no file 'nope.npy'"
    assert problems["s8"] == "row 10: it has 3 cells, the first row has 6"
    assert problems["s10"].count(";") == 1
    assert "is no path of a file" in problems["s10"]
    by_id = {item.id: item for item in items}
    assert by_id["row-11"].split == "val"
    assert set(by_id["row-11"].files) == {"a"}
    assert by_id["s1"].extra == {"row": 3}
    assert (by_id["s1"].group, by_id["row-11"].group) == ("g0", None)
    result = prepare_table(path, tmp_path / "out", OPTIONS)
    reasons = {rejection.id: rejection.reason for rejection in read_rejected(result.folder)}
    problems["s3"] = "row 5: it has no label"
    assert reasons == {name: problem for name, problem in problems.items() if problem}


@pytest.mark.parametrize("cell", ["../secret.npy", "sub/../../secret.npy", "{outside}/secret.npy", "link.npy",
                                  "linked/secret.npy", "..\\secret.npy"])  # fmt: skip
def test_files_outside_the_table_s_folder_are_read_only_on_request(tmp_path, cell):
    folder = tmp_path / "data"
    (folder / "sub").mkdir(parents=True)
    np.save(tmp_path / "secret.npy", np.zeros(3))
    (folder / "link.npy").symlink_to(tmp_path / "secret.npy")
    (folder / "linked").symlink_to(tmp_path)
    cell = cell.format(outside=tmp_path)
    table = write_table(folder / "t.csv", [["x", cell, "sub/a.npy"]], ["label", "a", "b"])
    np.save(folder / "sub" / "a.npy", np.zeros(3))
    (item,) = list_samples(read_table(table))
    assert item.problem.startswith("row 2: column 'a': ")
    assert "leads out of the folder of the table" in item.problem
    assert set(item.files) == {"b"}
    (item,) = list_samples(read_table(table), allow_outside=True)
    assert item.problem is None
    assert item.files["a"].resolve() == tmp_path / "secret.npy"


def test_paths_that_stay_inside_are_taken_however_they_are_written(tmp_path):
    (tmp_path / "sub").mkdir()
    decomposed = "e\u0301.npy"
    for place in ("a.npy", "sub/b.npy", decomposed):
        np.save(tmp_path / place, np.zeros(3))
    (tmp_path / "inner.npy").symlink_to(tmp_path / "a.npy")
    cells = ["sub/../a.npy", f"{tmp_path}/a.npy", "sub\\b.npy", "\u00e9.npy", "inner.npy", "./a.npy"]
    path = write_table(tmp_path / "t.csv", [["x", cell, "a.npy"] for cell in cells], ["label", "a", "b"])
    assert [item.problem for item in list_samples(read_table(path))] == [None] * len(cells)


def test_links_in_a_circle_are_rejected(tmp_path):
    (tmp_path / "x.npy").symlink_to(tmp_path / "y.npy")
    (tmp_path / "y.npy").symlink_to(tmp_path / "x.npy")
    path = write_table(tmp_path / "t.csv", [["x", "x.npy", "y.npy"]], ["label", "a", "b"])
    assert list_samples(read_table(path))[0].problem.startswith("row 2: column 'a': ")


# Preparation


def test_labels_are_in_order_of_number_where_they_are_numbers(tmp_path):
    rows = vector_rows(24)
    for n, row in enumerate(rows):
        row[1] = str((2, 10, 9)[n % 3])
    assert prepare_table(write_vectors(tmp_path, rows), tmp_path / "out", OPTIONS).classes == ("2", "9", "10")
    for row in rows:
        row[1] = f"c{row[1]}"
    assert prepare_table(write_vectors(tmp_path, rows), tmp_path / "o", OPTIONS).classes == ("c10", "c2", "c9")


def test_one_class_is_not_enough(tmp_path):
    rows = vector_rows(4)
    for row in rows[1::2]:
        row[5] = "nope.npy"
    path = write_vectors(tmp_path, rows)
    (tmp_path / "nope.npy").unlink()
    with pytest.raises(
        ValueError, match=r"at least 2 classes. Those that can be used are of 'one'. Rejected is, .* row 3: column 'b'"
    ):
        prepare_table(path, tmp_path / "out", OPTIONS)


def test_lists_are_not_for_tables(tmp_path):
    with pytest.raises(ValueError, match="column 'split'"):
        prepare_table(tmp_path / "t.csv", tmp_path, PrepareOptions(train_list=tmp_path / "x"))


def test_arrays_are_vectors_or_sequences_as_the_first_that_can_be_read(tmp_path):
    rows = vector_rows(12)
    write_vectors(tmp_path, rows)
    for n in range(12):
        np.save(tmp_path / f"a{n}.npy", np.zeros((2 + n, 4)))
    (tmp_path / "a0.npy").write_bytes(b"no array")
    np.save(tmp_path / "a1.npy", np.zeros((1, 2, 3)))
    np.save(tmp_path / "a5.npy", np.zeros(4))
    np.save(tmp_path / "a6.npy", np.array([{}]), allow_pickle=True)
    np.save(tmp_path / "a7.npy", np.full((3, 4), np.nan))
    result = prepare_table(tmp_path / "t.csv", tmp_path / "out", OPTIONS)
    store = open_store(result.folder)
    assert (store.modalities["a"].kind, store.modalities["a"].shape) == ("sequence", (-1, 4))
    assert (store.modalities["b"].kind, store.modalities["b"].shape) == ("vector", (3,))
    assert {rejection.id for rejection in result.rejected} == {"s0", "s1", "s5", "s6", "s7"}


def test_a_second_preparation_does_nothing_and_a_changed_table_another_store(tmp_path):
    rows = vector_rows(8)
    first = prepare_table(write_vectors(tmp_path, rows), tmp_path / "out", OPTIONS)
    again = prepare_table(tmp_path / "t.csv", tmp_path / "out", OPTIONS)
    assert (first.decoded, again.decoded, again.folder) == (8, 0, first.folder)
    rows[0][1] = "two"
    assert prepare_table(write_vectors(tmp_path, rows), tmp_path / "out", OPTIONS).folder != first.folder


def test_further_columns_are_kept_unread(tmp_path):
    path = write_table(tmp_path / "t.csv", [["x", "a.npy", "a.npy", "by hand"]], ["label", "a", "b", "note:extra"])
    np.save(tmp_path / "a.npy", np.zeros(2))
    assert list_samples(read_table(path))[0].extra == {"row": 2, "note": "by hand"}


# The data set


def ids_of(data):
    return {split: set(data.split(split).ids) for split in ("train", "val", "test")}


def test_splits_are_drawn_by_group_where_there_is_no_split(tmp_path):
    data = prepared(tmp_path, vector_rows(60, groups=3), val_fraction=0.2, test_fraction=0.2)
    groups = {name: set(data.split(name).groups) for name in ("train", "val", "test")}
    assert not groups["train"] & groups["val"]
    assert not (groups["train"] | groups["val"]) & groups["test"]
    assert {name: len(ids) for name, ids in ids_of(data).items()} == {"train": 36, "val": 12, "test": 12}
    again = bmlr.data.create("manifest", root=tmp_path / "out", val_fraction=0.2, test_fraction=0.2)
    other = bmlr.data.create("manifest", root=tmp_path / "out", val_fraction=0.2, test_fraction=0.2, split_seed=1)
    assert ids_of(again) == ids_of(data)
    assert ids_of(other) != ids_of(data)


def test_the_table_s_split_is_kept_and_validation_drawn_if_it_has_none(tmp_path):
    rows = vector_rows(30, split=("train", "train", "train", "val", "test"), groups=1)
    splits = ids_of(prepared(tmp_path, rows))
    assert splits == {split: {row[0] for row in rows if row[2] == split} for split in splits}
    (tmp_path / "two").mkdir()
    rows = vector_rows(30, split=("train", "train", "Training", "testing"), groups=1)
    splits = ids_of(prepared(tmp_path / "two", rows, val_fraction=0.25))
    assert splits["test"] == {row[0] for row in rows if row[2] == "testing"}
    assert splits["train"] | splits["val"] == {row[0] for row in rows if row[2] != "testing"}
    assert len(splits["val"]) == pytest.approx(0.25 * 23, abs=1)


def test_a_split_that_shares_groups_is_refused_taken_or_drawn_anew(tmp_path):
    rows = vector_rows(24, split=("train", "val", "test"), groups=4)
    data = prepared(tmp_path, rows)
    with pytest.raises(
        ValueError, match=r"puts 6 of 6 groups in several splits \('g0', 'g1', 'g2', …\).*--data.resplit true"
    ):
        data.prepare()
    taken = bmlr.data.create("manifest", root=tmp_path / "out", protocol="paper")
    assert ids_of(taken)["val"] == {row[0] for row in rows if row[2] == "val"}
    drawn = bmlr.data.create("manifest", root=tmp_path / "out", resplit=True, val_fraction=0.2, test_fraction=0.2)
    assert not set(drawn.split("train").groups) & set(drawn.split("test").groups)


@pytest.mark.parametrize(
    ("split", "parameters", "message"),
    [
        (("train", "val"), {}, "names no sample 'test'"),
        (("test", "val"), {}, "names no sample 'train'"),
        ((), {"protocol": "paper"}, "has no column 'split'"),
    ],
)
def test_splits_that_cannot_be_used_are_refused(tmp_path, split, parameters, message):
    with pytest.raises(ValueError, match=message):
        prepared(tmp_path, vector_rows(12, split=split, groups=1), **parameters).prepare()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"protocol": "cleen"}, "Did you mean 'clean'"),
        ({"frames": 0}, "`frames`"),
        ({"val_fraction": 0.0}, "`val_fraction = 0.0`"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, "together below 1"),
        ({"test_fraction": float("nan")}, "`test_fraction = nan`"),
        ({"split_seed": -1}, "`split_seed`"),
        ({"resplit": True, "protocol": "paper"}, "`resplit`"),
    ],
)
def test_parameters_are_checked(parameters, message):
    with pytest.raises(ValueError, match=message):
        bmlr.data.create("manifest", root="x", **parameters)


def test_another_data_set_is_not_taken_for_a_table(tmp_path):
    folder = prepare_table(write_vectors(tmp_path, vector_rows(8)), tmp_path / "out", OPTIONS).folder
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["key"]["key"]["layout"] = "ave"
    (folder / "manifest.json").write_text(json.dumps(with_checksum(manifest)))
    with pytest.raises(ValueError, match="should hold a prepared 'manifest'"):
        bmlr.data.create("manifest", root=folder).prepare()


def test_a_modality_no_training_sample_has_is_an_error(tmp_path):
    rows = vector_rows(12, split=("train", "val", "test"), groups=1)
    for row in rows:
        row[5] = row[5] if row[2] == "test" else ""
    with pytest.raises(ValueError, match="training split should have 'b'"):
        prepared(tmp_path, rows).prepare()


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """A prepared table with a file of every kind, some images missing."""
    folder = tmp_path_factory.mktemp("everything")
    table = write_table(folder / "table.csv", write_samples(folder), delimiter=";", encoding="utf-8-sig")
    prepare_table(table, folder / "out", OPTIONS)
    return folder


def open_everything(folder, **parameters):
    data = bmlr.data.create("manifest", root=folder / "out", val_fraction=0.2, test_fraction=0.2, **parameters)
    data.prepare()
    return data


def test_every_kind_has_its_form(everything):
    data = open_everything(everything)
    assert {name: (form.kind, form.shape) for name, form in data.modalities.items()} == {
        "voice": ("spectrogram", (1, 257, 63)),
        "photo": ("image", (3, 16, 16)),
        "clip": ("frames", (3, 3, 16, 16)),
        "pose": ("sequence", (6, 5)),
        "age": ("vector", (2,)),
        "words": ("sequence", (4, 6)),
    }
    assert data.classes == tuple(sorted(LABELS))
    assert data.hparams["root"] == str(everything / "out")
    split = data.split("train")
    batch = split.batch([3, 0])
    assert {name: tuple(x.shape[1:]) for name, x in batch.inputs.items()} == {
        name: form.shape for name, form in data.modalities.items()
    }
    assert all(x.dtype == torch.float32 and x.isfinite().all() for x in batch.inputs.values())
    assert batch.indices.tolist() == [3, 0]
    assert torch.equal(batch.targets, split.targets[[3, 0]])


def test_missing_modalities_are_zero_and_marked(everything):
    split = open_everything(everything).split("train")
    assert set(split.present) == {"photo"}
    batch = split.batch(range(len(split)))
    there = batch.present["photo"]
    assert there.any()
    assert not there.all()
    assert [int(name[1:]) % 5 != 4 for name in split.ids] == there.tolist()
    assert not batch.inputs["photo"][~there].any()
    assert batch.inputs["photo"][there].flatten(1).any(1).all()
    alone = split.batch([int((~there).nonzero()[0])])
    assert not alone.inputs["photo"].any()


def test_arrays_are_standardised_on_the_training_split(everything):
    data, raw = open_everything(everything), open_everything(everything, standardise=False)
    whole = data.split("train").batch(range(len(data.split("train")))).inputs
    torch.testing.assert_close(whole["age"].mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(whole["age"].std(0, correction=0), torch.ones(2), atol=1e-5, rtol=0)
    steps = whole["pose"][whole["pose"].any(2)]
    torch.testing.assert_close(steps.mean(0), torch.zeros(5), atol=1e-5, rtol=0)
    same = raw.split("train").batch(range(len(raw.split("train")))).inputs
    assert torch.equal(same["pose"].any(2), whole["pose"].any(2))
    sample = raw.split("train").ids[0]
    number = int(sample[1:])
    stored = np.load(everything / f"{LABELS[number % 3]} {number} age.npy").astype(np.float32)
    np.testing.assert_array_equal(same["age"][0].numpy(), stored)


def test_random_transforms_depend_on_seed_and_sample_alone(everything):
    split = open_everything(everything).split("train")
    first, again = (split.batch([0, 1], augment=True, seed=5).inputs for _ in range(2))
    alone = split.batch([1], augment=True, seed=5).inputs
    other = split.batch([1], augment=True, seed=6).inputs
    plain = split.batch([0, 1]).inputs
    for name in first:
        assert torch.equal(first[name], again[name])
        assert torch.equal(first[name][1], alone[name][0])
    assert not torch.equal(alone["photo"], other["photo"])
    assert not torch.equal(first["photo"], plain["photo"])
    still = open_everything(everything, augment=False).split("train").batch([0, 1], augment=True, seed=5).inputs
    assert all(torch.equal(still[name], plain[name]) for name in plain)


@LONGER
def test_new_files_are_read_as_those_of_the_table(everything):
    data = open_everything(everything)
    split = data.split("test")
    number = int(split.ids[0][1:])
    label = LABELS[number % 3]
    suffixes = {"voice": ".wav", "photo": ".png", "clip": ".mp4", "pose": " pose.npy", "age": " age.npy",
                "words": " words.npy"}  # fmt: skip
    files = {name: everything / f"{label} {number}{suffix}" for name, suffix in suffixes.items()}
    inputs = data.load_files(files)
    batch = split.batch([0]).inputs
    for name in set(files) - {"photo"}:
        torch.testing.assert_close(inputs[name], batch[name], atol=2e-2 if name == "voice" else 1e-6, rtol=0)
    del files["photo"]
    assert not data.load_files(files)["photo"].any()
    assert_read_without_data(data, files)
    soundless = {name: path for name, path in files.items() if name != "voice"}
    from_clip = data.load_files({**soundless, "voice": files["clip"]})["voice"]
    assert torch.equal(data.load_files(soundless)["voice"], from_clip)  # a video is enough for both
    with pytest.raises(ValueError, match="should name a file of age: no sample of the training data lacks it"):
        data.load_files({name: path for name, path in files.items() if name != "age"})
    with pytest.raises(ValueError, match="Found 'vioce'. Did you mean 'voice'"):
        data.load_files({**files, "vioce": files["voice"]})
    with pytest.raises(ValueError, match="should name files of .*age.* Found none"):
        data.load_files({})
    with pytest.raises(FileNotFoundError, match=r"nowhere\.npy"):
        data.load_files({**files, "age": everything / "nowhere.npy"})


@LONGER
def test_new_arrays_that_do_not_fit_are_refused(everything, tmp_path):
    data = open_everything(everything)
    suffixes = {"voice": ".wav", "clip": ".mp4", "pose": " pose.npy", "age": " age.npy", "words": " words.npy"}
    files = {name: everything / f"cat 0{suffix}" for name, suffix in suffixes.items()}
    for values, message in ((np.zeros(3), "should have shape"), (np.full(2, np.nan), "should be finite")):
        np.save(tmp_path / "x.npy", values)
        with pytest.raises(ValueError, match=message):
            data.load_files({**files, "age": tmp_path / "x.npy"})
    np.save(tmp_path / "long.npy", np.ones((9, 5)))
    assert data.load_files({**files, "pose": tmp_path / "long.npy"})["pose"].shape == (1, 9, 5)
    np.save(tmp_path / "empty.npy", np.ones((0, 5)))
    with pytest.raises(ValueError, match="should have shape"):
        data.load_files({**files, "pose": tmp_path / "empty.npy"})


def test_the_sound_of_videos_can_be_a_modality(tmp_path):
    rows = [[("one", "two")[n % 2], f"{n}.mp4", f"{n}.mp4"] for n in range(4)]
    for n in range(4):
        write_mp4(tmp_path / f"{n}.mp4", 1.0, fps=4, channels=1, frequency=200 * (n + 1))
    path = write_table(tmp_path / "t.csv", rows, ["label", "sound:audio", "video"])
    store = open_store(prepare_table(path, tmp_path / "out", OPTIONS).folder)
    assert {name: form.kind for name, form in store.modalities.items()} == {"sound": "spectrogram", "video": "frames"}


# From table to prediction


@LONGER
def test_from_table_to_prediction_on_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "files").mkdir()
    rows = write_samples(tmp_path / "files", 30, clips=False)
    head = [name for name in HEAD if not name.startswith("clip")]
    rows = [row[:5] + row[6:] for row in rows]
    rows[7][3] = "gone.wav"
    write_table(tmp_path / "files" / "table.csv", rows, head)
    (tmp_path / "files" / "cat 12.wav").write_bytes(b"RIFF")

    prepare = ["prepare", "manifest", "files/table.csv", "out", "--workers", "0", "--size", "16", "--seconds", "1"]
    assert main([*prepare, "--max-rejected", "0.01", "--progress", "false"]) == 2
    assert "more than the fraction" in capsys.readouterr().err
    assert main([*prepare, "--max-rejected", "0.1", "--progress", "false"]) == 0
    assert "2 rejected" in capsys.readouterr().out
    (folder,) = (tmp_path / "out").iterdir()
    reasons = {rejection.id: rejection.reason for rejection in read_rejected(folder)}
    assert reasons["s7"] == "row 9: column 'voice': there is no file 'gone.wav'"
    assert "cat 12.wav" in reasons["s12"]

    given_data = ["--data.root", "out", "--data.val_fraction", "0.2", "--data.test_fraction", "0.2"]
    assert main(["inspect", "manifest", *given_data, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert sum(split["samples"] for split in found["splits"].values()) == 28
    assert found["rejected"] == 2
    assert found["leaks"] == []

    run = tmp_path / "run"
    train = ["train", "--data", "manifest", *given_data, "--method", "BMLR", "--model.width", "2", "--trainer.epochs",
             "1", "--run", str(run), *CPU]  # fmt: skip
    assert main(train) == 0
    assert "majority rate" in capsys.readouterr().out
    assert main(["evaluate", str(run)]) == 0
    accuracy = json.loads((run / "result.json").read_text())["test"]["accuracy"]
    assert f"{100 * accuracy:.1f}" in capsys.readouterr().out

    names = {"voice": "dög 1.wav", "photo": "dög 1.png", "pose": "dög 1 pose.npy", "age": "dög 1 age.npy"}
    files = [f"{name}={tmp_path / 'files' / file}" for name, file in names.items()]
    words = f"words={tmp_path / 'files' / 'dög 1 words.npy'}"
    assert main(["predict", str(run), *files, words, "--json"]) == 0
    probabilities = json.loads(capsys.readouterr().out)[0]["probabilities"]
    assert set(probabilities) == {"fused", "voice", "photo", "pose", "age", "words"}
    assert set(probabilities["fused"]) == set(LABELS)
    without_photo = [file for file in files if not file.startswith("photo")]
    assert main(["predict", str(run), *without_photo, words, "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)[0]["probabilities"]) == {"fused", "voice", "pose", "age", "words"}
    assert main(["predict", str(run), *files]) == 2
    assert "words" in capsys.readouterr().err


def test_the_option_for_outside_files_is_for_tables_only(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    rows = vector_rows(4)
    write_vectors(tmp_path, rows)
    rows = [[*row[:4], f"../{row[4]}", f"../{row[5]}"] for row in rows]
    write_table(tmp_path / "data" / "t.csv", rows, ["id", "label", "split", "group", "a", "b"])
    command = ["prepare", "manifest", "data/t.csv", "out", "--workers", "0", "--progress", "false"]
    assert main(command) == 2
    assert "row 2: column 'a': '../a0.npy' leads out of the folder" in capsys.readouterr().err
    assert main([*command, "--allow-outside"]) == 0
    assert "4 samples" in capsys.readouterr().out
    assert main(["prepare", "ave", "data", "out", "--allow-outside"]) == 2
    assert "Option --allow-outside should be left out for 'ave'" in capsys.readouterr().err


def test_recordings_of_all_formats_are_read(tmp_path):
    suffixes = (".wav", ".flac", ".ogg", ".mp3")
    wave = np.sin(np.arange(22050) / 10).astype(np.float32)
    rows = [[("one", "two")[n % 2], f"{n}{suffix}", "a.npy"] for n, suffix in enumerate(suffixes)]
    for n, suffix in enumerate(suffixes):
        soundfile.write(tmp_path / f"{n}{suffix}", wave, 22050)
    np.save(tmp_path / "a.npy", np.zeros(2))
    path = write_table(tmp_path / "t.csv", rows, ["label", "voice", "a"])
    result = prepare_table(path, tmp_path / "out", OPTIONS)
    assert (len(result.rejected), result.decoded) == (0, 4)
