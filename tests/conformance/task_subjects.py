"""Every method on every task it is defined for."""

import dataclasses

import torch
from subjects import SUBJECTS, make_method, method_class
from torch import Tensor

import bmlr
from bmlr.fusion import Fusion
from bmlr.tasks import Multiclass, MultiLabel, Regression, Sentiment, Task
from method_loop import MethodLoop
from zoo import FEATURE_DIMS, MODALITIES, OwnFusion, make_batch, make_encoder

TASKS = {
    "soft": Multiclass(3),
    "options": Multiclass(3, class_weights=(1.0, 2.0, 3.0), label_smoothing=0.1, ignore_index=-100),
    "multilabel": MultiLabel(4, pos_weight=(1.0, 2.0, 1.0, 1.0)),
    "regression": Regression(2, "huber", scale=2.0),
    "sentiment": Sentiment(),
}
SUPPORTED = [(s, t) for s in SUBJECTS for t, task in TASKS.items() if task.name in method_class(s).tasks]


def make_targets(name: str, samples: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    task, draw = TASKS[name], torch.randn(samples, TASKS[name].num_outputs, generator=generator, dtype=torch.float64)
    if name == "soft":
        return draw.softmax(1)
    if name == "options":
        return draw.argmax(1).masked_fill(torch.arange(samples) % 5 == 1, -100)
    if name == "multilabel":
        return (draw > 0).long()
    return draw.squeeze(1) if task.num_outputs == 1 else draw


def make_model(
    task: Task, modalities: int, fusion: str | Fusion = "concat", dtype: torch.dtype = torch.float64
) -> bmlr.MultimodalClassifier:
    torch.manual_seed(0)
    names = MODALITIES[:modalities]
    if fusion == "own":
        fusion = OwnFusion({name: FEATURE_DIMS[name] for name in names}, task.num_outputs)
    return bmlr.MultimodalClassifier({name: make_encoder(name) for name in names}, task, fusion).to(dtype)


def make_loop(
    subject: str, name: str, modalities: int = 2, fusion: str = "concat", dtype: torch.dtype = torch.float64
) -> MethodLoop:
    model = make_model(TASKS[name], modalities, fusion, dtype)
    targets = make_targets(name, 18)
    batch = dataclasses.replace(make_batch(modalities, 18, dtype=dtype), targets=targets)
    return MethodLoop(model, make_method(subject), batch, max_epochs=modalities)
