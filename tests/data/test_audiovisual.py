import dataclasses
import json
import shutil
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from media_fixtures import truncate, write_ave, write_crema_d, write_flv, write_kinetics_sounds, write_mp4, write_wav
from restored import assert_read_without_data

import bmlr
import bmlr.data
from bmlr.cli import main
from bmlr.config import ModelOptions, TrainerOptions
from bmlr.data import prepare
from bmlr.data._group_split import split_by_group
from bmlr.data.sets._forms import choose_frames
from bmlr.data.store._options import PrepareOptions
from bmlr.data.store._store import open_store
from bmlr.training import evaluate_run, load, train

PARTS = ("train", "val", "test")
QUICK = {"workers": 0, "size": 16, "progress": False}
TRAINER = TrainerOptions(epochs=1, batch_size=16, accelerator="cpu", devices=1, progress=False)
MODEL = ModelOptions(width=2)


@pytest.fixture(scope="module")
def crema_d(tmp_path_factory):
    """CREMA-D's folder and the same prepared with its lists."""
    folder = tmp_path_factory.mktemp("crema-d")
    source = write_crema_d(folder / "source")
    lists = {"train_list": source / "train.csv", "test_list": source / "test.csv"}
    return source, prepare("crema-d", source, folder / "dest", PrepareOptions(**QUICK, **lists))


@pytest.fixture(scope="module")
def ave(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ave")
    source = write_ave(folder / "source")
    return source, prepare("ave", source, folder / "dest", PrepareOptions(**QUICK, seconds=2.0, fps=4.0))


@pytest.fixture(scope="module")
def kinetics_sounds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ks")
    source = write_kinetics_sounds(folder / "source")
    return source, prepare("kinetics-sounds", source, folder / "dest", PrepareOptions(**QUICK, seconds=2.0))


def all_splits(data):
    return {name: data.split(name) for name in PARTS}


class TestCremaD:
    def test_prepared(self, crema_d):
        _, prepared = crema_d
        assert prepared.classes == ("NEU", "HAP", "SAD", "FEA", "DIS", "ANG")
        assert {split: sum(c.values()) for split, c in prepared.counts.items()} == {"train": 48, "test": 12}
        assert prepared.rejected == ()
        store = open_store(prepared.folder, verify=True)
        assert store.arrays["audio"].shape == (60, 1, 257, 188)
        assert store.arrays["audio"].dtype == np.float16
        assert store.arrays["video"].shape[1:] == (16, 16, 3)

    def test_clean_splits_share_no_actor(self, crema_d):
        splits = all_splits(bmlr.data.create("crema-d", root=crema_d[1].folder))
        actors = {name: set(split.groups) for name, split in splits.items()}
        assert sum(map(len, actors.values())) == len(set().union(*actors.values())) == 10
        assert [len(splits[name]) for name in PARTS] == [48, 6, 6]
        assert all(len(split.targets.unique()) == 6 for split in splits.values())

    def test_paper_splits_are_the_lists(self, crema_d):
        source, prepared = crema_d
        splits = all_splits(bmlr.data.create("crema-d", root=prepared.folder, protocol="paper", val_fraction=0.25))
        listed = {p: {line.split(",")[0] for line in (source / f"{p}.csv").read_text().split()} for p in PARTS[::2]}
        assert set(splits["test"].ids) == listed["test"]
        assert set(splits["train"].ids) | set(splits["val"].ids) == listed["train"]
        assert not set(splits["train"].ids) & set(splits["val"].ids)
        assert torch.bincount(splits["val"].targets).tolist() == [2] * 6

    def test_split_depends_on_its_seed_only(self, crema_d):
        root = crema_d[1].folder
        first, again, other = (
            bmlr.data.create("crema-d", root=root, split_seed=seed).split("test").ids for seed in (1, 1, 2)
        )
        assert first == again != other

    def test_batch(self, crema_d):
        data = bmlr.data.create("crema-d", root=crema_d[1].folder)
        split = data.split("train")
        batch = split.batch([3, 0, 7])
        assert batch.inputs["audio"].shape == (3, *data.modalities["audio"].shape) == (3, 1, 257, 188)
        assert batch.inputs["video"].shape == (3, *data.modalities["video"].shape) == (3, 1, 3, 16, 16)
        assert {x.dtype for x in batch.inputs.values()} == {torch.float32}
        assert batch.targets.tolist() == split.targets[[3, 0, 7]].tolist()
        assert batch.indices.tolist() == [3, 0, 7]
        for name, x in split.batch([0]).inputs.items():
            torch.testing.assert_close(x[0], batch.inputs[name][1], rtol=0, atol=0)

    def test_new_files_are_read_as_the_prepared_ones(self, crema_d):
        source, prepared = crema_d
        data = bmlr.data.create("crema-d", root=prepared.folder, frames=2)
        split = data.split("test")
        for position in (0, 4):
            name = split.ids[position]
            files = {"audio": source / f"AudioWAV/{name}.wav", "video": source / f"VideoFlash/{name}.flv"}
            loaded, stored = data.load_files(files), split.batch([position]).inputs
            for modality, x in stored.items():
                torch.testing.assert_close(loaded[modality], x, rtol=0, atol=0)
        assert_read_without_data(data, files)

    def test_new_files_that_do_not_do(self, crema_d, tmp_path):
        data = bmlr.data.create("crema-d", root=crema_d[1].folder)
        wav, flv = write_wav(tmp_path / "a.wav", 1.0), write_flv(tmp_path / "a.flv", 1.0)
        assert data.load_files({"video": flv})["audio"].shape == (1, 1, 257, 188)  # the video's own sound
        assert_read_without_data(data, {"video": flv})
        with pytest.raises(ValueError, match=r"Found audio"):
            data.load_files({"audio": wav})
        with pytest.raises(FileNotFoundError, match=r"gone\.flv"):
            data.load_files({"audio": wav, "video": tmp_path / "gone.flv"})
        with pytest.raises(ValueError, match=r"a\.flv cannot be read: it is truncated"):
            data.load_files({"audio": wav, "video": truncate(flv)})


class TestAve:
    def test_events_of_a_video_share_its_split_under_clean(self, ave):
        prepared = ave[1]
        assert sum(sum(c.values()) for c in prepared.counts.values()) == 15
        assert set(prepared.counts) == set(PARTS)
        splits = all_splits(bmlr.data.create("ave", root=prepared.folder, val_fraction=0.2, test_fraction=0.2))
        groups = [set(split.groups) for split in splits.values()]
        assert sum(map(len, groups)) == len(set().union(*groups)) == 12
        assert sum(map(len, splits.values())) == 15

    def test_paper_splits_are_the_lists(self, ave):
        source, prepared = ave
        splits = all_splits(bmlr.data.create("ave", root=prepared.folder, protocol="paper"))
        for name, split in splits.items():
            lines = (source / f"{name}Set.txt").read_text().split("\n")[:-1]
            assert sorted(split.groups) == sorted(line.split("&")[1] for line in lines)

    def test_frames(self, ave):
        data = bmlr.data.create("ave", root=ave[1].folder, frames=4)
        batch = data.split("train").batch([0, 1])
        assert batch.inputs["video"].shape == (2, 4, 3, 16, 16)
        means = batch.inputs["video"].mean((2, 3, 4))
        assert (means.diff(dim=1) > 0).all()  # the fixtures brighten with time

    def test_times_are_kept(self, ave):
        clips = {clip.id: clip for clip in open_store(ave[1].folder).samples}
        assert clips["v0000000000#2"].extra == {"start": 1.0, "end": 2.0, "quality": "good"}
        assert clips["v0000000000"].files["video"]["seconds"] == pytest.approx(1.5, abs=0.05)


class TestKineticsSounds:
    def test_clips_of_a_video_share_its_split_under_clean(self, kinetics_sounds):
        data = bmlr.data.create("kinetics-sounds", root=kinetics_sounds[1].folder.parent)
        assert data.classes == ()
        splits = all_splits(data)
        assert data.classes == ("laughing", "playing piano", "singing")
        groups = [set(split.groups) for split in splits.values()]
        assert sum(map(len, groups)) == len(set().union(*groups)) == 18
        assert sum(map(len, splits.values())) == 36
        assert data.modalities["video"].shape == (3, 3, 16, 16)

    def test_paper_splits_are_the_folders(self, kinetics_sounds):
        data = bmlr.data.create("kinetics-sounds", root=kinetics_sounds[1].folder, protocol="paper")
        assert {name: len(split) for name, split in all_splits(data).items()} == {"train": 24, "val": 6, "test": 6}


class TestFrames:
    @settings(deadline=None)
    @given(count=st.integers(1, 40), wanted=st.integers(1, 8), seed=st.integers(0, 99))
    def test_one_of_each_segment(self, count, wanted, seed):
        middle = choose_frames(count, wanted, None)
        drawn = choose_frames(count, wanted, np.random.default_rng(seed))
        for chosen in (middle, drawn):
            assert len(chosen) == wanted
            for j, frame in enumerate(chosen):
                assert j * count // wanted <= frame <= min((j + 1) * count / wanted, count - 1)
        assert middle.tolist() == [int((j + 0.5) * count / wanted) for j in range(wanted)]

    def test_training_frames_are_uniform_in_their_segment(self):
        rng = np.random.default_rng(0)
        drawn = np.array([choose_frames(12, 3, rng) for _ in range(4000)])
        for segment in range(3):
            counts = np.bincount(drawn[:, segment], minlength=12)
            assert (np.flatnonzero(counts) == np.arange(4 * segment, 4 * segment + 4)).all()
            assert counts[counts > 0].std() < 60  # about 27 expected of 1,000

    def test_transforms_depend_on_seed_and_sample_not_on_the_batch(self, ave):
        split = bmlr.data.create("ave", root=ave[1].folder).split("train")
        everything = split.batch(range(len(split)), augment=True, seed=5).inputs["video"]
        alone = split.batch([6], augment=True, seed=5).inputs["video"]
        torch.testing.assert_close(alone[0], everything[6], rtol=0, atol=0)
        others = [split.batch(range(len(split)), augment=True, seed=seed).inputs["video"] for seed in range(3)]
        assert not torch.equal(others[0], others[1])
        assert not torch.equal(others[1], others[2])

    def test_evaluation_is_the_same_every_time(self, ave):
        split = bmlr.data.create("ave", root=ave[1].folder).split("train")
        first, second = (split.batch([2, 3], seed=seed).inputs["video"] for seed in (0, 1))
        torch.testing.assert_close(first, second, rtol=0, atol=0)

    def test_evaluation_frames_are_the_stored_ones_normalised(self, ave):
        data = bmlr.data.create("ave", root=ave[1].folder, frames=1)
        split = data.split("test")
        store, row = data.store, split.rows[1]
        stored = store.values("video", row)
        expected = stored[len(stored) // 2] / 255
        expected = (expected - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        found = split.batch([1]).inputs["video"][0, 0]
        np.testing.assert_allclose(found.permute(1, 2, 0), expected, atol=1e-5)

    def test_training_frames_are_cropped_and_mirrored(self, ave):
        split = bmlr.data.create("ave", root=ave[1].folder, frames=1).split("train")
        image = np.zeros_like(split.store.arrays["video"])
        image[:, :, :8] = 255
        split.store = dataclasses.replace(split.store, arrays={**split.store.arrays, "video": image})
        drawn = torch.cat([split.batch(range(8), augment=True, seed=seed).inputs["video"][:, 0] for seed in range(8)])
        assert drawn.shape == (64, 3, 16, 16)
        left, right = drawn[..., 0].mean((1, 2)), drawn[..., -1].mean((1, 2))
        assert (left > right).any()
        assert (left < right).any()  # mirrored
        assert len({round(float(x), 3) for x in drawn.mean((1, 2, 3))}) > 8  # cropped at many places


class TestSplit:
    @settings(deadline=None, max_examples=40)
    @given(
        sizes=st.lists(st.integers(1, 30), min_size=3, max_size=60), classes=st.integers(1, 6), seed=st.integers(0, 9)
    )
    def test_every_sample_is_in_one_split_and_no_group_in_two(self, sizes, classes, seed):
        groups = [f"g{i}" for i, size in enumerate(sizes) for _ in range(size)]
        targets = np.random.default_rng(seed).integers(0, classes, len(groups))
        splits = split_by_group(groups, targets, val_fraction=0.1, test_fraction=0.2, seed=seed)
        assert sorted(np.concatenate(list(splits.values()))) == list(range(len(groups)))
        seen = [{groups[row] for row in rows} for rows in splits.values()]
        assert sum(map(len, seen)) == len(sizes)
        assert all(len(rows) for rows in splits.values())

    def test_fractions_and_classes_are_kept_where_groups_allow(self):
        rng = np.random.default_rng(0)
        groups = [str(actor) for actor in range(91) for _ in range(82)]
        targets = rng.integers(0, 6, len(groups))
        splits = split_by_group(groups, targets, val_fraction=0.1, test_fraction=0.1, seed=3)
        for name, share in (("train", 0.8), ("val", 0.1), ("test", 0.1)):
            assert len(splits[name]) / len(groups) == pytest.approx(share, abs=0.015)
            expected = np.bincount(targets) / len(groups)
            np.testing.assert_allclose(np.bincount(targets[splits[name]]) / len(splits[name]), expected, atol=0.03)

    def test_what_cannot_be(self):
        for shares in ({"val_fraction": -0.1, "test_fraction": 0.1}, {"val_fraction": 0.5, "test_fraction": 0.5}):
            with pytest.raises(ValueError, match="`val_fraction` and `test_fraction`"):
                split_by_group(["a"], np.array([0]), **shares, seed=0)
        with pytest.raises(ValueError, match="need at least 3 groups. Found 2"):
            split_by_group(["a", "b", "b"], np.array([0, 0, 1]), val_fraction=0.1, test_fraction=0.1, seed=0)


class TestErrors:
    @pytest.mark.parametrize(
        ("change", "name"),
        [({"protocol": "papr"}, "protocol"), ({"frames": 0}, "frames"), ({"split_seed": -1}, "split_seed"),
         ({"val_fraction": 0.0}, "val_fraction"), ({"test_fraction": 1.5}, "test_fraction"),
         ({"val_fraction": 0.5, "test_fraction": 0.5}, "val_fraction")],
    )  # fmt: skip
    def test_parameters(self, change, name):
        with pytest.raises(ValueError, match=f"`{name}"):
            bmlr.data.create("crema-d", root="x", **change)

    def test_nothing_prepared(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="bmlr prepare crema-d SOURCE"):
            bmlr.data.create("crema-d", root=tmp_path).prepare()

    def test_another_data_set(self, ave):
        with pytest.raises(ValueError, match=r"should hold a prepared 'crema-d'.*holds 'ave'"):
            bmlr.data.create("crema-d", root=ave[1].folder).prepare()

    def test_no_published_split(self, crema_d, tmp_path):
        prepared = prepare("crema-d", crema_d[0], tmp_path, PrepareOptions(**QUICK))
        bmlr.data.create("crema-d", root=tmp_path).prepare()
        with pytest.raises(ValueError, match="was prepared without a published train split"):
            bmlr.data.create("crema-d", root=prepared.folder, protocol="paper").prepare()

    def test_clips_outside_the_published_split_are_told(self, kinetics_sounds, tmp_path):
        source = shutil.copytree(kinetics_sounds[0], tmp_path / "source")
        write_mp4(source / "stray.mp4", 1.0)
        (source / "laughing").mkdir()
        write_mp4(source / "laughing" / "another.mp4", 1.0)
        result = prepare("kinetics-sounds", source, tmp_path / "dest", PrepareOptions(**QUICK))
        assert [(r.id, r.reason) for r in result.rejected] == [
            ("stray", "it is in no folder of a class and on no list")
        ]
        with pytest.warns(UserWarning, match="1 sample in no published split left out"):
            bmlr.data.create("kinetics-sounds", root=result.folder, protocol="paper").prepare()

    def test_a_source_without_a_good_clip(self, tmp_path):
        (tmp_path / "a.mp4").touch()
        with pytest.raises(ValueError, match="No sample of the source can be used, such as a: it is in no folder"):
            prepare("kinetics-sounds", tmp_path, tmp_path / "dest", PrepareOptions(**QUICK))


def test_bad_media_of_every_kind_are_rejected_with_reasons(ave, tmp_path):
    source = shutil.copytree(ave[0], tmp_path / "source")
    videos = sorted((source / "AVE").iterdir())
    truncate(videos[1], 0.7)
    videos[2].write_bytes(b"garbage" * 100)
    write_mp4(videos[3], 1.0, channels=0)
    videos[4].unlink()
    write_mp4(source / "AVE" / "unlisted.mp4", 1.0)
    options = PrepareOptions(**QUICK, seconds=2.0)
    with pytest.raises(ValueError, match=r"5 of 16 samples were rejected.*rejected\.csv"):
        prepare("ave", source, tmp_path / "dest", options)
    result = prepare("ave", source, tmp_path / "dest", PrepareOptions(**QUICK, seconds=2.0, max_rejected=0.5))
    reasons = {r.id: r.reason for r in result.rejected}
    expected = ["cannot be read", "cannot be read", "it has no audio stream", "there is no", "not in Annotations.txt"]
    assert list(reasons) == [*(video.stem for video in videos[1:5]), "unlisted"]
    assert all(split in reason for split, reason in zip(expected, reasons.values(), strict=True))
    assert result.counts["train"]["Bell"] > 0


@pytest.mark.parametrize("protocol", ["clean", "paper"])
def test_from_raw_media_to_prediction(crema_d, tmp_path, protocol):
    source, prepared = crema_d
    data = bmlr.data.create("crema-d", root=prepared.folder, protocol=protocol)
    result = train(data, bmlr.BMLR(), MODEL, trainer=TRAINER, run=tmp_path / "run")
    assert result.content["samples"] == {name: len(data.split(name)) for name in PARTS}
    assert evaluate_run(tmp_path / "run").fused == pytest.approx(result.content["test"]["accuracy"])
    name = data.split("test").ids[0]
    files = {"audio": source / f"AudioWAV/{name}.wav", "video": source / f"VideoFlash/{name}.flv"}
    probabilities = load(tmp_path / "run").predict(files)
    assert set(probabilities) == {"fused", "audio", "video"}
    assert all(sum(p.values()) == pytest.approx(1) and list(p) == list(data.classes) for p in probabilities.values())


class TestCommandLine:
    def test_prepare_train_evaluate_predict(self, ave, tmp_path, capsys):
        """Each command of the documentation once, on AVE's layout."""
        source, _ = ave
        command = ["prepare", "ave", str(source), str(tmp_path / "dest"), "--workers", "0", "--size", "16"]
        command += ["--seconds", "2", "--max-rejected", "0.1", "--progress", "false"]
        assert main(command) == 0
        printed = capsys.readouterr().out
        assert "2 classes, 15 samples, 0 rejected" in printed
        assert "15 read by this call" in printed
        folder = printed.split("\n")[-2]
        assert main(command) == 0
        assert "nothing was read" in capsys.readouterr().out
        assert main([*command, "--fps=2"]) == 0
        assert capsys.readouterr().out.split("\n")[-2] != folder

        run = str(tmp_path / "run")
        training = ["train", "--data", "ave", "--data.root", folder, "--method", "Joint", "--run", run,
                    "--model.width", "2", "--trainer.epochs", "1", "--trainer.accelerator", "cpu",
                    "--trainer.devices", "1", "--data.val_fraction", "0.2"]  # fmt: skip
        with warnings.catch_warnings():
            assert main(training) == 0
        assert main(["evaluate", run]) == 0
        capsys.readouterr()
        video = next((source / "AVE").iterdir())
        assert main(["predict", run, str(video), "--json", "true"]) == 0
        assert set(json.loads(capsys.readouterr().out)[0]["probabilities"]["fused"]) == {"Bell", "Horn"}

    def test_lists_and_rejections(self, crema_d, tmp_path, capsys):
        source = shutil.copytree(crema_d[0], tmp_path / "source")
        (source / "AudioWAV" / "1001_TIE_NEU_XX.wav").write_bytes(b"RIFF")
        command = ["prepare", "crema-d", str(source), str(tmp_path / "dest"), "--workers", "0", "--size", "16",
                   "--train-list", str(source / "train.csv"), "--test_list", str(source / "test.csv"),
                   "--progress", "false"]  # fmt: skip
        assert main(command) == 0
        printed = " ".join(capsys.readouterr().out.split())
        assert "6 classes, 59 samples, 1 rejected, listed with reasons in" in printed
        assert "train" in printed
        assert "no published split" not in printed
        assert main([*command, "--max-rejected", "0"]) == 0  # prepared before, with the same parameters

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["crema-d", "/nowhere", "dest"], "There is no folder AudioWAV in /nowhere"),
            (["kinetics-sounds", "/nowhere", "dest"], "There is no folder /nowhere"),
            (["cremad", "/nowhere", "dest"], "Did you mean 'crema-d'"),
            (["ave", "/nowhere"], "needs DEST"),
            (["ave", "/nowhere", "dest", "--size", "2"], "Option --size should be"),
            (["ave", "/nowhere", "dest", "--dtype", "int8"], "dtype"),
            (["ave", "/nowhere", "dest", "--sise", "2"], "sise"),
        ],
    )
    def test_mistakes_fail_with_one_sentence(self, capsys, tmp_path, monkeypatch, arguments, message):
        monkeypatch.chdir(tmp_path)
        assert main(["prepare", *arguments]) == 2
        printed = capsys.readouterr().err
        assert message in printed
        assert printed.count("\n") == 1
