"""Every method on heads and encoders as users write them: batch normalisation, dropout, dictionaries of tensors."""

import copy
import dataclasses

import pytest
import torch
from subjects import SUBJECTS, compute, gradients, kinds, make_method, method_class, trained_modalities
from torch import nn

import bmlr
from method_loop import MethodLoop
from zoo import FEATURE_DIMS, make_batch, make_encoder

each_subject = pytest.mark.parametrize("subject", SUBJECTS)


class NormalisedHead(bmlr.fusion.Fusion):
    """A head with batch normalisation and dropout over the concatenated features."""

    def __init__(self, feature_dims, num_classes):
        super().__init__(feature_dims, num_classes)
        width = sum(feature_dims.values())
        self.norm = nn.BatchNorm1d(width)
        self.layers = nn.Sequential(nn.ReLU(), nn.Dropout(0.1), nn.Linear(width, num_classes))

    def fused(self, features):
        return self.layers(self.norm(torch.cat([features[name] for name in self.feature_dims], 1)))


def make_loop(subject, modalities=2):
    torch.manual_seed(0)
    names = list(FEATURE_DIMS)[:modalities]
    fusion = NormalisedHead({name: FEATURE_DIMS[name] for name in names}, 3)
    encoders = {name: make_encoder(name, batch_norm=True) for name in names}
    model = bmlr.MultimodalClassifier(encoders, fusion=fusion)
    return MethodLoop(model, make_method(subject), make_batch(modalities, 18), max_epochs=modalities)


@pytest.mark.parametrize("modalities", [2, 3])
@each_subject
def test_running_statistics_of_a_head_are_those_of_one_fused_pass(subject, modalities):
    loop = make_loop(subject, modalities)
    for fresh, batch in kinds(loop):
        before, joint = copy.deepcopy(fresh.model), copy.deepcopy(fresh.model)
        joint.fusion(joint(batch.inputs).features)
        compute(fresh, batch)
        norm, expected = fresh.model.fusion.norm, joint.fusion.norm
        is_used = any(name.startswith("model.fusion.") for name in gradients(fresh.model, fresh.method))
        assert norm.num_batches_tracked - before.fusion.norm.num_batches_tracked == int(is_used)
        if is_used and not method_class(subject).conformance.alters_features:
            torch.testing.assert_close(norm.running_mean, expected.running_mean)
            torch.testing.assert_close(norm.running_var, expected.running_var)
        for name, encoder in fresh.model.encoders.items():
            passes = encoder[1].num_batches_tracked - before.encoders[name][1].num_batches_tracked
            assert passes <= 1
            if passes:
                torch.testing.assert_close(encoder[1].running_mean, joint.encoders[name][1].running_mean)


def test_reading_logits_again_changes_no_statistics():
    loop = make_loop("BMLR")
    output = loop.model.train()(loop.train.inputs)
    for read in (output.decision_logits, output.logits, output.unimodal_logits, output.encoder_logits):
        assert read is not None
    loop.method.labels(output, loop.train.targets)
    assert loop.model.fusion.norm.num_batches_tracked == 1


class Tokens(nn.Module):
    """Mean of the embedded tokens that the mask keeps."""

    num_features = 7

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(30, 7)

    def forward(self, x):
        mask = x["attention_mask"][..., None].to(self.embedding.weight.dtype)
        return (self.embedding(x["input_ids"]) * mask).sum(1) / mask.sum(1).clamp(min=1)


class Pair(nn.Module):
    """Sum of two layers, each for a tensor of its own."""

    num_features = 5

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 5), nn.Linear(3, 5)

    def forward(self, x):
        first, second = x
        return torch.tanh(self.first(first) + self.second(second))


def make_structured_loop(subject, samples=18):
    torch.manual_seed(0)
    model = bmlr.MultimodalClassifier({"text": Tokens(), "sensor": Pair()}, 3)
    inputs = {
        "text": {
            "input_ids": torch.randint(30, (samples, 6)),
            "attention_mask": torch.arange(6).expand(samples, 6) < 4,
        },
        "sensor": (torch.randn(samples, 4), torch.randn(samples, 3)),
    }
    batch = bmlr.Batch(inputs, torch.arange(samples) % 3, indices=torch.arange(samples))
    return MethodLoop(model, make_method(subject), batch, batch_size=6, max_epochs=2)


@each_subject
def test_inputs_may_hold_several_tensors(subject):
    loop = make_structured_loop(subject)
    before = {name: p.detach().clone() for name, p in loop.model.encoders.named_parameters()}
    loop.run([0, 1])
    trained = trained_modalities(subject, loop.model.modalities)
    for name, p in loop.model.encoders.named_parameters():
        assert torch.equal(p, before[name]) == (name.split(".")[0] not in trained), name
    if not method_class(subject).needs_all_modalities:
        present = {"text": torch.arange(18) > 5}
        for fresh, batch in kinds(loop, dataclasses.replace(loop.train, present=present)):
            compute(fresh, batch)


@each_subject
def test_the_one_sample_that_has_a_modality_is_trained(subject):
    if method_class(subject).needs_all_modalities:
        pytest.skip("needs all modalities")
    loop = make_loop(subject)
    present = {"video": torch.arange(18) == 4}
    for fresh, batch in kinds(loop, dataclasses.replace(loop.train, present=present)):
        norm = fresh.model.encoders["video"][1]
        before = norm.num_batches_tracked.clone()
        losses = compute(fresh, batch)
        assert all(bool(torch.isfinite(value)) for value in losses.terms.values())
        assert norm.num_batches_tracked == before
        assert norm.training


@each_subject
def test_an_encoder_of_two_modalities_is_counted_once_or_refused(subject):
    torch.manual_seed(0)
    shared = nn.Linear(4, 6)
    model = bmlr.MultimodalClassifier({"left": shared, "right": shared}, 3)
    batch = bmlr.Batch({name: torch.randn(18, 4) for name in ("left", "right")}, torch.arange(18) % 3)
    batch.indices = torch.arange(18)
    if method_class(subject).needs_separate_encoders:
        with pytest.raises(ValueError, match="acts on each encoder by itself and would count .* 'left' and 'right'"):
            MethodLoop(model, make_method(subject), batch)
        return
    loop = MethodLoop(model, make_method(subject), batch, max_epochs=2)
    for fresh, planned in kinds(loop):
        losses = fresh.method.compute_losses(fresh.model, planned)
        (expected,) = torch.autograd.grad(
            torch.stack(list(losses.terms.values())).sum(), fresh.model.encoders["left"].weight, retain_graph=True
        )
        fresh.method.backward(losses, fresh.model)
        torch.testing.assert_close(fresh.model.encoders["left"].weight.grad, expected)
