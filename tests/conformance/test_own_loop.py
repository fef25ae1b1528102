"""Every method in a loop of one's own: driven by the Balancer, or refused where a call is missing."""

import copy
import dataclasses

import pytest
import torch
from subjects import SUBJECTS, gradients, kinds, make_loop, make_method, method_class, trained_modalities
from torch.utils.data import DataLoader

import bmlr
from bmlr._random import mixed_seed
from bmlr.loaders import shuffled_batches
from bmlr.methods import EpochContext
from bmlr.parameters import optimizer_like
from method_loop import assert_same_state, set_up
from zoo import make_batch, make_model

#: Subjects that run encoders by themselves, and say so.
NEED_THE_BATCH = {"AGM", "Pretrained:frozen", "UMT"}
each_subject = pytest.mark.parametrize("subject", SUBJECTS)


def pairs(samples=30):
    batch = make_batch(2, samples)
    return [({name: x[i] for name, x in batch.inputs.items()}, batch.targets[i]) for i in range(samples)]


def make_balancer(subject, seed=0, epochs=3, **options):
    torch.manual_seed(seed)
    model = make_model(seed=seed, batch_norm=True)
    method = make_method(subject)
    set_up(method, model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return bmlr.Balancer(model, method, optimizer, max_epochs=epochs, **options)


def run(balancer, epochs, seed=3):
    for _ in range(epochs):
        torch.manual_seed(seed + balancer.epochs_done)
        for batch in balancer.epoch(DataLoader(pairs(), 8, shuffle=True), DataLoader(pairs(12), 8)):
            balancer.step(batch)


@each_subject
def test_three_lines_train_by_any_method_and_go_on_from_a_state(subject):
    whole, first, second = make_balancer(subject), make_balancer(subject), make_balancer(subject, seed=1)
    before = copy.deepcopy(whole.model.encoders.state_dict())
    run(whole, 3)
    moved = any(not torch.equal(value, before[name]) for name, value in whole.model.encoders.state_dict().items())
    assert moved == bool(trained_modalities(subject, whole.model.modalities))
    prediction = whole.predict(make_batch().inputs)
    assert bool(torch.isfinite(prediction.logits).all())
    run(first, 1)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    run(second, 2)
    assert_same_state(second.state_dict(), whole.state_dict())


@each_subject
def test_a_step_is_that_of_the_contract(subject):
    """The same batches through the calls that the docstring of Method lists."""
    balancer = make_balancer(subject)
    model, method, optimizer = copy.deepcopy((balancer.model, balancer.method, balancer.optimizer))
    optimizer = torch.optim.SGD([*model.parameters(), *method.parameters()], lr=0.05, momentum=0.9)
    loader, kept = DataLoader(pairs(), 8), []
    for batch in balancer.epoch(loader, DataLoader(pairs(12), 8)):
        kept.append(batch)
        balancer.step(batch)
    no_data = lambda: iter(map(bmlr.batch.as_batch, DataLoader(pairs(12), 8)))
    if method_class(subject).pass_parameters:
        pytest.skip("resets the optimiser between passes")
    shuffled = lambda number: shuffled_batches(loader, bmlr.batch.as_batch, mixed_seed(0, 0, number))
    rollout = lambda parameters: optimizer_like(optimizer, parameters)
    if not method.trains:
        pytest.skip("makes no step")
    plan = method.start_epoch(EpochContext(0, 3, model, 30, lambda: indexed(loader), no_data, 0, shuffled, rollout))
    assert len(plan.passes) == plan.steps_per_batch
    model.train()
    for batch in kept:
        optimizer.zero_grad()
        losses = method.compute_losses(model, batch)
        method.backward(losses, model)
        method.adjust_gradients(model)
        optimizer.step()
    assert_same_state(balancer.model.state_dict(), model.state_dict())


def indexed(loader):
    start = 0
    for pair in loader:
        batch = bmlr.batch.as_batch(pair)
        yield dataclasses.replace(batch, indices=torch.arange(start, start + len(batch)))
        start += len(batch)


@each_subject
def test_a_total_gives_the_gradients_of_the_method_or_is_refused(subject):
    """The shortest loop, with and without the start of the epoch, trains by the method or says what to call."""
    for fresh, batch in kinds(make_loop(subject)):
        expected = copy.deepcopy(fresh)
        for _ in range(2):
            expected.step(batch)
        for starts in (True, False):
            short = copy.deepcopy(fresh)
            if not starts:
                short.method.max_epochs = 0
            needs_calls = fresh.method.combines_gradients or fresh.method.changes_gradients or batch.tag
            if needs_calls or subject in NEED_THE_BATCH or (fresh.method.follows_epochs and not starts):
                with pytest.raises(RuntimeError, match="call|needs"):
                    short_steps(short, batch)
                continue
            short_steps(short, batch)
            wanted = gradients(expected.model, expected.method)
            for name, gradient in gradients(short.model, short.method).items():
                assert torch.equal(gradient, wanted[name])


def short_steps(loop, batch):
    """Two steps as the shortest of loops takes them."""
    for _ in range(2):
        loop.optimizer.zero_grad()
        loop.method(loop.model(batch.inputs), batch.targets).total.backward()
        loop.optimizer.step()


@each_subject
def test_a_step_without_adjusted_gradients_is_refused(subject):
    for fresh, batch in kinds(make_loop(subject)):
        losses = fresh.method.compute_losses(fresh.model, batch)
        fresh.method.backward(losses, fresh.model)
        if fresh.method.changes_gradients:
            with pytest.raises(RuntimeError, match=r"changes gradients: call `method\.adjust_gradients\(model\)`"):
                fresh.optimizer.step()
        else:
            fresh.optimizer.step()
        torch.optim.SGD(make_model(seed=9).parameters(), lr=0.1).step()  # of another model: no business of the method


@each_subject
def test_losses_without_gradient_and_in_evaluation_ask_for_nothing(subject):
    for fresh, batch in kinds(make_loop(subject)):
        for _ in range(2):
            with torch.no_grad():
                fresh.method.compute_losses(fresh.model, batch)
            fresh.method.eval()
            fresh.method.compute_losses(fresh.model, batch)
            fresh.method.train()
            fresh.method.compute_losses(fresh.model, batch)
            fresh.method.discard_losses()


@each_subject
def test_logits_of_a_fusion_that_is_not_trained_are_refused(subject):
    loop = make_loop(subject)
    output = loop.model.eval()(loop.train.inputs)
    if loop.method.trains_fusion:
        assert torch.equal(loop.method.predict(output).logits, output.logits)
    else:
        for name in ("logits", "unimodal_logits"):
            with pytest.raises(RuntimeError, match=r"predict by `method\.predict\(output\)`"):
                getattr(output, name)
    bmlr.methods.Joint().setup(loop.model)
    assert loop.model(loop.train.inputs).logits.shape == (18, 3)


def test_an_epoch_whose_end_was_left_out_is_named():
    loop = make_loop("DiagnosingRelearning")
    loop.method.start_epoch(loop.context(0))
    with pytest.raises(RuntimeError, match=r"call `method.end_epoch\(context\)` after epoch 0"):
        loop.method.start_epoch(loop.context(1))
