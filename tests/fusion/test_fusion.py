"""Fusions against their formulas, written out with einsum; readouts, ablation, errors."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

import bmlr
from bmlr import fusion as fusions
from zoo import FEATURE_DIMS, MODALITIES

NUM_CLASSES = 4
ADDITIVE = ("concat", "sum", "mmcosine")


def make(name, modalities=2, *, order=None, **options):
    names = order or MODALITIES[:modalities]
    return fusions.create(name, {u: FEATURE_DIMS[u] for u in names}, NUM_CLASSES, **options).double()


def features_of(fusion, batch_size=5):
    return {
        u: torch.randn(batch_size, d, dtype=torch.float64, requires_grad=True) for u, d in fusion.feature_dims.items()
    }


def linear(layer, z):
    return torch.einsum("bd,cd->bc", z, layer.weight) + layer.bias


def cosines(z, weight):
    """Ten cosines per class; a vector of zeros has none with anything."""
    dots = torch.einsum("bd,cd->bc", z, weight)
    norms = torch.einsum("b,c->bc", z.square().sum(1).sqrt(), weight.square().sum(1).sqrt())
    return 10 * torch.where(norms > 0, dots / norms.clamp(min=1e-300), 0.0)


def literal(name, fusion, z):
    """The multimodal logits from the formulas and the layers' weights alone."""
    names = list(fusion.feature_dims)
    if name == "concat":
        return linear(fusion.linear, torch.cat([z[u] for u in names], 1))
    if name == "sum":
        return sum(linear(fusion.heads[u], z[u]) for u in names)
    if name == "mmcosine":
        return sum(cosines(z[u], fusion.heads[u].weight) for u in names)
    if name == "mmtm":
        squeezed = linear(fusion.squeeze, torch.cat([z[u] for u in names], 1)).clamp(min=0)
        gates = {u: 1 / (1 + torch.exp(-linear(fusion.excitations[u], squeezed))) for u in names}
        return sum(linear(fusion.heads[u], gates[u] * z[u]) for u in names) / len(names)
    a = fusion.conditioner
    total = 0
    for u in (u for u in names if u != a):
        if name == "film":
            both = linear(fusion.modulation[u], z[a])
            gamma, delta = both[:, : FEATURE_DIMS[u]], both[:, FEATURE_DIMS[u] :]
            term = linear(fusion.heads[u], gamma * z[u] + delta)
        else:
            gate = 1 / (1 + torch.exp(-linear(fusion.gates[u], z[a])))
            if name == "gated":
                term = linear(fusion.heads[u], gate * linear(fusion.projections[u], z[u]))
            else:
                tensor = fusion.bilinear[u].weight
                term = torch.einsum("bi,cij,bj->bc", gate, tensor, z[u]) + linear(fusion.heads[u], gate)
        total = total + term
    return total


@pytest.mark.parametrize("modalities", [2, 3])
@pytest.mark.parametrize("name", fusions.available())
class TestEveryFusion:
    def test_formula(self, name, modalities):
        fusion = make(name, modalities)
        z = features_of(fusion)
        torch.testing.assert_close(fusion(z), literal(name, fusion, z), rtol=1e-12, atol=1e-12)

    def test_unimodal_readout(self, name, modalities):
        """Additive fusions split exactly; the others are read with the other features at zero."""
        fusion = make(name, modalities)
        z = features_of(fusion)
        unimodal = fusion(z, unimodal=True)
        assert list(unimodal) == list(fusion.modalities)
        assert fusion.unimodal_readout == ("split" if name in ADDITIVE else "ablated")
        if name in ADDITIVE:
            torch.testing.assert_close(sum(unimodal.values()), fusion(z), rtol=1e-12, atol=1e-12)
        for u in unimodal:
            alone = {v: x if v == u else torch.zeros_like(x) for v, x in z.items()}
            ablated = literal(name, fusion, alone)
            if name == "concat":
                ablated = ablated - fusion.linear.bias * (1 - 1 / modalities)
            elif name == "sum":
                ablated = linear(fusion.heads[u], z[u])
            torch.testing.assert_close(unimodal[u], ablated, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("readout", ["ablated", "auxiliary"])
    def test_other_readouts(self, name, modalities, readout):
        fusion = make(name, modalities, unimodal=readout)
        z = features_of(fusion)
        unimodal = fusion(z, unimodal=True)
        for u in unimodal:
            if readout == "auxiliary":
                expected = linear(fusion.auxiliary[u], z[u])
            else:
                expected = literal(name, fusion, {v: x if v == u else torch.zeros_like(x) for v, x in z.items()})
            torch.testing.assert_close(unimodal[u], expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(fusion(z), literal(name, fusion, z), rtol=1e-12, atol=1e-12)

    def test_subsets(self, name, modalities):
        fusion = make(name, modalities)
        z = features_of(fusion)
        for keep in itertools.chain.from_iterable(
            itertools.combinations(fusion.modalities, n) for n in range(modalities + 1)
        ):
            kept = {u: x if u in keep else torch.zeros_like(x) for u, x in z.items()}
            torch.testing.assert_close(fusion(z, keep=keep), literal(name, fusion, kept), rtol=1e-12, atol=1e-12)
        with pytest.raises(ValueError, match=r"`keep` should name modalities among .*Found \['smell'\]"):
            fusion(z, keep=["smell"])

    def test_unimodal_logits_depend_on_their_modality_alone(self, name, modalities):
        """Also what lets every encoder learn: the gradient to its own features is not zero."""
        fusion = make(name, modalities)
        z = features_of(fusion)
        for u, logits in fusion(z, unimodal=True).items():
            gradients = torch.autograd.grad(logits.square().sum(), list(z.values()), allow_unused=True)
            for v, gradient in zip(z, gradients, strict=True):
                assert (gradient is not None and bool(gradient.any())) == (u == v), (u, v)

    def test_every_parameter_is_used(self, name, modalities):
        fusion = make(name, modalities)
        fusion(features_of(fusion)).square().sum().backward()
        assert all(p.grad is not None and p.grad.any() for p in fusion.parameters())

    def test_order_of_features_does_not_matter(self, name, modalities):
        fusion = make(name, modalities)
        z = features_of(fusion)
        shuffled = dict(reversed(list(z.items())))
        torch.testing.assert_close(fusion(shuffled), fusion(z), rtol=0, atol=0)
        for u, logits in fusion(shuffled, unimodal=True).items():
            torch.testing.assert_close(logits, fusion(z, unimodal=True)[u], rtol=0, atol=0)

    def test_state(self, name, modalities):
        fusion, other = make(name, modalities), make(name, modalities)
        z = features_of(fusion)
        assert not torch.equal(fusion(z), other(z))
        other.load_state_dict(fusion.state_dict())
        torch.testing.assert_close(other(z), fusion(z), rtol=0, atol=0)
        torch.testing.assert_close(copy.deepcopy(fusion)(z), fusion(z), rtol=0, atol=0)

    def test_half_precision_features(self, name, modalities):
        """Encoders under autocast hand over half precision to a fusion that is called after it."""
        fusion = make(name, modalities).float()
        z = {u: x.float().detach() for u, x in features_of(fusion).items()}
        actual = fusion({u: x.bfloat16() for u, x in z.items()})
        assert actual.dtype == torch.float32
        torch.testing.assert_close(actual, fusion({u: x.bfloat16().float() for u, x in z.items()}), rtol=0, atol=0)
        with torch.autocast("cpu", torch.bfloat16):
            inside, unimodal = fusion(z), fusion({u: x.bfloat16() for u, x in z.items()}, unimodal=True)
        torch.testing.assert_close(inside.float(), fusion(z), rtol=0.05, atol=0.05)
        for u, logits in fusion(z, unimodal=True).items():
            torch.testing.assert_close(unimodal[u].float(), logits, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("modalities", [2, 3])
@pytest.mark.parametrize("name", ["film", "gated", "bigated"])
class TestConditioner:
    def test_choice(self, name, modalities):
        fusion = make(name, modalities, conditioner="video")
        z = features_of(fusion)
        assert fusion.conditioner == "video"
        torch.testing.assert_close(fusion(z), literal(name, fusion, z), rtol=1e-12, atol=1e-12)

    def test_default_is_the_first(self, name, modalities):
        names = MODALITIES[:modalities]
        assert make(name, order=names).conditioner == "audio"
        assert make(name, order=names[::-1]).conditioner == names[-1]

    def test_unknown(self, name, modalities):
        with pytest.raises(ValueError, match=r"`conditioner` should be one of audio, .* Did you mean 'audio'\?"):
            make(name, modalities, conditioner="Audios")


class TestCosine:
    def test_lengths_do_not_matter(self):
        fusion = make("mmcosine", 3)
        z = features_of(fusion)
        expected = fusion(z)
        with torch.no_grad():
            fusion.heads["video"].weight.mul_(7.0)
        torch.testing.assert_close(fusion({u: (i + 2) * x for i, (u, x) in enumerate(z.items())}), expected)
        assert expected.abs().max() <= 30

    def test_what_has_no_direction_adds_nothing_and_has_a_small_gradient(self):
        fusion = make("mmcosine")
        z = features_of(fusion)
        absent = torch.zeros_like(z["video"], requires_grad=True)
        logits = fusion({"audio": z["audio"], "video": absent})
        torch.testing.assert_close(logits, fusion(z, keep=["audio"]), rtol=0, atol=0)
        logits.square().sum().backward()
        assert absent.grad.abs().max() < 1e3

    def test_scale(self):
        fusion = make("mmcosine")
        wide = make("mmcosine", scale=15)
        wide.load_state_dict(fusion.state_dict())
        z = features_of(fusion)
        torch.testing.assert_close(wide(z), 1.5 * fusion(z))
        with pytest.raises(ValueError, match="`scale` should be a positive finite number. Found `scale = 0`"):
            make("mmcosine", scale=0)


class TestErrors:
    def test_unknown_fusion(self):
        with pytest.raises(ValueError, match=r"`fusion` should be one of concat, .*'concta'`. Did you mean 'concat'\?"):
            fusions.create("concta", {"a": 2, "v": 2}, 3)

    @pytest.mark.parametrize(
        ("dims", "num_classes", "options", "message"),
        [
            ({}, 3, {}, "`feature_dims` should name at least 1 modality. Found none"),
            ({"a": 2, "v": 0}, 3, {}, r"`feature_dims\['v'\]` should be an integer of at least 1"),
            ({"a": 2, "v": 1.5}, 3, {}, r"`feature_dims\['v'\]` should be an integer of at least 1"),
            ({"a": 2, "v": 2}, 0, {}, r"`num_outputs` should be an integer of at least 1. Found `num_outputs = 0`"),
            ({"a": 2, "v": 2}, 3, {"unimodal": "spilt"}, r"`unimodal` should be one of .* Did you mean 'split'\?"),
        ],
    )
    def test_arguments(self, dims, num_classes, options, message):
        with pytest.raises(ValueError, match=message):
            fusions.create("concat", dims, num_classes, **options)

    def test_split_needs_a_sum(self):
        with pytest.raises(ValueError, match="`unimodal` should be one of ablated, auxiliary"):
            make("film", unimodal="split")
        with pytest.raises(NotImplementedError, match="FiLMFusion is not a sum over modalities"):
            make("film").split({})


class Product(bmlr.fusion.Fusion):
    """A fusion of the user's own: a product of experts, which implements ``fused`` alone."""

    def __init__(self, feature_dims, num_classes, **options):
        super().__init__(feature_dims, num_classes, **options)
        self.experts = nn.ModuleDict({u: nn.Linear(d, num_classes) for u, d in feature_dims.items()})

    def fused(self, features):
        return torch.stack([F.log_softmax(self.experts[u](z), 1) for u, z in features.items()]).sum(0)


@pytest.mark.parametrize("readout", [None, "ablated", "auxiliary"])
def test_own_fusion(readout):
    fusion = Product({"audio": 7, "video": 5}, 3, unimodal=readout).double()
    z = features_of(fusion)
    unimodal = fusion(z, unimodal=True)
    if readout == "auxiliary":
        torch.testing.assert_close(unimodal["audio"], linear(fusion.auxiliary["audio"], z["audio"]))
    else:
        expected = fusion.fused({"audio": z["audio"], "video": torch.zeros_like(z["video"])})
        torch.testing.assert_close(unimodal["audio"], expected)
