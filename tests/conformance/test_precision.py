"""Every method in the true precisions of a trainer, whose batches between epochs nobody else converts."""

import lightning
import pytest
import torch
from subjects import METHODS, SUBJECTS, make_method, method_class
from torch.utils.data import DataLoader

import bmlr
from bmlr.config import OptimizerOptions
from bmlr.integrations.lightning import BalancedMixin
from bmlr.methods import DiagnosingRelearning, Method, Remix
from bmlr.methods._support import SteppedMethod
from bmlr.training import BalancedModule
from method_loop import assert_same_state, give_runs, name_modality
from toy import Toy
from zoo import make_batch, make_model

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*treespec, LeafSpec",
    "ignore:.*does not have many workers",
    "ignore:.*in eval mode at the start of training",  # teachers
)

EPOCHS = 3  # a method may reset encoders after the second, and never after the last


def fit(module, precision, *loaders):
    trainer = lightning.Trainer(
        max_epochs=EPOCHS, accelerator="cpu", precision=precision, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        reload_dataloaders_every_n_epochs=0 if loaders else 1,
    )  # fmt: skip
    trainer.fit(module, *loaders)
    return module.model.state_dict()


def encoders():
    torch.manual_seed(0)
    image = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8), torch.nn.BatchNorm1d(8))
    return {"audio": torch.nn.Linear(4, 8), "image": image}


def make_module(method):
    model = bmlr.MultimodalClassifier(encoders(), 3)
    name_modality(method, model)
    module = BalancedModule(model, method, OptimizerOptions("sgd", lr=0.05), data=Toy(24), batch_size=8)
    give_runs(method, model)
    return module


def looks_between_epochs(subject):
    method = method_class(subject)
    return method.plan_epoch is not Method.plan_epoch or method.finish_epoch is not Method.finish_epoch


@pytest.mark.parametrize(
    "subject", [s for s in SUBJECTS if method_class(s).trains and (s in METHODS or looks_between_epochs(s))]
)
def test_every_method_trains_in_double_precision(subject):
    double = fit(make_module(make_method(subject)), "64-true")
    draws = (
        issubclass(method_class(subject), SteppedMethod) and subject != "OGMGE"
    )  # whose noise is in the gradients' type
    is_compared = draws or looks_between_epochs(subject)
    single = fit(make_module(make_method(subject)), "32-true") if is_compared else double
    for name, value in double.items():
        if value.is_floating_point():
            assert value.dtype == torch.float64
            assert bool(torch.isfinite(value).all()), name
            torch.testing.assert_close(value.float(), single[name].float(), rtol=1e-3, atol=1e-4)


def test_methods_look_at_data_in_half_precision_too():
    for method in (Remix(warmup=0), DiagnosingRelearning(reinit_epoch=1)):
        for name, value in fit(make_module(method), "bf16-true").items():
            assert bool(torch.isfinite(value).all()), name


class OwnModule(BalancedMixin):
    def __init__(self):
        super().__init__()
        self.model = bmlr.MultimodalClassifier(encoders(), 3)
        self.balance(self.model, DiagnosingRelearning(reinit_epoch=1))

    def training_step(self, batch, index):
        return self.balanced_loss(batch)

    def validation_step(self, batch, index):
        self.balanced_prediction(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def test_a_module_of_ones_own_looks_at_data_in_double_precision():
    whole = Toy().split("train").batch(range(40))
    pairs = [({name: x[i] for name, x in whole.inputs.items()}, whole.targets[i]) for i in range(40)]
    module = OwnModule()
    assert fit(module, "64-true", DataLoader(pairs, 16), DataLoader(pairs, 16))["encoders.audio.weight"].dtype == (
        torch.float64
    )
    assert module.method.resets == 1


def test_a_loop_of_ones_own_trains_in_the_type_of_its_model():
    """Batches of float32 and of float64 are the same to a model of float64."""
    states = []
    for dtype in (torch.float32, torch.float64):
        torch.manual_seed(0)
        model = make_model(dtype=torch.float64)
        batch = make_batch(2, 20)
        samples = [({name: x[i].to(dtype) for name, x in batch.inputs.items()}, batch.targets[i]) for i in range(20)]
        balancer = bmlr.Balancer(model, Remix(warmup=0), torch.optim.SGD(model.parameters(), lr=0.1), max_epochs=EPOCHS)
        for _ in range(EPOCHS):
            for step in balancer.epoch(DataLoader(samples, 4)):
                balancer.step(step)
        assert balancer.predict({name: x.to(dtype) for name, x in batch.inputs.items()}).logits.dtype == torch.float64
        states.append(model.state_dict())
    assert_same_state(*states)
