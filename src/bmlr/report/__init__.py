"""Report of runs as one self-contained HTML page.

Needs the ``train`` extra: ``pip install "bmlr[train]"``.
"""

from bmlr.report._page import Report, write_report
from bmlr.report._sections import ExcludedRun

__all__ = ["ExcludedRun", "Report", "write_report"]
