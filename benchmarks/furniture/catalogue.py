"""From the libraries of Debian's sweethome3d-furniture to a folder of models.

    apt-get download sweethome3d-furniture && dpkg-deb -x sweethome3d-furniture_*.deb package
    python benchmarks/furniture/catalogue.py package/usr/share/sweethome3d/furniture --out models/catalogue

A library (.sh3f) is a ZIP archive of OBJ models and a properties file that numbers them from 1. Each model goes to a
folder of its own with its materials and textures, standing as the catalogue shows it; textures that a material names
by a path of its maker's machine are found by their file name. What has no mesh is refused, and so is what would train
but has a twin that tests, and what is broken; refused.json lists them. The libraries' licences lie beside the models.
"""

import argparse
import hashlib
import json
import re
import shutil
import sys
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from kinds import kind_of

from models import FurnitureError, Model, write_model

VERSION = "1.8-1"  # of Debian's package; another may number its models otherwise, and numbers decide the split
LIBRARIES = {  # and the SHA-256 of each in this version; Reallusion's are people
    "BlendSwap-CC-0": "7ef093fe70cedbb160bdb532d86a84580459635e34130c16777f549eba1993dc",
    "BlendSwap-CC-BY": "29ae78937b4d5dbe93db74067817a984fa411f017b007fd666bc40368bdb0c83",
    "KatorLegaz": "f512443b5d3a6903497573095f971f44334b3165ab32182133051fa9487764a6",
    "Scopia": "b4505451b1e8ab339c101c0afddfef4e1a07b95aa8c821c61ec41487afd43850",
}
TWINS = {  # models that would train, and the nearly same ones that test: most of their points agree
    "scopia096": "scopia095",
    "blendswapcc0153": "blendswapcc0144",
}
UNSOUND = {  # seen in pictures of all models from above
    "blendswapccby048": "it has no top, and is black inside",
    "katorlegaz074": "its top lies within another, and flickers",
}
LICENCES = {
    "BlendSwap-CC-0": "CC0 1.0",
    "BlendSwap-CC-BY": "CC BY 3.0",
    "KatorLegaz": "CC BY 3.0 US",
    "Scopia": "CC BY 3.0",
}
CREDITS = {
    "KatorLegaz": "Andrew Kator & Jennifer Legaz",
    "Scopia": "Emmanuel Puybaret / eTeks and Scopia Visual Interfaces Systems, s.l. (http://www.scopia.es)",
}
PROPERTIES = "PluginFurnitureCatalog.properties"
CM = 0.01


@dataclass(frozen=True)
class Entry:
    """What a library says of one of its models; `values` are its properties without the number."""

    index: int
    values: dict[str, str]

    @property
    def size(self) -> tuple[float, float, float]:
        width, depth, height = (float(self.values[key]) * CM for key in ("width", "depth", "height"))
        return width, depth, height


class Archive:
    """A library whose members all lie inside of it.

    Raises:
        FurnitureError: if it is no ZIP archive, or a member's path leads out of it.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._zip = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile) as error:
            raise FurnitureError(f"{path}: cannot be read as a library ({error})") from None
        self.path = path
        self._names: dict[str, str] = {}
        for name in self._zip.namelist():
            pure = PurePosixPath(name)
            if pure.is_absolute() or ".." in pure.parts or "\\" in name or ":" in name:
                raise FurnitureError(f"{path}: member {name!r} would be written outside of its folder; do not use it")
            self._names[name.lower()] = name

    def read(self, name: str) -> bytes:
        """A member, whatever the case of its name.

        Raises:
            KeyError: if there is none.
        """
        return self._zip.read(self._names[name.lower()])

    def find(self, folder: str, file: str) -> str | None:
        """A member of this file name: in the folder, else below it, else anywhere if only one has the name."""
        name = re.split(r"[\\/]", file)[-1].lower()
        if (direct := f"{folder}/{name}".lower()) in self._names:
            return self._names[direct]
        alike = [member for low, member in self._names.items() if low.rsplit("/", 1)[-1] == name]
        below = [member for member in alike if member.lower().startswith(folder.lower() + "/")]
        return below[0] if below else alike[0] if len(alike) == 1 else None


def read_properties(text: str) -> list[Entry]:
    """The numbered entries of a library's properties file."""
    entries: dict[int, dict[str, str]] = {}
    for line in text.splitlines():
        if match := re.match(r"(\w+)#(\d+)\s*=\s*(.*)", line):
            value = re.sub(r"\\u([0-9a-fA-F]{4})", lambda m: chr(int(m[1], 16)), match[3]).strip()
            entries.setdefault(int(match[2]), {})[match[1]] = value
    return [Entry(index, entries[index]) for index in sorted(entries)]


def model_name(library: str, index: int) -> str:
    """E.g. scopia032: the name that decides the model's split."""
    return f"{library.lower().replace('-', '')}{index:03d}"


def turned(obj: str, rotation: str | None) -> tuple[str, str | None]:
    """An OBJ file's text with its points and normals turned, and what is wrong with its mesh, or None.

    Args:
        rotation: nine numbers, a matrix row by row, or None.
    """
    matrix = np.array(rotation.split(), dtype=float).reshape(3, 3) if rotation else np.eye(3)
    lines, points, faces = [], [], 0
    for line in obj.splitlines():
        key, *values = line.split() or [""]
        if key in ("v", "vn"):
            vector = matrix @ np.array(values[:3], dtype=float)
            line = " ".join([key, *(f"{x:.6g}" for x in vector)])
            if key == "v":
                points.append(vector)
        elif key == "f":
            faces += len(values) >= 3
        lines.append(line)
    return "\n".join(lines) + "\n", _fault(np.array(points), faces)


def _fault(points: np.ndarray, faces: int) -> str | None:
    if not len(points) or not faces:
        return "no mesh"
    if not np.isfinite(points).all():
        return "a point of its mesh is not finite"
    extent = points.max(0) - points.min(0)
    return "its mesh has no extent" if sorted(extent)[1] <= 1e-6 * max(extent.max(), 1e-30) else None


def extract(archive: Archive, library: str, entry: Entry, out: Path) -> Model | str | None:
    """Writes one model; returns it, or why it is refused, or None where it does not belong into a room."""
    values = entry.values
    kind = kind_of(values["name"], values["category"], entry.size, float(values.get("elevation", 0)) * CM)
    if kind is None:
        return None
    name = model_name(library, entry.index)
    if name in TWINS:
        return f"it would train, and is nearly {TWINS[name]}, which tests"
    if name in UNSOUND:
        return UNSOUND[name]
    path = values["model"].lstrip("/")
    try:
        obj, fault = turned(archive.read(path).decode("latin-1"), values.get("modelRotation"))
    except KeyError:
        return f"its file {path} is not in the library"
    if fault is not None:
        return fault
    inner = path.rpartition("/")[0]
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    materials = [archive.find(inner, x) for x in re.findall(r"^mtllib\s+(.+?)\s*$", obj, re.M)]
    text = "\n".join(archive.read(found).decode("latin-1") for found in materials if found)
    (folder / f"{name}.mtl").write_text("\n".join(_textures(archive, inner, text, folder)) + "\n", encoding="utf-8")
    obj = re.sub(r"^mtllib.*$", "", obj, flags=re.M)
    (folder / f"{name}.obj").write_text(f"mtllib {name}.mtl\n{obj}", encoding="utf-8")
    top = float(values.get("dropOnTopElevation", values["height"])) * CM
    model = Model(
        name=name,
        library=library,
        title=values["name"],
        creator=CREDITS.get(library, values["creator"]),
        licence=LICENCES[library],
        category=kind.category,
        file=folder / f"{name}.obj",
        size=entry.size,
        place=kind.place,
        main=kind.main,
        top=top if top > 0 else None,
    )
    write_model(model)
    return model


def _textures(archive: Archive, inner: str, materials: str, folder: Path) -> Iterator[str]:
    """The materials' lines, each texture copied beside them; a texture that is nowhere is left out."""
    for line in materials.splitlines():
        words = line.split()
        if not words or not words[0].lower().startswith(("map_", "bump", "refl", "disp")):
            yield line
        elif words[0].lower() in ("map_kd", "map_d"):
            file = line.split(None, 1)[1].strip()
            found = archive.find(inner, file) or archive.find(inner, words[-1])
            if found is not None:
                target = re.sub(r"[^\w.-]", "_", found.rsplit("/", 1)[-1])
                (folder / target).write_bytes(archive.read(found))
                yield f"{words[0]} {target}"


def warn_of_other_version(archive: Archive, library: str) -> None:
    """Warns where a library is not the one of `VERSION`."""
    if hashlib.sha256(archive.path.read_bytes()).hexdigest() != LIBRARIES[library]:
        fault = f"is not the one of sweethome3d-furniture {VERSION}; its models may not be those of splits.json"
        print(f"warning: {archive.path} {fault}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, help="folder of .sh3f files")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    refused: dict[str, str] = {}
    kept = left_out = 0
    for library in LIBRARIES:
        archive = Archive(options.package / f"{library}.sh3f")
        warn_of_other_version(archive, library)
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / f"LICENSE-{library}.txt").write_bytes(archive.read("LICENSE.TXT"))
        for entry in read_properties(archive.read(PROPERTIES).decode("latin-1")):
            result = extract(archive, library, entry, options.out)
            if isinstance(result, str):
                name = model_name(library, entry.index)
                refused[name] = result
                shutil.rmtree(options.out / name, ignore_errors=True)
                print(f"refused {name} ({entry.values['name']}): {result}", file=sys.stderr)
            kept += isinstance(result, Model)
            left_out += result is None
    (options.out / "refused.json").write_text(json.dumps(refused, indent=2) + "\n", encoding="utf-8")
    print(f"{kept} models in {options.out}; {len(refused)} refused, {left_out} are nothing for a room")


if __name__ == "__main__":
    try:
        main()
    except FurnitureError as error:
        sys.exit(str(error))
