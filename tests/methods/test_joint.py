"""Joint training and joint training with even unimodal losses."""

import copy
import math

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

import bmlr
from bmlr.methods import Joint, UniformBaseline
from zoo import make_batch, make_model

every_fusion = pytest.mark.parametrize("fusion", bmlr.fusion.available())


def made(model, **parameters):
    method = UniformBaseline(**parameters)
    method.setup(model)
    return method


class TestJoint:
    @every_fusion
    def test_formula_and_gradient(self, fusion):
        model, batch = make_model(2, fusion), make_batch()
        losses = Joint().compute_losses(model, batch)
        assert list(losses.terms) == ["fused"]
        expected = F.cross_entropy(model(batch.inputs).logits, batch.targets)
        torch.testing.assert_close(losses.total, expected)
        losses.total.backward()
        assert all(p.grad is not None and p.grad.any() for p in model.parameters())

    def test_prediction(self):
        model, batch = make_model(), make_batch()
        output = model(batch.inputs)
        prediction = Joint().predict(output)
        torch.testing.assert_close(prediction.logits, output.logits, rtol=0, atol=0)
        torch.testing.assert_close(prediction.unimodal_logits, output.unimodal_logits, rtol=0, atol=0)

    def test_auxiliary_readouts_learn_beside(self):
        model, batch = make_model(unimodal="auxiliary"), make_batch()
        losses = Joint().compute_losses(model, batch)
        assert sorted(losses.terms) == ["audio_readout", "fused", "video_readout"]
        losses.total.backward()
        assert all(p.grad is not None and p.grad.any() for p in model.parameters())

    def test_wrong_targets(self):
        model, batch = make_model(), make_batch()
        with pytest.raises(ValueError, match=r"`targets` should lie in \[0, 2\]"):
            Joint()(model(batch.inputs), batch.targets - 100)


class TestUniformBaseline:
    @every_fusion
    @pytest.mark.parametrize("modalities", [2, 3])
    @pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
    def test_formula(self, fusion, modalities, weight):
        """CE(y, p) + w Σ CE(y, h_u(z^u)), all of it trained jointly."""
        model, batch = make_model(modalities, fusion), make_batch(modalities)
        method = made(model, weight=weight)
        output = model(batch.inputs)
        losses = method(output, batch.targets)
        expected = F.cross_entropy(output.logits, batch.targets)
        for name in model.modalities:
            head = method.heads[name]
            unimodal = F.cross_entropy(F.linear(output.features[name], head.weight, head.bias), batch.targets)
            torch.testing.assert_close(losses.terms[name], weight * unimodal)
            expected = expected + weight * unimodal
        torch.testing.assert_close(losses.total, expected)
        parameters = [*model.parameters(), *method.parameters()]
        actual = torch.autograd.grad(losses.total, parameters, retain_graph=True)
        for gradient, literal in zip(actual, torch.autograd.grad(expected, parameters), strict=True):
            torch.testing.assert_close(gradient, literal, rtol=1e-5, atol=1e-7)

    def test_prediction_is_of_its_own_heads(self):
        model, batch = make_model(), make_batch()
        method = made(model)
        output = model(batch.inputs)
        prediction = method.predict(output)
        torch.testing.assert_close(prediction.logits, output.logits, rtol=0, atol=0)
        for name, z in output.features.items():
            torch.testing.assert_close(prediction.unimodal_logits[name], method.heads[name](z), rtol=0, atol=0)

    def test_missing_modalities(self):
        model = make_model(dtype=torch.float64)
        present = {"video": torch.arange(8) % 3 != 0}
        batch = make_batch(dtype=torch.float64, present=present)
        method = made(model)
        terms = method.compute_losses(model, batch).terms
        mask = present["video"]
        z = model.encode("video", batch.inputs["video"][mask])
        torch.testing.assert_close(terms["video"], 0.5 * F.cross_entropy(method.heads["video"](z), batch.targets[mask]))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    def test_heads_follow_the_model(self, dtype):
        model = make_model(dtype=dtype)
        method = made(model)
        assert {p.dtype for p in method.parameters()} == {dtype}
        assert [tuple(head.weight.shape) for head in method.heads.values()] == [(3, 7), (3, 5)]

    @pytest.mark.parametrize("where", ["loss inside", "loss outside"])
    def test_autocast(self, where):
        model, batch = make_model(), make_batch(2, 32)
        method = made(model)
        expected = method(model(batch.inputs), batch.targets).total
        with torch.autocast("cpu", torch.bfloat16):
            output = model(batch.inputs)
            losses = method(output, batch.targets) if where == "loss inside" else None
        losses = losses or method(output, batch.targets)
        assert losses.total.dtype == torch.float32
        torch.testing.assert_close(losses.total, expected, rtol=0.03, atol=0.03)

    def test_state_and_copies(self):
        model, batch = make_model(), make_batch()
        method, other = made(model), made(model)
        total = method(model(batch.inputs), batch.targets).total
        assert not torch.equal(other(model(batch.inputs), batch.targets).total, total)
        other.load_state_dict(method.state_dict())
        for same in (other, copy.deepcopy(method)):
            torch.testing.assert_close(same(model(batch.inputs), batch.targets).total, total, rtol=0, atol=0)
        assert repr(method) == "UniformBaseline(weight=0.5)"

    def test_without_setup(self):
        model, batch = make_model(), make_batch()
        with pytest.raises(RuntimeError, match=r"UniformBaseline has heads for \[\] .* call `method.setup\(model\)`"):
            UniformBaseline()(model(batch.inputs), batch.targets)
        with pytest.raises(
            RuntimeError, match=r"^UniformBaseline .* `method.setup\(model\)` once, before the optimiser"
        ):
            UniformBaseline().predict(model(batch.inputs))
        with pytest.raises(RuntimeError, match=r"heads for \['audio', 'video'\] and got features of \['audio', 'te"):
            made(model)(make_model(3)(make_batch(3).inputs), batch.targets)

    @pytest.mark.parametrize("weight", [-0.5, math.nan, math.inf])
    def test_weight(self, weight):
        with pytest.raises(ValueError, match=f"`weight` should be a non-negative .* Found `weight = {weight}`"):
            UniformBaseline(weight=weight)
