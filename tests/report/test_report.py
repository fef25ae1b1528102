import base64
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bmlr.benchmark.contents import Contents, FigureFile, read_contents, write_contents
from bmlr.cli import main
from bmlr.config import TrainerOptions
from bmlr.methods import BMLR, Joint
from bmlr.report import write_report
from bmlr.report._sections import make_sections
from bmlr.report._tables import run_table
from bmlr.runs import find_runs
from bmlr.runs.layout import FAILURE
from bmlr.tables import Cell, Table
from bmlr.training import train
from fabric import make_run
from html_page import Page
from toy import Toy

# ---- tables and figures of a folder of results --------------------------------------------------------------------


def results_folder(folder, title="Results", text="71.0 ± 0.4"):
    from matplotlib.figure import Figure

    folder.mkdir()
    Figure(figsize=(1, 1)).savefig(folder / "bars.png")
    table = Table(
        ["method", "ours"], [[Cell("Joint"), Cell(text, "best")], [Cell("BMLR"), Cell("–")]], ["A note."], "T"
    )
    write_contents(
        Contents(title, [table, FigureFile(folder / "bars.png", "The bars.")], ["fig9 was not drawn."]), folder
    )
    return folder


def test_tables_and_figures_of_results_are_shown(tmp_path):
    make_run(tmp_path / "a")
    folder = results_folder(tmp_path / "results", HOSTILE, f"71.0 {HOSTILE}")
    assert read_contents(folder).items[0].rows[0][0] == Cell("Joint")
    page = Page(write_report([tmp_path / "a"], tmp_path / "page.html", results=[folder]).path)
    assert "fig9 was not drawn." in page.text
    assert "T. A note." in page.text
    assert ("th", {"scope": "row", "data-value": "joint"}) in page.tags
    assert ("td", {"class": "number", "data-value": "71.0"}) in page.tags
    assert ("td", {"class": "number"}) in page.tags  # a dash is sorted last
    images = [attributes for tag, attributes in page.tags if tag == "img" and attributes["alt"] == "The bars."]
    assert len(images) == 1
    assert ("figure", {"class": "picture fits"}) in page.tags  # a square one need not be scrolled on a phone
    assert base64.b64decode(images[0]["src"].partition(",")[2]) == (folder / "bars.png").read_bytes()
    assert " ".join(HOSTILE.split()) in page.text
    assert not any("onerror" in attributes for _, attributes in page.tags)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[: len(text) // 2], "is cut off or not what it should be"),
        (lambda text: text.replace("bars.png", "../secret.png"), "a figure should be a PNG in the folder"),
        (lambda text: text.replace("bars.png", "bars.svg"), "a figure should be a PNG in the folder"),
        (lambda text: text.replace('"ours"', "7"), "a text was expected, found 7"),
        (lambda text: text.replace('"ours"', '"ours", "more"'), "not as many cells as there are heads"),
        (lambda text: text.replace('"best"', '"worst"'), "a mark should be best, second or empty"),
        (lambda text: "[" * 100_000, "is cut off or not what it should be"),
    ],
)
def test_damaged_results_folders_are_named(tmp_path, change, message):
    make_run(tmp_path / "a")
    (tmp_path / "secret.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    path = results_folder(tmp_path / "results") / "contents.json"
    path.write_text(change(path.read_text()))
    with pytest.raises(ValueError, match=message):
        write_report([tmp_path / "a"], tmp_path / "page.html", results=[tmp_path / "results"])


def test_missing_results_are_named(tmp_path, capsys):
    make_run(tmp_path / "a")
    folder = results_folder(tmp_path / "results")
    (folder / "bars.png").write_bytes(b"GIF89a")
    with pytest.raises(ValueError, match=r"bars.png is not a PNG file"):
        write_report([tmp_path / "a"], tmp_path / "page.html", results=[folder])
    (folder / "bars.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"There is no figure .*bars.png, which .*contents.json names"):
        write_report([tmp_path / "a"], tmp_path / "page.html", results=[folder])
    out = tmp_path / "page.html"
    assert main(["report", str(tmp_path / "a"), "--results", str(tmp_path / "none"), "--out", str(out)]) == 2
    assert "it should be the folder that bmlr reproduce or tune wrote into" in capsys.readouterr().err
    results_folder(tmp_path / "good")
    assert main(["report", str(tmp_path / "a"), "--results", str(tmp_path / "good"), "--out", str(out)]) == 0
    assert f"--results {tmp_path / 'good'} --out" in Page(out).text


# ---- sections -----------------------------------------------------------------------------------------------------


def test_other_data_and_protocols_are_other_sections(tmp_path):
    make_run(tmp_path / "a", "Joint")
    make_run(tmp_path / "b", "Joint", protocol="paper")
    make_run(tmp_path / "c", "BMLR", data_args={"noise": 2.0})
    make_run(tmp_path / "d", "BMLR", data_args={"noise": 1.0})
    report = write_report([tmp_path], tmp_path / "r.html")
    headings = ["digits, clean protocol", "digits, paper protocol", "digits, clean protocol (noise=2.0)",
                "digits, clean protocol (noise=1.0)"]  # fmt: skip
    assert list(report.sections) == headings
    page = Page(report.path)
    assert "Numbers of different sections cannot be compared." in page.text
    assert sum(attributes.get("class") == "sortable methods" for _, attributes in page.tags) == 4


def test_location_of_the_files_does_not_split_sections(tmp_path):
    make_run(tmp_path / "a", "Joint", data_args={"root": "/one"})
    make_run(tmp_path / "b", "BMLR", data_args={"root": "/two"})
    assert write_report([tmp_path], tmp_path / "r.html").sections == ("digits, clean protocol",)


def test_a_repeated_run_counts_once(tmp_path):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b")
    report = write_report([tmp_path, tmp_path / "a"], tmp_path / "r.html")
    (repeated,) = report.excluded
    assert report.runs == 1
    assert (repeated.state, repeated.directory.name) == ("repeated", "b")
    assert f"{tmp_path / 'a'}, which is counted" in repeated.reason


# ---- what is left out ---------------------------------------------------------------------------------------------


def test_unusable_runs_are_listed_with_the_reason(tmp_path):
    make_run(tmp_path / "good")
    cut = make_run(tmp_path / "cut", "BMLR")
    text = (cut / "result.json").read_text()
    (cut / "result.json").write_text(text[: len(text) // 2])
    unfinished = make_run(tmp_path / "unfinished", "OPM")
    (unfinished / "result.json").unlink()
    failed = make_run(tmp_path / "failed", "AGM")
    (failed / "result.json").unlink()
    failure = {
        "error": "NonFiniteLossError: the loss is <NaN>",
        "traceback": "Traceback <most recent call last>",
        "log": [],
    }
    (failed / FAILURE).write_text(json.dumps(failure))
    killed = make_run(tmp_path / "killed", "OGMGE")
    (killed / "result.json").unlink()
    (killed / FAILURE).write_text('{"error": "')
    (tmp_path / "empty").mkdir()
    bare = make_run(tmp_path / "bare", "DGL")
    (bare / "config.yaml").unlink()
    swapped = make_run(tmp_path / "swapped", "MBSD")
    (swapped / "config.yaml").write_text((tmp_path / "good" / "config.yaml").read_text())
    wild = make_run(tmp_path / "wild", "CML", fused=1.2)
    lacking = make_run(tmp_path / "lacking", "LFM", result={"majority_rate": None})
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "readme.md").write_text("no run")

    report = write_report([tmp_path], tmp_path / "r.html")
    excluded = {run.directory.name: (run.state, run.reason) for run in report.excluded}
    assert report.runs == 1
    assert set(excluded) == {"cut", "unfinished", "failed", "empty", "bare", "swapped", "wild", "lacking", "killed"}
    assert excluded["cut"][0] == "unreadable"
    assert "result.json is not a JSON file" in excluded["cut"][1]
    assert excluded["unfinished"][0] == "stopped"
    assert "after 3 of 3 epochs" in excluded["unfinished"][1]
    assert "--resume" in excluded["unfinished"][1]
    assert excluded["failed"] == ("failed", "It failed: NonFiniteLossError: the loss is <NaN>")
    assert excluded["killed"] == ("failed", "It failed: the reason is not known, failed.json is cut off or damaged.")
    assert excluded["empty"] == ("no run", "The folder is empty.")
    assert excluded["bare"][0] == "unreadable"
    assert "holds a result.json but no config.yaml" in excluded["bare"][1]
    assert "are of different runs" in excluded["swapped"][1]
    assert "accuracy in [0, 1]. Found accuracy = 1.2" in excluded["wild"][1]
    assert "no usable entry constant_score" in excluded["lacking"][1]
    page = Page(report.path)
    for run in (cut, unfinished, failed, bare, swapped, wild, lacking):
        assert str(run) in page.text
    assert "the loss is <NaN>" in page.text
    assert "Traceback <most recent call last>" in page.text


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "not a JSON file"),
        ("[]", "should hold a JSON object"),
        ('{"data": 3}', "does not fit its checksum"),
        ("\xff\xfe", "not a JSON file"),
    ],
)
def test_damaged_results(tmp_path, content, reason):
    run = make_run(tmp_path / "a")
    (run / "result.json").write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match=rf"There is no run to report\. .*{reason}"):
        write_report([run], tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


@pytest.mark.parametrize("text", ["- 1", "a: [", "data: 1\nmethod: 2\nseed: 3", "data: {}\nmethod: {}\nseed: 0"])
def test_damaged_configurations(tmp_path, text):
    run = make_run(tmp_path / "a")
    (run / "config.yaml").write_text(text)
    (record,) = find_runs([run])
    assert record.state == "unreadable"
    assert "config.yaml" in record.reason


def test_a_configuration_makes_no_objects(tmp_path):
    run = make_run(tmp_path / "a")
    (run / "config.yaml").write_text(f"!!python/object/apply:os.mkdir ['{tmp_path / 'made'}']")
    assert "not a YAML file" in find_runs([run])[0].reason
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("damage", ["missing", "short", "text", "empty"])
def test_without_metrics_a_run_counts_but_has_no_curves(tmp_path, damage):
    make_run(tmp_path / "good")
    path = make_run(tmp_path / "bad", "BMLR") / "metrics.csv"
    lines = path.read_text().splitlines()
    if damage == "missing":
        path.unlink()
    else:
        path.write_text(
            {"short": "\n".join(lines[:2]), "text": f"{lines[0]}\n" + "x," * 7 + "x\n", "empty": ""}[damage]
        )
    report = write_report([tmp_path], tmp_path / "r.html")
    assert (report.runs, report.excluded) == (2, ())
    page = Page(report.path)
    assert f"No curves of {tmp_path / 'bad'}" in page.text
    methods = json.loads(page.scripts[0])["sections"][0]["methods"]
    assert [bool(method["measures"]) for method in methods] == [True, False]


def test_missing_paths(tmp_path):
    with pytest.raises(ValueError, match="at least one run"):
        write_report([], tmp_path / "r.html")
    with pytest.raises(FileNotFoundError, match=r"There is no run .*missing: no such folder\."):
        write_report([tmp_path / "missing"], tmp_path / "r.html")
    with pytest.raises(ValueError, match=r"no run to report\. .*: The folder is empty\."):
        write_report([tmp_path], tmp_path / "r.html")
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(ValueError, match=r"Neither it nor a folder in it holds a config\.yaml"):
        write_report([tmp_path], tmp_path / "r.html")
    with pytest.raises(ValueError, match="It is a file; a run is a folder"):
        write_report([tmp_path / "a.txt"], tmp_path / "r.html")
    make_run(tmp_path / "run")
    for out in ("r.txt", "r"):
        with pytest.raises(ValueError, match=r"`out` should be a file named \.html"):
            write_report([tmp_path], tmp_path / out)


# ---- the page -----------------------------------------------------------------------------------------------------

HOSTILE = "</script><script>pwned=1</script><img src=x onerror=pwned=1>\"'&$x$ {{7*7}} \u2028"


def test_names_are_text_and_never_markup(tmp_path):
    folder = make_run(
        tmp_path / "<b onclick='pwned=1'>&",
        class_path=f"mine.{HOSTILE}",
        method_args={HOSTILE: HOSTILE},
        modalities=(HOSTILE, "image"),
        data=HOSTILE,
        protocol=HOSTILE,
        result={"versions": {HOSTILE: HOSTILE}, "method": f"mine.{HOSTILE}".rpartition(".")[2]},
    )
    failed = make_run(tmp_path / "failed", "AGM")
    (failed / "result.json").unlink()
    (failed / FAILURE).write_text(json.dumps({"error": HOSTILE, "log": [HOSTILE]}), encoding="utf-8")
    page = Page(write_report([tmp_path], tmp_path / "r.html", title=HOSTILE, command=HOSTILE).path)
    plain = Page(write_report([make_run(tmp_path / "plain" / "run")], tmp_path / "plain.html").path)
    assert page.count("script") == plain.count("script") == 3
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert {attributes["src"].partition(";")[0] for tag, attributes in page.tags if tag == "img"} == {
        "data:image/svg+xml"
    }
    assert "49" not in page.text.split("Written by bmlr")[0]
    assert HOSTILE.replace("\u2028", "").strip() in page.text
    assert str(folder) in page.text
    assert json.loads(page.scripts[0])["sections"][0]["methods"][0]["measures"]["score"][1]["name"] == HOSTILE


@given(st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=30))
@settings(deadline=None, max_examples=60)
def test_text_stays_inside_the_embedded_data(text):
    import jinja2

    from bmlr.report import _page

    content = {
        "title": text, "sections": [], "excluded": [], "runs": 0, "curves": [text], "command": text, "version": "0",
        "created": "now", "results": [], "begun": [], "exports": {},
    }  # fmt: skip
    source = _page._render(content)
    embedded = source.split('id="curves">')[1].split("</script>")[0]
    assert json.loads(embedded) == [text]
    assert str(jinja2.utils.markupsafe.escape(text)) in source


def test_page_is_one_file(tmp_path):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", "BMLR")
    page = Page(write_report([tmp_path], tmp_path / "r.html", command="bmlr report x").path)
    for tag, attributes in page.tags:
        for name in ("src", "href"):
            allowed = ("#", "data:", "a/", "b/") if tag == "a" else ("#", "data:")  # links to the runs' folders
            assert attributes.get(name, "#").startswith(allowed), (tag, attributes)
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 1  # bars; curves are drawn by the script
    assert all(len(image["alt"]) > 40 for image in images)
    assert page.count("caption") == page.count("table") == 2
    assert page.text.count("bmlr train --config") == 2
    assert "fusion: concat" in page.text
    assert "Based on 2 finished runs. Written by" in page.text
    assert "25.0 % of the test split" in page.text


def test_the_same_runs_give_the_same_page(tmp_path):
    make_run(tmp_path / "a" / "x", "BMLR")
    first = write_report([tmp_path / "a"], tmp_path / "1.html").path.read_text(encoding="utf-8")
    second = write_report([tmp_path / "a"], tmp_path / "2.html").path.read_text(encoding="utf-8")
    without_time = [text.partition("Written by bmlr")[::2] for text in (first, second)]
    assert without_time[0][0] == without_time[1][0]
    assert without_time[0][1][40:] == without_time[1][1][40:]


def test_run_table_has_a_row_per_run(tmp_path):
    make_run(tmp_path / "a", seed=1)
    make_run(tmp_path / "b", seed=0)
    runs = find_runs([tmp_path])
    (section,), _ = make_sections(runs)
    table = run_table(section)
    texts = [{head: cell.text for head, cell in zip(table.heads, row, strict=True)} for row in table.rows]
    assert [row["Seed"] for row in texts] == ["0", "1"]
    assert texts[0]["Epoch"] == "2 of 3"
    assert texts[0]["Multimodal (%)"] == "70.0"


def test_runs_of_training_are_read_as_they_are(tmp_path):
    for protocol in ("clean", "paper"):
        for method in (Joint(), BMLR()):
            options = TrainerOptions(accelerator="cpu", devices=1, progress=False, epochs=2)
            train(Toy(protocol=protocol), method, trainer=options, runs=tmp_path / "runs")
    report = write_report([tmp_path / "runs"], tmp_path / "r.html")
    assert sorted(report.sections) == ["toy, clean protocol", "toy, paper protocol"]
    assert (report.runs, report.excluded) == (4, ())
    measures = json.loads(Page(report.path).scripts[0])["sections"][0]["methods"][1]["measures"]
    assert list(measures) == ["score", "ratio", "share"]
    assert [series["name"] for series in measures["score"]] == ["multimodal", "audio", "image"]


# ---- command line -------------------------------------------------------------------------------------------------


def test_command_line(tmp_path, capsys):
    make_run(tmp_path / "a")
    (tmp_path / "b").mkdir()
    out = tmp_path / "page.html"
    assert main(["report", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(out), "--title", "A & B"]) == 0
    printed = capsys.readouterr()
    assert "digits, clean protocol (methods: 1, runs: 1, not finished: 0, left out: 1)" in printed.out
    assert str(out) in printed.out
    assert f"left out, no run: {tmp_path / 'b'}: The folder is empty." in printed.err
    page = Page(out)
    assert "A & B" in page.text
    assert f"bmlr report {tmp_path / 'a'} {tmp_path / 'b'} --out {out} --title 'A & B'" in page.text
    assert main(["report", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
