"""A run's folder: what the run was told, and what it has measured.

What a killed run has logged past its checkpoint is taken back when it goes on.

    config.yaml         the settings, defaults and overrides included
    git-revision.txt    of the code that started the run
    metrics.jsonl       a line of figures now and then; TensorBoard's files beside it, where that is installed
    samples/            the validations' pictures
"""

import json
import logging
import subprocess
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from sidestep.config import load_config, save_config
from sidestep.files import atomic_path, sweep, writing

logger = logging.getLogger(__name__)


def begin_run(run: Path, experiment: Any, start: int) -> "Log":
    """Clears what a killed process has left in the run's folder, and writes what the run is told.

    Args:
        experiment: its settings, a `settings` class; None where nobody has to know them.
        start: the steps that its checkpoint has behind it.

    Returns:
        What the run logs by from then on.
    """
    for folder in (run, run / "samples"):
        sweep(folder)
    if not (run / "checkpoint.safetensors").exists():
        with atomic_path(run / "git-revision.txt") as temporary:
            temporary.write_text(_git_revision() + "\n", encoding="utf-8")
    if experiment is not None:
        _name_changes(experiment, run / "config.yaml")
        save_config(experiment, run / "config.yaml")
    return Log(run, start)


def has_validation(run: Path, step: int) -> bool:
    """Whether the figures of a validation after so many steps are in the log."""
    return any(line["step"] == step and any(key.startswith("validation/") for key in line) for line in _logged(run))


class Log:
    """metrics.jsonl, and TensorBoard where it is installed; what they tell of steps after `start` is taken back."""

    def __init__(self, run: Path, start: int) -> None:
        self.run, self.path = run, run / "metrics.jsonl"
        self.started = time.monotonic()
        if self.path.exists():
            kept = "".join(f"{json.dumps(line)}\n" for line in _logged(run) if line["step"] <= start)
            if kept != self.path.read_text(encoding="utf-8"):
                with atomic_path(self.path) as temporary:
                    temporary.write_text(kept, encoding="utf-8")
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self.board = None
        else:
            self.board = SummaryWriter(str(run / "tensorboard"), purge_step=start + 1 if start else None)

    def write(self, step: int, figures: dict[str, float]) -> None:
        """Figures after so many steps."""
        line = {"step": step, "seconds": round(time.monotonic() - self.started, 1), **figures}
        with writing(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if self.board:
            with writing(self.run / "tensorboard"):
                for name, value in figures.items():
                    self.board.add_scalar(name, value, step)

    def validation(self, step: int, figures: dict[str, float], picture: Image.Image | None) -> None:
        """Those of a validation, and its picture; also told to whoever looks on."""
        if picture is not None:
            with atomic_path(self.run / "samples" / f"{step:07d}.png") as temporary:
                picture.save(temporary)
        self.write(step, {f"validation/{name}": value for name, value in figures.items()})
        shown = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
        logger.info("%s: step %d: %s", self.run.name, step, shown)


def _logged(run: Path) -> list[dict[str, Any]]:
    """The whole lines of a run's metrics.jsonl; the last one that a killed process wrote may be none."""
    path = run / "metrics.jsonl"
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            figures = json.loads(line)
        except ValueError:
            continue
        if isinstance(figures, dict) and isinstance(figures.get("step"), int):
            found.append(figures)
    return found


def _name_changes(experiment: Any, path: Path) -> None:
    """A run may go on under other settings (more steps, say), but not without a word."""
    if not path.exists():
        return
    before, now = (_flat(asdict(config)) for config in (load_config(type(experiment), path), experiment))
    for key, value in now.items():
        if before.get(key) != value:
            logger.warning("%s goes on with another %s: %s, before %s", path.parent, key, value, before.get(key))


def _flat(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in nested.items():
        result.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return result


def _git_revision() -> str:
    """The revision of the code that runs, or "unknown" outside a checkout of it."""
    here = Path(__file__)
    git = ["git", "-C", str(here.parent)]
    try:
        # An installed package may lie in somebody else's repository, whose revision says nothing.
        subprocess.run([*git, "ls-files", "--error-unmatch", here.name], capture_output=True, check=True)
        told = subprocess.run([*git, "describe", "--always", "--dirty"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return told.stdout.strip()
