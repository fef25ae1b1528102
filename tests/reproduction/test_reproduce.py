import dataclasses
import json
import re
import shutil

import pandas as pd
import pytest

import bmlr.methods
from axes import legend_texts, record_figures, title_of
from bmlr.benchmark import Search, tune
from bmlr.benchmark.contents import FigureFile, read_contents
from bmlr.benchmark.grid import make_jobs, run_grid
from bmlr.benchmark.specification import parse_data, parse_method
from bmlr.config import ModelOptions, OptimizerOptions, TrainerOptions
from bmlr.reproduction import Settings, reproduce
from bmlr.reproduction import _figures as figures
from bmlr.reproduction import _reproduce as module
from bmlr.reproduction import _results as results
from bmlr.reproduction import _scales as scales
from bmlr.reproduction._paper import EXPERIMENTS, FIG4_CLASSES, GRID
from bmlr.runs import RunRecord
from inline import CPU, InlineEngine, quiet
from toy import Toy

TINY = {"data": ["toy.Toy"], "seeds": [0], "trainer": CPU, "model": ModelOptions(width=2)}


def made(tmp_path, names, engine=None, **changes):
    settings = Settings(**{**TINY, **changes})
    return reproduce(
        names, settings, runs=tmp_path / "runs", out=tmp_path / "out", engine=engine or InlineEngine(), say=quiet
    )


def test_the_experiments_are_complete():
    for experiment in EXPERIMENTS.values():
        labels = {row.label for row in experiment.rows}
        for row in experiment.rows:
            assert bmlr.methods.get(row.method)
            assert row.baseline in labels | {""}
            ModelOptions(fusion=row.fusion)
        if experiment.is_table:
            rows = [row.label for row in experiment.rows if row.label != "Ensemble"]  # which is not in the paper
            expected = {(label, name, m) for label in rows for name in experiment.data for m in experiment.measures}
            assert set(experiment.numbers) == expected
    assert set(FIG4_CLASSES) == set(EXPERIMENTS["fig4"].data)
    assert set(GRID) == set(scales.SCALES)


def test_the_numbers_are_the_papers():
    # Differences the text of the paper states itself.
    table2, table4 = EXPERIMENTS["table2"].numbers, EXPERIMENTS["table4"].numbers
    for name, gain in (("crema-d", 8.81), ("kinetics-sounds", 3.76), ("ave", 5.52)):
        assert table2["Concat†", name, "accuracy"] - table2["Concat", name, "accuracy"] == pytest.approx(gain)
    for name, loss in (("crema-d", 11.93), ("kinetics-sounds", 7.61)):
        assert table4["UniformBaseline", name, "accuracy"] - table4["UniReshaping", name, "accuracy"] == pytest.approx(
            loss
        )
    table3 = EXPERIMENTS["table3"].numbers
    for label, name in {key[:2] for key in table3}:
        ratio = table3[label, name, "first"] / table3[label, name, "second"]
        assert ratio == pytest.approx(table3[label, name, "ratio"], abs=0.006)
    for one in ("table2", "table5"):
        numbers = EXPERIMENTS[one].numbers
        label = "Concat†" if one == "table2" else "BMLR"
        for name in EXPERIMENTS["table1"].data:
            assert numbers[label, name, "accuracy"] == EXPERIMENTS["table1"].numbers["BMLR", name, "accuracy"]


def test_the_papers_settings_are_taken():
    data = parse_data("digits")
    settings = Settings(scale="paper", seeds=(0, 1, 2))
    jobs = module._jobs(EXPERIMENTS["table1"].rows[-1], data, settings)
    config = jobs[0].config
    assert (config.trainer.epochs, config.trainer.batch_size, config.optimizer.lr) == (70, 64, 5e-5)
    assert (config.optimizer.name, config.optimizer.betas) == ("adam", (0.9, 0.999))
    assert config.method.hparams == bmlr.methods.create("BMLR").hparams
    assert [job.config.seed for job in jobs] == [0, 1, 2]
    boost = next(row for row in EXPERIMENTS["table1"].rows if row.method == "ReconBoost")
    assert module._jobs(boost, data, settings)[0].config.trainer.epochs == 9  # of 8 passes each
    film = EXPERIMENTS["table2"].rows[5]
    assert module._jobs(film, data, settings)[0].config.model.fusion == "film"
    own = dataclasses.replace(settings, trainer=TrainerOptions(epochs=2), optimizer=OptimizerOptions(lr=0.1))
    config = module._jobs(film, data, own)[0].config
    assert (config.trainer.epochs, config.trainer.batch_size, config.optimizer.lr) == (2, 64, 0.1)


def test_at_small_scale_methods_do_all_they_do_in_few_epochs():
    settings = Settings()
    rows = {row.label: row for row in EXPERIMENTS["table1"].rows}
    data = parse_data("digits")
    methods = {label: module._jobs(row, data, settings)[0].config.method for label, row in rows.items()}
    # A seventh of 51, 20, 6, 20 and 10 epochs; the last epoch is counted from zero.
    assert methods["OGMGE"].hparams["last_epoch"] == 6
    assert methods["AGM"].hparams["last_epoch"] == 2
    assert methods["OPM"].hparams["warmup"] == 1
    assert methods["DiagnosingRelearning"].hparams["reinit_epoch"] == 3
    assert methods["Remix"].hparams["warmup"] == 1
    twenty = dataclasses.replace(settings, trainer=TrainerOptions(epochs=20))
    assert module._jobs(rows["OGMGE"], data, twenty)[0].config.method.hparams["last_epoch"] == 14
    paper = module._jobs(rows["OGMGE"], data, Settings(scale="paper"))[0].config.method
    assert paper.hparams == bmlr.methods.create("OGMGE").hparams
    # Every method of the table acts within the epochs it gets.
    scaled = {row.method for row in rows.values() if bmlr.methods.get(row.method).epoch_parameters}
    assert scaled == {"OGMGE", "AGM", "OPM", "DiagnosingRelearning", "Remix"}


@pytest.mark.parametrize(
    ("data", "given", "stem"),
    [("digits", None, None), ("crema-d:root=nowhere", None, "imagenet"), ("crema-d:root=nowhere", "small", "small")],
)
def test_at_small_scale_large_inputs_get_the_cheap_stem(data, given, stem):
    settings = Settings(model=ModelOptions(stem=given))
    config = module._jobs(EXPERIMENTS["table1"].rows[0], parse_data(data), settings)[0].config
    assert (config.model.stem, config.optimizer.lr, config.model.width) == (stem, 1e-3, 4)
    paper = module._jobs(EXPERIMENTS["table1"].rows[0], parse_data(data), Settings(scale="paper"))[0].config
    assert paper.model.stem is None


def test_settings_that_differ_between_data_sets_are_stated_for_each(tmp_path, monkeypatch):
    class Wide(Toy):
        name = "wide"
        defaults = dataclasses.replace(Toy.defaults, width=3)

    monkeypatch.setattr(scales, "_make_data", lambda text, _: Wide() if text == "wide" else Toy())
    monkeypatch.setitem(scales.SCALES, "small", dataclasses.replace(scales.SCALES["small"], width=None))
    jobs = {
        (row.label, data.name): [RunRecord("", tmp_path, job.config.as_dict(), None)]
        for row in EXPERIMENTS["table4"].rows
        for data in (Toy(), Wide())
        for job in module._jobs(row, data, Settings(seeds=[0]))
    }
    text = results._settings_text(figures.ExperimentRuns(EXPERIMENTS["table4"], {"toy": Toy(), "wide": Wide()}, jobs))
    assert "toy 10 epochs, batch 64, adam with learning rate 0.001, width " in text
    assert "; wide 10 epochs, batch 64, adam with learning rate 0.001, width 3" in text


def test_a_table_shows_ours_and_the_papers(tmp_path, monkeypatch):
    engine = InlineEngine()
    saved = record_figures(monkeypatch)
    result = made(tmp_path, ["table4"], engine)
    assert len(engine.made) == 3
    (title,) = {title_of(figure) for figure in saved}
    assert title == f"toy: {EXPERIMENTS['table4'].title}, test accuracy in the epoch selected on validation"
    rows = pd.read_csv(tmp_path / "out" / "table4.csv")
    assert len(rows) == 3 * 2  # each row beside both of the paper's data sets
    assert rows["difference"].isna().all()  # other data: only gains can be compared
    bmlr_row = rows[(rows["row"] == "BMLR") & (rows["paper_data"] == "crema-d")].iloc[0]
    assert (bmlr_row["paper"], bmlr_row["paper_gain"]) == (79.69, 8.81)
    baseline = next(record for record in result.records if record.label == "UniformBaseline")
    ours = {record.label: 100 * record.result["test"]["accuracy"] for record in result.records}
    assert bmlr_row["ours_gain"] == pytest.approx(ours["BMLR"] - ours["UniformBaseline"])
    assert bmlr_row["ours_mean"] == pytest.approx(ours["BMLR"])
    text = result.tables["table4"].markdown()
    for piece in ("79.69 (+8.8)", "58.95 (-11.9)", "Majority rate: toy 35.0 %.", "Scale small: 1 epoch, batch 64",
                 "The paper has no numbers on toy: its own are of other data and models. Only sign and order",
                 "UniformBaseline is called Baseline in the paper"):  # fmt: skip
        assert piece in text
    assert (tmp_path / "out" / "table4-toy.png").is_file()
    # Another table that shares the runs makes what is missing only; the same again makes nothing.
    made(tmp_path, ["table4", "table5"], engine)
    assert len(engine.made) == 3 + 4
    made(tmp_path, ["table4", "table5"], engine)
    assert len(engine.made) == 3 + 4
    assert (tmp_path / "runs" / baseline.directory.name).is_dir()


def test_differences_to_the_paper_on_its_own_data(tmp_path, monkeypatch):
    monkeypatch.setattr(Toy, "name", "crema-d")
    monkeypatch.setattr(scales, "_make_data", lambda *_: Toy())
    result = made(tmp_path, ["table4", "table3"], scale="paper", data=["crema-d"])
    rows = pd.read_csv(tmp_path / "out" / "table4.csv").set_index("row")
    assert rows["paper"].to_dict() == {"UniformBaseline": 70.88, "UniReshaping": 58.95, "BMLR": 79.69}
    assert (rows["difference"] - (rows["ours_mean"] - rows["paper"])).abs().max() < 1e-9
    heads = result.tables["table3"].heads
    assert "crema-d audio (%): difference" in heads
    assert "crema-d audio/image: paper" in heads


def test_a_failing_row_is_shown_and_the_others_stand(tmp_path, monkeypatch):
    original = module._jobs

    def poisoned(row, data, settings):
        return original(row, type(data)(poison=3) if row.label == "BMLR" else data, settings)

    monkeypatch.setattr(module, "_jobs", poisoned)
    result = made(tmp_path, ["table4", "fig6"])
    cells = {row[0].text: row[1].text for row in result.tables["table4"].rows}
    assert cells["BMLR"] == "failed"
    assert cells["UniformBaseline"] != "failed"
    assert any("1 run failed, left out of the means" in note for note in result.tables["table4"].notes)
    assert any("fig6 on toy was not drawn: no run of BMLR finished" in note for note in result.notes)
    assert pd.read_csv(tmp_path / "out" / "table4.csv").set_index("row").loc["BMLR", "failed"].tolist() == [1, 1]


def test_the_figures_are_drawn_from_the_runs(tmp_path, monkeypatch):
    saved = record_figures(monkeypatch)
    result = made(tmp_path, ["fig1", "fig3", "fig4", "fig6"], seeds=[0, 1])
    names = {path.name for path in result.files}
    for name in ("fig1-toy-features-BMLR", "fig1-toy-features-UniformBaseline", "fig3-toy-share", "fig4-toy-classes",
                 "fig6-toy-accuracy", "fig6-toy-ratio"):  # fmt: skip
        assert {f"{name}.png", f"{name}.pdf"} <= names
    titles = {title_of(figure) for figure in saved}
    assert all(title.startswith("toy: ") for title in titles)
    assert any(re.fullmatch(r"toy: features of .* by t-SNE, BMLR, seed 0, epoch \d of \d", title) for title in titles)
    assert any("hatched: the true class" in title for title in titles)
    drawn_or_said = {name for name in names if "simplex" in name} or [
        note for note in result.notes if "simplex" in note
    ]
    assert drawn_or_said
    labels = pd.read_csv(tmp_path / "out" / "fig3-toy-labels.csv")
    assert set(labels["modality"]) == {"audio", "image", "uniform, ε = 0.1"}
    assert labels[["zero", "one", "two"]].sum(axis=1).to_numpy() == pytest.approx(1, abs=1e-5)
    uniform = labels[labels["modality"] == "uniform, ε = 0.1"]
    assert uniform[["zero", "one", "two"]].max(axis=1).unique() == pytest.approx([0.9 + 0.1 / 3], abs=1e-5)
    assert len(pd.read_csv(tmp_path / "out" / "runs.csv")) == 4
    contents = read_contents(tmp_path / "out")
    pictures = {item.file for item in contents.items if isinstance(item, FigureFile)}
    assert pictures == {path.resolve() for path in result.files if path.suffix == ".png"}
    assert all("on toy" in item.caption for item in contents.items)
    assert list(contents.notes) == list(result.notes)


def test_figure_5_is_a_grid_of_runs(tmp_path, monkeypatch):
    monkeypatch.setitem(GRID, "small", "alpha=0.5|1,beta=0.1|0.5")
    saved = record_figures(monkeypatch)
    result = made(tmp_path, ["fig5"])
    assert {title_of(figure) for figure in saved} == {"toy: validation accuracy of BMLR"}
    assert legend_texts(saved[0])[0].startswith("best value, ")
    surface = pd.read_csv(tmp_path / "out" / "fig5-toy" / "surface-BMLR.csv")
    assert surface[["alpha", "beta"]].to_numpy().tolist() == [[0.5, 0.1], [0.5, 0.5], [1.0, 0.1], [1.0, 0.5]]
    assert tmp_path / "out" / "fig5-toy" / "surface-BMLR.png" in result.files
    (picture,) = read_contents(tmp_path / "out").items
    assert picture.file == tmp_path / "out" / "fig5-toy" / "surface-BMLR.png"
    table, surface = read_contents(tmp_path / "out" / "fig5-toy").items
    assert table.heads[1] == "best parameters"
    assert surface.file == picture.file


def test_parameters_that_were_searched_are_taken(tmp_path):
    tune(parse_data("toy.Toy"), ["BMLR", "AGM"], ["BMLR:alpha=0.25,beta=0.5", "AGM:alpha=0.75"],
         Search(sampler="grid"), trainer=CPU, model=ModelOptions(width=2), runs=tmp_path / "runs",
         out=tmp_path / "tuned", engine=InlineEngine(), say=quiet)  # fmt: skip
    settings = Settings(**TINY, tuned=[tmp_path / "tuned"])
    data = parse_data("toy.Toy")
    rows = {row.label: row for row in (*EXPERIMENTS["table1"].rows, *EXPERIMENTS["table5"].rows)}
    given = {label: module._jobs(rows[label], data, settings)[0].config.method.hparams for label in rows}
    assert given["BMLR"] == given["VanillaReshape"] == given["OnlyReshape"] == {"alpha": 0.25, "beta": 0.5}
    assert given["AGM"]["alpha"] == 0.75
    assert given["LFM"] == bmlr.methods.create("LFM").hparams
    assert given["OnlyTPO"] == {}
    digits = module._jobs(rows["BMLR"], parse_data("digits"), settings)[0].config.method
    assert digits.hparams == bmlr.methods.create("BMLR").hparams  # searched on other data
    shutil.rmtree(tmp_path / "tuned")
    (tmp_path / "tuned").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no best-….yaml in .*tuned"):
        module._jobs(rows["BMLR"], data, settings)


@pytest.mark.parametrize(
    ("names", "changes", "message"),
    [
        (["tabel1"], {}, "Found 'tabel1'. Did you mean 'table1'"),
        (["fig2"], {}, "should be among table1, table2"),
        ([], {}, "at least one of table1"),
        (["table6"], {"scale": "paper", "data": ["digits"]}, "table6 is about mosi, mosei at the paper's scale"),
        (["table1"], {"data": ["toy.Toy", "toy.Toy:samples=30"]}, "name each data set once. Found toy twice"),
        (["table1"], {"scale": "huge"}, "`scale` should be one of paper, small"),
    ],
)
def test_bad_requests_are_explained(tmp_path, names, changes, message):
    with pytest.raises(ValueError, match=message):
        made(tmp_path, names, **changes)


def test_missing_data_name_the_command_that_makes_them(tmp_path):
    engine = InlineEngine()
    with pytest.raises(FileNotFoundError) as caught:
        made(tmp_path, ["table1", "table6"], engine, scale="paper", data=(), root=tmp_path / "prepared")
    message = str(caught.value)
    for name in ("crema-d", "kinetics-sounds", "ave", "mosi", "mosei"):
        assert f"bmlr prepare {name} SOURCE {tmp_path / 'prepared'}" in message
    assert not engine.made


def test_runs_of_a_reproduction_are_those_of_a_comparison(tmp_path):
    result = made(tmp_path, ["table4"])
    engine = InlineEngine()
    options = {
        "trainer": dataclasses.replace(CPU, batch_size=64), "model": ModelOptions(width=2),
        "optimizer": OptimizerOptions(lr=1e-3),
    }  # fmt: skip
    run_grid(
        make_jobs(parse_data("toy.Toy"), [parse_method("BMLR")], [0], **options), tmp_path / "runs", engine, say=quiet
    )
    assert not engine.made
    digests = {json.loads((record.directory / "result.json").read_text())["digest"] for record in result.records}
    assert len(digests) == 3
