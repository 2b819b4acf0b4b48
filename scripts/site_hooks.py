"""mkdocs hooks: what pages link to outside docs/ becomes part of the site.

Pages are written for a reader of the repository, with relative links such as `../src/sidestep/fusion.py`. On the site
the file lies under `repository/`: Markdown as a page, text as a page with its lines numbered, everything else
(pictures, reports, long tables) as it is. What such Markdown links to follows.

A link to a Python file whose text is code says what is meant in it: [`fuse`](../src/sidestep/fusion.py) goes to the
line of `fuse`, and [`Camera.rays`](...) to that method's. A name that the file does not define is a warning, so such
links cannot rot when lines move.

A notebook becomes a page as it was last run.
"""

import ast
import logging
import re
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath
from typing import Any

from mkdocs.structure.files import File, Files, InclusionLevel
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parents[1]
DOCS = "docs"
MIRROR = "repository"
PAGE_OF_TEXT = {".py": "python", ".yaml": "yaml", ".toml": "toml", ".json": "json", ".csv": "text", ".cff": "yaml"}
LARGEST_PAGE = 100_000  # bytes; more lines with numbers than that take a browser many seconds

# A block or span of code, which nothing is changed in, or else a link or picture.
CODE_OR_LINK = re.compile(
    r"^(?P<fence>`{3,}|~{3,}).*?^(?P=fence)|^(?: {4}|\t)[^\n]*|(?P<ticks>`+)[^`].*?(?P=ticks)"
    r"|(?P<head>!?\[(?P<text>[^\]\[]*(?:\[[^\]\[]*\][^\]\[]*)*)\]\()(?P<target>[^)\s]+)\)",
    re.M | re.S,
)

log = logging.getLogger("mkdocs.hooks.site")


def on_files(files: Files, *, config: Any) -> Files:
    """Adds notebooks as pages, and every file outside docs/ that a page links to or the navigation names."""
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        for made in _of_notebook(file, config):
            files.append(made)
    waiting = [(_place(file.src_uri), file.content_string) for file in files.documentation_pages()]
    named = re.findall(rf"{MIRROR}/[^'\"\s]+", str(config.nav))
    known: set[str] = set()

    def add(place: str) -> None:
        if place in known or _inside(place) or not (ROOT / place).is_file():
            return  # mkdocs itself warns of what is not there
        known.add(place)
        file = _mirrored(place, config)
        files.append(file)
        if file.is_documentation_page() and place.endswith(".md"):
            waiting.append((place, file.content_string))

    for uri in named:
        add(uri.removeprefix(f"{MIRROR}/"))
    while waiting:
        place, markdown = waiting.pop()
        for match in links(markdown):
            if target := _target(place, match["target"]):
                add(target[0])
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """Turns links between places in the repository into links between pages of the site."""
    place = _place(page.file.src_uri)

    def turn(match: re.Match[str]) -> str:
        target = _target(place, match["target"])
        if target is None:
            return match[0]
        to, anchor = target
        if to.endswith(".py") and (name := code_name(match["text"])):
            line = line_of(ROOT / to, name)
            if line is None:
                log.warning("%s links to `%s`, which %s does not define", place, name, to)
            else:
                anchor = f"__codelineno-0-{line}"
        link = relpath(_uri(to), str(PurePosixPath(page.file.src_uri).parent))
        return f"{match['head']}{link}{'#' + anchor if anchor else ''})"

    return CODE_OR_LINK.sub(lambda match: turn(match) if match["target"] else match[0], markdown)


def on_page_content(html: str, *, page: Any, config: Any, files: Files) -> str:
    """Tells mkdocs, which looks for anchors in headings only, of those that the lines of code have."""
    anchors = set(re.findall(r'id="(__codelineno-[\d-]+)"', html))
    page.present_anchor_ids = (page.present_anchor_ids or set()) | anchors  # of a notebook, mkdocs knows none
    return _turn_links(html, page.file, files) if page.file.src_uri.endswith(".ipynb") else html


def _turn_links(html: str, source: File, files: Files) -> str:
    """A notebook's links to other pages, which mkdocs leaves as they are."""

    def turn(match: re.Match[str]) -> str:
        target = files.get_file_from_path(normpath(f"{PurePosixPath(source.src_uri).parent}/{match[1]}"))
        if target is None:
            log.warning("%s links to %s, which is not there", source.src_uri, match[1])
            return match[0]
        return f'href="{target.url_relative_to(source)}"'

    return re.sub(r'href="([^":#]+\.md)"', turn, html)


def _place(uri: str) -> str:
    """Where in the repository the file of the site lies that has this source path."""
    if not uri.startswith(f"{MIRROR}/"):
        return f"{DOCS}/{uri}"
    place = uri.removeprefix(f"{MIRROR}/")
    return place if (ROOT / place).exists() else place.removesuffix(".md")


def _uri(place: str) -> str:
    """The source path on the site of a file of the repository."""
    if _inside(place):
        return re.sub(r"\.ipynb$", ".md", place.removeprefix(f"{DOCS}/"))
    return f"{MIRROR}/{place}.md" if _language(place) else f"{MIRROR}/{place}"


def _language(place: str) -> str | None:
    """What a page of the file is highlighted as; None if it is copied."""
    path = ROOT / place
    small = path.is_file() and path.stat().st_size <= LARGEST_PAGE
    return PAGE_OF_TEXT.get(path.suffix) if small else None


def _inside(place: str) -> bool:
    return place.startswith(f"{DOCS}/")


def _target(place: str, link: str) -> tuple[str, str] | None:
    """The linked file of the repository and its anchor; nothing for links to the web and within the page."""
    path, _, anchor = link.partition("#")
    if not path or re.match(r"[a-z]+:", path):
        return None
    return normpath(str(PurePosixPath(place).parent / path)), anchor


def links(markdown: str) -> list[re.Match[str]]:
    """All links and pictures outside code, with the groups `text` and `target`."""
    return [match for match in CODE_OR_LINK.finditer(markdown) if match["target"]]


def _mirrored(place: str, config: Any) -> File:
    path, language = ROOT / place, _language(place)
    if language is None:
        return File.generated(config, _uri(place), abs_src_path=str(path), inclusion=InclusionLevel.NOT_IN_NAV)
    text = path.read_text(encoding="utf-8").rstrip()
    head = "---\nsearch: {exclude: true}\nhide: [toc]\n---\n"
    page = f'{head}\n# {place}\n\n~~~~{{ .{language} linenums="1" }}\n{text}\n~~~~\n'
    return File.generated(config, _uri(place), content=page, inclusion=InclusionLevel.NOT_IN_NAV)


def code_name(text: str) -> str | None:
    """The name that a link's text gives as code, if it is one: `Camera.rays`, not `cameras.py`."""
    match = re.fullmatch(r"`([A-Za-z_][\w.]*)(?:\(\))?`", text)
    return match[1] if match and not match[1].endswith(".py") else None


def _of_notebook(file: File, config: Any) -> list[File]:
    """A page, and the pictures in it."""
    pictures = f"{PurePosixPath(file.src_uri).stem}_files"
    text, found = MarkdownExporter().from_filename(str(file.abs_src_path), {"output_files_dir": pictures})
    parent = PurePosixPath(file.src_uri).parent
    return [
        File.generated(config, re.sub(r"\.ipynb$", ".md", file.src_uri), content=text),
        *(File.generated(config, str(parent / name), content=data) for name, data in found["outputs"].items()),
    ]


def line_of(path: Path, name: str) -> int | None:
    """The line on which a Python file defines `function`, `Class`, `Class.method` or `CONSTANT`."""
    body: list[ast.stmt] = ast.parse(path.read_text(encoding="utf-8")).body
    line = None
    for part in name.split("."):
        found = next((node for node in body if part in _names(node)), None)
        if found is None:
            return None
        line, body = found.lineno, getattr(found, "body", [])
    return line


def _names(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]
