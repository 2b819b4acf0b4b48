"""The SHA-256 of a model's weights, in a file beside them: written when they are saved, compared before they are read.

The file is what `sha256sum *.safetensors > SHA256SUMS` writes in a part's folder, and `sha256sum --check` reads; lines
of other files (`sha256sum *`) are passed over. It finds a flipped bit, half a copy, another file. Not a forger, who
would write the sums anew.
"""

import re
from pathlib import Path

from sidestep.errors import SidestepError
from sidestep.inputs import read_text, sha256_of

SUMS = "SHA256SUMS"

_LINE = re.compile(r"([0-9a-f]{64}) [ *](?:\./)?([^/\\\0]+)")
_MOST = 2**20  # bytes; ten thousand files have them


def write_sums(folder: str | Path) -> None:
    """Writes SHA256SUMS of the .safetensors files that lie in a folder; none where there are none."""
    files = sorted(Path(folder).glob("*.safetensors"))
    if files:
        lines = [f"{sha256_of(file)}  {file.name}\n" for file in files]
        (Path(folder) / SUMS).write_text("".join(lines), encoding="utf-8", newline="\n")


def check_sums(folder: str | Path) -> None:
    """Compares the .safetensors files of a folder with its SHA256SUMS. What that does not name, and all where there
    is none, is taken as it is.

    Raises:
        SidestepError: if a file is another than was written, or cannot be read.
    """
    path = Path(folder) / SUMS
    if not path.is_file():
        return
    for name in read_sums(path):
        if path.with_name(name).exists():  # else a variant that was left out
            check_file(path.with_name(name))


def check_file(path: Path) -> bool:
    """Whether a file of weights is named by a SHA256SUMS beside it, and so was compared.

    Raises:
        SidestepError: as `check_sums`.
    """
    sums = path.with_name(SUMS)
    written = read_sums(sums).get(path.name) if sums.is_file() else None
    if written is None:
        return False
    try:
        found = sha256_of(path)
    except OSError as error:
        raise SidestepError(f"{path}: cannot be read ({error.strerror})") from None
    if found != written:
        raise SidestepError(f"{path}: does not match its checksum in {SUMS}; {_ADVICE}")
    return True


def read_sums(path: Path) -> dict[str, str]:
    """The SHA-256 (hex) of each .safetensors file that a SHA256SUMS names.

    Raises:
        SidestepError: if it cannot be read, or is none.
    """
    entries = [_LINE.fullmatch(line) for line in read_text(path, _MOST).splitlines()]
    if not all(entries):
        raise SidestepError(f"{path}: not what sha256sum writes of a folder's files; {_ADVICE}")
    return {entry[2]: entry[1] for entry in entries if entry and entry[2].endswith(".safetensors")}


_ADVICE = f"fetch or copy the folder again, or, if it was changed on purpose, delete its {SUMS}"
