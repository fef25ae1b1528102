import json

import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from bmlr.benchmark import Search, tune
from bmlr.benchmark._space import Range, grid_points, parse_range, parse_spaces, with_values
from bmlr.benchmark._study import _NoLock
from bmlr.benchmark.specification import parse_method
from bmlr.config import read_config
from bmlr.runs import DirectoryLock, RunError
from bmlr.training import train
from inline import CPU, SMALL, InlineEngine, quiet
from toy import Toy


def search(tmp_path, methods, spaces, how, **options):
    engine = options.pop("engine", None) or InlineEngine()
    return tune(
        Toy(), methods, spaces, how, trainer=CPU, model=SMALL, runs=tmp_path / "runs", out=tmp_path / "out",
        engine=engine, say=quiet, **options,
    )  # fmt: skip


@given(st.floats(1e-3, 1), st.floats(2, 100), st.sampled_from(["", ":log"]))
@settings(deadline=None, max_examples=30)
def test_ranges_are_read(low, high, scale):
    one = parse_range(f"alpha={low!r}:{high!r}{scale}")
    assert (one.name, one.low, one.high, one.scale) == ("alpha", low, high, scale[1:] or "linear")


def test_whole_numbers_and_choices_are_read():
    assert parse_range("t1=1:4:int") == Range("t1", 1, 4, "int")
    assert parse_range("mode=ba|bb").choices == ("ba", "bb")
    assert parse_range("alpha=2").choices == ("2",)
    assert parse_range("optimizer.lr=1e-5:1e-3:log").name == "optimizer.lr"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("alpha", "should be written NAME=LOW:HIGH"),
        ("=1:2", "should be written NAME=LOW:HIGH"),
        ("alpha=1:x", "numbers around its colon"),
        ("alpha=2:1", "should have low < high"),
        ("alpha=0:1:log", "should have 0 < low < high"),
        ("alpha=0.5:2:int", "should have whole numbers"),
        ("alpha=0:1:wide", "end in its upper limit"),
        ("alpha=1:2:log:3", "end in its upper limit"),
        ("alpha=nan:2", "should have low < high"),
        ("alpha=1|1", "different values"),
        ("alpha=1|", "different values"),
    ],
)
def test_bad_ranges_are_explained(text, message):
    with pytest.raises(ValueError, match=message):
        parse_range(text)


def test_spaces_find_their_methods():
    methods = [parse_method(text) for text in ("BMLR", "VanillaReshape:beta=0.1", "Joint")]
    spaces = parse_spaces(["alpha=0.5|1", "Joint:optimizer.lr=0.1|0.2", "VanillaReshape:beta=0.1:alpha=2|3"], methods)
    assert {name: list(space) for name, space in spaces.items()} == {
        "BMLR": ["alpha"], "VanillaReshape:beta=0.1": ["alpha"], "Joint": ["optimizer.lr"],
    }  # fmt: skip
    assert spaces["VanillaReshape:beta=0.1"]["alpha"].choices == ("2", "3")
    assert with_values(methods[1], {"alpha": 2.5, "optimizer.lr": 1}).text == "VanillaReshape:beta=0.1,alpha=2.5"
    assert with_values(parse_method("Joint@7"), {}).text == "Joint@7"


@pytest.mark.parametrize(
    ("methods", "texts", "message"),
    [
        (["BMLR", "Joint"], ["alpha=1|2"], "'Joint' should have a space, so that all get the same number of trials"),
        (["BMLR"], ["alpha=1|2", "epsilon=0:1"], "No method takes the space of epsilon"),
        (["BMLR"], ["BMLR:gamma=0:1"], "has no parameter 'gamma'. It has alpha, beta"),
        (["BMLR:alpha=1"], ["alpha=1|2"], "fixes alpha, which is to be searched"),
        (["BMLR"], ["BMRL:alpha=0:1"], "Did you mean 'BMLR'"),
        (["BMLR"], ["BMLR:alpha=1|2", "BMLR:beta=0:1"], "one space of its own"),
        (["BMLR"], ["alpha=1|2,alpha=3|4"], "every parameter once"),
        (["BMLR"], ["BMLR:optimizer.name=a|b"], "lr, weight_decay and momentum can be searched"),
    ],
)
def test_bad_spaces_are_explained(methods, texts, message):
    with pytest.raises(ValueError, match=message):
        parse_spaces(texts, [parse_method(method) for method in methods])


def test_a_grid_goes_through_all_combinations_and_draws_the_surface(tmp_path):
    engine = InlineEngine()
    tuned = search(tmp_path, ["BMLR"], ["alpha=0.5|2,beta=0|0.5"], Search(sampler="grid"), engine=engine)
    points = grid_points({"alpha": Range("alpha", choices=("0.5", "2")), "beta": Range("beta", choices=("0", "0.5"))})
    assert tuned.trials[["alpha", "beta"]].to_dict("records") == points
    assert len(engine.made) == 4
    values = [
        json.loads((tmp_path / "runs" / name / "result.json").read_text())["validation"]["accuracy"]
        for name in engine.made
    ]
    assert tuned.trials["validation_accuracy"].tolist() == values
    assert tuned.best["BMLR"] == points[values.index(max(values))]  # the first of the best
    surface = pd.read_csv(tmp_path / "out" / "surface-BMLR.csv")
    assert surface["accuracy"].tolist() == values
    assert {path.name for path in tuned.files} >= {
        "surface-BMLR.png",
        "surface-BMLR.csv",
        "best-BMLR.yaml",
        "trials.csv",
    }
    assert "test" not in " ".join(pd.read_csv(tmp_path / "out" / "trials.csv").columns)


def test_the_best_configuration_trains_the_best_run(tmp_path):
    tuned = search(tmp_path, ["BMLR", "Joint"], ["alpha=0.1:10:log,beta=0:1", "Joint:optimizer.lr=0.001:0.1:log"],
                   Search(trials=2))  # fmt: skip
    assert tuned.trials.groupby("method").size().to_dict() == {"BMLR": 2, "Joint": 2}
    config = read_config(tmp_path / "out" / "best-BMLR.yaml")
    assert config.method.alpha == tuned.best["BMLR"]["alpha"]
    again = train(
        config.data, config.method, config.model, config.optimizer, config.trainer, seed=config.seed,
        runs=tmp_path / "runs",
    )  # fmt: skip
    assert again.reused
    best = yaml.safe_load((tmp_path / "out" / "best-Joint.yaml").read_text())
    assert best["optimizer"]["lr"] == tuned.best["Joint"]["optimizer.lr"]
    table = tuned.table.markdown()
    assert "hence no estimate" in table
    assert "| 2 |" in table


class Stopping(InlineEngine):
    """Stops the search before the given run, as a killed process would."""

    def __init__(self, after):
        super().__init__()
        self.after = after

    def execute(self, tasks):
        for task, code in super().execute(tasks):
            if len(self.made) > self.after:
                raise KeyboardInterrupt
            yield task, code


@pytest.mark.parametrize("parallel", [1, 2])
def test_a_search_that_was_stopped_ends_like_one_that_was_not(tmp_path, parallel):
    spaces, how = ["alpha=0.1:10:log,beta=0:1"], Search(trials=5, parallel=parallel, seed=3)
    whole = search(tmp_path / "whole", ["BMLR"], spaces, how)
    journal = tmp_path / "cut" / "out" / "trials.journal"
    for after in (1, 0, 1):
        with pytest.raises(KeyboardInterrupt):
            search(tmp_path / "cut", ["BMLR"], spaces, how, engine=Stopping(after))
        with journal.open("ab") as file:
            file.write(b'{"op_code": 5, "wor')  # cut within a line
    cut = search(tmp_path / "cut", ["BMLR"], spaces, how)
    drop = "directories"
    pd.testing.assert_frame_equal(whole.trials.drop(columns=drop), cut.trials.drop(columns=drop))
    engine = InlineEngine()
    search(tmp_path / "cut", ["BMLR"], spaces, how, engine=engine)
    assert not engine.made
    longer = search(tmp_path / "cut", ["BMLR"], spaces, Search(trials=6, parallel=parallel, seed=3), engine=engine)
    assert len(engine.made) == 1
    pd.testing.assert_frame_equal(longer.trials[:5], cut.trials)


def test_a_trial_cut_while_it_was_chosen_is_chosen_again(tmp_path):
    import optuna

    spaces, how = ["alpha=0.1:10:log,beta=0:1"], Search(trials=2)
    whole = search(tmp_path / "whole", ["BMLR"], spaces, how)
    search(tmp_path / "cut", ["BMLR"], spaces, Search(trials=1))
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(tmp_path / "cut" / "out" / "trials.journal"), lock_obj=_NoLock())
    )
    study = optuna.load_study(study_name="BMLR", storage=storage)
    study.ask().suggest_float("alpha", 0.1, 10, log=True)  # and not beta
    cut = search(tmp_path / "cut", ["BMLR"], spaces, how)
    pd.testing.assert_frame_equal(whole.trials.drop(columns="directories"), cut.trials.drop(columns="directories"))


def test_failed_trials_count_and_are_said(tmp_path):
    data = Toy(poison=3)
    with pytest.raises(ValueError, match="No trial of 'BMLR' finished; see failed.json in"):
        tune(data, ["BMLR"], ["alpha=1|2"], Search(sampler="grid"), trainer=CPU, model=SMALL, runs=tmp_path / "runs",
             out=tmp_path / "out", engine=InlineEngine(), say=quiet)  # fmt: skip


def test_bad_searches_are_explained(tmp_path):
    for methods, spaces, how, message in (
        (["BMLR", "LFM"], ["BMLR:alpha=1|2", "LFM:optimizer.lr=1|2|3"], Search(sampler="grid"),
         "The grids have 2 for BMLR, 3 for LFM"),
        (["BMLR"], ["alpha=1|2"], Search(sampler="grid", trials=3), "the size of the grid, 2. Found 3"),
        (["BMLR"], ["alpha=0.1:10"], Search(sampler="grid"), "A grid needs the values of 'alpha' themselves"),
        (["BMLR"], ["beta=0:2"], Search(trials=1), r"`beta` should lie in \[0, 1\]"),
        (["BMLR", "BMLR"], ["beta=0:1"], Search(trials=1), "`methods` should name each once"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            search(tmp_path, methods, spaces, how)
    with pytest.raises(ValueError, match="`sampler` should be one of tpe, grid"):
        Search(sampler="random")
    assert not (tmp_path / "runs").exists()


def test_another_search_in_the_same_folder_is_refused(tmp_path):
    search(tmp_path, ["BMLR"], ["beta=0:1"], Search(trials=1))
    with pytest.raises(ValueError, match="holds a search of 'BMLR' that differs in space"):
        search(tmp_path, ["BMLR"], ["beta=0:0.5"], Search(trials=1))
    with pytest.raises(ValueError, match="differs in seeds"):
        search(tmp_path, ["BMLR"], ["beta=0:1"], Search(trials=1), seeds=(0, 1))
    lock = DirectoryLock(tmp_path / "out")
    assert lock.acquire()
    with pytest.raises(RunError, match="is in use by process"):
        search(tmp_path, ["BMLR"], ["beta=0:1"], Search(trials=1))
