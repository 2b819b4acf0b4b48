"""The documentation: the site builds without a warning, links lead somewhere, and commands that it shows exist."""

import ast
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import fields
from functools import cache, partial
from html import unescape
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote

import playwright.sync_api as playwright
import pytest
import typer
import yaml

from sidestep.cli import app
from sidestep.config import load_config
from sidestep.errors import SidestepError

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md")),
        ROOT / "examples/README.md",
        ROOT / "src/sidestep/models/small/README.md",
    ]
)
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "scripts/site_hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; its build fails on any warning: links, anchors, pictures, names in code, pages in no menu."""
    folder = tmp_path_factory.mktemp("site")
    result = _build("--site-dir", str(folder))
    assert result.returncode == 0, result.stderr
    return folder


def _build(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", *arguments],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    loaded = re.compile(r"""<(?:script|img|link|iframe|source|video)\b[^>]*\b(?:src|href)=["'](?:https?:)?//[^"']*""")
    for page in site.rglob("*.html"):
        found = [tag for tag in loaded.findall(page.read_text(encoding="utf-8")) if 'rel="canonical"' not in tag]
        assert not found, page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//|@import", sheet.read_text(encoding="utf-8")), sheet


@pytest.fixture
def browser() -> Iterator[Any]:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium is installed")
    with playwright.sync_playwright() as running:
        found = running.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield found
        found.close()


def test_equations_and_search_work_without_a_network(site: Path, browser: Any) -> None:
    handler = partial(QuietHandler, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        home = f"http://127.0.0.1:{server.server_port}/"
        page = browser.new_page()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"{home}method.html")
        page.wait_for_selector("div.arithmatex .katex")
        assert page.locator(".katex-error").count() == 0
        assert page.locator(".arithmatex").count() == page.locator(".arithmatex:has(.katex)").count()
        page.goto(f"{home}?q=homography")
        page.wait_for_selector(".md-search-result__item", state="attached")
        assert all(url.startswith((home, "data:", "blob:")) for url in asked), asked
        server.shutdown()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None: ...


def test_what_pages_show_and_link_to_is_on_the_site(site: Path) -> None:
    """Pictures and links in a page's own HTML too, which the build does not look at."""
    address = re.compile(r"""<(?:a|img|source|video)\b[^>]*\b(?:src|href)="([^"#?:]+)["#?]""")
    for page in site.rglob("*.html"):
        if page.name != "404.html":  # its addresses begin at the host, because it stands for pages at any depth
            for found in address.findall(page.read_text(encoding="utf-8")):
                assert (page.parent / unquote(unescape(found))).exists(), f"{page.relative_to(site)}: {found}"


def test_links_to_code_lead_to_the_line_of_the_name(site: Path) -> None:
    source = (ROOT / "src/sidestep/fusion.py").read_text(encoding="utf-8").splitlines()
    line = next(number for number, text in enumerate(source, 1) if text.startswith("def variance_fusion"))
    method = (site / "method.html").read_text(encoding="utf-8")
    assert f'repository/src/sidestep/fusion.py.html#__codelineno-0-{line}"' in method
    assert f'id="__codelineno-0-{line}"' in (site / "repository/src/sidestep/fusion.py.html").read_text("utf-8")


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    import sidestep

    reference = (site / "api.html").read_text(encoding="utf-8")
    missing = [name for name in sidestep.__all__ if not re.search(rf'<h\d id="sidestep\.[\w.]*\b{name}"', reference)]
    assert not missing


def test_a_broken_page_fails_the_build(tmp_path: Path) -> None:
    """Each fault by itself is a warning, and any warning fails the build."""
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "index.md").write_text(
        "# Start\n\n[page](none.md) [anchor](#none) ![picture](none.png) [file](../none.py)\n\n"
        "[a name][sidestep.NothingLikeIt]\n\n[`no_such_name`](../src/sidestep/fusion.py)\n"
    )
    (docs / "orphan.md").write_text("# In no menu\n")
    settings = yaml.dump({"INHERIT": str(ROOT / "mkdocs.yml"), "docs_dir": str(docs), "hooks": []})
    config = tmp_path / "mkdocs.yml"
    config.write_text(settings + f"hooks: ['{ROOT}/scripts/site_hooks.py']\nnav: [index.md, missing.md]\n")
    result = _build("--config-file", str(config), "--site-dir", str(tmp_path / "site"))
    assert result.returncode != 0
    for fault in (
        "'none.md'",
        "no such anchor on this page",
        "'none.png'",
        "none.py",
        "NothingLikeIt",
        "`no_such_name`, which src/sidestep/fusion.py does not define",
        "orphan.md",
        "missing.md",
    ):
        assert fault in result.stderr, f"no warning of {fault}:\n{result.stderr}"


@each_page
def test_links_lead_somewhere_in_the_repository(page: Path, hooks: ModuleType) -> None:
    """As a reader of the repository follows them: relative to the page, anchors as a forge makes them of headings."""
    for link in hooks.links(page.read_text(encoding="utf-8")):
        address = link["target"]
        if re.match(r"[a-z]+:", address):
            continue
        path, _, anchor = address.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), address
        assert target.is_relative_to(ROOT), address
        if anchor and target.suffix == ".md":
            assert anchor in _anchors(target), address
        if (name := hooks.code_name(link["text"])) and target.suffix == ".py":
            assert hooks.line_of(target, name), f"{name} is not in {path}"


@cache
def _anchors(page: Path) -> set[str]:
    text = re.sub(r"^(```|~~~).*?^\1", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    found: list[str] = []
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", text, re.M):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        found.append(f"{slug}-{found.count(slug)}" if slug in found else slug)
    return set(found)


@each_page
def test_commands_that_are_shown_parse(page: Path) -> None:
    for command, whole in _commands(page.read_text(encoding="utf-8")):
        _parse(command, whole)


def test_a_command_that_is_shown_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    _parse(["--install-completion"], whole=True)
    assert not list(tmp_path.iterdir())


def test_a_wrong_command_is_found() -> None:
    text = "Run `sidestep view --no-such-option`.\n\n    sidestep view photo.jpg --yaw 20\n"
    commands = list(_commands(text))
    assert [whole for _, whole in commands] == [True, False]
    for command, whole in commands:
        with pytest.raises(AssertionError, match=r"no-such-option|Missing parameter: out"):
            _parse(command, whole)


def _commands(markdown: str) -> Iterator[tuple[list[str], bool]]:
    """The words after `sidestep` of each command, and whether it stands in a block and so must be whole.

    In a block with lines that begin with `$`, the other lines are output.
    """
    blocks = re.findall(r"^(?:```|~~~)(?:sh|bash|console|text)?\n(.*?)^(?:```|~~~)", markdown, re.M | re.S)
    prose = re.sub(r"^(```|~~~).*?^\1", "", markdown, flags=re.M | re.S)
    blocks += re.findall(r"(?:^(?: {4}|\t).*\n?)+", prose, re.M)
    prose = re.sub(r"^(?: {4}|\t).*", "", prose, flags=re.M)
    for block in blocks:
        lines = [line.strip() for line in block.replace("\\\n", " ").splitlines()]
        if any(line.startswith("$ ") for line in lines):
            lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        for line in lines:
            for part in line.split("&&"):
                if match := re.match(r"(?:\w+=\S+ )*(?:\S*/|.* -m )?sidestep (.*)", part.strip()):
                    words = shlex.split(re.split(r" \d?[<>|;]", match[1])[0], comments=True)
                    yield _words(words), "..." not in words
    for span in re.findall(r"`sidestep ([^`]+)`", prose):
        yield _words(shlex.split(span)), False


def _words(words: list[str]) -> list[str]:
    """Without what stands for more; COMMAND stands for any."""
    words = ["view" if word == "COMMAND" else word for word in words]
    return [word for word in words if word != "..." and not word.startswith("[") and not word.endswith("]")]


def _parse(words: list[str], whole: bool) -> None:
    """Parses a command line as typer does, with commands that do nothing. A mention need not name what is required."""
    command = typer.main.get_command(app)
    _disarm(command)
    try:
        command.main(list(words), "sidestep", standalone_mode=False)
    except Exception as error:
        mention = type(error).__name__ in ("MissingParameter", "BadOptionUsage", "NoArgsIsHelpError") and not whole
        if not mention and "Missing command" not in str(error):
            raise AssertionError(f"sidestep {shlex.join(words)}: {error}") from None
    else:
        _check_settings(words)


def _disarm(command: Any) -> None:
    command.callback = lambda **_: None
    for parameter in command.params:
        parameter.callback = None  # --version prints, and --install-completion writes into the shell's settings
    for one in getattr(command, "commands", {}).values():
        _disarm(one)


def _check_settings(words: list[str]) -> None:
    """`key=value` words against the settings of a configuration that is in the repository."""
    if words[0] not in ("train", "pretrain") or not (ROOT / words[1]).is_file():
        return
    from sidestep.pretraining import PretrainConfig
    from sidestep.training import TrainConfig

    overrides = [word for word in words[2:] if "=" in word and "..." not in word]
    try:
        load_config(TrainConfig if words[0] == "train" else PretrainConfig, ROOT / words[1], overrides)
    except SidestepError as error:
        raise AssertionError(f"sidestep {shlex.join(words)}: {error}") from None


@pytest.mark.parametrize("page", sorted((ROOT / "docs/extend").glob("*.md")), ids=lambda page: page.stem)
def test_pages_about_extending_show_programs_that_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each page's blocks, one after the other, where `tests/data` and `examples` are."""
    for folder in ("tests", "examples"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.chdir(tmp_path)
    program = "\n".join(_python(page))
    assert program
    exec(compile(program, str(page), "exec"), {"__name__": "example"})


def test_every_setting_is_documented() -> None:
    from sidestep.training import TrainConfig
    from sidestep.tunet import TUNet

    settings = [field.name for field in fields(TrainConfig)]
    arguments = [name for name in signature(TUNet.__init__).parameters if name != "self"]
    for page, names in (("training.md", settings), ("formats/model.md", arguments)):
        text = (ROOT / "docs" / page).read_text(encoding="utf-8")
        assert not [name for name in names if f"`{name}`" not in text], page


def test_examples_in_python_compile() -> None:
    for page in PAGES:
        for block in _python(page):
            ast.parse(block, filename=str(page))


def _python(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
