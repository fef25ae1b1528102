import math

import lightning
import pytest
import torch
from torch import nn

import bmlr
from bmlr.config import OptimizerOptions
from bmlr.monitor import (
    GradientMonitor,
    batch_conflict,
    gradient_conflict,
    gradient_norms,
    read_gradients,
    summarise_gradients,
)
from bmlr.training import BalancedModule, MonitorCallback


def model_and_batch(**options):
    encoders = {
        "audio": nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5)),
        "video": nn.Sequential(nn.Linear(6, 8), nn.Tanh()),
    }
    model = bmlr.MultimodalClassifier(encoders, 3, feature_dims=dict.fromkeys(encoders, 8), **options)
    return model, bmlr.Batch({"audio": torch.randn(8, 4), "video": torch.randn(8, 6)}, torch.arange(8) % 3)


def test_norms_are_those_of_all_parameters_of_an_encoder():
    model, batch = model_and_batch()
    assert {u: float(value) for u, value in gradient_norms(model).items()} == {"audio": 0, "video": 0}
    model(batch.inputs).logits.square().sum().backward()
    for u, norm in gradient_norms(model).items():
        flat = torch.cat([p.grad.flatten() for p in model.encoders[u].parameters()])
        torch.testing.assert_close(norm, flat.norm())


def test_conflict_is_the_cosine_of_both_gradients():
    encoder = nn.Linear(2, 2, bias=False)
    out = encoder(torch.eye(2))  # every weight is one output: gradients are the factors below
    fused, own = torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([[-1.0, 1.0], [0.0, 0.0]])
    cosine = gradient_conflict((fused * out).sum(), {"a": (own * out).sum()}, {"a": encoder})["a"]
    assert float(cosine) == pytest.approx(-math.sqrt(0.5))
    assert encoder.weight.grad is None
    undefined = gradient_conflict((0 * out).sum(), {"a": out.sum()}, {"a": encoder})["a"]
    assert math.isnan(undefined)


@pytest.mark.parametrize("fusion", ["concat", "film"])
def test_the_conflict_on_a_batch_is_that_of_autograd(fusion):
    model, batch = model_and_batch(fusion=fusion)
    model.eval()
    cosines = batch_conflict(model, batch)
    output = model(batch.inputs)
    for u, cosine in cosines.items():
        parameters = list(model.encoders[u].parameters())
        flat = [
            torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters, retain_graph=True)])
            for loss in (
                nn.functional.cross_entropy(output.logits, batch.targets),
                nn.functional.cross_entropy(output.unimodal_logits[u], batch.targets),
            )
        ]
        torch.testing.assert_close(cosine, nn.functional.cosine_similarity(*flat, dim=0))


def train(steps, monitor=None, watch=False):
    """A few steps with batch normalisation and dropout; the weights and buffers after them."""
    torch.manual_seed(1)
    model, _ = model_and_batch()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(steps):
        batch = model_and_batch()[1]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(batch.inputs).logits, batch.targets).backward()
        if monitor is not None and not watch:
            monitor.record(model, batch)
        optimizer.step()
    return model.state_dict()


def test_recording_does_not_change_training(tmp_path):
    plain = train(5)
    monitor = GradientMonitor(tmp_path, conflict_every=2)
    watched = train(5, monitor)
    assert all(torch.equal(value, watched[name]) for name, value in plain.items())
    monitor.write()
    rows = read_gradients(tmp_path)
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    assert [row["step"] for row in rows if "conflict_audio" in row] == [0, 2, 4]
    for row in rows:
        assert row["ratio_audio/video"] == pytest.approx(row["norm_audio"] / row["norm_video"])
        assert all(-1 <= value <= 1 for name, value in row.items() if name.startswith("conflict_"))
    assert rows == [pytest.approx(row) for row in monitor.rows]


def test_norms_are_recorded_every_so_many_steps():
    monitor = GradientMonitor(norm_every=2, conflict_every=2)
    train(7, monitor)
    assert [row["step"] for row in monitor.rows] == [0, 2, 4, 6]
    assert [row["step"] for row in monitor.rows if "conflict_audio" in row] == [0, 4]


def test_watching_records_the_steps_of_the_optimisers_of_this_model_only(tmp_path):
    model, batch = model_and_batch()
    other = nn.Linear(2, 2)
    monitor = GradientMonitor(tmp_path)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(KeyError), monitor.watch(model):
        for _ in range(3):
            nn.functional.cross_entropy(model(batch.inputs).logits, batch.targets).backward()
            optimizer.step()
            torch.optim.SGD(other.parameters(), 0.1).step()
        raise KeyError
    expected = {u: float(value) for u, value in gradient_norms(model).items()}
    optimizer.step()
    assert len(read_gradients(tmp_path / "gradients.csv")) == 3
    assert {u: monitor.rows[-1][f"norm_{u}"] for u in expected} == pytest.approx(expected)


def test_encoders_of_another_model_by_name():
    net = nn.ModuleDict({"a": nn.Linear(2, 2), "v": nn.Linear(2, 2)})
    net["a"](torch.ones(1, 2)).sum().backward()
    monitor = GradientMonitor()
    monitor.record(net, conflict={"a": 0.5})
    row = monitor.rows[0]
    assert (row["norm_v"], row["ratio_a/v"], row["conflict_a"]) == (0, math.inf, 0.5)
    with pytest.raises(ValueError, match="`batch` goes with a bmlr.MultimodalClassifier"):
        GradientMonitor().record(net, [])


def fit(epochs, callbacks, *, clip=None, accumulate=1):
    lightning.seed_everything(0, verbose=False)
    model, _ = model_and_batch()
    batches = [model_and_batch()[1] for _ in range(4)]
    module = BalancedModule(model, bmlr.methods.OGMGE(alpha=1.0), OptimizerOptions(lr=1e-2))
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
        gradient_clip_val=clip,
        accumulate_grad_batches=accumulate,
    )
    loader = torch.utils.data.DataLoader(batches, batch_size=None)
    trainer.fit(module, loader, loader)
    return module.model.state_dict()


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*LeafSpec.*", "ignore:.*val_dataloader.*")
def test_the_callback_records_what_the_optimiser_sees_and_changes_nothing(tmp_path):
    plain = fit(2, [])
    monitor = GradientMonitor(tmp_path, conflict_every=3)
    monitored = fit(2, [MonitorCallback(monitor)])
    assert all(torch.equal(value, monitored[name]) for name, value in plain.items())
    rows = read_gradients(tmp_path)
    assert [row["step"] for row in rows] == list(range(8))
    assert [row["epoch"] for row in rows] == [0] * 4 + [1] * 4
    assert [row["step"] for row in rows if "conflict_video" in row] == [0, 3, 6]
    clipped, accumulated = GradientMonitor(), GradientMonitor()
    fit(1, [MonitorCallback(clipped)], clip=1e-3)
    assert all(row["norm_audio"] <= 1.001e-3 for row in clipped.rows)
    fit(1, [MonitorCallback(accumulated)], accumulate=2)
    assert len(accumulated.rows) == 2


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*LeafSpec.*", "ignore:.*val_dataloader.*")
def test_the_callback_needs_a_model_of_the_library():
    class Plain(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = nn.Linear(2, 2)

        def training_step(self, batch, batch_idx):
            return self.model(batch).sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[MonitorCallback(GradientMonitor())],
    )  # fmt: skip
    with pytest.raises(ValueError, match="whose `model` is a bmlr.MultimodalClassifier. Found Linear"):
        trainer.fit(Plain(), torch.utils.data.DataLoader(torch.zeros(4, 2)))


def test_a_resumed_recording_keeps_the_steps_before(tmp_path):
    first = GradientMonitor(tmp_path)
    train(4, first)
    first.write()
    second = GradientMonitor(tmp_path)
    second.resume(2)
    train(1, second)
    second.write()
    assert [row["step"] for row in read_gradients(tmp_path)] == [0, 1, 2]


def test_files_without_gradients_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="There are no gradients in"):
        read_gradients(tmp_path)
    GradientMonitor(tmp_path).write()
    assert not list(tmp_path.iterdir())
    path = tmp_path / "gradients.csv"
    path.write_text("epoch,norm_a\n0,1\n")
    with pytest.raises(ValueError, match="should have a column step"):
        read_gradients(path)
    path.write_text("step,norm_a\n0,1\n1,tw")
    with pytest.raises(ValueError, match="line 3"):
        read_gradients(path)
    with pytest.raises(ValueError, match="`norm_every` should be an integer of at least 1"):
        GradientMonitor(norm_every=0)


def test_the_summary_gives_medians_and_the_rate_of_conflict():
    rows = [
        {"step": 0, "norm_a": 1.0, "norm_v": 3.0, "conflict_v": -0.5},
        {"step": 1, "norm_a": 2.0, "norm_v": 2.0, "conflict_v": math.nan},
        {"step": 2, "norm_a": 3.0, "norm_v": 1.0, "conflict_v": 0.1},
    ]
    summary = summarise_gradients(rows)
    assert summary["a"] == {"norm": 2.0, "norm_fraction": 0.5, "conflict": None, "conflict_rate": None}
    assert summary["v"] == {"norm": 2.0, "norm_fraction": 0.5, "conflict": -0.2, "conflict_rate": 0.5}
    assert summarise_gradients([]) == {}
