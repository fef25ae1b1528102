"""Damaged and repeated runs, seen by the commands a person types."""

import re
import shutil

import pytest

from bmlr.cli import main
from bmlr.config import TrainerOptions
from bmlr.methods import Joint
from bmlr.runs import find_runs, group_runs
from bmlr.training import train
from toy import Toy


def trained(folder, seed=0, **trainer):
    options = TrainerOptions(epochs=1, accelerator="cpu", devices=1, progress=False, **trainer)
    return train(Toy(), Joint(), trainer=options, seed=seed, runs=folder).directory


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    trained(folder, 0)
    trained(folder, 1)
    return folder


@pytest.fixture
def damaged(two_runs, tmp_path):
    """Two runs, to change the first of."""
    return sorted(shutil.copytree(two_runs, tmp_path / "runs").iterdir())[0]


def edit(path, pattern, replacement):
    text = path.read_text(encoding="utf-8")
    changed = re.sub(pattern, replacement, text, count=1)
    assert changed != text
    path.write_text(changed, encoding="utf-8")


def report(folder, capsys):
    page = folder.parent / "page.html"
    assert main(["report", str(folder), "--out", str(page)]) == 0
    return page.read_text(encoding="utf-8"), capsys.readouterr()


def assert_refused_everywhere(directory, reason, capsys, *, evaluate=True):
    """Compare stops with the reason, report leaves the run out with it, evaluate stops with it."""
    folder = directory.parent
    assert main(["compare", "--runs", str(folder)]) == 2
    assert reason in capsys.readouterr().err
    page, printed = report(folder, capsys)
    assert f"left out, unreadable: {directory}" in printed.err
    assert reason in printed.err
    assert "runs: 1, not finished: 0, left out: 1" in printed.out
    assert reason in page
    if evaluate:
        assert main(["evaluate", str(directory)]) == 2
        assert reason in capsys.readouterr().err


def test_an_edited_accuracy_is_published_by_no_command(damaged, capsys):
    edit(damaged / "result.json", r'"accuracy": [0-9.]+', '"accuracy": 0.9912')
    assert_refused_everywhere(damaged, "result.json does not fit its checksum", capsys, evaluate=False)
    page, _ = report(damaged.parent, capsys)
    assert "99.1" not in page


def test_an_edited_configuration_is_accepted_by_no_command(damaged, capsys):
    edit(damaged / "config.yaml", r"lr: [0-9.]+", "lr: 0.5")
    assert_refused_everywhere(damaged, "config.yaml does not fit its checksum", capsys)


def test_no_command_takes_aliases(damaged, capsys):
    edit(damaged / "config.yaml", r"^.*\n", "")  # without its seal it counts as changed on purpose
    edit(damaged / "config.yaml", r"epochs: 1", "epochs: &n 1\n  accumulate_grad_batches: *n")
    assert_refused_everywhere(damaged, "aliases are not taken", capsys)


def test_a_result_of_another_run_is_refused(damaged, capsys):
    other = next(path for path in damaged.parent.iterdir() if path != damaged)
    shutil.copy(other / "result.json", damaged)
    assert_refused_everywhere(damaged, "are of different runs", capsys, evaluate=False)


def test_options_without_effect_on_the_result_make_no_second_method(tmp_path, capsys):
    folder = tmp_path / "runs"
    trained(folder, 0)
    trained(folder, 1, checkpoint_every=1)
    trained(folder, 2, gradients=True)
    assert {label: len(records) for label, records in group_runs(find_runs([folder])).items()} == {"Joint": 3}
    assert main(["compare", "--runs", str(folder)]) == 0
    rows = re.findall(r"^\| Joint.*", capsys.readouterr().out, re.MULTILINE)
    assert len(rows) == 1
    assert "**" not in rows[0]  # the only method is not the best
    page, printed = report(folder, capsys)
    assert "methods: 1, runs: 3" in printed.out
    assert 'class="number best"' not in page


def test_other_settings_make_a_second_method_by_one_name_in_both(tmp_path, capsys):
    folder = tmp_path / "runs"
    trained(folder, 0)
    trained(folder, 0, batch_size=8)
    assert main(["compare", "--runs", str(folder)]) == 0
    assert "Joint:trainer.batch_size=8" in capsys.readouterr().out
    page, _ = report(folder, capsys)
    assert "Joint:trainer.batch_size=8" in page


def test_a_run_of_another_version_is_named_as_such(damaged, capsys):
    from bmlr.config import read_config_entries
    from bmlr.config._file import sealed_yaml

    entries = read_config_entries(damaged / "config.yaml")
    entries["trainer"]["retries"] = 3
    (damaged / "config.yaml").write_text(sealed_yaml(entries), encoding="utf-8")
    assert main(["evaluate", str(damaged)]) == 2
    message = capsys.readouterr().err
    assert "Found retries. The file is intact: another version of bmlr wrote it. Make the run again" in message
    assert message.count("\n") == 1


def test_training_does_not_take_the_result_of_another_version_for_its_own(damaged, capsys):
    from bmlr.runs.storage import read_json, write_json

    result = read_json(damaged / "result.json")
    result["versions"]["bmlr"], result["digest"] = "0.0.9", "0" * 64
    write_json(damaged / "result.json", result)
    arguments = ["train", "--config", str(damaged / "config.yaml"), "--run", str(damaged), "--resume"]
    assert main(arguments) == 2
    assert "holds a run of bmlr 0.0.9, and this is" in capsys.readouterr().err
