"""How often the diagnosis is right, on synthetic data of which the truth is known.

    python benchmarks/diagnose_truth.py --seeds 0 1 2 --runs diagnose-truth

Each case says which modalities are hard to learn, by construction, and which of them the diagnosis should name. Joint
training of each seed, on data drawn with that seed too, is diagnosed on validation, with the modalities trained alone
(``--probe``) and without. A second table tells whether the methods it advises are above joint training on the synthetic
sets that ``benchmarks/leaderboard`` and ``benchmarks/factorial`` keep. Runs that have ended are not made again.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from leaderboard_kept import Kept, read_kept

import bmlr.data
from bmlr.config import ModelOptions, OptimizerOptions, TrainerOptions
from bmlr.diagnosis import Diagnosis, diagnose_run
from bmlr.methods import Joint
from bmlr.tables import Cell, Table, join_names
from bmlr.training import train

_FOLDER = Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Case:
    """A data set of which the truth is known.

    Attributes:
        difficulty: Layers of every modality's map; 0 is linear.
        behind: Modalities that are undertrained, by construction.
        accuracy: Bayes accuracies other than 80 %.
    """

    difficulty: Mapping[str, int]
    behind: Sequence[str] = ()
    accuracy: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def title(self) -> str:
        """Layers of each modality."""
        parts = [f"{name} {layers}" for name, layers in self.difficulty.items()]
        return ", ".join(parts) + "".join(f"; {name} says nothing" for name in self.accuracy)


CASES = (
    Case({"audio": 0, "video": 0}),
    Case({"audio": 4, "video": 4}),
    Case({"audio": 0, "video": 0}, accuracy={"video": 0.1}),
    Case({"audio": 0, "video": 2}, ["video"]),
    Case({"audio": 0, "video": 4}, ["video"]),
    Case({"audio": 0, "video": 6}, ["video"]),
    Case({"audio": 2, "video": 0}, ["audio"]),
    Case({"audio": 4, "video": 0}, ["audio"]),
    Case({"audio": 6, "video": 0}, ["audio"]),
    Case({"text": 0, "audio": 0, "video": 0}),
    Case({"text": 0, "audio": 0, "video": 4}, ["video"]),
    Case({"text": 0, "audio": 4, "video": 4}, ["audio", "video"]),
)


def diagnose_case(
    case: Case, seed: int, runs: Path, *, epochs: int, samples: Mapping[str, int]
) -> tuple[Diagnosis, Diagnosis]:
    """Diagnoses of joint training, with the modalities trained alone and without."""
    accuracy = dict.fromkeys(case.difficulty, 0.8) | dict(case.accuracy)
    data = bmlr.data.create(
        "synthetic", accuracy=accuracy, difficulty=dict(case.difficulty), samples=dict(samples), seed=seed
    )
    trainer = TrainerOptions(epochs=epochs, batch_size=128, accelerator="cpu", progress=False)
    model, optimizer = ModelOptions(width=8), OptimizerOptions(lr=0.005)
    run = train(data, Joint(), model, optimizer, trainer, seed=seed, runs=runs, resume=True).directory
    found = [diagnose_run(run, probe=probe) for probe in (True, False)]
    probed, plain = (diagnosis for diagnosis in found if isinstance(diagnosis, Diagnosis))
    return probed, plain


@dataclasses.dataclass(frozen=True)
class Verdicts:
    """Diagnoses of a case, one per seed: with the modalities trained alone, and without."""

    case: Case
    probed: list[Diagnosis]
    plain: list[Diagnosis]

    @property
    def wrong(self) -> int:
        """Verdicts that name a modality which is not behind."""
        return sum(bool(set(diagnosis.verdict.undertrained) - set(self.case.behind)) for diagnosis in self.probed)

    @property
    def mildly_wrong(self) -> int:
        """Those of them that call what they name wrongly mildly undertrained, and nothing worse."""
        named = [(d.paragraph, set(d.verdict.undertrained) - set(self.case.behind)) for d in self.probed]
        return sum(
            bool(names) and all(f"{name} is mildly undertrained" in text for name in names) for text, names in named
        )

    @property
    def missed(self) -> int:
        """Verdicts that leave out a modality which is behind."""
        return sum(bool(set(self.case.behind) - set(diagnosis.verdict.undertrained)) for diagnosis in self.probed)

    @property
    def right(self) -> int:
        """Verdicts that name what is behind, and nothing else."""
        return sum(set(diagnosis.verdict.undertrained) == set(self.case.behind) for diagnosis in self.probed)

    def row(self) -> list[Cell]:
        """The row of the table."""
        weak = collections.Counter(
            name for diagnosis in self.plain for name in diagnosis.verdict.with_status("weak", "unused")
        )
        texts = [
            self.case.title,
            join_names(list(self.case.behind)) if self.case.behind else "none",
            f"{self.right} of {len(self.probed)}",
            str(self.wrong),
            str(self.missed),
            ", ".join(f"{name} {weak[name]}" for name in self.case.difficulty if weak[name]) or "–",
            ", ".join(f"{name} {self._recovery(name)}" for name in self.case.difficulty),
        ]
        return [Cell(text) for text in texts]

    def _recovery(self, name: str) -> str:
        found = [diagnosis.modalities[name].relative_recovery for diagnosis in self.probed]
        values = [estimate.value for estimate in found if estimate is not None and math.isfinite(estimate.value)]
        return f"{statistics.fmean(values):.2f}" if values else "–"


def verdict_table(verdicts: Sequence[Verdicts]) -> Table:
    """A row per case, and sums over the cases where something is behind and where nothing is."""
    heads = [
        "layers of each modality",
        "behind",
        "named exactly",
        "another named",
        "missed",
        "weak or unused without --probe",
        "relative recovery, mean",
    ]
    return Table(heads, [of_case.row() for of_case in verdicts], [_sums(verdicts)])


def _sums(verdicts: Sequence[Verdicts]) -> str:
    behind = [of_case for of_case in verdicts if of_case.case.behind]
    level = [of_case for of_case in verdicts if not of_case.case.behind]
    count, level_count = (sum(len(of_case.probed) for of_case in some) for some in (behind, level))
    return (
        f"Where a modality is behind, exactly the right ones are named in {sum(v.right for v in behind)} of {count} "
        f"verdicts. Where none is, one is named in {sum(v.wrong for v in level)} of {level_count}, mildly in "
        f"{sum(v.mildly_wrong for v in level)} of these."
    )


def advice_table(verdicts: Sequence[Verdicts], kept: Mapping[str, Kept]) -> Table:
    """How often each method is advised, and its difference to joint training in the sets that are kept."""
    diagnoses = [diagnosis for of_case in verdicts for diagnosis in of_case.probed]
    advised = collections.Counter(name for diagnosis in diagnoses for name in diagnosis.verdict.methods)
    rows = []
    for name, times in advised.most_common():
        found = [
            difference for of_set in kept.values() if (difference := of_set.differences("Joint").get(name)) is not None
        ]
        sides = collections.Counter(difference.side for difference in found)
        points = [100 * difference.mean for difference in found]
        spread = f"{min(points):+.1f} to {max(points):+.1f}" if points else "–"
        rows.append([Cell(str(text)) for text in (name, times, len(found), sides[1], sides[0], sides[-1], spread)])
    heads = ["advised method", "verdicts", "sets", "above Joint", "not told apart", "below Joint", "points over Joint"]
    return Table(heads, rows, [f"Sets with an easy and a hard modality: {', '.join(kept)}."])


def unbalanced_sets(folders: Sequence[Path]) -> dict[str, Kept]:
    """Synthetic sets kept in folders whose modalities are not equally hard, by name."""
    sets = {path.stem: read_kept(path) for folder in folders for path in sorted(folder.glob("*.json"))}
    return {
        name: of_set
        for name, of_set in sets.items()
        if of_set.entry["data"] == "synthetic" and len(set(of_set.entry["parameters"]["difficulty"].values())) > 1
    }


def main(arguments: Sequence[str] | None = None, cases: Sequence[Case] = CASES) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of data and training")
    parser.add_argument("--runs", type=Path, default=Path("diagnose-truth"), help="folder of the runs")
    parser.add_argument("--epochs", type=int, default=10, help="epochs of a run")
    parser.add_argument("--train", type=int, default=1536, help="training samples")
    parser.add_argument("--val", type=int, default=1000, help="validation samples, which the diagnosis reads")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # the models are too small for more
    samples = {"train": options.train, "val": options.val, "test": 500}
    verdicts = [Verdicts(case, [], []) for case in cases]
    for seed in options.seeds:
        for of_case in verdicts:
            probed, plain = diagnose_case(of_case.case, seed, options.runs, epochs=options.epochs, samples=samples)
            of_case.probed.append(probed)
            of_case.plain.append(plain)
            named = ", ".join(probed.verdict.undertrained) or "none"
            print(f"{of_case.case.title}, seed {seed}: {named}", file=sys.stderr, flush=True)
    print(verdict_table(verdicts).markdown())
    print()
    print(advice_table(verdicts, unbalanced_sets([_FOLDER / "leaderboard", _FOLDER / "factorial"])).markdown())
    return 0


if __name__ == "__main__":
    sys.exit(main())
