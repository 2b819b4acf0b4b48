"""How long a view, a frame's encoding and a training step take, beside two rivals and beside what the device can do.

Rivals, with the same networks in the same precision (benchmarks/rivals.py): "as published", each view from the photo
anew and each step with a guidance pass by the empty prompt; "plain loop", diffusers' schedulers in a loop, one view at
a time. Share of the rate: the operations that were done, by convolutions and matrix products, over those of a large
matrix product in the same time.

Each setting (threads, eager or compiled) runs in a fresh process; a part of it that fails is left out and says why.
Times are the fastest of some calls after a first one, which compiles. On a CPU, memory is the most that the process has
had resident up to that row; on a GPU what torch holds of it during the row. With --prior sd15, networks of Stable
Diffusion 1.5's size with random weights: as fast, and nothing to download.
"""

import argparse
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from table import markdown, publish, run
from view import PHOTO, process

from sidestep.errors import SidestepError

PARTS = ("views", "encoding", "training")
BATCHES = (1, 8, 32)
TRAINING_BATCH = 32
TRAINING_SCENES = 40  # enough that each split has some
HEADERS = {
    "views": ("way", "views", "first call, s", "s a view", "times faster", "passes a view", "TFLOP a view"),
    "encoding": ("way", "frames at once", "first batch, s", "frames/s", "TFLOP a frame"),
    "training": ("way", "pairs at once", "first step, s", "steps/s", "TFLOP a step"),
}
CAPTIONS = {
    "views": "Views of one photo, {steps} sampling steps.",
    "encoding": "Frames encoded and inverted, in {inversion} steps, without reading them from disk ({loading}).",
    "training": "TUNet of the paper's size, a step of `sidestep train`.",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints the tables."""
    options = _parser().parse_args(arguments)
    if options.measure:
        print(json.dumps(measure(options)))
        return
    found: dict[str, list[list[str]]] = {}
    told: dict[str, Any] = {}
    failed = []
    for threads in options.threads or [None]:
        for compiled in options.compile:
            how = ["eager" if compiled == "no" else f"compiled{'' if compiled == 'default' else ', ' + compiled}"]
            how += [f"{threads} thread{'s' if threads > 1 else ''}"] if threads else []
            environment = dict(os.environ) | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
            given = list(sys.argv[1:] if arguments is None else arguments)
            try:
                output, _, _ = process([__file__, *given, "--measure", compiled], environment)
            except SidestepError as error:
                failed.append(f"Not measured ({', '.join(how)}): {error}.")
                continue
            told = json.loads(output.splitlines()[-1])  # a compiler may print before it
            failed += [f"Not measured ({part}, {', '.join(how)}): {why}." for part, why in told["failed"].items()]
            for part, rows in told["rows"].items():
                if rows:
                    found.setdefault(part, []).extend([[f"{row[0]}, {', '.join(how)}", *row[1:]] for row in rows])
    if not found:
        raise SidestepError("nothing was measured; see above")
    _times_faster(found.get("views", []))
    texts = [told["machine"], *failed]
    for part, rows in found.items():
        header = (*HEADERS[part], "share of the rate", "peak, GiB")
        texts.append(markdown(CAPTIONS[part].format(**told), header, rows).rstrip("\n"))
    publish("\n\n".join(texts) + "\n", options.out)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", choices=("bundled", "sd15"), default="bundled", help="whose networks [bundled]")
    parser.add_argument("--device", help="cpu, cuda or mps [the best one present]")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="[what the device is best at]")
    parser.add_argument("--threads", type=int, nargs="+", help="values of OMP_NUM_THREADS [as the environment has it]")
    parser.add_argument("--targets", type=int, nargs="+", default=[1, 8, 32], help="views of one photo [1 8 32]")
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES, help="frames encoded at once [1 8 32]")
    parser.add_argument("--steps", type=int, default=30, help="of sampling [30]")
    parser.add_argument("--repeats", type=int, default=3, help="calls after the first [3]")
    parser.add_argument(
        "--compile",
        nargs="+",
        choices=("no", "default", "reduce-overhead", "max-autotune-no-cudagraphs"),
        default=["no", "default"],
        help="modes of torch.compile for the U-Net, `no` for none [no default]",
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="[all on a GPU, views and encoding elsewhere]")
    parser.add_argument("--no-rivals", action="store_true", help="leave the rivals out; nothing is `times faster` then")
    parser.add_argument("--photo", type=Path, default=PHOTO, help="[examples/chair.jpg]")
    parser.add_argument("--out", type=Path, help="markdown file to write the tables to")
    parser.add_argument("--measure", metavar="COMPILE", help=argparse.SUPPRESS)
    return parser


def _times_faster(rows: list[list[str]]) -> None:
    """Fills the column in, by the fastest row as published, whatever its setting."""
    published = [float(row[3]) for row in rows if row[0].startswith("as published")]
    for row in rows:
        row[4] = f"{min(published) / float(row[3]):.1f}" if published else ""


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """What one fresh process finds out: rows of each table, without the column that compares them."""
    import torch
    from measuring import product_rate

    from sidestep.devices import choose_device, network_dtype

    device = choose_device(options.device)
    dtype = getattr(torch, options.dtype) if options.dtype else network_dtype(device)
    bench = _Bench(options, device, dtype, product_rate(device, dtype))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    rows: dict[str, list[list[str]]] = {}
    failed: dict[str, str] = {}
    told = {
        "steps": options.steps,
        "inversion": bench.pipe.tunet.config.inversion_steps,
        "loading": bench.loading(),
        "rows": rows,
        "failed": failed,
        "machine": f"{options.prior}, {bench.pipe.prior.image_size} px; {name}, {str(dtype).removeprefix('torch.')}, "
        f"torch {torch.__version__}. A large matrix product: {bench.rate / 1e12:.3g} TFLOP/s (of the last setting).",
    }
    for part in options.parts or (PARTS if device.type == "cuda" else PARTS[:2]):
        try:
            rows[part] = getattr(bench, part)()
        except Exception as error:  # whatever it is, what else was measured is worth keeping
            traceback.print_exc()
            failed[part] = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return told


class _Bench:
    """One setting's pipeline, and a row for each thing that it is timed at."""

    def __init__(self, options: argparse.Namespace, device: Any, dtype: Any, rate: float) -> None:
        from large import stable_diffusion_sized

        from sidestep import Camera, NovelViewPipeline
        from sidestep.images import load_image
        from sidestep.pipeline import DEFAULT_FOV

        self.options, self.device, self.dtype, self.rate = options, device, dtype, rate
        if options.prior == "sd15":
            self.pipe = stable_diffusion_sized(device, dtype)
        else:
            self.pipe = NovelViewPipeline.from_pretrained("bundled", device=str(device), dtype=dtype)
        self.pipe.set_progress_bar_config(disable=True)
        self.photo = load_image(options.photo)
        self.source = Camera.from_fov(DEFAULT_FOV, *self.photo.size)
        self.compiled = options.measure != "no"
        self._count()
        if self.compiled:
            self.pipe.unet.compile(mode=options.measure)

    def _count(self) -> None:
        """Operations of each network for one latent or picture, before compiling: the counter cannot see into that."""
        import torch
        from measuring import flops

        prior = self.pipe.prior
        x = torch.randn(1, prior.latent_channels, prior.latent_size, prior.latent_size, device=self.device)
        picture = torch.zeros(1, 3, prior.image_size, prior.image_size)
        self.unet = flops(lambda: prior.predict_noise(x, 1))
        self.encoder = flops(lambda: prior.encode(picture))
        self.decoder = flops(lambda: prior.decode(x))
        self.tunet = flops(self._translate)

    def views(self) -> list[list[str]]:
        from rivals import passes, plain_loop, published

        from sidestep import orbit
        from sidestep.images import resize_and_crop

        steps, many = self.options.steps, max(self.options.targets)
        cameras = orbit(self.source, many, elevation=self.pipe.tunet.config.elevation)
        square = resize_and_crop(self.photo, self.pipe.prior.image_size)
        rows = []
        # Compiled, the rivals would be others than they are.
        if not self.compiled and not self.options.no_rivals:
            for name, rival, count in (("as published", published, 1), ("plain loop", plain_loop, min(8, many))):
                unet_passes = passes(self.pipe, steps, count, rival is published)
                done = self.encoder / count + unet_passes * self.unet + self.tunet + self.decoder

                def call(rival: Any = rival, count: int = count) -> Any:
                    return rival(self.pipe, square, self.source, cameras[:count], steps)

                rows.append(self._view_row(name, count, unet_passes, done, call))
        for count in self.options.targets:
            unet_passes = passes(self.pipe, steps, count, guided=False)
            # It also shows the coarse view.
            done = self.encoder / count + unet_passes * self.unet + self.tunet + 2 * self.decoder

            def ours(count: int = count) -> Any:
                chosen = cameras[:count]
                return self.pipe(self.photo, chosen, self.source, scale=1.0, steps=steps, batch_size=min(count, 32))

            rows.append(self._view_row("Sidestep", count, unet_passes, done, ours))
        return rows

    def encoding(self) -> list[list[str]]:
        import torch

        from sidestep.inversion import invert

        prior, settings = self.pipe.prior, self.pipe._inversion
        done = self.encoder + settings.steps * self.unet
        rows = []
        for count in self.options.batches:
            pictures = torch.randn(count, 3, prior.image_size, prior.image_size).clamp(-1, 1)

            def call(pictures: Any = pictures) -> Any:
                inverted = invert(prior, prior.encode(pictures), settings.grid, settings.timestep)
                return inverted.mean.half().cpu(), inverted.noise.half().cpu()

            first, best, peak = self._time(call)
            rows.append(
                ["encoding", str(count), f"{first:.2f}", f"{count / best:.3g}", *self._ends(done, count, best, peak)]
            )
        return rows

    def training(self) -> list[list[str]]:
        """The step that `sidestep train` does, which compiles nothing."""
        if self.compiled:
            return []
        from loader import write_store
        from measuring import flops

        from sidestep.loop import Training
        from sidestep.training import TrainConfig, prepare

        self.pipe = None  # the memory is training's
        if self.device.type == "cpu":
            os.environ["ACCELERATE_USE_CPU"] = "true"  # training would take the best device
        precision = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}[str(self.dtype).removeprefix("torch.")]
        with tempfile.TemporaryDirectory() as folder:
            store = Path(folder) / "store"
            write_store(store, TRAINING_SCENES, 25, 64)
            config = TrainConfig(latents=store, steps=1000, batch_size=TRAINING_BATCH, precision=precision)
            task, config = prepare(config)
            trained = Training(task, config, "speed")
            batches = trained.batches(0, 1)
            batch = next(batches)
            batches.close()

        def call() -> None:
            trained.step(0, batch)

        done = flops(call)
        first, best, peak = self._time(call)
        return [["training", str(TRAINING_BATCH), f"{first:.2f}", f"{1 / best:.3g}", *self._ends(done, 1, best, peak)]]

    def loading(self) -> str:
        """How fast one thread decodes and scales the photo, what encoding needs besides."""
        import torch
        from measuring import seconds

        from sidestep.images import load_image, resize_and_crop, to_tensor

        size = self.pipe.prior.image_size
        best = seconds(
            lambda: to_tensor(resize_and_crop(load_image(self.options.photo), size)), torch.device("cpu"), 10
        )[1]
        width, height = self.photo.size
        return f"one thread reads {1 / best:.0f} photos of {width}x{height} a second"

    def _view_row(self, name: str, count: int, passes: float, done: float, call: Any) -> list[str]:
        first, best, peak = self._time(call)
        cells = [name, str(count), f"{first:.2f}", f"{best / count:.3f}", "", f"{passes:.1f}"]
        return [*cells, *self._ends(done, count, best, peak)]

    def _time(self, call: Any) -> tuple[float, float, float]:
        from measuring import forget_peak, peak_memory, seconds

        forget_peak(self.device)
        first, best = seconds(call, self.device, self.options.repeats)
        return first, best, peak_memory(self.device)

    def _ends(self, done: float, count: int, best: float, peak: float) -> list[str]:
        """The columns that all tables end with: operations of one thing, their share of the rate, memory."""
        return [f"{done / 1e12:.3g}", f"{100 * done * count / best / self.rate:.0f}%", f"{peak:.2f}"]

    def _translate(self) -> Any:
        """TUNet's mean of one view."""
        import torch

        from sidestep import Camera, step_aside

        trained = self.pipe.tunet.config
        camera = Camera.from_fov(45, 8 * trained.sample_size, 8 * trained.sample_size)
        pair = Camera.stack([camera, step_aside(camera, 20.0)]).relative_to(camera).to(self.device, torch.float32)
        mean = torch.randn(1, trained.in_channels, trained.sample_size, trained.sample_size, device=self.device)
        with torch.no_grad():
            return self.pipe.tunet(mean, pair[:1], pair[1:])


if __name__ == "__main__":
    run(main)
