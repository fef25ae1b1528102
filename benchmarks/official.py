"""What a training step of official code costs, relative to ours.

Run ``python benchmarks/official.py``: for BMLR and every method with public official code, whole steps (forward,
losses, backward, optimiser) as the official loop is structured (``official_steps.py``) and those of the library, from
the same networks and batch, in alternating rounds of one process. Processor time is counted. A ratio above one says
that ours takes less. The last table is the clustering of one diagnosis of Diagnosing & Re-learning.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import official_steps as literal
import torch
from official_steps import Literal, Step
from step import BASELINE, Setting, Subject, add_setting, make_setting, measure_times, table

import bmlr
from bmlr.methods._relearning import _purity as purity


@dataclasses.dataclass(frozen=True)
class Case:
    """A method and the step of official code that it is compared with.

    Attributes:
        method: Name of the method.
        step: Makes a step of the official loop.
        parameters: Parameters in which the method is the official one.
        note: What to know about the row.
        kinds: Least number of kinds of steps, where the weights decide which kinds there are.
    """

    method: str
    step: Step
    parameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    note: str = ""
    kinds: int = 1

    def make(self, setting: Setting, batch: bmlr.Batch) -> tuple[Literal, Subject]:
        """The official step and ours, from equal weights."""
        for seed in range(100):
            torch.manual_seed(seed)
            official = Literal(self.method, setting, batch, self.parameters, self.step)
            if len(official.batches) >= self.kinds:
                break
        torch.manual_seed(seed)
        return official, Subject(self.method, setting, batch, self.parameters)


CASES = (
    Case("BMLR", literal.algorithm_1, note="Algorithm 1, to the letter"),
    Case("OGMGE", literal.ogm_ge),
    Case("OPM", literal.opm, {"probability": 1.0}, "a drop in every step; without the official leak"),
    Case("AGM", literal.agm),
    Case("MMPareto", literal.mmpareto),
    Case("UniformBaseline", literal.uniform, {"weight": 1.0}),
    Case("DiagnosingRelearning", literal.joint, note="between resets"),
    Case("CML", literal.cml, note="the official ranking loss, our network"),
    Case("CMLBalanceBenchmark", literal.cml_of_benchmark),
    Case("MBSDBalanceBenchmark", literal.mbsd_of_benchmark),
    Case("LFM", literal.lfm),
    Case("LFMBalanceBenchmark", literal.lfm_of_benchmark),
    Case("ReconBoost", literal.reconboost),
    Case("ReconBoostBalanceBenchmark", literal.reconboost),
    Case("Remix", literal.remix, kinds=2),
    Case("DGL", literal.dgl),
)


def rows(cases: Sequence[Case], setting: Setting, rounds: int) -> Iterator[list[str]]:
    """A row per case and kind of step, after one of two subjects that do the same."""
    batch = setting.make_batch()
    ours, official = (Subject(BASELINE, setting, batch) for _ in range(2))
    official.name = "the same"
    times = measure_times([official, ours], rounds)
    yield [BASELINE, *compared(times[official.name, ""], times[ours.name, ""]), "ours on both sides: the noise"]
    for case in cases:
        official, ours = case.make(setting, batch)
        seconds = measure_times([official, ours], rounds)
        for tag in ours.batches:
            name = case.method + (f" ({tag})" if tag else "")
            yield [name, *compared(seconds[official.name, tag], seconds[ours.name, tag]), case.note]


def compared(official: Sequence[float], ours: Sequence[float]) -> list[str]:
    """Milliseconds of both, their ratio and its quartiles."""
    low, median, high = statistics.quantiles(
        [a / b for a, b in zip(official, ours, strict=True)], n=4, method="inclusive"
    )
    times = [f"{statistics.median(seconds) * 1e3:,.0f}" for seconds in (official, ours)]
    return [*times, f"{median:.2f}", f"{low:.2f}–{high:.2f}"]


Features = tuple[np.ndarray, np.ndarray]


def make_features(samples: int, num_classes: int, width: int) -> Features:
    """Features around a centre per class, and the classes."""
    draw = np.random.default_rng(0)
    classes = draw.integers(num_classes, size=samples)
    centres = draw.normal(size=(num_classes, width))
    return (centres[classes] + 2 * draw.normal(size=(samples, width))).astype(np.float32), classes


def official_purity(features: np.ndarray, classes: np.ndarray, num_classes: int) -> float:
    """Purity of the clusters of scikit-learn's k-means with one start, counted cluster by cluster."""
    from sklearn.cluster import KMeans
    from sklearn.preprocessing import MinMaxScaler

    scaled = MinMaxScaler(feature_range=(-1, 1)).fit_transform(features)
    clusters = KMeans(n_clusters=num_classes, random_state=0, n_init=1).fit_predict(scaled)
    most = [Counter(classes[clusters == cluster].tolist()).most_common(1)[0][1] for cluster in set(clusters.tolist())]
    return sum(most) / len(classes)


def our_purity(features: np.ndarray, classes: np.ndarray, num_classes: int) -> float:
    """Purity as the library finds it, with the same draws."""
    return purity(features, classes, num_classes, "training", starts=1, seed=0)


def clustering(
    rounds: int, parts: Sequence[int] = (4_000, 1_000), num_classes: int = 31, width: int = 512
) -> list[str]:
    """A row for the clustering of one diagnosis of one modality."""
    made = [make_features(samples, num_classes, width) for samples in parts]

    def seconds(find: Callable[[np.ndarray, np.ndarray, int], float]) -> float:
        start = time.process_time()
        for features, classes in made:
            find(features, classes, num_classes)
        return time.process_time() - start

    for find in (official_purity, our_purity):  # imports
        seconds(find)
    times = [(seconds(official_purity), seconds(our_purity)) for _ in range(rounds)]
    official, ours = zip(*times, strict=True)
    return ["k-means of a diagnosis", *compared(official, ours)]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add_setting(parser)
    parser.set_defaults(methods=list(dict.fromkeys(case.method for case in CASES)))
    parser.add_argument("--rounds", type=int, default=11, help="each makes one step of either side")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch on the CPU")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print the two tables."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    setting = make_setting(options, "cpu" if options.device == "cpu" else "wall")
    chosen = {bmlr.methods.get(name).__name__ for name in options.methods}
    cases = [case for case in CASES if case.method in chosen]
    print(f"Torch {torch.__version__}, {options.rounds} rounds, {torch.get_num_threads()} threads, {setting}\n")
    head = ["official, ms", "ours, ms", "official / ours", "quartiles"]
    print(table(["method", *head, "note"], rows(cases, setting, options.rounds)))
    if "DiagnosingRelearning" in chosen:
        print("\n" + table(["", *head], iter([clustering(options.rounds)])))


if __name__ == "__main__":
    main()
