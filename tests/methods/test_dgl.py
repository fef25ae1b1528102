import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F  # noqa: N812

import bmlr
from bmlr.methods._bmlr import OnlyTPO
from bmlr.methods._dgl import DGL
from method_loop import assert_any_order, assert_every_fusion, assert_half_precision, assert_resumes
from zoo import make_batch, make_model


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters()}


def one_backward(model, batch, method):
    model.zero_grad()
    method(model(batch.inputs, batch.present), batch.targets).total.backward()
    method.adjust_gradients(model)
    return gradients(model)


def two_backwards(model, batch, alpha, unimodal_logits):
    """As the official code goes: unimodal losses, the fusion's gradients cleared, the multimodal loss."""
    model.zero_grad()
    features = {name: model.encode(name, x) for name, x in batch.inputs.items()}
    sum(alpha * F.cross_entropy(unimodal_logits(model.fusion, features, u), batch.targets) for u in features).backward()
    for p in model.fusion.parameters():
        p.grad = None
    F.cross_entropy(model.fusion({u: z.detach() for u, z in features.items()}), batch.targets).backward()
    return gradients(model)


def zero_padded(fusion, features, name):
    return fusion.fused({u: z if u == name else torch.zeros_like(z) for u, z in features.items()})


def own_bias(fusion, features, name):
    return F.linear(features[name], fusion.heads[name].weight, fusion.heads[name].bias)


def self_conditioned(fusion, features, name):
    return fusion.fused(dict.fromkeys(features, features[name]))


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 1000),
    modalities=st.sampled_from([2, 3]),
    fusion=st.sampled_from(bmlr.fusion.available()),
    alpha=st.floats(0.1, 10),
)
def test_gradients_are_those_of_two_backward_passes(seed, modalities, fusion, alpha):
    model = make_model(modalities, fusion, dtype=torch.float64, seed=seed)
    batch = make_batch(modalities, 5, dtype=torch.float64, seed=seed)
    expected = copy.deepcopy(two_backwards(model, batch, alpha, zero_padded))
    torch.testing.assert_close(one_backward(model, batch, DGL(alpha, clip=None)), expected, atol=1e-9, rtol=1e-6)


def test_official_reading_of_a_sum_has_its_own_bias_only():
    model, batch = make_model(3, "sum", dtype=torch.float64), make_batch(3, dtype=torch.float64)
    expected = copy.deepcopy(two_backwards(model, batch, 4.0, own_bias))
    method = DGL(clip=None, surrogate="official")
    torch.testing.assert_close(one_backward(model, batch, method), expected)


@pytest.mark.parametrize("surrogate", ["zero", "official"])
@pytest.mark.parametrize("fusion", bmlr.fusion.available())
def test_predictions_are_the_logits_that_were_trained(fusion, surrogate):
    """Losses of the method are those of its prediction, to every fusion and reading."""
    model, batch = equal_width_model(fusion), make_batch(dtype=torch.float64)
    method = DGL(alpha=3.0, surrogate=surrogate)
    output = model(batch.inputs)
    losses, prediction = method(output, batch.targets).terms, method.predict(model(batch.inputs))
    torch.testing.assert_close(F.cross_entropy(prediction.logits, batch.targets), losses["fused"])
    for name, logits in prediction.unimodal_logits.items():
        torch.testing.assert_close(3 * F.cross_entropy(logits, batch.targets), losses[name])
    if fusion == "concat":
        difference = prediction.unimodal_logits["audio"] - output.unimodal_logits["audio"]
        torch.testing.assert_close(difference, (model.fusion.linear.bias / 2).expand_as(difference))


def test_auxiliary_heads_are_read_where_they_were_asked_for():
    encoders = {name: torch.nn.Linear(width, 6) for name, width in (("audio", 4), ("video", 6))}
    model = bmlr.MultimodalClassifier(encoders, 3, fusion_options={"unimodal": "auxiliary"})
    output = model(make_batch().inputs)
    for method in (DGL(), bmlr.methods.CML()):
        for name, logits in method.predict(output).unimodal_logits.items():
            assert torch.equal(logits, output.unimodal_logits[name])


def equal_width_model(fusion, modalities=("audio", "video")):
    encoders = {name: torch.nn.Linear({"audio": 4, "video": 6, "text": 5}[name], 6) for name in modalities}
    return bmlr.MultimodalClassifier(encoders, 3, fusion).double()


def test_official_reading_of_film_conditions_a_modality_on_itself():
    model, batch = equal_width_model("film"), make_batch(dtype=torch.float64)
    expected = copy.deepcopy(two_backwards(model, batch, 4.0, self_conditioned))
    torch.testing.assert_close(one_backward(model, batch, DGL(clip=None, surrogate="official")), expected)


@pytest.mark.parametrize("modalities", [("audio", "video"), ("audio", "video", "text")])
def test_official_reading_of_gated_is_self_gated_and_never_trains_gates_and_projections(modalities):
    model, batch = equal_width_model("gated", modalities), make_batch(modalities, dtype=torch.float64)
    fusion = model.fusion

    def self_gated(fusion, features, name):
        hidden = (
            {u: fusion.gates[u](features[name]) for u in fusion.conditioned}
            if name == "audio"
            else {name: fusion.projections[name](features[name])}
        )
        return sum(fusion.heads[u](h.sigmoid() * h) for u, h in hidden.items())

    expected = copy.deepcopy(two_backwards(model, batch, 4.0, self_gated))
    for name in list(expected):
        if name.startswith(("fusion.gates", "fusion.projections")):
            expected[name] = None
    actual = one_backward(model, batch, DGL(clip=None, surrogate="official"))
    assert {name for name, g in actual.items() if g is None} == {name for name, g in expected.items() if g is None}
    for name, value in expected.items():
        if value is not None:
            torch.testing.assert_close(actual[name], value)
    fused = DGL(surrogate="official")._fused_logits(model(batch.inputs))
    torch.testing.assert_close(fused, fusion(model(batch.inputs).features))


def test_official_reading_of_film_needs_equal_widths():
    with pytest.raises(
        ValueError, match=r"^DGL with `surrogate = .* a FiLM fusion, so that all `feature_dims` should be"
    ):
        DGL(surrogate="official").setup(make_model(2, "film"))
    DGL(surrogate="official").setup(equal_width_model("film"))
    DGL().setup(make_model(2, "film"))


@pytest.mark.parametrize("fusion", bmlr.fusion.available())
def test_encoders_learn_from_unimodal_and_the_fusion_from_fused_losses_only(fusion):
    model, batch = make_model(3, fusion), make_batch(3)
    terms = DGL()(model(batch.inputs), batch.targets).terms
    terms["fused"].backward(retain_graph=True)
    assert all(p.grad is None for p in model.encoders.parameters())
    model.zero_grad()
    sum(value for name, value in terms.items() if name != "fused").backward()
    assert all(p.grad is None for p in model.fusion.parameters())


def test_alpha_scales_the_encoders_gradients_alone():
    model, batch = make_model(3), make_batch(3)
    one = copy.deepcopy(one_backward(model, batch, DGL(1.0, clip=None)))
    four = one_backward(model, batch, DGL(4.0, clip=None))
    for name, value in one.items():
        assert torch.equal(four[name], value if name.startswith("fusion") else 4 * value)


def test_clips_the_joint_norm():
    model, batch = make_model(), make_batch()
    free = copy.deepcopy(one_backward(model, batch, DGL(1000.0, clip=None)))
    norm = torch.cat([g.flatten() for g in free.values()]).norm()
    assert norm.item() > 40
    clipped = one_backward(model, batch, DGL(1000.0))
    for name, value in free.items():
        torch.testing.assert_close(clipped[name], value * 40 / norm, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("modalities", [2, 3])
def test_is_only_tpo_bit_for_bit_where_that_reads_the_whole_bias(modalities):
    model, batch = make_model(modalities, unimodal="ablated"), make_batch(modalities)
    dgl = copy.deepcopy(one_backward(model, batch, DGL(1.0, clip=None)))
    tpo = one_backward(model, batch, OnlyTPO())
    assert all(torch.equal(dgl[name], tpo[name]) for name in dgl)


def test_differs_from_only_tpo_by_the_bias():
    model, batch = make_model(), make_batch()
    with torch.no_grad():
        model.fusion.linear.bias.copy_(torch.tensor([1.0, -1.0, 0.5]))
    dgl = copy.deepcopy(one_backward(model, batch, DGL(1.0, clip=None)))
    tpo = one_backward(model, batch, OnlyTPO())
    assert torch.equal(dgl["fusion.linear.weight"], tpo["fusion.linear.weight"])
    assert not torch.allclose(dgl["encoders.audio.3.weight"], tpo["encoders.audio.3.weight"])


def test_samples_without_a_modality_are_left_out_of_its_loss():
    present = {"video": torch.tensor([True, False, True, False])}
    model, batch = make_model(dtype=torch.float64), make_batch(batch_size=4, dtype=torch.float64, present=present)
    rows = present["video"]
    terms = DGL(1.0)(model(batch.inputs, batch.present), batch.targets).terms
    alone = DGL(1.0)(model({u: x[rows] for u, x in batch.inputs.items()}), batch.targets[rows]).terms
    torch.testing.assert_close(terms["video"], alone["video"])


@pytest.mark.parametrize("modalities", [2, 3])
def test_resumes_bit_for_bit(modalities):
    assert_resumes(DGL, modalities)


def test_order_of_modalities_does_not_matter():
    assert_any_order(DGL, ("audio", "video", "text"))


@pytest.mark.parametrize("surrogate", ["zero", "official"])
def test_half_precision(surrogate):
    assert_half_precision(lambda: DGL(surrogate=surrogate), 3)


def test_half_precision_of_the_official_gated_reading():
    model, batch = make_model(2, "gated"), make_batch()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(batch.inputs)
    DGL(surrogate="official")(output, batch.targets).total.backward()  # half precision features outside autocast
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.encoders.parameters())


@pytest.mark.parametrize("modalities", [2, 3])
@pytest.mark.parametrize("fusion", bmlr.fusion.available())
def test_every_fusion(fusion, modalities):
    assert_every_fusion(DGL, fusion, modalities)


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ({"alpha": 0.0}, "alpha"),
        ({"alpha": math.inf}, "alpha"),
        ({"clip": 0.0}, "clip"),
        ({"surrogate": "self"}, "surrogate"),
    ],
)
def test_bad_parameters(parameters, name):
    with pytest.raises(ValueError, match=f"Parameter `{name}` should"):
        DGL(**parameters)


@pytest.mark.parametrize("fusion", bmlr.fusion.available())
def test_official_readings_of_a_single_modality_are_the_general_one(fusion):
    model, batch = make_model(("audio",), fusion), make_batch(("audio",))
    terms = [DGL(surrogate=surrogate)(model(batch.inputs), batch.targets).terms for surrogate in ("zero", "official")]
    assert terms[0].keys() == {"fused", "audio"}
    assert all(torch.equal(terms[0][name], terms[1][name]) for name in terms[0])
