"""Whether the steps of a run can be graphs."""

from __future__ import annotations

import logging

import lightning
import torch
from lightning.pytorch.callbacks import Callback

from bmlr.config import TrainerOptions
from bmlr.methods import Method, available, get
from bmlr.training._graph import Backend, CapturedStep, CudaGraphs
from bmlr.training._module import BalancedModule

_log = logging.getLogger("bmlr.training")


def graph_backend(device: torch.device) -> Backend | None:
    """What captures graphs on a device; None where nothing does."""
    return CudaGraphs(device) if device.type == "cuda" else None


def why_no_graph(options: TrainerOptions, method: Method, processes: int) -> str:
    """Why no device could run the steps of a run as graphs, a clause; empty where one can."""
    if processes > 1:
        return f"{processes} processes exchange gradients within a step"
    if options.compile:
        return "--trainer.compile makes other kernels of the encoders"
    if options.precision not in {"32-true", "bf16-mixed"}:
        return f"graphs are for the precisions 32-true and bf16-mixed, and this one is {options.precision}"
    if options.modality_dropout:
        return "--trainer.modality_dropout gives every step other numbers of samples"
    kind = type(method)
    if "graph_reason" not in vars(kind) and not (kind.__name__ in available() and get(kind.__name__) is kind):
        return f"{kind.__name__} does not say by `graph_reason` that one can hold its step"
    return method.graph_reason and f"{kind.__name__} {method.graph_reason}"


class GraphCallback(Callback):
    """Has the steps of a run be graphs, or says why they cannot be.

    Args:
        options: Options of the trainer.
    """

    def __init__(self, options: TrainerOptions) -> None:
        self._options = options

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Ask whether they can be, once the device is known."""
        if not isinstance(pl_module, BalancedModule):
            raise TypeError(f"Only a BalancedModule can take its steps as graphs. Found {type(pl_module).__name__}.")
        device = trainer.strategy.root_device
        backend = graph_backend(device)
        reason = why_no_graph(self._options, pl_module.method, trainer.world_size)
        if backend is None:
            reason = f"graphs are for CUDA devices, and this run is on {device.type}"
        if backend is not None and not reason:
            pl_module.captured_step = CapturedStep(pl_module.model, pl_module.method, backend)
        elif trainer.is_global_zero:
            _log.warning("--trainer.graph auto: the steps run without graphs, since %s.", reason)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Say where no batch was one that a graph could compute."""
        step = pl_module.captured_step if isinstance(pl_module, BalancedModule) else None
        if step is not None and not step.replays:
            _log.warning(
                "--trainer.graph auto: no step was a graph. It takes more than three batches of one size, whose "
                "samples have every modality."
            )
