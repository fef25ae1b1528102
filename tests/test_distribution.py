"""What is released: the wheel and the source archive, their metadata, and a clean installation."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
from check_distribution import archive_problems, metadata_problems, wheel_problems
from lowest_versions import lowest_versions

ROOT = Path(__file__).parents[1]


def build(kind, folder):
    """Path of a wheel or a source archive, made without an environment of its own."""
    if kind == "wheel":
        from hatchling.builders.wheel import WheelBuilder as Builder
    else:
        from hatchling.builders.sdist import SdistBuilder as Builder
    (path,) = Builder(str(ROOT)).build(directory=str(folder), versions=["standard"])
    return Path(path)


def test_the_wheel_and_the_archive_hold_what_they_should(tmp_path):
    wheel = build("wheel", tmp_path)
    assert list(wheel_problems(wheel)) == []
    with zipfile.ZipFile(wheel, "a") as opened:
        opened.writestr("tests/test_own.py", "")
    assert list(wheel_problems(wheel)) == [f"{wheel.name} holds tests/test_own.py, which is no file of the package."]
    assert list(archive_problems(build("sdist", tmp_path))) == []


def test_wrong_metadata_are_named():
    problems = list(metadata_problems("Name: bmlr\nVersion: 0\nProject-URL: Home, file:///a\nRequires-Dist: a @ b\n\n"))
    assert "Version is 0" in problems[0]
    assert "No classifier names Python 3.13." in problems
    assert "The extra train is missing." in problems
    assert problems[-2:] == [
        "The address Home, file:///a is not one of https.",
        "a @ b names a place instead of a version.",
    ]


def test_every_dependency_has_one_lower_bound(tmp_path):
    bounds = lowest_versions()
    assert bounds["torch"] == "2.9.1"
    assert {"lightning", "ray", "av", "onnx", "transformers", "timm"} < set(bounds)
    project = tmp_path / "pyproject.toml"
    for lines, sentence in (('["a"]', "a should have one lower bound"), ('["a>=1", "a>=2"]', "a has two lower bounds")):
        project.write_text(f"[project]\ndependencies = {lines}\n[project.optional-dependencies]\ndev = ['b']\n")
        with pytest.raises(ValueError, match=sentence):
            lowest_versions(project)


@pytest.mark.slow
def test_the_wheel_works_where_nothing_else_is(tmp_path):
    """Installed in a new environment, used from another folder."""
    wheel = build("wheel", tmp_path)
    environment = tmp_path / "env"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)  # noqa: S603
    bin_ = environment / ("Scripts" if os.name == "nt" else "bin")
    constraints = ["--constraint", str(ROOT / "constraints.txt")]
    pip = [str(bin_ / "python"), "-m", "pip", "install", "--quiet", *constraints]
    subprocess.run([*pip, "torch"], check=True)  # noqa: S603
    subprocess.run([*pip, f"{wheel}[train]"], check=True)  # noqa: S603
    folder = tmp_path / "elsewhere"
    folder.mkdir()

    def bmlr(*words):
        variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(  # noqa: S603
            [str(bin_ / "bmlr"), *words], cwd=folder, env=variables, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert bmlr("--version").startswith("bmlr ")
    assert "BMLR" in bmlr("methods")
    bmlr("train", "digits", "--method", "BMLR", "--run", "r", "--trainer.epochs", "1", "--trainer.accelerator", "cpu")
    assert "fused" in bmlr("evaluate", "r")
    assert "bmlr" in bmlr("completion", "bash")
