"""Files for continuous integration: their form, what they run, and what they may do."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from check_jsonschema.builtin_schemas import get_builtin_schema
from jsonschema.validators import validator_for

ROOT = Path(__file__).parents[1]
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def read(path):
    """A YAML file; ``on``, which YAML 1.1 takes for true, is put right."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {"on" if key is True else key: value for key, value in content.items()}


def steps(workflow):
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize(
    ("path", "schema"),
    [
        *((path, "vendor.github-workflows") for path in WORKFLOWS),
        (GITHUB / "dependabot.yml", "vendor.dependabot"),
        *((path, "vendor.github-issue-forms") for path in sorted(GITHUB.glob("ISSUE_TEMPLATE/[!c]*.yml"))),
        (GITHUB / "ISSUE_TEMPLATE" / "config.yml", "vendor.github-issue-config"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_files_have_the_form_that_is_read(path, schema):
    form = get_builtin_schema(schema)
    errors = [error.message for error in validator_for(form)(form).iter_errors(read(path))]
    assert errors == []


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_may_do_little_and_runs_what_was_read(path):
    """Actions are pinned to a commit, nothing is written but by the job that publishes, no run is without end."""
    workflow = read(path)
    assert workflow["permissions"] == {"contents": "read"}
    assert "concurrency" in workflow
    for name, job in workflow["jobs"].items():
        assert job["timeout-minutes"] <= 90
        assert job.get("permissions", {}) == ({"id-token": "write"} if name == "publish" else {})
    for step in steps(workflow):
        assert re.fullmatch(r"(actions|pypa)/[\w-]+@[0-9a-f]{40}", step.get("uses", "actions/a@" + 40 * "0"))
        assert step.get("uses", "").startswith("actions/checkout") == ("persist-credentials" in step.get("with", {}))
        assert "github.event" not in step.get("run", "")  # text of strangers in a shell
    assert "secrets." not in path.read_text(encoding="utf-8")


def test_workflows_run_targets_and_tests_that_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for path in WORKFLOWS:
        text = path.read_text(encoding="utf-8")
        assert set(re.findall(r"run: make ([\w-]+)", text)) <= targets, path.name
        for name in re.findall(r"tests/[\w/.]+", text):
            assert (ROOT / name).exists(), name


def test_every_python_that_the_package_names_is_tested():
    classifiers = PROJECT["project"]["classifiers"]
    named = [line.rpartition(" ")[2] for line in classifiers if re.search(r":: 3\.\d+$", line)]
    assert read(GITHUB / "workflows" / "ci.yml")["jobs"]["latest"]["strategy"]["matrix"]["python"] == named
    assert PROJECT["project"]["requires-python"] == f">={named[0]}"


def test_hooks_are_tools_of_the_development():
    hooks = read(ROOT / ".pre-commit-config.yaml")["repos"][0]["hooks"]
    extras = PROJECT["project"]["optional-dependencies"]
    tools = {re.match(r"[\w-]+", line)[0] for line in [*extras["dev"], *extras["release"]]}
    assert {hook["entry"].split()[0] for hook in hooks} <= tools
