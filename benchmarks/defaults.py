"""Search for defaults of BMLR's α and β that are never far from the best, over data sets.

Run ``BMLR_DATA=FOLDER python benchmarks/defaults.py results/defaults.jsonl``. Every setting trains each cell of the
grid with the same seeds and is scored by validation accuracy at its best epoch, as ``bmlr train`` selects. No test
split is read. The regret of a cell is the best mean accuracy of its setting less its own. The last table gives, per
cell, the mean and the largest regret over all settings. Finished trainings are kept in the file, one line each; run it
again to continue.

Settings without a data folder (``digits``, ``synthetic-*``) need no ``BMLR_DATA``. The others read ``wiki``, ``mfeat``,
``mosi`` (audio and tf-idf of the transcript, both free of its labels), ``mmmo`` and AV-MNIST from it.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import itertools
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

import bmlr

ALPHAS = (0.5, 1.0, 2.0)
BETAS = (0.0, 0.1, 0.25, 0.5, 0.75)
REFERENCES = ("Joint", "UniformBaseline", "OnlyTPO")
BATCH_SIZE = 64


@dataclasses.dataclass(frozen=True)
class Samples:
    """Inputs and targets of the training and the validation split."""

    train: tuple[dict[str, Tensor], Tensor]
    val: tuple[dict[str, Tensor], Tensor]
    num_classes: int


@dataclasses.dataclass(frozen=True)
class Setting:
    """A data set, a model for it and the length of its training."""

    load: Callable[[int], Samples]
    epochs: int
    encoder: str = "mlp"
    fusion: str = "concat"
    width: int = 64
    lr: float = 1e-3
    alphas: tuple[float, ...] = ALPHAS
    seeds: int = 3


class MLPFusion(bmlr.fusion.Fusion):
    """Head of two layers over the concatenated features, as hand-written models have it."""

    def __init__(self, feature_dims: Mapping[str, int], num_classes: int) -> None:
        super().__init__(feature_dims, num_classes)
        self.net = nn.Sequential(nn.Linear(sum(feature_dims.values()), 64), nn.ReLU(), nn.Linear(64, num_classes))

    def fused(self, features: Mapping[str, Tensor]) -> Tensor:
        """Multimodal logits, shape (B, C)."""
        logits: Tensor = self.net(torch.cat(list(features.values()), 1))
        return logits


def load_library(name: str, **parameters: object) -> Callable[[int], Samples]:
    """A data set of the library, its own training and validation splits."""

    def load(_: int) -> Samples:
        data = bmlr.data.create(name, **parameters)
        data.prepare()
        train, val = (data.split(split) for split in ("train", "val"))
        pairs = [
            (dict(batch.inputs), batch.targets) for batch in (s.batch(range(len(s.targets))) for s in (train, val))
        ]
        return Samples(pairs[0], pairs[1], len(data.classes))

    return load


def load_arrays(name: str, modalities: Mapping[str, str], val_fraction: float = 0.2) -> Callable[[int], Samples]:
    """Arrays of a file, standardised on train; a random fraction of its training rows is validation."""

    def load(seed: int) -> Samples:
        folder = Path(os.environ["BMLR_DATA"]) / name
        with np.load(folder / "data.npz", allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        rows = np.flatnonzero(arrays["split"] != arrays["split"].max())
        order = np.random.default_rng(seed).permutation(rows)
        cut = int(len(order) * val_fraction)
        splits = {"val": order[:cut], "train": order[cut:]}
        targets = torch.from_numpy(arrays["label"].astype(np.int64))
        inputs: dict[str, dict[str, Tensor]] = {"train": {}, "val": {}}
        for modality, key in modalities.items():
            values = _tfidf(arrays[key], splits["train"]) if arrays[key].dtype.kind == "U" else _flat(arrays[key])
            mean, std = values[splits["train"]].mean(0), values[splits["train"]].std(0) + 1e-6
            for split, index in splits.items():
                inputs[split][modality] = torch.from_numpy(
                    ((values[index] - mean) / std).clip(-5, 5).astype(np.float32)
                )
        pairs = [(inputs[split], targets[splits[split]]) for split in ("train", "val")]
        return Samples(pairs[0], pairs[1], int(targets.max()) + 1)

    return load


def _flat(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Vectors; a sequence becomes its mean and standard deviation over time."""
    return np.concatenate([values.mean(1), values.std(1)], 1) if values.ndim == 3 else values


def _tfidf(texts: npt.NDArray[Any], train: npt.NDArray[Any]) -> npt.NDArray[Any]:
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(max_features=500, sublinear_tf=True).fit(texts[train])
    dense: npt.NDArray[Any] = vectorizer.transform(texts).toarray()
    return dense


SETTINGS: dict[str, Setting] = {
    "wiki": Setting(load_arrays("wiki", {"image": "image", "text": "text"}), 20),
    "wiki-head": Setting(load_arrays("wiki", {"image": "image", "text": "text"}), 20, fusion="head"),
    "mfeat": Setting(load_arrays("mfeat", {"zer": "zer", "mor": "mor"}), 20),
    "mosi": Setting(load_arrays("mosi", {"audio": "audio", "text": "transcript"}), 15),
    "mmmo": Setting(load_arrays("mmmo", {"audio": "audio", "video": "video"}, 0.3), 20, seeds=8),
    "synthetic": Setting(load_library("synthetic"), 15, seeds=2),
    "synthetic-head": Setting(load_library("synthetic"), 15, fusion="head", seeds=2),
    "synthetic-weak": Setting(load_library("synthetic", accuracy={"audio": 0.9, "video": 0.5}), 15, seeds=2),
    "synthetic-20": Setting(
        load_library("synthetic", dimensions=24, num_classes=20, accuracy={"audio": 0.8, "video": 0.6}), 15, seeds=2
    ),
    "synthetic-3": Setting(
        load_library("synthetic", accuracy={"text": 0.75, "audio": 0.75, "video": 0.75}), 15, seeds=2
    ),
    "digits": Setting(load_library("digits"), 10, "resnet", width=4, seeds=2),
    "digits-sum": Setting(load_library("digits"), 10, "resnet", "sum", width=4, alphas=(1.0,), seeds=2),
    "avmnist": Setting(load_library("avmnist"), 6, "resnet", width=4, alphas=(1.0,), seeds=2),
    "avmnist-paper": Setting(
        load_library("avmnist", setting="paper-like"), 6, "resnet", width=4, alphas=(1.0,), seeds=2
    ),
}


def make_model(setting: Setting, samples: Samples) -> bmlr.MultimodalClassifier:
    """The setting's model for its samples."""
    encoders: dict[str, nn.Module] = {}
    for name, values in samples.train[0].items():
        if setting.encoder == "mlp":
            encoders[name] = bmlr.encoders.MLP(values.shape[1], setting.width)
        else:
            encoders[name] = bmlr.encoders.resnet18(in_channels=values.shape[-3], width=setting.width)
    if setting.fusion == "head":
        dims = dict.fromkeys(encoders, setting.width)
        return bmlr.MultimodalClassifier(encoders, samples.num_classes, fusion=MLPFusion(dims, samples.num_classes))
    return bmlr.MultimodalClassifier(encoders, samples.num_classes, fusion=setting.fusion)


def train(setting: Setting, samples: Samples, method: bmlr.methods.Method, seed: int) -> float:
    """Validation accuracy of the best epoch."""
    torch.manual_seed(seed)
    model = make_model(setting, samples)
    method.setup(model)
    optimizer = torch.optim.Adam([*model.parameters(), *method.parameters()], lr=setting.lr)
    inputs, targets = samples.train
    best = 0.0
    for _ in range(setting.epochs):
        model.train()
        for index in torch.randperm(len(targets)).split(BATCH_SIZE)[: max(1, len(targets) // BATCH_SIZE)]:
            optimizer.zero_grad()
            output = model({name: values[index] for name, values in inputs.items()})
            method(output, targets[index]).total.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            predictions = [
                method.predict(model({name: values[index] for name, values in samples.val[0].items()})).logits.argmax(1)
                for index in torch.arange(len(samples.val[1])).split(500)
            ]
        best = max(best, float((torch.cat(predictions) == samples.val[1]).float().mean()))
    return best


def cells(setting: Setting) -> Iterator[tuple[str, bmlr.methods.Method]]:
    """References and the grid, by label."""
    for name in REFERENCES:
        yield name, bmlr.methods.create(name)
    for alpha, beta in itertools.product(setting.alphas, BETAS):
        yield f"{alpha:g},{beta:g}", bmlr.BMLR(alpha=alpha, beta=beta)


def run(path: Path, names: list[str]) -> None:
    """Train all cells that the file lacks."""
    done = {(r["setting"], r["cell"], r["seed"]) for r in read(path)}
    path.parent.mkdir(parents=True, exist_ok=True)
    for name in names:
        setting = SETTINGS[name]
        for seed in range(setting.seeds):
            todo = [(label, method) for label, method in cells(setting) if (name, label, seed) not in done]
            if not todo:
                continue
            samples = setting.load(seed)
            for label, method in todo:
                start = time.perf_counter()
                accuracy = train(setting, samples, method, seed)
                record = {"setting": name, "cell": label, "seed": seed, "accuracy": accuracy}
                with path.open("a") as file:
                    file.write(json.dumps({**record, "seconds": round(time.perf_counter() - start, 1)}) + "\n")
        print(f"{name} is complete", flush=True)


def read(path: Path) -> list[dict[str, Any]]:
    """Records of the file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def report(path: Path) -> None:
    """Print accuracy of the references and regrets of the grid, all in per cent."""
    accuracy: dict[str, dict[str, list[float]]] = collections.defaultdict(lambda: collections.defaultdict(list))
    for record in read(path):
        accuracy[record["setting"]][record["cell"]].append(100 * record["accuracy"])
    regrets: dict[str, list[float]] = collections.defaultdict(list)
    print(
        "| setting | "
        + " | ".join(REFERENCES)
        + " | best cell (α,β) | its accuracy | α=1: "
        + " | ".join(f"β={b:g}" for b in BETAS)
        + " |"
    )
    print("| --- |" + " ---: |" * (len(REFERENCES) + 2 + len(BETAS)))
    for name, by_cell in accuracy.items():
        means = {cell: statistics.fmean(values) for cell, values in by_cell.items()}
        grid = {cell: mean for cell, mean in means.items() if cell not in REFERENCES}
        best = max(grid, key=grid.__getitem__)
        for cell, mean in grid.items():
            regrets[cell].append(grid[best] - mean)
        row = [f"{means[r]:.1f}" for r in REFERENCES] + [best, f"{grid[best]:.1f}"]
        print(f"| {name} | " + " | ".join(row + [f"{grid[best] - grid[f'1,{b:g}']:.1f}" for b in BETAS]) + " |")
    print("\n| α,β | settings | mean regret | largest regret |\n| --- | ---: | ---: | ---: |")
    for cell, values in sorted(regrets.items(), key=lambda item: statistics.mean(item[1])):
        print(f"| {cell} | {len(values)} | {statistics.fmean(values):.2f} | {max(values):.1f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="File of the trainings, one JSON line each.")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    run(arguments.results, arguments.settings)
    report(arguments.results)
