"""The pieces that several methods share, also as they are with more than one process."""

import pytest
import torch

import bmlr
from bmlr.functional import log_probabilities, widened
from bmlr.methods import Losses
from bmlr.methods._modulation import batch_scores
from bmlr.methods._support import (
    WindowedMethod,
    all_reduce_mean,
    all_reduce_sum,
    check_batch,
    draw_per_sample,
    pair_mask,
    presence,
    samples_at,
    select,
)
from method_loop import take
from zoo import make_batch, make_model

SOME = torch.tensor([True, False, True, True])
FEW = torch.tensor([True, True, False, False])


def output_of(modalities, **present):
    batch = make_batch(modalities, 4, present=present or None)
    return make_model(modalities)(batch.inputs, batch.present)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_half_types_alone_are_widened(dtype):
    logits = torch.tensor([[1.0, 2.0, 4.0]], dtype=dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert widened(logits).dtype == wide
    torch.testing.assert_close(log_probabilities(logits), torch.tensor([[1.0, 2.0, 4.0]], dtype=wide).log_softmax(1))


def test_scores_are_sums_over_those_who_have_the_modality_by_sorted_name():
    output, targets = output_of(("video", "audio"), audio=SOME), torch.tensor([0, 2, 1, 0])
    logits = output.unimodal_logits
    true = {u: logits[u].softmax(1)[torch.arange(4), targets] for u in logits}
    torch.testing.assert_close(
        batch_scores(output, targets), torch.stack([true["audio"][SOME].sum(), true["video"].sum()])
    )


def test_pairs_are_of_the_samples_that_have_both():
    output = output_of(3, audio=SOME, video=FEW)
    assert torch.equal(pair_mask(output, "audio", "video"), SOME & FEW)
    assert torch.equal(pair_mask(output, "text", "video"), FEW)
    assert pair_mask(output_of(3), "audio", "video") is None


def test_presence_has_a_column_per_modality():
    output = output_of(3, video=SOME)
    everyone = torch.ones(4, dtype=torch.bool)
    assert torch.equal(presence(output), torch.stack([everyone, SOME, everyone], 1))
    assert torch.equal(presence(output, ["video", "audio"]), torch.stack([SOME, everyone], 1))


class Windowed(WindowedMethod):
    def __init__(self, first_epoch, last_epoch):
        super().__init__()
        self.set_window(first_epoch, last_epoch)

    def losses(self, output, targets):
        return Losses({"fused": output.logits.sum()})


@pytest.mark.parametrize(
    ("first", "last", "message"),
    [
        (-1, None, "Parameter `first_epoch` should be an integer of at least 0. Found `first_epoch = -1`."),
        (4, 3, "Parameter `last_epoch` should be an integer of at least 4. Found `last_epoch = 3`."),
    ],
)
def test_what_is_no_range_of_epochs(first, last, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        Windowed(first, last)


@pytest.mark.parametrize(("first", "last", "acting"), [(2, 4, [2, 3, 4]), (5, None, [5, 6, 7]), (0, 0, [0])])
def test_both_ends_of_a_range_act(first, last, acting):
    method, epochs = Windowed(first, last), []
    for method.epoch in range(8):
        epochs += [method.epoch] * method.is_acting
    assert epochs == acting


def pretend(monkeypatch, rank, world):
    """A training of so many processes that all hold the same."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: world)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda values: values.mul_(world))


def test_processes_share_out_the_numbers_of_the_joined_batch(monkeypatch):
    numbers = lambda: torch.Generator().manual_seed(7)
    joined = draw_per_sample(6, 2, numbers())
    assert joined.shape == (6, 2)
    assert torch.equal(joined, torch.rand(6, 2, generator=numbers()))
    for rank in range(3):
        pretend(monkeypatch, rank, 3)
        assert torch.equal(draw_per_sample(2, 2, numbers()), joined[rank::3])


def test_values_are_summed_and_averaged_over_processes(monkeypatch):
    values = torch.tensor([1.0, 2.0], requires_grad=True)
    assert all_reduce_sum(values) is values
    assert all_reduce_mean(values) is values
    pretend(monkeypatch, 0, 4)
    assert all_reduce_sum(values).tolist() == [4.0, 8.0]
    assert all_reduce_mean(values).tolist() == [1.0, 2.0]
    assert not all_reduce_sum(values).requires_grad
    assert values.tolist() == [1.0, 2.0]


def test_a_batch_fits_the_model():
    model, batch = make_model(), make_batch()
    check_batch(model, batch)
    with pytest.raises(ValueError, match=r"^`targets` should lie in \[0, 2\] for 3 classes"):
        check_batch(model, bmlr.Batch(batch.inputs, batch.targets + 3))
    with pytest.raises(ValueError, match=r"^`targets` should have shape \(8,\)"):
        check_batch(model, bmlr.Batch(batch.inputs, batch.targets[:4]))
    del batch.inputs["audio"]
    with pytest.raises(
        ValueError, match=r"^`inputs` should have the modalities \['audio', 'video'\]\. Found \['video'\]\.$"
    ):
        check_batch(model, batch)


def assert_same_batch(actual, expected):
    assert actual.inputs.keys() == expected.inputs.keys()
    assert all(torch.equal(actual.inputs[u], expected.inputs[u]) for u in expected.inputs)
    assert torch.equal(actual.targets, expected.targets)
    assert (actual.present is None) == (expected.present is None)
    for name, mask in (expected.present or {}).items():
        assert torch.equal(actual.present[name], mask)


@pytest.mark.parametrize("present", [None, {"video": SOME}])
def test_select(present):
    batch = make_batch(2, 4, present=present)
    batch.tag = "some"
    chosen = select(batch, FEW)
    assert_same_batch(chosen, take(batch, torch.tensor([0, 1])))
    assert chosen.indices.tolist() == [0, 1]
    assert chosen.tag == "some"
    batch.indices = None
    assert select(batch, FEW).indices is None


@pytest.mark.parametrize("present", [None, {"video": torch.arange(10) % 3 > 0}])
@pytest.mark.parametrize("indices", [[0], [1, 2], [9, 4, 0]])
def test_samples_are_found_in_the_order_of_the_split(indices, present):
    split = make_batch(2, 10, present=present)
    splits = [take(split, rows) for rows in torch.arange(10).split(3)]
    assert_same_batch(samples_at(iter(splits), indices), take(split, torch.tensor(sorted(indices))))


def test_no_more_is_read_than_is_looked_for():
    split = make_batch(2, 10)

    def batches():
        yield take(split, torch.arange(3))
        raise AssertionError

    assert samples_at(batches(), [2, 1]).targets.tolist() == split.targets[1:3].tolist()


def test_samples_of_batches_with_and_without_masks_keep_theirs():
    split = make_batch(2, 4, present={"audio": SOME})
    batches = [take(split, rows) for rows in (torch.tensor([0, 1]), torch.tensor([2, 3]))]
    batches[1] = batches[1].to("cpu")  # where all samples have a modality its mask is left out
    assert batches[1].present is None
    found = samples_at(batches, [0, 1, 3])
    assert found.present["audio"].tolist() == [True, False, True]
    assert samples_at(batches[1:], [2]).present is None


def test_samples_that_are_not_there():
    split = make_batch(2, 4)
    with pytest.raises(ValueError, match=r"^The split should hold the samples \[1, 7, 9\]\. Found 1\.$"):
        samples_at([split], [1, 7, 9])
    split.indices = None
    with pytest.raises(
        ValueError, match=r"^Batches should have `indices` where a method looks for samples\. Found None"
    ):
        samples_at([split], [1])
