"""Pictures side by side in one, and one after another in an animation."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sidestep.errors import SidestepError
from sidestep.files import atomic_path

FONT_SIZE = 14  # pixels


def contact_sheet(
    rows: Sequence[Sequence[Image.Image]], labels: Sequence[str] | None = None, margin: int = 4
) -> Image.Image:
    """A white sheet with the pictures in a grid.

    Args:
        rows: the pictures of each row; rows may differ in length, and pictures in size.
        labels: a caption above each column.
        margin: between pictures and at the border, in pixels.

    Raises:
        SidestepError: if there are no pictures, or there is not one label a column.
    """
    columns = max((len(row) for row in rows), default=0)
    if columns == 0:
        raise SidestepError("a contact sheet needs at least one picture")
    if labels is not None and len(labels) != columns:
        raise SidestepError(f"a contact sheet of {columns} columns needs {columns} labels, not {len(labels)}")
    font = ImageFont.load_default(FONT_SIZE)
    captions = labels or [""] * columns
    widths = [
        max([*(row[column].width for row in rows if column < len(row)), round(font.getlength(captions[column]))])
        for column in range(columns)
    ]
    heights = [max((picture.height for picture in row), default=0) for row in rows]
    top = FONT_SIZE + 2 * margin if labels else margin
    size = (sum(widths) + margin * (columns + 1), top + sum(heights) + margin * len(rows))
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    left = margin
    for column, width in enumerate(widths):
        draw.text((left + width / 2, top / 2), captions[column], fill="black", font=font, anchor="mm")
        upper = top
        for row, height in zip(rows, heights, strict=True):
            if column < len(row):
                sheet.paste(row[column].convert("RGB"), (left, upper))
            upper += height + margin
        left += width + margin
    return sheet


def save_animation(images: Sequence[Image.Image], path: str | Path, fps: float = 12) -> None:
    """Writes pictures as an animation, in the format that the suffix of `path` names.

    .mp4 is H.264 that browsers play, its sides padded to even numbers of pixels; .gif (256 colours a picture, at
    most 50 pictures a second) and .webp loop forever. The file appears whole or not at all.

    Args:
        images: at least one, all of one size.
        fps: pictures a second.

    Raises:
        SidestepError: if the suffix is another, there are no pictures, their sizes differ, or `fps` is not positive.
    """
    path = Path(path)
    write = _WRITERS.get(path.suffix.lower())
    if write is None:
        raise SidestepError(f"{path}: animations are written as {', '.join(ANIMATIONS)}; name the file so")
    if not images:
        raise SidestepError(f"{path}: there are no pictures to animate")
    sizes = sorted({image.size for image in images})
    if len(sizes) > 1:
        raise SidestepError(f"{path}: the pictures of an animation must be of one size, not of {sizes}")
    if not fps > 0:
        raise SidestepError(f"{path}: {fps} pictures a second; it must be more than 0")
    with atomic_path(path) as temporary:
        write([image.convert("RGB") for image in images], temporary, fps)


def _save_mp4(images: Sequence[Image.Image], path: Path, fps: float) -> None:
    import av
    from av.video.reformatter import ColorRange, Colorspace

    width, height = images[0].size
    rate = Fraction(fps).limit_denominator(1000)
    # The index goes first (faststart), so that a browser starts to play before it has the whole file.
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "16"})
        stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
        context = stream.codec_context
        # Said in the file, because players guess untagged colours by the picture's size.
        context.color_range, context.colorspace = ColorRange.MPEG, Colorspace.ITU709
        context.color_primaries = context.color_trc = 1
        for image in images:
            pixels = np.pad(np.asarray(image), ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(
                format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _save_gif(images: Sequence[Image.Image], path: Path, fps: float) -> None:
    # Browsers slow what asks for less than 20 ms down to 100 ms.
    durations = [max(20, duration) for duration in _durations(len(images), fps, unit=10)]
    images[0].save(path, save_all=True, append_images=images[1:], duration=durations, loop=0)


def _save_webp(images: Sequence[Image.Image], path: Path, fps: float) -> None:
    durations = _durations(len(images), fps, unit=1)
    images[0].save(path, save_all=True, append_images=images[1:], duration=durations, loop=0, quality=90)


def _durations(count: int, fps: float, unit: int) -> list[int]:
    """Milliseconds that each picture stands, whole units whose sum stays true to `fps`."""
    times = [round(1000 / fps / unit * i) * unit for i in range(count + 1)]
    return [end - start for start, end in pairwise(times)]


_WRITERS: dict[str, Callable[[Sequence[Image.Image], Path, float], None]] = {
    ".mp4": _save_mp4,
    ".gif": _save_gif,
    ".webp": _save_webp,
}
ANIMATIONS = tuple(_WRITERS)
