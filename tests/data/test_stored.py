"""Stored data sets: draws that must never change, statistics, the registry."""

import numpy as np
import pytest
from table_fixtures import write_table

import bmlr.data
from bmlr._random import mixed_seed
from bmlr.cli import main
from bmlr.data import PrepareOptions
from bmlr.data._group_split import split_by_group
from bmlr.data.sets._forms import choose_frames


def test_draws_are_those_of_earlier_versions():
    """Runs of other versions are comparable only while splits, seeds and frames stay the same."""
    assert (mixed_seed(0, 0), mixed_seed(3, 5)) == (7896617691693857887, 4895867234429419378)
    assert choose_frames(30, 3, np.random.default_rng(mixed_seed(3, 5))).tolist() == [7, 14, 27]
    groups = [f"g{n // 2}" for n in range(24)]
    splits = split_by_group(groups, np.arange(24) % 3, val_fraction=0.2, test_fraction=0.2, seed=7)
    assert {name: rows.tolist() for name, rows in splits.items()} == {
        "train": [0, 1, 4, 5, 6, 7, 8, 9, 12, 13, 14, 15, 22, 23],
        "val": [16, 17, 18, 19, 20, 21],
        "test": [2, 3, 10, 11],
    }


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full(3, 2.0), "'b' should not be the same in every sample"),
        (np.full((4, 3), 2.0), "'b' should not be the same at every time step"),
        (np.zeros((4, 3)), "'b' should not be the same at every time step"),
    ],
)
def test_a_constant_modality_cannot_be_standardised(tmp_path, values, message):
    rng = np.random.default_rng(0)
    rows = []
    for number in range(12):
        np.save(tmp_path / f"a{number}.npy", rng.normal(size=3))
        np.save(tmp_path / f"b{number}.npy", values)
        split = ("train", "val", "test")[number % 3]
        rows.append([f"s{number}", ("one", "two")[number % 2], split, f"a{number}.npy", f"b{number}.npy"])
    table = write_table(tmp_path / "t.csv", rows, ["id", "label", "split", "a", "b"])
    bmlr.data.prepare("manifest", table, tmp_path / "out", PrepareOptions(workers=0, progress=False))
    with pytest.raises(ValueError, match=message):
        bmlr.data.create("manifest", root=tmp_path / "out").prepare()
    batch = bmlr.data.create("manifest", root=tmp_path / "out", standardise=False).split("train").batch([0])
    assert np.array_equal(batch.inputs["b"][0].numpy(), values.astype(np.float32))


def test_only_stored_data_sets_are_prepared(tmp_path):
    audiovisual = "crema-d, kinetics-sounds, ave"
    names = f"{audiovisual}, ucf-101, food-101, mvsa-single, mosi, mosei, ch-sims, ur-funny, mustard, manifest"
    for name in ("digits", "wiki"):
        with pytest.raises(ValueError, match=f"'{name}' needs no preparation: .* Prepared are {names}"):
            bmlr.data.prepare(name, tmp_path, tmp_path)
    with pytest.raises(ValueError, match=rf"`data` should be one of {names}\."):
        bmlr.data.prepare("nothing", tmp_path, tmp_path)
    with pytest.raises(ValueError, match="Did you mean 'mosei'"):
        bmlr.data.prepare("mosey", tmp_path, tmp_path)


def test_content_is_told_by_a_digest_not_by_its_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    digests = {}
    for name, shift, root in (("a", 0, "one"), ("a", 0, "two"), ("a", 1, "three")):
        folder = tmp_path / f"{name}{shift}"
        folder.mkdir(exist_ok=True)
        rows = []
        for number in range(12):
            np.save(folder / f"x{number}.npy", np.arange(3, dtype=np.float32) * number + shift)
            np.save(folder / f"y{number}.npy", np.ones(2, np.float32) * number)
            rows.append(f"{'cat' if number % 2 else 'dog'},x{number}.npy,y{number}.npy")
        (folder / "t.csv").write_text("\n".join(["label,x,y", *rows]))
        assert main(["prepare", "manifest", str(folder / "t.csv"), root, "--workers", "0"]) == 0
        digests[root] = bmlr.data.create("manifest", root=root).content_digest
    (tmp_path / "two").rename(tmp_path / "moved")
    assert digests["one"] == digests["two"] != digests["three"]
    moved = bmlr.data.create("manifest", root="moved")
    moved.prepare()
    assert moved.content_digest == digests["two"]
    assert bmlr.data.SelectedModalities(moved, ["x"]).content_digest == digests["two"]
    assert bmlr.data.create("synthetic").content_digest is None
