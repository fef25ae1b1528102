"""Starts commands in processes of their own, forked from this one, which has imported what they need already.

Says that it is ready, then reads a line of JSON per command (its arguments and the files of its output and error
streams), forks, answers with the process's number, and then with its exit status once it has ended. Its own arguments
are the modules to import.
"""

import importlib
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import toy  # noqa: F401  (the commands name its class)
from bmlr.cli import main


def run(arguments: list[str], errors: str, output: str) -> None:
    """The command, as ``bmlr`` would run it; never returns."""
    os.setpgid(0, 0)
    for stream, target in ((1, output), (2, errors)):
        os.dup2(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    try:
        code = main(arguments)
    except BaseException:  # as the interpreter would end
        import traceback

        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    for module in sys.argv[1:]:
        importlib.import_module(module)
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            run(request["arguments"], request["errors"], request["output"])
        os.setpgid(child, child)  # here too, so that there is a group to be signalled from the very beginning
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
