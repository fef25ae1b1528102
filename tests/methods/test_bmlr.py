"""BMLR and its ablations: whom each loss trains, the paper's algorithm literally, the ablations' formulas."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.utils._python_dispatch import TorchDispatchMode

import bmlr
import oracle
from bmlr.functional import reshape_labels
from bmlr.methods import BMLR, Joint, OnlyReshape, OnlyTPO, UniDistill, UniReshaping, VanillaReshape
from zoo import make_batch, make_model

FUSIONS = bmlr.fusion.available()
TARGETED = [
    BMLR(0.7, 0.05),
    VanillaReshape(0.7, 0.05),
    OnlyTPO(),
    UniDistill(),
    UniDistill(gate=False),
    UniReshaping(0.2, targeted=True),
]
ALL = [*TARGETED, OnlyReshape(0.7, 0.05)]

every_fusion = pytest.mark.parametrize("fusion", FUSIONS)
two_and_three = pytest.mark.parametrize("modalities", [2, 3])
targeted = pytest.mark.parametrize("method", TARGETED, ids=repr)
every_method = pytest.mark.parametrize("method", ALL, ids=repr)


def reached(value, model):
    """The parameters with a gradient that is neither absent nor exactly zero."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad(value, parameters, allow_unused=True, retain_graph=True)
    return {name for name, g in zip(names, gradients, strict=True) if g is not None and g.any()}


def parameters_of(model, split):
    return {name for name, _ in model.named_parameters() if name.startswith(split)}


def unimodal_logits(fusion, z):
    """Unimodal logits written out: the layer's terms with b / M for concatenation, zeroed features if not additive."""
    if isinstance(fusion, bmlr.fusion.ConcatFusion):
        offsets = [0, *itertools.accumulate(fusion.feature_dims.values())]
        weights = {u: fusion.linear.weight[:, i:j] for u, (i, j) in zip(z, itertools.pairwise(offsets), strict=True)}
        return {u: z[u] @ weights[u].T + fusion.linear.bias / len(z) for u in z}
    if isinstance(fusion, bmlr.fusion.SumFusion):
        return {u: fusion.heads[u](z[u]) for u in z}
    return {u: fusion.fused({v: x if v == u else 0 * x for v, x in z.items()}) for u in z}


def cross_entropy(logits, labels):
    return -(labels * F.log_softmax(logits, 1)).sum(1).mean()


def one_hot(targets, num_classes):
    return F.one_hot(targets, num_classes).double()


def oracle_labels(logits, targets, alpha, beta, **options):
    rows = {u: values.detach().numpy() for u, values in logits.items()}
    labels, intensity = oracle.reshape_batch(rows, targets.numpy(), alpha, beta, **options)
    return {u: torch.from_numpy(values) for u, values in labels.items()}, intensity


class TestTargetedParameterOptimization:
    @targeted
    @every_fusion
    @two_and_three
    def test_whom_each_loss_trains(self, fusion, modalities, method):
        """∂L⁰/∂θᵘ, ∂Lᵘ/∂Θ and ∂Lᵘ/∂θᵛ are exactly zero; all other gradients are there, for every encoder."""
        model = make_model(modalities, fusion)
        batch = make_batch(modalities, 16)
        terms = method(model(batch.inputs), batch.targets).terms
        assert list(terms) == ["fused", *model.modalities]
        assert reached(terms["fused"], model) == parameters_of(model, "fusion.")
        for name in model.modalities:
            assert reached(terms[name], model) == parameters_of(model, f"encoders.{name}.")

    @every_fusion
    @two_and_three
    def test_auxiliary_readout(self, fusion, modalities):
        """Encoders learn through frozen auxiliary heads, the heads from losses of their own."""
        model = make_model(modalities, fusion, unimodal="auxiliary")
        batch = make_batch(modalities, 16)
        terms = BMLR()(model(batch.inputs), batch.targets).terms
        heads = parameters_of(model, "fusion.auxiliary.")
        assert set(terms) == {"fused", *model.modalities, *(f"{name}_readout" for name in model.modalities)}
        assert reached(terms["fused"], model) == parameters_of(model, "fusion.") - heads
        for name in model.modalities:
            assert reached(terms[name], model) == parameters_of(model, f"encoders.{name}.")
            assert reached(terms[f"{name}_readout"], model) == parameters_of(model, f"fusion.auxiliary.{name}.")

    @every_fusion
    def test_only_reshape_trains_everything_jointly(self, fusion):
        model = make_model(2, fusion)
        batch = make_batch(2, 16)
        terms = OnlyReshape()(model(batch.inputs), batch.targets).terms
        assert reached(terms["fused"], model) == parameters_of(model, "")
        for name in model.modalities:
            assert parameters_of(model, f"encoders.{name}.") < reached(terms[name], model)


def algorithm_1(model, batches, alpha, beta, make_optimizer):
    """The paper's Algorithm 1: an optimiser per parameter group, a backward pass per loss, heads trained jointly."""
    groups = {u: list(model.encoders[u].parameters()) for u in model.modalities}
    groups["fused"] = list(model.fusion.parameters())
    optimizers = {name: make_optimizer(parameters) for name, parameters in groups.items()}
    for batch in batches:
        z = {u: model.encoders[u](batch.inputs[u]) for u in model.modalities}
        logits = unimodal_logits(model.fusion, z)
        labels, _ = oracle_labels(logits, batch.targets, alpha, beta)
        losses = {u: cross_entropy(logits[u], labels[u]) for u in z}
        losses["fused"] = cross_entropy(model.fusion.fused(z), one_hot(batch.targets, model.task.num_outputs))
        kept = {}
        for name, loss in losses.items():
            model.zero_grad()
            loss.backward(retain_graph=True)  # reaches every parameter; the group's own gradient is kept
            kept[name] = [p.grad.clone() for p in groups[name]]
        for name, optimizer in optimizers.items():
            for parameter, gradient in zip(groups[name], kept[name], strict=True):
                parameter.grad = gradient
            optimizer.step()


OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-3),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=1e-2),
}


@every_fusion
@two_and_three
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_one_backward_equals_algorithm_1(fusion, modalities, optimizer):
    make_optimizer = OPTIMIZERS[optimizer]
    literal, model = (make_model(modalities, fusion, dtype=torch.float64) for _ in range(2))
    before = copy.deepcopy(model.state_dict())
    batches = [make_batch(modalities, 6, dtype=torch.float64, seed=seed) for seed in range(6)]
    algorithm_1(literal, batches, 0.7, 0.05, make_optimizer)
    method, stepper = BMLR(0.7, 0.05), make_optimizer(model.parameters())
    for batch in batches:
        stepper.zero_grad()
        method(model(batch.inputs), batch.targets).total.backward()
        stepper.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, literal.get_parameter(name), rtol=0, atol=1e-12)
        assert not torch.equal(parameter, before[name])


def train(model, method, batches):
    method.setup(model)
    optimizer = torch.optim.Adam([*model.parameters(), *method.parameters()], lr=1e-2)
    losses = []
    for batch in batches:
        optimizer.zero_grad()
        total = method.compute_losses(model, batch).total
        total.backward()
        optimizer.step()
        losses.append(total.item())
    return losses


@every_fusion
@two_and_three
@pytest.mark.parametrize("missing", [False, True], ids=["complete", "missing"])
def test_only_tpo_is_bmlr_at_beta_one_bit_for_bit(fusion, modalities, missing):
    present = {"video": torch.arange(8) % 3 != 0} if missing else None
    batches = [make_batch(modalities, 8, seed=seed, present=present) for seed in range(5)]
    models = [make_model(modalities, fusion, batch_norm=True) for _ in range(2)]
    first, second = (
        train(model, method, batches) for model, method in zip(models, (OnlyTPO(), BMLR(beta=1.0)), strict=True)
    )
    assert first == second
    for name, value in models[0].state_dict().items():
        assert torch.equal(value, models[1].state_dict()[name]), name


class TestNames:
    @every_method
    def test_renaming_renames_the_results(self, method):
        """Exchange the names of two modalities and their results are exchanged."""
        model, batch = make_model(["audio", "text"], dtype=torch.float64), make_batch(["audio", "text"], 16)
        inputs = {u: x.double() for u, x in batch.inputs.items()}
        swap = {"audio": "text", "text": "audio"}
        dims = {swap[u]: d for u, d in model.fusion.feature_dims.items()}
        renamed = bmlr.MultimodalClassifier(
            {swap[u]: copy.deepcopy(encoder) for u, encoder in model.encoders.items()},
            fusion=bmlr.fusion.ConcatFusion(dims, 3).double(),
        )
        renamed.fusion.load_state_dict(model.fusion.state_dict())
        expected = method(model(inputs), batch.targets)
        actual = method(renamed({swap[u]: x for u, x in inputs.items()}), batch.targets)
        for u in swap:
            torch.testing.assert_close(actual.terms[swap[u]], expected.terms[u], rtol=0, atol=0)
            if expected.logs:
                assert actual.logs[f"reshaped_{swap[u]}"] == expected.logs[f"reshaped_{u}"]
        torch.testing.assert_close(actual.terms["fused"], expected.terms["fused"], rtol=0, atol=0)

    @every_method
    @pytest.mark.parametrize("fusion", ["sum", "film"])
    def test_order_does_not_matter(self, method, fusion):
        options = {} if fusion == "sum" else {"conditioner": "text"}
        model, batch = make_model(3, fusion, dtype=torch.float64, **options), make_batch(3, 16, dtype=torch.float64)
        expected = method(model(batch.inputs), batch.targets)
        for names in itertools.permutations(model.modalities):
            other = make_model(names, fusion, dtype=torch.float64, **options)
            other.load_state_dict(model.state_dict())
            actual = method(other({u: batch.inputs[u] for u in names}), batch.targets)
            assert set(actual.terms) == set(expected.terms)
            for name, value in expected.terms.items():
                torch.testing.assert_close(actual.terms[name], value, rtol=1e-12, atol=0)


@every_fusion
@two_and_three
class TestFormulas:
    """Each ablation's losses from its own formula, in double precision, by the oracle."""

    def check(self, method, fusion, modalities, make_labels):
        model = make_model(modalities, fusion, dtype=torch.float64)
        batch = make_batch(modalities, 16, dtype=torch.float64)
        output = model(batch.inputs)
        z = {u: model.encoders[u](batch.inputs[u]) for u in model.modalities}
        logits = unimodal_logits(model.fusion, z)
        labels = make_labels(logits, batch.targets)
        losses = method(output, batch.targets)
        expected = {u: cross_entropy(logits[u], labels[u]) for u in z}
        expected["fused"] = cross_entropy(model.fusion.fused(z), one_hot(batch.targets, 3))
        for name, value in expected.items():
            torch.testing.assert_close(losses.terms[name], value, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(losses.total, sum(expected.values()), rtol=1e-12, atol=1e-12)
        return losses, expected, logits, batch.targets, model

    @pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
    def test_bmlr(self, fusion, modalities, beta):
        method = BMLR(alpha=1.5, beta=beta)
        losses, _, logits, targets, _ = self.check(
            method, fusion, modalities, lambda logits, y: oracle_labels(logits, y, 1.5, beta)[0]
        )
        _, intensity = oracle_labels(logits, targets, 1.5, beta)
        for u, xi in intensity.items():
            assert losses.logs[f"reshaped_{u}"].item() == pytest.approx(np.mean(xi > 0))
            assert not losses.logs[f"reshaped_{u}"].requires_grad

    def test_vanilla_reshape(self, fusion, modalities):
        self.check(
            VanillaReshape(1.5, 0.1),
            fusion,
            modalities,
            lambda logits, y: oracle_labels(logits, y, 1.5, 0.1, keep_one_hot=False)[0],
        )

    def test_only_tpo(self, fusion, modalities):
        losses, *_ = self.check(
            OnlyTPO(), fusion, modalities, lambda logits, y: {u: one_hot(y, x.shape[1]) for u, x in logits.items()}
        )
        assert losses.logs == {}

    def test_uni_distill(self, fusion, modalities):
        def others(logits, _):
            p = {u: values.detach().softmax(1) for u, values in logits.items()}
            return {u: sum(p[v] for v in p if v != u) / (len(p) - 1) for u in p}

        self.check(UniDistill(gate=False), fusion, modalities, others)

    def test_gated_uni_distill(self, fusion, modalities):
        """The surest learns what the least sure predicts, the others keep the truth: Vanilla-Reshape at T = 1."""

        def from_the_least_sure(logits, targets):
            labels = {u: one_hot(targets, values.shape[1]) for u, values in logits.items()}
            p = {u: values.detach().softmax(1) for u, values in logits.items()}
            for i, y in enumerate(targets.tolist()):
                surest, least = max(p, key=lambda u: p[u][i, y]), min(p, key=lambda u: p[u][i, y])
                labels[surest][i] = p[least][i]
            return labels

        losses, *_ = self.check(UniDistill(), fusion, modalities, from_the_least_sure)
        assert all(0 < float(losses.logs[f"reshaped_{u}"]) < 1 for u in list(losses.terms)[1:])

    def test_gated_uni_distill_is_vanilla_reshape_where_its_temperature_is_one(self, fusion, modalities):
        model = make_model(modalities, fusion, dtype=torch.float64)
        for seed in range(4):
            batch = make_batch(modalities, 1, dtype=torch.float64, seed=seed)
            output = model(batch.inputs)
            ratios = bmlr.confidence_ratio(output.unimodal_logits, batch.targets)
            alpha = max(float(ratio) for ratio in ratios.values())  # T = α λ of the weakest, and λ of both is 1 / λ
            labels = VanillaReshape(alpha, 0.0).labels(output, batch.targets)
            for name, label in UniDistill().labels(output, batch.targets).items():
                torch.testing.assert_close(label, labels[name])

    def test_uni_reshaping(self, fusion, modalities):
        self.check(
            UniReshaping(0.3, targeted=True),
            fusion,
            modalities,
            lambda logits, y: {u: 0.7 * one_hot(y, 3) + 0.1 for u in logits},
        )

    def test_only_reshape(self, fusion, modalities):
        """The same losses, and gradients as of their plain sum."""
        losses, expected, *_, model = self.check(
            OnlyReshape(1.5, 0.1), fusion, modalities, lambda logits, y: oracle_labels(logits, y, 1.5, 0.1)[0]
        )
        parameters = list(model.parameters())
        actual = torch.autograd.grad(losses.total, parameters)
        for gradient, literal in zip(actual, torch.autograd.grad(sum(expected.values()), parameters), strict=True):
            torch.testing.assert_close(gradient, literal, rtol=1e-10, atol=1e-12)


class TestOneLoss:
    """UniReshaping as label smoothing of the multimodal prediction."""

    @every_fusion
    def test_it_is_joint_training_with_a_smoothed_label(self, fusion):
        model, batch = make_model(2, fusion, dtype=torch.float64), make_batch(2, 6, dtype=torch.float64)
        output = model(batch.inputs)
        losses = UniReshaping(0.3)(output, batch.targets)
        assert list(losses.terms) == ["fused"]
        expected = F.cross_entropy(output.logits, batch.targets, label_smoothing=0.3)
        torch.testing.assert_close(losses.total, expected, rtol=1e-12, atol=1e-14)
        assert reached(losses.total, model) == parameters_of(model, "")

    def test_without_smoothing_it_is_joint_training(self):
        for make in (lambda: make_model(3), lambda: make_model(2, dtype=torch.float64)):
            model = make()
            batch = make_batch(len(model.modalities), 6, dtype=next(model.parameters()).dtype)
            losses = [method(model(batch.inputs), batch.targets).total for method in (UniReshaping(0.0), Joint())]
            torch.testing.assert_close(*losses)

    def test_samples_without_target_and_several_labels(self):
        encoders = {"audio": nn.Linear(4, 8), "video": nn.Linear(6, 8)}
        model = bmlr.MultimodalClassifier(encoders, bmlr.tasks.MultiLabel(2)).double()
        inputs = make_batch(2, 4, dtype=torch.float64).inputs
        targets = torch.tensor([[0, 1], [1, 1], [1, 0], [0, 0]]).double()
        output = model(inputs)
        expected = F.binary_cross_entropy_with_logits(output.logits, 0.7 * targets + 0.15)
        torch.testing.assert_close(UniReshaping(0.3)(output, targets).total, expected)


class TestMissingModalities:
    @every_method
    @every_fusion
    def test_losses_count_who_is_there(self, method, fusion):
        """Lᵘ is the mean over the samples that have u, with labels among the modalities each sample has."""
        model = make_model(3, fusion, dtype=torch.float64)
        present = {"audio": torch.arange(12) % 3 != 0, "text": torch.arange(12) % 4 != 1}
        batch = make_batch(3, 12, dtype=torch.float64, present=present)
        output = model(batch.inputs, present)
        terms = method(output, batch.targets).terms
        masks = {**present, "video": torch.ones(12, dtype=torch.bool)}
        logits = {u: values.detach() for u, values in output.unimodal_logits.items()}
        rows = []
        for i in range(12):  # each sample alone, without the modalities it lacks
            names = [u for u in logits if masks[u][i]]
            one = {u: logits[u][i : i + 1] for u in names}
            y = batch.targets[i : i + 1]
            if isinstance(method, UniReshaping):
                labels = {u: bmlr.functional.smooth_labels(y, 3, epsilon=0.2, dtype=torch.float64) for u in one}
            elif len(one) < 2 or isinstance(method, OnlyTPO):
                labels = {u: one_hot(y, 3) for u in one}
            elif isinstance(method, UniDistill):
                gated = reshape_labels(one, y, alpha=1.0, beta=0.0, keep_one_hot=False, temperature=1.0).labels
                labels = gated if method.gate else bmlr.functional.cross_modal_labels(one, y)
            else:
                labels, _ = oracle_labels(one, y, 0.7, 0.05, keep_one_hot=not isinstance(method, VanillaReshape))
            rows.append({u: cross_entropy(one[u], labels[u]) for u in one})
        for u in logits:
            expected = torch.stack([row[u] for row in rows if u in row]).mean()
            torch.testing.assert_close(terms[u], expected, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(terms["fused"], F.cross_entropy(output.logits, batch.targets))

    @every_method
    def test_absent_in_the_whole_batch(self, method):
        model = make_model(2, batch_norm=True)
        nobody = {"video": torch.zeros(8, dtype=torch.bool)}
        batch = make_batch(2, 8, present=nobody)
        losses = method.compute_losses(model, batch)
        losses.total.backward()
        assert losses.terms["video"] == 0
        assert losses.total.isfinite()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
        assert all(p.grad is None or not p.grad.any() for p in model.encoders["video"].parameters())


class TestEdges:
    @every_method
    @pytest.mark.parametrize(("num_classes", "batch_size"), [(2, 8), (2, 1), (1000, 1), (100_000, 2)])
    def test_sizes(self, method, num_classes, batch_size):
        model = make_model(2, num_classes=num_classes)
        batch = make_batch(2, batch_size, num_classes=num_classes)
        losses = method(model(batch.inputs), batch.targets)
        losses.total.backward()
        assert losses.total.isfinite()
        assert all(p.grad.isfinite().all() for p in model.parameters())

    @every_method
    def test_one_class_in_the_batch(self, method):
        model, batch = make_model(), make_batch()
        losses = method(model(batch.inputs), torch.full_like(batch.targets, 2))
        assert losses.total.isfinite()

    @every_method
    @pytest.mark.parametrize("scale", [1e-6, 1e3, 1e6])
    def test_confident_models(self, method, scale):
        """p_y → 0 and → 1: finite losses and gradients, however large the logits."""
        model, batch = make_model(), make_batch(2, 32)
        with torch.no_grad():
            model.fusion.linear.weight.mul_(scale)
        losses = method(model(batch.inputs), batch.targets)
        losses.total.backward()
        assert losses.total.isfinite()
        assert all(p.grad.isfinite().all() for p in model.parameters())

    @every_method
    @pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32], ids=str)
    def test_integer_targets(self, method, dtype):
        model, batch = make_model(), make_batch()
        expected = method(model(batch.inputs), batch.targets).total
        torch.testing.assert_close(method(model(batch.inputs), batch.targets.to(dtype)).total, expected)

    @every_method
    def test_nan_is_loud(self, method):
        """NaN logits give a NaN loss of the modality they are of, and of the multimodal prediction."""
        model, batch = make_model(), make_batch()
        batch.inputs["audio"][3] = math.nan
        terms = method(model(batch.inputs), batch.targets).terms
        assert terms["fused"].isnan()
        assert terms["audio"].isnan()
        assert terms["video"].isfinite()

    @every_method
    def test_wrong_targets(self, method):
        model, batch = make_model(), make_batch()
        output = model(batch.inputs)
        with pytest.raises(ValueError, match=r"`targets` should lie in \[0, 2\]"):
            method(output, batch.targets + 3)
        with pytest.raises(ValueError, match=r"`targets` should have shape \(8,\)"):
            method(output, batch.targets[:4])
        with pytest.raises(ValueError, match="`targets` should be class indices"):
            method(output, batch.targets.float())

    @pytest.mark.parametrize("cls", [BMLR, VanillaReshape, OnlyReshape])
    def test_parameters(self, cls):
        for alpha in (0.0, -1.0, math.nan, math.inf):
            with pytest.raises(ValueError, match=f"`alpha` should be a positive .* Found `alpha = {alpha}`"):
                cls(alpha=alpha)
        for beta in (-0.1, 1.1, math.nan):
            with pytest.raises(ValueError, match=rf"`beta` should lie in \[0, 1\]. Found `beta = {beta}`"):
                cls(beta=beta)
        assert (cls(beta=0).beta, cls(beta=1).beta) == (0.0, 1.0)
        with pytest.raises(ValueError, match="`epsilon` should lie in"):
            UniReshaping(epsilon=-0.1)


class TestObject:
    @every_method
    def test_state_copy_and_repr(self, method):
        twin = copy.deepcopy(method)
        twin.epoch = 7
        method.load_state_dict(twin.state_dict())
        assert method.epoch == 7
        namespace = {"BMLR": BMLR, **vars(bmlr.methods)}
        again = eval(repr(method), namespace)  # noqa: S307  (our own repr)
        assert type(again) is type(method)
        assert again.hparams == method.hparams
        model, batch = make_model(), make_batch()
        total = method(model(batch.inputs), batch.targets).total
        for other in (twin, again):
            torch.testing.assert_close(other(model(batch.inputs), batch.targets).total, total, rtol=0, atol=0)
        assert not list(method.parameters())

    def test_repr(self):
        assert repr(BMLR(alpha=0.5)) == "BMLR(alpha=0.5, beta=0.5)"


class OwnEncoder(nn.Module):
    """An encoder as a user would write it."""

    def __init__(self, in_features, out_features):
        super().__init__()
        self.out_features = out_features
        self.body = nn.Sequential(nn.Linear(in_features, out_features), nn.BatchNorm1d(out_features), nn.ReLU())

    def forward(self, x):
        return self.body(x)


@every_method
@every_fusion
def test_drop_in(method, fusion):
    """A loop of one's own, encoders of one's own, one extra line: the model learns."""
    model = bmlr.MultimodalClassifier({"audio": OwnEncoder(4, 8), "video": OwnEncoder(6, 8)}, 3, fusion)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    batch = make_batch(2, 48)
    losses = []
    for _ in range(40):
        terms = method(model(batch.inputs), batch.targets).terms
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()
        losses.append(terms["fused"].item())
    if isinstance(method, UniDistill) and not method.gate:
        # Its encoders see each other and never a label: the classifier head learns alone.
        assert losses[-1] < 0.9 * losses[0]
        return
    assert losses[-1] < 0.75 * losses[0]
    with torch.no_grad():
        accuracy = (method.predict(model.eval()(batch.inputs)).logits.argmax(1) == batch.targets).float().mean()
    assert accuracy > 0.8


@every_method
def test_gradient_accumulation(method):
    """Halves of a batch at half scale give the gradients of the whole."""
    model, whole = make_model(dtype=torch.float64), make_batch(2, 8, dtype=torch.float64)
    method.backward(method.compute_losses(model, whole), model)
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    for rows in (slice(0, 4), slice(4, 8)):
        half = bmlr.Batch({u: x[rows] for u, x in whole.inputs.items()}, whole.targets[rows])
        method.backward(method.compute_losses(model, half), model, scale=0.5)
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-12, atol=1e-14)


@every_method
@every_fusion
@pytest.mark.parametrize("where", ["loss inside", "loss outside"])
def test_autocast(method, fusion, where):
    """bfloat16 autocast around the model alone or around the loss too: float32 losses near the full-precision ones."""
    model, batch = make_model(2, fusion), make_batch(2, 32)
    expected = method(model(batch.inputs), batch.targets)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(batch.inputs)
        inside = method(output, batch.targets) if where == "loss inside" else None
    losses = inside or method(output, batch.targets)
    losses.total.backward()
    for name, value in losses.terms.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected.terms[name], rtol=0.03, atol=0.03)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    if method in TARGETED:  # autocast's weight cache must not connect what is kept apart
        again = method(model(batch.inputs), batch.targets)
        assert reached(again.terms["fused"], model) == parameters_of(model, "fusion.")


@every_method
def test_compiled_step(method):
    """Model, labels and losses compile to one graph, with the losses and gradients of eager mode."""
    model, batch = make_model(3), make_batch(3)

    def step(inputs, targets):
        losses = method(model(inputs), targets)
        return losses.total, losses.terms

    torch._dynamo.reset()
    total, terms = torch.compile(step, backend="aot_eager", fullgraph=True)(batch.inputs, batch.targets)
    expected_total, expected_terms = step(batch.inputs, batch.targets)
    torch.testing.assert_close(terms, expected_terms)
    parameters = list(model.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(total, parameters), torch.autograd.grad(expected_total, parameters), rtol=1e-5, atol=1e-6
    )


class _Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@every_method
@every_fusion
def test_no_synchronisation(method, fusion):
    """A whole step on the meta device, whose tensors hold no numbers that could be waited for."""
    model, batch = make_model(2, fusion).to("meta"), make_batch().to("meta")
    with _Operations() as operations:
        method.compute_losses(model, batch).total.backward()
    assert all(p.grad is not None for p in model.parameters())
    assert not [name for name in operations.names if "local_scalar" in name or "nonzero" in name]
