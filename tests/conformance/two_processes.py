"""The two processes of the distributed conformance tests."""

import copy
import os
from datetime import timedelta
from pathlib import Path

import task_subjects
import torch
import torch.distributed as dist
from subjects import COMBINATIONS, gradients, kinds, make_loop, method_class
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import bmlr
from bmlr.methods import Method
from method_loop import MethodLoop, take

#: Combinations of subject and fusion, with the number of modalities: of all fusions these three differ most.
CASES = [
    (subject, fusion, modalities)
    for subject, fusion in COMBINATIONS
    for modalities in (2, 3)
    if (fusion, modalities) in {("concat", 2), ("film", 3), ("own", 3)} and method_class(subject).trains
]
#: The same of labels and numbers, by the name of the task.
CASES += [
    (subject, name, 2)
    for subject, name in task_subjects.SUPPORTED
    if name in {"multilabel", "sentiment"} and method_class(subject).trains
]
#: Optimiser steps of each kind of batch; the second also shows that no process waits for the first.
STEPS = 2


class TrainingStep(nn.Module):
    """Model and method as the one module that distributed training wraps; its forward is the step's losses."""

    def __init__(self, model: bmlr.MultimodalClassifier, method: Method) -> None:
        super().__init__()
        self.model, self.method = model, method

    def forward(self, batch: bmlr.Batch) -> Tensor:
        self.losses = self.method.compute_losses(self.model, batch)
        return self.losses.total


def step_gradients(loop: MethodLoop, batch: bmlr.Batch, wrapped: nn.Module, step: TrainingStep) -> dict[str, Tensor]:
    """One optimiser step through ``wrapped``; the gradients it was made with."""
    loop.optimizer.zero_grad()
    wrapped(batch)
    step.method.backward(step.losses, step.model)
    step.method.adjust_gradients(step.model)
    copies = gradients(step.model, step.method)
    loop.optimizer.step()
    return copies


def all_gradients(case: tuple[str, str, int], rank: int | None) -> list[dict[str, Tensor]]:
    """Gradients of every step of a case: of one process over whole batches, or of a rank over its half of each."""
    subject, fusion, modalities = case
    results = []
    if fusion in task_subjects.TASKS:
        made = task_subjects.make_loop(subject, fusion, modalities)
    else:
        made = make_loop(subject, modalities, fusion)
    for loop, whole in kinds(made):
        step = TrainingStep(loop.model, loop.method)
        wrapped: nn.Module = step
        batch = whole
        if rank is not None:
            batch = take(whole, torch.arange(rank, len(whole), 2), whole.tag)
            wrapped = DistributedDataParallel(step, find_unused_parameters=loop.method.leaves_gradients_unset)
            # As the training loop does for a method that averages by itself.
            wrapped.require_backward_grad_sync = not loop.method.reduces_gradients
        results += [step_gradients(loop, copy.copy(batch), wrapped, step) for _ in range(STEPS)]
    return results


def run(rank: int, folder: str) -> None:
    """Join the other process over a file, and store the gradients of all cases."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),
    )
    try:
        results = {}
        for case in CASES:
            try:
                results["-".join(map(str, case))] = all_gradients(case, rank)
            except Exception as error:
                raise RuntimeError(f"{case} failed in process {rank}.") from error
        torch.save(results, Path(folder) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()
