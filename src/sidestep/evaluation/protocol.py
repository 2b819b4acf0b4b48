"""What is evaluated on: which pairs, at which sizes (the paper's section of experiments, and by view distance)."""

import hashlib
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from sidestep.cameras import Camera
from sidestep.captures import Frame, Scene
from sidestep.captures.pairs import Pair, evaluation_pairs, read_pairs
from sidestep.captures.splits import Split, split_scenes
from sidestep.errors import SidestepError
from sidestep.evaluation.results import EvaluatedPair, Published

# By frames between reference and target, first and last (the paper draws 5 to 24 apart and reports one figure).
DISTANCES: dict[str, tuple[int, int]] = {"near": (1, 5), "middle": (6, 15), "far": (16, 10**9)}

ProtocolName = Literal["distance", "paper-3class", "paper-167class"]


@dataclass(frozen=True)
class Protocol:
    """How a set is evaluated.

    Attributes:
        split: the rule that says which scenes are held out, see `split_scenes`.
        sizes: sizes in pixels that LPIPS, FID and the perceptual figures are measured at besides the views' own.
        by_distance: each scene gives a pair of each distance and each direction; else one as the paper draws them.
        published: what others printed of it; their pairs are not known, so rows compare roughly.
    """

    split: str
    sizes: tuple[int, ...]
    by_distance: bool
    published: tuple[Published, ...] = ()


_PAPER = "Singh and Subramanyam 2025"


def _published(method: str, lpips: str, psnr: str, ssim: str, fid: str = "") -> Published:
    figures = {"LPIPS": lpips, "PSNR": psnr, "SSIM": ssim, "FID": fid}
    return Published(method, _PAPER, {name: value for name, value in figures.items() if value})


PROTOCOLS: dict[str, Protocol] = {
    "distance": Protocol("model", (), True),
    "paper-3class": Protocol(
        "paper-3class",
        (256,),
        False,
        (_published("GIBR", "0.510", "17.61", "0.554"), _published("the paper", "0.490", "15.71", "0.523")),
    ),
    "paper-167class": Protocol(
        "paper-167class",
        (90,),
        False,
        (
            _published("NViST", "0.448", "14.31", "0.566", "91.63"),
            _published("the paper", "0.409", "16.16", "0.578", "65.50"),
        ),
    ),
}


@dataclass(frozen=True)
class PairOfFrames:
    """A pair with all that is needed to evaluate it.

    Attributes:
        position: in the list; with the seed it decides what noise is drawn for the pair.
        info: what the results say of it.
    """

    position: int
    scene: Scene
    reference: Frame
    target: Frame
    info: EvaluatedPair


def distance_pairs(scenes: Sequence[Scene], seed: int) -> list[Pair]:
    """For each scene one pair of each distance in DISTANCES, in both directions of its path, as far as it has frames.

    A scene's pairs depend on the seed, the scene's id and its frames alone, and so does the order of any two pairs:
    scenes that are added change neither. The order is a random one, so that the first pairs of a list are a fair
    sample of it. Scenes of a single frame are left out with a warning that names them.
    """
    pairs = []
    for scene in scenes:
        rng = np.random.default_rng((seed, _number(scene.id)))
        count = len(scene.frames)
        if count < 2:
            warnings.warn(f"scene {scene.id} left out: one frame gives no pair", stacklevel=2)
        for low, high in DISTANCES.values():
            for step in (1, -1):
                # Every pair of this distance is equally likely, whatever its gap.
                gaps = np.repeat(np.arange(low, min(high, count - 1) + 1), _starts(low, high, count))
                if len(gaps) == 0:
                    continue
                gap = int(rng.choice(gaps))
                first = int(rng.integers(count - gap))
                ends = (first, first + gap)[::step]
                pairs.append(Pair(scene.id, *(scene.frames[i].name for i in ends)))
    return sorted(pairs, key=lambda pair: _number(f"{seed} {pair.scene} {pair.reference} {pair.target}"))


def held_out_pairs(scenes: Sequence[Scene], protocol: Protocol, split: Split, seed: int) -> list[Pair]:
    """The protocol's fixed list for the held-out scenes of a set.

    Raises:
        SidestepError: if no scene is in that split, or none gives a pair.
    """
    chosen = split_scenes(scenes, protocol.split)[split]
    if not chosen:
        raise SidestepError(
            f"none of the {len(scenes)} scenes is in split {split} of rule {protocol.split}; "
            "name other data, another split, or a list of pairs"
        )
    pairs = distance_pairs(chosen, seed) if protocol.by_distance else evaluation_pairs(chosen, seed)
    if not pairs:
        raise SidestepError(f"none of the {len(chosen)} scenes of split {split} has frames enough for a pair")
    return pairs


def listed_pairs(path: Path, scenes: Sequence[Scene]) -> list[Pair]:
    """The pairs of a file, which must all be of these scenes.

    Raises:
        SidestepError: if the file is no list of pairs, lists one twice, or names what the scenes lack.
    """
    pairs = read_pairs(path, scenes)
    if not pairs:
        raise SidestepError(f"{path}: lists no pair")
    if len(set(pairs)) < len(pairs):
        twice = next(pair for pair in pairs if pairs.count(pair) > 1)
        raise SidestepError(f"{path}: scene {twice.scene}, {twice.reference} to {twice.target} is listed twice")
    return pairs


def pairs_of_frames(pairs: Sequence[Pair], scenes: Sequence[Scene]) -> list[PairOfFrames]:
    """The frames of each pair, and what subsets it belongs to."""
    by_id = {scene.id: scene for scene in scenes}
    result = []
    for position, pair in enumerate(pairs):
        scene = by_id[pair.scene]
        places = {frame.name: place for place, frame in enumerate(scene.frames)}
        reference, target = places[pair.reference], places[pair.target]
        frames = scene.frames[reference], scene.frames[target]
        info = _describe(pair, abs(reference - target), frames[0].camera, frames[1].camera)
        result.append(PairOfFrames(position, scene, *frames, info))
    return result


def wrong_partners(pairs: Sequence[PairOfFrames], seed: int) -> list[int]:
    """For each pair the position of another pair of the same distance, whose target camera it is given in error.

    A cycle through all pairs of a distance in a random order, so no pair gets its own. A pair that is alone in its
    distance gets any other's, and one that is alone altogether its own.
    """
    rng = np.random.default_rng((seed, 1))
    partners = [(i + 1) % len(pairs) for i in range(len(pairs))]
    for distance in DISTANCES:
        group = rng.permutation([pair.position for pair in pairs if distance in pair.info.subsets])
        if len(group) > 1:
            for own, other in zip(group.tolist(), np.roll(group, 1).tolist(), strict=True):
                partners[own] = other
    return partners


def frame_beside(pair: PairOfFrames) -> Frame | None:
    """The frame next to the target on the scene's path, away from the reference; at the path's end, towards it.

    None where that one is the reference itself.
    """
    frames = pair.scene.frames
    reference, target = frames.index(pair.reference), frames.index(pair.target)
    step = 1 if target > reference else -1
    away, back = target + step, target - step
    if 0 <= away < len(frames):
        return frames[away]
    return frames[back] if back != reference else None


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _starts(low: int, high: int, count: int) -> list[int]:
    return [count - gap for gap in range(low, min(high, count - 1) + 1)]


def _describe(pair: Pair, gap: int, reference: Camera, target: Camera) -> EvaluatedPair:
    relative = target.relative_to(reference)
    # The angle between the viewing directions: both look along z, and R's last row is the target's in the reference.
    cosine = float(relative.rotation[2, 2].double().clamp(-1, 1))
    side = "right" if float(relative.centre[0]) >= 0 else "left"
    distance = next(name for name, (low, high) in DISTANCES.items() if low <= gap <= high)
    return EvaluatedPair(
        pair.scene,
        pair.reference,
        pair.target,
        gap=gap,
        turn=round(math.degrees(math.acos(cosine)), 2),
        subsets=("all", distance, side),
    )
