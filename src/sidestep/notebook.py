"""How results show themselves in a notebook: small pages of HTML that hold their pictures."""

import base64
from collections.abc import Sequence
from html import escape
from io import BytesIO
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from sidestep.pipeline import Views

LARGE, SMALL = 256, 128  # pixels, the longer side of a picture
FEW = 4  # views up to which the coarse ones are shown too


def views_html(views: "Views") -> str:
    """The photo and its views: a few with the coarse view above each, many in a grid of small ones.

    No colours but the pictures' own and the page's, so that it fits a light page and a dark one.
    """
    few = len(views.images) <= FEW
    size = LARGE if few else SMALL
    columns = [[_figure(views.source, "photo", size)]]
    for index, (image, coarse, fusion) in enumerate(zip(views.images, views.coarse, views.fusion, strict=True)):
        name = f"view {index + 1}"
        rows = [_figure(coarse, f"{name}, coarse", size)] if few else []
        columns.append([*rows, _figure(image, f"{name}, {fusion}" if few else name, size)])
    return _row(columns)


def pictures_html(pictures: Sequence[tuple[str, Image.Image]]) -> str:
    """Named pictures side by side."""
    return _row([[_figure(picture, name, LARGE)] for name, picture in pictures])


def _row(columns: Sequence[Sequence[str]]) -> str:
    stacks = "".join(f'<div style="display:grid;gap:8px;align-content:start">{"".join(rows)}</div>' for rows in columns)
    return f'<div style="display:flex;flex-wrap:wrap;gap:8px">{stacks}</div>'


def _figure(picture: Image.Image, name: str, size: int) -> str:
    small = picture.convert("RGB")
    small.thumbnail((size, size), Image.Resampling.LANCZOS)
    buffer = BytesIO()
    small.save(buffer, "JPEG", quality=85)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return (
        f'<figure style="margin:0"><img src="data:image/jpeg;base64,{data}" width="{small.width}" '
        f'height="{small.height}" alt="{escape(name)}" style="display:block;margin:0">'
        f'<figcaption style="font-size:12px;opacity:.75">{escape(name)}</figcaption></figure>'
    )
