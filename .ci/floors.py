"""Prints the lowest version of every dependency that pyproject.toml admits, as constraints for pip.

Names given as arguments are left out: their versions are chosen elsewhere.
"""

import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = Path(__file__).parent.parent / "pyproject.toml"


def floors(project: dict, left_out: set[str]) -> list[str]:
    """`name==version` of the core's and the extras' dependencies, those for development excepted."""
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *(line for name in extras if name != "dev" for line in extras[name])]
    requirements = [Requirement(line) for line in lines]
    return [
        f"{requirement.name}=={specifier.version}"
        for requirement in requirements
        for specifier in requirement.specifier
        if specifier.operator in {">=", "=="} and canonicalize_name(requirement.name) not in left_out
    ]


if __name__ == "__main__":
    names = {canonicalize_name(name) for name in sys.argv[1:]}
    sys.stdout.write("\n".join(floors(tomllib.loads(PROJECT.read_text())["project"], names)) + "\n")
