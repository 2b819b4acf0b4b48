"""Renders one planned scene with Blender's Cycles, on one thread: photos, masks, depth maps, cameras, points.

Runs in an environment with bpy (requirements.txt); make.py starts it, once for each scene.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import bpy
import numpy as np
import OpenEXR
from develop import decode, develop
from mathutils import Matrix, Vector
from scene_files import write_scene
from textures import Texture, paint
from world import Patch, Plan, Room, Rug, Side, plan_scene

from models import FurnitureError, Model, fraction, read_models

Array = np.ndarray
SAMPLES, BOUNCES = 4, 2
MAIN = 1  # the object index of what the scene shows
BRIGHTEST = 0.82  # linear; nothing in a room reflects more
WALL_DEPTH = 0.22


def reset(size: int) -> bpy.types.Scene:
    """An empty scene, set up for quick pictures of (size, size)."""
    bpy.ops.wm.read_factory_settings(use_empty=True)
    scene = bpy.context.scene
    scene.render.engine = "CYCLES"
    scene.render.resolution_x = scene.render.resolution_y = size
    scene.render.resolution_percentage = 100
    scene.render.threads_mode, scene.render.threads = "FIXED", 1
    scene.render.use_persistent_data = True
    cycles = scene.cycles
    cycles.device, cycles.samples, cycles.use_adaptive_sampling = "CPU", SAMPLES, False
    cycles.max_bounces = BOUNCES
    cycles.use_light_tree = False  # with three lights it costs more than it gains
    cycles.transparent_max_bounces, cycles.sample_clamp_indirect = 6, 6.0
    cycles.caustics_reflective = cycles.caustics_refractive = False
    cycles.blur_glossy = 1.0
    cycles.use_denoising, cycles.denoiser = True, "OPENIMAGEDENOISE"
    cycles.denoising_input_passes = "RGB_ALBEDO_NORMAL"
    cycles.denoising_prefilter, cycles.denoising_quality = "ACCURATE", "BALANCED"
    scene.render.image_settings.media_type = "MULTI_LAYER_IMAGE"
    scene.render.image_settings.file_format = "OPEN_EXR_MULTILAYER"
    scene.render.image_settings.color_depth = "32"
    layer = scene.view_layers[0]
    layer.use_pass_z = layer.use_pass_object_index = True
    layer.pass_alpha_threshold = 0.5
    return scene


# Surfaces


def image_of(name: str, pixels: Array) -> bpy.types.Image:
    height, width = pixels.shape[:2]
    image = bpy.data.images.new(name, width, height)
    rgba = np.concatenate((pixels[::-1], np.ones((height, width, 1))), -1).astype(np.float32)
    image.pixels.foreach_set(rgba.ravel())
    image.pack()
    return image


def material_of(name: str, texture: Texture) -> bpy.types.Material:
    """A material that repeats the texture; its coordinates are metres in the mesh's UV layer."""
    material, shader = plain(name, (0.8, 0.8, 0.8), texture.roughness)
    nodes, links = material.node_tree.nodes, material.node_tree.links
    picture = nodes.new("ShaderNodeTexImage")
    picture.image = image_of(name, texture.pixels)
    mapping, coordinates = nodes.new("ShaderNodeMapping"), nodes.new("ShaderNodeTexCoord")
    mapping.inputs["Scale"].default_value = (1 / texture.metres[0], 1 / texture.metres[1], 1)
    links.new(coordinates.outputs["UV"], mapping.inputs["Vector"])
    links.new(mapping.outputs["Vector"], picture.inputs["Vector"])
    links.new(picture.outputs["Color"], shader.inputs["Base Color"])
    return material


def plain(name: str, colour: Sequence[float], roughness: float) -> tuple[bpy.types.Material, Any]:
    """A material of one colour (linear), and its shader."""
    material = bpy.data.materials.new(name)
    material.use_nodes = True
    shader = next(node for node in material.node_tree.nodes if node.type == "BSDF_PRINCIPLED")
    shader.inputs["Base Color"].default_value = (*colour, 1)
    shader.inputs["Roughness"].default_value = roughness
    return material, shader


def tame(material: bpy.types.Material, model: Model, coat: Any) -> None:
    """Keeps an imported material within what is real, and gives what has no texture a weave or a grain."""
    if not material.use_nodes:
        return
    nodes, links = material.node_tree.nodes, material.node_tree.links
    for shader in [node for node in nodes if node.type == "BSDF_PRINCIPLED"]:
        base, rough = shader.inputs["Base Color"], shader.inputs["Roughness"]
        if not rough.is_linked:
            rough.default_value = max(rough.default_value, 0.12)
        if model.category != "lamp":
            shader.inputs["Emission Strength"].default_value = 0
        if base.is_linked:
            continue
        colour = np.array(base.default_value[:3])
        base.default_value = (*np.clip(colour, 0.015, BRIGHTEST), 1)
        kind = coat(material.name, colour)
        if kind is not None:
            texture = nodes.new("ShaderNodeTexImage")
            texture.image, metres = kind
            texture.projection, texture.projection_blend = "BOX", 0.2
            coordinates, mapping = nodes.new("ShaderNodeTexCoord"), nodes.new("ShaderNodeMapping")
            mapping.inputs["Scale"].default_value = (1 / metres[0], 1 / metres[1], 1 / metres[0])
            mix = nodes.new("ShaderNodeMix")
            mix.data_type, mix.blend_type = "RGBA", "MULTIPLY"
            mix.inputs["Factor"].default_value = 1
            links.new(coordinates.outputs["Object"], mapping.inputs["Vector"])
            links.new(mapping.outputs["Vector"], texture.inputs["Vector"])
            links.new(texture.outputs["Color"], mix.inputs["A"])
            mix.inputs["B"].default_value = (*np.clip(1.5 * np.clip(colour, 0.015, BRIGHTEST), 0, 1), 1)
            links.new(mix.outputs["Result"], base)


# Shapes


def mesh(name: str, points: Array, faces: Sequence[Sequence[int]], material: Any, uv: Array | None = None) -> Any:
    """An object of points (N, 3) and faces; `uv` is a coordinate for each point."""
    data = bpy.data.meshes.new(name)
    data.from_pydata(np.asarray(points).tolist(), [], [list(face) for face in faces])
    if uv is not None:
        layer = data.uv_layers.new(name="UVMap")
        corner = np.array([i for face in faces for i in face])
        layer.data.foreach_set("uv", np.asarray(uv, dtype=np.float32)[corner].ravel())
    data.materials.append(material)
    thing = bpy.data.objects.new(name, data)
    bpy.context.scene.collection.objects.link(thing)
    return thing


def block(name: str, low: Sequence[float], high: Sequence[float], material: Any) -> Any:
    (x0, y0, z0), (x1, y1, z1) = low, high
    points = np.array([(x, y, z) for x in (x0, x1) for y in (y0, y1) for z in (z0, z1)])
    faces = ((0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3))
    return mesh(name, points, faces, material)


class Wall:
    """A wall's own frame: `s` along it, `z` up, and how deep behind its face, to world points."""

    def __init__(self, room: Room, side: Side) -> None:
        self.room, self.side = room, side
        self.sign = 1 if side in ("north", "east") else -1

    def points(self, s: Any, z: Any, depth: Any) -> Array:
        s, z, depth = np.broadcast_arrays(np.asarray(s, dtype=float), z, depth)
        at = self.room.at(self.side) + self.sign * depth
        return np.stack((s, at, z) if self.side in ("north", "south") else (at, s, z), -1)

    def block(
        self, name: str, s: tuple[float, float], z: tuple[float, float], depth: tuple[float, float], m: Any
    ) -> Any:
        ends = np.stack((self.points(s[0], z[0], depth[0]), self.points(s[1], z[1], depth[1])))
        return block(name, ends.min(0), ends.max(0), m)

    def sheet(self, name: str, s: tuple[float, float], z: tuple[float, float], depth: float, material: Any,
              uv: Array | None = None) -> Any:  # fmt: skip
        points = self.points((s[0], s[1], s[1], s[0]), (z[0], z[0], z[1], z[1]), depth)
        if uv is None:
            uv = np.array(((s[0], z[0]), (s[1], z[0]), (s[1], z[1]), (s[0], z[1])))
        return mesh(name, points, ((0, 1, 2, 3),), material, uv)


UNIT_UV = np.array(((0, 0), (1, 0), (1, 1), (0, 1)), dtype=float)


def build_room(plan: Plan) -> None:
    room, rng = plan.room, np.random.default_rng(plan.seed)
    floor = material_of("floor", paint(plan.floor.kind, plan.floor.seed))
    turn = rng.random() < 0.5
    corners = np.array(((room.x0, room.y0, 0), (room.x1, room.y0, 0), (room.x1, room.y1, 0), (room.x0, room.y1, 0)))
    mesh("floor", corners, ((0, 1, 2, 3),), floor, corners[:, (1, 0)] if turn else corners[:, :2])
    white, _ = plain("ceiling", (0.78, 0.78, 0.77), 0.9)
    mesh("ceiling", corners + np.array((0, 0, room.height)), ((3, 2, 1, 0),), white)
    paints = {}
    wood = decode(paint("timber", plan.seed % 1000).pixels).mean((0, 1)) * rng.uniform(0.3, 1, 3)
    frame_colour = (0.75, 0.75, 0.73) if rng.random() < 0.7 else tuple(np.sort(wood)[::-1])
    trim, _ = plain("trim", frame_colour, 0.4)
    for side, surface in plan.walls.items():
        key = (surface.kind, surface.seed)
        if key not in paints:
            paints[key] = material_of(f"wall {side}", paint(*key))
        build_wall(plan, Wall(room, side), paints[key], trim)
    for window in plan.windows:
        build_window(plan, Wall(room, window.side), window, trim)
    if plan.door is not None:
        build_door(Wall(room, plan.door.side), plan.door)
    for picture in plan.pictures:
        build_picture(Wall(room, picture.side), picture)
    if plan.rug is not None:
        build_rug(plan.rug)


def build_wall(plan: Plan, wall: Wall, material: Any, trim: Any) -> None:
    """The wall around its windows, and its skirting board."""
    room = plan.room
    holes = sorted((w for w in plan.windows if w.side == wall.side), key=lambda w: w.along)
    start, end = room.span(wall.side)
    s = start
    for hole in holes:
        left, right = hole.along - hole.width / 2, hole.along + hole.width / 2
        wall.sheet("wall", (s, left), (0, room.height), 0, material)
        wall.sheet("wall", (left, right), (0, hole.low), 0, material)
        wall.sheet("wall", (left, right), (hole.low + hole.height, room.height), 0, material)
        s = right
    wall.sheet("wall", (s, end), (0, room.height), 0, material)
    if plan.skirting:
        gaps = [(w.along - w.width / 2, w.along + w.width / 2) for w in holes if w.low < plan.skirting]
        if plan.door is not None and plan.door.side == wall.side:
            gaps.append((plan.door.along - plan.door.width / 2 - 0.06, plan.door.along + plan.door.width / 2 + 0.06))
        s = start
        for left, right in sorted(gaps):
            wall.block("skirting", (s, left), (0, plan.skirting), (-0.015, 0), trim)
            s = right
        wall.block("skirting", (s, end), (0, plan.skirting), (-0.015, 0), trim)


def build_window(plan: Plan, wall: Wall, window: Patch, trim: Any) -> None:
    """Reveal, frame and bars, curtains, and the light that comes in."""
    rng = np.random.default_rng(window.seed)
    left, right = window.along - window.width / 2, window.along + window.width / 2
    low, high = window.low, window.low + window.height
    white, _ = plain("reveal", (0.75, 0.75, 0.74), 0.8)
    for s, z in (((left - 0.02, left), (low, high)), ((right, right + 0.02), (low, high)),
                 ((left, right), (low - 0.02, low)), ((left, right), (high, high + 0.02))):  # fmt: skip
        wall.block("reveal", s, z, (0.001, WALL_DEPTH), white)
    bar = rng.uniform(0.035, 0.07)
    place = (WALL_DEPTH * 0.5, WALL_DEPTH * 0.5 + 0.05)
    columns = max(1, round(window.width / rng.uniform(0.5, 0.9)))
    rows = int(rng.choice((1, 2), p=(0.6, 0.4)))
    for i in range(columns + 1):
        s = left + window.width * i / columns
        wall.block("bar", (max(left, s - bar), min(right, s + bar)), (low, high), place, trim)
    for i in range(rows + 1):
        z = low + window.height * i / rows
        wall.block("bar", (left, right), (max(low, z - bar), min(high, z + bar)), place, trim)
    if low > 0.1 and rng.random() < 0.6:
        wall.block("sill", (left - 0.05, right + 0.05), (low - 0.03, low), (-0.08, 0.0), trim)
    if plan.curtains:
        build_curtains(wall, window, rng, plan.room)
    area(wall.points(window.along, (low + high) / 2, WALL_DEPTH + 0.01), wall, (window.width, window.height),
         plan.light.sky, plan.light.sky_colour)  # fmt: skip


def build_curtains(wall: Wall, window: Patch, rng: np.random.Generator, room: Room) -> None:
    cloth = paint("weave", window.seed)
    base = paint("carpet", window.seed + 1).pixels.mean((0, 1))
    pale = base + (0.9 - base) * rng.uniform(0, 0.8)
    material = material_of("curtain", Texture(np.clip(cloth.pixels * pale / 0.8, 0, 0.95), cloth.metres, 1.0))
    top = min(room.height - 0.02, window.low + window.height + 0.18)
    bottom = 0.03 if rng.random() < 0.6 else max(0.03, window.low - 0.15)
    width = window.width * rng.uniform(0.16, 0.3)
    start, end = room.span(wall.side)
    for edge, way in ((window.along - window.width / 2, 1), (window.along + window.width / 2, -1)):
        outer = np.clip(edge - way * rng.uniform(0.08, 0.2), start + 0.02, end - 0.02)
        n = 60
        s = np.linspace(outer, edge + way * width, n)
        folds = int(rng.integers(4, 9))
        depth = -0.07 + 0.035 * np.sin(2 * np.pi * folds * np.linspace(0, 1, n) + rng.uniform(0, 6))
        points = np.concatenate((wall.points(s, bottom, depth), wall.points(s, top, depth)))
        faces = [(i, i + 1, n + i + 1, n + i) for i in range(n - 1)]
        uv = np.concatenate((np.stack((s * 1.5, np.full(n, bottom)), 1), np.stack((s * 1.5, np.full(n, top)), 1)))
        thing = mesh("curtain", points, faces, material, uv)
        thing.data.shade_smooth()
    rod, _ = plain("rod", (0.25, 0.23, 0.2), 0.35)
    span = (max(start, window.along - window.width / 2 - 0.25), min(end, window.along + window.width / 2 + 0.25))
    wall.block("rod", span, (top, top + 0.025), (-0.085, -0.06), rod)


def build_door(wall: Wall, door: Patch) -> None:
    rng = np.random.default_rng(door.seed)
    bare = rng.random() < 0.4
    colour = decode(paint("planks", door.seed).pixels).mean((0, 1)) if bare else np.full(3, rng.uniform(0.55, 0.78))
    leaf, _ = plain("door", tuple(colour), 0.45)
    edge, _ = plain("door frame", tuple(np.clip(colour * rng.uniform(0.7, 1.05), 0, BRIGHTEST)), 0.45)
    metal, shader = plain("handle", (0.55, 0.53, 0.5), 0.3)
    shader.inputs["Metallic"].default_value = 1
    left, right = door.along - door.width / 2, door.along + door.width / 2
    wall.block("door", (left, right), (0.005, door.height), (-0.01, 0.0), leaf)
    for s in ((left - 0.06, left), (right, right + 0.06)):
        wall.block("frame", s, (0, door.height + 0.06), (-0.03, 0), edge)
    wall.block("frame", (left, right), (door.height, door.height + 0.06), (-0.03, 0), edge)
    panels = int(rng.integers(1, 4))
    for i in range(panels):
        step = (door.height - 0.2) / panels
        z = 0.12 + i * step
        wall.block("panel", (left + 0.12, right - 0.12), (z, z + step - 0.1), (-0.018, -0.01), leaf)
    wall.block("handle", (right - 0.16, right - 0.04), (1.0, 1.02), (-0.06, -0.04), metal)


def build_picture(wall: Wall, picture: Patch) -> None:
    rng = np.random.default_rng(picture.seed)
    left, right = picture.along - picture.width / 2, picture.along + picture.width / 2
    low, high = picture.low, picture.low + picture.height
    edge, _ = plain("picture frame", tuple(rng.choice((0.02, 0.1, 0.35, 0.75)) * rng.uniform(0.7, 1, 3)), 0.4)
    width = float(rng.uniform(0.012, 0.04))
    wall.block("picture frame", (left, right), (low, high), (-0.025, -0.001), edge)
    wall.sheet("picture", (left + width, right - width), (low + width, high - width), -0.0262,
               material_of("picture", paint("picture", picture.seed)), UNIT_UV)  # fmt: skip


def build_rug(rug: Rug) -> None:
    material = material_of("rug", paint("rug", rug.seed))
    n = 48
    if rug.round:
        a = np.linspace(0, 2 * np.pi, n, endpoint=False)
        side = min(rug.width, rug.depth)
        flat, uv = np.stack((np.cos(a), np.sin(a)), 1) * side / 2, np.stack((np.cos(a), np.sin(a)), 1) / 2 + 0.5
    else:
        n = 4
        flat, uv = (UNIT_UV - 0.5) * (rug.width, rug.depth), UNIT_UV
    thick = 0.007
    top = np.concatenate((flat, np.full((n, 1), thick)), 1)
    base = np.concatenate((flat, np.zeros((n, 1))), 1)
    faces = [tuple(range(n)), *(((i + 1) % n, i, n + i, n + (i + 1) % n) for i in range(n))]
    thing = mesh("rug", np.concatenate((top, base)), faces, material, np.concatenate((uv, uv)))
    thing.matrix_world = Matrix.Translation((rug.x, rug.y, 0)) @ Matrix.Rotation(rug.angle, 4, "Z")


# Light


def area(at: Array, wall: Wall, size: tuple[float, float], radiance: float, colour: Sequence[float]) -> None:
    """A light in a window that shines into the room; the camera does not see it."""
    data = bpy.data.lights.new("window", "AREA")
    data.shape, data.size, data.size_y = "RECTANGLE", size[0], size[1]
    data.energy, data.color = radiance * np.pi * size[0] * size[1], colour
    data.cycles.max_bounces = BOUNCES
    light = bpy.data.objects.new("window", data)
    inward = {"north": (0, -1, 0), "south": (0, 1, 0), "east": (-1, 0, 0), "west": (1, 0, 0)}[wall.side]
    light.rotation_euler = Vector(inward).to_track_quat("-Z", "Y").to_euler()
    light.location = at
    light.visible_camera = False
    bpy.context.scene.collection.objects.link(light)


def build_light(plan: Plan) -> None:
    light, room = plan.light, plan.room
    if light.sun:
        data = bpy.data.lights.new("sun", "SUN")
        data.energy, data.color, data.angle = np.pi * light.sun, light.sun_colour, np.radians(1.5)
        sun = bpy.data.objects.new("sun", data)
        azimuth, elevation = np.radians(light.sun_from)
        towards = (np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation))
        sun.rotation_euler = Vector(towards).to_track_quat("Z", "Y").to_euler()
        bpy.context.scene.collection.objects.link(sun)
    data = bpy.data.lights.new("fill", "AREA")
    width, depth = 0.8 * (room.x1 - room.x0), 0.8 * (room.y1 - room.y0)
    data.shape, data.size, data.size_y = "RECTANGLE", width, depth
    data.energy, data.color = light.fill * np.pi * width * depth / 4, light.fill_colour
    fill = bpy.data.objects.new("fill", data)
    fill.location = ((room.x0 + room.x1) / 2, (room.y0 + room.y1) / 2, room.height - 0.02)
    fill.visible_camera = fill.visible_glossy = False
    bpy.context.scene.collection.objects.link(fill)
    build_outside(plan)


def build_outside(plan: Plan) -> None:
    """What is seen through the windows: a sky over something green or grey, which itself lights nothing."""
    rng = np.random.default_rng(plan.seed + 1)
    world = bpy.data.worlds.new("outside")
    bpy.context.scene.world = world
    world.use_nodes = True
    nodes, links = world.node_tree.nodes, world.node_tree.links
    background = next(node for node in nodes if node.type == "BACKGROUND")
    coordinates, split, ramp = (
        nodes.new("ShaderNodeTexCoord"),
        nodes.new("ShaderNodeSeparateXYZ"),
        nodes.new("ShaderNodeValToRGB"),
    )
    path, strength = nodes.new("ShaderNodeLightPath"), nodes.new("ShaderNodeMath")
    sky = np.array(plan.light.sky_colour) * (0.9, 0.95, 1.0)
    ground = np.array((0.12, 0.16, 0.08)) * rng.uniform(0.6, 1.4) if rng.random() < 0.6 else np.full(3, 0.2)
    stops = (
        (0.0, ground * 0.8),
        (0.485, ground),
        (0.5, (ground + sky) / 2),
        (0.53, sky),
        (1.0, sky * (0.55, 0.7, 0.95)),
    )
    for position, colour in stops[1:-1]:
        ramp.color_ramp.elements.new(position).color = (*colour, 1)
    ramp.color_ramp.elements[0].color = (*stops[0][1], 1)
    ramp.color_ramp.elements[-1].color = (*stops[-1][1], 1)
    scale = nodes.new("ShaderNodeMath")
    scale.operation = "MULTIPLY_ADD"
    scale.inputs[1].default_value = scale.inputs[2].default_value = 0.5
    links.new(coordinates.outputs["Generated"], split.inputs[0])
    links.new(split.outputs["Z"], scale.inputs[0])
    links.new(scale.outputs[0], ramp.inputs["Fac"])
    links.new(ramp.outputs["Color"], background.inputs["Color"])
    strength.operation = "MULTIPLY"
    strength.inputs[1].default_value = 0.5 * plan.light.sky
    links.new(path.outputs["Is Camera Ray"], strength.inputs[0])
    links.new(strength.outputs[0], background.inputs["Strength"])
    world.cycles.sampling_method = "NONE"


# Furniture


def load(model: Model) -> list[Any]:
    """A model's meshes, in the file's own place.

    Raises:
        FurnitureError: if the file has no mesh.
    """
    before = set(bpy.data.objects)
    match model.file.suffix.lower():
        case ".obj":
            bpy.ops.wm.obj_import(filepath=str(model.file), use_split_objects=False, use_split_groups=False)
        case ".glb" | ".gltf":
            bpy.ops.import_scene.gltf(filepath=str(model.file))
        case ".blend":
            with bpy.data.libraries.load(str(model.file)) as (source, wanted):
                wanted.objects = source.objects
            for thing in wanted.objects:
                bpy.context.scene.collection.objects.link(thing)
        case suffix:
            raise FurnitureError(f"{model.file}: {suffix} is not .obj, .glb or .blend")
    bpy.context.view_layer.update()
    added = [thing for thing in bpy.data.objects if thing not in before]
    meshes = [thing for thing in added if thing.type == "MESH" and len(thing.data.polygons)]
    for thing in added:
        if thing not in meshes and thing.type not in ("EMPTY", "ARMATURE"):
            bpy.data.objects.remove(thing)
    if not meshes:
        raise FurnitureError(f"{model.file}: no mesh; remove the model")
    return meshes


def stand(model: Model, meshes: list[Any], place: Matrix, index: int) -> None:
    """Scales a model to its size, stands it upright on 0, and takes it to its place."""
    points = np.concatenate([world_points(thing) for thing in meshes])
    low, high = points.min(0), points.max(0)
    extent = np.maximum(high - low, 1e-6)
    scale = np.array(model.size) / extent
    centre = Vector(((low + high) / 2 * (1, 1, 0) + low * (0, 0, 1)).tolist())
    fit = Matrix.Diagonal((*scale, 1)) @ Matrix.Translation(-centre)
    for thing in meshes:
        matrix = fit @ thing.matrix_world
        thing.parent = None
        thing.modifiers.clear()
        if thing.data.users > 1:
            thing.data = thing.data.copy()
        thing.data.transform(matrix)
        if matrix.determinant() < 0:
            thing.data.flip_normals()
        thing.matrix_world = place
        thing.pass_index = index


def world_points(thing: Any) -> Array:
    flat = np.empty(3 * len(thing.data.vertices), dtype=np.float32)
    thing.data.vertices.foreach_get("co", flat)
    matrix = np.array(thing.matrix_world)
    return flat.reshape(-1, 3) @ matrix[:3, :3].T + matrix[:3, 3]


class Coats:
    """Which weave or grain a plain material gets: cloth for what one sits on, wood where it is wood's colour."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._images: dict[tuple[str, int], tuple[Any, tuple[float, float]]] = {}

    def of(self, model: Model) -> Any:
        def coat(material: str, colour: Array) -> Any:
            u = fraction(self.seed, model.name, material)
            red, green, blue = np.clip(colour, 1e-3, 1)
            wood = red > 1.12 * green > 1.12 * 1.1 * blue or any(
                w in material.lower() for w in ("wood", "oak", "madera")
            )
            if wood and model.category not in ("plant", "decoration") and u < 0.9:
                return self._image("timber", int(u * 40) % 4)
            if model.category in ("sofa", "chair", "bed") and u < 0.6 and max(red, green, blue) > 0.02:
                return self._image("weave", int(u * 50) % 4)
            return None

        return coat

    def _image(self, kind: str, number: int) -> tuple[Any, tuple[float, float]]:
        if (kind, number) not in self._images:
            texture = paint(kind, (self.seed + number) % 2**31)
            self._images[kind, number] = image_of(f"{kind} {number}", texture.pixels), texture.metres
        return self._images[kind, number]


def furnish(plan: Plan, models: dict[str, Model]) -> None:
    coats = Coats(plan.seed)
    for i, item in enumerate(plan.items):
        model = models[item.model]
        known = set(bpy.data.materials)
        meshes = load(model)
        if model.file.suffix.lower() == ".obj":
            for material in set(bpy.data.materials) - known:
                tame(material, model, coats.of(model))
        place = Matrix.Translation((item.x, item.y, item.z)) @ Matrix.Rotation(item.angle, 4, "Z")
        stand(model, meshes, place, MAIN if i == 0 else 0)


# Pictures


def take(scene: Any, camera: Any, view: Any, path: Path) -> dict[str, Array]:
    """Renders one view; the passes by name, as float arrays."""
    right, down, forward = view.axes()
    camera.matrix_world = Matrix(
        [[*row, eye] for row, eye in zip(np.stack((right, -down, -forward), 1).tolist(), view.eye, strict=True)]
        + [[0, 0, 0, 1]]
    )
    camera.data.angle = np.radians(view.field_of_view)
    scene.render.filepath = str(path)
    bpy.ops.render.render(write_still=True)
    with OpenEXR.File(str(path)) as file:
        parts = [channel for part in file.parts for channel in part.channels.items()]
        return {name.split(".", 1)[-1]: channel.pixels for name, channel in parts}


def settle_transparency() -> None:
    """Makes each point of a surface either solid or not there: a ray goes through half-transparent glass at random."""
    for material in bpy.data.materials:
        if not material.use_nodes:
            continue
        nodes, links = material.node_tree.nodes, material.node_tree.links
        for alpha in [node.inputs["Alpha"] for node in nodes if node.type == "BSDF_PRINCIPLED"]:
            if not alpha.is_linked:
                alpha.default_value = float(alpha.default_value >= 0.5)
                continue
            settled = nodes.new("ShaderNodeMath")
            settled.operation = "GREATER_THAN"
            settled.inputs[1].default_value = 0.5
            links.new(alpha.links[0].from_socket, settled.inputs[0])
            links.new(settled.outputs[0], alpha)


def photograph(plan: Plan, size: int, folder: Path) -> tuple[Array, Array, Array]:
    """Linear light (N, H, W, 3), depth (N, H, W) in metres along the optical axis, mask (N, H, W)."""
    scene = bpy.context.scene
    data = bpy.data.cameras.new("camera")
    data.sensor_fit, data.clip_start, data.clip_end = "HORIZONTAL", 0.02, 200
    camera = bpy.data.objects.new("camera", data)
    scene.collection.objects.link(camera)
    scene.camera = camera
    colours, depths, masks = [], [], []
    for i, view in enumerate(plan.views):
        scene.cycles.seed = plan.seed % 2**30 + i
        passes = take(scene, camera, view, folder / "colour.exr")
        colours.append(rgb(passes, "Combined"))
    # Once more with one ray through each pixel's very centre: maps must not mix two things at an edge.
    settle_transparency()
    scene.cycles.samples, scene.cycles.max_bounces, scene.cycles.use_denoising = 1, 0, False
    scene.cycles.pixel_filter_type, scene.cycles.filter_width = "BOX", 0.01
    for view in plan.views:
        passes = take(scene, camera, view, folder / "maps.exr")
        depths.append(single(passes, "Depth"))
        masks.append(single(passes, "Object Index") == MAIN)
    return np.stack(colours), np.stack(depths), np.stack(masks)


def rgb(passes: dict[str, Array], name: str) -> Array:
    for key, pixels in passes.items():
        if key == name and pixels.ndim == 3:
            return pixels[..., :3].astype(np.float64)
    return np.stack([passes[f"{name}.{c}"] for c in "RGB"], -1).astype(np.float64)


def single(passes: dict[str, Array], name: str) -> Array:
    key = next(key for key in passes if key.startswith(name))
    return passes[key].astype(np.float64)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, nargs="+", required=True)
    parser.add_argument("--name", required=True, help="the scene's main model")
    parser.add_argument("--variant", type=int, required=True)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--every", type=int, default=1, help="take the first of so many cameras")
    parser.add_argument("--out", type=Path, required=True, help="the scene's folder")
    options = parser.parse_args(arguments)
    models = read_models(*options.models)
    by_name = {model.name: model for model in models}
    plan = plan_scene(by_name[options.name], options.variant, models).every(options.every)
    started = time.process_time()
    reset(options.size)
    build_room(plan)
    furnish(plan, by_name)
    build_light(plan)
    with tempfile.TemporaryDirectory() as folder:
        colours, depths, masks = photograph(plan, options.size, Path(folder))
    photos = develop(colours, plan.exposure, plan.seed)
    write_scene(options.out, plan, by_name, photos, depths, masks)
    print(f"{time.process_time() - started:.1f} CPU seconds")


if __name__ == "__main__":
    try:
        main()
    except FurnitureError as error:
        sys.exit(str(error))
