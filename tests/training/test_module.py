import dataclasses

import lightning
import pytest
import torch
from torch.utils.data import DataLoader

import bmlr
from bmlr._modes import module_mode
from bmlr.config import OptimizerOptions, TrainerOptions
from bmlr.methods import EpochPlan, Joint, Pass
from bmlr.runs import read_metrics
from bmlr.training import BalancedModule, Score, ScoreMetric, evaluate, train
from toy import Toy

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec"),
]


def make_module(method=None):
    torch.manual_seed(0)
    encoders = {
        "audio": torch.nn.Linear(4, 8),
        "image": torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8)),
    }
    model = bmlr.MultimodalClassifier(encoders, 3)
    return BalancedModule(model, method or bmlr.BMLR(), OptimizerOptions(lr=0.05))


def pairs(split):
    whole = Toy().split(split).batch(range(40))
    return [({name: x[i] for name, x in whole.inputs.items()}, whole.targets[i]) for i in range(40)]


def make_trainer(epochs=1, **options):
    return lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, **options,
    )  # fmt: skip


def fit(module, epochs):
    make_trainer(epochs).fit(module, DataLoader(pairs("train"), 16), DataLoader(pairs("val"), 16))


def test_it_trains_under_a_users_own_trainer_and_loaders():
    module = make_module()
    fit(module, 8)
    assert module.epochs_done == 8
    assert module.history[-1]["train_loss"] < module.history[0]["train_loss"]
    assert module.val_score.fused > 0.5


class Planning(Joint):
    def plan_epoch(self, context):
        return EpochPlan((Pass(), Pass()))


def test_a_method_that_plans_its_passes_needs_data():
    with pytest.raises(RuntimeError, match="Planning plans its own passes over the data"):
        fit(make_module(Planning()), 1)


class Alternating(Joint):
    """Sees every batch twice in a row."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def plan_epoch(self, context):
        return EpochPlan((Pass("audio"), Pass("image")), order="aligned")

    def batch_losses(self, model, batch):
        self.seen.append(batch)
        loss = super().batch_losses(model, batch).terms["fused"]
        return bmlr.methods.Losses({batch.tag: loss})


def test_a_trainer_that_would_leave_out_the_plans_of_a_module_with_data_is_refused():
    module = make_module(bmlr.methods.OPM(warmup=1))
    module.split, module.batch_size = Toy(24).split, 8
    with pytest.raises(RuntimeError, match="planned anew .* give the trainer `reload_dataloaders_every_n_epochs=1`"):
        make_trainer(2).fit(module)
    with pytest.raises(RuntimeError, match="and `fit` no training loader"):
        make_trainer().fit(module, DataLoader(pairs("train"), 16))


def test_a_module_with_data_asks_for_each_split_once():
    data = Toy(24)
    module = BalancedModule(make_module().model, bmlr.BMLR(), OptimizerOptions(lr=0.05), data=data, batch_size=8)
    make_trainer(2, reload_dataloaders_every_n_epochs=1).fit(module)
    assert sorted(data.reads) == ["train", "val"]


def test_a_batch_given_twice_counts_once_and_lacks_the_same_modalities(tmp_path):
    method, options = Alternating(), TrainerOptions(epochs=1, batch_size=8, modality_dropout=0.5, progress=False)
    result = train(Toy(20), method, trainer=options, run=tmp_path / "run")
    assert [(batch.tag, len(batch)) for batch in method.seen] == [(u, n) for n in (8, 8, 4) for u in ("audio", "image")]
    for first, second in zip(method.seen[::2], method.seen[1::2], strict=True):
        assert torch.equal(first.indices, second.indices)
        assert all(torch.equal(first.present[name], second.present[name]) for name in first.present)
    assert not torch.equal(method.seen[0].present["audio"], method.seen[2].present["audio"])
    assert result.content["data_passes"] == 1.0
    row = read_metrics(result.directory).iloc[0]
    assert row["samples"] == 20
    assert row["train_loss"] == pytest.approx(row["train_loss_audio"] + row["train_loss_image"])
    accumulated = dataclasses.replace(options, accumulate_grad_batches=2)
    with pytest.raises(ValueError, match="`accumulate_grad_batches` should be 1, since the method takes 2 optimiser"):
        train(Toy(20), Alternating(), trainer=accumulated, run=tmp_path / "other")


def test_score_counts_absent_modalities_out():
    metric = ScoreMetric(["audio", "text"], bmlr.tasks.Multiclass(3))
    logits = torch.eye(3)
    batch = bmlr.Batch({}, torch.tensor([0, 1, 1]), present={"text": torch.tensor([True, False, True])})
    metric.update(bmlr.methods.Prediction(logits, {"audio": logits, "text": logits}), batch)
    score = metric.compute()
    assert (score.fused, score.samples) == (pytest.approx(2 / 3), 3)
    assert score.unimodal == {"audio": pytest.approx(2 / 3), "text": 0.5}
    assert score.ratio == {"audio/text": pytest.approx(4 / 3)}
    unimodal = {"a": {"accuracy": 0.5}, "b": {"accuracy": 0.0}}
    assert Score("accuracy", {"accuracy": 1.0}, unimodal, 1).ratio == {"a/b": None}
    errors = {"a": {"mae": 0.5}, "b": {"mae": 1.0}}
    assert Score("mae", {"mae": 0.4}, errors, 1).ratio == {"a/b": 2.0}  # above 1: a is ahead


def test_evaluation_leaves_no_trace():
    module = make_module()
    module.model.encoders["audio"].eval()
    before = {name: value.clone() for name, value in module.model.state_dict().items()}
    modes = [m.training for m in module.model.modules()]
    state = torch.get_rng_state()
    first = evaluate(module.model, module.method, [Toy().split("val").batch(range(40))])
    second = evaluate(module.model, module.method, [Toy().split("val").batch([i]) for i in range(40)])
    assert first.metrics == pytest.approx(second.metrics)  # sums of other batches round otherwise
    assert first.unimodal == second.unimodal
    assert modes == [m.training for m in module.model.modules()]
    assert all(torch.equal(value, before[name]) for name, value in module.model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert all(p.grad is None for p in module.model.parameters())
    with pytest.raises(ValueError, match="`batches` should hold at least one"):
        evaluate(module.model, module.method, [])


def test_modes_are_put_back_after_an_error():
    module = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Dropout().eval())
    with pytest.raises(RuntimeError), module_mode(module, training=False):
        assert not module[0].training
        raise RuntimeError
    assert module[0].training
    assert not module[1].training


def test_a_loader_of_anything_but_batches_is_named():
    model = bmlr.MultimodalClassifier({"a": torch.nn.Linear(2, 4), "b": torch.nn.Linear(2, 4)}, 2)
    module = BalancedModule(model, bmlr.methods.Joint(), OptimizerOptions(lr=0.1))
    with pytest.raises(
        ValueError, match=r"Batches should be bmlr.Batch or pairs .* Found list of \['Tensor', 'Tensor'\]"
    ):
        module.training_step([torch.zeros(3), torch.zeros(3)], 0)


def test_it_trains_without_validation_loader_and_asks_for_one_to_validate():
    module, trainer = make_module(), make_trainer()
    trainer.fit(module, DataLoader(pairs("train"), 16))
    assert (module.epochs_done, module.val_score) == (1, None)
    with pytest.raises(RuntimeError, match="give the trainer the loader that is missing"):
        trainer.validate(module, verbose=False)
    with pytest.raises(RuntimeError, match="give the trainer the loader that is missing"):
        make_trainer().fit(make_module())


@pytest.mark.parametrize("method", [bmlr.BMLR, bmlr.methods.LFM])
def test_validation_test_and_prediction_are_those_of_the_method(method, tmp_path):
    module, trainer, loader = make_module(method()), make_trainer(2), DataLoader(pairs("val"), batch_size=16)
    trainer.fit(module, DataLoader(pairs("train"), 16), loader)
    batches = [Toy().split("val").batch(rows) for rows in (range(16), range(16, 32), range(32, 40))]
    score = evaluate(module.model, module.method, batches)
    (validated,) = trainer.validate(module, loader, verbose=False)
    (tested,) = trainer.test(module, loader, verbose=False)
    assert validated["val_accuracy"] == tested["test_accuracy"] == pytest.approx(score.fused)
    assert tested["test_accuracy_image"] == pytest.approx(score.unimodal["image"])
    assert module.test_score == score
    predictions = trainer.predict(module, loader)
    inputs = trainer.predict(module, DataLoader([sample for sample, _ in pairs("val")], batch_size=16))
    for found in (predictions, inputs):
        classes = torch.cat([prediction.logits.argmax(1) for prediction in found])
        targets = torch.stack([target for _, target in pairs("val")])
        assert float((classes == targets).float().mean()) == pytest.approx(score.fused)
    trainer.save_checkpoint(tmp_path / "module.ckpt")
    blank = make_module(method())
    loaded = BalancedModule.load_from_checkpoint(
        tmp_path / "module.ckpt", model=blank.model, method=blank.method, optimizer=OptimizerOptions(lr=0.05)
    )
    assert evaluate(loaded.model, loaded.method, batches) == score


@pytest.mark.parametrize(
    "batch", [(torch.zeros(2, 4), torch.zeros(2, 1), torch.zeros(2)), {"audio": torch.zeros(2, 4), "label": 0}]
)
def test_batches_of_other_forms_are_told_which_are_taken(batch):
    with pytest.raises(ValueError, match=r"pairs \(inputs by modality, targets\): have the data set return"):
        make_module().training_step(batch, 0)
