"""The Trainer of Hugging Face trains as a Balancer does, and its checkpoints hold the method."""

import pytest
import torch
from transformers import Trainer, TrainingArguments

import bmlr
from bmlr.integrations.hf import BalancedTrainer
from bmlr.methods import available
from bmlr.tasks import MultiLabel, Regression
from method_loop import set_up
from test_wrap import INPUTS, make_text_batch, wrap_text_model
from zoo import make_batch, make_model

METHODS = ["Joint", "BMLR", "DGL", "OGMGE", "AGM", "MMPareto"]


def samples_of(batch):
    inputs = batch.inputs
    return [
        {**{name: x[i] for name, x in inputs.items()}, "labels": batch.targets[i]} for i in range(len(batch.targets))
    ]


def arguments(folder, **options):
    defaults = {
        "num_train_epochs": 3, "per_device_train_batch_size": 12, "learning_rate": 0.05, "optim": "sgd", "seed": 0,
        "lr_scheduler_type": "constant", "report_to": "none", "save_strategy": "no", "disable_tqdm": True,
        "use_cpu": True, "max_grad_norm": 0.0, "logging_strategy": "no",
    }  # fmt: skip
    return TrainingArguments(str(folder), **{**defaults, **options})


@pytest.mark.parametrize(
    ("name", "accumulate"),
    # The Trainer shuffles, and the others' gradients depend on which samples share a batch.
    [*((name, 1) for name in METHODS), ("Joint", 2), ("BMLR", 2), ("DGL", 2)],
)
def test_it_computes_what_a_balancer_computes(tmp_path, name, accumulate):
    batch = make_batch(2, 12, seed=1)
    by_trainer, by_balancer = (make_model(2, "concat", seed=2) for _ in range(2))
    torch.manual_seed(0)  # heads of methods are drawn
    options = {"per_device_train_batch_size": 12 // accumulate, "gradient_accumulation_steps": accumulate}
    BalancedTrainer(
        by_trainer,
        arguments(tmp_path, **options),
        method=bmlr.methods.create(name),
        train_dataset=samples_of(batch),
    ).train()
    torch.manual_seed(0)
    balancer = bmlr.Balancer(
        by_balancer, bmlr.methods.create(name), torch.optim.SGD(by_balancer.parameters(), lr=0.05), max_epochs=3
    )
    for _ in range(3):
        for part in balancer.epoch([batch]):
            balancer.step(part)
    for key, value in by_balancer.state_dict().items():
        torch.testing.assert_close(by_trainer.state_dict()[key], value, rtol=1e-5, atol=1e-6)
    start = make_model(2, "concat", seed=2).state_dict()
    assert any(not torch.equal(value, start[key]) for key, value in by_trainer.state_dict().items())


@pytest.mark.parametrize(("name", "task"), [("BMLR", MultiLabel(3)), ("OGMGE", Regression()), ("AGM", Regression())])
def test_labels_and_numbers_are_trained_and_evaluated_by_their_loss(tmp_path, name, task):
    batch = make_batch(2, 12, seed=1)
    scores = torch.stack([batch.inputs["audio"][:, k] for k in range(3)], 1)
    batch.targets = (scores > 0).float() if task.num_outputs == 3 else scores[:, 0]
    models = []
    for _ in range(2):
        torch.manual_seed(2)
        encoders = {u: torch.nn.Linear(x.shape[1], 5) for u, x in batch.inputs.items()}
        models.append(bmlr.MultimodalClassifier(encoders, task))
    samples = samples_of(batch)
    trainer = BalancedTrainer(
        models[0],
        arguments(tmp_path),
        method=bmlr.methods.create(name),
        train_dataset=samples,
        eval_dataset=samples,
    )
    trainer.train()
    optimizer = torch.optim.SGD(models[1].parameters(), lr=0.05)
    balancer = bmlr.Balancer(models[1], bmlr.methods.create(name), optimizer, max_epochs=3)
    for _ in range(3):
        for part in balancer.epoch([batch]):
            balancer.step(part)
    for key, value in models[1].state_dict().items():
        torch.testing.assert_close(models[0].state_dict()[key], value, rtol=1e-5, atol=1e-6)
    expected = float(task.loss(balancer.predict(batch.inputs).logits, batch.targets))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-4)


def test_a_stopped_training_goes_on_as_if_it_had_not(tmp_path):
    samples = samples_of(make_batch(2, 24, seed=1))

    def trainer(folder, **options):
        torch.manual_seed(0)
        options = {"per_device_train_batch_size": 6, "save_strategy": "steps", "save_steps": 5, **options}
        return BalancedTrainer(
            make_model(2, "concat", seed=2),
            arguments(folder, **options),
            method=bmlr.methods.OGMGE(),
            train_dataset=samples,
        )

    whole = trainer(tmp_path / "a")
    whole.train()
    resumed = trainer(tmp_path / "b")
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-5"))  # in the second epoch
    assert resumed.method.step == whole.method.step
    for key, value in whole.classifier.state_dict().items():
        assert torch.equal(resumed.classifier.state_dict()[key], value), key


def test_evaluation_is_the_methods_prediction(tmp_path):
    batch = make_batch(2, 12, seed=1)
    method = bmlr.methods.UniformBaseline()
    trainer = BalancedTrainer(
        make_model(2, "concat", seed=2),
        arguments(tmp_path),
        method=method,
        train_dataset=samples_of(batch),
        eval_dataset=samples_of(batch),
        compute_metrics=lambda result: {"accuracy": float((result.predictions.argmax(1) == result.label_ids).mean())},
    )
    trainer.train()
    metrics = trainer.evaluate()
    with torch.no_grad():
        logits = method.eval().predict(trainer.classifier.eval()(batch.inputs)).logits
    assert metrics["eval_accuracy"] == pytest.approx(float((logits.argmax(1) == batch.targets).float().mean()))
    assert metrics["eval_loss"] == pytest.approx(
        float(torch.nn.functional.cross_entropy(logits, batch.targets)), abs=1e-5
    )
    unlabelled = [{k: v for k, v in sample.items() if k != "labels"} for sample in samples_of(batch)]
    torch.testing.assert_close(torch.from_numpy(trainer.predict(unlabelled).predictions), logits)


def test_a_wrapped_model_trains_in_bfloat16_with_clipping(tmp_path):
    model = wrap_text_model()
    batch = make_text_batch(16)
    samples = [{**{key: value[i] for key, value in batch.items()}, "labels": i % 4} for i in range(16)]
    before = {key: value.clone() for key, value in model.net.state_dict().items()}
    trainer = BalancedTrainer(
        model,
        arguments(tmp_path, bf16=True, max_grad_norm=0.5, per_device_train_batch_size=8, save_strategy="epoch"),
        method=bmlr.BMLR(alpha=1, beta=0.5),
        train_dataset=samples,
    )
    trainer.train()
    assert sum(not torch.equal(value, before[key]) for key, value in model.net.state_dict().items()) > 20
    assert set(INPUTS) == set(model.modalities)
    assert (tmp_path / "checkpoint-6" / "model.safetensors").exists()


@pytest.mark.parametrize("name", available())
def test_other_methods_train_or_say_why_not(tmp_path, name):
    cls = bmlr.methods.get(name)
    method = cls(**cls.conformance.short)
    options = {"train_dataset": samples_of(make_batch(2, 12, seed=1)), "eval_dataset": samples_of(make_batch(2, 6))}
    if method.plans_passes:
        with pytest.raises(ValueError, match="passes of its own, which a Trainer cannot: use bmlr.Balancer"):
            BalancedTrainer(make_model(), arguments(tmp_path), method=method, **options)
        return
    model = make_model()
    set_up(method, model)
    BalancedTrainer(model, arguments(tmp_path, num_train_epochs=2), method=method, **options).train()


def test_a_plain_model_is_refused(tmp_path):
    assert issubclass(BalancedTrainer, Trainer)
    with pytest.raises(ValueError, match=r"bmlr.wrap\(model, ...\). Found Linear"):
        BalancedTrainer(torch.nn.Linear(2, 2), arguments(tmp_path), method=bmlr.BMLR())
