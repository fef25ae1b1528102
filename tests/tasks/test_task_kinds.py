"""Losses, confidences, predictions and metrics of tasks, against torch, scikit-learn and SciPy."""

import copy
import pickle

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics
from torch.nn import functional as F  # noqa: N812

import bmlr
from bmlr.functional import soft_cross_entropy
from bmlr.tasks import Multiclass, MultiLabel, Regression, Sentiment

LOGITS = torch.tensor([[2.0, 0.0, 1.0], [0.5, 0.4, 0.3], [-1.0, 3.0, 0.0], [0.0, 0.0, 4.0], [0.2, 0.9, 0.1]])
CLASSES = torch.tensor([0, 2, 1, 2, 0])
LABELS = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]])
NUMBERS = torch.tensor([1.5, -2.0, 0.0, 0.4, -0.2])


def updated(task, logits, targets, batches=2):
    collection = task.metrics()
    for rows in torch.arange(len(logits)).tensor_split(batches):
        collection.update(logits[rows], targets[rows])
    return {name: float(value) for name, value in collection.compute().items()}


class TestMulticlass:
    @pytest.mark.parametrize("mask", [None, torch.tensor([True, True, False, True, False])])
    def test_without_options_it_is_the_cross_entropy_bit_for_bit(self, mask):
        for logits in (LOGITS, LOGITS.bfloat16(), LOGITS.double()):
            assert torch.equal(
                Multiclass(3).loss(logits, CLASSES, mask), soft_cross_entropy(logits, CLASSES, mask=mask)
            )

    @pytest.mark.parametrize("options", [{"class_weights": (1.0, 3.0, 0.5)}, {"label_smoothing": 0.2}])
    @pytest.mark.parametrize("soft", [False, True])
    def test_options_are_those_of_torch(self, options, soft):
        for extra in ({}, {"label_smoothing": 0.1}):
            options = {**extra, **options}
            targets = LOGITS.roll(1, 0).softmax(1) if soft else CLASSES
            named = {key: torch.tensor(value) if isinstance(value, tuple) else value for key, value in options.items()}
            named = {"weight" if key == "class_weights" else key: value for key, value in named.items()}
            expected = F.cross_entropy(LOGITS, targets, **named)
            torch.testing.assert_close(Multiclass(3, **options).loss(LOGITS, targets), expected)

    @pytest.mark.parametrize("options", [{}, {"class_weights": (1.0, 3.0, 0.5)}, {"label_smoothing": 0.2}])
    def test_ignored_samples_do_not_count(self, options):
        task = Multiclass(3, ignore_index=-100, **options)
        targets, logits = CLASSES.clone(), LOGITS.clone().requires_grad_()
        targets[[1, 4]] = -100
        task.check_targets(targets, 5)
        kept = torch.tensor([0, 2, 3])
        expected = Multiclass(3, **options).loss(LOGITS[kept], CLASSES[kept])
        loss = task.loss(logits, targets)
        torch.testing.assert_close(loss, expected)
        loss.backward()
        assert not logits.grad[[1, 4]].any()
        assert task.confidence(LOGITS, targets)[[1, 4]].tolist() == [0, 0]
        torch.testing.assert_close(task.label_loss(LOGITS, task.labels(targets), targets), expected)
        assert task.loss(LOGITS, torch.full((5,), -100)) == 0
        scores = updated(task, LOGITS, targets)
        assert scores == pytest.approx(updated(task, LOGITS[kept], CLASSES[kept]))

    def test_labels_give_the_loss_of_the_targets(self):
        for options in ({}, {"class_weights": (1.0, 3.0, 0.5)}, {"label_smoothing": 0.2}):
            task = Multiclass(3, **options)
            expected = task.loss(LOGITS, CLASSES)
            torch.testing.assert_close(task.label_loss(LOGITS, task.labels(CLASSES), CLASSES), expected)

    def test_confidence_is_the_probability_of_the_true_class(self):
        task = Multiclass(3)
        expected = LOGITS.softmax(1)[torch.arange(5), CLASSES]
        torch.testing.assert_close(task.confidence(LOGITS, CLASSES), expected)
        torch.testing.assert_close(task.confidence(LOGITS, task.labels(CLASSES)), expected)
        assert task.predict(LOGITS).tolist() == [0, 0, 1, 2, 1]

    def test_metrics(self):
        scores, probabilities = updated(Multiclass(3), LOGITS, CLASSES), LOGITS.double().softmax(1).numpy()
        predicted = LOGITS.argmax(1)
        confidence = probabilities.max(1)
        bins = np.digitize(confidence, np.linspace(0, 1, 16)[1:-1])
        gaps = [
            (bins == b).mean() * abs(confidence[bins == b].mean() - (predicted == CLASSES).numpy()[bins == b].mean())
            for b in np.unique(bins)
        ]
        assert scores == pytest.approx(
            {
                "accuracy": metrics.accuracy_score(CLASSES, predicted),
                "macro_f1": metrics.f1_score(CLASSES, predicted, average="macro"),
                "balanced_accuracy": metrics.balanced_accuracy_score(CLASSES, predicted),
                "nll": metrics.log_loss(CLASSES, probabilities),
                "ece": sum(gaps),
            }
        )

    def test_logits_within_the_unit_interval_are_no_probabilities(self):
        logits = LOGITS.sigmoid()
        expected = metrics.log_loss(CLASSES, logits.double().softmax(1).numpy())
        assert updated(Multiclass(3), logits, CLASSES)["nll"] == pytest.approx(expected)
        assert updated(Multiclass(3), logits, CLASSES)["ece"] == pytest.approx(
            updated(Multiclass(3), logits - 5, CLASSES)["ece"]
        )

    def test_a_class_that_never_occurs_has_no_recall(self):
        targets = torch.tensor([0, 0, 1, 1, 0])
        scores = updated(Multiclass(3), LOGITS, targets)
        assert scores["balanced_accuracy"] == pytest.approx((2 / 3 * 0 + 1 / 3 * 2 + 0.5 + 0) / 2, abs=0.2)
        predicted = LOGITS.argmax(1)
        recalls = [(predicted[targets == c] == c).double().mean() for c in (0, 1)]
        assert scores["balanced_accuracy"] == pytest.approx(float(sum(recalls)) / 2)


class TestMultiLabel:
    def test_loss_is_that_of_torch(self):
        weight = (1.0, 2.0, 0.5)
        expected = F.binary_cross_entropy_with_logits(LOGITS, LABELS.float(), pos_weight=torch.tensor(weight))
        for targets in (LABELS, LABELS.bool(), LABELS.double()):
            torch.testing.assert_close(MultiLabel(3, pos_weight=weight).loss(LOGITS, targets), expected)

    def test_a_label_is_a_choice_between_two_classes(self):
        task = MultiLabel(3)
        logits, targets = task.choice_logits(LOGITS), task.choice_targets(LABELS)
        two = F.cross_entropy(logits, targets, reduction="none")
        torch.testing.assert_close(task.per_sample(two), task.sample_losses(LOGITS, LABELS))
        confidence = logits.softmax(1)[torch.arange(15), targets]
        torch.testing.assert_close(task.per_sample(confidence), task.confidence(LOGITS, LABELS))
        torch.testing.assert_close(task.from_choices(logits.softmax(1)), LOGITS.sigmoid())
        mask = torch.tensor([True, False, True, True, False])
        assert torch.equal(task.choice_mask(mask).view(5, 3), mask[:, None].expand(5, 3))

    def test_metrics(self):
        scores, p = updated(MultiLabel(3), LOGITS, LABELS), LOGITS.sigmoid()
        assert scores == pytest.approx(
            {
                "auroc": metrics.roc_auc_score(LABELS, p, average="macro"),
                "mean_average_precision": metrics.average_precision_score(LABELS, p, average="macro"),
                "macro_f1": metrics.f1_score(LABELS, p > 0.5, average="macro"),
            }
        )

    def test_labels_that_tell_nothing_are_left_out_of_the_mean(self):
        targets = LABELS.clone()
        targets[:, 0], targets[:, 2] = 1, 0
        scores = updated(MultiLabel(3), LOGITS, targets)
        assert scores["auroc"] == pytest.approx(metrics.roc_auc_score(targets[:, 1], LOGITS[:, 1]))
        average = metrics.average_precision_score(targets[:, 1], LOGITS[:, 1])
        assert scores["mean_average_precision"] == pytest.approx((1 + average) / 2)
        assert np.isnan(updated(MultiLabel(3), LOGITS, torch.zeros(5, 3))["auroc"])


class TestRegression:
    @pytest.mark.parametrize(
        ("criterion", "function"), [("mse", F.mse_loss), ("mae", F.l1_loss), ("huber", F.huber_loss)]
    )
    def test_loss_is_that_of_torch_in_units_of_the_scale(self, criterion, function):
        for targets in (NUMBERS, NUMBERS[:, None]):
            loss = Regression(criterion=criterion, scale=2.0).loss(LOGITS[:, :1], targets)
            torch.testing.assert_close(loss, function(LOGITS[:, 0] / 2, NUMBERS / 2))
        loss = Regression(3, criterion).loss(LOGITS, LOGITS.roll(1, 0))
        torch.testing.assert_close(loss, function(LOGITS, LOGITS.roll(1, 0)))

    def test_a_column_of_predictions_meets_a_row_of_targets_one_by_one(self):
        """Subtracted as they are, (B, 1) and (B,) make a table of all pairs, which trains to the mean."""
        losses = Regression().sample_losses(LOGITS[:, :1], NUMBERS)
        torch.testing.assert_close(losses, (LOGITS[:, 0] - NUMBERS).square())

    def test_confidence_falls_from_one_with_the_error(self):
        confidence = Regression().confidence(torch.tensor([[1.0], [2.0], [9.0]]), torch.ones(3))
        assert confidence.tolist() == pytest.approx([1, 0.5, 1 / 65])

    def test_metrics(self):
        predicted = LOGITS[:, 0]
        scores = updated(Regression(), LOGITS[:, :1], NUMBERS)
        expected = {
            "mae": metrics.mean_absolute_error(NUMBERS, predicted),
            "rmse": metrics.root_mean_squared_error(NUMBERS, predicted),
            "pearson": stats.pearsonr(NUMBERS, predicted).statistic,
        }
        assert scores == pytest.approx(expected, rel=1e-5)
        several, targets = updated(Regression(3), LOGITS, LOGITS.roll(1, 0)), LOGITS.roll(1, 0)
        assert several["mae"] == pytest.approx(float((LOGITS - targets).abs().mean()))
        mean = np.mean([stats.pearsonr(targets[:, k], LOGITS[:, k]).statistic for k in range(3)])
        assert several["pearson"] == pytest.approx(mean, rel=1e-5)
        assert np.isnan(updated(Regression(), torch.zeros(5, 1), NUMBERS)["pearson"])

    def test_sentiment_counts_zero_as_not_negative_or_not_at_all(self):
        predicted = torch.tensor([0.6, -2.6, -0.1, 0.2, -0.3])
        scores = updated(Sentiment(), predicted[:, None], NUMBERS, batches=5)  # batches without any positive score too
        kept = NUMBERS != 0
        rounded, rounded_targets = predicted.clamp(-3, 3).round(), NUMBERS.clamp(-3, 3).round()
        expected = {
            "acc2_nonnegative": metrics.accuracy_score(NUMBERS >= 0, predicted >= 0),
            "f1_nonnegative": metrics.f1_score(NUMBERS >= 0, predicted >= 0, average="weighted"),
            "acc2_positive": metrics.accuracy_score(NUMBERS[kept] > 0, predicted[kept] > 0),
            "f1_positive": metrics.f1_score(NUMBERS[kept] > 0, predicted[kept] > 0, average="weighted"),
            "acc7": float((rounded == rounded_targets).double().mean()),
            "mae": metrics.mean_absolute_error(NUMBERS, predicted),
            "pearson": stats.pearsonr(NUMBERS, predicted).statistic,
        }
        assert scores == pytest.approx(expected, rel=1e-5)
        assert len({expected[name] for name in ("acc2_nonnegative", "acc2_positive", "acc7")}) == 3


class TestBadInput:
    @pytest.mark.parametrize(
        ("task", "targets", "message"),
        [
            (
                Multiclass(3),
                torch.tensor([0, 3]),
                r"`targets` should lie in \[0, 2\] for 3 classes. Found values from 0",
            ),
            (Multiclass(3), torch.tensor([0, -100]), r"`targets` should lie in \[0, 2\]"),
            (Multiclass(3, ignore_index=-100), torch.tensor([-1, -100]), r"`targets` should lie in \[0, 2\]"),
            (Multiclass(3), torch.tensor([0.0, 1.0]), "`targets` should be class indices of an integer type"),
            (Multiclass(3), torch.zeros(2, 4), r"distributions should have shape \(2, 3\). Found shape \(2, 4\)"),
            (Multiclass(3), torch.ones(2, 3), "each row should sum to 1. Found values from 1 and sums from 3 to 3"),
            (Multiclass(3), torch.zeros(2, 3, dtype=torch.long), r"`targets` should have shape \(2,\)"),
            (MultiLabel(3), torch.tensor([0, 1]), r"`targets` should have shape \(2, 3\), a 0 or 1 for each label"),
            (MultiLabel(3), torch.full((2, 3), 0.5), "`targets` should hold 0 and 1 only. Found 0.5"),
            (MultiLabel(3), torch.full((2, 3), torch.nan), "`targets` should hold 0 and 1 only. Found nan"),
            (Regression(), torch.tensor([0, 1]), "`targets` should be floating-point numbers. Found dtype torch.int64"),
            (Regression(), torch.zeros(2, 2), r"`targets` should have shape \(2,\) or \(2, 1\). Found shape \(2, 2\)"),
            (Regression(2), torch.zeros(2), r"`targets` should have shape \(2, 2\). Found shape \(2,\)"),
            (Regression(), torch.tensor([0.0, torch.nan]), "`targets` should be finite numbers. Found 1 that are NaN"),
        ],
    )
    def test_targets_of_another_task(self, task, targets, message):
        model = bmlr.MultimodalClassifier({"a": torch.nn.Linear(4, 8), "v": torch.nn.Linear(6, 8)}, task)
        inputs = {"a": torch.randn(2, 4), "v": torch.randn(2, 6)}
        with pytest.raises(ValueError, match=message):
            bmlr.methods.Joint()(model(inputs), targets)

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: Multiclass(1), "`num_classes` should be an integer of at least 2"),
            (lambda: Multiclass(3, (1.0, 2.0)), "a weight for each of the 3 classes. Found 2"),
            (lambda: Multiclass(2, (1.0, -2.0)), "`class_weights` should be a positive finite number"),
            (lambda: Multiclass(2, label_smoothing=2.0), r"`label_smoothing` should lie in \[0, 1\]"),
            (lambda: MultiLabel(0), "`num_labels` should be an integer of at least 1"),
            (lambda: MultiLabel(2, (1.0,)), "a weight for each of the 2 labels. Found 1"),
            (lambda: Regression(criterion="l2"), "`criterion` should be one of mse, mae, huber"),
            (lambda: Regression(scale=0.0), "`scale` should be a positive finite number"),
            (lambda: Sentiment(2), "`num_outputs` should be 1"),
            (lambda: bmlr.MultimodalClassifier({"a": torch.nn.Linear(4, 8)}, "classes"), "`task` should be a number"),
            (lambda: bmlr.MultimodalClassifier({"a": torch.nn.Linear(4, 8)}, MultiLabel), "Found MultiLabel"),
        ],
    )
    def test_arguments(self, make, message):
        with pytest.raises(ValueError, match=message):
            make()


@pytest.mark.parametrize("task", [Multiclass(3, [1, 2, 3]), MultiLabel(2), Regression(2, "huber", 3.0), Sentiment()])
def test_a_task_is_plain_data(task):
    assert copy.deepcopy(task) == task == pickle.loads(pickle.dumps(task)) == type(task)(**task.hparams)  # noqa: S301
    pickle.loads(pickle.dumps(task.metrics()))  # noqa: S301
    assert task.primary in task.metrics()
