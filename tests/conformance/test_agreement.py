"""One wrapped model and method, trained by every loop: the same weights."""

import socket

import lightning
import pytest
import torch
from accelerate import Accelerator
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

import bmlr
from bmlr.config import OptimizerOptions
from bmlr.integrations.accelerate import AcceleratedBalancer
from bmlr.integrations.lightning import BalancedMixin
from bmlr.training import BalancedModule
from forks import run_in_two_processes
from method_loop import set_up
from test_wrap import make_wrapped
from zoo import make_batch

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training"),  # teachers
    pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec"),
    pytest.mark.filterwarnings("ignore:.*number of training batches"),
    pytest.mark.filterwarnings("ignore:.*You defined a `validation_step`"),
]

METHODS = ["Joint", "BMLR", "DGL", "OGMGE", "AGM", "MMPareto"]
SAMPLES, SIZE, EPOCHS, RATE = 24, 6, 2, 0.05


def samples():
    batch = make_batch(2, SAMPLES, seed=5)
    return [({name: x[i] for name, x in batch.inputs.items()}, int(batch.targets[i])) for i in range(SAMPLES)]


def loader():
    return DataLoader(samples(), SIZE)


def by_balancer(model, method, accumulate, clip, folder):
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    balancer = bmlr.Balancer(model, method, optimizer, max_epochs=EPOCHS, accumulate=accumulate, clip_norm=clip)
    model.train()
    for _ in range(EPOCHS):
        for batch in balancer.epoch(loader()):
            balancer.step(batch)


def by_accelerate(model, method, accumulate, clip, folder):
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    balancer = AcceleratedBalancer(accelerator, model, method, optimizer, max_epochs=EPOCHS, clip_norm=clip)
    model.train()
    prepared = accelerator.prepare(loader())
    for _ in range(EPOCHS):
        for batch in balancer.epoch(prepared):
            balancer.step(batch)
    assert balancer.steps == EPOCHS * SAMPLES // SIZE // accumulate


def by_trainer(model, method, accumulate, clip, folder):
    from transformers import TrainingArguments  # slow to import

    from bmlr.integrations.hf import BalancedTrainer

    arguments = TrainingArguments(
        str(folder), num_train_epochs=EPOCHS, per_device_train_batch_size=SIZE, learning_rate=RATE, optim="sgd",
        lr_scheduler_type="constant", report_to="none", save_strategy="no", disable_tqdm=True, use_cpu=True,
        max_grad_norm=clip or 0.0, logging_strategy="no", gradient_accumulation_steps=accumulate,
        train_sampling_strategy="sequential", seed=0,
    )  # fmt: skip
    rows = [{**inputs, "labels": label} for inputs, label in samples()]
    BalancedTrainer(model, arguments, method=method, train_dataset=rows).train()


class Classifier(BalancedMixin, lightning.LightningModule):
    """A LightningModule of the user's."""

    def __init__(self, model, method, factor=1.0, extra=0.0):
        super().__init__()
        self.net, self.factor, self.extra = model.net, factor, extra
        self.balance(model, method)

    def training_step(self, batch, batch_idx):
        loss = self.factor * self.balanced_loss(batch)
        return loss + self.extra * self.net.decision.head.bias.square().sum() if self.extra else loss

    def validation_step(self, batch, batch_idx):
        hits = self.balanced_prediction(batch).logits.argmax(1) == batch[1]
        self.log("hits", hits.float().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=RATE)


def make_trainer(accumulate=1, clip=None, epochs=EPOCHS, **options):
    defaults = {"devices": 1, "logger": False, "enable_checkpointing": False}
    return lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", accumulate_grad_batches=accumulate, gradient_clip_val=clip,
        enable_progress_bar=False, enable_model_summary=False, **{**defaults, **options},
    )  # fmt: skip


def by_mixin(model, method, accumulate, clip, folder):
    make_trainer(accumulate, clip).fit(Classifier(model, method).train(), loader())


def by_module(model, method, accumulate, clip, folder):
    module = BalancedModule(model, method, OptimizerOptions(name="sgd", lr=RATE, momentum=0.0)).train()
    make_trainer(accumulate, clip).fit(module, loader())


def test_a_rest_of_accumulated_batches_is_their_mean(tmp_path):
    """Four batches in steps of three: where the loop is the library's, and in Hugging Face's Trainer."""
    states = []
    for train in (by_balancer, by_trainer, by_module):
        model = make_wrapped(batch_norm=True)[0]
        train(model, bmlr.BMLR(), 3, None, tmp_path)
        states.append(model.state_dict())
    for state in states[1:]:
        torch.testing.assert_close(state, states[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("accumulate", "clip"), [(1, None), (2, 0.1)])
@pytest.mark.parametrize("name", METHODS)
def test_all_loops_come_to_the_same_weights(name, accumulate, clip, tmp_path, monkeypatch):
    # Noise of a method comes from one stream; how often a trainer draws from it is its own business.
    monkeypatch.setattr(torch, "randn_like", lambda x, **_: torch.sin(torch.arange(x.numel()) * 1.0).reshape(x.shape))
    states, start = {}, make_wrapped(batch_norm=True)[0].state_dict()
    for train in (by_balancer, by_accelerate, by_trainer, by_mixin, by_module):
        model = make_wrapped(batch_norm=True)[0]
        torch.manual_seed(0)  # heads of methods
        train(model, bmlr.methods.create(name), accumulate, clip, tmp_path)
        states[train.__name__] = model.state_dict()
    assert any(not torch.equal(value, start[key]) for key, value in states["by_balancer"].items())
    for loop, state in states.items():
        for key, value in states["by_balancer"].items():
            torch.testing.assert_close(state[key], value, rtol=0, atol=1e-6, msg=lambda t, at=(loop, key): f"{at}: {t}")


def test_an_accelerator_takes_a_step_per_modality_or_refuses_to_accumulate():
    for steps in (1, 2):
        torch.manual_seed(0)
        net, accelerator = make_wrapped()[0], Accelerator(cpu=True, gradient_accumulation_steps=steps)
        optimizer, method = torch.optim.SGD(net.parameters(), lr=RATE), bmlr.methods.MLA(width=4)
        balancer = AcceleratedBalancer(accelerator, net, method, optimizer, max_epochs=1)
        epoch = balancer.epoch(accelerator.prepare(loader()))
        if steps == 1:
            assert all(list(balancer.step(batch).terms) == [batch.tag.removeprefix("modality:")] for batch in epoch)
            assert balancer.steps == 2 * SAMPLES // SIZE
        else:
            with pytest.raises(ValueError, match="`gradient_accumulation_steps` should be 1, .* Found 2: give larger"):
                next(epoch)


class Looking(bmlr.methods.Joint):
    """Joint training that looks at shuffled data before each epoch, and makes an optimiser."""

    def __init__(self):
        super().__init__()
        self.orders, self.rates = [], []

    def plan_epoch(self, context):
        for number in (0, 1):
            batches = list(context.shuffled_batches(number))
            assert max(len(batch) for batch in batches) <= SIZE + 1
            self.orders.append([round(x, 4) for batch in batches for x in batch.inputs["audio"][:, 0].tolist()])
        optimizer = context.make_optimizer(context.model.encoders["audio"].parameters())
        assert isinstance(optimizer, torch.optim.SGD)
        self.rates += [group["lr"] for group in optimizer.param_groups]
        return super().plan_epoch(context)


def test_every_loop_gives_methods_shuffled_data_and_an_optimiser(tmp_path):
    rows = sorted(round(float(inputs["audio"][0]), 4) for inputs, _ in samples())

    def by_module_with_data(model, method, *_):
        items = [{**inputs, "label": label} for inputs, label in samples()]
        data = bmlr.data.from_datasets(items, items, items, modalities=["audio", "video"])
        data.prepare()
        options = OptimizerOptions(name="sgd", lr=RATE, momentum=0.0)
        make_trainer(reload_dataloaders_every_n_epochs=1).fit(
            BalancedModule(model, method, options, data=data, batch_size=SIZE).train()
        )

    loops = (by_balancer, by_accelerate, by_trainer, by_mixin, by_module, by_module_with_data)
    for train in loops:
        method = Looking()
        train(make_wrapped()[0], method, 1, None, tmp_path)
        assert set(method.rates) == {RATE}, train
        assert len(method.orders) == 2 * EPOCHS
        assert all(sorted(order) == rows for order in method.orders)
        # A loader of accelerate's does not let its samples be chosen, and comes in its own order.
        expected = 1 if train is by_accelerate else 2 * EPOCHS
        assert len({tuple(order) for order in method.orders}) == expected, train


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint")
def test_a_lightning_training_that_was_stopped_goes_on_as_if_it_had_not(tmp_path):
    """With a method that has heads and one that has a count of steps."""
    for name in ("MMPareto", "OGMGE"):
        torch.manual_seed(0)
        whole = Classifier(make_wrapped()[0], bmlr.methods.create(name))
        keep = ModelCheckpoint(tmp_path / name, save_top_k=-1, save_on_train_epoch_end=True)
        make_trainer(epochs=3, enable_checkpointing=True, callbacks=[keep]).fit(whole, loader())
        (path,) = (tmp_path / name).glob("epoch=0*.ckpt")
        torch.manual_seed(1)
        other = Classifier(make_wrapped()[0], bmlr.methods.create(name))
        make_trainer(epochs=3).fit(other, loader(), ckpt_path=path, weights_only=True)
        for key, value in whole.state_dict().items():
            assert torch.equal(other.state_dict()[key], value), (name, key)
        assert any(key.startswith("method.") for key in whole.state_dict())


def test_factors_scale_the_gradients_and_own_terms_are_added_or_refused():
    def weights(method, **options):
        torch.manual_seed(0)
        module = Classifier(make_wrapped()[0], method, **options)
        make_trainer(epochs=1).fit(module, loader())
        return module.state_dict()

    start = make_wrapped()[0].net.state_dict()
    for create in (bmlr.BMLR, bmlr.methods.MMPareto):
        one, half = weights(create()), weights(create(), factor=0.5)
        key = "net.decision.head.weight"
        assert not torch.equal(one[key], half[key])
    with_term = weights(bmlr.BMLR(), extra=1.0)
    assert not torch.equal(with_term["net.decision.head.bias"], weights(bmlr.BMLR())["net.decision.head.bias"])
    assert "decision.head.bias" in start
    with pytest.raises(RuntimeError, match=r"MMPareto combines the gradients .* no term of its own beside it"):
        weights(bmlr.methods.MMPareto(), extra=1.0)


@pytest.mark.parametrize("name", bmlr.methods.available())
def test_other_methods_train_in_a_lightning_module_or_say_why_not(name):
    cls = bmlr.methods.get(name)
    method = cls(**cls.conformance.short)
    model = make_wrapped(batch_norm=True)[0]
    if method.plans_passes:
        with pytest.raises(ValueError, match="makes passes of its own, which loaders of yours cannot"):
            Classifier(model, method)
        return
    set_up(method, model)
    module, trainer = Classifier(model, method), make_trainer()
    trainer.fit(module, loader(), loader())
    assert 0 <= trainer.callback_metrics["hits"] <= 1


def test_what_cannot_be_right_is_refused():
    model = make_wrapped()[0]
    with pytest.raises(ValueError, match=r"bmlr.wrap\(model, ...\). Found Linear"):
        BalancedMixin().balance(torch.nn.Linear(2, 2), bmlr.BMLR())

    class Forgetful(Classifier):
        def __init__(self):
            lightning.LightningModule.__init__(self)
            self.net, self.factor, self.extra = model, 1.0, 0.0

    with pytest.raises(RuntimeError, match=r"Call self.balance\(model, method\) at the end of __init__"):
        Forgetful().training_step(next(iter(loader())), 0)
    with pytest.raises(ValueError, match="`max_epochs` of the trainer should be given: OGMGE follows the epochs"):
        make_trainer(epochs=-1, max_steps=2).fit(Classifier(model, bmlr.methods.OGMGE()), loader())
    bad = [({**inputs, "audio": inputs["audio"] * torch.nan}, label) for inputs, label in samples()]
    with pytest.raises(RuntimeError, match=r"The loss is not finite in epoch 0, step 0: {.*nan"):
        make_trainer().fit(Classifier(model, bmlr.BMLR()), DataLoader(bad, SIZE))

    class Overriding(Classifier):
        def on_before_optimizer_step(self, optimizer):
            pass

    with pytest.raises(RuntimeError, match="OGMGE changes gradients: call"):
        make_trainer().fit(Overriding(make_wrapped()[0], bmlr.methods.OGMGE()), loader())


def test_two_processes_train_as_one_in_other_trainers(tmp_path, monkeypatch):
    import two_loops

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run_in_two_processes(two_loops.run, str(tmp_path), port)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    for loop, state in first["states"].items():
        expected = two_loops.in_one_process(loop.split()[1], monkeypatch)
        for key, value in state.items():
            assert torch.equal(second["states"][loop][key], value), (loop, key)
            torch.testing.assert_close(value, expected[key], rtol=0, atol=1e-6, msg=lambda t, at=loop: f"{at}: {t}")
    by_lightning, by_accelerate_, passes = first["refusals"]
    assert "LFM leaves gradients unset in some steps: give the trainer strategy='ddp_find_unused" in by_lightning
    assert "LFM leaves gradients unset in some steps: give the Accelerator kwargs_handlers" in by_accelerate_
    assert "Remix chooses the samples of its passes" in passes
