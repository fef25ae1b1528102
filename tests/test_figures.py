import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from axes import draw, legend_texts, record_figures, shown_texts, texts_overlap, title_of
from bmlr import figures
from bmlr.cli import main
from bmlr.figures.style import plain_text, point_look, ratio_ticks, save, set_title
from bmlr.runs import read_metrics
from fabric import make_run


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def metrics(values):
    return pd.DataFrame({"epoch": range(len(values)), "val_accuracy": values, "val_accuracy_audio": values[::-1]})


def test_curves_are_the_metrics_in_percent():
    ax = figures.plot_scores(metrics([0.2, 0.5, 0.9]))
    fused, audio = ax.get_lines()
    assert fused.get_label() == "multimodal"
    assert list(fused.get_xdata()) == [1, 2, 3]
    assert list(fused.get_ydata()) == pytest.approx([20, 50, 90])
    assert list(audio.get_ydata()) == pytest.approx([90, 50, 20])
    assert not ax.collections


def test_several_runs_are_drawn_as_mean_and_band():
    ax = figures.plot_scores({"a": metrics([0.2, 0.4]), "b": metrics([0.4, 0.8])})
    assert list(ax.get_lines()[0].get_ydata()) == pytest.approx([30, 60])
    band = ax.collections[0].get_paths()[0].vertices[:, 1]
    # One sample standard deviation of two values is their distance over the root of two.
    assert band.min() == pytest.approx(30 - 20 / 2**0.5)
    assert band.max() == pytest.approx(60 + 40 / 2**0.5)


def test_curves_use_given_axes_and_name_missing_columns(tmp_path):
    _, ax = plt.subplots()
    assert figures.plot_scores(metrics([0.1, 0.2]), ax, linewidth=3) is ax
    assert ax.get_lines()[0].get_linewidth() == 3
    with pytest.raises(ValueError, match="`metrics` should hold a column val_accuracy"):
        figures.plot_scores(pd.DataFrame({"epoch": [0]}))
    with pytest.raises(ValueError, match="`metrics` should hold a column val_accuracy"):
        figures.plot_scores({})
    with pytest.raises(FileNotFoundError, match="There are no metrics in"):
        read_metrics(tmp_path)
    metrics([0.1, 0.2]).to_csv(tmp_path / "metrics.csv", index=False)
    pd.testing.assert_frame_equal(read_metrics(tmp_path), metrics([0.1, 0.2]))


def test_runs_of_different_lengths_or_columns_are_refused():
    with pytest.raises(ValueError, match="the same epochs"):
        figures.plot_scores({"a": metrics([0.1, 0.2]), "b": metrics([0.1, 0.2, 0.3])})
    with pytest.raises(ValueError, match="val_accuracy_audio is not in all"):
        figures.plot_scores({"a": metrics([0.1]), "b": metrics([0.1]).drop(columns="val_accuracy_audio")})
    with pytest.raises(ValueError, match="a column epoch"):
        figures.plot_scores(metrics([0.1]).drop(columns="epoch"))


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


def test_the_ratios_of_all_panels_are_inside_their_one_axis():
    axes = plt.subplots(1, 3, sharey=True)[1]
    for ax, ratio in zip(axes, (3.0, 0.25, 1.1), strict=True):
        table = pd.DataFrame({"epoch": [0, 1], "val_ratio_a_b": [1.0, ratio]})
        figures.plot_ratio({"x": table, "y": table.assign(val_ratio_a_b=[1.0, 1.2 * ratio])}, ax)
    for ax in axes:
        low, high = ax.get_ylim()
        assert low < ax.dataLim.y0 <= ax.dataLim.y1 < high
        assert max(ax.get_yticks()) >= 3
        assert min(ax.get_yticks()) <= 0.3


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
            figures.plot_scores(metrics([0.1, 0.2]), ax)
        assert axes[0].get_ylabel() == "validation accuracy (%)"
        assert bool(axes[1].get_ylabel()) is not share
        plt.close(figure)


# ---- labels and features ------------------------------------------------------------------------------------------


def test_surface_writes_means_and_frames_the_best():
    table = pd.DataFrame({
        "alpha": [1, 1, 2, 2, 1], "beta": [0, 0.5, 0, 0.5, 0.5], "accuracy": [0.5, 0.6, 0.9, 0.7, 0.8],
    }).drop(index=3)  # fmt: skip
    ax = figures.plot_surface(table)
    assert [text.get_text() for text in ax.texts] == ["50.0", "90.0", "70.0", "–"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("α", "β")
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["1", "2"]
    assert {patch.get_xy() for patch in ax.patches} == {(0.5, -0.5)}
    assert legend_texts(ax.get_figure()) == ["best value, 90.0"]
    assert ax.get_legend().get_title().get_text() == "–: not run"
    assert not texts_overlap(ax)
    draw(ax)


def test_equal_values_of_the_surface_all_have_a_frame():
    table = pd.DataFrame({"alpha": [1, 1, 2, 2], "beta": [0, 0.5, 0, 0.5], "accuracy": [0.9, 0.5, 0.9, 0.1]})
    ax = figures.plot_surface(table)
    assert {patch.get_xy() for patch in ax.patches} == {(-0.5, -0.5), (0.5, -0.5)}
    assert legend_texts(ax.get_figure()) == ["best value, 90.0"]


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
    ax = figures.plot_methods(table, constant=0.25)
    assert sorted(bar.get_width() for bar in ax.patches) == pytest.approx([30, 60, 90])
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["A", "B"]
    dots = [c for c in ax.collections if len(c.get_offsets()) == 2]
    assert sorted(np.asarray(dots[0].get_offsets())[:, 0]) == pytest.approx([50, 70])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "multimodal", "audio", "one run", "majority rate", "± one standard deviation",
    ]  # fmt: skip
    assert not texts_overlap(ax)
    draw(ax)


# ---- figures of a command -----------------------------------------------------------------------------------------

NAMES = ("_au$dio", "im$age_2")


def test_compare_draws_titles_explained_marks_and_names_as_they_are(tmp_path, monkeypatch, capsys):
    for seed in (0, 1):
        for method, fused in (("Joint", 0.7), ("BMLR", 0.8), ("DGL", 0.75), ("OPM", 0.7), ("AGM", 0.6)):
            make_run(
                tmp_path / "runs" / f"{method}{seed}", method, seed, fused=fused + 0.05 * seed, audio=0.84 + 0.1 * seed,
                image=0.4, modalities=NAMES, data="$5 and $6",
            )  # fmt: skip
    saved = record_figures(monkeypatch)
    assert main(["compare", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    accuracy, ratio, bars = saved[::2]  # each as PNG and as PDF
    about = "\\$5 and \\$6, clean protocol"
    assert title_of(accuracy) == f"{about}: validation accuracy per epoch"
    assert title_of(ratio) == f"{about}: ratio of validation accuracies per epoch"
    assert title_of(bars) == f"{about}: test accuracy in the epoch selected on validation"
    assert legend_texts(accuracy)[-1] == "± one standard deviation"
    assert {"one run", "± one standard deviation", "majority rate"} <= set(legend_texts(bars))
    for figure in (accuracy, bars):
        assert {*NAMES, "multimodal"} <= shown_texts(figure)
    assert " / ".join(NAMES) in shown_texts(ratio)
    # The band reaches 2.35: labels go that far, and the panels above an empty place have theirs.
    panel = ratio.axes[0]
    assert max(panel.get_yticks()) == 2
    assert panel.get_ylim()[1] < 2.7
    labelled = [ax.get_visible() and ax.get_xlabel() == "epoch" for ax in accuracy.axes]
    assert labelled == [False, False, True, True, True, False]


def test_ticks_of_a_ratio_reach_over_any_range():
    for low in (0.001, 0.05, 0.3, 0.7, 0.95):
        for high in (1.05, 1.4, 2.1, 3.5, 9, 40, 900):
            ticks = ratio_ticks(low, high)
            assert 1 in ticks
            assert 2 <= len(ticks) <= 8 or (low, high) == (0.95, 1.05)
            assert ticks[0] < 10 * low
            assert ticks[-1] * (2.01 if low >= 0.3 and high < 20 else 10) > high


def test_names_are_drawn_as_they_are(tmp_path, monkeypatch):
    from matplotlib import font_manager
    from matplotlib.figure import Figure

    names = ["$x_1$ and $y$", "\\$", "_hidden", "a\udcffb", "tab\tname", "\u202eabc", "<b>[i]&</b>", "100 %"]
    figure = Figure()
    ax = figure.add_subplot()
    for name in names:
        ax.plot([0, 1], label=plain_text(name))
    ax.legend()
    set_title(figure, " ".join(names))
    save(figure, tmp_path / "a.png", format="png")  # a warning is an error here
    assert shown_texts(figure) >= {"$x_1$ and $y$", "_hidden", "a\\udcffb", "tab\\tname", "\u202eabc", "<b>[i]&</b>"}
    assert len(ax.get_legend().get_texts()) == len(names)
    assert plain_text("the first of many long names", 11) == "the f…names"

    figure.suptitle("日本")
    monkeypatch.setattr(font_manager, "get_font_names", lambda: ["DejaVu Sans"])
    with pytest.warns(UserWarning, match="no installed font has: they are drawn as boxes. Install a font"):
        save(figure, tmp_path / "b.png", format="png")


def test_ten_classes_have_ten_colours_and_markers():
    looks = [point_look(number) for number in range(110)]
    assert len({look["color"] for look in looks[:10]}) == len({look["marker"] for look in looks[:10]}) == 10
    assert len({tuple(look.values()) for look in looks}) == 110


def test_undefined_curves_and_single_epochs():
    table = pd.DataFrame({"epoch": [0], "val_accuracy_a": 0.5, "val_accuracy_b": 0.0, "val_ratio_a_b": [np.nan]})
    ax = figures.plot_ratio(table)
    assert legend_texts(ax.get_figure()) == ["a / b (not defined)", "balanced (1)"]
    assert list(figures.plot_scores(table.assign(val_accuracy=0.5)).get_xticks()) == [1]
