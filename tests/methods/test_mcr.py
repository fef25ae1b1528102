import math

import pytest
import torch
from torch import nn

import bmlr
from bmlr.methods import MCR, UniformBaseline, Unimodal
from bmlr.tasks import Multiclass, MultiLabel
from zoo import FEATURE_DIMS, make_batch, make_encoder, make_model

GAMES = {"greedy": -1, "individual": 0, "collaborative": 1}


def make(modalities=2, fusion="concat", batch_size=5, **parameters):
    model = make_model(modalities, fusion, dtype=torch.float64)
    method = MCR(**{"permutations": 3, "weight": 0.7, **parameters})
    method.setup(model)
    return model, method, make_batch(modalities, batch_size, dtype=torch.float64)


def permutations(method, batch_size):
    """The rows of each draw."""
    return torch.rand(method.permutations, batch_size, generator=method.generator(method.step)).argsort(1).tolist()


def divergence(p, q):
    """Jensen-Shannon divergence of two predictions, class by class."""
    total = 0
    for a, b in zip(p.softmax(0), q.softmax(0), strict=True):
        m = (a + b) / 2
        total = total + a * (a / m).log() / 2 + b * (b / m).log() / 2
    return total


def literal_divergence(fusion, permuted, features, reference, draws, name):
    """D_u sample by sample, with the permuted features of one modality."""
    values = []
    for rows in draws:
        for i, row in enumerate(rows):
            mixed = {u: (permuted if u == name else features)[u][row if u == name else i][None] for u in features}
            values.append(divergence(fusion(mixed)[0], reference[i]))
    return sum(values) / len(values)


def gradients(loss, parameters):
    found = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def add(first, second, factor=1.0):
    return [a + factor * b for a, b in zip(first, second, strict=True)]


def assert_near(found, expected):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("game", GAMES)
@pytest.mark.parametrize(("modalities", "fusion"), [(2, "concat"), (3, "own")])
def test_each_encoder_has_the_gradients_of_equations_12_and_13(game, modalities, fusion):
    model, method, batch = make(modalities, fusion, game=game)
    draws = permutations(method, len(batch))
    term = method(model(batch.inputs), batch.targets).terms["game"]
    z = model(batch.inputs).features
    logits = model.fusion(z)
    by_name = {u: literal_divergence(model.fusion, z, z, logits, draws, u) for u in z}
    assert term.item() == pytest.approx(-0.7 * sum(value.item() for value in by_name.values()), rel=1e-12)
    for u, encoder in model.encoders.items():
        weights = list(encoder.parameters())
        expected = [torch.zeros_like(p) for p in weights]
        for v, value in by_name.items():
            expected = add(expected, gradients(value, weights), -0.7 * (1 if u == v else GAMES[game]))
        assert_near(gradients(term, weights), expected)
    head = list(model.fusion.parameters())
    trained = gradients(-0.7 * sum(by_name.values()), head)
    assert_near(gradients(term, head), trained if game == "collaborative" else [torch.zeros_like(p) for p in head])


@pytest.mark.parametrize("game", GAMES)
def test_the_official_form_has_the_gradients_of_the_official_sum(game):
    """Written as in the official code: one side detached, p a tensor that all divergences share."""
    model, method, batch = make(game=game, form="official")
    draws = permutations(method, len(batch))
    term = method(model(batch.inputs), batch.targets).terms["game"]
    z = model(batch.inputs).features
    p = model.fusion(z)
    constant = {u: x.detach() for u, x in z.items()}

    def value(permuted, trained):
        kept = {u: z[u] if u in trained else constant[u] for u in z}
        return literal_divergence(model.fusion, kept, kept, p, draws, permuted)

    a, v = "audio", "video"
    regularizer = {
        "greedy": lambda: -value(a, [a]) + value(a, [v]) - value(v, [v]) + value(v, [a]),
        "individual": lambda: -value(a, [a]) - value(v, [v]),
        "collaborative": lambda: -value(a, [a, v]) - value(v, [a, v]),
    }[game]()
    parameters = list(model.parameters())
    assert_near(gradients(term, parameters), gradients(0.7 * regularizer, parameters))


def literal_contrast(rows, labels, temperature):
    units = [[x / math.sqrt(sum(y * y for y in row)) for x in row] for row in rows]
    s = [[sum(x * y for x, y in zip(a, b, strict=True)) / temperature for b in units] for a in units]
    values = []
    for a, label in enumerate(labels):
        others = sum(math.exp(s[a][n]) for n, other in enumerate(labels) if other != label)
        for p, other in enumerate(labels):
            if p != a and other == label:
                values.append(-math.log(math.exp(s[a][p]) / (math.exp(s[a][p]) + others)))
    return sum(values) / len(values)


@pytest.mark.parametrize("modalities", [2, 3])
def test_the_contrast_is_of_the_features_of_all_modalities(modalities):
    present = {"video": torch.tensor([True, False, True, True, False, True])}
    model, method, batch = make(modalities, batch_size=6, contrast=2.0, temperature=0.3)
    output = model(batch.inputs, present)
    rows, labels = [], []
    for u, z in output.features.items():
        projected = (z @ method.projections[u].weight.T).tolist()
        for i, y in enumerate(batch.targets.tolist()):
            if u != "video" or present["video"][i]:
                rows.append(projected[i])
                labels.append(y)
    assert len(rows[0]) == min(FEATURE_DIMS[u] for u in output.features)
    expected = 2 * literal_contrast(rows, labels, 0.3)
    assert method(output, batch.targets).terms["contrast"].item() == pytest.approx(expected, rel=1e-10)


def test_features_of_one_width_are_contrasted_as_they_are():
    model = bmlr.MultimodalClassifier({"left": nn.Linear(4, 5), "right": nn.Linear(4, 5)}, 3).double()
    method = MCR()
    method.setup(model)
    assert not method.projections
    x = torch.randn(4, 4, dtype=torch.float64)
    output, targets = model({"left": x, "right": x + 1}), torch.tensor([0, 1, 2, 2])
    rows = [row for z in output.features.values() for row in z.tolist()]
    expected = literal_contrast(rows, targets.tolist() * 2, 0.5)
    assert method(output, targets).terms["contrast"].item() == pytest.approx(expected, rel=1e-10)


def test_without_its_two_terms_it_is_the_uniform_baseline():
    model, method, batch = make(weight=0.0, contrast=0.0, unimodal=0.5)
    other = UniformBaseline(weight=0.5)
    other.setup(model)
    other.load_state_dict({k: v for k, v in method.state_dict().items() if k in other.state_dict()})
    output = model(batch.inputs)
    assert torch.equal(method(output, batch.targets).total, other(output, batch.targets).total)


def test_samples_that_do_not_count_are_neither_permuted_with_others_nor_counted():
    torch.manual_seed(0)
    encoders = {name: make_encoder(name) for name in ("audio", "video")}
    model = bmlr.MultimodalClassifier(encoders, Multiclass(3, ignore_index=-100)).double()
    method = MCR(permutations=40, contrast=0.0)
    method.setup(model)
    batch = make_batch(2, 6, dtype=torch.float64)
    targets = batch.targets.clone()
    targets[1] = -100
    present = {"video": torch.tensor([True, True, False, True, False, True])}
    logs = []
    for other in (0.0, 50.0):  # what stands in samples that do not count
        inputs = {name: x.clone() for name, x in batch.inputs.items()}
        inputs["video"][1] += other
        logs.append(method(model(inputs, present), targets).logs)
        method.step = 0
    assert logs[0]["divergence_video"] > 0
    torch.testing.assert_close(logs[0]["divergence_video"], logs[1]["divergence_video"], rtol=0, atol=0)
    one = {"video": torch.arange(6) == 3}
    assert method(model(batch.inputs, one), targets).logs["divergence_video"].item() == 0  # nobody to change with


def test_several_labels_have_the_mean_divergence_and_equal_labels_are_of_one_class():
    torch.manual_seed(0)
    encoders = {name: make_encoder(name) for name in ("audio", "video")}
    model = bmlr.MultimodalClassifier(encoders, MultiLabel(2)).double()
    method = MCR(permutations=2)
    method.setup(model)
    batch, targets = make_batch(2, 4, dtype=torch.float64), torch.tensor([[0, 1], [1, 1], [0, 1], [1, 0]])
    draws = permutations(method, 4)
    output = model(batch.inputs)
    losses = method(output, targets)
    pair = lambda x: torch.stack([torch.zeros(()).double(), x])
    values = []
    for rows in draws:
        mixed = model.fusion({"audio": output.features["audio"], "video": output.features["video"][rows]})
        values += [divergence(pair(mixed[i, k]), pair(output.logits[i, k])).item() for i in range(4) for k in range(2)]
    assert losses.logs["divergence_video"].item() == pytest.approx(sum(values) / len(values))
    rows = [row for u, z in output.features.items() for row in (z @ method.projections[u].weight.T).tolist()]
    assert losses.terms["contrast"].item() == pytest.approx(literal_contrast(rows, [0, 1, 0, 2] * 2, 0.5))


def test_pretrained_encoders_and_heads_come_from_runs_of_each_modality():
    model, method, _ = make(3, pretrained=True)
    with pytest.raises(RuntimeError, match="MCR starts from runs of single modalities: call"):
        method.check_started(model.modalities)
    trained = {}
    for seed, name in enumerate(model.modalities):
        network, single = make_model(3, dtype=torch.float64, seed=5 + seed), Unimodal(name)
        single.setup(network)
        trained[name] = network, single
    method.start_from(trained, model)
    for name, (network, single) in trained.items():
        assert_near(model.encoders[name].parameters(), network.encoders[name].parameters())
        assert_near(method.heads[name].parameters(), single.head.parameters())
    assert not MCR().required_runs(model.modalities)
    shared = nn.Linear(4, 6)
    with pytest.raises(ValueError, match="MCR acts on each encoder by itself"):
        MCR(pretrained=True).setup(bmlr.MultimodalClassifier({"left": shared, "right": shared}, 3))


class DroppingHead(bmlr.fusion.Fusion):
    """A head with dropout over the concatenated features."""

    def __init__(self, feature_dims):
        super().__init__(feature_dims, 3)
        self.layers = nn.Sequential(nn.Dropout(0.5), nn.Linear(sum(feature_dims.values()), 3))

    def fused(self, features):
        return self.layers(torch.cat([features[name] for name in self.feature_dims], 1))


def test_dropout_of_a_head_makes_no_divergence():
    batch = make_batch(2, 1)
    divergences = {}
    for settings in ({}, {"form": "official"}, {"dropout": True}):
        torch.manual_seed(0)
        model = make_model(2, DroppingHead({name: FEATURE_DIMS[name] for name in ("audio", "video")}))
        method = MCR(**settings)
        method.setup(model)
        value = method(model(batch.inputs), batch.targets).logs["divergence_audio"]
        assert model.fusion.layers[0].training
        divergences[str(settings)] = value.item()
    assert divergences.pop("{}") == 0
    assert all(value > 0 for value in divergences.values())


@pytest.mark.parametrize(
    ("parameters", "name"),
    [({"permutations": 0}, "permutations"), ({"temperature": 0.0}, "temperature"), ({"game": "fair"}, "game")],
)
def test_bad_parameters(parameters, name):
    with pytest.raises(ValueError, match=f"Parameter `{name}` should"):
        MCR(**parameters)
