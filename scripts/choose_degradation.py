"""Show how unbalanced joint training is under degradations of a data set, and what each modality can learn alone.

This is all that was looked at when the defaults of the data sets were chosen: plain joint training and unimodal
training, on the validation split, and no other method.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from typing import Any

import numpy as np
import torch
import yaml
from torch import nn

import bmlr
from bmlr.config import ModelOptions, build_model
from bmlr.data import MultimodalData, create
from bmlr.methods import EpochPlan, Joint
from bmlr.training.loader import ordered_requests, planned_requests


def main() -> None:
    """Train on every candidate and print a row for each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", default="digits")
    parser.add_argument(
        "--candidates", nargs="+", required=True, help="parameters as in audio_snr_db=10,image_clutter=1"
    )
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--stem", choices=("imagenet", "small"))
    arguments = parser.parse_args()
    options = ModelOptions(width=arguments.width, stem=arguments.stem)

    header = True
    for candidate in arguments.candidates:
        data = create(arguments.data, **parameters_of(candidate))
        data.prepare()
        rows = [measure(data, options, arguments.epochs, seed) for seed in arguments.seeds]
        if header:
            print(f"| degradation | {' | '.join(rows[0])} |")
            print(f"|{' --- |' * (len(rows[0]) + 1)}")
            header = False
        cells = [f"{np.mean([row[name] for row in rows]):.2f}" for name in rows[0]]
        print(f"| {candidate} | {' | '.join(cells)} |", flush=True)


def parameters_of(candidate: str) -> dict[str, Any]:
    """Parameters by name from ``name=value,name=value``, values as YAML writes them; none from an empty string."""
    parameters: dict[str, Any] = yaml.safe_load("{" + candidate.replace("=", ": ") + "}")
    return parameters


def measure(data: MultimodalData, options: ModelOptions, epochs: int, seed: int) -> dict[str, float]:
    """Validation accuracy (%) of each modality alone and inside joint training; means of the last three epochs."""
    row = {}
    for name in data.modalities:
        row[f"{name} alone"] = train(data, options, epochs, seed, alone=name)[name]
    joint = train(data, options, epochs, seed)
    row |= {f"{name} in joint": joint[name] for name in data.modalities} | {"multimodal": joint["multimodal"]}
    first, second = itertools.islice(data.modalities, 2)
    return row | {f"ratio {first}/{second}": joint[first] / joint[second]}


def train(
    data: MultimodalData, options: ModelOptions, epochs: int, seed: int, alone: str | None = None
) -> dict[str, float]:
    """Train jointly, or one encoder alone under a linear head."""
    torch.manual_seed(seed)
    model, method = build_model(data, options), Joint()
    split = data.split("train")
    head = nn.Linear(model.fusion.feature_dims[alone or next(iter(data.modalities))], model.task.num_outputs)
    optimizer = torch.optim.Adam([*model.parameters(), *head.parameters()], lr=1e-3)
    scores = []
    for epoch in range(epochs):
        model.train()
        for request in planned_requests(EpochPlan(), len(split), 64, seed=seed, epoch=epoch):
            batch = split.batch(request.indices)
            if alone:
                loss = nn.functional.cross_entropy(head(model.encode(alone, batch.inputs[alone])), batch.targets)
            else:
                loss = method.compute_losses(model, batch).total
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if epoch >= epochs - 3:
            scores.append(score(data, model, head if alone else None, alone))
        print(f"{data.name} seed {seed} {alone or 'joint'} epoch {epoch + 1}", end="\r", file=sys.stderr)
    return {name: float(np.mean([s[name] for s in scores])) for name in scores[0]}


@torch.no_grad()
def score(
    data: MultimodalData, model: bmlr.MultimodalClassifier, head: nn.Linear | None, alone: str | None
) -> dict[str, float]:
    """Validation accuracy in %."""
    split = data.split("val")
    model.eval()
    correct: dict[str, int] = {}
    for request in ordered_requests(len(split), 256):
        batch = split.batch(request.indices)
        if head is not None and alone:
            logits = {alone: head(model.encode(alone, batch.inputs[alone]))}
        else:
            output = model(batch.inputs)
            logits = {"multimodal": output.logits, **output.unimodal_logits}
        for name, values in logits.items():
            correct[name] = correct.get(name, 0) + int((values.argmax(1) == batch.targets).sum())
    return {name: 100 * count / len(split) for name, count in correct.items()}


if __name__ == "__main__":
    main()
