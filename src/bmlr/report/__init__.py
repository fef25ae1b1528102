"""A report of runs: one HTML page that needs nothing else, with tables, curves, figures and what was left out.

Needs the ``train`` extra: ``pip install "bmlr[train]"``.
"""

from bmlr.report._page import Report, write_report

__all__ = ["Report", "write_report"]
