"""The study of a search in Optuna."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bmlr._checks import check_choice, check_integer
from bmlr.benchmark._space import Range, grid_points
from bmlr.benchmark.specification import MethodSpecification

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial


JOURNAL, TRIALS = "trials.journal", "trials.csv"
_VOID = "void"  # marks a trial that was never run


@dataclasses.dataclass(frozen=True)
class Search:
    """Length, sampler and seed of a search.

    Attributes:
        trials: Trials of every method; None takes the size of the grid, or 20.
        sampler: tpe (Bayesian, seeded) or grid.
        seed: Seed of the sampler.
        parallel: Trials of a method that are chosen before the first of them is known.
        defaults_first: Whether the first trial of a method has its defaults, so that the best is none worse than they.
    """

    trials: int | None = None
    sampler: Literal["tpe", "grid"] = "tpe"
    seed: int = 0
    parallel: int = 1
    defaults_first: bool = False

    def __post_init__(self) -> None:
        check_choice("sampler", self.sampler, ("tpe", "grid"))
        if self.trials is not None:
            check_integer("trials", self.trials, 1)
        check_integer("parallel", self.parallel, 1)
        if self.defaults_first and self.sampler == "grid":
            raise ValueError("Parameter `defaults_first` is for the sampler tpe: a grid has its own order.")


def corners(space: Mapping[str, Range]) -> list[dict[str, Any]]:
    """Values at the ends of all ranges."""
    lows = {name: _end(values, 0) for name, values in space.items()}
    highs = {name: _end(values, -1) for name, values in space.items()}
    middle = [{**lows, name: value} for name, values in space.items() for value in values.choices]
    return [lows, highs, *middle]


def _end(values: Range, position: Literal[0, -1]) -> Any:
    """The first or last value of a range."""
    if values.choices:
        return values.choices[position]
    end = values.high if position else values.low
    return int(end) if values.scale == "int" else end


class _NoLock:
    """Lock without effect.

    The folder is locked already, and Optuna's lock outlives a killed process.
    """

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        return


def open_study(folder: Path, name: str, identity: Mapping[str, Any]) -> Study:
    """The study of a method in a folder, new or continued.

    Raises:
        ValueError: If Optuna is missing, or the folder holds a search of something else.
    """
    import json

    try:
        import optuna
    except ModuleNotFoundError as error:
        raise ValueError('The search needs Optuna. Run: pip install "bmlr[sweep]"') from error
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(logging.WARNING)
    journal = folder / JOURNAL
    _trim(journal)
    storage = JournalStorage(JournalFileBackend(str(journal), lock_obj=_NoLock()))  # type: ignore[arg-type]
    study = optuna.create_study(study_name=name, storage=storage, direction="maximize", load_if_exists=True)
    plain = json.loads(json.dumps(dict(identity)))
    recorded = study.user_attrs.get("identity")
    if recorded is None:
        study.set_user_attr("identity", plain)
    elif recorded != plain:
        different = [key for key in plain if recorded.get(key) != plain[key]]
        raise ValueError(
            f"{folder} holds a search of '{name}' that differs in {', '.join(different)}. Choose another folder."
        )
    return study


def _trim(journal: Path) -> None:
    """Cut off a half-written last line of a killed process."""
    if not journal.is_file():
        return
    content = journal.read_bytes()
    complete_lines = content[: content.rfind(b"\n") + 1]
    if len(complete_lines) < len(content):
        with journal.open("r+b") as file:
            file.truncate(len(complete_lines))


def next_trials(
    studies: Mapping[str, Study],
    methods: Sequence[MethodSpecification],
    ranges: Mapping[str, Mapping[str, Range]],
    search: Search,
    number: int,
    defaults: Mapping[str, Mapping[str, Any]],
) -> list[tuple[MethodSpecification, FrozenTrial]]:
    """The next trials: those under way, or new ones of every method; the first is of its ``defaults``, if any."""
    from optuna.trial import Trial, TrialState

    batch = []
    for method in methods:
        study, space = studies[method.text], ranges[method.text]
        for trial in study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
            if set(trial.params) != set(space):  # the process was killed while the trial was being chosen
                Trial(study, trial._trial_id).set_user_attr(_VOID, True)  # noqa: SLF001
                study.tell(trial.number, state=TrialState.FAIL)
            else:
                batch.append((method, trial))
        counted = len(counted_trials(study))
        under_way = any(running is method for running, _ in batch)
        # Trials are chosen in blocks. One that an interruption has cut is completed before the next is begun.
        end = -(-counted // search.parallel) * search.parallel
        if end == counted and not under_way:
            end += search.parallel
        for index in range(counted, min(end, number)):
            first = defaults.get(method.text) if index == 0 else None
            batch.append((method, _ask(study, space, search, index, first)))
    return batch


def counted_trials(study: Study) -> list[FrozenTrial]:
    """The begun trials of a study, failed ones included."""
    from optuna.trial import TrialState

    trials = study.get_trials(deepcopy=False)
    return [trial for trial in trials if trial.state != TrialState.WAITING and not trial.user_attrs.get(_VOID)]


def _ask(
    study: Study, space: Mapping[str, Range], search: Search, index: int, given: Mapping[str, Any] | None
) -> FrozenTrial:
    """Choose the values of a trial, unless they are given.

    Each has a sampler of its own: what it suggests depends on the trials before it and on its number alone.
    """
    from optuna.samplers import TPESampler
    from optuna.trial import TrialState

    study.sampler = TPESampler(seed=search.seed * 100_003 + index, constant_liar=search.parallel > 1)
    # A point may wait already, from a process that was killed before it asked for the point.
    point = grid_points(space)[index] if search.sampler == "grid" else given
    if point is not None and not study.get_trials(deepcopy=False, states=[TrialState.WAITING]):
        study.enqueue_trial(dict(point))
    trial = study.ask({name: values.distribution() for name, values in space.items()})
    return study.get_trials(deepcopy=False)[trial.number]
