"""How often a step of a run waits for its device."""

import itertools
import math
from traceback import format_stack

import pandas as pd
import pytest
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import bmlr
from bmlr.config import ModelOptions, OptimizerOptions, TrainerOptions
from bmlr.runs import read_metrics, write_metrics
from bmlr.training import train
from host_reads import waits_for_device
from toy import Toy


class Operations(TorchDispatchMode):
    """Counter of the operations that read a value."""

    def __init__(self, found):
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        # The values of targets are read on the CPU only.
        if waits_for_device(operation, arguments) and "in check_targets" not in "".join(format_stack()):
            self.found.append(operation.__name__)
        return operation(*arguments, **(options or {}))


class Calls(TorchFunctionMode):
    """Counter of the calls that copy several values to the host, which no operation of the CPU shows."""

    def __init__(self, found):
        super().__init__()
        self.found = found

    def __torch_function__(self, function, types, arguments=(), options=None):
        name = getattr(function, "__name__", "")
        if name in {"cpu", "numpy"} or (name == "tolist" and arguments[0].dim()):
            self.found.append(name)
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("Joint", {}),
        ("OGMGE", {}),
        ("BMLR", {}),
        ("BMLR", {"accumulate_grad_batches": 2}),
        ("BMLR", {"on_nonfinite": "skip"}),
    ],
    ids=str,
)
def test_a_step_of_a_run_waits_once(method, options, tmp_path, monkeypatch):
    steps, found = [], []
    compute = bmlr.Method.compute_losses

    def marked(self, *arguments):
        steps.append(len(found))
        return compute(self, *arguments)

    monkeypatch.setattr(bmlr.Method, "compute_losses", marked)
    trainer = TrainerOptions(epochs=1, batch_size=8, accelerator="cpu", progress=False, **options)
    with Calls(found), Operations(found):
        train(
            Toy(), bmlr.methods.create(method), ModelOptions(width=4), OptimizerOptions(lr=0.01), trainer, runs=tmp_path
        )
    assert len(steps) > 4
    waits = [found[before:after] for before, after in itertools.pairwise(steps[1:])]
    # The first step also makes what is kept, such as generators.
    assert [names for names in waits if len(names) > 1] == []


def test_the_table_of_epochs_is_that_of_pandas(tmp_path):
    rows = [
        {
            "epoch": 0.0,
            "seconds": 0.1 + 0.2,
            "lr": 1e-5,
            "samples": 64.0,
            "train_loss": 1 / 3,
            "val_accuracy": math.nan,
        },
        {"epoch": 1.0, "seconds": 12345678.9, "lr": 1e22, "samples": 64.0, "train_loss": math.inf, "val_macro_f1": 0.5},
    ]
    write_metrics(tmp_path, rows)
    expected = pd.DataFrame(rows).astype({"epoch": int, "samples": int})
    assert (tmp_path / "metrics.csv").read_text() == expected.to_csv(index=False, lineterminator="\n")
    pd.testing.assert_frame_equal(read_metrics(tmp_path), expected)
