"""What is kept of a complete data set: a small file, from which all tables are made without its runs."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bmlr._files import atomic_write_text, json_text
from bmlr.benchmark import Comparison, compare_runs
from bmlr.benchmark._comparison import MethodSummary
from bmlr.benchmark.statistics import Difference, Estimate, difference_of, estimate
from bmlr.diagnosis import measure_run_robustness
from bmlr.runs import RunRecord

if TYPE_CHECKING:
    from leaderboard import Campaign, DataSet

LR = "optimizer.lr"  # searched of every row
MISSING = "missing.json"  # in the directory of a run: what its test score loses without each modality
_DIGITS = 5
_BASE = Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True)
class Kept:
    """A complete data set.

    Attributes:
        name: Its name.
        content: Content of its file.
        comparison: The comparison of its rows.
    """

    name: str
    content: Mapping[str, Any]
    comparison: Comparison

    @property
    def entry(self) -> Mapping[str, Any]:
        """Its entry in the file of the campaign."""
        entry: Mapping[str, Any] = self.content["entry"]
        return entry

    @property
    def ranked(self) -> bool:
        """Whether it counts in the mean ranks."""
        return bool(self.entry.get("ranked", True)) and not self.content["levels"]

    def differences(self, to: str) -> dict[str, Difference]:
        """Differences of the rows to the baseline, or to a row of the file's ``against``, by label."""
        if to == self.comparison.baseline:
            return {method.label: method.difference for method in self.comparison.methods if method.difference}
        rows = self.content["rows"].items()
        return {label: _read_difference(row["against"][to]) for label, row in rows if to in row["against"]}

    def lost(self, label: str) -> dict[str, Estimate]:
        """What the multimodal test score of a row loses without each modality; of no runs where not measured."""
        lost = self.content["rows"][label]["lost"]
        return {name: estimate(lost.get(name, ())) for name in self.comparison.modalities}


def keep(campaign: Campaign, data_set: DataSet, folder: Path) -> Path:
    """Write the file of a complete data set.

    Everything that needs runs, such as intervals from their predictions, is measured here.
    """
    records = campaign.records(data_set)
    comparison = compare_runs(
        [record for runs in records.values() for record in runs], baseline=campaign.content["baseline"], force=True
    )
    tuned = campaign.tuned_values(data_set)
    results = [run.result for runs in records.values() for run in runs if run.result is not None]
    content = {
        "set": data_set.name,
        "entry": dict(data_set.entry),
        "levels": dict(data_set.levels),
        "seeds": campaign.seeds,
        "tuning": {key: value for key, value in campaign.tuning_of(data_set).items() if key != "spaces"},
        "command": campaign.command(data_set),
        "commit": _commit(),
        "versions": results[0]["versions"],
        "comparison": _fields(comparison),
        "rows": {
            summary.label: {
                **_row(summary, records[summary.label], tuned[summary.label], campaign, comparison),
                "against": _against(summary.label, records, campaign),
            }
            for summary in comparison.methods
        },
    }
    path = folder / f"{data_set.name}.json"
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write_text(path, _one_line_each(content))
    return path


def read_kept(path: Path) -> Kept:
    """Read the file of a data set."""
    content = json.loads(path.read_text(encoding="utf-8"))
    methods = tuple(_summary(label, row, content) for label, row in content["rows"].items())
    fields: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in content["comparison"].items()
    }
    return Kept(content["set"], content, Comparison(**fields, methods=methods))


def read_folder(folder: Path, order: Sequence[str]) -> list[Kept]:
    """Read the files of a folder, in the order of the names; sets that have none are left out."""
    return [read_kept(folder / f"{name}.json") for name in order if (folder / f"{name}.json").is_file()]


def _fields(comparison: Comparison) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(comparison) if field.name != "methods"]
    return {name: getattr(comparison, name) for name in names}


def _row(
    summary: MethodSummary,
    runs: Sequence[RunRecord],
    tuned: Mapping[str, Any],
    campaign: Campaign,
    comparison: Comparison,
) -> dict[str, Any]:
    ended = [run for run in runs if run.result is not None]
    results = [run.finished_result for run in ended]
    with_lost = campaign.content.get("lost", True)
    lost = [_lost_of_run(run.directory, comparison.modalities) for run in ended] if with_lost else []
    metrics = [comparison.metric, *campaign.content.get("metrics", [])]
    return {
        "tuned": tuned,
        "seeds": summary.seeds,
        "failed": summary.failed,
        "unfinished": summary.unfinished,
        "epochs": summary.epochs,
        "fused": {name: _numbers(result["test"][name] for result in results) for name in metrics},
        "unimodal": {
            u: _numbers(result["test"][f"unimodal_{comparison.metric}"].get(u) for result in results)
            for u in comparison.modalities
        },
        "ratio": {pair: _numbers(result["test"]["ratio"].get(pair) for result in results) for pair in comparison.pairs},
        "validation": _numbers(result["validation"][result["monitor"]] for result in results),
        "lost": {u: _numbers(of_run[u] for of_run in lost) for u in comparison.modalities if lost},
        "data_passes": _numbers(result["data_passes"] for result in results),
        "seconds": _numbers(result["seconds"] for result in results),
        "difference": _difference(summary.difference),
        "over": {name: _difference(difference) for name, difference in summary.over.items()},
    }


def _against(label: str, records: Mapping[str, Sequence[RunRecord]], campaign: Campaign) -> dict[str, Any]:
    """Differences of a row to the rows of the file's ``against``, which need not be shown in the tables of one set."""
    others = [other for other in campaign.content.get("against", []) if other != label]
    found = {other: difference_of(records[label], records[other]) for other in others}
    return {other: _difference(difference) for other, difference in found.items() if difference}


def _read_difference(values: Mapping[str, Any]) -> Difference:
    return Difference(**{**values, "seeds": tuple(values["seeds"])})


def _summary(label: str, row: Mapping[str, Any], content: Mapping[str, Any]) -> MethodSummary:
    metric, none = content["comparison"]["metric"], Estimate(math.nan, None, 0)
    unimodal = {name: estimate(values) for name, values in row["unimodal"].items()}
    differences = {name: _read_difference(of) for name, of in row["over"].items()}
    own = row["difference"]
    return MethodSummary(
        label=label,
        seeds=tuple(row["seeds"]),
        failed=row["failed"],
        unfinished=row["unfinished"],
        fused=estimate(row["fused"][metric]),
        unimodal=unimodal,
        metrics={name: estimate(values) for name, values in row["fused"].items()},
        unimodal_metrics={metric: unimodal},
        ratio={name: estimate(values) for name, values in row["ratio"].items()},
        last_epoch=none,
        best_on_test=none,
        difference=None if own is None else _read_difference(own),
        over=differences,
        epochs=row["epochs"],
        data_passes=estimate(row["data_passes"]),
        minutes=estimate(seconds / 60 for seconds in row["seconds"]),
    )


def _difference(difference: Difference | None) -> dict[str, Any] | None:
    return None if difference is None else {k: _number(v) for k, v in dataclasses.asdict(difference).items()}


def _numbers(values: Iterable[float | None]) -> list[float | None]:
    return [_number(value) for value in values]


def _number(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return None if math.isnan(value) else round(value, _DIGITS)


def _lost_of_run(directory: Path, modalities: Sequence[str]) -> dict[str, float]:
    path = directory / MISSING
    if not path.is_file():
        robustness = measure_run_robustness(directory, {name: [1.0] for name in modalities})
        lost = {name: robustness.sweeps[f"missing {name}"][0][1].lost.value for name in modalities}
        atomic_write_text(path, json_text(lost) + "\n")
    return dict(json.loads(path.read_text()))


def _commit() -> str:
    """The last commit that changed the package; ``unknown`` outside a repository."""
    command = ["git", "-C", str(_BASE), "log", "-1", "--format=%h", "--", "src"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    return found.stdout.strip() or "unknown"


def _one_line_each(content: Mapping[str, Any]) -> str:
    """JSON with a line per entry and per row, so that a change of one row changes one line."""
    lines = [f"{json.dumps(key)}: {json_text(value, indent=None)}" for key, value in content.items() if key != "rows"]
    rows = [f"{json.dumps(label)}: {json_text(row, indent=None)}" for label, row in content["rows"].items()]
    return "{\n" + ",\n".join([*lines, '"rows": {\n' + ",\n".join(rows) + "\n}"]) + "\n}\n"
