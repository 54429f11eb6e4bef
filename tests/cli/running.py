"""Run the command line in a process of its own."""

import atexit
import json
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]

SIZES = [
    "--preset", "smoke", "--set", "volumes.slice_size=32", "--set", "volumes.slice_stride=8",
    "--set", "teacher.fit_steps=5", "--set", "volumes.cube_size=16",
]  # fmt: skip


def command(*arguments: object) -> list[str]:
    """The command line of a process that begins as a user's does."""
    return [sys.executable, "-m", "cli", *(str(argument) for argument in arguments)]


def m3di(*arguments: object, cwd: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command.

    Imports are most of what a small one costs: it is forked from a server that has them behind it. One that is given
    an environment begins as a user's does, as libraries read it when they are imported.
    """
    variables = {name: value for name, value in os.environ.items() if not name.startswith("M3DI_")}
    variables["PYTHONPATH"] = str(ROOT)
    line = command(*arguments)
    if env is not None:
        return subprocess.run(line, cwd=cwd, capture_output=True, text=True, check=False, env={**variables, **env})
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder) / name for name in ("stdout", "stderr")]
        asked = {"arguments": line[3:], "cwd": str(cwd), "environment": variables, "outputs": [*map(str, outputs)]}
        server = _server()
        assert server.stdin is not None and server.stdout is not None
        print(json.dumps(asked), file=server.stdin, flush=True)
        code = int(server.stdout.readline())
        return subprocess.CompletedProcess(line, code, *(path.read_text() for path in outputs))


@cache
def _server() -> subprocess.Popen[str]:
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.cli.server"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    atexit.register(server.communicate)  # the end of its stdin ends it
    return server


def events(done: subprocess.CompletedProcess[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in done.stdout.splitlines()]
