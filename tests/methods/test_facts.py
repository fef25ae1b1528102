"""Facts about a method live on its class: nothing elsewhere is keyed by a method's name."""

import ast
import importlib.util
import sys
from pathlib import Path

import pytest
from torch.nn import functional as F  # noqa: N812

import bmlr
from bmlr.diagnosis._judge import choose_methods
from bmlr.methods import Conformance, Losses, Method, MethodInfo, Remedy
from bmlr.reproduction._scales import SCALES, method_at

TESTS = Path(__file__).parents[1]


class Newcomer(Method):
    """A method that no file of the library knows of."""

    info = MethodInfo("A paper", "A venue", "https://example.org", "labels and losses")
    epoch_parameters = ("pause",)
    needs_all_modalities = True
    remedy = Remedy("encoder", "does something new", rank=0)
    conformance = Conformance(
        short={"pause": 1},
        variants={"loud": {"volume": 2.0}},
        not_mean_over_samples="says so",
        not_mean_over_processes="says so",
    )

    def __init__(self, pause: int = 35, volume: float = 1.0) -> None:
        super().__init__()
        self.pause, self.volume = pause, volume

    def losses(self, output, targets):
        return Losses({"fused": self.volume * F.cross_entropy(output.logits, targets)})


@pytest.fixture
def newcomer(monkeypatch):
    monkeypatch.setitem(bmlr.methods._METHODS, "Newcomer", Newcomer)


@pytest.mark.usefixtures("newcomer")
def test_the_registry_knows_a_new_method():
    assert bmlr.methods.available()[-1] == "Newcomer"
    assert bmlr.methods.get("newcomer") is bmlr.methods.get("New-Comer") is Newcomer
    assert bmlr.methods.create("Newcomer", volume=3.0).volume == 3.0


@pytest.mark.usefixtures("newcomer")
def test_a_short_reproduction_scales_its_epochs(monkeypatch):
    assert method_at(SCALES["small"], "Newcomer", 10) == "Newcomer:pause=5"
    assert method_at(SCALES["paper"], "Newcomer", 70) == "Newcomer"
    monkeypatch.setattr(Newcomer, "pass_parameters", ("pause",))
    assert method_at(SCALES["small"], "Newcomer", 10) == "Newcomer:pause=1@10"
    assert method_at(SCALES["paper"], "Newcomer", 70) == "Newcomer@2"


@pytest.mark.usefixtures("newcomer")
def test_a_diagnosis_advises_it():
    assert next(iter(choose_methods(["encoder"], current=None, missing=False).items())) == (
        "Newcomer",
        "does something new",
    )
    assert "Newcomer" not in choose_methods(["encoder"], current="Newcomer", missing=False)
    assert "Newcomer" not in choose_methods(["encoder"], current=None, missing=True)


@pytest.mark.usefixtures("newcomer")
def test_the_conformance_tests_take_it_up(monkeypatch):
    folder = TESTS / "conformance"
    specification = importlib.util.spec_from_file_location("subjects_again", folder / "subjects.py")
    subjects = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, "subjects_again", subjects)
    specification.loader.exec_module(subjects)
    assert {"Newcomer", "Newcomer:loud"} <= set(subjects.SUBJECTS)
    assert ("Newcomer", "gated") in subjects.COMBINATIONS
    assert {"Newcomer", "Newcomer:loud"} <= set(subjects.NOT_MEAN_OVER_SAMPLES)
    assert {"Newcomer", "Newcomer:loud"} <= set(subjects.NOT_MEAN_OVER_PROCESSES)
    assert subjects.make_method("Newcomer").hparams == {"pause": 1, "volume": 1.0}
    assert subjects.make_method("Newcomer:loud").hparams == {"pause": 35, "volume": 2.0}
    subjects.make_loop("Newcomer").run([0])


def keys_of_tables(tree):
    """String constants by which a module looks something up: keys, members of sets, operands of comparisons."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            operands = node.keys
        elif isinstance(node, ast.Set):
            operands = node.elts
        elif isinstance(node, ast.Compare):
            operands = [node.left, *node.comparators]
        else:
            continue
        for operand in operands:
            for constant in ast.walk(operand) if operand is not None else ():
                if isinstance(constant, ast.Constant) and isinstance(constant.value, str):
                    yield constant.value


#: What a module outside of ``methods`` must not contain, as an example.
FORBIDDEN = ('{"AGM": 1}', 'names = {"AGM", "OPM"}', 'if name == "ReconBoost": pass', 'name in ("CML", "LFM")')


def test_no_table_outside_is_keyed_by_a_methods_name():
    package = Path(bmlr.__file__).parent
    # The published numbers of the paper, by the rows of its tables, are not facts about our methods.
    exempt = {package / "reproduction" / "_paper.py"}
    for path in sorted({*package.rglob("*.py")} - exempt - {*(package / "methods").glob("*.py")}):
        keys = set(keys_of_tables(ast.parse(path.read_text(encoding="utf-8"))))
        assert not keys & set(bmlr.methods.available()), path
    for text in FORBIDDEN:
        assert set(keys_of_tables(ast.parse(text))) & set(bmlr.methods.available()), text
