"""Options of the Balancer, and the loaders it takes."""

import copy

import pytest
import torch
from torch.utils.data import DataLoader

import bmlr
from bmlr.methods import DGL, LFM, EpochPlan, MMPareto, OnlyTPO, Pass, ReconBoost, Remix
from zoo import make_batch, make_model


class Choosing(bmlr.methods.Joint):
    """Trains on two samples of its own choice."""

    def plan_epoch(self, context):
        return EpochPlan((Pass(indices=(0, 1)),))


def make(method, lr=0.1, **options):
    torch.manual_seed(0)
    model = make_model(dtype=torch.float64)
    return bmlr.Balancer(model, method, torch.optim.SGD(model.parameters(), lr=lr), max_epochs=2, **options)


def batches(count=4, size=6):
    whole = make_batch(2, count * size, dtype=torch.float64)
    rows = torch.arange(count * size).split(size)
    return [({name: x[i] for name, x in whole.inputs.items()}, whole.targets[i]) for i in rows]


def train(balancer, loader):
    for batch in balancer.epoch(loader):
        balancer.step(batch)
    return balancer.model.state_dict()


def same(first, second):
    return all(torch.allclose(first[name], second[name], rtol=1e-12, atol=1e-14) for name in first)


@pytest.mark.parametrize("method", [OnlyTPO, DGL])
def test_accumulated_batches_are_one_and_a_rest_is_not_lost(method):
    whole, split = make(method()), make(method(), accumulate=2)
    expected, found = train(whole, batches(2, 12)), train(split, batches(4, 6))
    assert (whole.steps, split.steps) == (2, 2)
    assert same(found, expected)
    alone, rest = make(method()), make(method(), accumulate=3)
    assert same(train(rest, batches(1, 6)), train(alone, batches(1, 6)))  # a step of one batch is that batch's
    rest = make(method(), accumulate=3)
    before = train(rest, batches(3, 6))
    copied = copy.deepcopy(before)
    train(rest, batches(4, 6))
    assert rest.steps == 3  # one of three batches, one of three, one of the fourth
    assert not same(copied, rest.model.state_dict())


def test_the_loss_scale_of_half_precision_is_taken_out_before_the_method_and_the_clipping():
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for options in ({}, {"clip_norm": 0.01}):
        plain, scaled = make(MMPareto(), **options), make(MMPareto(), scaler=scaler, **options)
        assert same(train(scaled, batches()), train(plain, batches()))
    with pytest.raises(ValueError, match="`scaler` should be a torch.amp.GradScaler"):
        make(MMPareto(), autocast=torch.float16)


def test_gradients_are_clipped_after_the_method():
    clipped = make(OnlyTPO(), clip_norm=1e-4)
    before = copy.deepcopy(clipped.model.state_dict())
    after = train(clipped, batches(1))
    moved = torch.stack([(after[name] - before[name]).norm() for name in before]).norm()
    assert float(moved) == pytest.approx(0.1 * 1e-4, rel=1e-3)


def test_forwards_run_under_autocast():
    balancer = make(OnlyTPO(), autocast=torch.bfloat16)
    balancer.model.float()
    seen = []
    balancer.model.encoders["audio"].register_forward_hook(lambda *args: seen.append(args[2].dtype))
    loader = [({name: x.float() for name, x in inputs.items()}, targets) for inputs, targets in batches(1)]
    train(balancer, loader)
    balancer.predict(loader[0][0])
    assert seen == [torch.bfloat16, torch.bfloat16]


def test_parameters_of_the_method_join_the_optimiser_once():
    balancer = make(MMPareto())
    assert len(balancer.optimizer.param_groups) == 2
    again = bmlr.Balancer(balancer.model, balancer.method, balancer.optimizer, max_epochs=1)
    assert len(again.optimizer.param_groups) == 2
    with pytest.raises(ValueError, match="should train the parameters of `model`"):
        bmlr.Balancer(make_model(), bmlr.BMLR(), torch.optim.SGD(make_model().parameters(), lr=0.1), max_epochs=1)


def test_a_method_of_another_model_is_set_up_anew():
    balancer = make(MMPareto())
    heads = balancer.method.heads
    other = make_model(dtype=torch.float64)
    bmlr.Balancer(other, balancer.method, torch.optim.SGD(other.parameters(), lr=0.1), max_epochs=1)
    assert balancer.method.heads is not heads


def test_passes_over_a_list_and_an_exhausted_generator():
    balancer = make(ReconBoost(t1=1, t2=1))
    assert [batch.tag for batch in balancer.epoch(batches(2)) if balancer.step(batch)] == [
        "boost:audio", "boost:audio", "rectify", "rectify"
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"gave no batch in pass 2 of 2\..* gone through again"):
        train(balancer, iter(batches(2)))


def test_a_method_that_chooses_samples_needs_a_data_loader_and_gets_each_of_them_once():
    with pytest.raises(ValueError, match=r"Remix needs `indices`.* a torch DataLoader over a data set with a length"):
        list(make(Remix(warmup=0)).epoch(batches(2)))
    unknown = make(Choosing())
    with pytest.raises(ValueError, match=r"a torch DataLoader over a data set with a length.* Found list"):
        list(unknown.epoch(batches(2)))
    whole = make_batch(2, 20, dtype=torch.float64)
    samples = [({name: x[i] for name, x in whole.inputs.items()}, whole.targets[i]) for i in range(20)]
    for order in ("sequential", "shuffled"):
        balancer = make(Remix(warmup=0, order=order))
        trained = [batch for batch in balancer.epoch(DataLoader(samples, 4)) if balancer.step(batch)]
        rows = torch.cat([batch.inputs["audio"] for batch in trained])[:, 0].tolist()
        assert set(rows) == set(whole.inputs["audio"][:, 0].tolist())  # a modality's only sample comes twice
        assert {batch.tag for batch in trained} == {"remix:audio", "remix:video"}


class Alternating(bmlr.methods.Joint):
    """Takes a step per modality on every batch."""

    def __init__(self, indices=None):
        super().__init__()
        self.indices = indices

    def plan_epoch(self, context):
        return EpochPlan((Pass("audio", self.indices), Pass("video", self.indices)), order="aligned")


def test_aligned_passes_draw_a_batch_once_and_give_it_for_every_tag():
    seen = [(batch.tag, batch.inputs["audio"]) for batch in make(Alternating()).epoch(iter(batches(2)))]
    assert [tag for tag, _ in seen] == ["audio", "video"] * 2
    assert seen[0][1] is seen[1][1]
    assert not torch.equal(seen[1][1], seen[2][1])
    whole = make_batch(2, 20, dtype=torch.float64)
    samples = [({name: x[i] for name, x in whole.inputs.items()}, whole.targets[i]) for i in range(20)]
    chosen = list(make(Alternating((1, 4, 7))).epoch(DataLoader(samples, 2)))
    assert [batch.tag for batch in chosen] == ["audio", "video"] * 2
    assert sorted(torch.cat([b.targets for b in chosen]).tolist()) == sorted(whole.targets[[1, 4, 7]].tolist() * 2)
    with pytest.raises(ValueError, match=r"`accumulate` should be 1, .* 2 optimiser steps on every batch. Found 3"):
        list(make(Alternating(), accumulate=3).epoch(batches(2)))
    with pytest.raises(ValueError, match=r"gave no batch in pass 1 of 1\."):
        list(make(Alternating()).epoch([]))


def test_an_epoch_left_early_does_not_count_and_no_epoch_follows_the_last():
    balancer = make(bmlr.BMLR())
    for batch in balancer.epoch(batches(3)):
        balancer.step(batch)
        break
    assert balancer.epochs_done == 0
    train(balancer, batches(1))
    train(balancer, batches(1))
    with pytest.raises(ValueError, match="`max_epochs = 2` epochs are done"):
        train(balancer, batches(1))


def test_a_loss_that_is_not_finite_stops_the_loop():
    balancer = make(bmlr.BMLR())
    inputs, targets = batches(1)[0]
    with pytest.raises(RuntimeError, match=r"The loss is not finite in epoch 0, step 0: {.*nan"):
        train(balancer, [({**inputs, "audio": inputs["audio"] * torch.nan}, targets)])


def test_a_validation_split_that_is_needed_is_asked_for():
    balancer = make(bmlr.methods.LFMBalanceBenchmark())
    with pytest.raises(ValueError, match="needs a validation split"):
        train(balancer, batches(2))


def test_predictions_leave_modes_and_gradients_alone():
    balancer = make(LFM())
    balancer.model.train()
    prediction = balancer.predict(batches(1)[0][0])
    assert not prediction.logits.requires_grad
    assert balancer.model.training
