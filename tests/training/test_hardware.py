"""What the machine lacks is said in one sentence, before the run has taken its directory."""

import os
import re
import socket

import pytest
import torch
from lightning.pytorch.utilities import rank_zero_only

from bmlr.cli import main
from bmlr.methods import Joint

ARGUMENTS = [
    "train", "--data", "toy.Toy", "--method", "Joint", "--trainer.epochs", "1", "--trainer.progress", "false",
]  # fmt: skip
SLURM = {
    "SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "train", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0",
    "SLURM_NODELIST": "localhost",
}  # fmt: skip


def refused(capsys, arguments, status=2):
    """The one sentence of a command that ends with a status."""
    assert main(arguments) == status
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    return error.removeprefix("bmlr: error: ").strip()


def test_a_compiler_without_a_place_for_its_files(tmp_path, capsys, monkeypatch):
    from torch._inductor.exc import InductorError

    def fail(module):
        raise InductorError(OSError(30, "Read-only file system", "/cache/73"), None)

    monkeypatch.setattr(torch.nn.Module, "compile", fail)
    run = ["--run", str(tmp_path / "r")]
    sentence = refused(capsys, [*ARGUMENTS, *run, "--trainer.compile", "true"])
    assert sentence.startswith("The encoders cannot be compiled here: ")
    assert "Read-only file system: '/cache/73'" in sentence
    assert "Leave out --trainer.compile" in sentence
    assert main([*ARGUMENTS, *run]) == 0


@pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="needs a machine without")
@pytest.mark.parametrize(
    ("options", "variables", "words"),
    [
        (["accelerator", "gpu"], {}, "No GPU can be used: .*Leave out --trainer.accelerator"),
        (["accelerator", "cuda"], {}, "No GPU can be used"),
        (["accelerator", "mps"], {}, "No GPU of Apple's can be used here"),
        (["accelerator", "cuda:1"], {}, r"a kind of device. Found cuda:1. .* --trainer.devices 1,"),
        (["accelerator", "gpuu"], {}, "should be one of auto, cpu, gpu.* Did you mean 'gpu'"),
        (["devices", "0"], {}, "--trainer.devices should be a number of processes of at least 1"),
        (["devices", "999"], {}, "asks for 999 processes on \\d+ processors.* Take at most"),
        (["num_workers", "9999"], {}, "asks for 9999 processes that load data on \\d+ processors. Take at most"),
        (["devices", "-3"], {}, "The options of the trainer do not fit this machine: "),
        (["strategy", "dpp"], {}, "The options of the trainer do not fit this machine: .*strategy"),
        (["num_nodes", "0"], {}, "The options of the trainer do not fit this machine: .*num_nodes"),
        (["num_nodes", "2"], {}, "nothing tells which of the 2 machines this one is.* torchrun or srun"),
        (["precision", "16-mixed"], {}, "16-mixed needs a GPU. On the CPU say bf16-mixed"),
        ([], {**SLURM, "SLURM_NTASKS": "2"}, "The SLURM job has 2 tasks .*--ntasks=1.*--ntasks-per-node"),
        (
            ["devices", "1"],
            {**SLURM, "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"},
            "The SLURM job has 2 tasks on each machine .*--trainer.devices is 1. Make them equal",
        ),
    ],
)
def test_what_is_missing_is_said_and_the_corrected_command_works(
    tmp_path, capsys, monkeypatch, options, variables, words
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    run = ["--run", str(tmp_path / "r")]
    pairs = [f"--trainer.{options[0]}={options[1]}"] if options else []
    sentence = refused(capsys, [*ARGUMENTS, *run, *pairs])
    assert re.search(words, sentence), sentence
    assert not (tmp_path / "r").exists()
    for name in variables:
        monkeypatch.delenv(name)
    if not options or options[0] == "precision":  # once with variables, once with an option
        assert main([*ARGUMENTS, *run]) == 0


def test_a_cuda_that_is_hidden_is_said_so(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for value in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
        sentence = refused(capsys, [*ARGUMENTS, "--trainer.accelerator", "gpu", "--run", str(tmp_path / "r")])
        assert f"CUDA_VISIBLE_DEVICES is '{value}', which hides all of them" in sentence
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    sentence = refused(capsys, [*ARGUMENTS, "--trainer.accelerator", "gpu", "--run", str(tmp_path / "r")])
    assert "no GPU or no driver" in sentence


def test_gpus_that_are_not_there_are_counted(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    run = ["--run", str(tmp_path / "r"), "--trainer.accelerator", "gpu"]
    assert "asks for 4 GPUs, and 2 GPUs can be used here" in refused(capsys, [*ARGUMENTS, *run, "--trainer.devices=4"])
    assert "asks for GPU 3, and 2 GPUs" in refused(capsys, [*ARGUMENTS, *run, "--trainer.devices=1,3"])


def test_a_port_in_use_is_named_before_processes_wait_for_each_other(tmp_path, capsys, monkeypatch):
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        monkeypatch.setenv("MASTER_PORT", str(port))
        options = ["--run", str(tmp_path / "r"), "--trainer.accelerator=cpu", "--trainer.devices=2"]
        sentence = refused(capsys, [*ARGUMENTS, *options])
    assert f"cannot meet at port {port}, which MASTER_PORT says" in sentence
    assert not (tmp_path / "r").exists()


def test_data_that_are_not_there_leave_no_run(tmp_path, capsys):
    arguments = ["train", "--data", "crema-d", "--data.root", str(tmp_path / "none"), "--method", "Joint"]
    assert "bmlr prepare crema-d" in refused(capsys, [*arguments, "--run", str(tmp_path / "r")])
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    "variables",
    [
        {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"},  # left from another program
        {**SLURM, "SLURM_NTASKS": "1"},
        {**SLURM, "SLURM_NTASKS": "2", "SLURM_JOB_NAME": "bash"},  # a shell of salloc or srun --pty
        {"MASTER_PORT": "1"},
    ],
)
def test_variables_of_launchers_do_not_disturb_one_process(tmp_path, capsys, monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(vars(rank_zero_only), "rank", int(variables.get("RANK", 0)))  # as it is read on import
    assert main([*ARGUMENTS, "--run", str(tmp_path / "r")]) == 0
    assert (tmp_path / "r" / "config.yaml").exists()
    assert "majority rate" in capsys.readouterr().out
    assert os.environ.get("RANK") == variables.get("RANK")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "Out of memory: halve --trainer.batch_size"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "Out of memory: halve"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), "Out of memory of the GPU: halve"),
        (OSError(12, "Cannot allocate memory"), "Out of memory: halve"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_out_of_memory_says_what_to_change_and_the_changed_command_works(tmp_path, capsys, monkeypatch, error, words):
    original, calls = Joint.compute_losses, []

    def fail_once(self, model, batch):
        calls.append(batch)
        if len(calls) == 1:
            raise error
        return original(self, model, batch)

    monkeypatch.setattr(Joint, "compute_losses", fail_once)
    run = ["--run", str(tmp_path / "r")]
    sentence = refused(capsys, [*ARGUMENTS, *run])
    assert words in sentence
    assert "(now 16) and double --trainer.accumulate_grad_batches, or lower --model.width" in sentence
    changed = ["--trainer.batch_size", "8", "--trainer.accumulate_grad_batches", "2"]
    assert main([*ARGUMENTS, *run, *changed]) == 0
