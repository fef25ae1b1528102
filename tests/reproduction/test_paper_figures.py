import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import pyplot as plt

from axes import draw, texts_overlap
from bmlr import reproduction
from bmlr.functional import reshape_labels


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def reshaped(classes=3, samples=90):
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(samples) % classes
    one_hot = torch.nn.functional.one_hot(targets, classes)
    logits = {
        name: torch.randn(samples, classes, generator=generator) + s * one_hot
        for name, s in (("audio", 3), ("image", 1))
    }
    labels = reshape_labels(logits, targets, alpha=1.0, beta=0.0).labels
    return {name: label.numpy() for name, label in labels.items()}, targets.numpy(), logits


def test_simplex_places_labels_by_their_probabilities():
    labels = {"audio": np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1 / 3, 1 / 3, 1 / 3], [0.5, 0.5, 0]])}
    ax = reproduction.plot_label_simplex(labels, np.array([0, 1, 2, 2, 0]), ["a", "b", "c"])["audio"]
    points = {c.get_label(): np.asarray(c.get_offsets()) for c in ax.collections if c.get_label() in {"a", "b", "c"}}
    height = 3**0.5 / 2
    np.testing.assert_allclose(points["a"], [[0, 0], [0.5, 0]], atol=1e-9)
    np.testing.assert_allclose(points["b"], [[1, 0]], atol=1e-9)
    np.testing.assert_allclose(points["c"], [[0.5, height], [0.5, height / 3]], atol=1e-9)
    assert ax.get_title() == "audio: 2 of 5 labels reshaped"
    legend = [text.get_text() for text in ax.get_figure().legends[0].get_texts()]
    assert legend[:3] == ["a", "b", "c"]
    assert {"one-hot", "uniform, ε = 0.1"} <= set(legend)
    draw(ax)


def test_label_rows_show_probabilities_of_other_classes():
    labels = {"uniform": np.full((3, 4), 0.1) + 0.6 * np.eye(4)[[0, 1, 2]], "audio": np.eye(4)[[0, 1, 2]]}
    labels["audio"][1] = [0.25, 0.5, 0.25, 0]
    panels = reproduction.plot_label_rows(
        labels, np.array([0, 1, 2]), list("abcd"), samples=[1, 0], sample_names=["x", "y", "z"]
    )
    assert list(panels) == ["uniform", "audio"]
    shown = np.ma.filled(panels["audio"].images[0].get_array().astype(float), np.nan)
    np.testing.assert_array_equal(shown, [[0.25, np.nan, 0.25, 0], [np.nan, 0, 0, 0]])
    assert [text.get_text() for text in panels["audio"].texts] == [".25", ".50", ".25", "1.00"]
    assert [tick.get_text() for tick in panels["uniform"].get_yticklabels()] == ["b, y", "a, x"]
    assert {ax.images[0].norm.vmax for ax in panels.values()} == {0.25}  # one scale for all
    frames = [(patch.get_x() + 0.47, patch.get_y() + 0.45) for patch in panels["audio"].patches]
    assert np.allclose(frames, [(1, 0), (0, 1)])


def test_label_rows_of_many_classes_write_the_true_class_only():
    labels = np.full((1, 20), 0.02)
    labels[0, 7] = 0.62
    ax = reproduction.plot_label_rows({"audio": labels}, np.array([7]))["audio"]
    assert [text.get_text() for text in ax.texts] == [".62"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"samples": [2]}, r"`samples` should be at least one row below 2. Found \[2\]"),
        ({"samples": []}, "`samples` should be at least one row below 2"),
        ({"sample_names": ["x"]}, "`sample_names` should be one per sample, 2. Found 1"),
        ({"labels": {"audio": np.eye(2)[:, :1]}}, "at least 2, above every target"),
        ({"labels": {"audio": 2 * np.eye(2)}}, r"`labels\['audio'\]` should be probabilities"),
    ],
)
def test_bad_label_rows(change, message):
    given = {"labels": {"audio": np.eye(2)}, "targets": np.array([0, 1]), **change}
    with pytest.raises(ValueError, match=message):
        reproduction.plot_label_rows(**given)


def test_simplex_of_three_among_more_classes():
    labels, targets, _ = reshaped(classes=5)
    panels = reproduction.plot_label_simplex(labels, targets, list("abcde"), classes=[4, 0, 2])
    assert list(panels) == ["audio", "image"]
    assert "of 54 labels" in panels["audio"].get_title()
    assert not texts_overlap(panels["audio"])
    with pytest.raises(ValueError, match="three different classes below 5"):
        reproduction.plot_label_simplex(labels, targets)
    with pytest.raises(ValueError, match="at least 5 names"):
        reproduction.plot_label_simplex(labels, targets, ["a"], classes=[4, 0, 2])


@pytest.mark.parametrize(
    ("labels", "targets", "message"),
    [
        ({"a": np.eye(3) * 2}, [0, 1, 2], "should be probabilities"),
        ({"a": np.eye(3)}, [0, 1], "shape \\(2, d\\)"),
        ({"a": np.eye(3) * np.nan}, [0, 1, 2], "in 3 of 3 samples"),
        ({"a": np.eye(3)}, [0, 1, 3], "above every target"),
        ({"a": np.eye(3)}, [0.0, 1, 2], "class index"),
        ({"a": np.eye(3), "b": np.eye(4)[:3]}, [0, 1, 2], "one number of classes"),
        ({}, [0], "an array per modality"),
        ({"a": np.eye(3)}, [], "at least one class index"),
    ],
)
def test_bad_labels(labels, targets, message):
    for plot in (reproduction.plot_label_simplex, reproduction.plot_label_tsne):
        with pytest.raises(ValueError, match=message):
            plot(labels, np.array(targets))


def test_given_axes_are_used_and_must_be_complete():
    labels, targets, _ = reshaped()
    _, (first, second) = plt.subplots(1, 2, layout="constrained")
    panels = reproduction.plot_label_simplex(labels, targets, axes={"audio": first, "image": second})
    assert panels == {"audio": first, "image": second}
    with pytest.raises(ValueError, match="Missing 'image'"):
        reproduction.plot_label_simplex(labels, targets, axes={"audio": first})


def test_label_tsne_embeds_every_distinct_label_once():
    labels, targets, _ = reshaped()
    labels["image"] = np.eye(3)[targets]  # nothing reshaped: three places
    panels = reproduction.plot_label_tsne(labels, targets, ["a", "b", "c"])
    points = {c.get_label(): c for c in panels["image"].collections}
    assert [len(points[name].get_offsets()) for name in "abc"] == [1, 1, 1]
    one_hot = np.asarray(points["one-hot"].get_offsets())
    np.testing.assert_allclose(np.concatenate([points[name].get_offsets() for name in "abc"]), one_hot)
    # One embedding: the one-hot labels are in the same places in all panels.
    again = next(c for c in panels["audio"].collections if c.get_label() == "one-hot")
    np.testing.assert_allclose(again.get_offsets(), one_hot)
    draw(panels["image"])


def test_features_tsne_names_the_number_of_samples():
    rng = np.random.default_rng(0)
    targets = np.arange(60) % 4
    features = {"audio": rng.normal(size=(60, 8)) + 4 * np.eye(4, 8)[targets], "text": rng.normal(size=(60, 3))}
    panels = reproduction.plot_features_tsne(features, targets, list("abcd"))
    assert sum(len(c.get_offsets()) for c in panels["audio"].collections) == 60
    assert panels["audio"].get_title() == "audio (60 samples)"
    markers = {c.get_paths()[0].vertices.tobytes() for c in panels["audio"].collections}
    colours = {tuple(c.get_facecolor()[0]) for c in panels["audio"].collections}
    assert len(markers) == len(colours) == 4
    fewer = reproduction.plot_features_tsne(features, targets, max_samples=20)
    assert fewer["text"].get_title() == "text (20 of 60 samples)"
    with pytest.raises(ValueError, match="at least 4 names"):
        reproduction.plot_features_tsne(features, targets, ["a"])
    with pytest.raises(ValueError, match="at least 4 different points"):
        reproduction.plot_features_tsne({"a": np.ones((2, 3))}, [0, 1])
    with pytest.raises(ValueError, match="`perplexity`"):
        reproduction.plot_features_tsne(features, targets, perplexity=0)


# ---- predictions --------------------------------------------------------------------------------------------------


@given(st.integers(2, 6), st.integers(1, 20), st.data())
@settings(deadline=None, max_examples=30)
def test_counts_of_top_classes_are_those_of_a_loop(classes, samples, data):
    top = data.draw(st.integers(1, classes))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    scores, targets = rng.normal(size=(samples, classes)), rng.integers(0, classes, samples)
    expected = np.zeros((classes, classes), dtype=int)
    for score, target in zip(scores, targets, strict=True):
        for predicted in sorted(range(classes), key=lambda index: -score[index])[:top]:
            expected[target, predicted] += 1
    np.testing.assert_array_equal(reproduction.count_top_classes({"a": scores}, targets, top=top)["a"], expected)


def test_top_classes_are_bars_with_the_true_class_marked():
    _, targets, logits = reshaped(classes=5)
    counts = reproduction.count_top_classes(logits, targets)
    panels = reproduction.plot_top_classes(counts, targets, list("abcde"), classes=[1, 3], shown=3)
    assert set(panels) == {("audio", "b"), ("audio", "d"), ("image", "b"), ("image", "d")}
    ax = panels["audio", "b"]
    widths = [bar.get_width() for bar in ax.patches]
    assert widths == sorted(widths, reverse=True)
    np.testing.assert_allclose(widths, np.sort(100 * counts["audio"][1] / 18)[::-1][:3])
    assert [
        bar.get_hatch() for bar, tick in zip(ax.patches, ax.get_yticklabels(), strict=True) if tick.get_text() == "b"
    ] == ["////"]
    assert panels["audio", "d"].get_xlabel() == "in the top 3 (% of samples)"
    assert not texts_overlap(ax)
    draw(ax)


def test_the_true_class_is_shown_though_it_is_never_predicted():
    scores = np.array([[0.0, 3, 2, 1]] * 4)
    targets = np.zeros(4, dtype=int)
    counts = reproduction.count_top_classes({"a": scores}, targets)
    ax = reproduction.plot_top_classes(counts, targets, classes=[0], shown=2)["a", "class 0"]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["class 1", "class 0"]
    assert [bar.get_width() for bar in ax.patches] == [100, 0]


def test_bad_counts():
    targets = np.array([0, 1])
    with pytest.raises(ValueError, match="do not add up"):
        reproduction.plot_top_classes({"a": np.array([[3, 0], [0, 1]])}, targets)
    with pytest.raises(ValueError, match=r"one shape \(C, C\)"):
        reproduction.plot_top_classes({"a": np.ones((2, 3))}, targets)
    with pytest.raises(ValueError, match="classes with samples, below 3. Found 2"):
        reproduction.plot_top_classes({"a": np.eye(3, dtype=int) * [1, 1, 0]}, targets, classes=[2])
    with pytest.raises(ValueError, match="a column per class, at least 3"):
        reproduction.count_top_classes({"a": np.ones((2, 2))}, targets)


# ---- tables -------------------------------------------------------------------------------------------------------
