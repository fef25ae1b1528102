"""UCF-101, UPMC Food-101 and MVSA-Single on tiny folders of exactly the published layouts, by the commands."""

import json

import numpy as np
import pytest

import bmlr.data
from bmlr.cli import main
from bmlr.data.sets._listed import UCF101, Food101, MVSASingle

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("av")


def write_image(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, dtype=np.uint8)).save(path)


def grey(level):
    return np.full((24, 32), level)


def run(capsys, *words):
    """Exit status and what a command printed, in one line."""
    status = main([str(word) for word in words])
    printed = capsys.readouterr()
    return status, " ".join((printed.out + printed.err).split())


def prepared(capsys, name, source, dest, *options):
    status, text = run(
        capsys, "prepare", name, source, dest, "--size", 16, "--workers", 0, "--progress", "false", *options
    )
    assert status == 0, text
    return text


def problems(samples):
    return {sample.id: sample.problem for sample in samples if sample.problem}


# UCF-101


def ucf_name(action, group, clip):
    return f"v_{action}_g{group:02}_c{clip:02}"


@pytest.fixture
def ucf(tmp_path):
    """Two actions, groups 1 and 2 for testing, 3 to 6 for training; flow tells the action."""
    source = tmp_path / "ucf"
    lines = {"train": [], "test": []}
    for number, action in enumerate(("Archery", "HandStandPushups"), 1):
        for group in range(1, 7):
            for clip in (1, 2):
                name = ucf_name(action, group, clip)
                for frame in range(1, 51):
                    write_image(source / "jpegs_256" / name / f"frame{frame:06}.jpg", np.full((24, 32, 3), 4 * frame))
                    write_image(source / "tvl1_flow" / "u" / name / f"frame{frame:06}.jpg", grey(128 + 40 * number))
                    write_image(source / "tvl1_flow" / "v" / name / f"frame{frame:06}.jpg", grey(128 - 2 * frame))
                folder = "HandstandPushups" if number == 2 else action
                entry = f"{folder}/{name.replace('HandStand', 'Handstand')}.avi"
                lines["test" if group <= 2 else "train"].append(entry if group <= 2 else f"{entry} {number}")
    lists = source / "ucfTrainTestlist"
    lists.mkdir()
    for split, entries in lines.items():
        (lists / f"{split}list01.txt").write_text("\r\n".join(entries) + "\r\n")
    return source


def test_ucf_101(ucf, tmp_path, capsys):
    text = prepared(capsys, "ucf-101", ucf, tmp_path / "out")
    assert "2 classes, 24 samples, 0 rejected" in text
    assert "┃ class ┃ train ┃ test ┃" in text  # the first sample by name is one for testing
    data = bmlr.data.create("ucf-101", root=tmp_path / "out", frames=2, standardise=False)
    data.prepare()
    assert data.classes == ("Archery", "HandStandPushups")
    assert {name: m.shape for name, m in data.modalities.items()} == {
        "video": (2, 3, 16, 16), "flow": (2, 2, 16, 16),
    }  # fmt: skip
    groups = {name: set(data.split(name).groups) for name in ("train", "val", "test")}
    assert groups["test"] == {f"{action}_g0{g}" for action in data.classes for g in (1, 2)}
    assert not groups["train"] & groups["val"]
    assert [len(data.split(name)) for name in ("train", "val", "test")] == [14, 2, 8]
    stored = data.store.values("flow", 0)  # 50 images at 25 per second are 2 seconds, of which the middle is kept
    assert stored.shape == (2, 16, 16, 2)
    np.testing.assert_allclose(stored[:, 0, 0, 0], 168, atol=2)
    np.testing.assert_allclose(stored[:, 0, 0, 1], [128 - 2 * 13, 128 - 2 * 38], atol=2)
    name = ucf_name("Archery", 1, 1)
    files = {"video": ucf / "jpegs_256" / name, "flow": ucf / "tvl1_flow" / "u" / name}
    batch = data.split("test").batch([data.split("test").ids.index(name)])
    for modality, values in data.load_files(files).items():
        np.testing.assert_allclose(values, batch.inputs[modality], atol=1e-6)
    paper = bmlr.data.create("ucf-101", root=tmp_path / "out", protocol="paper")
    assert paper.split("test").ids == data.split("test").ids


def test_ucf_101_what_is_missing(ucf, tmp_path):
    name = ucf_name("Archery", 3, 1)
    (ucf / "jpegs_256" / name).rename(ucf / "jpegs_256" / "holiday")
    (ucf / "tvl1_flow" / "v" / ucf_name("Archery", 3, 2)).rename(tmp_path / "away")
    tests = ucf / "ucfTrainTestlist" / "testlist01.txt"
    tests.write_text(f"{tests.read_text()}Archery/{ucf_name('Archery', 4, 1)}.avi\n")
    assert problems(UCF101.list_samples(ucf, {})) == {
        "holiday": "its name should be v_class_group_clip, as v_Archery_g01_c01",
        name: "it has no video",
        ucf_name("Archery", 3, 2): f"there is no {ucf_name('Archery', 3, 2)} in tvl1_flow/v",
        ucf_name("Archery", 4, 1): "it is listed 2 times: in train, test",
    }
    own = {"test": tmp_path / "own.txt"}
    own["test"].write_text(f"Archery/{ucf_name('Archery', 5, 1)}.avi\n")
    listed = [sample for sample in UCF101.list_samples(ucf, own) if sample.split]
    assert [(sample.id, sample.split) for sample in listed] == [(ucf_name("Archery", 5, 1), "test")]
    (ucf / "jpegs_256").rename(tmp_path / "frames")
    with pytest.raises(FileNotFoundError, match="no folder jpegs_256 of frames and no folder UCF-101 of videos"):
        UCF101.list_samples(ucf, {})
    video = ucf / "UCF-101" / "Archery" / f"{ucf_name('Archery', 6, 1)}.avi"
    video.parent.mkdir(parents=True)
    video.touch()
    sample, = [s for s in UCF101.list_samples(ucf, {}) if not s.problem]  # fmt: skip
    assert sample.files == {"video": video, "flow": ucf / "tvl1_flow" / "u" / video.stem}


def test_flow_of_ones_own_table(ucf, tmp_path, capsys):
    rows = ["label,clip:frames,motion:flow,split,group"]
    for action in ("Archery", "HandStandPushups"):
        for group in range(1, 7):
            name = ucf_name(action, group, 1)
            split = "test" if group == 1 else "val" if group == 2 else "train"
            rows.append(f"{action},jpegs_256/{name},tvl1_flow/u/{name},{split},{action}{group}")
    (ucf / "table.csv").write_text("\n".join(rows))
    prepared(capsys, "manifest", ucf / "table.csv", tmp_path / "out", "--frame-rate", 25)
    data = bmlr.data.create("manifest", root=tmp_path / "out")
    data.prepare()
    assert data.modalities["motion"].shape == (3, 2, 16, 16)
    (ucf / "tvl1_flow" / "v" / ucf_name("Archery", 1, 1) / "frame000001.jpg").unlink()
    _, text = run(
        capsys, "prepare", "manifest", ucf / "table.csv", tmp_path / "other", "--size", 16, "--workers", 0,
        "--progress", "false", "--frame-rate", 25, "--max-rejected", 0.2,
    )  # fmt: skip
    assert "12" in text
    rejected = next((tmp_path / "other").glob("*/rejected.csv"), None)
    assert rejected is not None
    assert "should hold as many images" in rejected.read_text()


# UPMC Food-101


TITLES = {
    "train": [
        ("apple_pie_0.jpg", "Apple Pie, the best", "apple_pie"),
        ("apple_pie_1.jpg", 'A "real" pie', "apple_pie"),
        ("apple_pie_2.jpg", "Pie of the day", "apple_pie"),
        ("apple_pie_3.jpg", "Grandma's pie", "apple_pie"),
        ("waffles_0.jpg", "Waffles  at  home", "waffles"),
        ("waffles_1.jpg", "", "waffles"),
        ("waffles_2.jpg", "Crisp waffles", "waffles"),
        ("waffles_3.jpg", "More waffles", "waffles"),
    ],
    "test": [
        ("apple_pie_0.jpg", "Pie from a box", "apple_pie"),
        ("waffles_0.jpg", "waffles at home", "waffles"),
    ],
}


@pytest.fixture
def food(tmp_path):
    source = tmp_path / "food"
    (source / "texts").mkdir(parents=True)
    for split, rows in TITLES.items():
        for number, (name, _, label) in enumerate(rows):
            shade = 20 * number + (100 if split == "test" else 0)
            write_image(source / "images" / split / label / name, np.full((20, 30, 3), shade))
        lines = ['{},"{}",{}'.format(name, title.replace('"', '""'), label) for name, title, label in rows]
        (source / "texts" / f"{split}_titles.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return source


def test_food_101(food, tmp_path, capsys):
    text = prepared(capsys, "food-101", food, tmp_path / "out")
    assert "2 classes, 10 samples, 0 rejected" in text
    paper = bmlr.data.create("food-101", root=tmp_path / "out", protocol="paper", val_fraction=0.25)
    paper.prepare()
    assert paper.modalities["image"].shape == (3, 16, 16)
    assert paper.modalities["text"].kind == "text"
    assert {name: len(paper.split(name)) for name in ("train", "val", "test")} == {"train": 6, "val": 2, "test": 2}
    clean = bmlr.data.create("food-101", root=tmp_path / "out", val_fraction=0.25)
    assert clean.split("test").ids == ["test/apple_pie_0", "test/waffles_0"]
    assert clean.left_out == ["train/waffles_0"]  # its title, but for case and spaces, is one of the test split's
    train = clean.split("train")
    rows = [n for n, identity in enumerate(train.ids) if identity == "train/apple_pie_1"]
    assert train.texts("text", rows) == (['A "real" pie'] if rows else [])
    present = np.concatenate([paper.store.present("text")])
    assert [paper.store.samples[row].id for row in np.flatnonzero(~present)] == ["train/waffles_1"]
    status, text = run(
        capsys, "inspect", "food-101", "--data.root", tmp_path / "out", "--data.protocol", "paper",
        "--data.val_fraction", 0.25, "--sheet", tmp_path / "sheet.png",
    )  # fmt: skip
    assert status == 0
    assert "share 1 group (waffles at home)" in text
    resplit = bmlr.data.create("food-101", root=tmp_path / "out", resplit=True, val_fraction=0.2, test_fraction=0.2)
    assert sum(len(resplit.split(name)) for name in ("train", "val", "test")) == 10
    assert resplit.left_out == []


def test_food_101_what_does_not_fit(food):
    titles = food / "texts" / "train_titles.csv"
    titles.write_text(
        titles.read_text() + "gone_0.jpg,A title,waffles\nonly two,cells\napple_pie_0.jpg,Again,apple_pie\n"
    )
    write_image(food / "images" / "test" / "waffles" / "waffles_9.jpg", np.zeros((20, 30, 3)))
    found = problems(Food101.list_samples(food, {}))
    assert found.pop("train/line 10").startswith("its line should be a file, a title and a class")
    assert found == {
        "train/gone_0": "there is no gone_0.jpg in images/train/waffles",
        "train/apple_pie_0#11": "its line repeats an earlier one",
        "test/waffles_9": "it is not in test_titles.csv",
    }
    titles.unlink()
    with pytest.raises(FileNotFoundError, match=r"There is no list .*train_titles\.csv"):
        Food101.list_samples(food, {})


# MVSA-Single


@pytest.fixture
def mvsa(tmp_path):
    source = tmp_path / "mvsa"
    labels = ["positive,positive", "neutral,negative", "positive,neutral", "neutral,neutral", "positive,negative"]
    lines = ["ID\ttext,image"]
    for number in range(1, 41):
        lines.append(f"{number}\t{labels[number % 5]}")
        write_image(source / "data" / f"{number}.jpg", np.full((20, 30, 3), 6 * number))
        text = f"Tweet number {number} of all  http://t.co/{number}\r\n"
        (source / "data" / f"{number}.txt").write_bytes(text.encode())
    (source / "data" / "1.txt").write_bytes("RT @a: same — http://t.co/x".encode("cp1252"))
    (source / "data" / "2.txt").write_bytes("rt @A: Same \u2014 http://t.co/y".encode("cp1252"))
    (source / "labelResultAll.txt").write_text("\r\n".join(lines) + "\r\n")
    return source


def test_mvsa_single(mvsa, tmp_path, capsys):
    text = prepared(capsys, "mvsa-single", mvsa, tmp_path / "out")
    assert "3 classes, 32 samples, 8 rejected" in text  # not counted by --max-rejected: they have no label
    assert (
        "its text is labelled positive, its image negative"
        in next((tmp_path / "out").glob("*/rejected.csv")).read_text()
    )
    data = bmlr.data.create("mvsa-single", root=tmp_path / "out", val_fraction=0.2, test_fraction=0.2)
    data.prepare()
    assert data.classes == ("negative", "neutral", "positive")
    samples = {sample.id: sample for sample in data.store.samples}
    assert {number: samples[str(number)].label for number in (1, 2, 3, 5)} == {
        1: "negative", 2: "positive", 3: "neutral", 5: "positive",
    }  # fmt: skip
    assert samples["1"].group == samples["2"].group
    split = next(data.split(name) for name in ("train", "val", "test") if "1" in data.split(name).ids)
    batch = split.batch([split.ids.index("1")])  # its text is no UTF-8
    inputs = data.load_files({"image": mvsa / "data" / "1.jpg", "text": mvsa / "data" / "1.txt"})
    assert inputs["text"].tolist() == batch.inputs["text"].tolist()
    assert {name: len(data.split(name)) for name in ("train", "val", "test")} == {"train": 20, "val": 7, "test": 5}
    status, text = run(
        capsys, "inspect", "mvsa-single", "--data.root", tmp_path / "out", "--data.protocol", "paper",
    )  # fmt: skip
    assert status != 0
    assert "was prepared without a published train split" in text


def test_mvsa_single_with_lists(mvsa, tmp_path, capsys):
    (mvsa / "data" / "6.jpg").unlink()
    listed = [number for number in range(1, 41) if number % 5 != 4]
    names = {"train": listed[:20], "val": listed[20:26], "test": listed[26:31]}
    classes = {0: "positive", 1: "negative", 2: "positive", 3: "neutral"}
    options = []
    for split, numbers in names.items():
        path = tmp_path / f"{split}.txt"
        path.write_text("".join(f"{number}.jpg {classes[number % 5]}\n" for number in numbers))
        options += [f"--{split}-list", path]
    text = prepared(capsys, "mvsa-single", mvsa, tmp_path / "out", *options, "--max-rejected", 0.1)
    assert "3 classes, 30 samples, 10 rejected" in text
    data = bmlr.data.create("mvsa-single", root=tmp_path / "out", protocol="paper")
    assert {name: len(data.split(name)) for name in names} == {"train": 19, "val": 6, "test": 5}
    reasons = json.dumps(problems(MVSASingle.list_samples(mvsa, {"train": tmp_path / "train.txt"})))
    assert "there is no 6.jpg in data" in reasons
    assert "it is not listed in train.txt" in reasons
