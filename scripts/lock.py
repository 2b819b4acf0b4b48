"""Writes requirements.lock: all that pyproject.toml asks for with the extra dev, as it is installed here.

    .venv/bin/pip install -e ".[dev,release]"
    .venv/bin/python scripts/lock.py

The versions are those of this environment, in which the tests passed and the figures were made. The hashes of their
files, of all platforms, come from the package index, by uv. Only wheels are taken, so that no package runs code of its
own while it is installed.
"""

import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from sidestep.files import atomic_path

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "requirements.lock"
EXTRA = "dev"

HEAD = """\
# All that pyproject.toml asks for with the extra {extra}, in the versions that the recorded figures were made with, for
# Python {version[0]}.{version[1]} on Linux, x86-64. Written by scripts/lock.py.
#   .venv/bin/pip install -r requirements.lock && .venv/bin/pip install --no-deps -e .
"""


def project() -> dict[str, list[str]]:
    """What pyproject.toml asks for, by extra; "" is what it always asks for."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {"": table["dependencies"], **table["optional-dependencies"]}


def locked_extras() -> list[str]:
    """The extras whose packages the lock holds: those that dev names. Other tools are in no lock."""
    own = [requirement for requirement in map(Requirement, project()[EXTRA]) if requirement.name == "sidestep"]
    return [extra for requirement in own for extra in sorted(requirement.extras)]


def graph(extras: Iterable[str]) -> dict[str, set[str]]:
    """What sidestep with some extras, and each package that it needs here, needs directly, by normalised names.

    Raises:
        PackageNotFoundError: if one of them is not installed.
    """
    wanted = project()
    found: dict[str, set[str]] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [("sidestep", extra) for extra in ("", *extras)]
    while waiting:
        name, extra = entry = waiting.pop()
        if entry in seen:
            continue
        seen.add(entry)
        needed = found.setdefault(name, set())
        for text in wanted[extra] if name == "sidestep" else metadata.distribution(name).requires or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                other = canonicalize_name(requirement.name)
                needed.add(other)
                waiting += [(other, extra) for extra in ("", *requirement.extras)]
    return found


def locked() -> dict[str, str]:
    """The versions in requirements.lock, by normalised name."""
    lines = LOCK.read_text(encoding="utf-8").splitlines()
    pins = (line.split()[0].partition("==") for line in lines if "==" in line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, _, version in pins}


def main() -> None:
    pins = [f"{name}=={metadata.version(name)}" for name in sorted(graph([EXTRA]).keys() - {"sidestep"})]
    command = [sys.executable, "-m", "uv", "pip", "compile", "-", "--quiet", "--python", sys.executable, "--no-deps"]
    command += ["--generate-hashes", "--only-binary", ":all:", "--emit-build-options", "--no-header", "--no-annotate"]
    try:
        hashed = subprocess.run(command, input="\n".join(pins), check=True, stdout=subprocess.PIPE, text=True).stdout
    except subprocess.CalledProcessError:
        sys.exit("error: uv, of the extra release, could not ask the package index; see above")
    with atomic_path(LOCK) as temporary:
        temporary.write_text(HEAD.format(extra=EXTRA, version=sys.version_info) + hashed, encoding="utf-8")
    print(f"{len(pins)} packages in {LOCK.name}")


if __name__ == "__main__":
    main()
