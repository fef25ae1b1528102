"""What methods that change gradients by scores share."""

import pytest
import torch

import bmlr
from bmlr.methods import AMSS, CGGM, MLB, MSLR, OGMGE, EpochContext, InfoReg
from bmlr.methods._modulation import accuracy_sums, mean_of_others, mean_scores, score_sums
from zoo import make_batch, make_model

METHODS = (
    OGMGE(noise=False), MLB(), MSLR(), InfoReg(), InfoReg(form="official"), CGGM(), CGGM(direction="weights"),
    AMSS(), AMSS(unbiased=True), AMSS(unbiased=True, factor="official"),
)  # fmt: skip


@pytest.mark.parametrize("with_absent", [False, True])
@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_a_step_looks_at_no_value(method, with_absent, monkeypatch):
    """On the meta device, which has none: a step that reads one would wait for a GPU."""
    model = make_model(3)
    method.setup(model)
    method.start_epoch(EpochContext(0, 3, model))
    model.to("meta")
    method.to("meta")
    batch = make_batch(3).to("meta")
    output = model(batch.inputs)
    if with_absent:
        mask = {"video": torch.ones(8, dtype=torch.bool, device="meta")}
        output = bmlr.model.Output(output.features, output.fusion, output.task, mask)
    if isinstance(method, AMSS):  # there are no generators of this device
        monkeypatch.setattr(method, "generator", lambda number, device: None)
    method.backward(method(output, batch.targets), model)
    method.adjust_gradients(model)


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
