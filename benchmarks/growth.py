"""How time and memory grow with the number of views, the picture's size, the frames encoded and the processes.

Views, frames and processes are the bundled model's: t = fixed + each * n, fitted so that every point's relative error
counts alike. The size is that of tiny networks with random weights (convolutions at two levels, attention at the lower
one), one pass of the U-Net: t = c * size ^ power. Intervals are two standard errors. Each point is the fastest of some
calls in a fresh process; memory is the most that the process has had resident, or what torch has held of a GPU.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from table import markdown, publish, run
from view import PHOTO, process

from sidestep.errors import SidestepError

AXES = {"views": (1, 2, 4, 8, 16), "size": (64, 128, 256, 512), "frames": (4, 8, 16, 32), "processes": (1, 2)}
NAMES = {
    "views": "views of one photo",
    "size": "picture's side, px",
    "frames": "frames encoded",
    "processes": "processes that encode {frames} frames",
}
LOADING = 600.0  # seconds that the processes wait for each other's priors


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="captures to encode")
    parser.add_argument("--device", help="cpu, cuda or mps [the best one present]")
    parser.add_argument("--steps", type=int, default=10, help="of sampling [10]")
    parser.add_argument("--repeats", type=int, default=3, help="calls after the first [3]")
    parser.add_argument("--axes", nargs="+", choices=list(AXES), default=list(AXES), help="[all]")
    for axis, values in AXES.items():
        parser.add_argument(f"--{axis}", type=int, nargs="+", default=values, help=f"[{' '.join(map(str, values))}]")
    parser.add_argument("--out", type=Path, help="markdown file to write the table to")
    parser.add_argument("--measure", nargs=2, metavar=("AXIS", "VALUE"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.measure:
        print(json.dumps(measure(options, options.measure[0], int(options.measure[1]))))
        return
    given = [__file__, *(sys.argv[1:] if arguments is None else arguments)]
    rows, where = [], ""
    for axis in options.axes:
        values = sorted(set(getattr(options, axis)))
        if axis == "processes":
            taken = [spread(options, count) for count in values]
            held: list[float] = []
        else:
            told = [json.loads(process([*given, "--measure", axis, str(n)], dict(os.environ))[0]) for n in values]
            taken, held = [point["seconds"] for point in told], [point["memory"] for point in told]
            where = told[0]["where"]
        name = NAMES[axis].format(frames=max(options.frames))
        rows.append([name, "time, s", points(values, taken, 3), law(axis, values, taken)])
        if held:
            rows.append([name, "memory, GiB", points(values, held, 2), law("memory", values, held)])
    caption = f"{options.steps} sampling steps; {where or 'bundled model'}, {os.cpu_count()} cores."
    publish(markdown(caption, ["n", "what grows", "measured", "law"], rows), options.out)


def points(values: Sequence[int], results: Sequence[float], digits: int) -> str:
    """All that was measured, in one cell."""
    return "; ".join(f"{n}: {result:.{digits}f}" for n, result in zip(values, results, strict=True))


def law(axis: str, values: Sequence[int], results: Sequence[float]) -> str:
    """The law that the points follow, with its interval, as text."""
    if axis == "size":
        _, (power, error) = fit([(1.0, math.log(n)) for n in values], [math.log(t) for t in results])
        return f"size ^ {power:.2f}{_within(error)}"
    if axis == "processes":
        alone = results[0] * values[0]
        return "; ".join(f"{alone / t / n:.0%} of {n} times as fast" for n, t in zip(values, results, strict=True))
    weighed = [(1 / t, n / t) for n, t in zip(values, results, strict=True)]
    (fixed, _), (each, error) = fit(weighed, [1.0] * len(results))
    digits = 4 if axis == "memory" else 3
    return f"{fixed:.2f} + {each:.{digits}f}{_within(error, digits)} n"


def fit(rows: Sequence[tuple[float, float]], values: Sequence[float]) -> list[tuple[float, float]]:
    """Least squares in two unknowns: (value, standard error) of each; the error is nan where two points fix them."""
    import numpy as np

    a, y = np.array(rows), np.array(values)
    found = np.linalg.lstsq(a, y, rcond=None)[0]
    free = len(y) - 2
    variance = float(((y - a @ found) ** 2).sum()) / free if free > 0 else math.nan
    errors = np.sqrt(variance * np.linalg.inv(a.T @ a).diagonal())
    return [(float(value), float(error)) for value, error in zip(found, errors, strict=True)]


def _within(error: float, digits: int = 2) -> str:
    return "" if math.isnan(error) else f" (± {2 * error:.{digits}f})"


def spread(options: argparse.Namespace, count: int) -> float:
    """Seconds until `count` processes of one thread each, started together, have encoded their parts of one store."""
    with tempfile.TemporaryDirectory() as folder:
        common = [sys.executable, __file__, "--data", str(options.data), "--frames", str(max(options.frames))]
        common += ["--device", options.device] if options.device else []
        environment = dict(os.environ) | {"OMP_NUM_THREADS": "1", "SIDESTEP_STORE": str(Path(folder) / "store")}
        parts = [
            subprocess.Popen([*common, "--measure", f"part-{k}/{count}", "0"], env=environment, stdout=subprocess.PIPE)
            for k in range(1, count + 1)
        ]
        outputs = [part.communicate()[0] for part in parts]
        if any(part.returncode for part in parts):
            raise SidestepError("a process that encodes failed, see above")
        spans = [json.loads(output) for output in outputs]
        # Loading the model is not counted; it is the same whatever the number of frames.
        return max(span["end"] for span in spans) - min(span["start"] for span in spans)


def measure(options: argparse.Namespace, axis: str, value: int) -> dict[str, Any]:
    """One point, in this process."""
    import torch
    from measuring import forget_peak, peak_memory, seconds

    from sidestep.devices import choose_device

    device = choose_device(options.device)
    if axis.startswith("part-"):
        return _part(options, device, axis.removeprefix("part-"))
    call, dtype = {"views": _views, "size": _size, "frames": _frames}[axis](options, device, value)
    forget_peak(device)
    _, best = seconds(call, device, options.repeats)
    kind = str(dtype).removeprefix("torch.")
    where = f"{device.type}, {kind}, torch {torch.__version__}, {torch.get_num_threads()} threads"
    return {"seconds": best, "memory": peak_memory(device), "where": where}


def _views(options: argparse.Namespace, device: Any, count: int) -> tuple[Callable[[], Any], Any]:
    """The time of all the views of one photo, eight at a time."""
    from sidestep import Camera, NovelViewPipeline, orbit
    from sidestep.images import load_image
    from sidestep.pipeline import DEFAULT_FOV

    pipe = NovelViewPipeline.from_pretrained(device=device)
    pipe.set_progress_bar_config(disable=True)
    photo = load_image(PHOTO)
    source = Camera.from_fov(DEFAULT_FOV, *photo.size)
    targets = orbit(source, count)
    return lambda: pipe(photo, targets, source, scale=1.0, steps=options.steps, batch_size=8), pipe.unet.dtype


def _size(options: argparse.Namespace, device: Any, size: int) -> tuple[Callable[[], Any], Any]:
    """The time of one pass of a tiny U-Net on the latents of a picture of `size` pixels, an eighth of it."""
    import torch
    from diffusers import UNet2DModel

    from sidestep.devices import memory_format, network_dtype

    kinds = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    torch.manual_seed(0)
    unet = UNet2DModel(in_channels=4, out_channels=4, block_out_channels=(64, 128), attention_head_dim=32, **kinds)
    dtype = network_dtype(device)
    unet = unet.to(device, memory_format=memory_format(device)).eval().requires_grad_(False)
    unet = unet if dtype == torch.float32 else unet.to(dtype)
    x = torch.randn(1, 4, size // 8, size // 8, device=device, dtype=dtype)
    return lambda: unet(x, 500), dtype


def _frames(options: argparse.Namespace, device: Any, count: int) -> tuple[Callable[[], Any], Any]:
    """The time of encoding `count` frames into a store, reading and writing included."""
    from sidestep.prior import LatentPrior

    prior = LatentPrior.from_pretrained(_bundled(), device)

    def call() -> None:
        with tempfile.TemporaryDirectory() as folder:
            _encode(options, prior, count, Path(folder) / "store", (1, 1))

    return call, prior.unet.dtype


def _part(options: argparse.Namespace, device: Any, part: str) -> dict[str, float]:
    from sidestep.prior import LatentPrior

    number, parts = (int(text) for text in part.split("/"))
    prior = LatentPrior.from_pretrained(_bundled(), device)
    store = Path(os.environ["SIDESTEP_STORE"])
    store.with_name(f"ready-{number}").touch()
    patience = time.monotonic() + LOADING
    while len(list(store.parent.glob("ready-*"))) < parts:  # they start together once all have loaded
        if time.monotonic() > patience:
            raise SidestepError(f"the other parts have not loaded their prior in {LOADING:.0f} s; see their messages")
        time.sleep(0.01)
    start = time.time()
    _encode(options, prior, max(options.frames), store, (number, parts))
    return {"start": start, "end": time.time()}


def _bundled() -> Any:
    from sidestep.models import BUNDLED, model_folder

    return model_folder(BUNDLED)


def _encode(options: argparse.Namespace, prior: Any, count: int, out: Path, part: tuple[int, int]) -> None:
    """`count` frames of the data, four a scene, a scene a shard."""
    from dataclasses import replace

    from sidestep.captures import read_captures
    from sidestep.encoding import encode_captures
    from sidestep.inversion import InversionSettings

    scenes = [replace(scene, frames=scene.frames[:4]) for scene in read_captures(options.data)]
    wanted = -(-count // 4)
    if len(scenes) < wanted or any(len(scene.frames) < 4 for scene in scenes[:wanted]):
        raise SidestepError(f"{options.data}: {count} frames need {wanted} scenes of 4; give fewer --frames")
    settings = InversionSettings(400, 8)
    encode_captures(
        prior, scenes[:wanted], out, settings, prior_name="bundled", scenes_per_shard=1, batch_size=4, part=part
    )


if __name__ == "__main__":
    run(main)
