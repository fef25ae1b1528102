import pandas as pd
import pytest
from matplotlib import pyplot as plt

from bmlr import figures


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
    assert band.min() == pytest.approx(20)
    assert band.max() == pytest.approx(80)


def test_it_draws_where_it_is_told_and_says_what_is_missing(tmp_path):
    _, ax = plt.subplots()
    assert figures.plot_accuracy(metrics([0.1, 0.2]), ax, linewidth=3) is ax
    assert ax.get_lines()[0].get_linewidth() == 3
    with pytest.raises(ValueError, match="`metrics` should hold a column val_accuracy"):
        figures.plot_accuracy(pd.DataFrame({"epoch": [0]}))
    with pytest.raises(ValueError, match="`metrics` should hold a column val_accuracy"):
        figures.plot_accuracy({})
    with pytest.raises(FileNotFoundError, match="There are no metrics in"):
        figures.read_metrics(tmp_path)
    metrics([0.1, 0.2]).to_csv(tmp_path / "metrics.csv", index=False)
    pd.testing.assert_frame_equal(figures.read_metrics(tmp_path), metrics([0.1, 0.2]))
