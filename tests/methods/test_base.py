"""What a method does that says nothing of its own, and the facts about a batch's losses."""

import pytest
import torch

import bmlr
from bmlr.methods import EpochContext, EpochPlan, Losses, Method
from bmlr.methods._bmlr import _info
from zoo import make_batch, make_model


class Plain(Method):
    """Cross-entropy, without a word on anything else."""

    def __init__(self, weight=2.0, name="plain"):
        super().__init__()
        self.weight, self.name = weight, name

    def losses(self, output, targets):
        loss = self.weight * torch.nn.functional.cross_entropy(output.logits, targets)
        return Losses({"fused": loss}, {"seen": torch.tensor(len(targets))})


def context(epoch, model):
    nothing = lambda: iter(())
    return EpochContext(epoch, 9, model, 8, nothing, nothing)


def test_state_of_a_method():
    method, model = Plain(), make_model()
    assert (method.epoch, method.max_epochs) == (0, 0)
    assert method.start_epoch(context(4, model)) == EpochPlan()
    method.end_epoch(context(4, model))
    method.adjust_gradients(model)
    assert method.state_dict() == {"epoch": torch.tensor(4), "max_epochs": torch.tensor(9)}
    other = Plain()
    other.load_state_dict(method.state_dict())
    assert (other.epoch, other.max_epochs) == (4, 9)
    assert repr(other) == "Plain(weight=2.0, name='plain')"


def test_an_epoch_is_one_pass_over_everything_with_the_optimiser_as_it_was():
    (planned,) = EpochPlan().passes
    assert (planned.tag, planned.indices, planned.fresh_optimizer, EpochPlan().order) == ("", None, False, "sequential")


@pytest.mark.parametrize("scale", [None, 1.0, 0.25, torch.tensor(512.0)])
def test_backward_is_that_of_the_scaled_total(scale):
    model, batch = make_model(dtype=torch.float64), make_batch(dtype=torch.float64)
    losses = Plain().compute_losses(model, batch)
    parameters = list(model.parameters())
    expected = torch.autograd.grad(losses.total, parameters, retain_graph=True)
    Plain().backward(losses, model, **({} if scale is None else {"scale": scale}))
    for parameter, gradient in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient * (1.0 if scale is None else scale))


def test_losses_of_the_model_come_with_those_of_its_readouts():
    model, batch = make_model(unimodal="auxiliary"), make_batch(present={"video": torch.arange(8) % 3 > 0})
    output = model(batch.inputs, batch.present)
    losses = Plain().compute_losses(model, batch)
    readouts = output.readout_losses(batch.targets)
    assert list(losses.terms) == ["fused", *readouts]
    assert set(readouts) == {"audio_readout", "video_readout"}
    for name, value in readouts.items():
        torch.testing.assert_close(losses.terms[name], value)
    torch.testing.assert_close(
        losses.terms["fused"], 2 * torch.nn.functional.cross_entropy(output.logits, batch.targets)
    )
    assert losses.logs == {"seen": torch.tensor(8)}
    without = Plain().compute_losses(make_model(), batch)
    assert (list(without.terms), without.logs) == (["fused"], {"seen": torch.tensor(8)})


def test_targets_are_checked_before_anything_else():
    output, targets = make_model()(make_batch().inputs), make_batch().targets
    with pytest.raises(ValueError, match=r"^`targets` should have shape \(8,\)"):
        Plain()(output, targets[:5])
    with pytest.raises(
        ValueError, match=r"^`targets` should lie in \[0, 2\] for 3 classes\. Found values from -1 to 1"
    ):
        Plain()(output, targets - 1)


def test_other_things_than_an_output_are_named():
    with pytest.raises(ValueError, match=r"^`output` should be .* Found dict: give method\(model\(inputs\), targets\)"):
        bmlr.BMLR()({"audio": torch.zeros(8, 3)}, torch.zeros(8).long())


def test_predictions_are_the_models():
    output = make_model()(make_batch().inputs)
    prediction = Plain().predict(output)
    assert torch.equal(prediction.logits, output.logits)
    assert prediction.unimodal_logits.keys() == output.unimodal_logits.keys()


def test_the_family_of_bmlr_has_one_paper():
    info = _info("Table V")
    assert (info.venue, info.family) == ("arXiv 2026, Table V", "labels and losses")
    for name in ("BMLR", "VanillaReshape", "OnlyTPO", "UniDistill", "UniReshaping", "OnlyReshape"):
        other = bmlr.methods.get(name).info
        assert (other.paper, other.url, other.family) == (info.paper, info.url, info.family)
