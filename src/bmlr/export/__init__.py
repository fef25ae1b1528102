"""Models as files for services: ``torch.export`` programs, ONNX, plain weights, model cards.

Needs the ``train`` extra; ONNX needs the ``export`` extra too: ``pip install "bmlr[train,export]"``.
"""

from bmlr._extras import missing_extra

try:
    from bmlr.export._export import Export, export_model, export_run
except ModuleNotFoundError as error:
    raise missing_extra(error) from error

__all__ = ["Export", "export_model", "export_run"]
