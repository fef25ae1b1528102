import random

import numpy as np
import pytest
import torch
from torch import nn

import bmlr
from bmlr.batch import as_batch
from bmlr.diagnosis import RemovalOptions, diagnose
from bmlr.diagnosis._predictions import collect_predictions
from bmlr.diagnosis._removal import make_predictor, mean_logits
from bmlr.methods import UniformBaseline
from method_loop import set_up


def classifier(fusion="concat", **options):
    encoders = {
        "audio": nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5)),
        "video": nn.Sequential(nn.Linear(6, 8), nn.ReLU()),
    }
    return bmlr.MultimodalClassifier(
        encoders, 3, fusion, feature_dims=dict.fromkeys(encoders, 8), fusion_options=options or None
    )


def batches(sizes=(7, 5), *, present=False):
    return [
        bmlr.Batch(
            {"audio": torch.randn(n, 4) + 1, "video": torch.randn(n, 6)},
            torch.randint(3, (n,)),
            {"video": torch.arange(n) % 3 > 0} if present else None,
        )
        for n in sizes
    ]


def own(net):
    return lambda inputs: net(inputs).logits


def whole(data):
    return {u: torch.cat([batch.inputs[u] for batch in data]) for u in data[0].inputs}


def predictions_of(model, data, options=None, **arguments):
    if not isinstance(model, bmlr.MultimodalClassifier):
        arguments.setdefault("module", [])
    return collect_predictions(make_predictor(model, data, options, **arguments), data)


@pytest.mark.parametrize("fusion", ["concat", "sum", "film", "gated", "bigated"])
def test_a_removed_modality_is_read_as_an_absent_one(fusion):
    model, data = classifier(fusion).eval(), batches()
    predictions = predictions_of(model, data)
    absent = {"video": torch.zeros(12, dtype=torch.bool)}
    targets = torch.cat([batch.targets for batch in data])
    logits = model(whole(data), absent).logits
    only = frozenset({"audio"})
    assert predictions.classes[only].tolist() == logits.argmax(1).tolist()
    expected = logits.double().log_softmax(1).gather(1, targets[:, None]).squeeze(1)
    torch.testing.assert_close(predictions.log_probabilities[only], expected, atol=1e-5, rtol=1e-5)
    unimodal = model(whole(data)).unimodal_logits
    for u in model.modalities:
        assert predictions.alone(u)[0].tolist() == unimodal[u].argmax(1).tolist()


def test_the_methods_own_predictions_count():
    model, data = classifier().eval(), batches()
    method = UniformBaseline()
    method.setup(model)
    prediction = method.predict(model(whole(data)))
    predictions = predictions_of(model, data, method=method)
    assert predictions.classes[predictions.all_modalities].tolist() == prediction.logits.argmax(1).tolist()
    for u in model.modalities:
        assert predictions.alone(u)[0].tolist() == prediction.unimodal_logits[u].argmax(1).tolist()


def test_samples_that_lack_a_modality():
    model, data = classifier().eval(), batches(present=True)
    predictions = predictions_of(model, data)
    lacks = ~predictions.present["video"]
    assert lacks.tolist() == [n % 3 == 0 for size in (7, 5) for n in range(size)]
    only, both = frozenset({"audio"}), predictions.all_modalities
    torch.testing.assert_close(predictions.log_probabilities[only][lacks], predictions.log_probabilities[both][lacks])
    assert predictions.has_another("audio").tolist() == (~lacks).tolist()
    for mode in ("zero", "mean", "shuffle"):
        replaced = predictions_of(model, data, RemovalOptions(mode))
        torch.testing.assert_close(replaced.log_probabilities[only][lacks], replaced.log_probabilities[both][lacks])


def test_inputs_are_replaced_by_zeros_means_and_baselines():
    model, data = classifier().eval(), batches(present=True)
    everything, mask = whole(data), torch.cat([batch.present["video"] for batch in data])
    mean = everything["video"][mask].mean(0)
    blank = torch.full((6,), 2.0)
    for options, replacement in (
        (RemovalOptions("zero"), torch.zeros(6)),
        (RemovalOptions("mean"), mean),
        (RemovalOptions("mean", baselines={"video": blank}), blank),
    ):
        predictions = predictions_of(own(model), data, options)
        inputs = {**everything, "video": torch.where(mask[:, None], replacement.expand(12, 6), everything["video"])}
        logits = model(inputs).logits
        assert predictions.classes[frozenset({"audio"})].tolist() == logits.argmax(1).tolist()
    assert "baseline given" in predictions.removal
    assert "mean input" in predictions.removal


def test_shuffled_inputs_are_those_of_samples_that_have_the_modality():
    seen = []

    def predict(inputs):
        seen.append(inputs["video"])
        return torch.stack([inputs["audio"][:, 0], inputs["video"][:, 0], 0 * inputs["audio"][:, 0]], 1)

    data = batches((40,), present=True)
    predictions = predictions_of(predict, data, RemovalOptions("shuffle", n_draws=3))
    real = {tuple(row) for row in data[0].inputs["video"][data[0].present["video"]].tolist()}
    lacks = ~data[0].present["video"]
    assert sum(not torch.equal(x, data[0].inputs["video"]) for x in seen) == 3  # draws in which video is removed
    for x in seen:
        assert {tuple(row) for row in x[~lacks].tolist()} <= real
        assert torch.equal(x[lacks], data[0].inputs["video"][lacks])
    again = predictions_of(predict, data, RemovalOptions("shuffle", n_draws=3))
    other = predictions_of(predict, data, RemovalOptions("shuffle", n_draws=3), seed=1)
    only = frozenset({"audio"})
    assert torch.equal(predictions.log_probabilities[only], again.log_probabilities[only])
    assert not torch.equal(predictions.log_probabilities[only], other.log_probabilities[only])


def test_the_pool_is_an_even_choice_of_all_batches():
    data = [bmlr.Batch({"a": torch.full((50, 1), float(i)), "v": torch.zeros(50, 1)}, torch.zeros(50).long())
            for i in range(4)]  # fmt: skip
    options = RemovalOptions("shuffle", pool_size=100)
    predictor = make_predictor(lambda inputs: torch.zeros(len(inputs["a"]), 2), data, options, module=[])
    pool = predictor.replacements.by_name["a"].pool[0]
    assert pool.shape == (100, 1)
    assert all(10 <= int((pool == i).sum()) <= 40 for i in range(4))


def test_the_mean_over_draws_lets_replacements_cancel_out():
    first, second = torch.tensor([[4.0, 0.0, 3.0]]), torch.tensor([[0.0, 4.0, 3.0]])
    torch.testing.assert_close(mean_logits([first, second]), torch.tensor([[2.0, 2.0, 3.0]], dtype=torch.float64))
    assert mean_logits([first]) is first


def random_streams():
    return torch.rand(2).tolist(), np.random.rand(2).tolist(), random.random()  # noqa: NPY002, S311


@pytest.mark.parametrize("mode", [None, "zero", "mean", "shuffle"])
@pytest.mark.parametrize("function", [False, True])
def test_it_leaves_no_trace(function, mode):
    model = classifier().train()
    model.encoders["video"].eval()
    model(batches()[0].inputs).logits.sum().backward()
    pairs = [({u: x[i] for u, x in batches((30,))[0].inputs.items()}, torch.tensor(i % 3)) for i in range(30)]
    loader = torch.utils.data.DataLoader(pairs, batch_size=8, shuffle=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = [p.grad.clone() for p in model.parameters()]
    modes = [split.training for split in model.modules()]
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(3)
    expected = random_streams()
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(3)
    module = model if function else None
    diagnose(own(model) if function else model, loader, module=module, removal=RemovalOptions(mode))
    assert random_streams() == expected
    assert [split.training for split in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))


def test_modes_are_restored_after_an_error():
    class Wrapper:
        def __init__(self, net):
            self.net = net

        def __call__(self, inputs):
            assert not self.net.training
            raise KeyError("inside")

    net = classifier().train()
    with pytest.raises(KeyError, match="inside"):
        diagnose(Wrapper(net), batches(), module=net)
    assert net.training


def test_a_function_that_is_a_module_is_read_in_evaluation_mode():
    class Net(nn.Module):
        def forward(self, inputs):
            assert not self.training
            return inputs["audio"][:, :3] + inputs["video"][:, :3]

    net = Net().train()
    predictions_of(net, batches(), module=None)
    assert net.training


def test_modalities_can_be_selected_and_other_inputs_are_passed_on():
    data = [({"a": torch.randn(6, 2), "v": torch.randn(6, 2), "length": torch.arange(6)}, torch.arange(6) % 2)]
    lengths = []

    def predict(inputs):
        lengths.append(inputs["length"].tolist())
        return inputs["a"] + inputs["v"]

    predictions = predictions_of(predict, data, RemovalOptions(modalities=["a", "v"]))
    assert predictions.modalities == ("a", "v")
    assert all(length == list(range(6)) for length in lengths)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"removal": RemovalOptions("men")}, "Did you mean 'mean'"),
        ({"removal": RemovalOptions("absent")}, "`mode` should be one of zero, mean, shuffle"),
        ({"method": bmlr.BMLR()}, "`method` goes with a bmlr.MultimodalClassifier"),
        ({"removal": RemovalOptions(baselines={"vidoe": torch.zeros(6)})}, "Found 'vidoe'. Did you mean 'video'"),
        (
            {"removal": RemovalOptions(baselines={"video": torch.zeros(5)})},
            r"should have the shape of one sample, \(6,\). Found \(5,\)",
        ),
        ({"removal": RemovalOptions(modalities=["audio"])}, "should name 2 to 10 modalities"),
        ({"removal": RemovalOptions(modalities=["audio", "text"])}, r"Batch 0 lacks \['text'\]"),
        ({"reference": {"text": 0.5}}, "`reference` should name modalities among"),
        ({"reference": {"audio": 50.0}}, r"`reference\['audio'\]` should lie in \[0, 1\]"),
        ({"module": None}, "`module` should be given with a function"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        diagnose(own(classifier()), batches(), **{"module": [], **arguments})


def test_bad_options_are_named():
    for options, message in (
        ({"n_draws": 0}, "`n_draws` should be an integer of at least 1"),
        ({"pool_size": 0}, "`pool_size` should be an integer of at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            RemovalOptions(**options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"module": nn.Linear(1, 1)}, "`module` is for a model given as a function"),
        ({"removal": RemovalOptions(modalities=["audio", "text"])}, "`modalities` should be those of the model"),
        ({"removal": RemovalOptions(baselines={"video": torch.zeros(6)})}, "`baselines` replace inputs"),
        ({"removal": RemovalOptions("gone")}, "`mode` should be one of absent, zero, mean, shuffle"),
    ],
)
def test_bad_arguments_with_a_model_of_the_library(arguments, message):
    with pytest.raises(ValueError, match=message):
        diagnose(classifier(), batches(), **arguments)


@pytest.mark.parametrize(
    ("predict", "message"),
    [
        (lambda inputs: inputs["audio"].softmax(1), "if these are probabilities, return their logarithm"),
        (lambda inputs: inputs["audio"] * torch.nan, "gives NaN or infinite logits with .* in batch 0; all inputs"),
        (lambda inputs: inputs["audio"][:, 0], r"should give logits of shape \(7, C\). Found shape \(7,\)"),
        (lambda inputs: inputs["audio"][:3], "Found shape"),
        (list, "Found list"),
        (lambda inputs: inputs["audio"][:, :1], "at least 2"),
        (lambda inputs: inputs["audio"][:, :2] + 2, "`targets` should lie in"),
    ],
)
def test_invalid_logits_are_named(predict, message):
    data = batches()
    data[0].targets[0] = 2
    with pytest.raises(ValueError, match=message):
        diagnose(predict, data, module=[])


def test_inputs_that_are_not_finite_are_named():
    data = batches()
    data[1].inputs["video"][2, 0] = torch.inf
    with pytest.raises(ValueError, match="in batch 1; the inputs of video are not finite"):
        diagnose(classifier(), data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "at least one sample"),
        ([torch.zeros(3)], "pairs .inputs by modality, targets.: have the data set return .*Found Tensor"),
        ([(torch.zeros(3), torch.zeros(3))], "Found tuple of"),
        (iter(batches()), "with an iterator as `batches`"),
    ],
)
def test_bad_batches(data, message):
    with pytest.raises(ValueError, match=message):
        diagnose(own(classifier()), data, module=[])


def test_statistics_need_a_second_pass_fitting_shapes_and_samples():
    net = own(classifier())
    with pytest.raises(ValueError, match="iterable more than once for `mode = 'mean'`"):
        diagnose(net, iter(batches()), module=[], removal=RemovalOptions(modalities=["audio", "video"]))
    diagnose(net, iter(batches()), module=[], removal=RemovalOptions("zero", ["audio", "video"]))
    ragged = [({"a": torch.zeros(2, n), "b": torch.zeros(2, 1)}, torch.zeros(2).long()) for n in (3, 4)]
    for mode in ("mean", "shuffle"):
        with pytest.raises(ValueError, match=r"needs inputs of one shape. Found \(3,\) and \(4,\) for 'a'"):
            diagnose(lambda inputs: inputs["a"][:, :2], ragged, module=[], removal=RemovalOptions(mode))
    tokens = [({"text": torch.zeros(2, 3).long(), "b": torch.zeros(2, 2)}, torch.zeros(2).long())]
    with pytest.raises(ValueError, match="needs floating point inputs. Found torch.int64 for 'text'"):
        diagnose(lambda inputs: inputs["b"], tokens, module=[])
    diagnose(lambda inputs: inputs["b"], tokens, module=[], removal=RemovalOptions("shuffle"))
    nobody = batches()
    for batch in nobody:
        batch.present = {"video": torch.zeros(len(batch), dtype=torch.bool)}
    with pytest.raises(ValueError, match="Found none with 'video'"):
        diagnose(net, nobody, module=[], removal=RemovalOptions("shuffle"))


def test_a_pair_is_a_batch():
    batch = as_batch(({"a": torch.zeros(2, 1)}, [0, 1]))
    assert batch.targets.tolist() == [0, 1]
    assert as_batch(batch) is batch


@pytest.mark.parametrize("name", bmlr.methods.available())
def test_every_method_can_be_diagnosed(name):
    model, data = classifier().eval(), batches((60, 60))
    method = bmlr.methods.create(name)
    set_up(method, model)
    diagnosis = diagnose(model, data, method=method)
    prediction = method.predict(model(whole(data)))
    targets = torch.cat([batch.targets for batch in data])
    assert diagnosis.accuracy.value == pytest.approx(float((prediction.logits.argmax(1) == targets).float().mean()))
    assert name not in diagnosis.verdict.methods
