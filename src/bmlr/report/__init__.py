"""Report of runs as one self-contained HTML page.

Needs the ``train`` extra: ``pip install "bmlr[train]"``.
"""

from bmlr._extras import missing_extra

try:
    from bmlr.report._page import Report, write_report
    from bmlr.report._sections import ExcludedRun
except ModuleNotFoundError as error:
    raise missing_extra(error) from error

__all__ = ["ExcludedRun", "Report", "write_report"]
