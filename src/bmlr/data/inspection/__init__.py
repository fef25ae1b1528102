"""Statistics and faults of a data set, and a contact sheet of its samples."""

from bmlr.data.inspection._report import (
    Duplicates,
    InputReport,
    Inspection,
    Leak,
    SplitReport,
    inspect_data,
)
from bmlr.data.inspection._sheet import contact_sheet

__all__ = ["Duplicates", "InputReport", "Inspection", "Leak", "SplitReport", "contact_sheet", "inspect_data"]
