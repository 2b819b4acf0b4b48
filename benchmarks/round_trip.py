"""Invert pictures to t* and sample them back: how near does DDIM come to where it started?

For each t*, number of steps, and timestep at which an inversion step asks the network ("next" or "current"; sampling
is the same): PSNR against the autoencoder's own picture and against the photo, and the error of the latents that come
back, root mean square. The first row is the autoencoder alone, which bounds what the others can reach on the photo.
"""

import sys
from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean
from typing import get_args

import held_out
from held_out import psnr, signal
from table import markdown, publish, run

from sidestep.inversion import InversionSettings, TimestepReading, invert, sample


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints the table."""
    parser = held_out.parser(__doc__)
    parser.add_argument("--steps", type=int, nargs="+", default=[30], help="numbers of steps [30]")
    parser.add_argument("--frames", type=int, default=1, help="pictures of each scene, evenly spread [1]")
    options = parser.parse_args(arguments)
    prior = held_out.load_prior(options)
    scenes = held_out.scenes(options.data, options.split, options.scenes)
    spread = [(2 * i + 1) / (2 * options.frames) for i in range(options.frames)]
    frames = [scene.frames[int(at * len(scene.frames))] for scene in scenes for at in spread]
    cases = [
        InversionSettings(t_star, steps, timestep)
        for t_star in options.t_star or [prior.default_t_star()]
        for steps in options.steps
        for timestep in get_args(TimestepReading)
    ]
    stars = {case.t_star: signal(prior, case.t_star) for case in cases}

    results: dict[InversionSettings, list[tuple[float, float, float]]] = defaultdict(list)
    alone: list[float] = []
    size: list[float] = []
    for start in range(0, len(frames), options.batch_size):
        photos = held_out.pictures(frames[start : start + options.batch_size], prior.image_size)
        latents = prior.encode(photos)
        size.extend(latents.square().mean(dim=(1, 2, 3)).sqrt().tolist())
        own = prior.decode(latents)
        alone.extend(psnr(own, photos))
        for case in cases:
            print(f"pictures from {start + 1} of {len(frames)}: {case}", file=sys.stderr)
            inverted = invert(prior, latents, case.grid, case.timestep)
            back = sample(prior, inverted.latents, case.grid)
            picture = prior.decode(back)
            off = (back - latents).square().mean(dim=(1, 2, 3)).sqrt().tolist()
            results[case].extend(zip(psnr(picture, own), psnr(picture, photos), off, strict=True))

    header = ["t* (a)", "steps", "asked at", "dB, autoencoder's picture", "dB, photo", "latents' RMS error"]
    rows = [["autoencoder alone", "", "", "", f"{fmean(alone):.2f}", ""]]
    for case, values in results.items():
        own_db, photo_db, error = (fmean(column) for column in zip(*values, strict=True))
        star = f"{case.t_star} ({stars[case.t_star] ** 2:.2f})"
        rows.append([star, f"{case.steps}", case.timestep, f"{own_db:.2f}", f"{photo_db:.2f}", f"{error:.4f}"])
    caption = (
        f"{len(frames)} pictures of {len(scenes)} {options.split} scenes; their latents' RMS is {fmean(size):.2f}. "
        f"{held_out.measured_on(prior)}"
    )
    publish(markdown(caption, header, rows), options.out)


if __name__ == "__main__":
    run(main)
