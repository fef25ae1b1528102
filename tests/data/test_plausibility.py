"""Labels and samples that cannot be what they should be, as `bmlr prepare` and `bmlr inspect` tell them."""

import errno
import os
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
from media_fixtures import write_mp4, write_wav
from table_fixtures import write_table

import bmlr.data
from bmlr.cli import main
from bmlr.data.store._plausibility import clean_text


@pytest.fixture(autouse=True)
def working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write_labels(folder, labels, *, splits=None, groups=None):
    """Table of two modalities of vectors, with a row per label."""
    rng = np.random.default_rng(0)
    rows = []
    for number, label in enumerate(labels):
        for modality in "xy":
            np.save(folder / f"{modality}{number}.npy", rng.normal(size=3).astype(np.float32))
        extra = [*([splits[number]] if splits else []), *([groups[number]] if groups else [])]
        rows.append([label, f"x{number}.npy", f"y{number}.npy", *extra])
    head = ["label", "x", "y", *(["split"] if splits else []), *(["group"] if groups else [])]
    return write_table(folder / "t.csv", rows, head)


def prepare(capsys, *arguments):
    """Exit status and output of the command, with whitespace made single."""
    status = main(["prepare", *map(str, arguments), "--workers", "0", "--progress", "false"])
    captured = capsys.readouterr()
    return status, " ".join((captured.out + captured.err).split())


def prepared_classes():
    data = bmlr.data.create("manifest", root="out")
    return data.store.classes, [sample.label for sample in data.store.samples]


class TestLabels:
    @pytest.mark.parametrize(
        "missing", ["nan", "NaN", "", "N/A", "null", "None", "unknown", "?", "<NA>", "TBD", "#REF!"]
    )
    def test_missing_ones_are_counted_and_left_out(self, tmp_path, capsys, missing):
        path = write_labels(tmp_path, ["cat", "dog", missing] * 6)
        status, text = prepare(capsys, "manifest", path, "out")
        assert status == 0
        words = f" ('{missing}')" if missing else ""
        assert f"Warning: 6 of 18 samples have no label{words} and are left out." in text
        classes, labels = prepared_classes()
        assert (classes, len(labels)) == (("cat", "dog"), 12)

    @pytest.mark.parametrize(
        ("labels", "classes", "word"),
        [
            (["0", "1", "2", "-1"], ("0", "1", "2"), "6 of 24 samples have no label ('-1')"),
            (["-1", "1"], ("-1", "1"), None),
            (["-1", "0", "1"], ("-1", "0", "1"), "-1 is taken as a class beside 0 and 1"),
            (["-1", "a", "b"], ("-1", "a", "b"), None),
            (["-2", "-1", "0", "1"], ("-2", "-1", "0", "1"), None),
            (["0.0", "1.0"], ("0.0", "1.0"), None),
            (["-0", "b"], ("-0", "b"), None),
        ],
    )
    def test_numbers(self, tmp_path, capsys, labels, classes, word):
        status, text = prepare(capsys, "manifest", write_labels(tmp_path, labels * 6), "out")
        assert status == 0
        assert set(prepared_classes()[0]) == set(classes)
        assert word is None or word in text
        assert ("Warning" in text) == (word is not None)

    @pytest.mark.parametrize(
        "labels",
        [
            [f"{score:.3f}" for score in np.random.default_rng(0).uniform(-3, 3, 24)],
            ["0.5", "1", "-1.5", "2"] * 6,
            ["0,5", "1,0"] * 6,
            ["1e-3", "2"] * 6,
            [*[f"{score:.2f}" for score in np.linspace(0.01, 2, 20)], "nan", "nan"],
            [f"a sentence {number}" for number in range(12)],
            [str(number) for number in range(12)],
        ],
    )
    def test_scores_and_texts_are_refused(self, tmp_path, capsys, labels):
        status, text = prepare(capsys, "manifest", write_labels(tmp_path, labels), "out")
        assert status == 2
        assert "That is regression: a table of your own has numbers in a column 'target'." in text
        assert not list(tmp_path.glob("out/manifest-*"))

    @pytest.mark.parametrize(
        ("labels", "warned"),
        [
            (["Cat", "cat", "dog"], "'Cat' and 'cat'"),
            (["hot dog", "hot_dog", "cat"], "'hot dog' and 'hot_dog'"),
            (["hot-dog", "hot_dog", "cat"], "'hot-dog' and 'hot_dog'"),
            (["1", "01", "2"], "'01' and '1'"),
            (["ｃat", "cat", "dog"], "'cat' and 'ｃat'"),
            (["-1", "1", "x"], None),
            (["a-b", "ab", "c"], None),
        ],
    )
    def test_that_differ_by_case_or_separators_are_named(self, tmp_path, capsys, labels, warned):
        status, text = prepare(capsys, "manifest", write_labels(tmp_path, labels * 4), "out")
        assert status == 0
        assert len(prepared_classes()[0]) == 3
        assert warned is None or f"Warning: classes {warned} differ by case, spaces, '_' or '-' only" in text
        assert ("differ by" in text) == (warned is not None)

    @pytest.mark.parametrize(
        "twin", ["cafe\u0301", "caf\u00e9\u200e", "\u202acaf\u00e9", "\ufeffcaf\u00e9", "caf\u00e9\u00a0"]
    )
    def test_that_look_alike_are_one_class(self, tmp_path, capsys, twin):
        labels = ["caf\u00e9", twin, "hot  dog", "hot dog"] * 3
        status, text = prepare(capsys, "manifest", write_labels(tmp_path, labels), "out")
        assert status == 0
        assert prepared_classes()[0] == ("caf\u00e9", "hot dog")
        assert "spellings that look alike are taken as one class" in text

    def test_of_kinetics_that_differ_by_an_underscore_are_one_class(self, tmp_path, capsys):
        for number in range(3):
            for folder in (
                "train/playing piano",
                "train/playing guitar",
                "validation/playing_piano",
                "val_256/playing guitar",
                "replacement/replacement_for_corrupted_k400",
            ):
                (tmp_path / "s" / folder).mkdir(parents=True, exist_ok=True)
                write_mp4(tmp_path / "s" / folder / f"{folder[0]}{folder[-1]}{len(folder)}{number}_000010_000020.mp4",
                          1.0, fps=4, channels=1)  # fmt: skip
        status, text = prepare(capsys, "kinetics-sounds", "s", "out", "--size", "16")
        assert status == 0
        assert "'playing_piano', 'playing piano' are taken as one class, 'playing piano'" in text
        assert "Warning: 3 of 15 samples have no label and are left out." in text
        assert "│ playing piano │ 3 │ 3 │" in text
        assert "│ all │ 6 │ 6 │" in text

    def test_flat_folders_of_splits_are_no_classes(self, tmp_path, capsys):
        for folder in ("training", "testing", "Validation"):
            (tmp_path / "u" / folder).mkdir(parents=True)
            (tmp_path / "u" / folder / f"{folder[:2]}.mp4").write_bytes(b"x")
        status, text = prepare(capsys, "kinetics-sounds", "u", "out")
        assert status == 2
        assert "in no folder of a class and on no list" in text

    def test_lists_and_files_may_have_letters_in_another_form(self, tmp_path, capsys):
        (tmp_path / "s").mkdir()
        for number in range(4):
            write_mp4(tmp_path / "s" / f"cafe\u0301{number}.mp4", 1.0, fps=4, channels=1)
        (tmp_path / "train.txt").write_text("".join(f"caf\u00e9{number},{'ab'[number % 2]}\n" for number in range(4)))
        status, text = prepare(capsys, "kinetics-sounds", "s", "out", "--size", "16", "--train-list", "train.txt")
        assert status == 0
        assert "2 classes, 4 samples, 0 rejected" in text

    def test_a_replacement_has_the_class_of_the_video_it_replaces(self, tmp_path, capsys):
        for folder, name, seconds in (
            ("train/piano", "A", 1.0),
            ("train/drum", "B", 1.0),
            ("val/drum", "C", 1.0),
            ("val/piano", "D", 1.0),
            ("train/replacement_for_corrupted_k400", "A", 2.0),
        ):
            (tmp_path / "s" / folder).mkdir(parents=True, exist_ok=True)
            write_mp4(tmp_path / "s" / folder / f"{name}_000010_000020.mp4", seconds, fps=4, channels=1)
        assert prepare(capsys, "kinetics-sounds", "s", "out", "--size", "16")[0] == 0
        samples = {s.id[0]: s for s in bmlr.data.create("kinetics-sounds", root="out").store.samples}
        assert samples["A"].label == "piano"
        assert samples["A"].files["video"]["seconds"] == pytest.approx(2, abs=0.3)


class TestClassesAndSplits:
    def test_a_class_in_one_split_and_classes_of_two_samples_are_named(self, tmp_path, capsys):
        labels = ["cat", "dog"] * 6 + ["owl"] * 3 + ["bee"] * 2
        splits = ["train"] * 8 + ["test"] * 4 + ["test"] * 3 + ["train"] * 2
        status, text = prepare(capsys, "manifest", write_labels(tmp_path, labels, splits=splits), "out")
        assert status == 0
        assert "Warning: 2 of 4 classes are in one split only: 'bee' (train), 'owl' (test)." in text
        assert "Warning: 1 class has at most 2 samples: 'bee'." in text
        assert "The test split has 7 samples: each is 14.3 % of it." in text

    def test_a_small_test_split_is_called_that(self, tmp_path, capsys):
        splits = ["train"] * 18 + ["val"] * 4 + ["test"] * 6
        path = write_labels(tmp_path, ["cat", "dog"] * 14, splits=splits)
        _, text = prepare(capsys, "manifest", path, "out")
        sentence = "The test split has 6 samples: each is 16.7 % of it."
        assert sentence in text
        assert main(["inspect", "manifest", "--data.root", "out"]) == 0
        output = " ".join(capsys.readouterr().out.split())
        assert sentence in output
        assert "The validation split has 4 samples: each is 25.0 % of it." in output

    def test_splits_that_will_be_drawn(self, tmp_path, capsys):
        _, text = prepare(capsys, "manifest", write_labels(tmp_path, ["cat", "dog"] * 14), "out")
        assert "Drawn from 28 samples, the test split will have about 3: each is 33.3 % of it" in text

    def test_copies_in_two_splits_and_with_two_labels_are_told(self, tmp_path, capsys):
        path = write_labels(tmp_path, ["cat", "dog"] * 10, splits=["train"] * 12 + ["test"] * 8)
        for modality in "xy":
            (tmp_path / f"{modality}15.npy").write_bytes((tmp_path / f"{modality}2.npy").read_bytes())
        _, text = prepare(capsys, "manifest", path, "out")
        assert "1 set of copies, 1 of them across splits, such as row-4, row-17" in text
        assert "1 set of copies has several labels, such as row-4 (cat), row-17 (dog)" in text
        assert "several groups" in prepare(capsys, "manifest", path, "out")[1]  # told again when nothing is read

    def test_copies_are_shown_by_samples_of_two_groups(self, tmp_path, capsys):
        path = write_labels(tmp_path, ["cat", "dog"] * 10, groups=[f"g{number // 2}" for number in range(20)])
        for modality in "xy":
            for copy in (3, 15):  # the first is of the same group
                (tmp_path / f"{modality}{copy}.npy").write_bytes((tmp_path / f"{modality}2.npy").read_bytes())
        _, text = prepare(capsys, "manifest", path, "out")
        assert "1 set of copies, such as row-4, row-17" in text
        assert "several labels, such as row-4 (cat), row-5 (dog)" in text

    def test_samples_without_a_group_are_no_group(self, tmp_path, capsys):
        groups = ["nan"] * 12 + ["anna", "ben"] * 4
        _, text = prepare(capsys, "manifest", write_labels(tmp_path, ["cat", "dog"] * 10, groups=groups), "out")
        assert "Warning: 12 of 20 samples have no group ('nan'). Each is taken as a group of its own." in text
        assert len({sample.group for sample in bmlr.data.create("manifest", root="out").store.samples}) == 14


class TestModalities:
    def test_the_same_content_in_some_samples_is_told(self, tmp_path, capsys):
        path = write_labels(tmp_path, ["a", "b"] * 4)
        for number in range(3):
            (tmp_path / f"y{number}.npy").write_bytes((tmp_path / f"x{number}.npy").read_bytes())
        status, text = prepare(capsys, "manifest", path, "out")
        assert status == 0
        assert "Warning: 'x' and 'y' have the same content in 3 of 8 samples." in text

    @pytest.mark.parametrize(("head", "sound"), [(("picture", "sound"), "sound"), (("voice", "face"), "voice")])
    def test_two_columns_of_the_same_videos(self, tmp_path, capsys, head, sound):
        for number in range(4):
            (tmp_path / f"{number}.mp4").write_bytes(b"not read")
        rows = [["ab"[number % 2], f"{number}.mp4", f"./{number}.mp4" if number else "0.mp4"] for number in range(4)]
        path = write_table(tmp_path / "t.csv", rows, ["label", *head])
        status, text = prepare(capsys, "manifest", path, "out")
        assert status == 2
        assert "name the same video files" in text
        assert f"'{sound}:audio'" in text

    def test_a_single_column_of_videos_says_how_to_get_the_sound(self, tmp_path, capsys):
        path = write_table(tmp_path / "t.csv", [["a", "0.mp4"], ["b", "1.mp4"]], ["label", "film"])
        status, text = prepare(capsys, "manifest", path, "out")
        assert status == 2
        assert "name them in a second column headed 'sound:audio'" in text

    def test_the_same_columns_and_copies_of_arrays(self, tmp_path, capsys):
        path = write_labels(tmp_path, ["a", "b"] * 4)
        for number in range(8):
            (tmp_path / f"y{number}.npy").write_bytes((tmp_path / f"x{number}.npy").read_bytes())
        status, text = prepare(capsys, "manifest", path, "out")
        assert status == 2
        assert "'x' and 'y' have the same content in all 8 samples" in text
        rows = [["ab"[number % 2], f"x{number}.npy", f"x{number}.npy"] for number in range(8)]
        status, text = prepare(capsys, "manifest", write_table(tmp_path / "t.csv", rows, ["label", "x", "y"]), "out")
        assert status == 2
        assert "the columns 'x' and 'y' name the same array files, so that they are one modality" in text


class TestSentiment:
    def write(self, name, widths, scores, key="regression_labels"):
        rng = np.random.default_rng(0)
        content = {}
        for split, count in (("train", 24), ("valid", 9), ("test", 9)):
            arrays = {
                m: rng.normal(size=(count, 6, w)).astype("f4")
                for m, w in zip(("text", "vision", "audio"), widths, strict=True)
            }
            ids = [f"{split}{i // 3}$_${i % 3}" for i in range(count)]
            content[split] = {**arrays, "id": ids, key: scores(rng, count)}
        with open(name, "wb") as file:  # noqa: PTH123
            pickle.dump(content, file, protocol=4)

    @pytest.mark.parametrize("data", ["mosi", "mosei"])
    @pytest.mark.parametrize(
        ("scores", "message"),
        [
            (lambda rng, n: np.round(rng.uniform(-1, 1, n) * 5) / 5, "as those of CH-SIMS"),
            (lambda rng, n: rng.integers(0, 2, (n, 1)), "they are only 0, 1: classes"),
            (lambda rng, n: rng.integers(-1, 2, n), "they are only -1, 0, 1: classes"),
            (lambda rng, n: rng.uniform(0, 10, n), r"beyond [-3, 3]"),
        ],
    )
    def test_scores_of_another_data_set_are_refused(self, capsys, data, scores, message):
        self.write("file.pkl", (64, 47, 33), scores)  # widths of no published file
        status, text = prepare(capsys, data, "file.pkl", "out")
        assert status == 2
        assert message in text
        with pytest.raises(ValueError, match="It is another data set"):  # without a preparation too
            bmlr.data.create(data, root="file.pkl", cache="cache").prepare()

    def test_other_widths_are_told(self, capsys):
        self.write("file.pkl", (64, 47, 74), lambda rng, n: rng.uniform(-3, 3, n))
        status, text = prepare(capsys, "mosi", "file.pkl", "out")
        assert status == 0
        assert "Warning: file.pkl has widths vision 47, audio 74; the published files of 'mosi' have vision 20" in text
        assert "The test split has 9 samples" in text


class TestNames:
    LABELS = ("[music]", "[/noise]", "$a$ b$", "a_{1}^2", "~", "-x", "[bold]b[/]", "<b>&amp;</b>", "a" * 300, "Ωж")

    def test_are_printed_and_drawn_as_they_are(self, tmp_path, capsys):
        path = write_labels(tmp_path, [*self.LABELS] * 10, groups=[*self.LABELS] * 10)
        status, text = prepare(capsys, "manifest", path, "out")
        assert status == 0
        assert all(f"│ {label[:50]}" in text for label in self.LABELS)
        assert main(["inspect", "manifest", "--data.root", "out", "--data.val_fraction", "0.2"]) == 0
        output = capsys.readouterr().out
        assert all(f"│ {label[:40]}" in output for label in self.LABELS)

    def test_no_utf8_in_folders_and_files(self, tmp_path, capfdbinary, monkeypatch):
        folders = [b"caf\xe9", b"th\xe9", "na\u0308h".encode()]
        try:
            for number in range(4):
                for folder in folders:
                    place = os.fsencode(tmp_path) + b"/s/" + folder
                    os.makedirs(place, exist_ok=True)  # noqa: PTH103
                    write_mp4(tmp_path / "v.mp4", 1.0, fps=4, channels=1)
                    os.rename(tmp_path / "v.mp4", place + b"/\xff%d.mp4" % number + folder[:1] + b".mp4")  # noqa: PTH104
        except OSError:
            pytest.skip("this file system takes UTF-8 only")
        for stream, encoding in (("stdout", "utf-8"), ("stderr", "ascii")):
            file = open(1 if stream == "stdout" else 2, "w", encoding=encoding, closefd=False)  # noqa: SIM115
            monkeypatch.setattr(sys, stream, file)
        status = main(
            ["prepare", "kinetics-sounds", "s", "out", "--size", "16", "--workers", "0", "--progress", "false"]
        )
        sys.stdout.flush()
        output = capfdbinary.readouterr().out.decode()
        assert status == 0
        assert "caf\\xe9" in output
        assert "n\u00e4h" in output
        data = bmlr.data.create("kinetics-sounds", root="out", val_fraction=0.2, test_fraction=0.2)
        data.prepare()
        assert data.classes == ("caf\\xe9", "n\u00e4h", "th\\xe9")
        for sample in data.store.samples:
            (sample.id + sample.group).encode()  # raises unless it is text

    @pytest.mark.parametrize("text", ["a\u202eb", "a\x1b[31mb", "a\x00b", "a\u200bb", " ab ", "a\tb", "a\nb"])
    def test_invisible_characters_are_removed(self, text):
        assert clean_text(text) in {"ab", "a[31mb", "a b"}


class TestMachine:
    def test_without_a_home_the_cache_s_variable_is_named(self, capsys, monkeypatch):
        monkeypatch.delenv("BMLR_CACHE", raising=False)
        monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as for a user number without an entry
        assert main(["inspect", "digits", "--samples", "5"]) == 2
        error = capsys.readouterr().err
        assert "HOME is not set" in error
        assert "BMLR_CACHE" in error
        assert "Traceback" not in error

    def test_a_prepared_folder_that_cannot_be_written_is_used(self, tmp_path, capsys):
        path = write_labels(tmp_path, ["cat", "dog"] * 10)
        prepare(capsys, "manifest", path, "out")
        folder = next((tmp_path / "out").iterdir())
        for place in (*folder.iterdir(), folder, tmp_path / "out"):
            place.chmod(0o555 if place.is_dir() else 0o444)
        try:
            status, text = prepare(capsys, "manifest", path, "out")
            assert status == 0
            assert "All was prepared before; nothing was read." in text
            assert main(["inspect", "manifest", "--data.root", "out"]) == 0
        finally:
            folder.chmod(0o755)
            (tmp_path / "out").chmod(0o755)

    def test_prepared_data_that_cannot_be_read_now_is_not_called_damaged(self, tmp_path, capsys, monkeypatch):
        prepare(capsys, "manifest", write_labels(tmp_path, ["cat", "dog"] * 10), "out")

        def deny(*_, **__):
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr("bmlr.data.store._cache._load_array", deny)
        assert main(["inspect", "manifest", "--data.root", "out"]) == 2
        error = capsys.readouterr().err
        assert "cannot be read now: Permission denied" in error
        assert "Remove" not in error

    @pytest.mark.slow
    def test_sounds_are_read_without_a_home(self, tmp_path):
        """A user without an entry, as by `docker run -u 12345`."""
        unshare = ["unshare", "-U", "--map-user=12345", "--map-group=12345"]
        if shutil.which("unshare") is None or subprocess.run([*unshare, "true"], check=False).returncode:  # noqa: S603
            pytest.skip("user namespaces are not allowed here")
        for number in range(6):
            write_wav(tmp_path / f"{number}.wav", 1.0, frequency=200 + 100 * number)
            np.save(tmp_path / f"{number}.npy", np.full(3, number, np.float32))
        rows = [["ab"[number % 2], f"{number}.wav", f"{number}.npy"] for number in range(6)]
        write_table(tmp_path / "t.csv", rows, ["label", "sound", "x"])
        environment = {key: value for key, value in os.environ.items() if key not in {"HOME", "XDG_CACHE_HOME"}}
        command = [sys.executable, "-m", "bmlr", "prepare", "manifest", "t.csv", "out", "--workers", "0"]
        done = subprocess.run(  # noqa: S603
            [*unshare, *command], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "6 samples, 0 rejected" in done.stdout
