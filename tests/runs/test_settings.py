import json

import pytest

from bmlr.runs import find_runs, group_runs
from bmlr.runs.settings import data_settings
from fabric import make_run


def groups(folder):
    return {label: len(records) for label, records in group_runs(find_runs([folder])).items()}


def test_an_unfinished_run_belongs_to_the_method_it_was_begun_for(tmp_path):
    make_run(tmp_path / "a", seed=0)
    (make_run(tmp_path / "b", seed=1) / "result.json").unlink()
    (make_run(tmp_path / "c", seed=2, class_path="bmlr.methods.BMLR") / "result.json").unlink()
    assert groups(tmp_path) == {"Joint": 2, "BMLR": 1}


def test_runs_of_two_versions_of_the_package_are_two_groups(tmp_path):
    make_run(tmp_path / "a", seed=0)
    make_run(tmp_path / "b", seed=0, result={"versions": {"bmlr": "9.0", "torch": "2.0"}})
    (make_run(tmp_path / "c", seed=1) / "result.json").unlink()
    assert groups(tmp_path) == {"Joint:bmlr=0.1.0": 2, "Joint:bmlr=9.0": 1}


def test_what_an_unfinished_run_cannot_tell_yet_is_not_in_its_label(tmp_path):
    make_run(tmp_path / "a", "BMLR", result={"data_content": "0123456789"})
    (make_run(tmp_path / "b", "BMLR", method_args={"beta": 0.9}) / "result.json").unlink()
    assert groups(tmp_path) == {"BMLR": 1, "BMLR:beta=0.9": 1}


def test_epochs_stand_behind_the_label(tmp_path):
    make_run(tmp_path / "a", epochs=3)
    make_run(tmp_path / "b", epochs=5)
    assert groups(tmp_path) == {"Joint@3": 1, "Joint@5": 1}


def test_methods_come_in_the_order_of_the_registry_and_others_last(tmp_path):
    for name in ("mine.Odd", "bmlr.methods.OGMGE", "bmlr.methods.Joint"):
        make_run(tmp_path / name, class_path=name)
    assert list(groups(tmp_path)) == ["Joint", "OGMGE", "mine.Odd"]


def test_locations_of_files_are_no_settings(tmp_path):
    make_run(tmp_path / "a", data_args={"root": "/here", "cache": "/c"})
    make_run(tmp_path / "b", data_args={"root": "/there"})
    first, second = find_runs([tmp_path])
    assert data_settings(first) == data_settings(second)
    make_run(tmp_path / "c", data_args={"noise": 2.0})
    assert groups(tmp_path) == {"Joint": 2, "Joint:data.init_args.noise=2.0": 1}


def test_a_folder_is_searched_four_levels_down_and_each_run_counted_once(tmp_path):
    run = make_run(tmp_path / "1" / "2" / "3" / "run")
    make_run(tmp_path / "1" / "2" / "3" / "4" / "run", seed=1)
    records = find_runs([tmp_path, tmp_path / "1", run])
    assert run in [record.directory for record in records if record.state == "finished"]
    assert len({record.directory.resolve() for record in records}) == len(records)
    assert not any(record.config.get("seed") == 1 for record in find_runs([tmp_path]))


def test_a_failure_that_is_damaged_itself_is_a_failure(tmp_path):
    run = make_run(tmp_path / "a")
    (run / "result.json").unlink()
    (run / "failed.json").write_text('{"error": "')
    (record,) = find_runs([tmp_path])
    assert (record.state, record.details) == ("failed", '{"error": "')
    (run / "failed.json").write_text(json.dumps({"error": "E: broken", "log": ["a", "b"]}))
    (record,) = find_runs([tmp_path])
    assert (record.reason, record.details) == ("It failed: E: broken", "a\nb")


def test_unreadable_runs_and_folders_without_a_run_are_in_no_group(tmp_path):
    run = make_run(tmp_path / "a")
    (tmp_path / "empty").mkdir()
    assert groups(tmp_path) == {"Joint": 1}
    (run / "result.json").write_text("{}")
    with pytest.raises(ValueError, match=r"result.json does not fit its checksum"):
        groups(tmp_path)
