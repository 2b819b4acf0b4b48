import shutil

import pytest

from sidestep.captures import read_captures, write_capture
from sidestep.errors import SidestepError


def test_categories_of_scenes(furniture):
    scenes = read_captures(furniture)
    assert [scene.id for scene in scenes] == ["chair/scopia024", "sofa/scopia076", "table/scopia091"]
    assert {len(scene.frames) for scene in scenes} == {25}


def test_points_fall_on_the_thing_in_the_picture(furniture):
    for scene in read_captures(furniture):
        for frame in scene.frames:
            pixels, depth = frame.camera.project(scene.points)
            assert bool((depth > 0).all())
            assert bool(((pixels > -20) & (pixels < 276)).all())


def test_a_folder_of_scenes_has_no_category(furniture):
    scenes = read_captures(furniture / "chair")
    assert [(scene.name, scene.category) for scene in scenes] == [("scopia024", None)]


def test_one_scene(furniture):
    assert [scene.name for scene in read_captures(furniture / "sofa" / "scopia076")] == ["scopia076"]


def test_transforms_as_file_and_as_folder(tmp_path, furniture):
    frames = read_captures(furniture / "chair")[0].frames[:3]
    write_capture(tmp_path / "view", [frame.load() for frame in frames], [frame.camera for frame in frames])
    shutil.rmtree(tmp_path / "view" / "sparse")
    for path in (tmp_path / "view", tmp_path / "view" / "transforms.json", tmp_path):
        (scene,) = read_captures(path)
        assert (scene.name, len(scene.frames)) == ("view", 3)


def test_a_scene_that_cannot_be_read_is_left_out_and_named(tmp_path, furniture):
    shutil.copytree(furniture / "chair", tmp_path / "chair")
    (tmp_path / "chair" / "unposed" / "images").mkdir(parents=True)
    shutil.copytree(furniture / "chair" / "scopia024", tmp_path / "chair" / "damaged")
    (tmp_path / "chair" / "damaged" / "sparse" / "0" / "cameras.txt").write_text("nonsense\n")
    with pytest.warns(UserWarning, match="scene left out") as warned:
        scenes = read_captures(tmp_path)
    assert [scene.name for scene in scenes] == ["scopia024"]
    assert ["damaged" in str(w.message) for w in warned] == [True, False]
    assert ["unposed" in str(w.message) for w in warned] == [False, True]


@pytest.mark.filterwarnings("ignore:scene left out")
def test_a_set_without_any_scene_that_can_be_read(tmp_path):
    (tmp_path / "chair" / "unposed" / "images").mkdir(parents=True)
    with pytest.raises(SidestepError, match=r"none of its 1 scenes can be read.*unposed"):
        read_captures(tmp_path)


def test_nothing_there(tmp_path):
    with pytest.raises(SidestepError, match="no scenes found"):
        read_captures(tmp_path)
    with pytest.raises(SidestepError, match="absent: no such"):
        read_captures(tmp_path / "absent")
