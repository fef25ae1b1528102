"""What methods that change gradients by scores share."""

import pytest
import torch

import bmlr
from bmlr.methods._modulation import accuracy_sums, mean_of_others, mean_scores, score_sums


def test_sums_count_the_samples_that_have_modality_and_target():
    task = bmlr.tasks.Multiclass(3, ignore_index=-100)
    model = bmlr.MultimodalClassifier({u: torch.nn.Linear(4, 5) for u in ("video", "audio")}, task)
    present = {"video": torch.tensor([True, True, False, True])}
    inputs, targets = {u: torch.randn(4, 4) for u in ("video", "audio")}, torch.tensor([0, -100, 1, 2])
    output = model(inputs, present)
    logits = {u: x.detach() for u, x in output.unimodal_logits.items()}
    sums, right = score_sums(output, logits, targets), accuracy_sums(output, logits, targets)
    for column, (name, rows) in enumerate((("audio", [0, 2, 3]), ("video", [0, 3]))):
        probabilities = [float(logits[name][i].softmax(0)[targets[i]]) for i in rows]
        answers = [int(logits[name][i].argmax()) == int(targets[i]) for i in rows]
        assert sums[:, column].tolist() == pytest.approx([sum(probabilities), len(rows)], rel=1e-6)
        assert right[:, column].tolist() == [sum(answers), len(rows)]


def test_accuracies_of_labels_and_errors_of_numbers():
    labels = bmlr.MultimodalClassifier({u: torch.nn.Linear(4, 5) for u in ("a", "v")}, bmlr.tasks.MultiLabel(2))
    numbers = bmlr.MultimodalClassifier({u: torch.nn.Linear(4, 5) for u in ("a", "v")}, bmlr.tasks.Regression())
    inputs = {u: torch.randn(2, 4) for u in ("a", "v")}
    logits = dict.fromkeys(("a", "v"), torch.tensor([[1.0, -1.0], [1.0, 1.0]]))
    assert accuracy_sums(labels(inputs), logits, torch.tensor([[1, 0], [0, 0]])).tolist() == [[1.0, 1.0], [2.0, 2.0]]
    predicted, targets = dict.fromkeys(("a", "v"), torch.tensor([[1.0], [3.0]])), torch.tensor([0.0, 1.0])
    assert accuracy_sums(numbers(inputs), predicted, targets).tolist() == [[5.0, 5.0], [2.0, 2.0]]
    assert score_sums(numbers(inputs), predicted, targets).tolist() == [[5.0, 5.0], [2.0, 2.0]]
    by_confidence = score_sums(numbers(inputs), predicted, targets, errors=False)
    assert by_confidence[0].tolist() == pytest.approx([0.5 + 0.2] * 2)


def test_a_modality_without_samples_scores_as_the_others():
    assert mean_scores(torch.tensor([[1.0, 0.0, 3.0], [2.0, 0.0, 2.0]])).tolist() == [0.5, 1.0, 1.5]
    assert mean_scores(torch.zeros(2, 2)).tolist() == [1.0, 1.0]
    assert mean_of_others(torch.tensor([1.0, 2.0, 6.0])).tolist() == [4.0, 3.5, 1.5]
