"""How much memory a long path takes, by how many views are made together, each row in a fresh process.

Peak resident memory of the whole command, from the photo to the MP4. On a GPU, where it is the GPU's that counts, only
what the process holds beside it. One step of sampling: more steps take time and no more memory.
"""

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from table import markdown, publish, run
from view import PHOTO, process


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled", help="model folder or hub id [bundled]")
    parser.add_argument("--photo", type=Path, default=PHOTO, help="[examples/chair.jpg]")
    parser.add_argument("--device", help="cpu, cuda or mps [the best one present]")
    parser.add_argument("--frames", type=int, nargs="+", default=[120], help="views of the path [120]")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 32], help="views at once [1 8 32]")
    parser.add_argument("--out", type=Path, help="markdown file to write the table to")
    options = parser.parse_args(arguments)
    common = ["--model", options.model, *(["--device", options.device] if options.device else [])]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for frames in options.frames:
            for size in options.batch_sizes:
                path = ["--trajectory", "orbit", "--frames", str(frames), "--batch-size", str(size), "--steps", "1"]
                shell = ["-m", "sidestep", "view", str(options.photo), *path, *common]
                _, _, peak = process([*shell, "--out", str(Path(folder) / "orbit.mp4")], dict(os.environ))
                rows.append([str(frames), str(size), f"{peak:.0f}"])
    caption = f"{options.photo.name}, model {options.model}, an orbit to an MP4; {options.device or 'best device'}."
    publish(markdown(caption, ["views", "at once", "peak memory, MiB"], rows), options.out)


if __name__ == "__main__":
    run(main)
