import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import Dataset, get_worker_info

from bmlr.cli import main
from bmlr.data import ArraySplit
from bmlr.methods import EpochPlan, Pass
from bmlr.training import loader
from bmlr.training.loader import LoadingError, RequestLoader, ordered_requests, planned_requests
from toy import Toy


@given(count=st.integers(1, 60), size=st.integers(1, 20), world=st.integers(1, 4), epoch=st.integers(0, 5))
def test_every_sample_once_and_ranks_share_them(count, size, world, epoch):
    ranks = [
        planned_requests(EpochPlan(), count, size, seed=3, epoch=epoch, rank=rank, world_size=world)
        for rank in range(world)
    ]
    assert len({len(requests) for requests in ranks}) == 1  # all ranks take part in every step
    seen = [index for requests in ranks for request in requests for index in request.indices]
    assert set(seen) == set(range(count))
    assert len(seen) == count + (-count % world)
    sizes = [len(request.indices) for request in ranks[0]]
    assert all(length == size for length in sizes[:-1])
    assert 1 <= sizes[-1] <= size + 1
    assert sizes[-1] > 1 or len(sizes) == 1 or size == 1


def test_global_batches_do_not_depend_on_the_number_of_ranks():
    one = planned_requests(EpochPlan(), 24, 8, seed=0, epoch=1)
    two = [planned_requests(EpochPlan(), 24, 4, seed=0, epoch=1, rank=rank, world_size=2) for rank in range(2)]
    for step, request in enumerate(one):
        assert set(request.indices) == set(two[0][step].indices) | set(two[1][step].indices)


def test_order_is_a_function_of_seed_and_epoch():
    def order(seed, epoch):
        return [r.indices for r in planned_requests(EpochPlan(), 50, 7, seed=seed, epoch=epoch)]

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


def test_passes_keep_their_samples_tags_and_place():
    plan = EpochPlan((Pass("a", indices=(4, 1, 9)), Pass("b", fresh_optimizer=True), Pass("empty", indices=())))
    requests = planned_requests(plan, 10, 4, seed=0, epoch=0)
    assert [r.tag for r in requests] == ["a", "b", "b", "b"]
    assert set(requests[0].indices) == {1, 4, 9}
    assert [r.fresh_optimizer for r in requests] == [False, True, False, False]


def test_shuffled_passes_are_the_same_batches_in_another_order():
    passes = (Pass("a", indices=tuple(range(30))), Pass("b", indices=tuple(range(30, 60))))
    apart = planned_requests(EpochPlan(passes), 60, 3, seed=0, epoch=0)
    mixed = planned_requests(EpochPlan(passes, order="shuffled"), 60, 3, seed=0, epoch=0)
    assert sorted(r.indices for r in apart) == sorted(r.indices for r in mixed)
    assert [r.tag for r in mixed] != [r.tag for r in apart]


@given(count=st.integers(2, 40), size=st.integers(1, 9), world=st.integers(1, 3))
def test_aligned_passes_give_the_same_batch_with_the_same_transforms_in_turn(count, size, world):
    plan = EpochPlan((Pass("a"), Pass("v", fresh_optimizer=True), Pass("t")), order="aligned")
    alone = planned_requests(EpochPlan(), count, size, seed=0, epoch=2, rank=world - 1, world_size=world)
    requests = planned_requests(plan, count, size, seed=0, epoch=2, rank=world - 1, world_size=world)
    assert [r.tag for r in requests] == ["a", "v", "t"] * len(alone)
    expected = [(r.indices, r.seed) for r in alone for _ in range(3)]
    assert [(r.indices, r.seed) for r in requests] == expected
    assert [i for i, r in enumerate(requests) if r.fresh_optimizer] == [1]


def test_aligned_passes_of_other_samples_are_refused():
    with pytest.raises(ValueError, match=r"should go through the same samples. Found passes of {'a': 2, 'v': 'all'}"):
        EpochPlan((Pass("a", indices=(1, 2)), Pass("v")), order="aligned")
    with pytest.raises(ValueError, match=r"`order` should be one of .* Did you mean 'aligned'"):
        EpochPlan(order="align")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_of_aligned_passes_is_loaded_once_also_after_a_resume_in_its_middle(workers):
    class Counting(ArraySplit):
        loads = 0

        def batch(self, *arguments, **options):
            self.loads += 1
            return super().batch(*arguments, **options)

    split = Counting({"a": np.arange(20.0)[:, None]}, np.arange(20) % 3)
    requests = planned_requests(EpochPlan((Pass("a"), Pass("v")), order="aligned"), 20, 6, seed=0, epoch=0)
    for start in (0, 3):
        split.loads = 0
        loader = RequestLoader(split, requests, num_workers=workers, start=start)
        batches = list(loader)
        assert len(loader) == 8
        assert [batch.tag for batch in batches] == (["a", "v"] * 4)[start:]
        assert [batch.indices.tolist() for batch in batches] == [list(r.indices) for r in requests[start:]]
        assert workers or split.loads == (4 if start == 0 else 3)


def test_a_pass_over_unknown_samples_is_refused():
    with pytest.raises(ValueError, match=r"Pass 'x' should name samples in \[0, 9\]. Found values from 3 to 10"):
        planned_requests(EpochPlan((Pass("x", indices=(3, 10)),)), 10, 4, seed=0, epoch=0)


@settings(deadline=None)
@given(count=st.integers(1, 30), size=st.integers(1, 8), world=st.integers(1, 3))
def test_ordered_requests_read_a_split_once(count, size, world):
    seen = [
        index
        for rank in range(world)
        for request in ordered_requests(count, size, rank=rank, world_size=world)
        for index in request.indices
    ]
    assert sorted(seen) == list(range(count))


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_gives_the_requested_batches_and_leaves_the_global_stream_alone(workers):
    split = ArraySplit({"a": np.arange(20.0)[:, None]}, np.arange(20) % 3)
    requests = planned_requests(EpochPlan((Pass("t"),)), 20, 6, seed=0, epoch=0)
    loader = RequestLoader(split, requests, num_workers=workers)
    before = torch.get_rng_state()
    batches = list(loader)
    assert torch.equal(torch.get_rng_state(), before)
    assert len(loader) == len(batches) == 4
    for request, batch in zip(requests, batches, strict=True):
        assert batch.indices.tolist() == list(request.indices)
        assert batch.inputs["a"].squeeze(1).tolist() == [float(i) for i in request.indices]
        assert batch.tag == "t"


class Odd(Dataset[object]):
    """A data set whose worker meets a mishap."""

    def __init__(self, mishap):
        self.mishap = mishap

    def __getitem__(self, _):
        if get_worker_info() is not None:
            self.mishap()
        return Toy(8).split("train").batch(range(8))


def load_with(monkeypatch, mishap):
    monkeypatch.setattr(loader, "_RequestDataset", lambda _, late: Odd(mishap))
    return list(RequestLoader(None, ordered_requests(8, 8), num_workers=1))


def test_a_worker_that_hangs_ends_the_wait(monkeypatch):
    monkeypatch.setattr(loader, "TIMEOUT", 1)
    with pytest.raises(LoadingError, match=r"No data arrived within 1 s: a process that loads data hangs"):
        load_with(monkeypatch, lambda: time.sleep(60))


@pytest.mark.parametrize(
    ("number", "words"),
    [(signal.SIGKILL, "Memory may have been short"), (signal.SIGBUS, "ran out of shared memory .*num_workers 0")],
)
def test_a_worker_that_dies_is_told_with_a_remedy(monkeypatch, number, words):
    with pytest.raises(LoadingError, match=words):
        load_with(monkeypatch, lambda: os.kill(os.getpid(), number))


#: Called in this process after every fork of it; such a hook cannot be taken back.
AFTER_FORK: list[Callable[[], object]] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_parent=lambda: [call() for call in AFTER_FORK])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=str)
def test_a_signal_that_another_thread_receives_amid_a_fork_is_not_lost(number):
    """What a handler raises there, Python prints and forgets."""
    handled, forked = [], threading.Event()

    def handle(received, _):
        handled.append(received)
        raise KeyboardInterrupt

    def receive():  # its own thread does not block the signal
        forked.wait()
        signal.pthread_kill(threading.get_ident(), number)

    before = signal.signal(number, handle)
    receiver = threading.Thread(target=receive)
    receiver.start()
    AFTER_FORK.extend((forked.set, receiver.join))
    batches = iter(RequestLoader(Toy(16).split("train"), ordered_requests(16, 8), num_workers=1))
    try:
        with pytest.raises(KeyboardInterrupt):
            next(batches)
        assert handled == [number]
        assert signal.getsignal(number) is handle
        assert number not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    finally:
        AFTER_FORK.clear()
        signal.signal(number, before)


def test_a_signal_that_is_ignored_stays_ignored_while_workers_start():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with loader._ending_signals_held():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(not hasattr(signal, "SIGCHLD"), reason="needs SIGCHLD")
def test_workers_are_watched_where_the_handler_of_their_death_was_taken_away(monkeypatch):
    """Lightning puts back the handlers of a run's beginning at its end; PyTorch installs its own once in a process."""
    requests = ordered_requests(16, 8)
    list(RequestLoader(Toy(16).split("train"), requests, num_workers=1))
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    watched = []

    class Watching(RequestLoader):
        def __iter__(self):
            for batch in super().__iter__():
                watched.append(callable(signal.getsignal(signal.SIGCHLD)))
                yield batch

    assert len(list(Watching(Toy(16).split("train"), requests, num_workers=1))) == 2
    assert watched == [True, True]
    with pytest.raises(LoadingError, match="Memory may have been short"):
        load_with(monkeypatch, lambda: os.kill(os.getpid(), signal.SIGKILL))


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs Linux")  # noqa: S108
def test_a_shared_memory_that_is_too_small_is_told_before_it_is_full(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(loader.shutil, "disk_usage", lambda _: SimpleNamespace(free=64_000))
    arguments = ["train", "--data", "toy.Toy", "--method", "Joint", "--trainer.num_workers", "2"]
    assert main([*arguments, "--run", str(tmp_path / "r")]) == 2
    error = capsys.readouterr().err
    assert "2 processes that load data need about" in error
    assert "has 0.1 MB. Say --trainer.num_workers 0" in error
    monkeypatch.undo()
    assert main([*arguments[:-1], "0", "--run", str(tmp_path / "r"), "--trainer.epochs", "1"]) == 0
