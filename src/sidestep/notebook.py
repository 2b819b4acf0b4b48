"""How results show themselves in a notebook: small pieces of HTML that hold their pictures."""

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from PIL import Image

from sidestep.images import jpeg_url

if TYPE_CHECKING:
    from sidestep.pipeline import Views

LARGE, SMALL = 256, 128  # pixels, the longer side of a picture
FEW = 4  # views up to which the coarse ones are shown too


def views_html(views: "Views") -> str:
    """The photo and its views: one beside its coarse view, a few with theirs below, many in a grid of small ones.

    No colours but the pictures' own and the page's, so that it fits a light page and a dark one.
    """
    count = len(views.images)
    both = len(set(views.fusion)) > 1
    names = [f"view {i + 1}, {views.fusion[i]}" if both else f"view {i + 1}" for i in range(count)]
    photo, finals = ("photo", views.source), list(zip(names, views.images, strict=True))
    if count > FEW:
        return pictures_html([photo, *finals], size=SMALL)
    if count == 1:
        return pictures_html([photo, ("coarse", views.coarse[0]), ("view", views.images[0])], columns=3)
    coarse = [(f"view {i + 1}, coarse", picture) for i, picture in enumerate(views.coarse)]
    return pictures_html([photo, *finals, ("", None), *coarse], columns=count + 1)


def pictures_html(pictures: Sequence[tuple[str, Image.Image | None]], columns: int = 0, size: int = LARGE) -> str:
    """Named pictures in a grid, as JPEG.

    Args:
        pictures: None leaves a place empty.
        columns: that share the page's width; 0: as many as fit.
        size: pixels, the longer side of a picture at most.
    """
    widths = f"repeat({columns},minmax(0,{size}px))" if columns else f"repeat(auto-fill,{size}px)"
    figures = "".join(_figure(name, picture, size) if picture else "<div></div>" for name, picture in pictures)
    return f'<div style="display:grid;grid-template-columns:{widths};gap:8px">{figures}</div>'


def _figure(name: str, picture: Image.Image, size: int) -> str:
    small = picture.convert("RGB")
    small.thumbnail((size, size), Image.Resampling.LANCZOS)
    return (
        f'<figure style="margin:0"><img src="{jpeg_url(small, 85)}" alt="{escape(name)}" '
        f'style="display:block;margin:0;width:{small.width}px;max-width:100%;height:auto">'
        f'<figcaption style="font-size:12px;opacity:.8">{escape(name)}</figcaption></figure>'
    )
