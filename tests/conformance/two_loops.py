"""The two processes of the test of other trainers: each trains on its half of every batch."""

import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from lightning.pytorch.strategies import DDPStrategy
from test_agreement import SIZE, Classifier, by_balancer, by_trainer, loader, make_trainer, samples
from torch.utils.data import DataLoader

import bmlr
from bmlr.integrations.accelerate import AcceleratedBalancer
from bmlr.methods import Method
from test_wrap import make_wrapped

METHODS = ("BMLR", "MMPareto", "LFM")


def make_method(name: str) -> Method:
    """The method; its heads are drawn from a seed."""
    torch.manual_seed(0)
    return bmlr.methods.create(name, **({"alpha": "constant"} if name == "LFM" else {}))


def under_lightning(method: Method, half: DataLoader[Any], find_unused: bool) -> bmlr.MultimodalClassifier:
    """The model, trained in these processes."""
    model: bmlr.MultimodalClassifier = make_wrapped()[0]
    strategy = DDPStrategy(process_group_backend="gloo", find_unused_parameters=find_unused)
    trainer = make_trainer(strategy=strategy, devices=2, use_distributed_sampler=False)
    trainer.fit(Classifier(model, method).train(), half)
    return model


def run(rank: int, folder: str, port: int) -> None:
    """Train by every other trainer, and store the weights."""
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test",
        "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    states, refusals = {}, []
    half = DataLoader(samples()[rank::2], SIZE)
    for name in METHODS:
        states[f"lightning {name}"] = under_lightning(make_method(name), half, name == "LFM").state_dict()
        states[f"accelerate {name}"] = under_accelerate(make_method(name), name == "LFM").state_dict()
        states[f"trainer {name}"] = under_trainer(make_method(name), folder).state_dict()
    for train in (
        lambda: under_lightning(make_method("LFM"), half, False),
        lambda: under_accelerate(make_method("LFM"), False),
        lambda: under_accelerate(bmlr.methods.Remix(), True),
    ):
        try:
            train()
        except ValueError as error:
            refusals.append(str(error))
    torch.save({"states": states, "refusals": refusals}, Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def under_accelerate(method: Method, find_unused: bool) -> bmlr.MultimodalClassifier:
    """The model, trained in these processes."""
    handlers = [DistributedDataParallelKwargs(find_unused_parameters=True)] if find_unused else []
    accelerator = Accelerator(cpu=True, kwargs_handlers=handlers)
    model: bmlr.MultimodalClassifier = make_wrapped()[0]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    balancer = AcceleratedBalancer(accelerator, model, method, optimizer, max_epochs=2)
    model.train()
    prepared = accelerator.prepare(loader())
    for _ in range(2):
        for batch in balancer.epoch(prepared):
            balancer.step(batch)
    return model


def under_trainer(method: Method, folder: str) -> bmlr.MultimodalClassifier:
    """The model, trained in these processes."""
    model: bmlr.MultimodalClassifier = make_wrapped()[0]
    by_trainer(model, method, 1, None, folder)
    return model


def in_one_process(name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """The same on whole batches."""
    import test_agreement

    monkeypatch.setattr(test_agreement, "SIZE", 12)
    method = make_method(name)
    model: bmlr.MultimodalClassifier = make_wrapped()[0]
    by_balancer(model, method, 1, None, None)
    return model.state_dict()
