from pathlib import Path

import pytest

from bmlr.data.sets._ave import AVE
from bmlr.data.sets._crema_d import CREMAD
from bmlr.data.sets._kinetics_sounds import KineticsSounds
from bmlr.data.sets._media import audio_reader


def touch(folder, *names):
    for name in names:
        path = Path(folder) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def problems(items):
    return {item.id: item.problem for item in items if item.problem}


def good(items):
    return [item for item in items if not item.problem]


def test_published_spectrogram():
    assert audio_reader(3.0).modality.shape == (1, 257, 188)
    assert audio_reader(10.0).modality.shape == (1, 257, 625)
    assert audio_reader(10.0, "float32").dtype == "float32"


class TestCremaD:
    @pytest.fixture
    def source(self, tmp_path):
        for name in ("1041_TIE_NEU_XX", "1001_DFA_ANG_HI", "1091_WSI_SAD_LO", "1040_ITH_SAD_X"):
            touch(tmp_path, f"AudioWAV/{name}.wav", f"VideoFlash/{name}.flv")
        return tmp_path

    def test_names_tell_all(self, source):
        items = CREMAD.list_samples(source, {})
        assert [item.id for item in items] == sorted(item.id for item in items)
        item = items[-2]
        assert (item.id, item.label, item.group, item.split) == ("1041_TIE_NEU_XX", "NEU", "1041", None)
        assert item.extra == {"sentence": "TIE", "level": "XX"}
        assert item.files == {
            "audio": source / "AudioWAV" / "1041_TIE_NEU_XX.wav",
            "video": source / "VideoFlash" / "1041_TIE_NEU_XX.flv",
        }
        assert items[1].extra["level"] == "X"  # a name of the published files that lacks a letter
        assert not problems(items)
        assert len(CREMAD.published_classes) == 6

    def test_missing_files_and_strange_names(self, source):
        touch(source, "AudioWAV/1002_DFA_HAP_XX.wav", "VideoFlash/1003_DFA_HAP_XX.flv", "AudioWAV/readme.txt")
        touch(source, "AudioWAV/._1041_TIE_NEU_XX.wav", "AudioWAV/1002.wav", "VideoFlash/1002.flv")
        found = problems(CREMAD.list_samples(source, {}))
        assert found == {
            "1002_DFA_HAP_XX": "there is no 1002_DFA_HAP_XX.flv in VideoFlash",
            "1003_DFA_HAP_XX": "there is no 1003_DFA_HAP_XX.wav in AudioWAV",
            "1002": "its name should be actor_sentence_emotion_level, as 1041_TIE_NEU_XX",
        }

    @pytest.mark.parametrize(
        "line", ["{0},{1}", "{0} {1} 3", "{0},{1},3", "AudioWAV/{0}.wav , {1}", "{0}\t{1}", "{0},5", "{0}.flv {1}"]
    )
    @pytest.mark.parametrize("end", ["\n", "\r\n"])
    def test_lists(self, source, tmp_path, line, end):
        names = {"train": ["1041_TIE_NEU_XX", "1001_DFA_ANG_HI"], "test": ["1091_WSI_SAD_LO", "1040_ITH_SAD_X"]}
        lists = {}
        for split, members in names.items():
            lists[split] = tmp_path / f"{split}.csv"
            content = end.join(line.format(name, name.split("_")[2]) for name in members)
            lists[split].write_bytes(("\ufeff" + content + end).encode())
        items = CREMAD.list_samples(source, lists)
        assert not problems(items)
        assert {item.id: item.split for item in items} == {n: split for split, ns in names.items() for n in ns}

    def test_a_header_is_no_clip(self, source, tmp_path):
        (tmp_path / "a.csv").write_text("label,name\nNEU,1041_TIE_NEU_XX\n")
        items = CREMAD.list_samples(source, {"train": tmp_path / "a.csv"})
        assert [item.id for item in good(items)] == ["1041_TIE_NEU_XX"]

    def test_lists_that_do_not_fit(self, source, tmp_path):
        (tmp_path / "train.csv").write_text("1041_TIE_NEU_XX,HAP\n1001_DFA_ANG_HI,ANG\n1009_DFA_ANG_HI,ANG\n")
        (tmp_path / "test.csv").write_text("1001_DFA_ANG_HI,ANG\n1091_WSI_SAD_LO,SAD\n")
        items = CREMAD.list_samples(source, {"train": tmp_path / "train.csv", "test": tmp_path / "test.csv"})
        assert problems(items) == {
            "1001_DFA_ANG_HI": "it is listed 2 times: in train, test",
            "1009_DFA_ANG_HI": "there is no 1009_DFA_ANG_HI.wav in AudioWAV",
            "1040_ITH_SAD_X": "it is not listed in train.csv or test.csv",
            "1041_TIE_NEU_XX": "its list says HAP, its name NEU",
        }
        assert [(item.id, item.split) for item in good(items)] == [("1091_WSI_SAD_LO", "test")]

    def test_wrong_folders_and_lists(self, source, tmp_path):
        with pytest.raises(FileNotFoundError, match="no folder AudioWAV in"):
            CREMAD.list_samples(tmp_path / "nowhere", {})
        with pytest.raises(FileNotFoundError, match=r"no list .*gone\.csv"):
            CREMAD.list_samples(source, {"train": tmp_path / "gone.csv"})
        for content, message in ((b"", "holds no lines"), (b"abc\n", "line 1 should hold"), (b"\xff\xfe,x", "UTF-8")):
            (tmp_path / "bad.csv").write_bytes(content)
            with pytest.raises(ValueError, match=message):
                CREMAD.list_samples(source, {"train": tmp_path / "bad.csv"})
        for path in (source / "VideoFlash").iterdir():
            path.unlink()
        with pytest.raises(FileNotFoundError, match=r"no \.flv files in"):
            CREMAD.list_samples(source, {})


class TestKineticsSounds:
    def test_folders_of_classes(self, tmp_path):
        touch(tmp_path, "playing piano/abc-_defghi_000010_000020.mp4", "laughing/xyz_000001_000011.mp4")
        items = KineticsSounds.list_samples(tmp_path, {})
        assert [(i.id, i.label, i.group, i.split) for i in items] == [
            ("abc-_defghi_000010_000020", "playing piano", "abc-_defghi", None),
            ("xyz_000001_000011", "laughing", "xyz", None),
        ]
        assert items[0].files["audio"] == items[0].files["video"]

    def test_folders_of_splits_and_classes(self, tmp_path):
        touch(tmp_path, "train/laughing/a.mp4", "Validation/laughing/b.mkv", "test/singing/c.mp4")
        items = KineticsSounds.list_samples(tmp_path, {})
        assert [(i.id, i.label, i.split) for i in items] == [
            ("a", "laughing", "train"), ("b", "laughing", "val"), ("c", "singing", "test"),
        ]  # fmt: skip

    def test_a_flat_folder_with_lists(self, tmp_path):
        touch(tmp_path, "clips/a_000001_000011.mp4", "clips/b.mp4", "clips/c.mp4", "clips/d.mp4")
        source = tmp_path / "clips"
        (tmp_path / "train.txt").write_text("a_000001_000011,0,10,playing piano\nb.mp4,3,13,laughing\n")
        (tmp_path / "test.txt").write_text("c,laughing\ngone,laughing\n")
        items = KineticsSounds.list_samples(source, {"train": tmp_path / "train.txt", "test": tmp_path / "test.txt"})
        assert [(i.id, i.label, i.split) for i in good(items)] == [
            ("a_000001_000011", "playing piano", "train"), ("b", "laughing", "train"), ("c", "laughing", "test"),
        ]  # fmt: skip
        assert problems(items) == {
            "d": "it is not listed in train.txt or test.txt",
            "gone": "it is in test's list, but there is no such video",
        }
        assert KineticsSounds.list_samples(source, {})[0].problem == "it is in no folder of a class and on no list"

    def test_the_lists_of_kinetics(self, tmp_path):
        touch(tmp_path, "clips/a_000001_000011.mp4")
        (tmp_path / "x.csv").write_text('label,youtube_id,time_start,time_end,split\n"singing, loud",a,1,11,train\n')
        item, = KineticsSounds.list_samples(tmp_path / "clips", {"train": tmp_path / "x.csv"})  # fmt: skip
        assert (item.id, item.label, item.split, item.problem) == ("a_000001_000011", "singing, loud", "train", None)

    def test_numbered_classes(self, tmp_path):
        touch(tmp_path, "clips/laughing/a.mp4", "clips/b.mp4")
        (tmp_path / "x.csv").write_text("a,7\nb,7\n")
        items = KineticsSounds.list_samples(tmp_path / "clips", {"train": tmp_path / "x.csv"})
        assert [item.label for item in items] == ["laughing", "7"]

    def test_numbered_classes_in_a_folder_of_all(self, tmp_path):
        touch(tmp_path, "source/videos/a.mp4", "source/videos/b.mp4")
        (tmp_path / "x.csv").write_text("a,7\nb,9\n")
        items = KineticsSounds.list_samples(tmp_path / "source", {"train": tmp_path / "x.csv"})
        assert [item.label for item in items] == ["7", "9"]

    def test_two_videos_of_one_name(self, tmp_path):
        touch(tmp_path, "laughing/a.mp4", "singing/a.mp4", "singing/b.mp4")
        found = problems(KineticsSounds.list_samples(tmp_path, {}))
        assert list(found) == ["a"]
        assert found["a"].startswith("there are 2 videos of this name")

    def test_nothing_there(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            KineticsSounds.list_samples(tmp_path / "nowhere", {})
        with pytest.raises(FileNotFoundError, match="There are no"):
            KineticsSounds.list_samples(tmp_path, {})


HEADER = "Category&VideoID&Quality&StartTime&EndTime\n"


class TestAve:
    def make(self, folder, annotations, videos=("aa", "bb", "-c_d"), **lists):
        touch(folder, *(f"AVE/{name}.mp4" for name in videos))
        (folder / "Annotations.txt").write_text(HEADER + annotations)
        for name, content in lists.items():
            (folder / f"{name}Set.txt").write_text(content)
        return AVE.list_samples(folder, {})

    def test_annotations_and_lists(self, tmp_path):
        lines = ["Church bell&aa&good&0&10\n", "Male speech, man speaking&bb&good&2&8\n", "Train horn&-c_d&good&1&4\n"]
        items = self.make(tmp_path, "".join(lines), train=lines[0], val=HEADER + lines[1], test=lines[2].strip())
        assert not problems(items)
        assert [(i.id, i.label, i.split, i.group) for i in items] == [
            ("aa", "Church bell", "train", "aa"),
            ("bb", "Male speech, man speaking", "val", "bb"),
            ("-c_d", "Train horn", "test", "-c_d"),
        ]
        assert items[1].extra == {"start": 2.0, "end": 8.0, "quality": "good"}
        assert items[1].files == dict.fromkeys(("audio", "video"), tmp_path / "AVE" / "bb.mp4")

    def test_repeated_ids_are_kept_apart_and_in_one_group(self, tmp_path):
        lines = "Church bell&aa&good&0&4\nTrain horn&aa&good&5&10\nChurch bell&aa&good&6&9\nHelicopter&bb&good&0&9\n"
        items = self.make(tmp_path, lines, ("aa", "bb"), train="Train horn&aa&good&5&10\nHelicopter&bb&good&0&9.0\n",
                          test="Church bell&aa&good&0&4\nChurch bell&aa&good&6&9\n")  # fmt: skip
        assert not problems(items)
        assert [(i.id, i.label, i.split, i.group) for i in items] == [
            ("aa", "Church bell", "test", "aa"),
            ("aa#2", "Train horn", "train", "aa"),
            ("aa#3", "Church bell", "test", "aa"),
            ("bb", "Helicopter", "train", "bb"),
        ]

    def test_what_does_not_fit(self, tmp_path):
        lines = "Bell&aa&good&0&4\nBell&aa&good&0&4\nBell&gone&good&0&4\nBell&bb&0&4\n&bb&good&0&4\nHorn&bb&good&x&4\n"
        lists = {"train": "Bell&aa&good&0&4\n", "test": "Bell&gone&good&0&4\n"}
        items = self.make(tmp_path, lines, **lists)
        found = problems(items)
        assert len({item.id for item in items}) == len(items)
        assert sorted(found.values()) == sorted([
            "its line repeats an earlier one",
            "its line is malformed: 'Bell&bb&0&4'",
            "its line is malformed: '&bb&good&0&4'",
            "its line is malformed: 'Horn&bb&good&x&4'",
            "there is no gone.mp4 in AVE",
            "it is not in Annotations.txt",  # bb, whose lines are all malformed
            "it is not in Annotations.txt",
        ])  # fmt: skip
        assert [item.id for item in good(items)] == ["aa"]

    def test_an_event_in_two_splits_or_none(self, tmp_path):
        lines = "Bell&aa&good&0&4\nBell&bb&good&0&4\nBell&-c_d&good&0&4\n"
        one = "Bell&aa&good&0&4\n"
        items = self.make(tmp_path, lines, train=one + "Bell&bb&good&0&4\nBell&bb&good&0&4\n", test=one)
        found = problems(items)
        assert found.pop("aa") == "it is listed 2 times: in train, test"
        assert found.pop("-c_d") == "it is on none of the lists"
        assert list(found.values()) == ["its line repeats an earlier one"]
        assert [(item.id, item.split) for item in good(items)] == [("bb", "train")]

    def test_without_lists_there_is_no_published_split(self, tmp_path):
        items = self.make(tmp_path, "Bell&aa&good&0&4\n", ("aa",))
        assert [(item.id, item.split, item.problem) for item in items] == [("aa", None, None)]

    def test_lists_of_the_users(self, tmp_path):
        self.make(tmp_path, "Bell&aa&good&0&4\n", ("aa",), train="Bell&aa&good&0&4\n")
        (tmp_path / "other.txt").write_text("")
        (tmp_path / "mine.txt").write_text("Bell&aa&good&0&4\n")
        items = AVE.list_samples(tmp_path, {"train": tmp_path / "other.txt", "test": tmp_path / "mine.txt"})
        assert [(item.id, item.split) for item in items] == [("aa", "test")]

    def test_missing_files(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="no folder AVE in"):
            AVE.list_samples(tmp_path, {})
        touch(tmp_path, "AVE/aa.mp4")
        with pytest.raises(FileNotFoundError, match=r"no Annotations\.txt in"):
            AVE.list_samples(tmp_path, {})
