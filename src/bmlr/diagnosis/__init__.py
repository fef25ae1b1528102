"""Diagnosis of undertrained modalities, of a run or any model, and robustness to missing and noisy ones.

:func:`diagnose` and :func:`diagnose_run` measure and judge. The measures are functions in
:mod:`bmlr.diagnosis.measures`, linear probes are in :mod:`bmlr.diagnosis.probes`, plots in
:mod:`bmlr.diagnosis.figures`. Importing needs torch and numpy only; runs, probes, tables and figures import further
packages when used.
"""

from bmlr.diagnosis._blind import BlindModalityTest, WayEffect, blind_modality_test
from bmlr.diagnosis._diagnose import diagnose
from bmlr.diagnosis._diagnosis import Diagnosis, ModalityMeasures, PairMeasures
from bmlr.diagnosis._judge import Thresholds
from bmlr.diagnosis._replacements import RemovalOptions
from bmlr.diagnosis._resampling import IntervalEstimate
from bmlr.diagnosis._robustness import LEVELS, RATES, CorruptedScore, Levels, Robustness, measure_robustness
from bmlr.diagnosis._robustness_run import measure_run_robustness, write_robustness
from bmlr.diagnosis._run import diagnose_run
from bmlr.diagnosis._verdict import Verdict
from bmlr.diagnosis._writing import write_diagnosis

__all__ = [
    "LEVELS",
    "RATES",
    "BlindModalityTest",
    "CorruptedScore",
    "Diagnosis",
    "IntervalEstimate",
    "Levels",
    "ModalityMeasures",
    "PairMeasures",
    "RemovalOptions",
    "Robustness",
    "Thresholds",
    "Verdict",
    "WayEffect",
    "blind_modality_test",
    "diagnose",
    "diagnose_run",
    "measure_robustness",
    "measure_run_robustness",
    "write_diagnosis",
    "write_robustness",
]
