"""Losses and gradients that are not finite: stop or skip; and the loss scaling of half precision."""

import contextlib
import dataclasses
import json

import lightning
import pandas as pd
import pytest
import torch
from interruptions import CPU, Stop, stopping
from lightning.pytorch.plugins.precision import MixedPrecision
from safetensors.torch import load_file
from subjects import METHODS, SUBJECTS, first_of_each_way, make_run_method, method_class

from bmlr.config import ModelOptions, OptimizerOptions, TrainerOptions, build_model, fill_defaults
from bmlr.methods import BMLR, Joint, Losses
from bmlr.training import BalancedModule, NonFiniteLossError, _module, train
from bmlr.training._guard import count_nonfinite
from method_loop import give_runs
from toy import Toy

SKIP = dataclasses.replace(CPU, on_nonfinite="skip")

TRAINED = first_of_each_way(name for name in METHODS if method_class(name).trains)


def run(folder, method, *, data=None, trainer=SKIP, **options):
    return train(data or Toy(24), method, trainer=trainer, run=folder, **options)


def spoiling(method, *numbers, value=float("nan")):
    """The method, whose losses are not finite in some batches, counted from one."""
    compute_losses, seen = method.compute_losses, []

    def spoil(model, batch):
        losses = compute_losses(model, batch)
        seen.append(batch)
        if len(seen) not in numbers:
            return losses
        return Losses({name: term * value for name, term in losses.terms.items()}, losses.logs)

    method.compute_losses = spoil
    return method


def spoiling_gradients(method, *numbers, value=float("inf")):
    """The method, whose gradients are not finite in some batches, counted from one."""
    backward, seen = method.backward, []

    def spoil(losses, model, *, scale=1.0):
        backward(losses, model, scale=scale)
        seen.append(losses)
        if len(seen) in numbers:
            next(p for p in model.parameters() if p.grad is not None).grad.view(-1)[0] = value

    method.backward = spoil
    return method


@contextlib.contextmanager
def without(*numbers):
    """Leave these batches, counted from zero, out of the first epoch's plan."""
    original = _module.planned_requests

    def planned(*arguments, **options):
        requests = original(*arguments, **options)
        return requests if options["epoch"] else [r for i, r in enumerate(requests) if i not in numbers]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_module, "planned_requests", planned)
        yield


def events(folder):
    return json.loads((folder / "nonfinite.json").read_text())["events"]


def assert_same_weights(first, second):
    one, other = (load_file(folder / "last.safetensors") for folder in (first, second))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


# Stop


def test_stopping_leaves_word_of_the_batch(tmp_path):
    with pytest.raises(NonFiniteLossError, match="The loss is not finite at epoch 1, step"):
        run(tmp_path, BMLR(), data=Toy(24, poison=7), trainer=CPU)
    (event,) = events(tmp_path)
    assert 7 in event["samples"]
    assert len(event["samples"]) == 8
    assert event["inputs"] == ["audio"]
    assert event["values"]["total"] == "nan"
    assert event["action"] == "stop"
    assert event["epoch"] == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_gradients_are_checked_too(tmp_path, value):
    with pytest.raises(
        NonFiniteLossError, match=r"The gradient is not finite at epoch 1, step 1, batch 1: that of mod"
    ):
        run(tmp_path, spoiling_gradients(Joint(), 2, value=value), trainer=CPU)
    (event,) = events(tmp_path)
    assert event["what"] == "gradient"
    assert len(event["samples"]) == 8
    assert list(event["values"]) == ["model.encoders.audio.layers.0.weight"]


class Dividing(Joint):
    """Makes a gradient infinite itself."""

    def change_gradients(self, model):
        for parameter in model.parameters():
            parameter.grad /= 0


def test_gradients_are_checked_after_the_method_changed_them(tmp_path):
    with pytest.raises(
        NonFiniteLossError, match=r"The gradient is not finite at epoch 1, step 0, batch 0.* and \d+ more"
    ):
        run(tmp_path, Dividing(), trainer=CPU)


def test_large_finite_gradients_are_finite():
    parameter = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
    assert not count_nonfinite([parameter])
    parameter.grad = torch.tensor([1e308, -1e308, 1e308], dtype=torch.float64)
    assert not count_nonfinite([parameter, torch.nn.Parameter(torch.zeros(0))])
    parameter.grad[1] = float("nan")
    assert count_nonfinite([parameter])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64])
def test_a_check_finds_one_bad_entry_and_changes_none(dtype, bad):
    good, parameter = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(2, 3, dtype=dtype))
    good.grad = torch.tensor([-0.0, 1e-42])  # a zero's sign and a number below the normal ones
    parameter.grad = torch.ones(1, 1, dtype=dtype).expand(2, 3)
    assert not count_nonfinite([good, parameter])
    assert torch.equal(parameter.grad, torch.ones(2, 3, dtype=dtype))
    assert good.grad.view(torch.int32).tolist() == torch.tensor([-0.0, 1e-42]).view(torch.int32).tolist()
    parameter.grad = parameter.grad.clone()
    parameter.grad[1, 2] = bad
    assert count_nonfinite([good, parameter])


def test_a_check_reads_sparse_gradients():
    embedding = torch.nn.Embedding(5, 2, sparse=True)
    embedding(torch.tensor([1, 1])).sum().backward()
    assert not count_nonfinite(embedding.parameters())
    embedding.weight.grad = embedding.weight.grad * float("nan")
    assert count_nonfinite(embedding.parameters())


# Skip


@pytest.mark.parametrize("subject", TRAINED)
def test_a_skipped_step_is_as_if_its_batch_had_not_been_drawn(tmp_path, subject):
    """Also what the forward changed is put back: running statistics, and the state of the method."""
    with without(1):
        run(tmp_path / "without", make_run_method(subject))
    for spoil in (spoiling, spoiling_gradients):
        skipped = tmp_path / spoil.__name__
        result = run(skipped, spoil(make_run_method(subject), 2))
        assert_same_weights(tmp_path / "without", skipped)
        assert result.content["nonfinite"] == {"skipped_steps": 1, "overflowed_steps": 0}
        table = pd.read_csv(skipped / "metrics.csv")
        assert table["skipped_steps"].tolist() == [1, 0]
        compared = [
            pd.read_csv(folder / "metrics.csv").drop(columns=["seconds", "skipped_steps"])
            for folder in (tmp_path / "without", skipped)
        ]
        pd.testing.assert_frame_equal(*compared, check_exact=True)
        (event,) = events(skipped)
        assert event["action"] == "skip"


def test_a_bad_input_poisons_nothing(tmp_path):
    result = run(tmp_path, BMLR(), data=Toy(24, poison=7), trainer=dataclasses.replace(SKIP, epochs=3))
    assert result.content["nonfinite"]["skipped_steps"] == 3
    assert all(bool(torch.isfinite(x).all()) for x in load_file(tmp_path / "last.safetensors").values())
    assert pd.read_csv(tmp_path / "metrics.csv")["samples"].tolist() == [16, 16, 16]
    assert [event["epoch"] for event in events(tmp_path)] == [0, 1, 2]


@pytest.mark.parametrize("spoil", [spoiling, spoiling_gradients])
@pytest.mark.parametrize("number", [3, 4])
def test_with_accumulation_the_whole_optimiser_step_is_left_out(tmp_path, number, spoil):
    trainer = dataclasses.replace(SKIP, batch_size=4, accumulate_grad_batches=2)
    with without(2, 3):
        run(tmp_path / "without", make_run_method("OGMGE"), trainer=trainer)
    run(tmp_path / "skipped", spoil(make_run_method("OGMGE"), number), trainer=trainer)
    assert_same_weights(tmp_path / "without", tmp_path / "skipped")
    metrics = [pd.read_csv(tmp_path / name / "metrics.csv") for name in ("without", "skipped")]
    assert metrics[0]["train_loss"].tolist() == metrics[1]["train_loss"].tolist()
    assert metrics[1]["samples"].tolist() == [16, 24]


def test_too_many_skipped_steps_in_a_row_stop(tmp_path):
    trainer = dataclasses.replace(SKIP, epochs=10, max_nonfinite=4)
    run(tmp_path / "apart", spoiling(Joint(), 1, 2, 3, 5, 6, 7), trainer=trainer)
    with pytest.raises(NonFiniteLossError, match=r"^4 steps in a row were skipped, .*`max_nonfinite` allows. The loss"):
        run(tmp_path / "row", spoiling(Joint(), 2, 3, 4, 5, 6), trainer=trainer)
    assert len(events(tmp_path / "row")) == 4


def test_the_count_in_a_row_goes_on_over_an_interruption(tmp_path):
    trainer = dataclasses.replace(SKIP, epochs=10, max_nonfinite=4, checkpoint_every=1)
    with pytest.raises(Stop):
        run(tmp_path, stopping(spoiling(Joint(), 3, 4), 5, None), trainer=trainer)
    with pytest.raises(NonFiniteLossError, match="4 steps in a row"):
        run(tmp_path, spoiling(Joint(), 1, 2), trainer=trainer, resume=True)
    assert len(events(tmp_path)) == 4


def test_an_epoch_of_skipped_steps_only(tmp_path):
    run(tmp_path, spoiling(Joint(), 1, 2, 3))
    table = pd.read_csv(tmp_path / "metrics.csv")
    assert table["skipped_steps"].tolist() == [3, 0]
    assert table["samples"].tolist() == [0, 24]


# Options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_nonfinite": "skp"}, r"`on_nonfinite` should be one of stop, skip\..*Did you mean 'skip'"),
        ({"on_nonfinite": "restore"}, r"`on_nonfinite` should be one of stop, skip\. Found `on_nonfinite = 'restore'`"),
        ({"max_nonfinite": 0}, "`max_nonfinite` should be an integer of at least 1"),
        ({"checkpoint_every": 0}, "`checkpoint_every` should be an integer of at least 1"),
        ({"max_nonfinite": None}, "`max_nonfinite` should be an integer of at least 1"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        TrainerOptions(**options)


def test_what_cannot_change_a_result_is_no_part_of_what_a_run_is(tmp_path):
    first = train(Toy(24), BMLR(), trainer=CPU, runs=tmp_path)
    assert train(Toy(24), BMLR(), trainer=dataclasses.replace(CPU, max_nonfinite=3), runs=tmp_path).reused
    other = train(Toy(24), BMLR(), trainer=SKIP, runs=tmp_path)
    assert other.directory != first.directory


# Loss scaling


class Scaled(MixedPrecision):
    """Loss scaling alone: everything is computed as without it."""

    @contextlib.contextmanager
    def forward_context(self):
        yield


def fit(method, plugin=None, *, epochs=2, **options):
    """The weights of a module trained under a precision plugin."""
    data = Toy(24)
    model, optimizer, _ = fill_defaults(data, ModelOptions(), OptimizerOptions(), TrainerOptions())
    torch.manual_seed(0)
    module = BalancedModule(build_model(data, model), method, optimizer, data=data, batch_size=8, **options)
    give_runs(method, module.model)
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, reload_dataloaders_every_n_epochs=1, num_sanity_val_steps=0,
        plugins=None if plugin is None else [plugin],
    )  # fmt: skip
    trainer.fit(module)
    return module


@pytest.fixture
def plain_kernels(monkeypatch):
    """No optimiser is fused: none is beside a loss scaler, and its last bits are others."""
    monkeypatch.setattr("bmlr.config._optimizer._has_fused_kernel", lambda _: False)


quiet = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:.*treespec, LeafSpec", "ignore:.*in eval mode at the start"
)


@quiet
@pytest.mark.parametrize("subject", first_of_each_way(s for s in SUBJECTS if method_class(s).trains))
@pytest.mark.usefixtures("plain_kernels")
def test_noise_and_norms_see_unscaled_gradients(subject):
    """With a scale that is a power of two every method computes bit for bit what it computes without."""
    plain = fit(make_run_method(subject))
    scaled = fit(make_run_method(subject), Scaled("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**10)))
    assert scaled.guard.overflowed == 0
    for (name, one), (_, other) in zip(plain.named_parameters(), scaled.named_parameters(), strict=True):
        assert torch.equal(one, other), name


@quiet
@pytest.mark.parametrize("subject", TRAINED)
def test_every_method_trains_in_half_precision_with_a_scaler(subject):
    module = fit(
        make_run_method(subject), MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**8))
    )
    assert module.epochs_done == 2
    assert all(bool(torch.isfinite(x).all()) for x in module.state_dict().values() if isinstance(x, torch.Tensor))


@quiet
def test_steps_that_the_scaling_skips_are_normal_and_counted():
    """A scale far too large is halved until nothing overflows, and training goes on from there."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**126)
    method = spoiling(BMLR(), *range(1, 100), value=2.0**20)
    module = fit(method, Scaled("16-mixed", "cpu", scaler), epochs=20)
    assert 10 <= module.guard.overflowed < 40
    assert module.guard.skipped == 0
    assert not module.guard.events
    assert scaler.get_scale() < 2.0**126
    counted = [row["overflowed_steps"] for row in module.history]
    assert sum(counted) == module.guard.overflowed
    assert all(bool(torch.isfinite(p).all()) for p in module.parameters())


@quiet
def test_a_gradient_that_no_scale_makes_finite_is_not_normal():
    method = spoiling_gradients(Joint(), *range(1, 100))
    with pytest.raises(NonFiniteLossError, match="The gradient is not finite"):
        fit(method, Scaled("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=4.0)), epochs=20)


@quiet
@pytest.mark.parametrize("numbers", [(2,), (1,), (5, 6)])
@pytest.mark.usefixtures("plain_kernels")
def test_a_skipped_step_under_scaling(numbers):
    """The scaler, which wants to see a gradient in every step, is not put off by a step without."""
    plain = fit(spoiling(make_run_method("OGMGE"), *numbers), on_nonfinite="skip")
    plugin = Scaled("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**10))
    scaled = fit(spoiling(make_run_method("OGMGE"), *numbers), plugin, on_nonfinite="skip")
    assert plain.guard.skipped == scaled.guard.skipped == len(numbers)
    for (name, one), (_, other) in zip(plain.named_parameters(), scaled.named_parameters(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize("subject", first_of_each_way())
def test_every_method_trains_in_bfloat16_from_configuration_to_result(tmp_path, subject):
    trainer = dataclasses.replace(CPU, precision="bf16-mixed")
    epochs = 2 if method_class(subject).trains else 1
    assert run(tmp_path, make_run_method(subject), trainer=trainer).content["epochs"] == epochs
