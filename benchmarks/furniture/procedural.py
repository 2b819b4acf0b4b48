"""Furniture without end: objects that Infinigen's factories generate, as a folder of models.

    python3.11 -m venv .infinigen
    .infinigen/bin/pip install --no-deps -r benchmarks/furniture/requirements-procedural.txt
    .infinigen/bin/python benchmarks/furniture/procedural.py --out models/infinigen --first 1000 --count 200 --workers 2

A seed alone decides the factory and the object; only the order of its vertices, and with it a few faces of a mesh that
was thinned, may differ from run to run. Infinigen is BSD-3-Clause and claims nothing in what it generates; its folder
`infinigen_gpl` is never loaded. Each object becomes one mesh in a .blend file, with its node materials made cheap to
render: no bump, no volumes, no light that passes through. The same command goes on where it was stopped. What a factory
does not manage is refused, and listed in refused.json.
"""

import argparse
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import types
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import radians
from pathlib import Path
from typing import Any

from models import SUFFIX, FurnitureError, Model, Place, fraction, write_model

VERSION = "1.15.5"
MOST_TRIANGLES = 40_000
SMALLEST, LARGEST = 0.005, 3.0  # metres, of any side
CPU_SECONDS = 120  # of one object; most take one to three
AT_ONCE = 25  # objects made by one process, because Blender keeps some memory of each
FAULTS = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGPROF}


@dataclass(frozen=True)
class Factory:
    """One of Infinigen's factories.

    Attributes:
        path: module below `infinigen.assets.objects`, and class.
        weight: how often it is taken, as a share of all weights.
        title, category, place, main: as in `Model`.
        flat: whether things may stand on its top.
        turn: degrees about z that bring its front to -y; most look to +x.
    """

    path: str
    weight: float
    title: str
    category: str
    place: Place = "floor"
    main: bool = True
    flat: bool = False
    turn: float = -90

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]


FACTORIES = (
    Factory("seating.SofaFactory", 16, "sofa", "sofa"),
    Factory("seating.ArmChairFactory", 6, "armchair", "sofa"),
    Factory("seating.ChairFactory", 16, "chair", "chair"),
    Factory("seating.OfficeChairFactory", 7, "office chair", "chair"),
    Factory("seating.BarChairFactory", 6, "bar stool", "chair"),
    Factory("tables.dining_table.TableDiningFactory", 11, "dining table", "table", flat=True, turn=0),
    Factory("tables.dining_table.CoffeeTableFactory", 5, "coffee table", "table", flat=True, turn=0),
    Factory("tables.dining_table.SideTableFactory", 5, "side table", "table", flat=True, turn=0),
    Factory("tables.cocktail_table.TableCocktailFactory", 4, "cocktail table", "table", flat=True, turn=0),
    Factory("shelves.SimpleDeskFactory", 5, "desk", "table", flat=True),
    Factory("shelves.SidetableDeskFactory", 2, "bedside table", "table", flat=True),
    Factory("shelves.CellShelfFactory", 4, "cell shelf", "shelf", "wall", flat=True),
    Factory("shelves.LargeShelfFactory", 4, "shelf", "shelf", "wall"),
    Factory("shelves.SimpleBookcaseFactory", 4, "bookcase", "shelf", "wall"),
    Factory("shelves.TVStandFactory", 3, "TV stand", "cabinet", "wall", flat=True),
    Factory("shelves.SingleCabinetFactory", 4, "cabinet", "cabinet", "wall", flat=True),
    Factory("shelves.cabinet.CabinetFactory", 4, "cabinet with shelves", "cabinet", "wall"),
    Factory("shelves.KitchenCabinetFactory", 3, "cupboard", "cabinet", "wall", flat=True),
    Factory("lamp.DeskLampFactory", 4, "desk lamp", "lamp", "table"),
    Factory("lamp.FloorLampFactory", 4, "floor lamp", "lamp"),
    Factory("tableware.plant_container.PlantContainerFactory", 6, "pot plant", "plant", "table"),
    Factory("table_decorations.vase.VaseFactory", 4, "vase", "decoration", "table"),
    Factory("table_decorations.book.BookStackFactory", 3, "stack of books", "decoration", "table"),
    Factory("tableware.bowl.BowlFactory", 2, "bowl", "decoration", "table"),
    Factory("appliances.tv.MonitorFactory", 2, "monitor", "decoration", "table"),
    Factory("bathroom.toilet.ToiletFactory", 1, "toilet", "bathroom", "wall"),
    Factory("bathroom.bathtub.BathtubFactory", 1, "bathtub", "bathroom", "wall"),
    Factory("bathroom.bathroom_sink.StandingSinkFactory", 1, "washbasin", "bathroom", "wall"),
)


def name_of(seed: int) -> str:
    """The model's name, which decides its split."""
    return f"infinigen{seed:05d}"


def factory_of(seed: int) -> Factory:
    """The factory that a seed takes, by the factories' weights."""
    rest = fraction("infinigen factory", seed) * sum(factory.weight for factory in FACTORIES)
    for factory in FACTORIES:
        rest -= factory.weight
        if rest < 0:
            return factory
    return FACTORIES[-1]


def main(arguments: Sequence[str] | None = None) -> None:
    """Makes the models of a range of seeds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of models")
    parser.add_argument("--first", type=int, default=1000, help="first seed [1000]; smaller ones are in older sets")
    parser.add_argument("--count", type=int, default=100, help="number of seeds [100]")
    parser.add_argument("--workers", type=int, default=1, help="processes [1]")
    parser.add_argument("--these", type=int, nargs="+", help=argparse.SUPPRESS)  # the seeds of a worker process
    options = parser.parse_args(arguments)
    if options.these:
        work(options.out, options.these)
        return
    if options.first < 0 or options.count < 1 or options.workers < 1:
        raise FurnitureError("--first must be 0 or more, --count and --workers 1 or more")
    make(options.out, range(options.first, options.first + options.count), options.workers, _print_progress)


# Many objects


def make(
    out: Path,
    seeds: Sequence[int],
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
    worker: Sequence[str] = (sys.executable, __file__),
) -> None:
    """Makes the models that are neither in `out` nor refused, in processes of their own.

    Args:
        out: gets a folder for each model, and refused.json: name -> reason.
        progress: called with (done, of all that are missing).
        worker: the command of a worker, which takes `--out` and `--these`.

    Raises:
        FurnitureError: if a worker cannot start or is ended from outside.
    """
    out.mkdir(parents=True, exist_ok=True)
    refusals = Refusals(out / "refused.json")
    missing = [seed for seed in seeds if not _record(out, seed).exists() and name_of(seed) not in refusals.reasons]
    done = iter(range(1, len(missing) + 1))
    lock = threading.Lock()

    def finish(name: str, reason: str) -> None:
        with lock:
            if reason:
                refusals.add(name, reason)
            if progress:
                progress(next(done), len(missing))

    chunks = [missing[i : i + AT_ONCE] for i in range(0, len(missing), AT_ONCE)]
    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(lambda chunk: _run(worker, out, chunk, finish), chunks):
            pass


class Refusals:
    """The names that are not to be tried again, and why, in a JSON file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reasons: dict[str, str] = {}
        if path.exists():
            try:
                self.reasons = dict(json.loads(path.read_text(encoding="utf-8")))
            except ValueError:
                raise FurnitureError(f"{path}: damaged; remove it to try the refused models again") from None

    def add(self, name: str, reason: str) -> None:
        self.reasons[name] = reason
        temporary = self.path.with_suffix(".part")
        temporary.write_text(json.dumps(self.reasons, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        os.replace(temporary, self.path)


def _run(worker: Sequence[str], out: Path, seeds: Sequence[int], finish: Callable[[str, str], None]) -> None:
    """Makes models in worker processes, a new one after each object that ends Blender itself."""
    left = {name_of(seed): seed for seed in seeds}
    while left:
        command = [*worker, "--out", str(out), "--these", *map(str, left.values())]
        # Blender also writes to the standard output, so a worker's own lines begin with the name of a model.
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        ) as process:
            assert process.stdout is not None
            last: deque[str] = deque(maxlen=1)
            for line in process.stdout:
                name, _, reason = line.rstrip("\n").partition("\t")
                if name in left:
                    del left[name]
                    finish(name, reason)
                elif line.strip():
                    last.append(line.strip())
        if left and -process.returncode in FAULTS:
            name = next(iter(left))
            del left[name]
            finish(name, f"ended Blender ({signal.Signals(-process.returncode).name})")
        elif left:
            raise FurnitureError(f"a worker ended with status {process.returncode}: {''.join(last)}")


def _record(out: Path, seed: int) -> Path:
    return out / name_of(seed) / (name_of(seed) + SUFFIX)


def _print_progress(done: int, total: int) -> None:
    print(f"\r{done} of {total}", end="\n" if done == total else "", file=sys.stderr, flush=True)


# One object, in a worker


def work(out: Path, seeds: Sequence[int]) -> None:
    """Makes models one after another, and prints for each its name, a tab and, if it was refused, the reason."""
    load_infinigen()
    for seed in seeds:
        # The signal ends the process even where Blender is deep in a simulation; `make` then goes on after this seed.
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        reason = ""
        try:
            thing, size = build(seed)
        except Exception as error:  # a factory's own fault, of any kind
            reason = " ".join(f"{factory_of(seed).name}: {type(error).__name__}: {error}".split())[:300]
        else:
            write(out, seed, thing, size)
        print(f"\n{name_of(seed)}\t{reason}", flush=True)
    signal.setitimer(signal.ITIMER_PROF, 0)


def load_infinigen() -> None:
    """Imports Infinigen without its GPL parts, and without the Blender add-ons that it would fetch.

    Raises:
        FurnitureError: if it is not installed, or another version.
    """
    absent = {
        "": (),
        ".surfaces": (),
        ".surfaces.snow": ("shader_snow", "geo_snowtexture"),
        ".extras": (),
        ".extras.diff_growth": ("build_diff_growth",),
    }
    for name, members in absent.items():
        module = types.ModuleType("infinigen.infinigen_gpl" + name)
        module.__path__ = []
        for member in members:
            setattr(module, member, None)
        sys.modules[module.__name__] = module
    for name in ("surfaces.snow", "extras.diff_growth"):
        package, _, member = name.partition(".")
        setattr(
            sys.modules[f"infinigen.infinigen_gpl.{package}"], member, sys.modules[f"infinigen.infinigen_gpl.{name}"]
        )
    try:
        import bpy  # noqa: F401
        import infinigen
        import infinigen.core.init
    except ImportError as error:
        raise FurnitureError(f"{error}; install requirements-procedural.txt in an environment of its own") from None
    if infinigen.__version__ != VERSION:
        raise FurnitureError(f"Infinigen {infinigen.__version__} makes other objects of the same seeds; use {VERSION}")
    infinigen.core.init.require_blender_addon = lambda *_, **__: False


def build(seed: int) -> tuple[Any, tuple[float, float, float]]:
    """A seed's object as one mesh, upright on z = 0 and looking to -y, and its size in metres.

    Raises:
        FurnitureError: if the object is no sound one.
        Exception: of any kind, by Infinigen.
    """
    import bpy

    factory = factory_of(seed)
    bpy.ops.wm.read_factory_settings(use_empty=True)
    thing = one_mesh(generate(factory, seed))
    size = stand(thing, factory.turn)
    for material in used_materials(thing):
        cheapen(material)
    forget_unused(thing)
    return thing, size


def write(out: Path, seed: int, thing: Any, size: tuple[float, float, float]) -> None:
    """Writes an object's folder, whole or not at all."""
    import bpy

    factory = factory_of(seed)
    name = name_of(seed)
    folder, part = out / name, out / f".{name}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for image in bpy.data.images:
        if image.has_data and not image.packed_file:
            image.pack()
    thing.name = thing.data.name = name
    file = part / f"{name}.blend"
    bpy.data.libraries.write(str(file.resolve()), {thing}, compress=True)
    write_model(
        Model(
            name=name,
            library=f"Infinigen {VERSION}",
            title=factory.title,
            creator=f"generated by Infinigen {VERSION}, {factory.name}, seed {seed}",
            licence="free of any claim (output of BSD-3-Clause code)",
            category=factory.category,
            file=file,
            size=size,
            place=factory.place,
            main=factory.main,
            top=size[2] if factory.flat else None,
        )
    )
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)


def generate(factory: Factory, seed: int) -> Any:
    """Infinigen's object: a mesh, possibly with others as its children."""
    from infinigen.core.util.math import FixedSeed

    module, _, name = f"infinigen.assets.objects.{factory.path}".rpartition(".")
    kind = getattr(importlib.import_module(module), name)
    if factory.category == "plant":
        from infinigen.assets.objects.small_plants import snake_plant, spider_plant

        # The others (cactus, fern, mushroom) have millions of triangles and take minutes.
        kind.plant_factories = [snake_plant.SnakePlantFactory, spider_plant.SpiderPlantFactory]
    with FixedSeed(seed):
        maker = kind(seed)
        if factory.category == "sofa" and fraction("infinigen footrest", seed) < 0.8:
            # A count of 1 brings a footrest whatever the other says, and is what the factory mostly draws.
            maker.params |= {"Footrest": False, "Count": 4}
        root = maker.spawn_asset(seed)
        maker.finalize_assets(root)
    return root


def one_mesh(root: Any) -> Any:
    """The object and its children as one mesh of at most `MOST_TRIANGLES` triangles; lights stay behind."""
    import bpy

    meshes = [thing for thing in (root, *root.children_recursive) if thing.type == "MESH" and thing.data.polygons]
    if not meshes:
        raise FurnitureError("no mesh")
    bpy.context.view_layer.update()
    bpy.ops.object.select_all(action="DESELECT")
    for thing in meshes:
        thing.hide_set(False)
        thing.select_set(True)
    thing = bpy.context.view_layer.objects.active = meshes[0]
    bpy.ops.object.convert(target="MESH")
    if len(meshes) > 1:
        bpy.ops.object.join()
    thing.data.transform(thing.matrix_world)
    thing.parent = None
    thing.matrix_world.identity()
    thing.data.calc_loop_triangles()
    triangles = len(thing.data.loop_triangles)
    if triangles > MOST_TRIANGLES:
        thing.modifiers.new("fewer", "DECIMATE").ratio = MOST_TRIANGLES / triangles
        bpy.ops.object.convert(target="MESH")
    return thing


def stand(thing: Any, turn: float) -> tuple[float, float, float]:
    """Turns the mesh by degrees about z and stands it on z = 0, centred; its size in metres.

    Raises:
        FurnitureError: if it is too small or too large to be furniture.
    """
    import numpy as np
    from mathutils import Matrix

    thing.data.transform(Matrix.Rotation(radians(turn), 4, "Z"))
    flat = np.empty(3 * len(thing.data.vertices), dtype=np.float32)
    thing.data.vertices.foreach_get("co", flat)
    low, high = flat.reshape(-1, 3).min(0), flat.reshape(-1, 3).max(0)
    width, depth, height = (round(float(x), 4) for x in high - low)
    size = width, depth, height
    if not (min(size) > SMALLEST and max(size) < LARGEST):  # false for what is not a number, too
        raise FurnitureError(f"size {size} metres")
    x, y = (low + high)[:2] / 2
    thing.data.transform(Matrix.Translation((-x, -y, -low[2])))
    return size


def forget_unused(thing: Any) -> None:
    """Removes the attributes of the mesh that no material reads: mostly Infinigen's tags."""
    read = {
        node.attribute_name
        for material in used_materials(thing)
        for tree in trees(material.node_tree)
        for node in tree.nodes
        if node.type == "ATTRIBUTE"
    }
    kept = {"sharp_face", "sharp_edge", "material_index", *(layer.name for layer in thing.data.uv_layers), *read}
    attributes = thing.data.attributes
    unread = [each.name for each in attributes if not (each.is_required or each.is_internal or each.name in kept)]
    for name in unread:  # by name, because removing one moves the others
        attributes.remove(attributes[name])


# Materials

ABSENT = ("Sheen Weight", "Subsurface Weight", "Anisotropic", "Coat Weight")  # too bright (velvet) or dear
BUMP = {"Normal", "Coat Normal", "Tangent", "Displacement", "Volume"}
DETAIL = 3.0  # octaves of noise; more is finer than a pixel
GLASS_ALPHA = 0.35
WHITEST = 0.8  # of a surface that is coloured as light in glass was


def used_materials(thing: Any) -> list[Any]:
    return [slot.material for slot in thing.material_slots if slot.material and slot.material.node_tree]


def trees(tree: Any) -> Iterator[Any]:
    """A node tree and those of the groups in it."""
    yield tree
    for node in tree.nodes:
        if node.type == "GROUP" and node.node_tree:
            yield from trees(node.node_tree)


def cheapen(material: Any) -> None:
    """Takes from a material what costs most of a render's time or makes most of its noise, and keeps its colours.

    Coloured glass becomes lacquer of its colour, clear glass a pane that is partly there.
    """
    tint = _volume_colour(material)
    for tree in list(trees(material.node_tree)):
        for node in list(tree.nodes):
            if node.type.startswith("BSDF") or node.type == "OUTPUT_MATERIAL":
                for socket in node.inputs:
                    if socket.name in BUMP:
                        _unlink(tree, socket)
            if node.type == "BSDF_GLASS":
                _replace_glass(tree, node)
            elif node.type == "BSDF_PRINCIPLED":
                _cheapen_principled(tree, node, tint)
            elif node.type == "EMISSION":
                _at_most(node.inputs["Strength"], 1.0)
            elif "Detail" in node.inputs:
                _at_most(node.inputs["Detail"], DETAIL)


def _volume_colour(material: Any) -> Sequence[float] | None:
    outputs = [node for node in material.node_tree.nodes if node.type == "OUTPUT_MATERIAL"]
    links = [link for node in outputs for link in node.inputs["Volume"].links]
    return tuple(links[0].from_node.inputs["Color"].default_value) if links else None


def _cheapen_principled(tree: Any, node: Any, tint: Sequence[float] | None) -> None:
    for name in ABSENT:
        _unlink(tree, node.inputs[name])
        node.inputs[name].default_value = 0.0
    _at_most(node.inputs["Emission Strength"], 1.0)
    transmission = node.inputs["Transmission Weight"]
    if transmission.links or transmission.default_value > 0:
        clear = not transmission.links and transmission.default_value > 0.5 and tint is None
        _unlink(tree, transmission)
        transmission.default_value = 0.0
        _at_least(node.inputs["Roughness"], 0.1)
        if clear:
            node.inputs["Alpha"].default_value = GLASS_ALPHA
    if tint is not None:
        _unlink(tree, node.inputs["Base Color"])
        node.inputs["Base Color"].default_value = (*(WHITEST * x for x in tint[:3]), 1.0)


def _replace_glass(tree: Any, glass: Any) -> None:
    pane = tree.nodes.new("ShaderNodeBsdfPrincipled")
    pane.inputs["Base Color"].default_value = (*(WHITEST * x for x in glass.inputs["Color"].default_value[:3]), 1.0)
    pane.inputs["Roughness"].default_value = 0.1
    pane.inputs["Alpha"].default_value = GLASS_ALPHA
    for link in list(glass.outputs[0].links):
        tree.links.new(pane.outputs[0], link.to_socket)
    tree.nodes.remove(glass)


def _unlink(tree: Any, socket: Any) -> None:
    for link in list(socket.links):
        tree.links.remove(link)


def _at_most(socket: Any, value: float) -> None:
    socket.default_value = min(socket.default_value, value)


def _at_least(socket: Any, value: float) -> None:
    socket.default_value = max(socket.default_value, value)


if __name__ == "__main__":
    try:
        main()
    except FurnitureError as error:
        sys.exit(f"error: {error}")
