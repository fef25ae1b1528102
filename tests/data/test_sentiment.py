"""MOSI and MOSEI on files of exactly the published layouts, from what users download to a prediction."""

import dataclasses
import json
import os
import pickle
import shutil
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from restored import assert_read_without_data

import bmlr.data
from bmlr.data.sets._sentiment import MOSEI, MOSI
from bmlr.data.sets._sentiment_classes import sentiment_classes
from bmlr.data.sets._sentiment_store import prepare_sentiment

SIZES = {"train": 26, "valid": 9, "test": 11}
PARTS = {"train": "train", "val": "valid", "test": "test"}
WIDTHS = {"mosi": {"vision": 20, "audio": 5}, "mosei": {"vision": 35, "audio": 74}}
UNALIGNED = {"mosi": {"text": 50, "vision": 500, "audio": 375}, "mosei": {"text": 50, "vision": 500, "audio": 500}}
MODALITIES = ("text", "vision", "audio")


def made_content(name="mosi", text=768, seed=0, sizes=SIZES):
    """What all layouts say: sequences without padding, scores, videos and clips. Classes can be learnt."""
    rng = np.random.default_rng(seed)
    widths = {"text": text, **WIDTHS[name]}
    splits, video = {}, 0
    for split, size in sizes.items():
        scores = rng.integers(-9, 10, size).astype(np.float32) / 3
        directions = {u: rng.normal(size=d) for u, d in widths.items()}
        samples = []
        for i in range(size):
            video += i % 3 == 0
            steps = {
                u: (rng.normal(size=(rng.integers(1, 12), d)) + scores[i] * directions[u]).astype(np.float32)
                for u, d in widths.items()
            }
            samples.append({**steps, "score": scores[i], "video": f"v_{video}-{name}", "clip": i % 3})
        splits[split] = samples
    return splits


def padded(samples, name, steps, *, front=False, dtype=np.float32):
    array = np.zeros((len(samples), steps, samples[0][name].shape[1]), dtype)
    for row, sample in zip(array, samples, strict=True):
        length = len(sample[name])
        row[steps - length if front else 0 : steps if front else length] = sample[name]
    return array


def mmsa(splits, name="mosi", *, aligned=True):
    """The layout of MMSA: tail padding, BERT, lengths in the unaligned file."""
    content = {}
    for split, samples in splits.items():
        steps = dict.fromkeys(MODALITIES, 50) if aligned else UNALIGNED[name]
        tokens = np.zeros((len(samples), 3, 50), np.int64)
        for row, sample in zip(tokens, samples, strict=True):
            row[0, : len(sample["text"])], row[1, : len(sample["text"])] = 101, 1
        scores = np.array([sample["score"] for sample in samples], np.float32)
        content[split] = {
            "raw_text": [f"sentence {i}" for i in range(len(samples))],
            "audio": padded(samples, "audio", steps["audio"], dtype=np.float64),
            "vision": padded(samples, "vision", steps["vision"], dtype=np.float64),
            "id": [f"{sample['video']}$_${sample['clip']}" for sample in samples],
            "text": padded(samples, "text", 50),
            "text_bert": tokens,
            "annotations": np.array(["Negative", "Positive"], dtype=object)[(scores > 0).astype(int)],
            "classification_labels": np.sign(scores) + 1,
            "regression_labels": scores,
        }
        if not aligned:
            for u in ("audio", "vision"):
                content[split][f"{u}_lengths"] = [len(sample[u]) for sample in samples]
    return content


def mult(splits, name="mosi", *, aligned=True):
    """The layout of MulT: front padding, GloVe, identifiers of three fields, in bytes for MOSI."""
    content = {}
    for split, samples in splits.items():
        steps = dict.fromkeys(MODALITIES, 50) if aligned else UNALIGNED[name]
        fields = [(sample["video"], str(float(sample["clip"])), "9.5") for sample in samples]
        if name == "mosi":
            fields = [tuple(text.encode() for text in row) for row in fields]
        content[split] = {
            **{u: padded(samples, u, steps[u], front=True, dtype=np.float64) for u in MODALITIES},
            "labels": np.array([sample["score"] for sample in samples], np.float32)[:, None, None],
            "id": np.array(fields, dtype=object),
        }
    return content


def write(path, content, protocol=3):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    pickled = pickle.dumps(content, protocol)
    if protocol == 3:
        pickled = pickled.replace(b"cnumpy._core.", b"cnumpy.core.")  # as numpy 1 wrote it
    path.write_bytes(pickled)
    return path


LAYOUTS = {
    "aligned_50.pkl": ("mosi", 768, mmsa),
    "unaligned_50.pkl": ("mosi", 768, lambda splits: mmsa(splits, aligned=False)),
    "mosi_data.pkl": ("mosi", 300, mult),
    "mosi_data_noalign.pkl": ("mosi", 300, lambda splits: mult(splits, aligned=False)),
    "mosei/aligned_50.pkl": ("mosei", 768, lambda splits: mmsa(splits, "mosei")),
    "mosei_senti_data_noalign.pkl": ("mosei", 300, lambda splits: mult(splits, "mosei", aligned=False)),
}


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BMLR_CACHE", str(tmp_path / "cache"))


def rows(batch, name, i):
    """The time steps of a sample that are not padding, and whether all others follow them."""
    real = batch.inputs[name][i].any(1)
    assert bool(real[: real.sum()].all())
    return batch.inputs[name][i][real]


def whole(split):
    return split.batch(range(len(split)))


# Layouts


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_sequences(tmp_path, layout):
    name, text, make = LAYOUTS[layout]
    splits = made_content(name, text)
    path = write(tmp_path / layout, make(splits), protocol=4 if "mosei" in layout else 3)
    data = bmlr.data.create(name, root=path, standardise=False)
    data.prepare()
    longest = {u: max(len(s[u]) for samples in splits.values() for s in samples) for u in MODALITIES}
    widths = {"text": text, **WIDTHS[name]}
    assert {u: m.shape for u, m in data.modalities.items()} == {u: (longest[u], widths[u]) for u in MODALITIES}
    assert list(data.modalities) == list(MODALITIES)
    assert {m.kind for m in data.modalities.values()} == {"sequence"}
    for split, published in PARTS.items():
        found, samples = data.split(split), splits[published]
        batch = whole(found)
        assert batch.present is None
        assert found.groups == [s["video"] for s in samples]
        assert data.scores(split) == [float(s["score"]) for s in samples]
        assert batch.targets.tolist() == [round(min(max(float(s["score"]), -3), 3)) + 3 for s in samples]
        assert batch.indices.tolist() == list(range(len(samples)))
        assert len(set(found.ids)) == len(samples)
        for u in MODALITIES:
            assert batch.inputs[u].dtype == torch.float32
            assert batch.inputs[u].shape == (len(samples), longest[u], widths[u])
            for i, sample in enumerate(samples):
                assert np.array_equal(rows(batch, u, i).numpy(), sample[u])


def test_batches_in_any_order(tmp_path):
    data = MOSI(write(tmp_path / "aligned_50.pkl", mmsa(made_content())))
    data.prepare()
    split = data.split("train")
    everything, some = whole(split), split.batch([5, 0, 5])
    for u in MODALITIES:
        assert torch.equal(some.inputs[u], everything.inputs[u][[5, 0, 5]])
    assert torch.equal(some.targets, everything.targets[[5, 0, 5]])
    assert some.indices.tolist() == [5, 0, 5]
    with pytest.raises(ValueError, match="Did you mean 'val'"):
        data.split("vall")


def test_values_that_are_not_finite_become_zero_and_are_counted(tmp_path):
    splits = made_content()
    splits["train"][0]["audio"][0, 1] = -np.inf
    splits["train"][1]["audio"][0, :] = -np.inf  # a step of nothing else is padding
    splits["valid"][0]["audio"][-1, 0] = np.nan
    splits["test"][2]["vision"][0, 3:5] = np.inf
    content = mmsa(splits)
    content["test"]["vision"][3, 0, 0] = 1e300  # infinite in float32
    result = prepare_sentiment("mosi", write(tmp_path / "aligned_50.pkl", content), tmp_path / "out")
    text, vision, audio, *_ = result.notes
    assert "0 NaN, 0 −∞, 0 +∞" in text
    assert "0 NaN, 0 −∞, 3 +∞" in vision
    assert "1 NaN, 6 −∞, 0 +∞" in audio
    data = MOSI(tmp_path / "out", standardise=False)
    assert whole(data.split("train")).inputs["audio"][0, 0, 1] == 0
    assert len(rows(whole(data.split("train")), "audio", 1)) == len(splits["train"][1]["audio"]) - 1
    for split in PARTS:
        assert all(bool(torch.isfinite(x).all()) for x in whole(data.split(split)).inputs.values())


def test_what_is_beyond_a_stated_length_is_left_out_and_counted(tmp_path):
    splits = made_content()
    content = mmsa(splits, aligned=False)
    content["train"]["audio"][0, len(splits["train"][0]["audio"]) + 1] = 7
    content["train"]["vision_lengths"][1] = 999  # more than there is room for
    length = len(splits["train"][2]["text"])
    content["train"]["text"][2, length:] = 3  # what BERT says of padding
    result = prepare_sentiment("mosi", write(tmp_path / "unaligned_50.pkl", content), tmp_path / "out")
    text, vision, audio = result.notes[:3]
    assert f"{50 - length} steps beyond the stated length" in text
    assert "0 steps beyond the stated length" in vision
    assert "1 step beyond the stated length" in audio
    batch = whole(MOSI(tmp_path / "out", standardise=False).split("train"))
    for i, u in enumerate(("audio", "vision", "text")):
        assert np.array_equal(rows(batch, u, i).numpy(), splits["train"][i][u])


def test_stated_lengths_count_from_the_end_where_padding_is_in_front(tmp_path):
    splits = made_content(text=300)
    content = mult(splits)
    for samples, values in zip(splits.values(), content.values(), strict=True):
        values["audio_lengths"] = [len(sample["audio"]) for sample in samples]
    content["train"]["audio"][0, 0] = 7
    result = prepare_sentiment("mosi", write(tmp_path / "mosi_data.pkl", content), tmp_path / "out")
    assert "padding in front" in result.notes[2]
    assert "1 step beyond" in result.notes[2]
    batch = whole(MOSI(tmp_path / "out", standardise=False).split("train"))
    assert np.array_equal(rows(batch, "audio", 0).numpy(), splits["train"][0]["audio"])


@pytest.mark.parametrize(("make", "words"), [(mmsa, "at the tail"), (mult, "in front")])
def test_the_side_of_the_padding_is_found(tmp_path, make, words):
    result = prepare_sentiment("mosi", write(tmp_path / "mosi_data.pkl", make(made_content())), tmp_path / "out")
    assert all(f"padding {words}" in note for note in result.notes[:3])


def test_steps_of_zeros_within_a_sequence_stay(tmp_path):
    splits = made_content()
    splits["train"][0]["vision"] = np.ones((5, 20), np.float32)
    splits["train"][0]["vision"][2] = 0
    data = MOSI(write(tmp_path / "aligned_50.pkl", mmsa(splits)))
    x = whole(data.split("train")).inputs["vision"][0]
    assert x.any(1)[:6].tolist() == [True, True, False, True, True, False]


# Missing modalities


def without_some(splits):
    """Sample i of every split lacks modality i, the fourth lacks all but text."""
    for samples in splits.values():
        for i, u in enumerate(MODALITIES):
            samples[i][u] = samples[i][u] * 0
        for u in ("vision", "audio"):
            samples[3][u] = samples[3][u] * 0
    return splits


@pytest.mark.parametrize("make", [mmsa, mult])
def test_missing_modalities_are_marked(tmp_path, make):
    path = write(tmp_path / "mosi_data.pkl", make(without_some(made_content())))
    result = prepare_sentiment("mosi", path, tmp_path / "out")
    assert [note.split("; ")[-1] for note in result.notes[:3]] == [
        "3 samples without it", "6 samples without it", "6 samples without it",
    ]  # fmt: skip
    data = MOSI(tmp_path / "out")
    batch = data.split("val").batch([3, 1, 0, 5])
    assert {u: mask.tolist() for u, mask in batch.present.items()} == {
        "text": [True, True, False, True],
        "vision": [False, False, True, True],
        "audio": [False, True, True, True],
    }
    for u, mask in batch.present.items():
        assert torch.equal(batch.inputs[u].flatten(1).any(1), mask)
    zeros = MOSI(tmp_path / "out", incomplete="zeros").split("val").batch([3, 1, 0, 5])
    assert zeros.present is None
    assert all(torch.equal(zeros.inputs[u], batch.inputs[u]) for u in MODALITIES)


def test_a_split_without_gaps_has_no_masks(tmp_path):
    splits = made_content()
    splits["test"][0]["audio"] = splits["test"][0]["audio"] * 0
    data = MOSI(write(tmp_path / "aligned_50.pkl", mmsa(splits)))
    data.prepare()
    assert data.split("train").present is None
    assert set(data.split("test").present) == {"audio"}


# Targets


def literal_class(s, num_classes, conversion):
    if num_classes == 3:
        return 0 if s < 0 else 1 if s == 0 else 2
    if num_classes == 2:
        return int(s >= 0)
    if conversion == "round":
        return round(max(-3.0, min(3.0, s))) + 3  # Python's round goes to the even number too
    for index, bound in enumerate((-2, -1, 0)):
        if s < bound:
            return index
    return 3 if s == 0 else 4 if s <= 1 else 5 if s <= 2 else 6


@settings(deadline=None)
@given(
    scores=st.lists(
        st.floats(-4, 4, allow_nan=False)
        | st.sampled_from([k / 6 for k in range(-20, 21)])
        | st.sampled_from([float(np.float32(k / 3)) for k in range(-9, 10)]),
        min_size=1,
    ),
    setting=st.sampled_from([(7, "round"), (7, "bins"), (3, "round"), (2, "round")]),
)
def test_targets_are_those_of_the_definition(scores, setting):
    classes = sentiment_classes(np.array(scores), *setting)
    assert classes.dtype == np.int64
    assert classes.tolist() == [literal_class(s, *setting) for s in scores]
    assert classes.min() >= 0
    assert classes.max() < setting[0]


@pytest.mark.parametrize(("num_classes", "conversion"), [(7, "round"), (7, "bins"), (3, "round"), (2, "round")])
def test_targets_of_a_data_set(tmp_path, num_classes, conversion):
    splits = made_content()
    path = write(tmp_path / "aligned_50.pkl", mmsa(splits))
    data = MOSI(path, num_classes=num_classes, conversion=conversion)
    assert len(data.classes) == len(set(data.classes)) == num_classes
    expected = [literal_class(float(s["score"]), num_classes, conversion) for s in splits["test"]]
    assert data.split("test").targets.tolist() == expected
    majority = max(expected.count(c) for c in expected) / len(expected)
    assert data.constant_score() == pytest.approx(majority, abs=1e-6)


def test_zeros_can_be_left_out(tmp_path):
    splits = made_content()
    for samples in splits.values():
        samples[4]["score"] = np.float32(0)
    path = write(tmp_path / "aligned_50.pkl", mmsa(splits))
    data = MOSI(path, num_classes=2, drop_zeros=True)
    assert data.classes == ("negative", "positive")
    for split, published in PARTS.items():
        kept = [s for s in splits[published] if s["score"] != 0]
        assert len(kept) < len(splits[published])
        assert data.split(split).targets.tolist() == [int(s["score"] > 0) for s in kept]
        assert 0 not in data.scores(split)
    everything = MOSI(path, num_classes=2)
    assert len(everything.split("test")) == SIZES["test"]


# Protocols


def test_clean_shares_no_video_and_keeps_the_published_test_split(tmp_path):
    splits = made_content()
    splits["train"][0]["video"] = splits["test"][0]["video"]
    splits["train"][5]["video"] = splits["valid"][1]["video"]
    splits["valid"][8]["video"] = splits["test"][4]["video"]
    splits["train"][9]["video"] = splits["valid"][8]["video"]
    result = prepare_sentiment("mosi", write(tmp_path / "aligned_50.pkl", mmsa(splits)), tmp_path / "out")
    clean, paper = MOSI(tmp_path / "out"), MOSI(tmp_path / "out", protocol="paper")
    clean.prepare()
    videos = {split: set(clean.split(split).groups) for split in PARTS}
    assert not videos["train"] & videos["val"]
    assert not videos["train"] & videos["test"]
    assert not videos["val"] & videos["test"]
    assert clean.split("test").ids == paper.split("test").ids
    assert {split: len(paper.split(split)) for split in PARTS} == {p: SIZES[q] for p, q in PARTS.items()}
    taken = {s["video"] for s in splits["test"]}
    left = [s for s in splits["valid"] if s["video"] in taken]
    taken |= {s["video"] for s in splits["valid"] if s["video"] not in taken}
    left = [s for s in splits["train"] if s["video"] in taken] + left
    assert clean.left_out == [f"{s['video']}$_${s['clip']}" for s in left]
    assert len(clean.left_out) == sum(SIZES.values()) - sum(len(clean.split(split)) for split in PARTS)
    assert paper.left_out == []
    assert f"leaves out {len(left)} samples" in result.notes[3]
    assert clean.left_out[0] in result.notes[3]


def test_a_split_by_video_is_clean_already(tmp_path):
    path = write(tmp_path / "aligned_50.pkl", mmsa(made_content()))
    clean, paper = MOSI(path), MOSI(path, protocol="paper")
    clean.prepare()
    assert clean.left_out == []
    for split in PARTS:
        assert clean.split(split).ids == paper.split(split).ids
    assert not any("leaves out" in note for note in prepare_sentiment("mosi", path, tmp_path / "out").notes)


@pytest.mark.parametrize(
    ("identity", "video"),
    [("-3g5yACwYnA$_$13", "-3g5yACwYnA"), (b"a_b[12]", "a_b"), (("x", "0.1", "2"), "x"), ([b"y[3]", b"1", b"2"], "y")],
)
def test_the_video_is_read_from_the_identifier(tmp_path, identity, video):
    content = mmsa(made_content())
    content["test"]["id"] = [identity] * SIZES["test"]
    data = MOSI(write(tmp_path / "aligned_50.pkl", content))
    assert set(data.split("test").groups) == {video}


def test_identifiers_without_a_video_make_no_clean_split(tmp_path):
    content = mmsa(made_content())
    content["valid"]["id"] = [f"clip{i}" for i in range(SIZES["valid"])]
    path = write(tmp_path / "aligned_50.pkl", content)
    with pytest.raises(ValueError, match=r"tell the source video.* Found .*'clip0'"):
        MOSI(path).prepare()
    assert len(MOSI(path, protocol="paper").split("val")) == SIZES["valid"]
    assert not any("leaves out" in note for note in prepare_sentiment("mosi", path, tmp_path / "out").notes)


def test_a_split_that_would_be_empty(tmp_path):
    splits = made_content()
    for sample in splits["valid"]:
        sample["video"] = splits["test"][0]["video"]
    with pytest.raises(ValueError, match="Split 'val' of .* would be empty"):
        MOSI(write(tmp_path / "aligned_50.pkl", mmsa(splits))).prepare()


# Standardisation


@pytest.mark.parametrize("make", [mmsa, mult])
def test_vision_and_audio_are_standardised_on_the_training_steps(tmp_path, make):
    splits = made_content()
    for samples in splits.values():
        for sample in samples:
            sample["audio"] = sample["audio"] * 50 + 3
            sample["audio"][:, 2] = 4  # a dimension that says nothing
    data = MOSI(write(tmp_path / "mosi_data.pkl", make(splits)))
    batch = whole(data.split("train"))
    for u in ("vision", "audio"):
        steps = np.concatenate([rows(batch, u, i).numpy() for i in range(len(batch))])
        original = np.concatenate([sample[u] for sample in splits["train"]]).astype(np.float64)
        deviation = original.std(0)
        deviation[deviation < 1e-6] = 1
        np.testing.assert_allclose(steps, (original - original.mean(0)) / deviation, atol=1e-5)
        np.testing.assert_allclose(steps.mean(0), 0, atol=1e-5)
        np.testing.assert_allclose(steps.std(0), 1 - (np.arange(5) == 2) if u == "audio" else 1, atol=1e-5)
        test = whole(data.split("test"))
        first = (splits["test"][0][u] - original.mean(0)) / deviation
        np.testing.assert_allclose(rows(test, u, 0).numpy(), first, atol=1e-5)
    assert np.array_equal(rows(batch, "text", 0).numpy(), splits["train"][0]["text"])


def test_statistics_are_those_of_the_training_samples_used(tmp_path):
    splits = made_content()
    splits["train"][0]["video"] = splits["test"][0]["video"]
    splits["train"][0]["audio"] += 1000
    path = write(tmp_path / "aligned_50.pkl", mmsa(splits))
    clean, paper = MOSI(path), MOSI(path, protocol="paper")
    spread = [float(whole(data.split("test")).inputs["audio"].std()) for data in (clean, paper)]
    assert spread[0] > 3 * spread[1]


def test_what_cannot_be_standardised(tmp_path):
    splits = made_content()
    for sample in splits["train"]:
        sample["audio"][:] = 2
    path = write(tmp_path / "aligned_50.pkl", mmsa(splits))
    with pytest.raises(ValueError, match="'audio' should not be the same at every time step"):
        MOSI(path).prepare()
    MOSI(path, standardise=False).prepare()
    for sample in splits["train"]:
        sample["audio"][:] = 0
    with pytest.raises(ValueError, match="should have 'audio'. Every sample lacks it"):
        MOSI(write(tmp_path / "aligned_50.pkl", mmsa(splits))).prepare()


# Preparing


def test_prepared_once_and_used_without_the_source(tmp_path):
    source = tmp_path / "MOSI" / "Processed"
    write(source / "aligned_50.pkl", mmsa(made_content()))
    first = prepare_sentiment("mosi", tmp_path / "MOSI", tmp_path / "out")
    assert first.decoded == sum(SIZES.values())
    assert first.folder.parent == tmp_path / "out"
    assert {split: sum(classes.values()) for split, classes in first.counts.items()} == {
        split: SIZES[published] for split, published in PARTS.items()
    }
    assert first.rejected == ()
    stamp = (first.folder / "manifest.json").stat().st_mtime_ns
    second = prepare_sentiment("mosi", tmp_path, tmp_path / "out")  # found one folder further up too
    assert second.decoded == 0
    assert second == dataclasses.replace(first, decoded=0)
    assert (first.folder / "manifest.json").stat().st_mtime_ns == stamp
    key = json.loads((first.folder / "manifest.json").read_text())["key"]
    assert key["file"] == "aligned_50.pkl"
    assert len(key["sha256"]) == 64
    from_source = whole(MOSI(source / "aligned_50.pkl").split("train"))
    shutil.rmtree(tmp_path / "MOSI")
    for root in (tmp_path / "out", first.folder):
        batch = whole(MOSI(root).split("train"))
        assert all(torch.equal(batch.inputs[u], from_source.inputs[u]) for u in MODALITIES)


def test_a_changed_file_is_converted_anew(tmp_path):
    path = write(tmp_path / "aligned_50.pkl", mmsa(made_content()))
    first = MOSI(path)
    first.prepare()
    before = whole(first.split("test")).inputs["audio"].clone()
    write(path, mmsa(made_content(seed=1)))
    second = MOSI(path)
    assert not torch.equal(whole(second.split("test")).inputs["audio"][0, 0], before[0, 0])


def test_the_default_root_and_cache(tmp_path, monkeypatch):
    write(tmp_path / "MOSI" / "Processed" / "aligned_50.pkl", mmsa(made_content()))
    monkeypatch.setenv("BMLR_DATA", str(tmp_path))
    data = MOSI()
    assert len(data.split("test")) == SIZES["test"]
    assert [path.name.split("-")[0] for path in (tmp_path / "cache").iterdir()] == ["mosi"]
    own = MOSI(cache=tmp_path / "own")
    own.prepare()
    assert list((tmp_path / "own").iterdir())
    monkeypatch.delenv("BMLR_DATA")
    with pytest.raises(ValueError, match="`root` should be .* not given, and the environment variable BMLR_DATA"):
        MOSI()


def test_one_of_several_files_has_to_be_named(tmp_path):
    splits = made_content()
    write(tmp_path / "aligned_50.pkl", mmsa(splits))
    write(tmp_path / "unaligned_50.pkl", mmsa(splits, aligned=False))
    with pytest.raises(ValueError, match=r"`file` should name one .*aligned_50\.pkl.*unaligned_50\.pkl"):
        MOSI(tmp_path).prepare()
    assert len(MOSI(tmp_path, file="unaligned_50.pkl").split("val")) == SIZES["valid"]
    for file in ("aligned_50.pkl", "unaligned_50.pkl"):
        prepare_sentiment("mosi", tmp_path, tmp_path / "out", file=file)
    with pytest.raises(ValueError, match=r"`root` should hold one prepared 'mosi', or `file` decide.*of aligned_50"):
        MOSI(tmp_path / "out").prepare()
    assert len(MOSI(tmp_path / "out", file="aligned_50.pkl").split("val")) == SIZES["valid"]
    with pytest.raises(FileNotFoundError, match=r"There is no other\.pkl of 'mosi', and nothing prepared"):
        MOSI(tmp_path / "out", file="other.pkl").prepare()


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"aligned_50\.pkl or .* of 'mosei'.*looked in .*MOSEI"):
        MOSEI(tmp_path).prepare()


def test_damaged_preparation(tmp_path):
    write(tmp_path / "aligned_50.pkl", mmsa(made_content()))
    folder = prepare_sentiment("mosi", tmp_path, tmp_path / "out").folder
    array = (folder / "audio.npy").read_bytes()
    (folder / "audio.npy").write_bytes(array[:-1])
    with pytest.raises(ValueError, match="is damaged or of another version: remove it"):
        MOSI(tmp_path / "out").prepare()
    assert prepare_sentiment("mosi", tmp_path, tmp_path / "out").decoded  # made whole
    assert (folder / "audio.npy").read_bytes() == array
    MOSI(tmp_path / "out").prepare()


def test_the_other_data_set(tmp_path):
    path = write(tmp_path / "aligned_50.pkl", mmsa(made_content("mosei"), "mosei"))
    with pytest.raises(ValueError, match="should be of 'mosi'. Its widths, .* are those of 'mosei'"):
        MOSI(path).prepare()
    MOSEI(path).prepare()


def hostile(content):
    content["train"]["id"][0] = os.system
    return content


def changed(**entries):
    def change(content):
        content["valid"].update(entries)
        return {**content, "valid": {k: v for k, v in content["valid"].items() if v is not None}}

    return change


BAD = {
    "a split missing": (lambda c: {"train": c["train"], "test": c["test"]}, r"a dictionary 'valid'. Found \['test'"),
    "code": (hostile, r"system`, which is neither an array nor a plain value. It was refused"),
    "no labels": (changed(regression_labels=None), r"'valid' should have 'regression_labels' \(MMSA\) or 'labels'"),
    "text for labels": (changed(regression_labels=["a"] * 9), "numbers for 'regression_labels'"),
    "too few labels": (changed(regression_labels=[1.0]), "one of 'regression_labels' for each of its 9 'id'. Found 1"),
    "a label that is NaN": (changed(regression_labels=[1, np.nan] + [0] * 7), "Found nan for sample 1"),
    "no id": (changed(id=None), "'valid' should have 'id'"),
    "id of another kind": (changed(id=7), "a list or array 'id'. Found int"),
    "no audio": (changed(audio=None), "an array 'audio' of numbers, shape .N, T, d.. Found NoneType"),
    "flat audio": (changed(audio=np.zeros((9, 5))), r"Found shape \(9, 5\), dtype float64"),
    "text for audio": (changed(audio=np.full((9, 50, 5), "x")), "dtype <U1"),
    "too much audio": (changed(audio=np.ones((10, 50, 5))), "one 'audio' for each of its 9 'id'. Found 10"),
    "other audio": (changed(audio=np.ones((9, 50, 6))), "one width of 'audio'"),
    "lengths": (changed(audio_lengths=[1, 2]), "9 'audio_lengths' of at least 0. Found 2"),
    "negative lengths": (changed(audio_lengths=[-1] * 9), "'audio_lengths' of at least 0"),
    "text for lengths": (changed(audio_lengths=["a"] * 9), "numbers for 'audio_lengths'"),
}


@pytest.mark.parametrize("name", BAD)
def test_files_that_are_not_what_they_should_be(tmp_path, name):
    change, words = BAD[name]
    path = write(tmp_path / "aligned_50.pkl", change(mmsa(made_content())))
    with pytest.raises(ValueError, match=words) as error:
        MOSI(path).prepare()
    assert "aligned_50.pkl" in str(error.value)
    assert not list((tmp_path / "cache").glob("mosi-*"))


def test_truncated_files(tmp_path):
    path = write(tmp_path / "aligned_50.pkl", mmsa(made_content()))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"aligned_50\.pkl is not a whole pickle"):
        prepare_sentiment("mosi", path, tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"protocol": "clen"}, "Did you mean 'clean'"),
        ({"num_classes": 5}, "`num_classes` should be 7, 3 or 2. Found `num_classes = 5`"),
        ({"conversion": "floor"}, "`conversion` should be one of round, bins"),
        ({"conversion": "bins", "num_classes": 3}, "`conversion` should be 'round' unless `num_classes = 7`"),
        ({"drop_zeros": True}, "`drop_zeros` should be False unless `num_classes = 2`"),
        ({"incomplete": "drop"}, "`incomplete` should be one of mask, zeros"),
    ],
)
def test_parameters_out_of_range(options, words):
    with pytest.raises(ValueError, match=words):
        MOSI("somewhere", **options)


def test_an_unknown_name(tmp_path):
    with pytest.raises(ValueError, match="Did you mean 'mosei'"):
        prepare_sentiment("moseii", tmp_path, tmp_path)


# New files


def save(folder, **arrays):
    paths = {}
    for name, array in arrays.items():
        paths[name] = folder / f"{name}.npy"
        np.save(paths[name], array)
    return paths


def test_new_files_are_treated_as_in_training(tmp_path):
    splits = made_content()
    data = MOSI(write(tmp_path / "aligned_50.pkl", mmsa(splits)))
    inputs = data.load_files(save(tmp_path, **{u: splits["test"][0][u] for u in MODALITIES}))
    batch = whole(data.split("test"))
    for u in MODALITIES:
        assert torch.equal(inputs[u][0], rows(batch, u, 0))
    assert_read_without_data(data, save(tmp_path, **{u: splits["test"][0][u] for u in MODALITIES}))
    noisy = splits["test"][0]["audio"].copy()
    noisy[0, 0] = -np.inf
    files = save(tmp_path, audio=noisy)
    with pytest.warns(UserWarning, match=r"audio\.npy: 1 value that is not finite was set to 0"):
        inputs = data.load_files(files)
    assert torch.isfinite(inputs["audio"]).all()
    assert inputs["text"].shape == (1, 1, 768)  # not given: absent
    assert not inputs["text"].any()
    assert not inputs["vision"].any()


def test_new_files_that_cannot_be_used(tmp_path):
    data = MOSI(write(tmp_path / "aligned_50.pkl", mmsa(made_content())))
    for files in ({}, {"sound": tmp_path / "x.npy"}):
        with pytest.raises(ValueError, match="files of text, vision, audio. Found"):
            data.load_files(files)
    with pytest.raises(FileNotFoundError, match=r"absent\.npy"):
        data.load_files({"audio": tmp_path / "absent.npy"})
    bad = tmp_path / "bad.npy"
    archive = tmp_path / "archive.npy"
    with archive.open("wb") as file:
        np.savez(file, a=np.zeros(2))
    np.save(bad, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    objects = bad.read_bytes()
    np.save(bad, np.ones((4, 5)))
    for content, words in (
        (objects, "cannot be read as a .npy file"),
        (b"", "cannot be read"),
        (bad.read_bytes()[:-8], "cannot be read"),
        (archive.read_bytes(), "cannot be read"),
        (archive.read_bytes()[:40], "cannot be read"),
    ):
        bad.unlink(missing_ok=True)
        bad.write_bytes(content)
        with pytest.raises(ValueError, match=words) as error:
            data.load_files({"audio": bad})
        assert "bad.npy" in str(error.value)
    for array, words in (
        (np.ones(5), r"shape \(T, 5\) with T at least 1. Found \(5,\)"),
        (np.ones((3, 6)), r"Found \(3, 6\)"),
        (np.full((3, 5), "a"), "of numbers. Found <U1"),
        (np.zeros((3, 5)), "holds zeros only"),
    ):
        with pytest.raises(ValueError, match=words):
            data.load_files(save(tmp_path, audio=array))


# From what is downloaded to a prediction


def runnable():
    pytest.importorskip("lightning")
    from bmlr.config import ModelOptions, TrainerOptions

    options = TrainerOptions(epochs=1, batch_size=8, accelerator="cpu", devices=1, progress=False)
    return {"model": ModelOptions(width=2, depth=1, heads=2), "trainer": options}


@pytest.mark.parametrize("layout", ["unaligned_50.pkl", "mosi_data.pkl"])
@pytest.mark.parametrize("method", ["BMLR", "AGM", "ReconBoostBalanceBenchmark"])
def test_prepare_train_evaluate_predict(tmp_path, layout, method):
    options = runnable()
    from bmlr.config import build_model
    from bmlr.training import evaluate_run, load, train

    _, text, make = LAYOUTS[layout]
    splits = without_some(made_content(text=text))
    prepare_sentiment("mosi", write(tmp_path / layout, make(splits)), tmp_path / "out")
    (tmp_path / layout).unlink()
    data = MOSI(tmp_path / "out", incomplete="zeros" if method == "AGM" else "mask")
    result = train(data, bmlr.methods.create(method), **options, runs=tmp_path / "runs")
    assert set(result.content["test"]["unimodal_accuracy"]) == set(MODALITIES)
    assert result.content["samples"] == {split: SIZES[published] for split, published in PARTS.items()}
    assert result.content["constant_score"] == data.constant_score()
    assert type(build_model(data, options["model"]).encoders["text"]).__name__ == "TransformerEncoder"
    score = evaluate_run(result.directory)
    assert score.as_dict() == result.content["test"]
    steps = {u: splits["test"][8][u] for u in MODALITIES}
    predicted = load(result.directory).predict(save(tmp_path, **steps))
    assert set(predicted) == {"fused", *MODALITIES}
    for probabilities in predicted.values():
        assert tuple(probabilities) == data.classes
        assert sum(probabilities.values()) == pytest.approx(1)
    alone = load(result.directory).predict(save(tmp_path, text=steps["text"]))
    assert alone["text"] == pytest.approx(predicted["text"], abs=1e-6)
    assert alone["fused"] != pytest.approx(predicted["fused"], abs=1e-6)
    assert sum(alone["fused"].values()) == pytest.approx(1)


def test_a_prediction_is_that_of_the_test_split(tmp_path):
    """A sample of the test split, with a modality missing and without, gets from files what it got in its batch."""
    options = runnable()
    from bmlr.training import load, train

    splits = without_some(made_content())
    data = MOSI(write(tmp_path / "aligned_50.pkl", mmsa(splits)), num_classes=2)
    directory = train(data, bmlr.methods.BMLR(), **options, runs=tmp_path / "runs").directory
    run = load(directory)
    batch = whole(run.config.data.split("test"))
    with torch.no_grad():
        logits = run.method.predict(run.model(batch.inputs, batch.present)).logits.softmax(1)
    for i in (0, 1, 2, 3, 7):
        files = save(tmp_path, **{u: splits["test"][i][u] for u in MODALITIES if splits["test"][i][u].any()})
        found = run.predict(files)["fused"]
        assert list(found.values()) == pytest.approx(logits[i].tolist(), abs=1e-5)


def test_a_sample_without_any_modality_harms_nothing(tmp_path):
    options = runnable()
    from bmlr.training import train

    splits = made_content()
    for samples in splits.values():
        for u in MODALITIES:
            samples[0][u] = samples[0][u] * 0
    data = MOSI(write(tmp_path / "aligned_50.pkl", mmsa(splits)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = train(data, bmlr.methods.BMLR(), **options, runs=tmp_path / "runs")
    assert result.content["test"]["samples"] == SIZES["test"]


def test_the_options_of_the_transformer():
    pytest.importorskip("lightning")
    from bmlr.config import ModelOptions, build_model

    model = build_model(MOSI("unread"), ModelOptions(width=3, depth=3, heads=6, dropout=0.2, positions="learned"))
    encoder = model.encoders["vision"]
    assert encoder.num_features == 12
    assert len(encoder.layers) == 3
    assert encoder.layers[0].self_attn.num_heads == 6
    assert encoder.dropout.p == 0.2
    assert encoder.positions.weight.shape == (50, 12)
    assert build_model(MOSI("unread"), ModelOptions()).encoders["text"].num_features == 128
    for name, value in {"depth": 0, "heads": 0, "positions": "none"}.items():
        with pytest.raises(ValueError, match=f"`{name}`"):
            ModelOptions(**{name: value})
    with pytest.raises(ValueError, match="multiple of `heads = 3`"):
        build_model(MOSI("unread"), ModelOptions(heads=3))


def test_from_the_command_line(tmp_path, capsys):
    """prepare, train, evaluate, predict: one command each."""
    from bmlr.cli import main

    splits = made_content()
    source = write(tmp_path / "aligned_50.pkl", mmsa(splits))
    assert main(["prepare", "mosi", str(source), str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "set to 0: " in printed
    folder = printed.split()[-1]
    run = ["--run", str(tmp_path / "run")]
    small = ["--model.width", "2", "--model.depth", "1", "--model.heads", "2", "--trainer.epochs", "1"]
    assert main(["train", "--data", "mosi", "--data.root", folder, "--method", "BMLR", *small, *run]) == 0
    assert main(["evaluate", str(tmp_path / "run")]) == 0
    steps = {u: splits["test"][0][u] for u in MODALITIES}
    files = [f"{name}={path}" for name, path in save(tmp_path, **steps).items()]
    capsys.readouterr()
    assert main(["predict", str(tmp_path / "run"), *files, "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)[0]["probabilities"]) == {"fused", *MODALITIES}
    assert main(["prepare", "mosi", str(source), str(tmp_path / "out"), "--size", "64"]) == 2
    assert "Option --size should be left out for 'mosi'" in capsys.readouterr().err


def test_scores_stay_numbers_with_the_customary_metrics(tmp_path, capsys):
    pytest.importorskip("lightning")
    from bmlr.cli import main
    from bmlr.runs import read_result
    from bmlr.training import evaluate_run

    splits = without_some(made_content(text=768))
    prepare_sentiment("mosi", write(tmp_path / "aligned_50.pkl", mmsa(splits)), tmp_path / "out")
    data = MOSI(tmp_path / "out", task="sentiment")
    words = ["--data.root", str(tmp_path / "out"), "--data.task", "sentiment", "--method", "Joint"]
    words += ["--model.width", "2", "--model.heads", "2", "--trainer.epochs", "1", "--trainer.batch_size", "8"]
    assert main(["train", "mosi", *words, "--trainer.accelerator", "cpu", "--run", str(tmp_path / "run")]) == 0
    assert "Acc-7" in capsys.readouterr().out
    test = read_result(tmp_path / "run")["test"]
    assert data.split("test").targets.tolist() == pytest.approx(data.scores("test"))
    assert data.hparams["task"] == "sentiment"
    assert "task" not in MOSI(tmp_path / "out").hparams
    score = evaluate_run(tmp_path / "run")
    assert {"mae", "pearson", "acc7", "acc2_nonnegative", "f1_positive"} <= set(score.metrics)
    assert score.metrics == pytest.approx({name: test[name] for name in score.metrics}, nan_ok=True)
    with pytest.raises(ValueError, match="`num_classes` and `drop_zeros` are for classes"):
        MOSI(tmp_path / "out", task="sentiment", num_classes=2)
