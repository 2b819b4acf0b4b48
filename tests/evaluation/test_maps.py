"""A pair's maps at the size of the evaluation."""

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from sidestep.captures import read_captures
from sidestep.captures.maps import write_mask
from sidestep.captures.pairs import Pair
from sidestep.errors import SidestepError
from sidestep.evaluation.maps import LEAST_SHARE, PairMaps, load_depth, load_mask, measured_parts
from sidestep.evaluation.protocol import PairOfFrames, pairs_of_frames


@pytest.fixture
def pair(room: ModuleType, tmp_path: Path) -> PairOfFrames:
    room.write_scene(tmp_path / "room", [0, 20], size=64)
    scenes = read_captures(tmp_path / "room")
    (found,) = pairs_of_frames([Pair(scenes[0].id, "000.png", "001.png")], scenes)
    return found


def test_maps_are_scaled_and_cropped_as_cameras_are(room: ModuleType, pair: PairOfFrames) -> None:
    camera = pair.target.camera
    small = room.render(room.look(20, size=32))
    torch.testing.assert_close(camera.resize_and_crop(32).intrinsics, small.camera.intrinsics.float())
    depth, mask = load_depth(pair.target, 32), load_mask(pair.target, 32)
    assert depth is not None
    assert mask is not None
    assert float(((depth - small.depth).abs() < 0.08).float().mean()) > 0.94  # a pixel of 64 is half one of 32
    assert float((mask == small.ball).float().mean()) > 0.98
    own = load_depth(pair.target, 64)
    torch.testing.assert_close(own, room.render(room.look(20, size=64)).depth, atol=6e-4, rtol=0)


def test_the_parts_of_a_target_and_their_shares(room: ModuleType, pair: PairOfFrames) -> None:
    maps = PairMaps.load(pair, 64)
    target = room.render(room.look(20, size=64))
    assert torch.equal(maps.parts["object"], target.ball)
    hidden = ~room.visible(room.places(target), room.look(0, size=64))
    assert maps.shares["unseen"] == pytest.approx(float(hidden.float().mean()), abs=0.03)
    assert maps.shares["object"] == float(target.ball.float().mean())

    without = replace(pair, reference=replace(pair.reference, depth=None))
    assert PairMaps.load(without, 64).parts.keys() == {"object"}
    nothing = replace(pair, target=replace(pair.target, depth=None, mask=None))
    maps = PairMaps.load(nothing, 64)
    assert (maps.parts, maps.shares, maps.target_depth) == ({}, {}, None)


def test_a_part_too_small_to_say_anything_is_no_part(pair: PairOfFrames) -> None:
    maps = PairMaps.load(pair, 64)
    small = torch.zeros(64, 64, dtype=torch.bool)
    small[0, : int(LEAST_SHARE * 64 * 64)] = True
    none = replace(maps, parts={})
    tiny = replace(maps, parts={"object": small})
    parts = measured_parts([maps, none, tiny])
    assert torch.equal(parts["object"][0], maps.parts["object"])
    assert not parts["object"][1:].any()
    assert parts["unseen"][0].any()
    assert measured_parts([none]) == {}


def test_a_mask_of_another_shape_is_refused(pair: PairOfFrames) -> None:
    assert isinstance(pair.target.mask, Path)
    write_mask(pair.target.mask, torch.zeros(10, 20, dtype=torch.bool))
    with pytest.raises(SidestepError, match=r"masks/001\.png: 20x10 pixels, but its photo has 64x64"):
        PairMaps.load(pair, 64)
