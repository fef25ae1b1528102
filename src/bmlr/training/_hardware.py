"""Checks of the device, the processes and the memory of a run."""

from __future__ import annotations

import os
import re
import socket

import torch

from bmlr._checks import nearest_name
from bmlr._processors import count_processors
from bmlr.config import TrainerOptions
from bmlr.tables import format_count

_ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps", "tpu")
#: Words of the allocators of torch and of the system.
_OUT_OF_MEMORY = re.compile(
    r"out of memory|can't allocate memory|cannot allocate memory|not enough memory|ALLOC_FAILED|bad_alloc"
    r"|can't start new thread",
    re.IGNORECASE,
)
#: Loaders may wait for a disk or a network, so that more of them than processors can help.
_WORKERS_PER_PROCESSOR = 8


def check_hardware(options: TrainerOptions) -> None:
    """Check the options of the trainer against this machine.

    Raises:
        ValueError: If the accelerator, the devices or the precision are not available, or do not fit a job of SLURM.
    """
    accelerator = _check_accelerator(options.accelerator)
    if str(options.devices) in {"0", "[]", ""}:
        raise ValueError(
            "Option --trainer.devices should be a number of processes of at least 1, or auto. Found 0. For training "
            "without a GPU say --trainer.accelerator cpu."
        )
    if accelerator == "cuda" and (missing := _missing_gpus(str(options.devices))):
        raise ValueError(
            f"Option --trainer.devices asks for {missing}, and {_count_gpus()} can be used here. Leave it out to take "
            "all of them."
        )
    processors = max(2, count_processors())
    if accelerator == "cpu" and re.fullmatch(r"\d+", str(options.devices)) and int(options.devices) > processors:
        raise ValueError(
            f"Option --trainer.devices asks for {options.devices} processes on {processors} processors: they would "
            f"wait for each other. Take at most {processors}."
        )
    # Each holds hundreds of megabytes: a slip of the finger would take all memory before the first step.
    if options.num_workers > (most := _WORKERS_PER_PROCESSOR * processors):
        raise ValueError(
            f"Option --trainer.num_workers asks for {options.num_workers} processes that load data on {processors} "
            f"processors. Take at most {most}."
        )
    if options.precision == "16-mixed" and accelerator == "cpu":
        # Lightning would compute in bfloat16 instead, and the configuration would tell something else.
        raise ValueError(
            "Option --trainer.precision: 16-mixed needs a GPU. On the CPU say bf16-mixed, or leave it out."
        )
    if options.precision == "bf16-mixed" and accelerator == "cuda" and not torch.cuda.is_bf16_supported():
        raise ValueError(
            f"Option --trainer.precision: {torch.cuda.get_device_name()} cannot compute in bfloat16. Say 16-mixed, or "
            "leave it out."
        )
    if options.precision == "64-true" and accelerator == "mps":
        raise ValueError(
            "Option --trainer.precision: Apple's GPUs have no 64-true. Leave it out, or say --trainer.accelerator cpu."
        )
    _check_slurm(options)
    _check_machines(options.num_nodes)


def _check_accelerator(name: str) -> str:
    """The accelerator that Lightning will take for a name."""
    kind, _, index = name.partition(":")
    if index and kind in {"cuda", "gpu"}:
        raise ValueError(
            f"Option --trainer.accelerator takes a kind of device. Found {name}. For one certain GPU say "
            f"--trainer.accelerator gpu --trainer.devices {index},"
        )
    if name not in _ACCELERATORS:
        raise ValueError(
            f"Option --trainer.accelerator should be one of {', '.join(_ACCELERATORS)}. Found {name}."
            f"{nearest_name(name, _ACCELERATORS)}"
        )
    has_mps = torch.backends.mps.is_available()
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
    if name == "gpu" and has_mps:
        return "mps"
    if name in {"gpu", "cuda"} and not torch.cuda.is_available():
        raise ValueError(f"No GPU can be used: {_why_no_gpu()}. Leave out --trainer.accelerator to train on the CPU.")
    if name == "mps" and not has_mps:
        raise ValueError("No GPU of Apple's can be used here. Leave out --trainer.accelerator.")
    return "cuda" if name == "gpu" else name


def _why_no_gpu() -> str:
    if torch.version.cuda is None and torch.version.hip is None:
        return "this torch is a build for the CPU alone"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and not re.match(r"\s*(\d|GPU-|MIG-)", visible):
        return f"CUDA_VISIBLE_DEVICES is '{visible}', which hides all of them"
    return "torch finds no GPU or no driver (see nvidia-smi)"


def _count_gpus() -> str:
    return format_count(torch.cuda.device_count(), "GPU")


def _missing_gpus(devices: str) -> str | None:
    """The GPUs asked for that are not there, in words: a number of them, or indices such as ``0,2`` or ``1,``."""
    number = torch.cuda.device_count()
    if re.fullmatch(r"\d+", devices):
        return f"{devices} GPUs" if int(devices) > number else None
    indices = [index for index in re.findall(r"\d+", devices) if int(index) >= number] if devices != "auto" else []
    return f"GPU {', '.join(indices)}" if indices else None


def _check_slurm(options: TrainerOptions) -> None:
    """Raise a ValueError if SLURM's tasks are not the processes of the run.

    Else Lightning waits for processes that nobody starts.
    """
    tasks = os.environ.get("SLURM_NTASKS", "")
    if not tasks.isdecimal() or os.environ.get("SLURM_JOB_NAME") in {"bash", "interactive"}:
        return  # no SLURM to Lightning either
    if torch.distributed.is_available() and torch.distributed.is_torchelastic_launched():
        return  # torchrun has started the processes
    per_node = os.environ.get("SLURM_NTASKS_PER_NODE", "")
    if int(tasks) > 1 and not per_node:
        raise ValueError(
            f"The SLURM job has {tasks} tasks (--ntasks={tasks}). For one process say --ntasks=1, and --cpus-per-task "
            "for its processors; for several say --ntasks-per-node instead, and start them by srun with as many "
            "--trainer.devices."
        )
    devices = str(options.devices)
    if per_node.isdecimal() and devices.isdecimal() and per_node != devices:
        raise ValueError(
            f"The SLURM job has {per_node} tasks on each machine (--ntasks-per-node={per_node}), and --trainer.devices "
            f"is {devices}. Make them equal."
        )


def _check_machines(number: int) -> None:
    """Raise a ValueError if nothing tells which of several machines this one is.

    Else the run waits half an hour for the others, without a word.
    """
    launched = torch.distributed.is_available() and torch.distributed.is_torchelastic_launched()
    schedulers = {"SLURM_NTASKS", "LSB_JOBID", "NODE_RANK", "GROUP_RANK"} & set(os.environ)
    if number > 1 and not launched and not schedulers:
        raise ValueError(
            f"Option --trainer.num_nodes is {number}, and nothing tells which of the {number} machines this one is. "
            "Start the command on each of them by torchrun or srun, see docs/distributed.md, or leave the option out."
        )


def check_port(processes: int, rank: int) -> None:
    """Check that the first process of a run can listen where MASTER_PORT says.

    Else all of them would wait for each other.

    Args:
        processes: Processes of the run.
        rank: Rank of this one.

    Raises:
        ValueError: If another program listens there.
    """
    port = os.environ.get("MASTER_PORT", "")
    if processes == 1 or rank or not port.isdecimal() or torch.distributed.is_torchelastic_launched():
        return  # torchrun listens there itself
    if torch.distributed.is_initialized():
        return  # an earlier run of these processes, as of a diagnosis, listens there: they have met
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", int(port)))
        except (OSError, OverflowError) as error:
            raise ValueError(
                f"The processes of the run cannot meet at port {port}, which MASTER_PORT says: {error}. Unset "
                "MASTER_PORT, or choose a free port."
            ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is exhausted, that of the machine or of the GPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError | OSError) and bool(_OUT_OF_MEMORY.search(str(error)))


def describe_out_of_memory(error: BaseException, batch_size: int) -> str:
    """What to change if memory is exhausted, as a sentence.

    Args:
        error: The error.
        batch_size: Samples per step and process.
    """
    gpu = re.search(r"CUDA|HIP|MPS|CUBLAS|GPU", str(error)) is not None
    smaller = (
        f"halve --trainer.batch_size (now {batch_size}) and double --trainer.accumulate_grad_batches, or lower "
        if batch_size > 1
        else "lower "
    )
    workers = "" if gpu else ", or have fewer --trainer.num_workers"
    return f"Out of memory{' of the GPU' if gpu else ''}: {smaller}--model.width{workers}."
