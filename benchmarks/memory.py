"""How much memory views of one photo take, by how many are made together, each row in a fresh process.

From loading the model to the MP4 of a path, or the picture where there is one view. Resident: the most that the process
has had in memory, file pages included. GPU: the most that torch has held of it; `offloaded` keeps only the network that
works there (`enable_model_cpu_offload`). What a CPU does not multiply natively it holds as named and computes in
float32 (`sidestep.devices.compute_in`). One step of inversion and of sampling: more take time and no more memory.

With --model sd15, networks of Stable Diffusion 1.5's size with random weights, stored in float16.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from table import markdown, publish, run
from view import PHOTO, process


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled", help="model folder, hub id, or sd15 [bundled]")
    parser.add_argument("--photo", type=Path, default=PHOTO, help="[examples/chair.jpg]")
    parser.add_argument("--device", help="cpu, cuda or mps [the best one present]")
    parser.add_argument("--dtypes", nargs="+", default=["auto"], help="float32, bfloat16, float16, auto [auto]")
    parser.add_argument("--offload", action="store_true", help="each row again, offloaded; needs a GPU")
    parser.add_argument("--frames", type=int, nargs="+", default=[120], help="views of the path [120]")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 32], help="views at once [1 8 32]")
    parser.add_argument("--out", type=Path, help="markdown file to write the table to")
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--measure", nargs=4, metavar=("FRAMES", "SIZE", "DTYPE", "OFFLOAD"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.make:
        make(options.make)
        return
    if options.measure:
        frames, size, dtype, offload = options.measure
        print(json.dumps(measure(options, int(frames), int(size), dtype, offload == "True")))
        return

    rows, where = [], ""
    with tempfile.TemporaryDirectory() as folder:
        model = options.model
        if model == "sd15":
            # In a process of its own: a process's peak counts what its parent held.
            process([__file__, "--make", folder], dict(os.environ))
            model = folder
        common = [__file__, "--model", model, "--photo", str(options.photo)]
        common += ["--device", options.device] if options.device else []
        for frames in options.frames:
            for size in options.batch_sizes:
                for dtype in options.dtypes:
                    for offload in [False, True] if options.offload else [False]:
                        asked = ["--measure", str(frames), str(size), dtype, str(offload)]
                        output, _, resident = process([*common, *asked], dict(os.environ))
                        told = json.loads(output)
                        where = told["where"]
                        how = told["dtype"] + (", offloaded" if offload else "")
                        rows.append([how, str(frames), str(size), f"{resident / 2**10:.2f}", told["gpu"]])
    caption = f"{options.model}, {options.photo.name}; {where}."
    header = ["U-Net held in", "views", "at once", "resident, GiB", "GPU, GiB"]
    publish(markdown(caption, header, rows), options.out)


def make(folder: Path) -> None:
    """Writes a pipeline of Stable Diffusion 1.5's size."""
    import torch
    from large import stable_diffusion_sized

    stable_diffusion_sized(torch.device("cpu"), torch.float16).save_pretrained(folder)


def measure(options: argparse.Namespace, frames: int, size: int, dtype: str, offload: bool) -> dict[str, str]:
    """Makes the views; what they took of a GPU."""
    import torch
    from measuring import peak_memory

    from sidestep import Camera, NovelViewPipeline, orbit, step_aside
    from sidestep.devices import choose_device, compute_in, network_dtype
    from sidestep.images import load_image
    from sidestep.pipeline import DEFAULT_FOV

    device = choose_device(options.device)
    best = network_dtype(device)
    wanted = getattr(torch, dtype) if dtype != "auto" else best if offload else None
    pipe = NovelViewPipeline.from_pretrained(options.model, device="cpu" if offload else device, dtype=wanted)
    if device.type == "cpu" and wanted is not None and wanted.itemsize < best.itemsize:  # emulated, it would be slow
        for network in (pipe.vae, pipe.unet):
            compute_in(network, best)
    pipe.set_progress_bar_config(disable=True)
    pipe.tunet.register_to_config(inversion_steps=1)
    if offload:
        pipe.enable_model_cpu_offload(device=device)
    photo = load_image(options.photo)
    source = Camera.from_fov(DEFAULT_FOV, *photo.size)
    targets = orbit(source, frames) if frames > 1 else [step_aside(source, 20.0)]
    views = pipe(photo, targets, source, scale=1.0, steps=1, batch_size=size)
    with tempfile.TemporaryDirectory() as folder:
        views.save(Path(folder) / ("orbit.mp4" if frames > 1 else "view.png"))
    return {
        "dtype": str(pipe.unet.conv_in.weight.dtype).removeprefix("torch."),
        "gpu": f"{peak_memory(device):.2f}" if device.type == "cuda" else "",
        "where": f"{pipe.prior.image_size} px; {device.type}, torch {torch.__version__}, {sys.platform}",
    }


if __name__ == "__main__":
    run(main)
