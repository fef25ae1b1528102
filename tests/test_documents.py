"""Commands, examples and links of the documents work."""

import difflib
import importlib
import re
import runpy
import shlex
import warnings
from pathlib import Path

import pytest
import torch

import bmlr
from bmlr.commands.options import Command
from bmlr.commands.parsing import read_arguments

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def blocks(path, language):
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(encoding="utf-8"), flags=re.DOTALL)


def pair(size=5):
    return {"audio": torch.randn(size, 4), "video": torch.randn(size, 6)}, torch.arange(size)


def test_the_loops_of_the_page_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {
        "audio_encoder": torch.nn.Linear(4, 8),
        "video_encoder": torch.nn.Linear(6, 8),
        "train_loader": [pair(), pair()],
        "val_loader": [pair()],
        "spectrograms": torch.randn(5, 4),
        "frames": torch.randn(5, 6),
    }
    for example in blocks(ROOT / "docs" / "your-loop.md", "python"):
        exec(example, names)  # noqa: S102  (the project's own text)
    assert names["classes"].shape == (5,)


def test_the_examples_of_the_page_on_python_run():
    """Exactly as printed: nothing is defined but by the blocks before."""
    names = {}
    examples = blocks(ROOT / "docs" / "python.md", "python")
    assert len(examples) == 3
    for example in examples:
        exec(example, names)  # noqa: S102  (the project's own text)
    assert all(p.grad is not None for p in names["model"].parameters())
    assert names["prediction"].logits.shape == (8, 6)
    for label in names["labels"].values():
        torch.testing.assert_close(label.sum(1), torch.ones(8))


def test_the_readme_is_short_and_the_lists_are_complete():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 80
    outside_code = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    assert not [line for line in outside_code.splitlines() if len(line) > 125 and not line.startswith(("|", "!"))]
    methods, data = ((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("methods/README.md", "data.md"))
    assert [name for name in bmlr.methods.available() if f"`{name}`" not in methods] == []
    assert [name for name in bmlr.data.available() if f"`{name}`" not in data] == []


def test_the_difference_of_the_readme_is_that_of_two_loops_that_run():
    shown = blocks(ROOT / "README.md", "diff")[0]
    assert shown in blocks(ROOT / "docs" / "integrations.md", "diff")[0]


@pytest.mark.parametrize("page", ["README.md", "docs/start.md"])
def test_the_command_lines_for_newcomers_are_understood(page):
    lines = re.findall(r"^bmlr (.*)$", "\n".join(blocks(ROOT / page, "sh")), flags=re.MULTILINE)
    assert len(lines) >= 2
    for line in lines:
        name, *words = shlex.split(line)
        read_arguments(Command(name, importlib.import_module(f"bmlr.commands.{name}").execute), words)


def test_the_command_lines_of_the_page_on_training_are_understood():
    for line in "\n".join(blocks(ROOT / "docs" / "training.md", "sh")).splitlines():
        _, name, *words = shlex.split(line)
        assert name == "train"
        read_arguments(Command(name, importlib.import_module(f"bmlr.commands.{name}").execute), words)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document):
    prose = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)  # code may index and call
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", prose):
        if not target.startswith(("http:", "https:", "mailto:")):
            assert (document.parent / target).exists(), target


def test_every_equation_of_bmlr_leads_to_code_and_test():
    page = ROOT / "docs/methods/bmlr.md"
    rows = re.findall(
        r"^\| (\d+), .* \| \[`(\w+)`\]\((.*)\) \| \[`(\w+)`\]\((.*)\) \|$", page.read_text(), re.MULTILINE
    )
    assert [int(number) for number, *_ in rows] == [3, 4, 5, 7, 8, 10, 10]
    for _, *links in rows:
        for name, target in zip(links[::2], links[1::2], strict=True):
            assert re.search(rf"^\s*(def|class) {name}\b", (page.parent / target).read_text(), re.MULTILINE), name


def test_the_differences_of_the_page_are_those_of_two_loops_that_run(tmp_path, monkeypatch, capsys):
    """Every pair in examples/loops, with and without this library."""
    folder = ROOT / "examples" / "loops"
    shown = blocks(ROOT / "docs" / "integrations.md", "diff")
    monkeypatch.chdir(tmp_path)  # where trainers leave their checkpoints
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    names = ("plain", "with_accelerate", "with_lightning", "with_hf")
    assert len(shown) == len(names)
    for name, text in zip(names, shown, strict=True):
        paths = [folder / f"{name}{suffix}.py" for suffix in ("", "_bmlr")]
        first, second = (path.read_text(encoding="utf-8").splitlines()[1:] for path in paths)
        lines = list(difflib.unified_diff(first, second, n=1, lineterm=""))[2:]
        assert text.splitlines() == [line for line in lines if not line.startswith("@@")], name
        for path in paths:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # advice of the trainers
                runpy.run_path(str(path))
            assert float(re.findall(r"accuracy ([0-9.]+)", capsys.readouterr().out)[-1]) > 0.9, path
    assert len(list(folder.glob("*.py"))) == 2 * len(names) + 1


@pytest.mark.parametrize("example", ["plain_pytorch.py", "lightning_trainer.py"])
def test_examples_run(example, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice of the trainer
        runpy.run_path(str(ROOT / "examples" / example), run_name="__main__")
    printed = capsys.readouterr().out
    accuracies = re.findall(r"(?:multimodal |accuracy=)([0-9.]+)", printed)
    assert accuracies
    assert all(float(accuracy) > 0.5 for accuracy in accuracies), printed


@pytest.mark.parametrize(
    ("example", "verdicts"),
    [
        ("blind_policy.py", ["blind to camera", "uses state", "uses camera", "looks at state without gain"]),
        ("blind_language_model.py", ["uses image", "blind to text", "blind to image", "uses text"]),
        ("blind_detector.py", ["uses camera", "blind to radar"]),
    ],
)
def test_examples_of_blind_modalities_say_what_is_looked_at(example, verdicts, capsys):
    runpy.run_path(str(ROOT / "examples" / example), run_name="__main__")
    printed = capsys.readouterr().out
    found = re.findall(
        r"The model (blind to \w+|uses \w+|looks at \w+ without gain)", printed.replace("is blind", "blind")
    )
    assert found == verdicts


def test_the_change_log_and_citation_name_this_version():
    version = bmlr.__version__
    assert version in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"version: {version}" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
