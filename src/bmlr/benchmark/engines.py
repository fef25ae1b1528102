"""Engines for the runs of a grid: local or Ray."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Literal, Protocol

from bmlr._checks import check_integer, check_non_negative
from bmlr._processors import count_processors
from bmlr.runs.layout import LOG

#: Exit status of a run whose machine was lost as often as Ray may try again.
LOST = 1000
_GRACE = 15.0  # seconds a run gets to leave a checkpoint when it has to end
_RAY_VARIABLES = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_niceness": "0",  # a run is no background work
}


@dataclasses.dataclass(frozen=True)
class Task:
    """Description of a run for the process that makes it.

    Attributes:
        directory: Directory of the run, which holds its ``config.yaml``.
        modules: Modules of the user's own classes.
        paths: Where Python looks for modules.
        folder: Working directory: paths in the configuration may be relative to it.
    """

    directory: Path
    modules: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    folder: Path = dataclasses.field(default_factory=Path.cwd)


class Engine(Protocol):
    """Makes runs."""

    def execute(self, tasks: Sequence[Task]) -> Iterator[tuple[Task, int]]:
        """Make the runs; yield each task with its exit status."""


@dataclasses.dataclass(frozen=True)
class LocalEngine:
    """Runs on this machine.

    Args:
        processes: Runs at a time. The cores are shared out among them by ``OMP_NUM_THREADS``, unless that is set.
    """

    processes: int = 1

    def __post_init__(self) -> None:
        check_integer("processes", self.processes, 1)

    def execute(self, tasks: Sequence[Task]) -> Iterator[tuple[Task, int]]:
        """Make the runs; yield each task with its exit status."""
        environment = _threads(max(1, count_processors() // self.processes))
        started: list[subprocess.Popen[bytes]] = []
        pool = ThreadPoolExecutor(self.processes)
        try:
            waiting: dict[Future[int], Task] = {
                pool.submit(run_task, task, environment, started): task for task in tasks
            }
            while waiting:
                done, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    yield waiting.pop(future), future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in started:
                if process.stdin is not None and not process.stdin.closed:
                    process.stdin.close()  # all end at the same time
            for process in started:
                _end(process)
            pool.shutdown()


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

    def execute(self, tasks: Sequence[Task]) -> Iterator[tuple[Task, int]]:
        """Make the runs; yield each task with its exit status.

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
            environment = _threads(self.cpus_per_run) | ({} if gpus else {"CUDA_VISIBLE_DEVICES": ""})
            make_run = ray.remote(
                num_cpus=self.cpus_per_run, num_gpus=gpus, max_retries=self.max_retries, retry_exceptions=True
            )(run_task)
            waiting |= {make_run.remote(task, environment): task for task in tasks}
            while waiting:
                (ended,), _ = ray.wait(list(waiting), num_returns=1)
                yield waiting.pop(ended), _exit_status(ray, ended)
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


def run_task(task: Task, environment: Mapping[str, str], started: list[subprocess.Popen[bytes]] | None = None) -> int:
    """Make a run in a process of its own.

    Args:
        task: The run.
        environment: Variables added to those of this process.
        started: Takes the process, for a caller that may have to end it.

    Returns:
        Its exit status, negative for a signal.
    """
    command = [sys.executable, "-m", "bmlr.benchmark._worker", str(task.directory), *task.modules]
    variables = {**os.environ, **environment}
    if task.paths:
        variables["PYTHONPATH"] = os.pathsep.join(task.paths)
    with (task.directory / LOG).open("ab") as log:
        process = subprocess.Popen(  # noqa: S603
            command,
            stdin=subprocess.PIPE,  # its end tells the run that this process is gone
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=task.folder,
            env=variables,
            start_new_session=True,  # an interrupt from the keyboard is for this process, which then ends the runs
        )
        if started is not None:
            started.append(process)
        try:
            return process.wait()
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and its children."""
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_GRACE)
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL) if hasattr(os, "killpg") else process.kill()
        process.wait()


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


def _threads(number: int) -> dict[str, str]:
    """Threads of a run: those the user has set, or ``number``."""
    return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(number))}


def make_engine(
    *,
    engine: Literal["local", "ray"] = "local",
    processes: int | None = None,
    address: str | None = None,
    cpus_per_run: int = 1,
    gpus_per_run: float | None = None,
) -> Engine:
    """The engine of the command line's options.

    Args:
        engine: Where the runs are made: local (this machine) or ray.
        processes: Runs at a time; None is one (local), or one per core (a Ray started here).
        address: Address of a Ray cluster, or auto; None starts Ray on this machine.
        cpus_per_run: Cores of a run under Ray.
        gpus_per_run: GPUs of a run under Ray, 0.5 to let two share one; None is one where there are some.

    Raises:
        ValueError: If an option of Ray's is given with the local engine.
    """
    if engine == "ray":
        return RayEngine(address, processes, cpus_per_run, gpus_per_run)
    for name, options in (("address", address is not None), ("gpus-per-run", gpus_per_run is not None)):
        if options:
            raise ValueError(f"Option --{name} is for --engine ray only.")
    return LocalEngine(processes or 1)
