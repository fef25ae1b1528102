"""Diagnosis of balance: of a run, of a model of the library, or of any model given as a function.

:func:`diagnose` measures and judges; the measures are pure functions of their own. ``import bmlr.diagnosis`` needs
torch and numpy only; tables, figures, the Lightning callback and training alone import what they use.
"""

from __future__ import annotations

from bmlr.diagnosis._alone import train_alone
from bmlr.diagnosis._diagnosis import Diagnosis, ModalityMeasures, PairMeasures
from bmlr.diagnosis._figures import (
    figures_of,
    plot_accuracies,
    plot_confidence,
    plot_conflict,
    plot_gradient_norms,
    plot_probes,
    plot_shapley,
    write_diagnosis,
)
from bmlr.diagnosis._judge import Evidence, Thresholds, judge
from bmlr.diagnosis._linear import LinearProbe, extract_features, fit_linear_probe
from bmlr.diagnosis._measures import (
    Bootstrap,
    Estimate,
    accuracy,
    accuracy_ratio,
    changed_share,
    conditional_utilisation,
    confidence_gap,
    recovered_share,
    shapley_values,
)
from bmlr.diagnosis._measuring import diagnose
from bmlr.diagnosis._probe import ModalityGap, probe_gap, probe_gap_of
from bmlr.diagnosis._run import diagnose_run
from bmlr.diagnosis._words import Verdict

__all__ = [
    "Bootstrap",
    "Diagnosis",
    "Estimate",
    "Evidence",
    "LinearProbe",
    "ModalityGap",
    "ModalityMeasures",
    "PairMeasures",
    "Thresholds",
    "Verdict",
    "accuracy",
    "accuracy_ratio",
    "changed_share",
    "conditional_utilisation",
    "confidence_gap",
    "diagnose",
    "diagnose_run",
    "extract_features",
    "figures_of",
    "fit_linear_probe",
    "judge",
    "plot_accuracies",
    "plot_confidence",
    "plot_conflict",
    "plot_gradient_norms",
    "plot_probes",
    "plot_shapley",
    "probe_gap",
    "probe_gap_of",
    "recovered_share",
    "shapley_values",
    "train_alone",
    "write_diagnosis",
]
