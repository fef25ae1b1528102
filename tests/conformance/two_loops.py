"""The two processes of the test of other trainers: each trains on its half of every batch."""

import os
import warnings
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from lightning.pytorch.strategies import DDPStrategy
from test_agreement import Classifier, by_balancer, loader, make_trainer

import bmlr
from test_wrap import make_wrapped

METHODS = ("BMLR", "DGL", "MMPareto")


def run(rank, folder, port):
    """Train by Lightning and under Accelerate, and store the weights."""
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test",
        "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    states = {}
    for name in METHODS:
        torch.manual_seed(0)
        method = bmlr.methods.create(name)
        model = make_wrapped()[0]
        strategy = DDPStrategy(process_group_backend="gloo", find_unused_parameters=method.leaves_gradients_unset)
        make_trainer(strategy=strategy, devices=2).fit(Classifier(model, method).train(), loader())
        states[f"lightning {name}"] = model.state_dict()
    refusals = []
    for name in METHODS:
        torch.manual_seed(0)
        method = bmlr.methods.create(name)
        states[f"accelerate {name}"] = under_accelerate(method, method.leaves_gradients_unset).state_dict()
    for name in ("DGL", "Remix"):
        try:
            under_accelerate(bmlr.methods.create(name), False)
        except ValueError as error:
            refusals.append(str(error))
    torch.save({"states": states, "refusals": refusals}, Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def under_accelerate(method, find_unused):
    """The model, trained in these processes."""
    from bmlr.integrations.accelerate import AcceleratedBalancer

    handlers = [DistributedDataParallelKwargs(find_unused_parameters=True)] if find_unused else []
    accelerator = Accelerator(cpu=True, kwargs_handlers=handlers)
    model = make_wrapped()[0]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    balancer = AcceleratedBalancer(accelerator, model, method, optimizer, max_epochs=2)
    model.train()
    prepared = accelerator.prepare(loader())
    for _ in range(2):
        for batch in balancer.epoch(prepared):
            balancer.step(batch)
    return model


def in_one_process(name, monkeypatch):
    """The same on whole batches."""
    import test_agreement

    monkeypatch.setattr(test_agreement, "SIZE", 12)
    torch.manual_seed(0)
    model = make_wrapped()[0]
    by_balancer(model, bmlr.methods.create(name), 1, None, None)
    return model.state_dict()
