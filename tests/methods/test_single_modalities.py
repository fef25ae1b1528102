"""One modality alone, the average of such runs, and training from their encoders."""

import copy
import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

import bmlr
from bmlr.methods import Ensemble, EpochContext, EpochPlan, Pretrained, Unimodal
from bmlr.tasks import Multiclass, MultiLabel, Regression
from zoo import INPUT_DIMS, make_batch, make_encoder, make_model


def alone(model, seed=5):
    """Runs of single modalities with encoders of their own, and heads as they were drawn."""
    trained = {}
    for name in model.modalities:
        torch.manual_seed(seed)
        network = copy.deepcopy(model)
        for parameter in network.parameters():
            nn.init.normal_(parameter)
        single = Unimodal(name)
        single.setup(network)
        trained[name] = network, single
    return trained


def started(method, model, trained=None):
    trained = trained or alone(model)
    method.setup(model)
    method.start_from(trained, model)
    return method, trained


def literal_log_probabilities(trained, name, x):
    network, single = trained[name]
    z = network.encoders[name](x)
    logits = (z @ single.head.weight.T + single.head.bias).detach()
    return logits - logits.exp().sum(1, keepdim=True).log()


@pytest.mark.parametrize("modalities", [2, 3])
def test_unimodal_is_cross_entropy_of_one_encoder_and_nothing_else_moves(modalities):
    model, batch = (
        make_model(modalities, dtype=torch.float64, batch_norm=True),
        make_batch(modalities, 12, dtype=torch.float64),
    )
    batch.present = {"video": torch.arange(12) % 3 > 0}
    method = Unimodal("video")
    method.setup(model)
    before, mask = copy.deepcopy(model.state_dict()), batch.present["video"]
    twin = copy.deepcopy(model.encoders["video"])
    loss = method.compute_losses(model.train(), batch).total
    logits = F.linear(twin(batch.inputs["video"][mask]), method.head.weight, method.head.bias)
    torch.testing.assert_close(loss, F.cross_entropy(logits, batch.targets[mask]))
    loss.backward()
    torch.optim.SGD([*model.parameters(), *method.parameters()], lr=0.1, weight_decay=0.1).step()
    for name, value in model.state_dict().items():  # running statistics of other encoders too
        assert torch.equal(value, before[name]) == (not name.startswith("encoders.video")), name


def test_unimodal_names_its_modality_and_its_prediction_is_of_it_alone():
    model, batch = make_model(3), make_batch(3)
    with pytest.raises(ValueError, match=r"`modality` should name .* among audio, video, text. Found none"):
        Unimodal().setup(model)
    with pytest.raises(ValueError, match=r"Found `modality = 'vdeo'`. Did you mean 'video'\?"):
        Unimodal("vdeo").setup(model)
    method = Unimodal("text")
    with pytest.raises(RuntimeError, match=r"no head: call `method.setup\(model\)`"):
        method.predict(model(batch.inputs))
    method.setup(model)
    prediction = method.predict(model(batch.inputs))
    assert list(prediction.unimodal_logits) == ["text"]
    assert torch.equal(prediction.logits, prediction.unimodal_logits["text"])


@pytest.mark.parametrize("average", ["log-probabilities", "probabilities"])
@pytest.mark.parametrize("modalities", [2, 3])
def test_ensemble_is_the_mean_over_present_modalities(modalities, average):
    model = make_model(modalities, dtype=torch.float64)
    method, trained = started(Ensemble(average), model)
    present = {"video": torch.tensor([True, False, True, True])}
    batch = make_batch(modalities, 4, dtype=torch.float64, present=present)
    prediction = method.predict(model(batch.inputs, batch.present))
    for row in range(4):
        names = [name for name in model.modalities if name != "video" or present["video"][row]]
        logs = torch.stack([literal_log_probabilities(trained, u, batch.inputs[u])[row] for u in names])
        wanted = logs.mean(0) if average == "log-probabilities" else logs.exp().mean(0).log()
        torch.testing.assert_close(prediction.logits[row].softmax(0), wanted.softmax(0))
    assert list(prediction.unimodal_logits) == list(model.modalities)


@pytest.mark.parametrize("average", ["log-probabilities", "probabilities"])
def test_ensemble_of_labels_and_numbers(average):
    for task in (MultiLabel(3), Regression(3)):
        torch.manual_seed(0)
        model = bmlr.MultimodalClassifier({u: make_encoder(u) for u in ("audio", "video")}, task).double()
        method, trained = started(Ensemble(average), model)
        batch = make_batch(2, 5, dtype=torch.float64)
        logits = torch.stack([s.head(n.encoders[u](batch.inputs[u])) for u, (n, s) in trained.items()])
        actual = method.predict(model(batch.inputs)).logits
        if task.name == "regression" or average == "log-probabilities":
            torch.testing.assert_close(actual, logits.mean(0))
        else:
            torch.testing.assert_close(actual.sigmoid(), logits.sigmoid().mean(0))


@pytest.mark.parametrize("modalities", [2, 3])
def test_tuned_weights_have_the_smallest_validation_loss_of_the_grid_each_at_its_best_scale(modalities):
    model = make_model(modalities, dtype=torch.float64)
    method, trained = started(Ensemble(weights="validation"), model)
    val = make_batch(modalities, 40, dtype=torch.float64, seed=3)
    batches = lambda: [bmlr.Batch(val.inputs, val.targets)]
    train = lambda: pytest.fail("the training split is not read")
    assert method.start_epoch(EpochContext(0, 1, model, 40, train, batches)) == EpochPlan(())
    names, steps = sorted(model.modalities), {2: 20, 3: 10}[modalities]
    logs = torch.stack([literal_log_probabilities(trained, u, val.inputs[u]) for u in names])

    def loss(weights):
        mean = (torch.tensor(weights).double()[:, None, None] * logs).sum(0)
        scales = torch.arange(1, modalities + 0.01, 0.25)
        return min(float(F.cross_entropy(scale * mean, val.targets)) for scale in scales.tolist())

    grid = [
        tuple(share / steps for share in shares)
        for shares in itertools.product(range(steps + 1), repeat=modalities)
        if sum(shares) == steps
    ]
    best = min([(1 / modalities,) * modalities, *grid], key=loss)
    assert method.modality_weights == pytest.approx(dict(zip(names, best, strict=True)))
    assert len(set(best)) > 1  # the test would not see a search that does nothing
    other = Ensemble(weights="validation")
    other.setup(make_model(modalities, dtype=torch.float64))
    other.load_state_dict(method.state_dict())
    assert other.modality_weights == method.modality_weights
    assert other.has_started
    with pytest.raises(ValueError, match="`weights` should be 'equal' where there is no validation split"):
        method.start_epoch(EpochContext(0, 1, model, 40, train, list))
    one = torch.zeros(40, dtype=torch.bool)  # samples that have only a modality of weight zero
    method.shares.copy_(torch.tensor([1.0] + [0.0] * (modalities - 1)))
    lacking = bmlr.Batch(val.inputs, val.targets, {names[0]: one})
    prediction = method.predict(model(lacking.inputs, lacking.present)).logits
    torch.testing.assert_close(prediction.softmax(1), logs[1:].mean(0).softmax(1))


def test_a_certain_modality_does_not_win_alone_where_a_second_one_adds_to_it():
    """Independent modalities of true probabilities weigh the same: their log-probabilities are to be added."""
    torch.manual_seed(0)
    strength = {"audio": 1.0, "video": 0.5}
    encoders = {name: torch.nn.Linear(2, 2, bias=False) for name in strength}
    model = bmlr.MultimodalClassifier(encoders, 2).double()
    method, _ = started(Ensemble(weights="validation"), model)
    for name, mean in strength.items():
        encoders[name].weight.data = 2 * mean * torch.eye(2, dtype=torch.float64)
        method.heads[name].weight.data = torch.eye(2, dtype=torch.float64)
        method.heads[name].bias.data.zero_()
    targets = torch.randint(2, (4000,))
    signs = 2 * F.one_hot(targets, 2).double() - 1
    inputs = {name: mean * signs + torch.randn(4000, 2).double() for name, mean in strength.items()}
    method.start_epoch(EpochContext(0, 1, model, 4000, list, lambda: [bmlr.Batch(inputs, targets)]))
    assert method.modality_weights == pytest.approx({"audio": 0.5, "video": 0.5}, abs=0.1)


@pytest.mark.parametrize("freeze", [True, False])
def test_pretrained_trains_the_fusion_by_the_fused_loss_from_given_encoders(freeze):
    model, batch = make_model(dtype=torch.float64, batch_norm=True), make_batch(2, 10, dtype=torch.float64)
    method, trained = started(Pretrained(freeze), model)
    for name, (network, _) in trained.items():
        assert all(
            map(torch.equal, model.encoders[name].state_dict().values(), network.encoders[name].state_dict().values())
        )
    before, fusion = copy.deepcopy(model.encoders.state_dict()), copy.deepcopy(model.fusion)
    encoders = copy.deepcopy(model.encoders).train(not freeze)
    losses = method.compute_losses(model.train(), batch)
    z = torch.cat([encoders[u](batch.inputs[u]) for u in model.modalities], 1)
    expected = F.cross_entropy(F.linear(z, fusion.linear.weight, fusion.linear.bias), batch.targets)
    assert list(losses.terms) == ["fused"]
    torch.testing.assert_close(losses.total, expected)
    losses.total.backward()
    torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1).step()
    assert all(torch.equal(value, before[k]) == freeze for k, value in model.encoders.state_dict().items())
    assert not torch.equal(model.fusion.linear.weight, fusion.linear.weight)
    assert all(module.training for module in model.modules())
    if freeze:
        with pytest.raises(RuntimeError, match=r"runs the encoders itself: call `method.compute_losses"):
            method(model(batch.inputs), batch.targets)


def test_what_does_not_fit_is_named_before_anything_is_taken():
    model = make_model()
    trained = alone(model)
    method = Ensemble()
    with pytest.raises(RuntimeError, match=r"call `method.setup\(model\)` before `start_from`"):
        method.start_from(trained, model)
    method.setup(model)
    with pytest.raises(RuntimeError, match=r"Ensemble starts from runs of .*: call `method.start_from\(t"):
        method.predict(model(make_batch().inputs))
    with pytest.raises(ValueError, match=r"the runs Ensemble starts from, \['audio', 'video'\].* Found \['audio'\]"):
        method.start_from({"audio": trained["audio"]}, model)
    with pytest.raises(ValueError, match=r"`trained\['audio'\]` should be a run of Unimodal\(modality='audio'\)"):
        method.start_from({"audio": trained["video"], "video": trained["audio"]}, model)
    with pytest.raises(ValueError, match="should be a model and the method that trained it"):
        method.start_from(trained | {"audio": (model, trained["audio"][1])}, model)
    other = bmlr.MultimodalClassifier({u: nn.Linear(INPUT_DIMS[u], 7) for u in ("audio", "video")}, 3)
    with pytest.raises(ValueError, match=r"an encoder with the layers of the model's. They differ in 0.bias"):
        method.start_from(alone(other), model)
    assert not method.has_started
    shared = nn.Linear(4, 6)
    with pytest.raises(ValueError, match="acts on each encoder by itself"):
        Pretrained().setup(bmlr.MultimodalClassifier({"left": shared, "right": shared}, Multiclass(3)))
    for parameters in ({"average": "median"}, {"weights": "test"}):
        with pytest.raises(ValueError, match=f"`{next(iter(parameters))}` should be one of"):
            Ensemble(**parameters)
    assert math.isclose(sum(started(Ensemble(), model)[0].modality_weights.values()), 1)
