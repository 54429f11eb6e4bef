"""Forks the commands that `tests.cli.running` asks for, from a process that has the heavy imports behind it."""

import atexit
import gc
import importlib
import json
import os
import sys
import threading
from typing import NoReturn

IMPORTED = ("open_clip", "transformers.models.bert.modeling_bert", "m3di.build", "m3di.training.pretrain", "cli.app")


def serve() -> None:
    """Run each request of stdin in a child, and answer with its exit code."""
    for module in IMPORTED:
        importlib.import_module(module)
    gc.freeze()
    for line in sys.stdin:
        child = os.fork()
        if not child:
            _become(**json.loads(line))
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


def _become(arguments: list[str], cwd: str, environment: dict[str, str], outputs: tuple[str, str]) -> NoReturn:
    """Be the command, with its outputs in files."""
    from cli.app import run  # noqa: PLC0415

    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    code = run(arguments)
    # The end of an interpreter, less taking all modules apart, which takes longer than most commands.
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    serve()
