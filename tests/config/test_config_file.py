import dataclasses

import pytest
import yaml

from bmlr.config import (
    ModelOptions,
    OptimizerOptions,
    RunConfig,
    TrainerOptions,
    load_plain_yaml,
    read_config,
    read_config_entries,
)
from bmlr.config._file import sealed_yaml
from bmlr.methods import BMLR
from toy import Toy


def config(**trainer):
    return RunConfig(Toy(24), BMLR(), ModelOptions(width=2), OptimizerOptions(lr=0.1), TrainerOptions(**trainer), 3)


@pytest.fixture
def path(tmp_path):
    (tmp_path / "config.yaml").write_text(config().as_yaml(), encoding="utf-8")
    return tmp_path / "config.yaml"


def test_a_written_configuration_is_read_as_objects_and_as_plain_data(path):
    assert read_config(path).digest == config().digest
    assert read_config_entries(path) == config().as_dict()


def test_a_changed_line_is_refused_unless_the_seal_is_gone_too(path):
    text = path.read_text(encoding="utf-8").replace("lr: 0.1", "lr: 0.2")
    path.write_text(text, encoding="utf-8")
    for read in (read_config, read_config_entries):
        with pytest.raises(ValueError, match="does not fit its checksum: .* remove its first line if the change was"):
            read(path)
    path.write_text(text.partition("\n")[2], encoding="utf-8")
    assert read_config(path).optimizer.lr == 0.2
    assert read_config_entries(path)["optimizer"]["lr"] == 0.2


def test_a_typo_is_named_before_the_checksum_that_it_spoils(path):
    path.write_text(path.read_text(encoding="utf-8").replace("fusion:", "fusoin:"), encoding="utf-8")
    with pytest.raises(ValueError, match="Found fusoin. Did you mean 'fusion'"):
        read_config(path)


def test_numbers_with_an_exponent_are_numbers_and_names_like_them_stay_names():
    assert load_plain_yaml("[3e-5, 1.e3, -2E+4, 1e, e5]") == [3e-5, 1e3, -2e4, "1e", "e5"]
    assert load_plain_yaml(sealed_yaml({"root": "1e5", "lr": 3e-5})) == {"root": "1e5", "lr": 3e-5}


def test_equal_schedules_and_groups_are_one_configuration():
    path = "torch.optim.lr_scheduler.OneCycleLR"
    written = ["OneCycleLR", path, {"class_path": path}, {"class_path": "OneCycleLR", "init_args": {}}]
    assert len({str(OptimizerOptions(schedule=schedule).schedule) for schedule in written}) == 1
    groups = {"audio": {"lr": 3e-5, "freeze": False}, "text": {}}
    assert OptimizerOptions(groups=groups).groups == {"audio": {"lr": 3e-5}}
    assert OptimizerOptions(groups={}).groups is None
    assert TrainerOptions(modality_dropout={"audio": 0}).modality_dropout == 0.0


def test_aliases_are_refused():
    with pytest.raises(yaml.YAMLError, match="aliases are not taken"):
        load_plain_yaml("a: &x 1\nb: *x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": {"class_path": 3}}, "method should have the entries class_path and init_args"),
        (
            {"data": {"class_path": "toy.Toy", "init_args": [1]}},
            "data should have the entries class_path and init_args",
        ),
        ({"trainer": [1]}, "trainer should be entries by name"),
        ({"seed": True}, "seed should be an integer. Found True"),
        ({"more": 1}, "cut off or not the configuration of a run"),
    ],
)
def test_entries_of_another_form_are_named(path, change, message):
    path.write_text(yaml.safe_dump({**config().as_dict(), **change}), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_config_entries(path)


NO_EFFECT = {
    "progress": False, "num_workers": 2, "gradients": True, "checkpoint_every": 7, "max_nonfinite": 3, "threads": 2,
    "logger": {"class_path": "WandbLogger", "init_args": {"project": "a"}},
}  # fmt: skip


def test_options_without_effect_do_not_change_the_digest_and_all_others_do():
    changes = {
        "epochs": 7, "batch_size": 7, "accelerator": "cpu", "devices": 2, "strategy": "ddp", "num_nodes": 2,
        "precision": "64-true", "accumulate_grad_batches": 2, "gradient_clip_val": 1.0, "compile": True,
        "on_nonfinite": "skip", "modality_dropout": 0.3, "early_stopping": 3, "monitor": "nll", "graph": "auto",
    }  # fmt: skip
    assert {field.name for field in dataclasses.fields(TrainerOptions)} == {*changes, *NO_EFFECT}
    for name, value in NO_EFFECT.items():
        assert config(**{name: value}).digest == config().digest, name
    for name, value in changes.items():
        assert config(**{name: value}).digest != config().digest, name
    assert config(on_nonfinite="skip", max_nonfinite=3).digest != config(on_nonfinite="skip").digest
