"""Statistics, faults and a contact sheet of a data set."""

from bmlr.data.inspection._report import Duplicates, Inspection, Leak, SplitReport, inspect_data
from bmlr.data.inspection._sheet import contact_sheet
from bmlr.data.inspection._statistics import InputReport, ValueRange

__all__ = [
    "Duplicates",
    "InputReport",
    "Inspection",
    "Leak",
    "SplitReport",
    "ValueRange",
    "contact_sheet",
    "inspect_data",
]
