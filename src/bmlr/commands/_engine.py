"""Options of the commands that make many runs."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Literal

from bmlr.config import TrainerOptions

if TYPE_CHECKING:
    from bmlr.benchmark.engines import Engine

_HARDWARE = ("accelerator", "devices", "precision", "num_nodes")


@dataclasses.dataclass
class EngineOptions:
    """Where the runs are made.

    Attributes:
        engine: Where the runs are made: local (this machine) or ray (a Ray cluster).
        processes: Runs at a time; by default one (local), or one per core (a Ray started here).
        address: Address of a Ray cluster, or auto; by default Ray is started on this machine.
        cpus_per_run: Cores of a run under Ray.
        gpus_per_run: GPUs of a run under Ray, 0.5 to let two share one; by default one where there are some.
    """

    engine: Literal["local", "ray"] = "local"
    processes: int | None = None
    address: str | None = None
    cpus_per_run: int = 1
    gpus_per_run: float | None = None

    def make(self, trainer: TrainerOptions | None) -> Engine:
        """The engine of these options.

        Args:
            trainer: Options of the runs, checked here if this machine makes them: else each run would fail by itself.

        Raises:
            ValueError: If an option of Ray's is given with the local engine, or this machine lacks a device.
        """
        from bmlr.benchmark.engines import LocalEngine, RayEngine

        if self.engine == "ray":
            return RayEngine(self.address, self.processes, self.cpus_per_run, self.gpus_per_run)
        for name, given in (("address", self.address is not None), ("gpus-per-run", self.gpus_per_run is not None)):
            if given:
                raise ValueError(f"Option --{name} is for --engine ray only.")
        if trainer is not None and any(getattr(trainer, name) != getattr(TrainerOptions(), name) for name in _HARDWARE):
            from bmlr.training import check_hardware

            check_hardware(trainer)
        return LocalEngine(1 if self.processes is None else self.processes)
