"""Side-by-side pictures of an evaluation: which pairs are shown, and their pictures, small enough for one page."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from sidestep.evaluation.comparison import badness, choose_main_figure
from sidestep.evaluation.results import EvaluatedPair, Figure, Results
from sidestep.evaluation.tables import format_number
from sidestep.images import jpeg_url, load_image
from sidestep.media import contact_sheet

FIRST_PAIRS = 12
SORTED_SCENES = 6
SIDE = 184  # pixels of the longer side: 24 pairs of 8 pictures stay under 3.5 MB
QUALITY = 80

# Rows' names in the order of their columns; the main row and other programs' rows come after them.
COLUMNS = ("depth", "coarse", "variance", "addition", "auto")
# The target with its parts marked, where maps tell them.
PARTS_COLUMN, PARTS_TITLE = "parts", "target: unseen dark, object outlined"
# Of `first_sheet`: auto is one of A and B.
SHEET_ROWS = ("coarse", "variance", "addition")
SHORT = {"coarse": "coarse", "variance": "A", "addition": "B"}


def mark_parts(photo: Tensor, parts: Mapping[str, Tensor]) -> Tensor:
    """A target (3, S, S) in [-1, 1] with what the reference could not see darkened, and the object's outline drawn.

    Args:
        parts: those of PARTS that are known, (S, S) bool.
    """
    marked = photo.clone()
    if "unseen" in parts:
        marked = torch.where(parts["unseen"], 0.3 * (marked + 1) - 1, marked)
    if "object" in parts:
        mask = parts["object"].float()[None, None]
        eroded = -functional.max_pool2d(-mask, 5, stride=1, padding=2)
        outline = (mask != eroded)[0]
        marked = torch.where(outline, marked.new_tensor([1.0, 0.2, -1.0])[:, None, None], marked)
    return marked


@dataclass(frozen=True)
class ShownPairs:
    """Indices into `Results.pairs`.

    Attributes:
        first: the first of the list, unpicked.
        best, worst: one pair a scene, of the scenes that the main row does best and worst on, by its mean over the
            scene's pairs; the pair is the one nearest that mean. No scene is in both.
    """

    first: list[int]
    best: list[int]
    worst: list[int]


@dataclass(frozen=True)
class Picture:
    """A picture under its column's title and `Row.mark`; `uri` is None where there is no file."""

    column: str
    mark: str
    uri: str | None
    figures: list[str]


@dataclass(frozen=True)
class ShownPair:
    """A pair with its pictures, one a column."""

    number: int
    pair: EvaluatedPair
    pictures: list[Picture]


def shown_pairs(results: Results, main_row: str) -> ShownPairs:
    """The pairs that the report shows, which a run has to keep the pictures of."""
    first = list(range(min(FIRST_PAIRS, len(results.pairs))))
    figure = choose_main_figure(results)
    values = results.values.get(main_row, {}).get(figure.name, []) if figure else []
    scenes: dict[str, list[tuple[float, int]]] = {}
    for index, (pair, value) in enumerate(zip(results.pairs, values, strict=False)):
        if figure and value is not None and math.isfinite(value):
            scenes.setdefault(pair.scene, []).append((badness(figure, value), index))
    means = {scene: fmean(rank for rank, _ in entries) for scene, entries in scenes.items()}
    typical = [
        min(scenes[scene], key=lambda entry: (abs(entry[0] - means[scene]), entry[1]))[1]
        for scene in sorted(means, key=lambda scene: means[scene])
    ]
    count = min(SORTED_SCENES, len(typical) // 2)
    return ShownPairs(first, typical[:count], typical[::-1][:count])


def load_gallery(results: Results, indices: list[int], pictures: Path, main_row: str) -> list[ShownPair]:
    """The pictures of these pairs, from `pictures`/<column>/<index as 00000>.png.

    Columns without a file for any of the pairs, and pairs without any, are left out.

    Raises:
        SidestepError: if a picture is damaged.
    """
    rows = {row.name: row for row in results.rows}
    others = [main_row, *(row.name for row in results.rows if row.group == "predictions")]
    names = list(dict.fromkeys(["reference", *COLUMNS, *others, "target", PARTS_COLUMN]))
    files = {name: [pictures / name / f"{index:05d}.png" for index in indices] for name in names}
    names = [name for name in names if any(file.is_file() for file in files[name])]
    figures = _figures_beneath(results)
    gallery = []
    for place, index in enumerate(indices):
        if not any(files[name][place].is_file() for name in names):
            continue
        shown = []
        for name in names:
            row, file = rows.get(name), files[name][place]
            shown.append(
                Picture(
                    column=row.title if row else PARTS_TITLE if name == PARTS_COLUMN else name,
                    mark=row.mark if row else "",
                    uri=jpeg_url(_thumbnail(file), QUALITY) if file.is_file() else None,
                    figures=_values(results, name, figures, index),
                )
            )
        gallery.append(ShownPair(index + 1, results.pairs[index], shown))
    return gallery


def first_sheet(results: Results, pictures: Path) -> Image.Image:
    """The first pairs of the list, unpicked, in one picture: two pairs a row, with the columns named above.

    Only of columns that have a file for each of these pairs.
    """
    indices = shown_pairs(results, "").first
    titles = {row.name: row.title for row in results.rows}
    paths = {name: [pictures / name / f"{i:05d}.png" for i in indices] for name in ["reference", *SHEET_ROWS, "target"]}
    names = [name for name, files in paths.items() if all(file.is_file() for file in files)]
    strips = [[_thumbnail(paths[name][place]) for name in names] for place in range(len(indices))]
    beside = min(2, len(strips))
    rows = [[picture for strip in strips[i : i + beside] for picture in strip] for i in range(0, len(strips), beside)]
    return contact_sheet(rows, [SHORT.get(name, titles.get(name, name)) for name in names] * beside)


def _thumbnail(path: Path) -> Image.Image:
    image = load_image(path)
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return image


def _figures_beneath(results: Results) -> list[Figure]:
    main = choose_main_figure(results)
    psnr = [figure for figure in results.figures if figure.name == "psnr" and figure.per_pair and figure != main]
    return [main, *psnr] if main else psnr


def _values(results: Results, row: str, figures: list[Figure], index: int) -> list[str]:
    texts = []
    for figure in figures:
        column = results.values.get(row, {}).get(figure.name)
        if column is not None and (value := column[index]) is not None:
            texts.append(f"{figure.title} {format_number(value, figure.digits)}")
    return texts
