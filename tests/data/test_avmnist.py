"""AV-MNIST on miniatures of the real layouts, with every way a file can be bad; and on the real files."""

import gzip
import os
import re
import shutil
import struct
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from restored import assert_read_without_data

import bmlr.cli
import bmlr.config
import bmlr.data
from bmlr.data.readers._audio import read_audio
from bmlr.data.readers._images import read_gray_image
from bmlr.data.sets import _avmnist, _paired_digits
from bmlr.data.sets._avmnist import AVMNIST
from bmlr.data.transforms._degrade import clutter, move, principal_components, project
from bmlr.data.transforms._spectrogram import Spectrogram

soundfile = pytest.importorskip("soundfile")
Image = pytest.importorskip("PIL.Image")
pytest.importorskip("librosa")

SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
INDICES = (0, 4, 5, 9, 10, 11)
IMAGES, LABELS = "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"


def digit_images(count, seed=0):
    """Images whose class can be seen, and labels; every class is there in any ten in a row."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.uint8) % 10
    images = rng.integers(0, 60, (count, 28, 28), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[4 + 2 * label : 7 + 2 * label, 4:24] = rng.integers(180, 256)
    return images, labels


def idx(array):
    header = struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape)
    return header + array.tobytes()


def write_idx(folder, stem, images, labels, *, dot="-", packed=True):
    folder.mkdir(parents=True, exist_ok=True)
    for what, array in (("images", images), ("labels", labels)):
        name = f"{stem}-{what}{dot}idx{array.ndim}-ubyte" + (".gz" if packed else "")
        (folder / name).write_bytes(gzip.compress(idx(array)) if packed else idx(array))


def write_recordings(folder):
    folder.mkdir(parents=True)
    rng = np.random.default_rng(1)
    for digit in range(10):
        for speaker, name in enumerate(SPEAKERS):
            for index in INDICES:
                samples = rng.integers(1500, 7000)
                angle = 2 * np.pi * (300 + 150 * digit + 10 * speaker) * np.arange(samples) / 8000
                wave = 0.3 * np.sin(angle) + 0.01 * rng.standard_normal(samples)
                soundfile.write(folder / f"{digit}_{name}_{index}.wav", wave, 8000)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("source")
    write_idx(root / "mnist", "t10k", *digit_images(200))
    write_recordings(root / "fsdd" / "recordings")
    return root


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def copy(source, tmp_path):
    return shutil.copytree(source, tmp_path / "copy")


@pytest.fixture
def make(source, shared_cache):
    def made(**parameters):
        # Without principal components, which take longest, but where a test asks for them.
        return AVMNIST(**{"root": source, "cache": shared_cache, "image_energy": 1.0, **parameters})

    return made


def whole(split):
    return split.batch(range(len(split)))


class TestParts:
    def test_sizes_and_forms(self, make):
        data = make()
        assert {name: len(data.split(name)) for name in ("train", "val", "test")} == {
            "train": 140,
            "val": 20,
            "test": 40,
        }
        batch = data.split("train").batch([3, 1])
        for name, modality in data.modalities.items():
            assert batch.inputs[name].shape == (2, *modality.shape)
            assert batch.inputs[name].dtype == torch.float32
        assert data.modalities["audio"].shape == Spectrogram().shape
        assert batch.targets.tolist() == [3, 1]
        assert batch.indices.tolist() == [3, 1]
        assert data.constant_score() == pytest.approx(0.1)

    @pytest.mark.parametrize("protocol", ["clean", "paper"])
    def test_pairs_agree_in_class_and_groups_are_speakers(self, make, protocol):
        data = make(protocol=protocol)
        for name in ("train", "val", "test"):
            recordings = data.recordings(name)
            assert [int(r[0]) for r in recordings] == data.split(name).targets.tolist()
            assert list(data.split(name).groups) == [r.split("_")[1] for r in recordings]

    def test_clean_keeps_speakers_apart(self, make):
        heard = {name: set(make(protocol="clean").split(name).groups) for name in ("train", "val", "test")}
        assert heard == {"test": {"george", "lucas"}, "val": {"theo"}, "train": {"jackson", "nicolas", "yweweler"}}

    def test_paper_is_the_split_by_index(self, make):
        data = make(protocol="paper")
        indices = {
            name: {int(r.removesuffix(".wav").split("_")[2]) for r in data.recordings(name)}
            for name in ("train", "val", "test")
        }
        assert indices == {"test": {0, 4}, "val": {5, 9}, "train": {10, 11}}
        assert set(data.split("train").groups) == set(SPEAKERS)

    def test_images_are_in_the_order_of_the_files(self, make):
        data = make()
        images = np.concatenate([whole(data.split(name)).inputs["image"].numpy() for name in ("train", "val", "test")])
        original = digit_images(200)[0].astype(np.float64) / 255
        expected = (original - original[:140].mean()) / original[:140].std()
        np.testing.assert_allclose(images[:, 0], expected, atol=1e-5)

    def test_audio_is_the_spectrogram_of_the_recording(self, make, source):
        data = make(audio_snr_db=None)
        audio = whole(data.split("train")).inputs["audio"].numpy()
        waves = [read_audio(source / "fsdd" / "recordings" / r, 8000) for r in data.recordings("train")]
        expected = np.stack([Spectrogram()(wave) for wave in waves])
        np.testing.assert_allclose(audio, (expected - expected.mean()) / expected.std(), atol=1e-4)

    def test_train_statistics_standardise(self, make):
        for name, values in whole(make().split("train")).inputs.items():
            assert float(values.mean()) == pytest.approx(0, abs=1e-4), name
            assert float(values.std()) == pytest.approx(1, abs=1e-3), name
        assert float(whole(make().split("val")).inputs["audio"].mean()) != pytest.approx(0, abs=1e-4)

    def test_recording_used_twice_gets_other_noise(self, make):
        for snr_db, same in ((10.0, False), (None, True)):
            data = make(audio_snr_db=snr_db)
            recordings = data.recordings("train")
            twice = next(r for r in recordings if recordings.count(r) > 1)
            first, second = [i for i, r in enumerate(recordings) if r == twice][:2]
            audio = data.split("train").batch([first, second]).inputs["audio"]
            assert torch.equal(audio[0], audio[1]) is same

    def test_noise_has_the_stated_ratio(self, make, source, monkeypatch, tmp_path):
        drawn = []

        def listen(clip, snr_db, rng):
            noisy = add_noise(clip, snr_db, rng)
            drawn.append(10 * np.log10(np.mean(clip**2.0) / np.mean((noisy - clip) ** 2.0)))
            return noisy

        add_noise = _paired_digits.add_noise
        monkeypatch.setattr(_paired_digits, "add_noise", listen)
        make(audio_snr_db=-7.0, cache=tmp_path).prepare()
        assert len(drawn) == 200
        np.testing.assert_allclose(drawn, -7.0, atol=1e-3)


class TestDeterminism:
    def test_same_seed_same_arrays(self, make, tmp_path):
        parameters = {"image_rotation": 20.0, "image_shift": 2.0, "image_clutter": 2}
        first, second = make(**parameters), make(**parameters, cache=tmp_path)
        for name in ("train", "val", "test"):
            assert first.recordings(name) == second.recordings(name)
            for modality, values in whole(first.split(name)).inputs.items():
                assert torch.equal(values, whole(second.split(name)).inputs[modality])

    def test_other_seed_other_pairs(self, make):
        assert make().recordings("train") != make(pairing_seed=1).recordings("train")
        assert make().recordings("test") != make(pairing_seed=1).recordings("test")

    def test_a_sample_does_not_depend_on_those_after_it(self, make, copy, tmp_path):
        images, labels = digit_images(200)
        write_idx(copy / "mnist", "t10k", images[:100], labels[:100])
        few, many = make(root=copy, cache=tmp_path), make()
        assert few.recordings("train") == many.recordings("train")[:70]

    @pytest.mark.parametrize(
        "parameters", [{"image_rotation": 30.0}, {"image_shift": 3.0}, {"image_clutter": 2}, {"image_energy": 0.5}]
    )
    def test_every_image_parameter_changes_images_only(self, make, parameters):
        plain, changed = whole(make().split("test")), whole(make(**parameters).split("test"))
        assert torch.equal(plain.inputs["audio"], changed.inputs["audio"])
        assert not torch.allclose(plain.inputs["image"], changed.inputs["image"], atol=1e-2)


class TestCache:
    def test_second_object_opens_no_recording(self, make, tmp_path, monkeypatch):
        expected = whole(make(cache=tmp_path).split("test"))

        def refuse(path, sample_rate):
            raise AssertionError(f"{path} was opened.")

        monkeypatch.setattr(_avmnist, "read_audio", refuse)
        again = make(cache=tmp_path)
        assert torch.equal(whole(again.split("test")).inputs["audio"], expected.inputs["audio"])
        with pytest.raises(AssertionError, match="was opened"):
            make(cache=tmp_path, audio_snr_db=1.0).prepare()

    def test_times_and_place_of_files_do_not_count_but_contents_do(self, make, copy, tmp_path, monkeypatch):
        make(root=copy, cache=tmp_path).prepare()
        moved = copy.rename(copy.with_name("moved"))
        recording = moved / "fsdd" / "recordings" / "3_theo_0.wav"
        os.utime(recording, (1, 1))
        read = []
        monkeypatch.setattr(_avmnist, "read_audio", lambda path, rate: read.append(path) or read_audio(path, rate))
        make(root=moved, cache=tmp_path).prepare()
        assert not read
        soundfile.write(recording, np.full(4000, 0.1), 8000)
        make(root=moved, cache=tmp_path).prepare()
        assert len(read) == 360

    def test_bmlr_cache_is_the_default(self, source, tmp_path, monkeypatch):
        monkeypatch.setenv("BMLR_CACHE", str(tmp_path))
        AVMNIST(source).prepare()
        assert [path.name.split("-")[0] for path in tmp_path.iterdir()] == ["avmnist"]


class TestLayouts:
    @pytest.mark.parametrize("dot", ["-", "."])
    @pytest.mark.parametrize("packed", [True, False])
    @pytest.mark.parametrize(
        ("images", "recordings"),
        [("mnist", "fsdd/recordings"), (".", "recordings"), ("MNIST/raw", "free-spoken-digit-dataset/recordings")],
    )
    def test_single_pair_of_files(self, make, source, tmp_path, dot, packed, images, recordings):
        root = tmp_path / "root"
        write_idx(root / images, "t10k", *digit_images(200), dot=dot, packed=packed)
        (root / recordings).parent.mkdir(parents=True, exist_ok=True)
        (root / recordings).symlink_to(source / "fsdd" / "recordings")
        data = make(root=root, cache=tmp_path / "cache", audio_snr_db=None)
        assert torch.equal(
            whole(data.split("test")).inputs["image"], whole(make(audio_snr_db=None).split("test")).inputs["image"]
        )

    @pytest.mark.parametrize("protocol", ["clean", "paper"])
    def test_published_layout(self, make, copy, tmp_path, protocol):
        images, labels = digit_images(240, seed=5)
        write_idx(copy / "mnist", "train", images, labels)
        data = make(root=copy, cache=tmp_path, protocol=protocol)
        assert {n: len(data.split(n)) for n in ("train", "val", "test")} == {"train": 220, "val": 20, "test": 200}
        found = np.concatenate([whole(data.split(name)).inputs["image"].numpy() for name in ("train", "val", "test")])
        original = np.concatenate([images, digit_images(200)[0]]).astype(np.float64) / 255
        expected = (original - original[:220].mean()) / original[:220].std()
        np.testing.assert_allclose(found[:, 0], expected, atol=1e-5)
        assert not set(data.recordings("train")) & set(data.recordings("test"))

    def test_half_of_the_published_layout_is_an_error(self, make, copy):
        write_idx(copy / "mnist", "train", *digit_images(240))
        (copy / "mnist" / "train-labels-idx1-ubyte.gz").unlink()
        with pytest.raises(FileNotFoundError, match="train-labels-idx1-ubyte"):
            make(root=copy).prepare()

    def test_hidden_and_other_files_beside_the_recordings_are_left_alone(self, make, copy, tmp_path):
        for name in (".0_theo_0.wav", "._0_theo_0.wav", "README.md"):
            (copy / "fsdd" / "recordings" / name).write_text("")
        assert make(root=copy, cache=tmp_path).recordings("val") == make().recordings("val")


def damaged_idx():
    images, labels = digit_images(200)
    wrong = labels.copy()
    wrong[17] = 10
    packed = gzip.compress(idx(images))
    return {
        "not gzip": (IMAGES, b"no gzip at all"),
        "empty": (IMAGES, b""),
        "gzip cut": (IMAGES, packed[: len(packed) // 2]),
        "gzip without its end": (IMAGES, packed[:-4]),
        "gzip with a flipped bit": (IMAGES, packed[:3000] + bytes([packed[3000] ^ 16]) + packed[3001:]),
        "empty inside": (IMAGES, gzip.compress(b"")),
        "header cut": (IMAGES, gzip.compress(idx(images)[:10])),
        "wrong magic": (IMAGES, gzip.compress(b"\0\0\x08\x01" + idx(images)[4:])),
        "labels as images": (IMAGES, gzip.compress(idx(labels))),
        "images as labels": (LABELS, gzip.compress(idx(images))),
        "one byte short": (IMAGES, gzip.compress(idx(images)[:-1])),
        "one byte long": (IMAGES, gzip.compress(idx(images) + b"\0")),
        "no items": (IMAGES, gzip.compress(idx(images[:0]))),
        "other size": (IMAGES, gzip.compress(idx(images[:, :27]))),
        "boastful count": (IMAGES, gzip.compress(struct.pack(">4I", 0x803, 2**32 - 1, 28, 28))),
        "boastful size": (IMAGES, gzip.compress(struct.pack(">4I", 0x803, 200, 2**31, 2**31))),
        "boastful within bounds": (IMAGES, gzip.compress(struct.pack(">4I", 0x803, 100_000, 28, 28) + b"\0" * 99)),
        "bomb": (IMAGES, gzip.compress(idx(images) + bytes(50_000_000))),
        "label out of range": (LABELS, gzip.compress(idx(wrong))),
        "other number of labels": (LABELS, gzip.compress(idx(labels[:-1]))),
    }


class TestErrors:
    @pytest.mark.parametrize("damage", list(damaged_idx()))
    def test_damaged_idx_is_named(self, source, tmp_path, damage):
        shutil.copytree(source / "mnist", tmp_path / "mnist")
        name, content = damaged_idx()[damage]
        (tmp_path / "mnist" / name).write_bytes(content)
        files = [tmp_path / "mnist" / IMAGES, tmp_path / "mnist" / LABELS]
        with pytest.raises(ValueError, match=name.replace(".", r"\.")):
            _avmnist._split_images(files)

    def test_label_out_of_range_tells_which(self, make, copy):
        name, content = damaged_idx()["label out of range"]
        (copy / "mnist" / name).write_bytes(content)
        with pytest.raises(ValueError, match="Found 10 at position 17"):
            make(root=copy).prepare()

    @pytest.mark.parametrize("content", [b"", b"not a recording", b"RIFF\0\0\0\0WAVE"])
    def test_unreadable_recording_is_named(self, make, copy, content):
        (copy / "fsdd" / "recordings" / "3_theo_9.wav").write_bytes(content)
        with pytest.raises(ValueError, match=r"3_theo_9\.wav"):
            make(root=copy).prepare()

    def test_truncated_recording_is_named(self, make, copy):
        path = copy / "fsdd" / "recordings" / "3_theo_9.wav"
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(ValueError, match=r"3_theo_9\.wav cannot be read as audio: it is truncated"):
            make(root=copy).prepare()

    @pytest.mark.parametrize("name", ["x.wav", "10_theo_1.wav", "3_theo.wav", "3_Theo_1.wav", "3_theo_1.WAV"])
    def test_misnamed_recording_is_named(self, make, copy, name):
        (copy / "fsdd" / "recordings" / name).write_bytes(b"")
        with pytest.raises(ValueError, match=rf"{name}.* should be named"):
            make(root=copy).prepare()

    @pytest.mark.parametrize("missing", [IMAGES, LABELS])
    def test_missing_images(self, make, copy, missing):
        (copy / "mnist" / missing).unlink()
        with pytest.raises(FileNotFoundError, match=missing.removesuffix(".gz")):
            make(root=copy).prepare()

    def test_missing_recordings(self, make, copy):
        shutil.rmtree(copy / "fsdd" / "recordings")
        with pytest.raises(FileNotFoundError, match="fsdd/recordings"):
            make(root=copy).prepare()
        (copy / "recordings").mkdir()
        with pytest.raises(FileNotFoundError, match=r"no \.wav files"):
            make(root=copy).prepare()

    def test_missing_root(self, make, tmp_path):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            make(root=tmp_path / "nowhere").prepare()

    def test_split_without_a_class(self, make, copy):
        for path in (copy / "fsdd" / "recordings").glob("4_theo_*.wav"):
            path.unlink()
        make(root=copy, protocol="paper").prepare()
        with pytest.raises(ValueError, match=r"recordings of split 'val' lack \[4\]"):
            make(root=copy, protocol="clean").prepare()
        images, labels = digit_images(200)
        write_idx(copy / "mnist", "t10k", images, np.where(labels == 7, 1, labels).astype(np.uint8))
        with pytest.raises(ValueError, match=r"images of split 'train' lack \[7\]"):
            make(root=copy, protocol="paper").prepare()

    def test_root_from_the_environment(self, source, shared_cache, monkeypatch):
        monkeypatch.delenv("BMLR_DATA", raising=False)
        with pytest.raises(ValueError, match=r"`root` .* BMLR_DATA"):
            AVMNIST()
        monkeypatch.setenv("BMLR_DATA", str(source))
        assert len(bmlr.data.create("avmnist", cache=shared_cache).split("val")) == 20

    @pytest.mark.parametrize(
        "wrong",
        [
            {"protocol": "published"},
            {"pairing_seed": -1},
            {"audio_snr_db": float("nan")},
            {"image_energy": 0.0},
            {"image_energy": 1.1},
            {"image_rotation": -1.0},
            {"image_shift": 15.0},
            {"image_shift": float("nan")},
            {"image_clutter": 1.5},
        ],
    )
    def test_parameter_out_of_range(self, make, wrong):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            make(**wrong)

    def test_unknown_split(self, make):
        with pytest.raises(ValueError, match="Did you mean 'train'"):
            make().split("trian")


class TestSettings:
    PAPER_LIKE = {
        "protocol": "paper",
        "audio_snr_db": 0.0,
        "image_energy": 1.0,
        "image_rotation": 35.0,
        "image_shift": 6.0,
        "image_clutter": 3,
    }
    TRAINING = {"model": {"width": 8, "stem": "imagenet"}, "optimizer": {"lr": 1e-3, "schedule": "cosine"}}

    def test_each_is_its_values(self):
        values = {name: {} for name in ("unheard-speakers", "easy", "paper-like")}
        for name, found in values.items():
            data = AVMNIST("data", setting=name)
            assert "setting" not in data.hparams
            found |= {key: data.hparams[key] for key in self.PAPER_LIKE}
        same = {"audio_snr_db": 10.0, "image_energy": 0.25, "image_rotation": 0, "image_shift": 0, "image_clutter": 0}
        assert values["unheard-speakers"] == {"protocol": "clean", **same}
        assert values["easy"] == {"protocol": "paper", **same}
        assert values["paper-like"] == self.PAPER_LIKE
        assert AVMNIST("data").hparams == AVMNIST("data", setting="unheard-speakers").hparams
        with pytest.raises(ValueError, match="Did you mean 'paper-like'"):
            AVMNIST("data", setting="paper")

    def test_run_records_values_and_what_is_given_counts_more(self, source, shared_cache, tmp_path, capsys):
        def config(directory, *words):
            run = ["train", "avmnist", f"--data.root={source}", f"--data.cache={shared_cache}", "--method=Joint"]
            short = ["--trainer.batch_size=70", "--trainer.progress=false", "--trainer.logger=none"]
            assert bmlr.cli.main([*run, *short, "--run", str(tmp_path / directory), *words]) == 0
            return bmlr.config.read_config_entries(tmp_path / directory / "config.yaml")

        named = config("named", "--data.setting=paper-like", "--trainer.epochs=1")
        assert {key: named["data"]["init_args"][key] for key in self.PAPER_LIKE} == self.PAPER_LIKE
        for section, entries in self.TRAINING.items():
            assert {key: named[section][key] for key in entries} == entries
        typed = [f"--data.{key}={value}" for key, value in self.PAPER_LIKE.items()]
        typed += [
            f"--{part}.{key}={value}" for part, entries in self.TRAINING.items() for key, value in entries.items()
        ]
        assert config("typed", *typed, "--trainer.epochs=1") == named
        capsys.readouterr()
        given = ["--data.audio_snr_db=none", "--data.protocol=clean", "--data.image_shift=0", "--data.image_clutter=1"]
        given += ["--model.width=2", "--model.stem=small", "--optimizer.schedule=constant", "--trainer.epochs=1"]
        changed = config("changed", "--data.setting=paper-like", *given)
        parameters = {"protocol": "clean", "audio_snr_db": None, "image_shift": 0.0, "image_clutter": 1}
        assert {key: changed["data"]["init_args"][key] for key in self.PAPER_LIKE} == {**self.PAPER_LIKE, **parameters}
        assert (changed["model"]["width"], changed["model"]["stem"]) == (2, "small")
        assert (changed["optimizer"]["schedule"], changed["optimizer"]["lr"]) == ("constant", 1e-3)

    def test_help_says_every_value(self, capsys):
        bmlr.cli.main(["help", "train", "avmnist"])
        text = " ".join(capsys.readouterr().out.split())
        text = text[text.index("paper-like, with") : text.index("(default unheard-speakers)")]
        defaults = AVMNIST("data", setting="paper-like").defaults
        for name, value in {**self.PAPER_LIKE, **self.TRAINING["model"], **self.TRAINING["optimizer"]}.items():
            assert re.search(rf"\b{name} {value if isinstance(value, str) else f'{value:g}'}\b", text), name
        assert f"{defaults.epochs} epochs" in text
        assert defaults.epochs == 12


class TestLoadFiles:
    @pytest.fixture
    def files(self, source, tmp_path):
        image = digit_images(200)[0][0]
        Image.fromarray(image).save(tmp_path / "digit.png")
        return {"audio": source / "fsdd" / "recordings" / "0_theo_0.wav", "image": tmp_path / "digit.png"}

    def test_as_the_splits(self, make, files):
        data = make(audio_snr_db=None, image_energy=0.5)
        found = data.load_files(files)
        position = data.recordings("val").index("0_theo_0.wav")
        torch.testing.assert_close(found["audio"], data.split("val").batch([position]).inputs["audio"])
        torch.testing.assert_close(found["image"], data.split("train").batch([0]).inputs["image"], rtol=0, atol=1e-5)
        assert_read_without_data(data, files)

    def test_new_files_get_no_noise(self, make, files):
        clean, noisy = make(audio_snr_db=None), make(audio_snr_db=-10.0)
        first, second = clean.load_files(files)["audio"], noisy.load_files(files)["audio"]
        assert np.corrcoef(first.flatten(), second.flatten())[0, 1] == pytest.approx(1)

    @pytest.mark.parametrize(
        ("form", "tolerance"),
        [("rgb", 0.005), ("palette", 0.005), ("transparent", 0.005), ("large", 0.3), ("jpg", 0.3)],
    )
    def test_other_forms_of_the_image(self, files, tmp_path, form, tolerance):
        grey = Image.open(files["image"])
        white = Image.new("RGBA", (28, 28), "white")
        white.putalpha(grey)
        made = {
            "rgb": grey.convert("RGB"),
            "palette": grey.convert("P"),
            "transparent": white,
            "large": grey.resize((280, 280), Image.Resampling.NEAREST),
            "jpg": grey,
        }
        path = tmp_path / ("new.jpg" if form == "jpg" else "new.png")
        made[form].save(path)
        found = read_gray_image(path, 28, 28)
        assert found.shape == (28, 28)
        np.testing.assert_allclose(found, np.asarray(grey) / 255, rtol=0, atol=tolerance)

    def test_missing_or_unknown_modality(self, make, files):
        for wrong in ({"audio": files["audio"]}, {**files, "video": files["image"]}):
            with pytest.raises(ValueError, match="audio"):
                make().load_files(wrong)

    @pytest.mark.parametrize("modality", ["audio", "image"])
    def test_missing_file(self, make, files, tmp_path, modality):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            make().load_files({**files, modality: tmp_path / "nowhere"})

    @pytest.mark.parametrize("modality", ["audio", "image"])
    @pytest.mark.parametrize("content", [b"", b"text", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
    def test_file_of_another_kind(self, make, files, tmp_path, modality, content):
        (tmp_path / "strange").write_bytes(content)
        with pytest.raises(ValueError, match="strange cannot be read"):
            make().load_files({**files, modality: tmp_path / "strange"})

    def test_truncated_image(self, files):
        files["image"].write_bytes(files["image"].read_bytes()[:-200])
        with pytest.raises(ValueError, match=r"digit\.png cannot be read"):
            read_gray_image(files["image"], 28, 28)

    def test_image_of_16_bits_is_scaled_rather_than_clipped(self, tmp_path):
        Image.fromarray(np.full((28, 28), 40_000, np.uint16)).save(tmp_path / "deep.png")
        np.testing.assert_allclose(read_gray_image(tmp_path / "deep.png", 28, 28), 40_000 / 65_535, atol=1 / 255)

    def test_image_of_many_pixels_is_refused(self, tmp_path):
        Image.new("1", (10_000, 6_000)).save(tmp_path / "large.png")
        with pytest.raises(ValueError, match=r"large\.png .* pixels"):
            read_gray_image(tmp_path / "large.png", 28, 28)


class TestImages:
    def test_principal_components_are_sklearns(self):
        decomposition = pytest.importorskip("sklearn.decomposition")
        images = digit_images(200)[0].astype(np.float32) / 255
        mean, components = principal_components(images, 0.5)
        reference = decomposition.PCA(n_components=len(components), svd_solver="full").fit(images.reshape(200, -1))
        share = np.cumsum(reference.explained_variance_ratio_)
        assert share[-1] >= 0.5
        assert len(share) == 1 or share[-2] < 0.5
        expected = reference.inverse_transform(reference.transform(images.reshape(200, -1)))
        np.testing.assert_allclose(project(images, mean, components).reshape(200, -1), expected, atol=1e-4)

    def test_turn_by_right_angles(self):
        image = np.random.default_rng(0).random((1, 28, 28), dtype=np.float32)
        for quarter in range(4):
            turned = move(image, np.array([quarter * np.pi / 2]), np.zeros((1, 2)))
            np.testing.assert_allclose(turned[0], np.rot90(image[0], quarter), atol=1e-4)

    def test_shift_by_whole_pixels(self):
        image = np.random.default_rng(0).random((1, 28, 28), dtype=np.float32)
        shifted = move(image, np.zeros(1), np.array([[3.0, -2.0]]))[0]
        np.testing.assert_allclose(shifted[2:, :-3], image[0, :-2, 3:], atol=1e-4)
        np.testing.assert_allclose(shifted[:2], 0, atol=1e-4)
        np.testing.assert_allclose(shifted[:, -3:], 0, atol=1e-4)

    def test_clutter_only_adds_and_only_pieces(self):
        images = np.random.default_rng(0).random((20, 28, 28), dtype=np.float32)
        cluttered = clutter(images, 3, np.random.default_rng)
        assert (cluttered >= images).all()
        changed = (cluttered != images).sum((1, 2))
        assert (changed <= 3 * 64).all()
        assert changed.any()


REAL = Path(os.environ.get("BMLR_DATA") or Path(__file__).parents[2] / ".." / "shared" / "data")


@pytest.mark.realdata
@pytest.mark.skipif(
    not ((REAL / "mnist").is_dir() and (REAL / "fsdd" / "recordings").is_dir()),
    reason=f"The real images and recordings are not in {REAL} (set BMLR_DATA).",
)
class TestRealData:
    @pytest.fixture
    def cache(self, shared_cache):
        return shared_cache

    @pytest.mark.parametrize("protocol", ["clean", "paper"])
    def test_sizes_pairs_and_time(self, cache, protocol):
        start = time.process_time()
        data = AVMNIST(REAL, protocol=protocol, cache=cache)
        data.prepare()
        assert time.process_time() - start < 90
        assert {n: len(data.split(n)) for n in ("train", "val", "test")} == {"train": 7000, "val": 1000, "test": 2000}
        heard = {name: set(data.recordings(name)) for name in ("train", "val", "test")}
        assert (
            {"train": 1500, "val": 500, "test": 1000}
            if protocol == "clean"
            else {
                "train": 2400,
                "val": 300,
                "test": 300,
            }
        )
        assert not heard["train"] & heard["test"]
        for name in ("train", "val", "test"):
            assert [int(r[0]) for r in data.recordings(name)] == data.split(name).targets.tolist()
        start = time.process_time()
        AVMNIST(REAL, protocol=protocol, cache=cache).prepare()
        assert time.process_time() - start < 2

    def test_nearest_class_mean_tells_digits(self, cache):
        data = AVMNIST(REAL, protocol="paper", cache=cache)
        train, test = whole(data.split("train")), whole(data.split("test"))
        for name in data.modalities:
            flat = train.inputs[name].flatten(1)
            means = torch.stack([flat[train.targets == digit].mean(0) for digit in range(10)])
            predicted = torch.cdist(test.inputs[name].flatten(1), means).argmin(1)
            assert float((predicted == test.targets).float().mean()) > 0.2, name

    def test_a_real_recording_loads_as_a_new_file(self, cache, tmp_path):
        data = AVMNIST(REAL, protocol="clean", cache=cache)
        Image.new("L", (28, 28)).save(tmp_path / "black.png")
        recording = REAL / "fsdd" / "recordings" / data.recordings("test")[0]
        found = data.load_files({"audio": recording, "image": tmp_path / "black.png"})
        assert all(torch.isfinite(values).all() for values in found.values())
