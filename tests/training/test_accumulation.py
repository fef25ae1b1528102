"""Optimiser steps of several batches: they end with their pass, and are the mean of their batches."""

import copy
import itertools

import lightning
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import GradientState
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

import bmlr
from bmlr.config import OptimizerOptions
from bmlr.integrations.accelerate import AcceleratedBalancer
from bmlr.methods import EpochContext, EpochPlan, Joint, Pass, ReconBoost, Remix
from bmlr.training import BalancedModule
from bmlr.training._accumulation import Accumulation
from bmlr.training.loader import planned_requests
from toy import Toy
from zoo import make_batch, make_model

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec"),
]

EPOCHS, SIZE = 2, 8


class Planning(Joint):
    """Passes of one, two, five and three batches."""

    def plan_epoch(self, context):
        sizes = (5, 16, 36, 24)
        return EpochPlan(tuple(Pass(f"{n}", tuple(range(n)), fresh_optimizer=n == 36) for n in sizes))


def make_module(method):
    torch.manual_seed(0)
    image = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8), torch.nn.BatchNorm1d(8))
    model = bmlr.MultimodalClassifier({"audio": torch.nn.Linear(4, 8), "image": image}, 3)
    return BalancedModule(model, method, OptimizerOptions("sgd", lr=0.05), data=Toy(), batch_size=SIZE)


def make_trainer(accumulate):
    return lightning.Trainer(
        max_epochs=EPOCHS, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, reload_dataloaders_every_n_epochs=1,
        accumulate_grad_batches=accumulate,
    )  # fmt: skip


def train_by_hand(model, method, accumulate):
    """Pass by pass, step by step: the mean of the gradients of up to ``accumulate`` batches."""
    split, steps = Toy().split("train"), 0
    optimizer = torch.optim.SGD([*model.parameters(), *method.parameters()], lr=0.05, momentum=0.9)
    for epoch in range(EPOCHS):
        plan = method.start_epoch(EpochContext(epoch, EPOCHS, model))
        requests = planned_requests(plan, 40, SIZE, seed=0, epoch=epoch)
        for entry in plan.passes:
            mine = [request for request in requests if request.tag == entry.tag]
            if entry.fresh_optimizer:
                optimizer.state.clear()
            for step in batched(mine, accumulate):
                optimizer.zero_grad()
                for request in step:
                    batch = split.batch(request.indices)
                    batch.tag = request.tag
                    method.backward(method.compute_losses(model, batch), model, scale=1 / len(step))
                method.adjust_gradients(model)
                optimizer.step()
                steps += 1
    return steps


def batched(values, size):
    return [values[start : start + size] for start in range(0, len(values), size)]


@pytest.mark.parametrize("accumulate", [2, 3, 4])
@pytest.mark.parametrize("make_method", [Planning, lambda: ReconBoost(t1=1, t2=1, hidden=4)])
def test_a_step_ends_with_its_pass_and_is_the_mean_of_its_batches(make_method, accumulate):
    module = make_module(make_method())
    model, method = copy.deepcopy((module.model, module.method))
    trainer = make_trainer(accumulate)
    trainer.fit(module)
    steps = train_by_hand(model.train(), method.train(), accumulate)
    assert (trainer.global_step, trainer.accumulate_grad_batches) == (steps, accumulate)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(module.model.state_dict()[name], value, rtol=1e-5, atol=1e-6)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(1, 5))
def test_places_are_those_of_a_count(passes, accumulate):
    ends = list(itertools.accumulate(passes))
    places = [
        (number % accumulate, min(accumulate, size - number // accumulate * accumulate))
        for size in passes
        for number in range(size)
    ]
    accumulation = Accumulation(accumulate, ends)
    assert [accumulation.place(i) for i in range(ends[-1])] == places
    assert accumulation.num_steps == sum(number == 0 for number, _ in places)
    stepped = [number + 1 == size for number, size in places]
    trainer = make_trainer(accumulate)
    for i, steps in enumerate(stepped[:-1]):  # after the last batch of an epoch Lightning always steps
        accumulation.prepare(trainer, i)
        assert ((i + 1) % trainer.accumulate_grad_batches == 0) == steps


def test_an_interrupted_epoch_leaves_the_trainer_as_it_was():
    class Stopping(Planning):
        def batch_losses(self, model, batch):
            if batch.tag == "36" and not self.epoch:
                raise KeyError
            return super().batch_losses(model, batch)

    trainer, module = make_trainer(2), make_module(Stopping())
    with pytest.raises(KeyError):
        trainer.fit(module)
    module.method.epoch = 1
    module.setup("fit")
    assert trainer.accumulate_grad_batches == 2


def record_tags(optimizer, seen):
    """Tags of the batches of each optimiser step."""
    steps = []

    def keep(*_):
        steps.append(list(seen))
        seen.clear()

    optimizer.register_step_post_hook(keep)
    return steps


@pytest.mark.parametrize("accelerated", [False, True])
def test_loops_of_ones_own_do_not_mix_passes_either(accelerated):
    batch = make_batch(2, 21)
    samples = [({name: x[i] for name, x in batch.inputs.items()}, batch.targets[i]) for i in range(21)]
    torch.manual_seed(0)
    model, method = make_model(), Remix(warmup=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    seen: list[str] = []
    steps = record_tags(optimizer, seen)
    if accelerated:
        GradientState._reset_state()  # one of a process, which loaders of other tests have left in their last batch
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
        balancer = AcceleratedBalancer(accelerator, model, method, optimizer, max_epochs=2)
    else:
        balancer = bmlr.Balancer(model, method, optimizer, max_epochs=2, accumulate=2)
    batches = 0
    for _ in range(2):
        for given_batch in balancer.epoch(DataLoader(samples, 3)):
            seen.append(given_batch.tag)
            balancer.step(given_batch)
            batches += 1
    assert not seen
    assert balancer.steps == len(steps)
    assert sum(len(step) for step in steps) == batches
    assert all(len(set(step)) == 1 for step in steps)
    assert {len(step) for step in steps} == {1, 2}
