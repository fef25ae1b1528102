"""Every method under the real trainer, in a run that is interrupted and resumed."""

import contextlib

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from subjects import SUBJECTS, first_of_each_way, make_run_method, method_class

from bmlr._files import json_text
from bmlr.config import TrainerOptions
from bmlr.training import train
from toy import Toy

OPTIONS = TrainerOptions(epochs=2, batch_size=8, accelerator="cpu", devices=1, progress=False)


class Stop(Exception):
    pass


def stopping_in_the_second_epoch(subject):
    """The method, raising Stop at the second step of its second epoch; its name and state stay the same."""
    method = make_run_method(subject)
    compute_losses, seen = method.compute_losses, []

    def stop(model, batch):
        if method.epoch == 1:
            seen.append(batch)
        if len(seen) > 1:
            raise Stop
        return compute_losses(model, batch)

    method.compute_losses = stop
    return method


@pytest.mark.parametrize("subject", first_of_each_way(SUBJECTS))
def test_an_interrupted_run_ends_as_if_it_had_not_been(tmp_path, subject):
    def run(folder, method, **options):
        return train(Toy(24), method, trainer=OPTIONS, run=tmp_path / folder, **options)

    whole = run("whole", make_run_method(subject))
    with pytest.raises(Stop) if method_class(subject).trains else contextlib.nullcontext():
        run("cut", stopping_in_the_second_epoch(subject))
    resumed = run("cut", make_run_method(subject), resume=True)
    for name in ("best", "last"):
        first, second = (load_file(result.directory / f"{name}.safetensors") for result in (whole, resumed))
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first), name
    metrics = [pd.read_csv(result.directory / "metrics.csv").drop(columns="seconds") for result in (whole, resumed)]
    pd.testing.assert_frame_equal(*metrics, check_exact=True)
    for key in ("test", "validation", "best_epoch", "data_passes"):
        assert json_text(whole.content[key]) == json_text(resumed.content[key])  # NaN is equal to NaN
