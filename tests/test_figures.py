import io

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import pyplot as plt

from bmlr import figures, reproduction
from bmlr.functional import reshape_labels
from bmlr.runs import read_metrics


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def metrics(values):
    return pd.DataFrame({"epoch": range(len(values)), "val_accuracy": values, "val_accuracy_audio": values[::-1]})


def test_curves_are_the_metrics_in_percent():
    ax = figures.plot_accuracy(metrics([0.2, 0.5, 0.9]))
    fused, audio = ax.get_lines()
    assert fused.get_label() == "fused"
    assert list(fused.get_xdata()) == [1, 2, 3]
    assert list(fused.get_ydata()) == pytest.approx([20, 50, 90])
    assert list(audio.get_ydata()) == pytest.approx([90, 50, 20])
    assert not ax.collections


def test_several_runs_are_drawn_as_mean_and_band():
    ax = figures.plot_accuracy({"a": metrics([0.2, 0.4]), "b": metrics([0.4, 0.8])})
    assert list(ax.get_lines()[0].get_ydata()) == pytest.approx([30, 60])
    band = ax.collections[0].get_paths()[0].vertices[:, 1]
    # One sample standard deviation of two values is their distance over the root of two.
    assert band.min() == pytest.approx(30 - 20 / 2**0.5)
    assert band.max() == pytest.approx(60 + 40 / 2**0.5)


def test_it_draws_where_it_is_told_and_says_what_is_missing(tmp_path):
    _, ax = plt.subplots()
    assert figures.plot_accuracy(metrics([0.1, 0.2]), ax, linewidth=3) is ax
    assert ax.get_lines()[0].get_linewidth() == 3
    with pytest.raises(ValueError, match="`metrics` should hold a column val_accuracy"):
        figures.plot_accuracy(pd.DataFrame({"epoch": [0]}))
    with pytest.raises(ValueError, match="`metrics` should hold a column val_accuracy"):
        figures.plot_accuracy({})
    with pytest.raises(FileNotFoundError, match="There are no metrics in"):
        read_metrics(tmp_path)
    metrics([0.1, 0.2]).to_csv(tmp_path / "metrics.csv", index=False)
    pd.testing.assert_frame_equal(read_metrics(tmp_path), metrics([0.1, 0.2]))


def draw(ax):
    """Lay the figure out and paint it, where matplotlib warns (an error here) if something has no room."""
    ax.get_figure().savefig(io.BytesIO(), format="png")


def texts_overlap(ax):
    """Whether two texts of the axes' labels and annotations lie on one another."""
    figure = ax.get_figure()
    figure.canvas.draw()
    found = [*ax.texts, ax.title]
    if ax.axison:
        found += [*ax.get_xticklabels(), *ax.get_yticklabels(), ax.xaxis.label, ax.yaxis.label]
    boxes = [text.get_window_extent() for text in found if text.get_text() and text.get_visible()]
    return any(a.overlaps(b) for index, a in enumerate(boxes) for b in boxes[:index])


# ---- curves -------------------------------------------------------------------------------------------------------


def test_runs_of_other_lengths_or_columns_have_no_mean():
    with pytest.raises(ValueError, match="the same epochs"):
        figures.plot_accuracy({"a": metrics([0.1, 0.2]), "b": metrics([0.1, 0.2, 0.3])})
    with pytest.raises(ValueError, match="val_accuracy_audio is not in all"):
        figures.plot_accuracy({"a": metrics([0.1]), "b": metrics([0.1]).drop(columns="val_accuracy_audio")})
    with pytest.raises(ValueError, match="a column epoch"):
        figures.plot_accuracy(metrics([0.1]).drop(columns="epoch"))


def test_damaged_metrics(tmp_path):
    for text in ("", "a,b\n1,2\n", "epoch,val_accuracy\n", 'epoch,"x\n1,2\n'):
        (tmp_path / "metrics.csv").write_text(text)
        with pytest.raises(ValueError, match=r"metrics\.csv"):
            read_metrics(tmp_path)


def test_ratio_is_on_a_logarithmic_axis_around_one():
    table = pd.DataFrame(
        {"epoch": [0, 1, 2], "val_accuracy_a_b": 0.5, "val_accuracy_c": 0.5, "val_ratio_a_b_c": [2.0, np.nan, 0.9]}
    )
    ax = figures.plot_ratio({"x": table, "y": table.assign(val_ratio_a_b_c=[1.0, 1.0, 1.1])})
    line = ax.get_lines()[0]
    assert line.get_label() == "a_b / c"
    # Where one of the runs has no ratio there is no mean.
    np.testing.assert_allclose(line.get_ydata(), [1.5, np.nan, 1.0])
    low, high = ax.get_ylim()
    assert low < 0.8
    assert high > 1.5
    assert 1 in ax.get_yticks()
    assert list(ax.get_lines()[1].get_ydata()) == [1, 1]
    draw(ax)
    with pytest.raises(ValueError, match="a column val_ratio_<modality>"):
        figures.plot_ratio(metrics([0.1]))


def test_reshaped_share_in_percent():
    table = pd.DataFrame({"epoch": [0], "train_reshaped_audio": [0.25], "train_reshaped_image": [0.5]})
    ax = figures.plot_reshaped_share(table)
    assert [(line.get_label(), list(line.get_ydata())) for line in ax.get_lines()] == [("audio", [25]), ("image", [50])]
    assert all(line.get_marker() == "o" for line in ax.get_lines())  # a line of one point would not be seen
    with pytest.raises(ValueError, match="a column train_reshaped_<modality>"):
        figures.plot_reshaped_share(metrics([0.1]))


def test_inner_labels_go_only_where_panels_share_the_axis():
    for share in (True, False):
        figure, axes = plt.subplots(1, 2, sharey=share)
        for ax in axes:
            figures.plot_accuracy(metrics([0.1, 0.2]), ax)
        assert axes[0].get_ylabel() == "validation accuracy (%)"
        assert bool(axes[1].get_ylabel()) is not share
        plt.close(figure)


# ---- labels and features ------------------------------------------------------------------------------------------


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


def test_label_rows_show_what_a_label_leaves_to_other_classes():
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


def test_label_rows_of_many_classes_write_the_true_one_only():
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
def test_label_rows_name_what_does_not_fit(change, message):
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
        ({"a": np.eye(3) * np.nan}, [0, 1, 2], "in 3 samples"),
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


def test_axes_given_are_drawn_on_and_must_be_complete():
    labels, targets, _ = reshaped()
    _, (first, second) = plt.subplots(1, 2, layout="constrained")
    panels = reproduction.plot_label_simplex(labels, targets, axes={"audio": first, "image": second})
    assert panels == {"audio": first, "image": second}
    with pytest.raises(ValueError, match="Missing 'image'"):
        reproduction.plot_label_simplex(labels, targets, axes={"audio": first})


def test_label_tsne_embeds_every_different_label_once():
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


def test_features_tsne_draws_every_sample_and_says_if_not():
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
    assert panels["audio", "d"].get_xlabel() == "samples with the class in the top 3 (%)"
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


def test_surface_writes_means_and_frames_the_best():
    table = pd.DataFrame({
        "alpha": [1, 1, 2, 2, 1], "beta": [0, 0.5, 0, 0.5, 0.5], "accuracy": [0.5, 0.6, 0.9, 0.7, 0.8],
    }).drop(index=3)  # fmt: skip
    ax = figures.plot_surface(table)
    assert [text.get_text() for text in ax.texts] == ["50.0", "90.0", "70.0", "–"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("α", "β")
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["1", "2"]
    assert {patch.get_xy() for patch in ax.patches} == {(0.5, -0.5)}
    assert not texts_overlap(ax)
    draw(ax)


def test_text_on_the_surface_can_be_read():
    table = pd.DataFrame([(x, y, (x + y) / 20) for x in range(6) for y in range(6)], columns=["a", "b", "v"])
    ax = figures.plot_surface(table, "a", "b", "v", label="share (%)")
    image = ax.images[0]
    for text, value in zip(ax.texts, image.get_array().compressed(), strict=True):
        red, green, blue, _ = image.cmap(image.norm(value))
        ground = 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2
        contrast = (1.05 if text.get_color() == "white" else ground + 0.05) / (
            ground + 0.05 if text.get_color() == "white" else 0.05
        )
        assert contrast > 4


def test_bad_tables():
    table = pd.DataFrame({"alpha": [1.0], "beta": [0.1], "accuracy": [np.nan], "method": ["a"]})
    with pytest.raises(ValueError, match="should hold finite numbers"):
        figures.plot_surface(table)
    with pytest.raises(ValueError, match=r"no column 'alhpa' \(`x`\).*Did you mean 'alpha'"):
        figures.plot_surface(table, "alhpa")
    with pytest.raises(ValueError, match="no column 'method'"):
        figures.plot_methods(pd.DataFrame({"accuracy": [0.1]}))
    with pytest.raises(ValueError, match="a column accuracy"):
        figures.plot_methods(pd.DataFrame({"method": ["a"]}))
    with pytest.raises(ValueError, match="no column 'accuracy_x'"):
        figures.plot_methods(table, measures=["accuracy_x"])


def test_bars_are_means_with_every_run_on_them():
    table = pd.DataFrame({"method": ["A", "B", "A"], "accuracy": [0.5, 0.9, 0.7], "accuracy_audio": [0.2, np.nan, 0.4]})
    ax = figures.plot_methods(table, majority=0.25)
    assert sorted(bar.get_width() for bar in ax.patches) == pytest.approx([30, 60, 90])
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["A", "B"]
    dots = [c for c in ax.collections if len(c.get_offsets()) == 2]
    assert sorted(np.asarray(dots[0].get_offsets())[:, 0]) == pytest.approx([50, 70])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["fused", "audio", "majority rate"]
    assert not texts_overlap(ax)
    draw(ax)
