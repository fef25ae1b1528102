"""Inputs that are finished on the device of the model: their values, what travels, and how often it is copied."""

import pickle

import numpy as np
import pytest
import torch

from bmlr.batch import Batch, empty_for_batch
from bmlr.data._base import Modality, Split
from bmlr.data._selection import _SelectedSplit
from bmlr.data.sets._forms import Form, StoredInput, choose_frames
from bmlr.data.transforms._frames import augment_frames
from bmlr.methods import EpochPlan
from bmlr.training.loader import RequestLoader, planned_requests

RNG = np.random.default_rng(0)
FORMS = {
    "photo": Form(Modality("image", (3, 8, 8))),
    "video": Form(Modality("frames", (3, 3, 8, 8))),
    "flow": Form(Modality("frames", (2, 2, 8, 8)), np.array([[100.0, 120.0], [20.0, 30.0]]), flip=0.0),
    "sound": Form(Modality("spectrogram", (1, 5, 7))),
}
SAMPLES = {
    "photo": [RNG.integers(256, size=(n, 12, 10, 3), dtype=np.uint8) for n in (1, 1, 0, 1)],
    "video": [RNG.integers(256, size=(n, 12, 10, 3), dtype=np.uint8) for n in (5, 0, 2, 9)],
    "flow": [RNG.integers(256, size=(n, 12, 10, 2), dtype=np.uint8) for n in (5, 1, 2, 9)],
    "sound": [RNG.normal(size=(n, 1, 5, 7)).astype(np.float16) for n in (1, 1, 1, 0)],
}
SEEDS = [3, 2**61, 7, 11]


def literal(name, *, train):
    """The inputs of each sample by itself, by the published functions."""
    form, found = FORMS[name], []
    for rows, seed in zip(SAMPLES[name], SEEDS, strict=True):
        kind, shape = form.modality.kind, form.modality.shape
        if not len(rows):
            found.append(torch.zeros(shape))
        elif kind == "spectrogram":
            found.append(torch.from_numpy(rows[0].astype(np.float32)))
        else:
            count = shape[0] if kind == "frames" else 1
            chosen = rows[choose_frames(len(rows), count, np.random.default_rng(seed) if train else None)]
            options = {}
            if name == "flow":
                mean, std = form.statistics / 255
                options = {"mean": tuple(mean), "std": tuple(std), "flip": 0.0}
            frames = augment_frames(torch.from_numpy(chosen[None]), 8, torch.tensor([seed]), train=train, **options)[0]
            found.append(frames if kind == "frames" else frames[0])
    return torch.stack(found)


class Samples(Split):
    """Five batches' worth of the samples above."""

    def __init__(self):
        self.targets = torch.arange(20)

    def batch(self, indices, *, augment=False, seed=0):
        return self._batch(Form.inputs, indices, augment, seed)

    def late_batch(self, indices, *, augment=False, seed=0):
        return self._batch(Form.late_inputs, indices, augment, seed)

    def _batch(self, convert, indices, augment, seed):
        inputs = {
            name: convert(form, [SAMPLES[name][i % 4] for i in indices], [seed + i for i in indices], train=augment)
            for name, form in FORMS.items()
        }
        return Batch(inputs, self.targets[list(indices)], indices=torch.tensor(list(indices)))


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("name", FORMS)
def test_values_are_those_of_the_literal_definition(name, train):
    late = FORMS[name].late_inputs(SAMPLES[name], SEEDS, train=train)
    batch = Batch({name: pickle.loads(pickle.dumps(late))}, torch.zeros(4))  # noqa: S301  (as a worker sends it)
    expected = literal(name, train=train)
    assert torch.equal(FORMS[name].inputs(SAMPLES[name], SEEDS, train=train), expected)
    assert torch.equal(batch.to("cpu").inputs[name], expected)
    assert batch.to("cpu", dtype=torch.float64).inputs[name].dtype == torch.float64


def test_stored_types_travel():
    late = {name: form.late_inputs(SAMPLES[name], SEEDS, train=True) for name, form in FORMS.items()}
    types = {name: x.values.dtype for name, x in late.items()}
    assert types == {"photo": torch.uint8, "video": torch.uint8, "flow": torch.uint8, "sound": torch.float16}
    assert late["video"].nbytes == 3 * 3 * 12 * 10 * 3


def test_finishing_waits_for_no_device():
    """On a device without numbers nothing can be read back."""
    for name, form in FORMS.items():
        late = form.late_inputs(SAMPLES[name], SEEDS, train=True).map(lambda x: x.to("meta"))
        assert late.finish().shape == (4, *form.modality.shape)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="There is no GPU.")
def test_on_a_gpu_it_is_what_it_is_on_the_cpu():
    batch = Samples().late_batch(range(8), augment=True, seed=3)
    expected = Samples().batch(range(8), augment=True, seed=3)
    for name, x in batch.pin_memory().to("cuda", non_blocking=True).inputs.items():
        torch.testing.assert_close(x.cpu(), expected.inputs[name], rtol=1e-4, atol=1e-4)


def test_a_batch_without_the_modality():
    for name, form in FORMS.items():
        empty = [rows[:0] for rows in SAMPLES[name]]
        late = form.late_inputs(empty, SEEDS, train=True)
        expected = torch.zeros(4, *form.modality.shape)
        assert torch.equal(late.finish(), expected)
        assert torch.equal(form.inputs(empty, SEEDS, train=False), expected)


def test_vectors_and_sequences_are_small_enough_to_be_finished_at_once():
    form = Form(Modality("vector", (3,)), np.array([[1.0, 2, 3], [2.0, 2, 2]]))
    rows = [np.array([[1.0, 4, 5]]), np.zeros((0, 3))]
    expected = torch.tensor([[0.0, 1, 1], [0, 0, 0]])
    assert torch.equal(form.late_inputs(rows, [0, 1], train=True), expected)
    sequence = Form(Modality("sequence", (4, 2)), np.array([[1.0, 1], [2.0, 2]]))
    rows = [np.array([[3.0, 1], [0, 0], [1, 5]]), np.zeros((0, 2))]
    expected = torch.zeros(2, 4, 2)
    expected[0] = torch.tensor([[1.0, 0], [0, 0], [0, 2], [0, 0]])  # a step of zeros is padding
    assert torch.equal(sequence.late_inputs(rows, [0, 1], train=True), expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_loaders_give_the_same_batches_late_or_not(workers):
    requests = planned_requests(EpochPlan(), 20, 6, seed=5, epoch=1)
    direct = list(RequestLoader(Samples(), requests))
    late = list(RequestLoader(Samples(), requests, num_workers=workers, late=True))
    chosen = list(RequestLoader(_SelectedSplit(Samples(), ("video", "sound")), requests, late=True))
    for one, other, some in zip(direct, late, chosen, strict=True):
        assert torch.equal(one.indices, other.indices)
        assert all(isinstance(x, StoredInput) for x in other.inputs.values())
        assert set(some.inputs) == {"video", "sound"}
        for name, x in other.to("cpu").inputs.items():
            assert torch.equal(x, one.inputs[name])
            assert name not in some.inputs or torch.equal(some.to("cpu").inputs[name], x)


class Shared(Samples):
    """Targets say whether the memory of each input is shared."""

    def _batch(self, convert, indices, augment, seed):
        batch = super()._batch(convert, indices, augment, seed)
        tensors = [x.values if isinstance(x, StoredInput) else x for x in batch.inputs.values()]
        shared = [x.is_shared() for name, x in zip(FORMS, tensors, strict=True) if name in {"video", "flow"}]
        return Batch(batch.inputs, torch.tensor(shared))


@pytest.mark.parametrize("late", [False, True])
def test_a_worker_fills_the_memory_that_it_hands_over(late):
    requests = planned_requests(EpochPlan(), 4, 4, seed=0, epoch=0)
    (here,) = RequestLoader(Shared(), requests, late=late)
    (there,) = RequestLoader(Shared(), requests, num_workers=1, late=late)
    assert here.targets.tolist() == [False, False]
    assert there.targets.tolist() == [True, True]
    assert empty_for_batch((2, 3), torch.float16).shape == (2, 3)
