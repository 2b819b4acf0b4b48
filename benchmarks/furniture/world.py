"""The plan of a scene: a room, what stands in it, its light, and a camera's way. All of it follows from the seed.

Nothing here needs Blender. Lengths are metres; z is up; the thing that the scene shows stands at the origin, looking to
-y where it has a front.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from boxes import Box, blocked, overlap
from handheld import ARC, FRAMES, View, corners, smooth, walk
from textures import FLOORS

from models import Model, Split, fraction

Array = np.ndarray
Rng = np.random.Generator
Side = Literal["north", "east", "south", "west"]
SIDES: tuple[Side, ...] = ("north", "east", "south", "west")
FIRST_VARIANT = 10  # scenes s1 to s9 of a model are the older set's
FURNITURE = {"chair", "sofa", "table", "bed", "bench", "cabinet", "shelf"}
CLEARANCE = 0.35  # metres that a camera keeps from everything
SEEN = 0.8, 0.45  # how much of the thing is in sight: on average, and in every frame, as boxes tell
OTHERS = 2, 6  # how many further things a scene has


@dataclass(frozen=True)
class Item:
    """A model in its place: the centre of its base, and its angle about z in radians; angle 0 looks to -y."""

    model: str
    x: float
    y: float
    z: float
    angle: float


@dataclass(frozen=True)
class Surface:
    """A painter of `textures` and its seed."""

    kind: str
    seed: int


@dataclass(frozen=True)
class Patch:
    """A rectangle on a wall: a window, a picture, a door. `along` is the x or y of its middle, `low` its lower edge."""

    side: Side
    along: float
    low: float
    width: float
    height: float
    seed: int

    def clear_of(self, other: "Patch", gap: float = 0.1) -> bool:
        return (
            self.side != other.side
            or abs(self.along - other.along) > (self.width + other.width) / 2 + gap
            or self.low > other.low + other.height + gap
            or other.low > self.low + self.height + gap
        )


@dataclass(frozen=True)
class Room:
    """Walls at x0 and x1 (west, east) and y0 and y1 (south, north)."""

    x0: float
    x1: float
    y0: float
    y1: float
    height: float

    def span(self, side: Side) -> tuple[float, float]:
        return (self.x0, self.x1) if side in ("north", "south") else (self.y0, self.y1)

    def at(self, side: Side) -> float:
        return {"north": self.y1, "south": self.y0, "east": self.x1, "west": self.x0}[side]

    def holds(self, box: Box) -> bool:
        x, y = box.footprint.T
        inside = x.min() >= self.x0 and x.max() <= self.x1 and y.min() >= self.y0 and y.max() <= self.y1
        return bool(inside and box.z + box.size[2] <= self.height - 0.02)


@dataclass(frozen=True)
class Rug:
    x: float
    y: float
    width: float
    depth: float
    angle: float
    round: bool
    seed: int


@dataclass(frozen=True)
class Light:
    """What shines, in relative units: the sky in the windows, the sun (0: clouds), the ceiling, and their colours.

    `sun_from` is where the sun stands: azimuth from +x towards +y, and elevation, in degrees.
    """

    sky: float
    sun: float
    sun_from: tuple[float, float]
    fill: float
    sky_colour: tuple[float, float, float]
    sun_colour: tuple[float, float, float]
    fill_colour: tuple[float, float, float]


@dataclass(frozen=True)
class Exposure:
    """How the phone develops the pictures: brightness in stops about its automatic one, frame by frame; how much of a
    colour cast it takes out; its contrast and saturation."""

    stops: tuple[float, ...]
    balance: float
    tint: tuple[float, float, float]
    contrast: float
    saturation: float


@dataclass(frozen=True)
class Plan:
    """A scene. `items[0]` is what it shows."""

    name: str
    category: str
    split: Split
    seed: int
    room: Room
    floor: Surface
    walls: dict[Side, Surface]
    skirting: float
    rug: Rug | None
    windows: tuple[Patch, ...]
    curtains: bool
    pictures: tuple[Patch, ...]
    door: Patch | None
    items: tuple[Item, ...]
    views: tuple[View, ...]
    light: Light
    exposure: Exposure

    def every(self, step: int) -> "Plan":
        """The plan with the first of every `step` cameras."""
        exposure = replace(self.exposure, stops=self.exposure.stops[::step])
        return replace(self, views=self.views[::step], exposure=exposure)


def scene_order(models: Sequence[Model]) -> Iterator[tuple[Model, int]]:
    """Which model and variant each scene shows, without end; nothing if no model may be a scene's main one.

    A round shows every piece of furniture once, and a third of what else there is. Its order is by hash, so the first N
    scenes are a fair sample of all kinds and splits whatever N is.
    """
    mains = [model for model in models if model.main]
    for variant in itertools.count(FIRST_VARIANT) if mains else ():
        shown = [m for m in mains if m.category in FURNITURE or int(3 * fraction("turn", m.name)) == variant % 3]
        yield from ((m, variant) for m in sorted(shown, key=lambda m: fraction("order", variant, m.name)))


def plan_scene(model: Model, variant: int, models: Sequence[Model], frames: int = FRAMES) -> Plan:
    """The plan of one scene.

    Args:
        model: what the scene shows.
        variant: its number among the model's scenes.
        models: what may keep it company; only those of the model's split do.
    """
    name = f"{model.name}s{variant}"
    seed = int(fraction("scene", name) * 2**53)
    pool = [other for other in models if other.split == model.split and other.name != model.name]
    pool.sort(key=lambda other: other.name)
    plans = (_Planner(model, name, seed + attempt, pool, frames).plan() for attempt in range(30))
    full = next((plan for plan in plans if len(plan.items) > OTHERS[0]), None)
    return replace(full or _Planner(model, name, seed, pool, frames).plan(), seed=seed)


class _Planner:
    """Builds a plan step by step; each step adds to what the next has to respect."""

    def __init__(self, model: Model, name: str, seed: int, pool: Sequence[Model], frames: int) -> None:
        self.model, self.name, self.pool, self.frames = model, name, pool, frames
        self.seed = seed
        self.rng = np.random.default_rng(seed)
        self.items: list[Item] = []
        self.placed: list[tuple[Model, Box]] = []
        self.patches: list[Patch] = []
        self.sight = np.zeros((0, 0), dtype=bool)

    def plan(self) -> Plan:
        rng = self.rng
        height = float(rng.uniform(2.4, 3.1))
        height = max(height, self.model.size[2] + 0.3)
        self._set_main(self._support())
        self._set_views(height)
        self._set_room(height)
        windows = self._windows()
        door = self._door()
        wanted = int(rng.integers(OTHERS[0] + 1, OTHERS[1] + 1))
        self._group(wanted)
        self._along_walls(wanted)
        self._on_tops(int(rng.integers(1, 4)))
        pictures = self._pictures()
        floor = Surface(str(rng.choice(list(FLOORS), p=(0.42, 0.16, 0.16, 0.16, 0.1))), self._seed())
        plain = Surface(str(rng.choice(("plaster", "wallpaper"), p=(0.75, 0.25))), self._seed())
        walls: dict[Side, Surface] = {side: plain for side in SIDES}
        if rng.random() < 0.4:
            accent = str(rng.choice(("plaster", "wallpaper", "brick", "panelling")))
            walls[self._seen_sides()[0]] = Surface(accent, self._seed())
        rug = self._rug() if rng.random() < (0.2 if floor.kind == "carpet" else 0.6) else None
        return Plan(
            name=self.name,
            category=self.model.category,
            split=self.model.split,
            seed=self.seed,
            room=self.room,
            floor=floor,
            walls=walls,
            skirting=float(rng.choice((0.0, 0.06, 0.08, 0.12), p=(0.15, 0.3, 0.3, 0.25))),
            rug=rug,
            windows=tuple(windows),
            curtains=bool(rng.random() < 0.5),
            pictures=tuple(pictures),
            door=door,
            items=tuple(self.items),
            views=tuple(self.views),
            light=self._light(windows),
            exposure=self._exposure(),
        )

    def _seed(self) -> int:
        return int(self.rng.integers(2**31))

    # What the scene shows, and the way about it

    def _support(self) -> Model | None:
        """Something to stand the model on, if it is a thing for a table."""
        if self.model.place != "table":
            return None
        w, d, _ = self.model.size
        tables = [
            m
            for m in self.pool
            if m.category in ("table", "cabinet") and m.place in ("floor", "wall") and m.top is not None
            if 0.35 < m.top < 1.0 and m.top > m.size[2] - 0.03 and m.size[0] > w + 0.15 and m.size[1] > d + 0.1
        ]
        return self._choose(tables) if tables else None

    def _set_main(self, support: Model | None) -> None:
        model, rng = self.model, self.rng
        self.at_wall = model.place == "wall" or rng.random() < {"sofa": 0.6, "table": 0.2, "bench": 0.4}.get(
            model.category, 0.15
        )
        z, x, y = 0.0, 0.0, 0.0
        turned = 0.0
        if support is not None:
            z = float(support.top or 0)
            self.at_wall = support.place == "wall" or rng.random() < 0.4
            slack = np.maximum((np.array(support.size[:2]) - np.array(model.size[:2])) / 2 - 0.04, 0)
            x, y = (rng.uniform(-0.8, 0.8, 2) * slack).tolist()
            turned = float(rng.uniform(-0.5, 0.5))
        elif not self.at_wall:
            turned = float(rng.uniform(-np.pi, np.pi))
        self.turned = turned
        self._add(model, x, y, z, turned)
        if support is not None:
            self._add(support, 0.0, 0.0, 0.0, 0.0)

    def _set_views(self, height: float) -> None:
        model, rng = self.model, self.rng
        arc = float(rng.uniform(*ARC))
        _, box = self.placed[0]
        faced = model.category in ("chair", "sofa", "bench", "piano", "kitchen", "bathroom", "cabinet", "shelf")
        if self.at_wall:
            limit = max(0.0, 76 - arc / 2)
            azimuth = float(rng.uniform(-limit, limit))
        else:
            front = np.degrees(box.angle)
            azimuth = float(front + (rng.normal(0, 45) if faced else rng.uniform(-180, 180)))
        shape = np.concatenate(
            (corners(np.array(model.size) / 2)[:, :2] @ box.axes, corners(np.array(model.size) / 2)[:, 2:]), 1
        )
        if min(model.size[:2]) < 0.12:  # what is thin is not walked about so closely
            shape = shape * 1.15
        self.views = walk(rng, box.centre, shape, azimuth, arc, (0.12, height - 0.15), self.frames)
        self.eyes = np.array([view.eye for view in self.views])
        self.sight = np.ones((len(self.views), 27), dtype=bool)
        self.middle = azimuth

    def _set_room(self, height: float) -> None:
        rng = self.rng
        points = np.concatenate([self.eyes[:, :2], *(box.footprint for _, box in self.placed)])
        low = points.min(0) - rng.uniform(0.4, 1.6, 2)
        high = points.max(0) + rng.uniform(0.4, 1.6, 2)
        short = np.maximum(3.0 - (high - low), 0)
        low, high = low - short / 2, high + short / 2
        if self.at_wall:
            back = max(box.footprint[:, 1].max() for _, box in self.placed[:2])
            high[1] = back + rng.uniform(0.01, 0.12)
            low[1] = min(low[1], high[1] - 3.0)
        self.room = Room(float(low[0]), float(high[0]), float(low[1]), float(high[1]), height)

    def _seen_sides(self) -> list[Side]:
        """The walls by how much the cameras look at them."""
        forward = np.mean([view.axes()[2] for view in self.views], 0)
        outward = {"north": (0, 1), "south": (0, -1), "east": (1, 0), "west": (-1, 0)}
        return sorted(SIDES, key=lambda side: -float(np.dot(forward[:2], outward[side])))

    # Openings

    def _windows(self) -> list[Patch]:
        rng, room = self.rng, self.room
        seen = self._seen_sides()
        # Mostly from the side; now and then behind the camera or in the picture.
        first = seen[int(rng.choice(4, p=(0.25, 0.33, 0.32, 0.1)))]
        windows: list[Patch] = []
        for side in dict.fromkeys((first, *(SIDES[i] for i in rng.permutation(4)[: int(rng.integers(0, 3))]))):
            width = float(min(rng.uniform(0.9, 2.4), np.ptp(room.span(side)) - 0.8))
            low = float(rng.choice((0.02, rng.uniform(0.4, 1.0)), p=(0.25, 0.75)))
            tall = float(rng.uniform(1.1, 1.6)) if low > 0.1 else 2.1
            patch = self._on_wall(side, low, width, min(tall, room.height - 0.25 - low))
            if patch is not None:
                windows.append(patch)
        if not windows:
            windows = [Patch(first, float(np.mean(room.span(first))), 1.0, 0.9, room.height - 1.3, self._seed())]
            self.patches += windows
        return windows

    def _door(self) -> Patch | None:
        if self.rng.random() < 0.4:
            return None
        side = SIDES[int(self.rng.integers(4))]
        return self._on_wall(side, 0.0, float(self.rng.uniform(0.75, 0.95)), 2.05)

    def _on_wall(self, side: Side, low: float, width: float, height: float) -> Patch | None:
        """A free place on a wall, behind nothing that stands there already."""
        start, end = self.room.span(side)
        reach = (end - start - width) / 2 - 0.15
        if reach <= 0:
            return None
        for _ in range(12):
            along = float((start + end) / 2 + self.rng.uniform(-reach, reach))
            patch = Patch(side, along, low, width, height, self._seed())
            box = self._before(patch, 0.25)
            hidden = any(overlap(box, other, 0.03) for _, other in self.placed)
            if not hidden and all(patch.clear_of(other, 0.25) for other in self.patches):
                self.patches.append(patch)
                return patch
        return None

    def _before(self, patch: Patch, depth: float) -> Box:
        """The space right before a part of a wall."""
        at = self.room.at(patch.side) + (depth / 2 if patch.side in ("south", "west") else -depth / 2)
        if patch.side in ("north", "south"):
            return Box(patch.along, at, patch.low, (patch.width, depth, patch.height), 0.0)
        return Box(at, patch.along, patch.low, (depth, patch.width, patch.height), 0.0)

    # Company

    def _add(self, model: Model, x: float, y: float, z: float, angle: float) -> None:
        self.items.append(Item(model.name, float(x), float(y), float(z), float(angle)))
        self.placed.append((model, Box(float(x), float(y), float(z), model.size, float(angle))))

    def _choose(self, models: Sequence[Model]) -> Model:
        """One of the models, the categories being equally likely; one that is not in the room yet, if there is any."""
        here = {item.model for item in self.items}
        models = [model for model in models if model.name not in here] or models
        categories = sorted({model.category for model in models})
        category = categories[int(self.rng.integers(len(categories)))]
        fitting = [model for model in models if model.category == category]
        return fitting[int(self.rng.integers(len(fitting)))]

    def _fits(self, box: Box, gap: float, supported: bool = False) -> bool:
        """Whether a further thing may stand there: free, out of the cameras' way and of their sight."""
        if not self.room.holds(box) or any(overlap(box, other, gap) for _, other in self.placed):
            return False
        if not supported and any(overlap(box, self._before(patch, 0.06)) for patch in self.patches if patch.low < 1.2):
            return False
        if box.distance(self.eyes).min() < CLEARANCE:
            return False
        sight = self.sight & ~blocked(box, self.eyes, self.placed[0][1].samples())
        if sight.mean() < SEEN[0] or sight.mean(1).min() < SEEN[1]:
            return False
        self.sight = sight
        return True

    def _try(self, model: Model, x: float, y: float, z: float, angle: float, gap: float = 0.04) -> bool:
        if not self._fits(Box(x, y, z, model.size, angle), gap, supported=z > 0):
            return False
        self._add(model, x, y, z, angle)
        return True

    def _of(self, *categories: str, place: tuple[str, ...] = ("floor", "wall")) -> list[Model]:
        return [m for m in self.pool if m.category in categories and m.place in place]

    def _group(self, wanted: int) -> None:
        """What belongs to the main thing: chairs to a table, a low table to a sofa, tables beside a bed."""
        main, box = self.placed[0] if self.model.place != "table" else self.placed[min(1, len(self.placed) - 1)]
        rng = self.rng
        w, d, h = main.size
        if main.category == "table" and h > 0.55 and max(w, d) > 0.6:
            chairs = [m for m in self._of("chair") if m.size[2] > 0.6 and max(m.size[:2]) < 0.75]
            if chairs and h > 0.85:
                chairs = [m for m in chairs if "tool" in m.title or "ar " in m.title] or chairs
            if chairs:
                chair = self._choose(chairs)
                for side in rng.permutation(4)[: int(rng.integers(1, 5))]:
                    self._beside(box, chair, int(side), float(rng.uniform(0.02, 0.25)), rng.uniform(-0.25, 0.25), 0.25)
        elif main.category == "sofa" or (main.category == "chair" and rng.random() < 0.5):
            low = [m for m in self._of("table") if m.size[2] < 0.62 and max(m.size[:2]) < 1.5]
            if low and rng.random() < 0.75:
                self._beside(box, self._choose(low), 0, float(rng.uniform(0.25, 0.55)), rng.uniform(-0.2, 0.2), 0.1)
        elif main.category == "bed":
            nights = [m for m in self._of("table", "cabinet") if m.size[2] < 0.7 and max(m.size[:2]) < 0.65]
            if nights:
                night = self._choose(nights)
                for side in (1, 3):
                    back = (d - night.size[1]) / 2 / max(d, 0.1)
                    self._beside(box, night, side, float(rng.uniform(0.03, 0.15)), back, 0.0, face=False)
        if main.category in ("sofa", "chair", "cabinet", "piano", "table", "shelf"):
            beside = self._of("lamp", "plant", place=("floor",)) + [
                m for m in self._of("table", "cabinet", "chair") if max(m.size[:2]) < 0.9 and m.size[2] < 1.1
            ]
            for side in rng.permutation((1, 3)):
                if beside and len(self.items) <= wanted and rng.random() < 0.6:
                    model = self._choose(beside)
                    self._beside(
                        box, model, int(side), float(rng.uniform(0.05, 0.4)), rng.uniform(-0.3, 0.5), 0.3, False
                    )

    def _beside(
        self, box: Box, model: Model, side: int, gap: float, shift: float, swing: float, face: bool = True
    ) -> bool:
        """Puts a model beside a box: side 0 before it, then 1 at its left (seen from before), 2 behind, 3 right.

        Args:
            shift: along the side, as a share of the box's length there.
            swing: how far the model is turned at random, in radians.
            face: whether it looks at the box; else it looks as the box does.
        """
        w, d = box.size[:2]
        outward = {0: (0, -1), 1: (-1, 0), 2: (0, 1), 3: (1, 0)}[side]
        turn = {0: np.pi, 1: np.pi / 2, 2: 0.0, 3: -np.pi / 2}[side] if face else 0.0
        swung = float(self.rng.uniform(-swing, swing))
        across = model.size[1] if face or side in (0, 2) else model.size[0]
        far = (d if side in (0, 2) else w) / 2 + gap + across / 2 + 0.3 * abs(swung) * max(model.size[:2])
        along = shift * (w if side in (0, 2) else d)
        local = np.array(outward) * far + np.array(outward)[::-1] * along
        x, y = local @ box.axes + (box.x, box.y)
        return self._try(model, float(x), float(y), 0.0, box.angle + turn + swung, 0.01)

    def _along_walls(self, wanted: int) -> None:
        """Fills the walls that the cameras see, and then the rest of the room."""
        rng, room = self.rng, self.room
        seen = self._seen_sides()
        candidates = self._of("shelf", "cabinet", "plant", "lamp", "chair", "sofa", "table", "bench", "piano")
        if self.model.category in ("kitchen", "bathroom"):
            candidates += 3 * self._of(self.model.category)
        candidates = [m for m in candidates if m.size[2] > 0.3]
        if not candidates:
            return
        outward_angle = {"north": 0.0, "east": -np.pi / 2, "south": np.pi, "west": np.pi / 2}
        for _ in range(40):
            if len(self.items) > wanted:
                return
            side = seen[int(rng.choice(3, p=(0.5, 0.3, 0.2)))]
            model = self._choose(candidates)
            w, d, _ = model.size
            start, end = room.span(side)
            if end - start < w + 0.3:
                continue
            along = float(rng.uniform(start + w / 2 + 0.05, end - w / 2 - 0.05))
            gap = float(rng.uniform(0.03, 0.15 if model.place == "wall" else 0.35)) + d / 2
            angle = outward_angle[side]
            if model.place == "floor":
                swing = float(rng.uniform(-0.35, 0.35))
                angle += swing
                gap += abs(np.sin(swing)) * w / 2
            at = room.at(side) - gap if side in ("north", "east") else room.at(side) + gap
            x, y = (along, at) if side in ("north", "south") else (at, along)
            self._try(model, x, y, 0.0, angle, 0.06)

    def _on_tops(self, count: int) -> None:
        """Small things on tables and cabinets."""
        rng = self.rng
        small = self._of("decoration", "plant", "lamp", "kitchen", place=("table",))
        tops = [(m, b) for m, b in self.placed if m.top is not None and b.z == 0 and 0.3 < m.top < 1.3]
        tops = [(m, b) for m, b in tops if m.category in ("table", "cabinet", "shelf", "piano")]
        if self.model.category == "bathroom" or not small or not tops:
            return
        for _ in range(12 * count):
            if count == 0:
                return
            on, box = tops[int(rng.integers(len(tops)))]
            if on.top is None or on.top < on.size[2] - 0.04:
                continue  # its highest surface is not all of it: a thing might hang in the air
            model = self._choose(small)
            slack = (np.array(on.size[:2]) - max(model.size[:2])) / 2 - 0.03
            if slack.min() < 0:
                continue
            x, y = (rng.uniform(-1, 1, 2) * slack) @ box.axes + (box.x, box.y)
            count -= self._try(model, float(x), float(y), on.top, float(box.angle + rng.uniform(-0.6, 0.6)), 0.02)

    # What makes it a room

    def _pictures(self) -> list[Patch]:
        rng = self.rng
        pictures = []
        for side in self._seen_sides()[:3]:
            for _ in range(int(rng.integers(0, 3))):
                width = float(rng.uniform(0.3, 1.0))
                height = float(width * rng.choice((0.7, 1.0, 1.35)))
                low = float(rng.uniform(1.15, 1.55))
                if low + height < self.room.height - 0.15:
                    patch = self._on_wall(side, low, width, height)
                    if patch is not None:
                        pictures.append(patch)
        return pictures

    def _rug(self) -> Rug:
        rng = self.rng
        box = self.placed[0][1] if self.model.place != "table" else self.placed[min(1, len(self.placed) - 1)][1]
        reach = max(box.size[:2])
        width, depth = float(reach * rng.uniform(0.9, 1.7) + 0.3), float(rng.uniform(1.0, 2.0) + 0.3 * reach)
        ahead = float(rng.uniform(0, 0.7) * depth / 2)
        x, y = np.array((0.0, -ahead)) @ box.axes + (box.x, box.y)
        angle = box.angle + float(rng.normal(0, 0.08))
        is_round = bool(rng.random() < 0.2)
        room = self.room
        # Cut to the room; a rug does not climb the wall.
        extent = np.abs(Box(0, 0, 0, (width, depth, 0), angle).footprint).max(0)
        x = float(np.clip(x, room.x0 + extent[0] + 0.03, max(room.x1 - extent[0] - 0.03, room.x0 + extent[0] + 0.03)))
        y = float(np.clip(y, room.y0 + extent[1] + 0.03, max(room.y1 - extent[1] - 0.03, room.y0 + extent[1] + 0.03)))
        return Rug(x, y, width, depth, angle, is_round, self._seed())

    def _light(self, windows: Sequence[Patch]) -> Light:
        rng = self.rng
        outward = {"north": 90.0, "south": 270.0, "east": 0.0, "west": 180.0}[windows[0].side]
        warm = rng.uniform(0, 1)
        blue = rng.uniform(0, 1)
        evening = rng.random() < 0.12
        lamp = rng.uniform(0.6, 1.0)
        return Light(
            sky=0.15 if evening else float(rng.uniform(3, 9)),
            sun=0.0 if evening or rng.random() < 0.45 else float(rng.uniform(3, 14)),
            sun_from=(float(outward + rng.uniform(-60, 60)), float(rng.uniform(18, 55))),
            fill=float(rng.uniform(1.2, 2.2)) if evening else float(rng.uniform(0.15, 0.8)),
            sky_colour=(float(1 - 0.25 * blue), float(1 - 0.1 * blue), 1.0),
            sun_colour=(1.0, float(0.95 - 0.15 * warm), float(0.9 - 0.35 * warm)),
            fill_colour=(1.0, float(1 - 0.2 * lamp), float(1 - 0.45 * lamp)) if evening else (1.0, 0.97, 0.92),
        )

    def _exposure(self) -> Exposure:
        rng = self.rng
        stops = rng.normal(0, 0.3) + 0.15 * smooth(rng, self.frames, 3)
        tint = np.exp(rng.normal(0, 0.03, 3))
        return Exposure(
            stops=tuple(float(x) for x in np.clip(stops, -0.8, 0.7)),
            balance=float(rng.uniform(0.4, 0.9)),
            tint=(float(tint[0]), float(tint[1]), float(tint[2])),
            contrast=float(rng.uniform(1.15, 1.4)),
            saturation=float(rng.uniform(0.95, 1.25)),
        )
