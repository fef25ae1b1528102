"""The seed of a run reaches what its method draws, in every loop."""

import shlex

import lightning
import pytest
import torch
from torch.utils.data import DataLoader

import bmlr
from bmlr.cli import main
from bmlr.integrations.hf import BalancedTrainer
from bmlr.integrations.lightning import BalancedMixin
from bmlr.methods import OGMGE, OPM, DiagnosingRelearning, EpochContext
from test_hf import arguments, samples_of
from zoo import make_batch, make_model

COMMAND = shlex.split(
    "train synthetic --data.samples '{train: 64, val: 32, test: 32}' --model.width 2 --method OPM --method.warmup 0 "
    "--method.probability 1 --trainer.epochs 2 --trainer.accelerator cpu --trainer.progress false"
)
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*number of training batches"),
    pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec"),
]


@pytest.fixture
def draws(monkeypatch):
    """First number of every generator that a method asks for."""
    numbers = []

    def recorded(self, *arguments, of=OPM.generator):
        generator = of(self, *arguments)
        numbers.append(float(torch.rand((), generator=generator)))
        return generator

    monkeypatch.setattr("bmlr.methods._support.SteppedMethod.generator", recorded)
    return numbers


def test_runs_of_the_command_draw_by_their_seed(draws, tmp_path):
    def run(seed, folder):
        draws.clear()
        assert main([*COMMAND, "--seed", seed, "--run", str(tmp_path / folder)]) == 0
        return tuple(draws)

    first, second, again = run("0", "first"), run("1", "second"), run("1", "again")
    assert second == again
    assert len(set(first) | set(second)) == 2 * len(first) > 2  # no number twice


class Module(BalancedMixin):
    def __init__(self):
        super().__init__()
        self.net = make_model(2)
        self.balance(self.net, OPM(warmup=0, probability=1.0))

    def training_step(self, batch, _):
        return self.balanced_loss(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def by_balancer(batch, seed, folder):
    model = make_model(2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    balancer = bmlr.Balancer(model, OPM(warmup=0, probability=1.0), optimizer, max_epochs=2, seed=seed)
    for _ in range(2):
        for planned in balancer.epoch([batch]):
            balancer.step(planned)


def by_lightning(batch, seed, folder):
    lightning.seed_everything(seed, verbose=False)
    lightning.Trainer(
        max_epochs=2, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(Module(), DataLoader([batch], batch_size=None))  # fmt: skip


def by_hf(batch, seed, folder):
    options = arguments(folder, num_train_epochs=2, seed=seed)
    method = OPM(warmup=0, probability=1.0)
    BalancedTrainer(make_model(2), options, method=method, train_dataset=samples_of(batch)).train()


def test_every_loop_hands_its_seed_on(draws, tmp_path):
    batch, numbers = make_batch(2, 12), {}
    for seed in (0, 1):
        for loop in (by_balancer, by_lightning, by_hf):
            draws.clear()
            loop(batch, seed, tmp_path)
            assert numbers.setdefault(seed, list(draws)) == draws, loop
    assert len(numbers[0]) == 2
    assert not set(numbers[0]) & set(numbers[1])


def test_within_an_epoch_the_seed_of_the_run_comes_from_the_stored_state():
    first, second = OGMGE(), OGMGE()
    first.start_epoch(EpochContext(0, 2, make_model(2), seed=7))
    second.load_state_dict(first.state_dict())
    assert second.run_seed == 7
    assert (
        first.generator(3).initial_seed() == second.generator(3).initial_seed() != OGMGE().generator(3).initial_seed()
    )


def test_k_means_begins_by_the_seed_of_the_run():
    model, method, batch = make_model(2), DiagnosingRelearning(), make_batch(2, 60)
    method.setup(model)

    def weights(seed):
        return method.reset_weights(
            EpochContext(1, 9, model, 60, lambda: [batch], lambda: [make_batch(2, 30, seed=5)], seed)
        )

    assert weights(0) == weights(0)
    assert any(weights(0) != weights(seed) for seed in range(1, 6))
