"""What a benchmark prints: one markdown table under one line that says what it was measured on."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from sidestep.errors import SidestepError
from sidestep.files import atomic_path


def markdown(caption: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table under its caption; the first column aligned left, the others right."""
    lines = [header, ["---"] + ["--:"] * (len(header) - 1), *rows]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return f"{caption}\n\n{table}\n"


def publish(text: str, out: Path | None) -> None:
    """Prints the text, and writes it to `out` if there is one."""
    print(text, end="")
    if out is not None:
        with atomic_path(out) as temporary:
            temporary.write_text(text, encoding="utf-8")


def run(main: Callable[[], None]) -> None:
    """Runs a script's `main`; bad input is one line on stderr and exit code 1."""
    try:
        main()
    except SidestepError as error:
        sys.exit(f"error: {error}")
