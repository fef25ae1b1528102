import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cluster

import bmlr
from bmlr.methods import EpochContext, Joint
from bmlr.methods._relearning import DiagnosingRelearning, _purity
from method_loop import (
    MethodLoop,
    assert_any_order,
    assert_every_fusion,
    assert_half_precision,
    assert_resumes,
    take,
)
from zoo import make_batch, make_model


def often(**parameters):
    return DiagnosingRelearning(**{"reinit_epoch": 1, "reinit_num": 2, **parameters})


def context(model, epoch, train, val, max_epochs=50):
    def in_order(batch):
        return lambda: (take(batch, rows) for rows in torch.arange(len(batch)).split(7))

    return EpochContext(epoch, max_epochs, model, len(train), in_order(train), in_order(val))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), classes=st.integers(2, 4), starts=st.sampled_from([1, 10]))
def test_purity_counts_the_most_frequent_class_of_each_cluster(seed, classes, starts):
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, classes, 40)
    centres = 20 * rng.normal(size=(classes, 5))
    wrong = rng.random(40) < 0.3
    features = (centres[np.where(wrong, rng.integers(0, classes, 40), targets)] + rng.normal(size=(40, 5))).astype("f4")
    actual = _purity(features, targets, classes, "training", starts=starts, seed=7)
    from sklearn.cluster import KMeans

    low, high = features.min(0), features.max(0)
    found = KMeans(classes, n_init=starts, random_state=7).fit_predict(2 * (features - low) / (high - low) - 1)
    table = cluster.contingency_matrix(targets, found)
    assert actual == pytest.approx(table.max(axis=0).sum() / 40)
    assert 1 / classes <= actual <= 1


def test_clusters_that_are_the_classes_are_pure():
    targets = np.arange(30) % 3
    assert _purity(np.eye(3, dtype="f4")[targets], targets, 3, "training", starts=10, seed=0) == 1.0


def test_a_reset_is_the_stated_mixture_and_leaves_the_rest_alone():
    model, method = make_model(2, batch_norm=True), often()
    initial = {name: p.detach().clone() for name, p in model.named_parameters()}
    method.setup(model)
    loop = MethodLoop(model, Joint(), make_batch(2, 60))
    loop.run(range(3))
    trained = {name: value.clone() for name, value in model.state_dict().items()}
    place = context(model, 1, make_batch(2, 60), make_batch(2, 30, seed=5))
    weights = method.reset_weights(place)
    assert all(0 <= w < 1 for w in weights.values())
    assert max(weights.values()) > 0
    method.end_epoch(place)
    for name, value in model.state_dict().items():
        expected = trained[name]
        if name in initial and name.startswith("encoders."):
            w = weights[name.split(".")[1]]
            expected = w * initial[name] + (1 - w) * trained[name]
        torch.testing.assert_close(value, expected)


def test_an_encoder_that_separates_both_splits_alike_is_not_reset():
    model, method = make_model(2), often()
    method.setup(model)
    batch = make_batch(2, 40)
    assert method.reset_weights(context(model, 1, batch, batch)) == {"audio": 0.0, "video": 0.0}


def resets_at(method, epochs):
    model, batch, seen = make_model(2), make_batch(2, 40), []
    method.setup(model)
    for epoch in range(epochs):
        before = method.resets
        method.end_epoch(context(model, epoch, batch, make_batch(2, 20, seed=1), epochs))
        if method.resets > before:
            seen.append(epoch)
    return seen


def test_resets_come_when_and_as_often_as_said():
    assert resets_at(DiagnosingRelearning(reinit_epoch=3, reinit_num=2), 12) == [3, 6]
    assert resets_at(DiagnosingRelearning(reinit_epoch=4, reinit_num=9), 10) == [4, 8]
    # Nothing would train the encoders after the last epoch, the ninth here.
    assert resets_at(DiagnosingRelearning(reinit_epoch=4, reinit_num=9), 9) == [4]


def test_looking_leaves_no_trace():
    model, method = make_model(2, batch_norm=True), often()
    method.setup(model)
    model.encoders["audio"].eval()
    modes, state = [m.training for m in model.modules()], torch.get_rng_state()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    method.reset_weights(context(model, 1, make_batch(2, 40), make_batch(2, 20, seed=1)))
    assert modes == [m.training for m in model.modules()]
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_absent_modalities_are_left_out():
    present = {"video": torch.tensor([True, False] * 20)}
    with_gaps = make_batch(2, 40, present=present)
    whole = make_batch(2, 40)
    half = take(whole, torch.arange(0, 40, 2))
    model, method, val = make_model(2), often(), make_batch(2, 20, seed=1)
    method.setup(model)
    actual = method.reset_weights(context(model, 1, with_gaps, val))
    assert actual["video"] == method.reset_weights(context(model, 1, half, val))["video"]
    assert actual["audio"] == method.reset_weights(context(model, 1, whole, val))["audio"]


def test_a_split_too_small_to_cluster_is_named():
    model, method = make_model(2), often()
    method.setup(model)
    with pytest.raises(ValueError, match=r"The validation split should hold at least .* classes, 3, .* Found 2"):
        method.end_epoch(context(model, 1, make_batch(2, 20), make_batch(2, 2)))


def test_a_training_split_too_small_to_cluster_is_named():
    model, method = make_model(2), often()
    method.setup(model)
    with pytest.raises(ValueError, match=r"^The training split should hold at least .* Found 2\.$"):
        method.end_epoch(context(model, 1, make_batch(2, 2), make_batch(2, 20)))


def test_as_many_samples_as_classes_are_enough():
    assert _purity(np.eye(3, dtype="f4"), np.arange(3), 3, "training", starts=1, seed=0) == 1.0


def test_what_to_install_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(ModuleNotFoundError, match=r'^DiagnosingRelearning .* scikit-learn, .* "bmlr\[train\]"$'):
        _purity(np.eye(3, dtype="f4"), np.arange(3), 3, "training", starts=1, seed=0)


def train(method, epochs=3):
    torch.manual_seed(0)
    loop = MethodLoop(make_model(2), method, make_batch(2, 24))
    loop.run(range(epochs))
    return loop.model.state_dict()


def test_without_resets_it_is_joint_training_bit_for_bit():
    expected = train(Joint())
    for method in (often(reinit_num=0), DiagnosingRelearning(reinit_epoch=9)):
        assert all(torch.equal(value, expected[name]) for name, value in train(method).items())


@pytest.mark.parametrize("modalities", [2, 3])
def test_a_resumed_run_continues_bit_for_bit(modalities):
    assert_resumes(often, modalities)


@pytest.mark.parametrize("modalities", [("audio", "video"), ("audio", "video", "text")])
def test_the_order_of_modalities_does_not_matter(modalities):
    assert_any_order(often, modalities)


@pytest.mark.parametrize("modalities", [2, 3])
def test_half_precision(modalities):
    assert_half_precision(often, modalities)


@pytest.mark.parametrize("fusion", bmlr.fusion.available())
@pytest.mark.parametrize("modalities", [2, 3])
def test_every_fusion(fusion, modalities):
    assert_every_fusion(often, fusion, modalities)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"reinit_epoch": 0}, "`reinit_epoch` should be an integer of at least 1"),
        ({"reinit_num": -1}, "`reinit_num` should be an integer of at least 0"),
        ({"strength": 0.0}, "`strength` should be a positive"),
        ({"strength": math.nan}, "`strength` should be a positive"),
    ],
)
def test_bad_parameters_are_named(parameters, message):
    with pytest.raises(ValueError, match=message):
        DiagnosingRelearning(**parameters)
