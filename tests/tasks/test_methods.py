"""What methods compute for labels and numbers, against their definitions written out."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

import bmlr
from bmlr.methods import AGM, BMLR, DGL, OGMGE, OPM, EpochContext, Joint, MMPareto, OnlyTPO, ReconBoost, UniformBaseline
from bmlr.tasks import Multiclass, MultiLabel, Regression, Sentiment

AUDIO, VIDEO = torch.tensor([[1.0], [2.0], [-1.0]]), torch.tensor([[3.0], [0.5], [2.0]])
NUMBERS = torch.tensor([2.0, 4.0, -2.5])


def regressor(task=None, inputs=1, **options):
    """The multimodal prediction is the sum of the features, so that a modality alone predicts twice its own."""
    encoders = {name: nn.Linear(inputs, 1, bias=False) for name in ("audio", "video")}
    model = bmlr.MultimodalClassifier(encoders, task or Regression(), **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0 if parameter.ndim == 2 else 0.0)
    return model


def started(method, model):
    method.setup(model)
    method.start_epoch(EpochContext(0, 4, model))
    return method


BATCH = bmlr.Batch({"audio": AUDIO, "video": VIDEO}, NUMBERS)


class TestReshapingOfLabels:
    LOGITS = {
        "a": torch.tensor([[3.0, -1.0], [0.2, 2.0]]),
        "v": torch.tensor([[0.5, -4.0], [1.0, -1.0]]),
    }
    TARGETS = torch.tensor([[1, 0], [1, 1]])

    def test_each_label_is_the_two_class_case(self):
        """A modality may be the stronger one for one label of a sample and the weaker for the other."""
        model = bmlr.MultimodalClassifier(
            {"a": nn.Identity(), "v": nn.Identity()}, MultiLabel(2), "sum", feature_dims={"a": 2, "v": 2}
        )
        with torch.no_grad():
            for head in model.fusion.heads.values():
                head.weight.copy_(torch.eye(2))
                head.bias.zero_()
        labels = BMLR(alpha=0.7, beta=0.0).labels(model(self.LOGITS), self.TARGETS)
        for label in range(2):
            pairs = {u: F.pad(values[:, label : label + 1], (1, 0)) for u, values in self.LOGITS.items()}
            expected = bmlr.reshape_labels(pairs, self.TARGETS[:, label], alpha=0.7, beta=0.0)
            for name in ("a", "v"):
                assert torch.equal(labels[name][:, label], expected.labels[name][:, 1])
        is_reshaped = {name: values != self.TARGETS for name, values in labels.items()}
        assert is_reshaped["a"].tolist() == [[True, False], [False, True]]
        assert is_reshaped["v"].tolist() == [[False, True], [True, False]]

    def test_the_loss_is_the_binary_cross_entropy_of_the_reshaped_labels(self):
        torch.manual_seed(0)
        model = bmlr.MultimodalClassifier({"a": nn.Linear(2, 3), "v": nn.Linear(2, 3)}, MultiLabel(2))
        output = model(self.LOGITS)
        losses, labels = BMLR(beta=0.1)(output, self.TARGETS), BMLR(beta=0.1).labels(output, self.TARGETS)
        for name in ("a", "v"):
            expected = F.binary_cross_entropy_with_logits(output.unimodal_logits[name], labels[name])
            torch.testing.assert_close(losses.terms[name], expected)

    def test_soft_targets_that_are_one_hot_are_class_indices(self):
        torch.manual_seed(0)
        logits = {name: torch.randn(6, 4, dtype=torch.float64) for name in ("a", "v", "t")}
        targets = torch.arange(6) % 4
        hard = bmlr.reshape_labels(logits, targets, alpha=1.0, beta=0.1)
        soft = bmlr.reshape_labels(logits, F.one_hot(targets, 4).double(), alpha=1.0, beta=0.1)
        for name in logits:
            torch.testing.assert_close(soft.labels[name], hard.labels[name])
            torch.testing.assert_close(soft.intensity[name], hard.intensity[name])
        mixed = bmlr.reshape_labels(logits, torch.randn(6, 4).softmax(1).double(), alpha=1.0, beta=0.0)
        for labels in mixed.labels.values():
            torch.testing.assert_close(labels.sum(1), torch.ones(6, dtype=torch.float64))

    def test_numbers_are_refused(self):
        with pytest.raises(ValueError, match="BMLR is defined for multiclass and multilabel tasks only, since a lab"):
            BMLR().setup(regressor())


class TestOptionsOfClasses:
    """Class weights, smoothing and left-out samples in every term, not in the multimodal one alone."""

    def test_left_out_samples_change_nothing(self):
        torch.manual_seed(0)
        task = Multiclass(3, class_weights=(1.0, 2.0, 3.0), label_smoothing=0.1, ignore_index=9)
        model = bmlr.MultimodalClassifier({"a": nn.Linear(4, 5), "v": nn.Linear(4, 5)}, task).double()
        inputs = {name: torch.randn(6, 4, dtype=torch.float64) for name in ("a", "v")}
        targets = torch.tensor([0, 9, 2, 1, 9, 2])
        kept = targets != 9
        for method in (BMLR(), DGL(), OnlyTPO()):
            whole = method(model(inputs), targets)
            method.discard_losses()
            part = method(model({name: x[kept] for name, x in inputs.items()}), targets[kept])
            for name, value in {**part.terms, **part.logs}.items():
                torch.testing.assert_close({**whole.terms, **whole.logs}[name], value)


class TestNumbers:
    def test_a_modality_alone_predicts_the_whole(self):
        output = regressor()(BATCH.inputs)
        assert torch.equal(output.logits, AUDIO + VIDEO)
        assert torch.equal(output.unimodal_logits["audio"], 2 * AUDIO)
        assert torch.equal(output.encoder_logits["video"], 2 * VIDEO)
        other = regressor(fusion="sum")(BATCH.inputs)
        torch.testing.assert_close(torch.stack(list(other.unimodal_logits.values())).mean(0), other.logits)

    def test_ogm_compares_errors(self):
        errors = [float((2 * x.squeeze(1) - NUMBERS).square().mean()) for x in (AUDIO, VIDEO)]
        assert errors[0] < errors[1]
        model = regressor()
        method = started(OGMGE(alpha=0.3, noise=False), model)
        losses = method.compute_losses(model, BATCH)
        method.backward(losses, model)
        plain = {name: encoder.weight.grad.clone() for name, encoder in model.encoders.items()}
        method.adjust_gradients(model)
        factor = 1 - torch.tanh(torch.tensor(0.3 * errors[1] / errors[0]))  # the ratio of MLB
        torch.testing.assert_close(model.encoders["audio"].weight.grad, factor * plain["audio"])
        assert torch.equal(model.encoders["video"].weight.grad, plain["video"])
        for name, error in zip(("audio", "video"), errors, strict=True):
            assert float(losses.logs[f"score_{name}"]) == pytest.approx(error)

    def test_samples_that_lack_a_modality_do_not_make_its_error_smaller(self):
        model = regressor()
        method = started(OGMGE(noise=False), model)
        present = {"video": torch.tensor([True, False, False])}
        logs = method.compute_losses(model, bmlr.Batch(BATCH.inputs, NUMBERS, present)).logs
        assert float(logs["score_video"]) == pytest.approx(float((2 * VIDEO[0] - NUMBERS[0]).square()))

    def test_opm_drops_the_modality_with_the_smaller_error(self):
        method = OPM(rate=0.4, strength=0.5)
        rates = method.drop_rates(torch.tensor([2.0, 3.0]), Regression())
        assert rates.tolist() == pytest.approx([0.4 * (1 + 0.5 * float(torch.tanh(torch.tensor(0.5)))), 0])
        assert method.drop_rates(torch.tensor([2.0, 3.0]), Multiclass(2))[0] == 0

    def test_agm_slows_the_modality_with_the_smaller_error_down(self):
        model = regressor(Regression(scale=4.0))
        method = started(AGM(alpha=1.0), model)
        logs = method.compute_losses(model, BATCH).logs
        scores = [((2 * x.squeeze(1) - NUMBERS) / 4).square().mean() for x in (AUDIO, VIDEO)]
        ratio = (scores[1] - scores[0]).exp()
        torch.testing.assert_close(logs["coefficient_audio"], (1 - ratio).exp())
        torch.testing.assert_close(logs["coefficient_video"], (1 - 1 / ratio).exp())
        assert logs["coefficient_audio"] < 1 < logs["coefficient_video"]

    def test_reconboost_learns_residuals(self):
        model = regressor()
        method = started(ReconBoost(hidden=0, r_init=0.5, pretrained=True), model)
        learners = {name: method._learner_logits(name, model(BATCH.inputs)) for name in ("audio", "video")}
        losses = method.compute_losses(model, bmlr.Batch(BATCH.inputs, NUMBERS, tag="boost:audio"))
        residual = NUMBERS[:, None] - 0.5 * learners["video"]
        torch.testing.assert_close(losses.terms["audio"], F.mse_loss(0.5 * learners["audio"], residual))
        prediction = method.predict(model(BATCH.inputs))
        torch.testing.assert_close(prediction.logits, sum(prediction.unimodal_logits.values()))

    def test_targeted_losses_agree_on_what_is_right(self):
        """If every modality predicts the number alone, so does the fusion: no weight grows at the other's expense."""
        for method in (OnlyTPO(), DGL()):
            model = regressor()
            right = bmlr.Batch({"audio": NUMBERS[:, None] / 2, "video": NUMBERS[:, None] / 2}, NUMBERS)
            losses = started(method, model).compute_losses(model, right)
            assert all(value == 0 for value in losses.terms.values())

    def test_what_is_written_for_logits_is_refused(self):
        with pytest.raises(ValueError, match="DGL with `surrogate = 'official'` is defined for logits only"):
            DGL(surrogate="official").setup(regressor())
        with pytest.raises(ValueError, match="`mcr` should be 'none' for a regression task"):
            ReconBoost(mcr="real").setup(regressor())


class Number(nn.Module):
    """A model somebody has already, which returns one number per sample, as a column or not."""

    def __init__(self, is_column):
        super().__init__()
        self.ear, self.eye, self.head, self.is_column = nn.Linear(1, 3), nn.Linear(1, 3), nn.Linear(6, 1), is_column

    def forward(self, audio, video):
        y = self.head(torch.cat([self.ear(audio), self.eye(video)], 1))
        return y if self.is_column else y.squeeze(1)


@pytest.mark.parametrize("is_column", [True, False])
def test_a_wrapped_model_of_one_number(is_column):
    encoders, net = {"audio": "ear", "video": "eye"}, Number(is_column)
    model = bmlr.wrap(net, encoders, BATCH.inputs, task=Regression())
    losses = DGL()(model(BATCH.inputs), NUMBERS)
    torch.testing.assert_close(losses.terms["fused"], F.mse_loss(net(AUDIO, VIDEO).flatten(), NUMBERS))
    with pytest.raises(ValueError, match="`task` should be given for a model of 1 output"):
        bmlr.wrap(net, encoders, BATCH.inputs)
    with pytest.raises(ValueError, match=r"`task` should have as many outputs as the model, 1\. Found MultiLabel"):
        bmlr.wrap(net, encoders, BATCH.inputs, task=MultiLabel(2))


class Recurrent(nn.Module):
    """Last state of an LSTM."""

    num_features = 8

    def __init__(self, width):
        super().__init__()
        self.lstm = nn.LSTM(width, 8, batch_first=True)

    def forward(self, x):
        _, (state, _) = self.lstm(x)
        return state[-1]


WIDTHS = {"audio": 3, "text": 4, "video": 2}


def make_sequences(samples, seed):
    """Three sequences, of which each holds a third of the number."""
    generator = torch.Generator().manual_seed(seed)
    inputs = {name: torch.randn(samples, 5, width, generator=generator) for name, width in WIDTHS.items()}
    return inputs, torch.stack([x[:, -1, 0] for x in inputs.values()]).sum(0)


@pytest.mark.parametrize(
    "method",
    [Joint(), UniformBaseline(), DGL(), OnlyTPO(), OGMGE(), OPM(warmup=0), AGM(), MMPareto(), ReconBoost(t1=1, t2=1)],
    ids=lambda method: type(method).__name__,
)
def test_an_lstm_regressor_of_three_modalities_learns(method):
    torch.manual_seed(0)
    model = bmlr.MultimodalClassifier(
        {name: Recurrent(width) for name, width in WIDTHS.items()}, Sentiment(criterion="mse")
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    train, (inputs, targets) = make_sequences(192, 0), make_sequences(96, 1)
    samples = [({name: x[i] for name, x in train[0].items()}, train[1][i]) for i in range(192)]
    loader = torch.utils.data.DataLoader(samples, batch_size=32, shuffle=True)
    epochs = 12
    balancer = bmlr.Balancer(model, method, optimizer, max_epochs=epochs)
    for _ in range(epochs):
        for batch in balancer.epoch(loader):
            balancer.step(batch)
    prediction = balancer.predict(inputs)
    metrics = model.task.metrics()
    metrics.update(prediction.logits, targets)
    scores = {name: float(value) for name, value in metrics.compute().items()}
    assert scores["pearson"] > 0.8, scores
    assert scores["mae"] < 0.75 * float((targets - targets.mean()).abs().mean()), scores
