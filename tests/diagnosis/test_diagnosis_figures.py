import dataclasses

import pytest
import torch
from matplotlib import pyplot as plt

from axes import draw, legend_texts, title_of
from bmlr.diagnosis import diagnose
from bmlr.diagnosis.figures import (
    draw_figures,
    plot_accuracies,
    plot_confidence,
    plot_conflict,
    plot_gradient_norms,
    plot_probes,
    plot_shapley,
)
from bmlr.diagnosis.probes import ProbeResult


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def small_diagnosis(**options):
    targets = torch.arange(200) % 2
    inputs = {"audio": 2.0 * targets[:, None] - 1, "video": torch.randn(200, 1)}

    def predict(x):
        score = 3 * x["audio"] + x["video"]
        return torch.cat([-score, score], 1)

    return diagnose(predict, [(inputs, targets)], module=[], **options)


def probes():
    hits = torch.arange(100)
    return {
        u: ProbeResult(hits < 60, hits < 80, hits < 50, hits < 75, torch.zeros(100).long()) for u in ("audio", "video")
    }


def heights(ax):
    return [[bar.get_height() for bar in bars] for bars in ax.containers if hasattr(bars, "patches")]


def test_bars_are_the_numbers_in_percent():
    diagnosis = small_diagnosis(reference={"video": 0.9})
    ax = plot_accuracies(diagnosis)
    alone, trained, without = heights(ax)
    assert alone == pytest.approx([100 * m.alone.value for m in diagnosis.modalities.values()])
    assert trained == pytest.approx([90])
    assert without == pytest.approx([100 * m.without.value for m in diagnosis.modalities.values()])
    assert [text.get_text() for text in ax.get_xticklabels()] == ["audio", "video"]
    (shapley,) = heights(plot_shapley(diagnosis))
    assert sum(shapley) == pytest.approx(100 * (diagnosis.accuracy.value - diagnosis.majority_rate))
    size, signed = heights(plot_confidence(diagnosis))
    assert size[0] >= abs(signed[0])
    with pytest.raises(ValueError, match="`diagnosis` should have probes"):
        plot_probes(diagnosis)


def test_probes_use_given_axes():
    diagnosis = small_diagnosis(reference=probes())
    _, ax = plt.subplots()
    assert plot_probes(diagnosis, ax) is ax
    assert heights(ax) == [pytest.approx([value] * 2) for value in (50, 60, 80)]


def test_curves_over_steps():
    rows = [{"step": 10.0 * i, "norm_a": float(i), "norm_v": 1.0} for i in range(9)]
    rows[0]["conflict_v"], rows[4]["conflict_v"] = -0.5, float("nan")
    ax = plot_gradient_norms(rows, window=3)
    assert ax.get_yscale() == "linear"  # a norm is zero
    assert list(ax.get_lines()[1].get_ydata()) == [0.5, 1, 2, 3, 4, 5, 6, 7, 7.5]
    assert plot_gradient_norms(rows[1:]).get_yscale() == "log"
    curve = plot_conflict(rows).get_lines()[1]
    assert (list(curve.get_xdata()), list(curve.get_ydata())) == ([0], [-0.5])
    with pytest.raises(ValueError, match="`rows` should hold numbers named conflict_"):
        plot_conflict(rows[1:4])


def test_figures_of_all_measured_numbers():
    assert list(draw_figures(small_diagnosis())) == ["accuracies", "shapley", "confidence"]
    rows = [{"step": 0.0, "norm_audio": 1.0, "norm_video": 2.0}]
    diagnosis = dataclasses.replace(small_diagnosis(reference=probes()), gradient_rows=rows)
    diagnosis = dataclasses.replace(diagnosis, subject="Joint on toy, validation split, best weights")
    figures = draw_figures(diagnosis)
    assert list(figures) == ["accuracies", "shapley", "confidence", "probes", "gradients"]
    assert not plt.get_fignums()
    for name, figure in figures.items():
        # What is recorded while a model trains is of no split and no chosen epoch.
        assert ("validation split" in title_of(figure)) == (name != "gradients")
        assert ("95 % interval" in legend_texts(figure)) == (name != "gradients")


def test_norms_of_few_powers_of_ten_have_ticks_apart():
    rows = [{"step": float(i), "norm_a": 0.6 + i, "norm_v": 1.0} for i in range(6)]
    ax = plot_gradient_norms(rows)
    draw(ax)
    ticks = [label.get_window_extent() for label in ax.get_yticklabels(which="both") if label.get_text()]
    assert len(ticks) >= 4
    assert not any(a.overlaps(b) for index, a in enumerate(ticks) for b in ticks[:index])
