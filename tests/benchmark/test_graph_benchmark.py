"""The benchmark of graphs and compiled encoders says what it cannot measure."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import graph


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "cpu", "--ways", "graph"], "leave `--ways` or `--device cpu` out"),
        ([], "--device cpu measures --trainer.compile"),
    ],
)
def test_what_needs_a_gpu_ends_with_status_2(capsys, monkeypatch, arguments, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert graph.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_compares_compiled_encoders_with_eager_ones_on_the_cpu(capsys, monkeypatch):
    monkeypatch.setattr(torch.nn.Module, "compile", lambda encoder: compiled.extend([encoder]))
    compiled: list[torch.nn.Module] = []
    assert graph.main(["--device", "cpu", "--methods", "BMLR", "--width", "2", "--batch-size", "4", "--batches", "1",
                       "--rounds", "2", "--audio", "8", "8", "--video", "8", "8"]) == 0  # fmt: skip
    row = capsys.readouterr().out.splitlines()[-1].split(" | ")
    assert row[0] == "| BMLR"
    assert float(row[2]) > 0
    assert len(compiled) == 2
