import json

import pytest

from bmlr.benchmark import compare_store
from bmlr.config import TrainerOptions
from bmlr.methods import Joint
from bmlr.runs import find_runs, read_run, write_failure
from bmlr.training import train
from toy import Toy


def one_run(folder):
    options = TrainerOptions(epochs=1, accelerator="cpu", devices=1, progress=False)
    return read_run(train(Toy(), Joint(), trainer=options, runs=folder).directory)


def test_states_of_a_run(tmp_path):
    assert read_run(tmp_path / "none").state == "unfinished"
    record = one_run(tmp_path)
    assert record.state == "finished"
    (record.directory / "result.json").unlink()
    assert read_run(record.directory).state == "unfinished"
    write_failure(record.directory, ValueError("broken"))
    assert read_run(record.directory).state == "failed"


def test_a_failure_tells_its_traceback_its_log_and_the_configuration(tmp_path):
    record = one_run(tmp_path)
    (record.directory / "log.txt").write_text("\n".join(map(str, range(100))))
    try:
        raise KeyError("missing")
    except KeyError as error:
        write_failure(record.directory, error)
    content = json.loads((record.directory / "failed.json").read_text())
    assert content["error"] == "KeyError: 'missing'"
    assert "test_records.py" in content["traceback"]
    assert content["log"] == [str(number) for number in range(60, 100)]
    assert content["config"]["method"]["class_path"] == "bmlr.methods.Joint"
    write_failure(record.directory, "killed")
    assert json.loads((record.directory / "failed.json").read_text())["error"] == "killed"


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("result.json", lambda text: text[: len(text) // 2], r"result.json is not a JSON file.*Remove it"),
        ("result.json", lambda text: text.replace('"seed": 0', '"seed": 1'), r"result.json does not fit its checksum"),
        ("config.yaml", lambda text: text[: text.index("trainer:")], r"config.yaml is cut off"),
        ("config.yaml", lambda text: "a: [", r"config.yaml is not a YAML file"),
        ("config.yaml", lambda text: None, r"holds a result.json but no config.yaml"),
    ],
)
def test_damaged_files_are_named(tmp_path, name, change, message):
    path = one_run(tmp_path).directory / name
    changed = change(path.read_text())
    path.unlink() if changed is None else path.write_text(changed)
    with pytest.raises(ValueError, match=message):
        read_run(path.parent)


def test_empty_and_missing_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no run .*nowhere: no such folder"):
        compare_store([tmp_path / "nowhere"])
    with pytest.raises(FileNotFoundError, match=r"There is no run in .*: no folder in it holds a config.yaml"):
        compare_store([tmp_path])
    record = one_run(tmp_path)
    assert [found.directory for found in find_runs([tmp_path])] == [record.directory]
    assert len(find_runs([tmp_path, record.directory])) == 1  # the same run, named twice
