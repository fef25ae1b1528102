"""The embedded digits: splits that share nothing, the same samples every time, and a package that is whole."""

import ast
import inspect
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from restored import assert_read_without_data

import bmlr.data
from bmlr.data.sets import _digits, _spoken
from bmlr.data.sets._digits import Digits, enlarge, load_written_digits, trim
from bmlr.data.sets._spoken import load_spoken_digits
from bmlr.data.transforms._spectrogram import Spectrogram

soundfile = pytest.importorskip("soundfile")
Image = pytest.importorskip("PIL.Image")
pytest.importorskip("librosa")
pytest.importorskip("sklearn")

PARTS = ("train", "val", "test")
SIZES = {"train": 1029, "val": 386, "test": 382}
STARTS = (0, 130, 256, 386, 516, 646, 776, 915, 1029, 1157, 1287, 1415, 1545, 1667)
ASSETS = files("bmlr.data") / "_assets"
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BMLR_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def spoken():
    return load_spoken_digits()


def whole(split):
    return split.batch(range(len(split)))


def variant(voice):
    """eSpeak's accent is before the +; an accent's own voice counts as one variant of its own."""
    return voice.partition("+")[2] or "plain"


class TestSpokenDigits:
    def test_every_split_says_every_digit_as_often(self, spoken):
        counts = Counter(zip(spoken.splits, spoken.digits.tolist(), strict=True))
        assert counts == {(p, d): n for p, n in {"train": 118, "val": 40, "test": 40}.items() for d in range(10)}
        for split, digit in counts:
            positions = spoken.positions(split, digit)
            assert len(positions) == counts[split, digit]
            assert all(spoken.splits[p] == split and spoken.digits[p] == digit for p in positions)

    def test_no_variant_is_in_two_splits(self, spoken):
        heard = {split: {variant(v) for v, p in zip(spoken.voices, spoken.splits, strict=True) if p == split}
                 for split in PARTS}  # fmt: skip
        assert {split: len(variants) for split, variants in heard.items()} == {"train": 59, "val": 20, "test": 20}
        assert len(set.union(*heard.values())) == 99

    def test_no_family_of_variants_is_in_two_splits(self, spoken):
        """The families of the script that made the clips, read from its source."""
        script = ROOT / "scripts" / "make_spoken_digits.py"
        tree = ast.parse(script.read_text(encoding="utf-8"))
        source = next(
            node.value
            for node in tree.body
            if isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and node.targets[0].id == "FAMILIES"
        )
        families = eval(compile(ast.Expression(source), str(script), "eval"), {"PLAIN": "plain"})  # noqa: S307
        split_of = {variant(v): p for v, p in zip(spoken.voices, spoken.splits, strict=True)}
        assert len(families) > 10
        for family in families:
            assert len({split_of[name] for name in family if name in split_of}) == 1, family

    def test_clips(self, spoken):
        assert len(spoken) == 1980
        assert spoken.sample_rate == 8000
        for wave in spoken.waves:
            assert wave.dtype == np.float32
            assert 800 < len(wave) <= 6000
            assert np.abs(wave).max() == pytest.approx(0.9, abs=0.02)
            assert np.array_equal(wave * 64, np.round(wave * 64))  # steps of 7 bits

    def test_clips_do_not_overlap_and_leave_nothing_out(self):
        index = json.loads((ASSETS / "spoken_digits.json").read_text())
        ends = np.cumsum(index["length"])
        assert index["start"] == [0, *ends[:-1].tolist()]

    def test_no_clip_is_in_two_splits(self, spoken):
        heard = {split: {w.tobytes() for w, p in zip(spoken.waves, spoken.splits, strict=True) if p == split}
                 for split in PARTS}  # fmt: skip
        assert not heard["train"] & heard["val"]
        assert not heard["train"] & heard["test"]
        assert not heard["val"] & heard["test"]


class TestWrittenDigits:
    def test_sheets_begin_where_the_splits_do(self):
        """The sheets are those between which the sequence of digits begins anew; splits are whole sheets."""
        _, labels = load_written_digits()
        for start in STARTS:  # every sheet begins with all ten digits in order
            assert labels[start : start + 10].tolist() == list(range(10))
        bounds = [bound for split in PARTS for bound in _digits._SHEETS[split]]
        assert bounds == [0, 1029, 1029, 1415, 1415, 1797]
        assert set(bounds[:-1]) <= set(STARTS)

    def test_range_and_order(self):
        images, labels = load_written_digits()
        assert images.shape == (1797, 8, 8)
        assert images.dtype == np.float32
        assert (float(images.min()), float(images.max())) == (0, 1)
        assert np.bincount(labels).min() > 170

    def test_others_are_refused(self, monkeypatch):
        import sklearn.datasets

        bunch = sklearn.datasets.load_digits()
        bunch.images[5, 3, 3] += 1
        monkeypatch.setattr(sklearn.datasets, "load_digits", lambda: bunch)
        with pytest.raises(ValueError, match="1,797 images known here"):
            load_written_digits()

    def test_enlarged_is_halved_back(self):
        """Doubling bilinearly keeps linear images as they are, but at the border."""
        ramp = np.add.outer(np.arange(8), 2 * np.arange(8)).astype(np.float32)[None]
        large = enlarge(ramp)[0]
        means = large.reshape(8, 2, 8, 2).mean((1, 3))
        np.testing.assert_allclose(means[1:-1, 1:-1], ramp[0, 1:-1, 1:-1], atol=1e-5)


class TestParts:
    def test_sizes_and_forms(self):
        data = bmlr.data.create("digits")
        assert {name: len(data.split(name)) for name in PARTS} == SIZES
        batch = data.split("train").batch([3, 1])
        for name, modality in data.modalities.items():
            assert batch.inputs[name].shape == (2, *modality.shape)
            assert batch.inputs[name].dtype == torch.float32
        assert batch.indices.tolist() == [3, 1]
        assert batch.targets.tolist() == [3, 1]
        assert data.protocol == "clean"
        assert data.constant_score() < 0.11

    def test_pairs_agree_in_class_and_split_and_groups_are_voices(self, spoken):
        data = Digits()
        for name in PARTS:
            split, clips = data.split(name), data.clips(name)
            assert spoken.digits[clips].tolist() == split.targets.tolist()
            assert {spoken.splits[clip] for clip in clips} == {name}
            assert list(split.groups) == [spoken.voices[clip] for clip in clips]

    def test_targets_are_scikit_learns_in_order(self):
        data = Digits()
        targets = np.concatenate([data.split(name).targets.numpy() for name in PARTS])
        np.testing.assert_array_equal(targets, load_written_digits()[1])

    def test_splits_share_no_variant(self):
        data = Digits()
        heard = {name: {variant(voice) for voice in data.split(name).groups} for name in PARTS}
        assert sum(len(variants) for variants in heard.values()) == len(set.union(*heard.values()))
        assert min(len(variants) for variants in heard.values()) >= 20

    def test_train_statistics_standardise(self):
        for name, values in whole(Digits().split("train")).inputs.items():
            assert float(values.mean()) == pytest.approx(0, abs=1e-4), name
            assert float(values.std()) == pytest.approx(1, abs=1e-3), name

    def test_without_degradation_inputs_are_those_of_the_files(self, spoken):
        data = Digits(audio_snr_db=None, image_noise=0, image_clutter=0)
        split = whole(data.split("val"))
        images = enlarge(load_written_digits()[0])
        expected = (images[1029:1415] - images[:1029].mean()) / images[:1029].std()
        np.testing.assert_allclose(split.inputs["image"][:, 0], expected, atol=1e-4)
        spectrogram = Spectrogram(sample_rate=8000, n_fft=256, hop_length=200, n_mels=24, seconds=0.6)
        train = np.stack([spectrogram(spoken.waves[clip]) for clip in data.clips("train")])
        found = spectrogram(spoken.waves[data.clips("val")[7]])
        np.testing.assert_allclose(split.inputs["audio"][7], (found - train.mean()) / train.std(), atol=1e-3)

    def test_noise_on_the_images_has_the_stated_deviation(self):
        """Read off the ratio of two standardised splits: the noise has half as large a deviation where enlarged."""
        clean, noisy = (Digits(image_noise=noise, image_clutter=0)._build() for noise in (0.0, 0.5))
        scale = noisy["image_statistics"][1]
        raw = [
            arrays["train_image"] * arrays["image_statistics"][1] + arrays["image_statistics"][0]
            for arrays in (clean, noisy)
        ]
        difference = raw[1] - raw[0]
        white = enlarge(np.random.default_rng(0).standard_normal((2000, 8, 8)).astype(np.float32))
        assert float(difference.std()) == pytest.approx(0.5 * white.std(), rel=0.02)
        assert float(difference.mean()) == pytest.approx(0, abs=0.01)
        assert scale > clean["image_statistics"][1]

    def test_a_pair_used_twice_gets_other_noise(self):
        for snr_db, same in ((20.0, False), (None, True)):
            data = Digits(audio_snr_db=snr_db)
            clips = data.clips("train")
            twice = next(clip for clip in clips if clips.count(clip) > 1)
            first, second = [i for i, clip in enumerate(clips) if clip == twice][:2]
            audio = data.split("train").batch([first, second]).inputs["audio"]
            assert torch.equal(audio[0], audio[1]) is same

    def test_nearest_class_mean_tells_digits(self):
        data = Digits()
        train, val = whole(data.split("train")), whole(data.split("val"))
        for name in data.modalities:
            flat = train.inputs[name].flatten(1)
            means = torch.stack([flat[train.targets == digit].mean(0) for digit in range(10)])
            predicted = torch.cdist(val.inputs[name].flatten(1), means).argmin(1)
            assert float((predicted == val.targets).float().mean()) > 0.3, name


class TestDeterminism:
    def test_same_seed_same_arrays(self, tmp_path, monkeypatch):
        first = {name: whole(Digits().split(name)) for name in PARTS}
        monkeypatch.setenv("BMLR_CACHE", str(tmp_path))
        again = Digits()
        for name in PARTS:
            for modality, values in whole(again.split(name)).inputs.items():
                assert torch.equal(values, first[name].inputs[modality])

    def test_other_seed_other_pairs_and_noise(self):
        first, other = Digits(), Digits(pairing_seed=1)
        for name in PARTS:
            assert first.clips(name) != other.clips(name)
            assert torch.equal(first.split(name).targets, other.split(name).targets)
            assert not torch.equal(whole(first.split(name)).inputs["image"], whole(other.split(name)).inputs["image"])

    @pytest.mark.parametrize("parameters", [{"image_noise": 0.4}, {"image_clutter": 2}])
    def test_image_parameters_change_images_only(self, parameters):
        plain, changed = whole(Digits().split("test")), whole(Digits(**parameters).split("test"))
        assert torch.equal(plain.inputs["audio"], changed.inputs["audio"])
        assert not torch.allclose(plain.inputs["image"], changed.inputs["image"], atol=1e-2)

    def test_audio_parameter_changes_audio_only(self):
        plain, changed = whole(Digits().split("test")), whole(Digits(audio_snr_db=0.0).split("test"))
        assert torch.equal(plain.inputs["image"], changed.inputs["image"])
        assert not torch.allclose(plain.inputs["audio"], changed.inputs["audio"], atol=1e-2)


class TestCache:
    @pytest.fixture
    def entries(self, tmp_path, monkeypatch):
        monkeypatch.setenv("BMLR_CACHE", str(tmp_path))
        monkeypatch.setattr(Digits, "_build", lambda self: {"x": np.zeros(1)})
        return lambda: sorted(path.name for path in tmp_path.iterdir())

    def test_every_parameter_is_in_the_key(self, entries):
        parameters = [{}, {"pairing_seed": 1}, {"audio_snr_db": None}, {"audio_snr_db": 3.0}, {"image_noise": 0.1},
                      {"image_clutter": 0}]  # fmt: skip
        assert {name for p in parameters for name in p} == set(inspect.signature(Digits).parameters)
        for number, given in enumerate(parameters, start=1):
            Digits(**given).prepare()
            Digits(**given).prepare()
            assert len(entries()) == number
        assert {name.split("-")[0] for name in entries()} == {"digits"}

    def test_the_clips_and_the_version_are_in_the_key(self, entries, monkeypatch):
        Digits().prepare()
        monkeypatch.setattr(_digits, "_VERSION", _digits._VERSION + 1)
        Digits().prepare()
        monkeypatch.setattr(_digits, "checksum", lambda: "another")
        monkeypatch.setattr(_digits, "_SPOKEN_SHA256", "another")
        Digits().prepare()
        assert len(entries()) == 3

    def test_second_object_reads_no_file(self, monkeypatch):
        expected = whole(Digits().split("test"))

        def refuse():
            raise AssertionError("The clips were read.")

        monkeypatch.setattr(_digits, "load_spoken_digits", refuse)
        assert torch.equal(whole(Digits().split("test")).inputs["audio"], expected.inputs["audio"])
        with pytest.raises(AssertionError, match="were read"):
            Digits(pairing_seed=99).prepare()


class TestErrors:
    @pytest.mark.parametrize(
        "wrong",
        [
            {"pairing_seed": -1},
            {"pairing_seed": 0.5},
            {"audio_snr_db": float("nan")},
            {"audio_snr_db": float("inf")},
            {"image_noise": -0.1},
            {"image_noise": float("nan")},
            {"image_clutter": -1},
            {"image_clutter": 1.5},
        ],
    )
    def test_parameter_out_of_range(self, wrong):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Digits(**wrong)

    @pytest.mark.parametrize("ask", [Digits.split, Digits.clips])
    def test_unknown_split(self, ask):
        with pytest.raises(ValueError, match="Did you mean 'train'"):
            ask(Digits(), "trian")

    def test_making_one_reads_no_file(self, monkeypatch, tmp_path):
        monkeypatch.setattr(_spoken, "_RECORDING", tmp_path / "nowhere")
        assert Digits().modalities["audio"].shape == (1, 24, 25)


class TestDamagedPackage:
    @pytest.fixture
    def assets(self, tmp_path, monkeypatch):
        """A copy of the package's files, with nothing cached."""
        for variable, name in (("_RECORDING", "spoken_digits.flac"), ("_INDEX", "spoken_digits.json")):
            (tmp_path / name).write_bytes((ASSETS / name).read_bytes())
            monkeypatch.setattr(_spoken, variable, tmp_path / name)
        monkeypatch.setenv("BMLR_CACHE", str(tmp_path / "cache"))
        return tmp_path

    def test_an_exact_copy_is_taken(self, assets):
        assert _digits._checked_spoken() == _digits._SPOKEN_SHA256
        assert assets.joinpath("spoken_digits.flac").stat().st_size > 1_000_000

    @pytest.mark.parametrize("damage", ["flip", "cut", "empty", "index cut", "index empty", "index shifted"])
    def test_is_said_and_what_to_do(self, assets, damage):
        recording, index = assets / "spoken_digits.flac", assets / "spoken_digits.json"
        content, text = recording.read_bytes(), index.read_text()
        shifted = json.loads(text)
        shifted["start"][3] += 10  # decodes without a complaint: a wrong clip
        {
            "flip": lambda: recording.write_bytes(
                content[: 10**6] + bytes([content[10**6] ^ 16]) + content[10**6 + 1 :]
            ),
            "cut": lambda: recording.write_bytes(content[: 10**6]),
            "empty": lambda: recording.write_bytes(b""),
            "index cut": lambda: index.write_text(text[:1000]),
            "index empty": lambda: index.write_text(""),
            "index shifted": lambda: index.write_text(json.dumps(shifted)),
        }[damage]()
        with pytest.raises(ValueError, match=r"spoken digits of the package .* install the package again"):
            Digits().prepare()
        assert not (assets / "cache").exists()

    @pytest.mark.parametrize("name", ["spoken_digits.flac", "spoken_digits.json"])
    def test_missing_file_is_named(self, assets, name):
        (assets / name).unlink()
        with pytest.raises(FileNotFoundError, match=rf"{re.escape(name)}.* install the package again"):
            Digits().prepare()

    def test_damage_is_noticed_though_the_arrays_are_cached(self, assets, monkeypatch):
        monkeypatch.setattr(Digits, "_build", lambda self: {"x": np.zeros(1)})
        Digits().prepare()
        (assets / "spoken_digits.flac").write_bytes(b"")
        with pytest.raises(ValueError, match="install the package again"):
            Digits().prepare()

    def test_recording_that_does_not_fit_its_index(self, assets, spoken):
        file = io.BytesIO()
        soundfile.write(file, np.concatenate(spoken.waves)[:-5], 8000, format="FLAC", subtype="PCM_16")
        (assets / "spoken_digits.flac").write_bytes(file.getvalue())
        with pytest.raises(ValueError, match=r"spoken_digits\.flac does not fit its index spoken_digits\.json"):
            load_spoken_digits()


class TestPackage:
    def test_size(self):
        sizes = {path.name: len(path.read_bytes()) for path in ASSETS.iterdir()}
        assert set(sizes) == {"README.md", "spoken_digits.flac", "spoken_digits.json"}
        assert sum(sizes.values()) <= 3 * 2**20

    def test_files_are_found_by_the_package_not_the_folder(self):
        assert _spoken._RECORDING.is_file()
        assert _spoken._INDEX.is_file()
        assert Path(str(_spoken._RECORDING)).parent == Path(bmlr.data.__file__).parent / "_assets"

    def test_nothing_of_the_assets_is_kept_out_of_a_wheel(self):
        """A wheel holds the package's whole folder, but for what git ignores."""
        wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
        assert wheel == {"packages": ["src/bmlr"]}
        git = shutil.which("git")
        if git is None or not (ROOT / ".git").exists():
            pytest.skip("There is no git checkout to ask.")
        for path in ASSETS.iterdir():
            asked = subprocess.run([git, "check-ignore", "-q", str(path)], cwd=ROOT, check=False)  # noqa: S603
            assert asked.returncode == 1, path

    def test_works_as_an_installed_copy_without_network(self, tmp_path):
        """The package's folder as a wheel installs it, far from the sources, with every socket refused."""
        site = tmp_path / "site"
        shutil.copytree(ROOT / "src" / "bmlr", site / "bmlr", ignore=shutil.ignore_patterns("__pycache__"))
        program = f"""
import socket, sys
def refuse(*arguments, **options):
    raise AssertionError("The network was used.")
socket.create_connection = socket.getaddrinfo = socket.socket.connect = socket.socket.bind = refuse
sys.path.insert(0, {str(site)!r})
import bmlr.data
from bmlr.data.sets import _spoken
assert bmlr.data.__file__.startswith({str(site)!r}), bmlr.data.__file__
assert str(_spoken._RECORDING).startswith({str(site)!r})
data = bmlr.data.create("digits")
print(len(data.split("test")), data.clips("test")[:3])
"""
        environment = {**os.environ, "BMLR_CACHE": str(tmp_path / "cache")}
        done = subprocess.run(  # noqa: S603
            [sys.executable, "-c", program], cwd=tmp_path, env=environment, check=False, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.split("\n")[0] == f"382 {Digits().clips('test')[:3]}"


class TestLoadFiles:
    CLEAN = {"audio_snr_db": None, "image_noise": 0, "image_clutter": 0}

    @pytest.fixture
    def sample(self, spoken, tmp_path):
        """A sample of the validation split as new files: its shipped clip and scikit-learn's image."""
        position = 11
        image = np.round(255 * load_written_digits()[0][1029 + position]).astype(np.uint8)
        Image.fromarray(image).save(tmp_path / "digit.png")
        soundfile.write(tmp_path / "digit.wav", spoken.waves[Digits().clips("val")[position]], 8000, subtype="FLOAT")
        return position, {"audio": tmp_path / "digit.wav", "image": tmp_path / "digit.png"}

    def test_as_in_training_without_noise(self, sample):
        position, paths = sample
        data = Digits(**self.CLEAN)
        found, batch = data.load_files(paths), data.split("val").batch([position])
        torch.testing.assert_close(found["audio"], batch.inputs["audio"], rtol=0, atol=1e-4)
        torch.testing.assert_close(found["image"], batch.inputs["image"], rtol=0, atol=0.01)  # 8 bits of grey
        assert_read_without_data(data, paths)

    def test_new_files_get_no_noise_but_the_statistics_of_training(self, sample):
        _, paths = sample
        clean, noisy = Digits(**self.CLEAN), Digits(audio_snr_db=0.0, image_noise=1.0)
        for name, first in clean.load_files(paths).items():
            second = noisy.load_files(paths)[name]
            raw = [
                values * arrays[f"{name}_statistics"][1] + arrays[f"{name}_statistics"][0]
                for values, arrays in ((first, clean._arrays), (second, noisy._arrays))
            ]
            torch.testing.assert_close(*raw, rtol=0, atol=1e-4)
            assert not torch.allclose(first, second, atol=1e-2)

    def test_silence_around_the_word_is_trimmed(self, sample):
        _, paths = sample
        data = Digits(**self.CLEAN)
        expected = data.load_files(paths)["audio"]
        wave = soundfile.read(paths["audio"])[0]
        soundfile.write(paths["audio"], np.concatenate([np.zeros(4000), wave, np.zeros(3000)]), 8000, subtype="FLOAT")
        torch.testing.assert_close(data.load_files(paths)["audio"], expected, rtol=0, atol=1e-4)

    def test_trimming_takes_no_sound_from_shipped_clips(self, spoken):
        """What it takes are zeros at the end, which padding puts back: a shipped clip is treated as in training."""
        for wave in spoken.waves:
            trimmed = trim(wave)
            assert np.array_equal(trimmed, wave[: len(trimmed)])
            assert not wave[len(trimmed) :].any()

    def test_silence_stays_silence(self):
        assert np.array_equal(trim(np.zeros(7)), np.zeros(7))

    @pytest.mark.parametrize("form", ["stereo", "44.1 kHz", "16 bits"])
    def test_other_recordings(self, sample, form):
        _, paths = sample
        data = Digits(**self.CLEAN)
        expected = data.load_files(paths)["audio"]
        wave = soundfile.read(paths["audio"])[0]
        if form == "44.1 kHz":
            import librosa

            soundfile.write(paths["audio"], librosa.resample(wave, orig_sr=8000, target_sr=44_100), 44_100)
        else:
            soundfile.write(paths["audio"], np.stack([wave, wave], 1) if form == "stereo" else wave, 8000)
        found = data.load_files(paths)["audio"]
        assert np.corrcoef(found.flatten(), expected.flatten())[0, 1] > 0.98

    def test_missing_or_unknown_modality(self, sample):
        _, paths = sample
        with pytest.raises(ValueError, match="a file of image: no sample of the training data lacks it. Found audio"):
            Digits().load_files({"audio": paths["audio"]})
        with pytest.raises(ValueError, match="files of audio, image. Found 'video'"):
            Digits().load_files({**paths, "video": paths["image"]})

    @pytest.mark.parametrize("modality", ["audio", "image"])
    def test_bad_files_are_named(self, sample, tmp_path, modality):
        _, paths = sample
        with pytest.raises(FileNotFoundError, match="nowhere"):
            Digits().load_files({**paths, modality: tmp_path / "nowhere"})
        (tmp_path / "strange").write_bytes(b"text")
        with pytest.raises(ValueError, match="strange cannot be read"):
            Digits().load_files({**paths, modality: tmp_path / "strange"})
