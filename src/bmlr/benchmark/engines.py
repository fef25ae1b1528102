"""Engines for the runs of a grid: local or Ray."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from bmlr._checks import check_integer, check_non_negative
from bmlr._processors import SHARE, count_processors
from bmlr.benchmark._server import Task, borrow_server

#: Exit status of a run whose machine was lost as often as Ray may try again.
LOST = 1000
_GRACE = 15.0  # seconds a run gets to leave a checkpoint when it has to end
_TICK = 0.5  # seconds between two looks at what goes on
_RAY_VARIABLES = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_niceness": "0",  # a run is no background work
}


class Engine(Protocol):
    """Maker of runs."""

    def execute(self, tasks: Sequence[Task]) -> Iterator[tuple[Task, int] | None]:
        """Make the runs; yield each task with its exit status.

        In between, None is yielded about once a second, for the caller to show progress.
        """


@dataclasses.dataclass(frozen=True)
class LocalEngine:
    """Runs on this machine.

    Args:
        processes: Runs at a time. The processors are shared out among them.
    """

    processes: int = 1

    def __post_init__(self) -> None:
        check_integer("processes", self.processes, 1)

    def environment(self) -> dict[str, str]:
        """Variables of a run: its share of the processors."""
        return {SHARE: str(max(1, count_processors() // self.processes))}

    def execute(self, tasks: Sequence[Task]) -> Iterator[tuple[Task, int] | None]:
        """Make the runs; yield each task with its exit status, and None in between."""
        environment = self.environment()
        waiting = list(reversed(tasks))
        with borrow_server() as server:
            while waiting or server.running:
                while waiting and len(server.running) < self.processes:
                    server.start(waiting.pop(), environment)
                yield server.wait(_TICK)


@dataclasses.dataclass(frozen=True)
class RayEngine:
    """Runs as tasks of Ray, retried when a machine is lost.

    All machines must see the folder of the runs, the data and this package under the same paths. A run that was lost
    resumes from its last checkpoint.

    Args:
        address: Address of a cluster, or auto for the one this machine belongs to; None starts one on this machine.
        processes: Runs at a time on a cluster started here; None is one per ``cpus_per_run`` cores.
        cpus_per_run: Cores of a run.
        gpus_per_run: GPUs of a run; runs share one where it is a fraction; None is one where the cluster has some.
        max_retries: How often Ray tries a lost run again.
    """

    address: str | None = None
    processes: int | None = None
    cpus_per_run: int = 1
    gpus_per_run: float | None = None
    max_retries: int = 3

    def __post_init__(self) -> None:
        if self.processes is not None:
            check_integer("processes", self.processes, 1)
        check_integer("cpus_per_run", self.cpus_per_run, 1)
        if self.gpus_per_run is not None:
            check_non_negative("gpus_per_run", self.gpus_per_run)
        if (self.gpus_per_run or 0) > 1 and self.gpus_per_run != int(self.gpus_per_run or 0):
            raise ValueError(
                "Parameter `gpus_per_run` should be a fraction of one GPU or a whole number. "
                f"Found `gpus_per_run = {self.gpus_per_run}`."
            )
        check_integer("max_retries", self.max_retries, 0)

    def execute(self, tasks: Sequence[Task]) -> Iterator[tuple[Task, int] | None]:
        """Make the runs; yield each task with its exit status, and None in between.

        Raises:
            ValueError: If Ray is not installed, the cluster cannot be reached, or no run can ever fit on it.
        """
        for name, value in _RAY_VARIABLES.items():
            os.environ.setdefault(name, value)
        try:
            import ray
        except ModuleNotFoundError as error:
            raise ValueError('Engine ray needs Ray. Run: pip install "bmlr[sweep]"') from error
        self._connect(ray)
        waiting: dict[Any, Task] = {}
        try:
            gpus = self._gpus(ray)
            # Without a fraction of a GPU a run must not take one that others were promised.
            environment = {SHARE: str(self.cpus_per_run)} | ({} if gpus else {"CUDA_VISIBLE_DEVICES": ""})
            make_run = ray.remote(
                num_cpus=self.cpus_per_run, num_gpus=gpus, max_retries=self.max_retries, retry_exceptions=True
            )(run_task)
            waiting |= {make_run.remote(task, environment): task for task in tasks}
            while waiting:
                ended, _ = ray.wait(list(waiting), num_returns=1, timeout=_TICK)
                yield (waiting.pop(ended[0]), _exit_status(ray, ended[0])) if ended else None
        finally:
            if waiting:  # interrupted: a cancelled run leaves a checkpoint before it ends
                for reference in waiting:
                    ray.cancel(reference)
                ray.wait(list(waiting), num_returns=len(waiting), timeout=_GRACE)
            ray.shutdown()

    def _connect(self, ray: Any) -> None:
        common = {"log_to_driver": False, "configure_logging": False}
        if self.address is not None:
            _check_reachable(self.address)
            try:
                ray.init(address=self.address, **common)
            except (ConnectionError, RuntimeError, ValueError) as error:
                reason = " ".join(str(error).split()).partition(". ")[0]
                # Ray itself offers its token to a cluster it found, but not to one whose address was given.
                token = "" if "RAY_AUTH_MODE" in os.environ else " If it asks for a token, set RAY_AUTH_MODE=token."
                raise ValueError(f"There is no Ray cluster at {self.address}: {reason}.{token}") from error
            return
        cores = self.processes * self.cpus_per_run if self.processes else max(count_processors(), self.cpus_per_run)
        ray.init(address="local", num_cpus=cores, include_dashboard=False, **common)

    def _gpus(self, ray: Any) -> float:
        """GPUs of a run, checked against the machines."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        cores, gpus = (max((float(node.get(name, 0)) for node in nodes), default=0.0) for name in ("CPU", "GPU"))
        gpus_per_run = min(gpus, 1.0) if self.gpus_per_run is None else self.gpus_per_run
        for resource, needed, largest in (("cores", self.cpus_per_run, cores), ("GPUs", gpus_per_run, gpus)):
            if needed > largest:
                raise ValueError(
                    f"A run needs {needed:g} {resource}, but no machine of the Ray cluster has more than {largest:g}."
                )
        return gpus_per_run


def run_task(task: Task, environment: Mapping[str, str]) -> int:
    """Make a run in a process of its own, and wait for it.

    Args:
        task: The run.
        environment: Variables added to those of this process.

    Returns:
        Its exit status, negative for a signal.
    """
    with borrow_server() as server:
        server.start(task, environment)
        while (ended := server.wait(_TICK)) is None:
            pass
    return ended[1]


def _exit_status(ray: Any, reference: Any) -> int:
    """Exit status of a run of Ray's; ``LOST`` after too many losses."""
    try:
        return int(ray.get(reference))
    except ray.exceptions.RayError:
        return LOST


def _check_reachable(address: str) -> None:
    """Raise at once if HOST:PORT does not listen; Ray takes minutes."""
    import socket

    host, separator, port = address.rpartition("://")[2].rpartition(":")
    if not separator or not port.isdecimal():
        return  # auto, local and the like
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise ValueError(f"There is no Ray cluster at {address}: {error}.") from error
