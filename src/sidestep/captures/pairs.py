"""Which frame is the reference and which the target."""

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from sidestep.captures.scene import Scene
from sidestep.errors import SidestepError
from sidestep.files import write_json
from sidestep.inputs import read_json


@dataclass(frozen=True)
class Pair:
    """A reference and a target frame of one scene, by `Scene.id` and `Frame.name`."""

    scene: str
    reference: str
    target: str


def paper_pairs(n_frames: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """One epoch's (reference, target) pairs of a scene, as the paper trains (Singh and Subramanyam 2025).

    Of 25 frames or more: each of frames 0-9 with a different one of frames 14-24, drawn anew at each call. Of 10 to
    24: frame i of the first half with frame i + 5 of the second half, as far as there is one, as in the authors'
    scripts (none of 10, one of 11, seven of 24). Of fewer: none.
    """
    if n_frames >= 25:
        return list(enumerate((rng.permutation(11)[:10] + 14).tolist()))
    if n_frames < 10:
        return []
    half = n_frames // 2
    return [(i, half + i + 5) for i in range(half) if half + i + 5 < n_frames]


def any_pairs(n_frames: int, count: int, rng: np.random.Generator, max_gap: int | None = None) -> list[tuple[int, int]]:
    """`count` pairs of two different frames, at most `max_gap` apart; none of fewer than two frames.

    Every frame is the reference equally often, and every frame near enough to it is the target equally often.
    """
    if n_frames < 2:
        return []
    gap = n_frames - 1 if max_gap is None else max_gap
    pairs = []
    for reference in rng.integers(n_frames, size=count).tolist():
        low, high = max(0, reference - gap), min(n_frames - 1, reference + gap)
        target = int(rng.integers(low, high))  # one place less, for the reference itself
        pairs.append((reference, target + (target >= reference)))
    return pairs


def evaluation_pairs(scenes: Sequence[Scene], seed: int, per_scene: int = 1) -> list[Pair]:
    """A fixed list of pairs to evaluate on: `per_scene` of each scene's `paper_pairs`, or all where there are fewer.

    A scene's pairs depend on the seed and the scene's id alone, so scenes that are added change no other's. Scenes
    too short to give a pair are left out with a warning that names them.
    """
    pairs: list[Pair] = []
    for scene in sorted(scenes, key=lambda scene: scene.id):
        digest = hashlib.sha256(scene.id.encode()).digest()
        rng = np.random.default_rng((seed, int.from_bytes(digest[:8], "big")))
        candidates = paper_pairs(len(scene.frames), rng)
        if not candidates:
            warnings.warn(f"scene {scene.id} left out: {len(scene.frames)} frames give no pair", stacklevel=2)
        chosen = sorted(rng.permutation(len(candidates))[:per_scene].tolist())
        for reference, target in (candidates[i] for i in chosen):
            pairs.append(Pair(scene.id, scene.frames[reference].name, scene.frames[target].name))
    return pairs


def write_pairs(path: str | Path, pairs: Sequence[Pair]) -> None:
    """Writes a list of pairs as JSON."""
    write_json(path, {"pairs": [asdict(pair) for pair in pairs]})


def read_pairs(path: str | Path, scenes: Sequence[Scene] | None = None) -> list[Pair]:
    """The pairs of a file that `write_pairs` wrote.

    Args:
        scenes: where given, every pair must be of these scenes and their frames.

    Raises:
        SidestepError: if the file is no list of pairs, a pair is of one frame twice, or names what `scenes` lack.
    """
    data = read_json(path)
    try:
        pairs = [Pair(**entry) for entry in data["pairs"]]
    except (TypeError, KeyError) as error:
        raise SidestepError(
            f"{path}: not a list of pairs ({type(error).__name__}: {error}); write it with evaluation_pairs"
        ) from None
    frames = None if scenes is None else {scene.id: {frame.name for frame in scene.frames} for scene in scenes}
    for index, pair in enumerate(pairs):
        if not all(isinstance(name, str) and name for name in asdict(pair).values()):
            raise SidestepError(f"{path}: pair {index} must name a scene, a reference and a target")
        if pair.reference == pair.target:
            raise SidestepError(f"{path}: pair {index} of scene {pair.scene} is frame {pair.reference} twice")
        if frames is None:
            continue
        if pair.scene not in frames:
            raise SidestepError(f"{path}: pair {index} is of scene {pair.scene}, which the data lacks")
        for name in (pair.reference, pair.target):
            if name not in frames[pair.scene]:
                raise SidestepError(f"{path}: pair {index}: scene {pair.scene} has no frame {name}")
    return pairs
