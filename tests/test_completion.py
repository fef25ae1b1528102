"""Completion by the Tab key, as bash does it."""

import shutil
import subprocess

import pytest

import bmlr.data
import bmlr.methods
from bmlr.cli import main
from bmlr.commands import COMMANDS

#: What is typed before the Tab key, and what the shell then offers.
TYPED = {
    "bmlr ": {"help", *COMMANDS},
    "bmlr tr": {"train"},
    "bmlr help pre": {"prepare", "predict"},
    "bmlr train ": set(bmlr.data.available()),
    "bmlr train digits --method ": set(bmlr.methods.available()),
    "bmlr train digits --method BMLR --method.alp": {"--method.alpha"},
    "bmlr train digits --trainer.prec": {"--trainer.precision"},
    "bmlr train digits --trainer.on_nonfinite ": {"stop", "skip"},
    "bmlr train digits --trainer.compile ": {"true", "false"},
    "bmlr compare digits --methods BMLR Joi": {"Joint"},
    "bmlr evaluate ": {"a run"},
    "bmlr evaluate runs --split ": {"train", "val", "test"},
    "bmlr evaluate runs --spl": {"--split"},
    "bmlr completion ": {"bash", "zsh", "fish", "tcsh"},
}


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_the_shell_offers_commands_options_and_names(tmp_path, capsys):
    (tmp_path / "a run").mkdir()
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "a run" / "bmlr"
    script.write_text(capsys.readouterr().out)
    lines = [f"source {script.name}; cd .."]
    for typed in TYPED:
        words = typed + '""' * typed.endswith(" ")
        lines += [
            f"COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _shtab_bmlr 2>/dev/null",
            '(IFS=,; echo "${COMPREPLY[*]}")',
        ]
    done = subprocess.run(  # noqa: S603
        ["bash", "-c", "\n".join(lines)],  # noqa: S607
        cwd=script.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    offered = dict(zip(TYPED, [set(line.split(",")) for line in done.stdout.splitlines()], strict=True))
    assert offered == TYPED


@pytest.mark.parametrize("shell", ["zsh", "fish", "tcsh"])
def test_other_shells_have_a_script_too(shell, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "bmlr" in script
    assert all(f"{option}" in script for option in ("trainer.precision", "method.alpha", *COMMANDS))
