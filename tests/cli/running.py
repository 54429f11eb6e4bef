"""Run the command line in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

SIZES = [
    "--preset", "smoke", "--set", "volumes.slice_size=32", "--set", "volumes.slice_stride=8",
    "--set", "teacher.fit_steps=5", "--set", "volumes.cube_size=16",
]  # fmt: skip


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "cli", *(str(argument) for argument in arguments)]


def m3di(*arguments: object, cwd: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    variables = {name: value for name, value in os.environ.items() if not name.startswith("M3DI_")}
    python_path = str(Path(__file__).parents[2])
    return subprocess.run(
        command(*arguments), cwd=cwd, capture_output=True, text=True, check=False,
        env={**variables, "PYTHONPATH": python_path, **(env or {})},
    )  # fmt: skip


def events(done: subprocess.CompletedProcess[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in done.stdout.splitlines()]
