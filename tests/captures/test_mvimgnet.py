from sidestep.captures.mvimgnet import scene_folders


def test_scene_folders_are_sorted_as_strings_and_other_folders_ignored(tmp_path):
    for scene in ("8/1200a", "36/0b", "36/0a"):
        (tmp_path / scene / "images").mkdir(parents=True)
    (tmp_path / "36" / "notes").mkdir()
    (tmp_path / "readme.txt").touch()
    assert [str(folder.relative_to(tmp_path)) for folder in scene_folders(tmp_path)] == ["36/0a", "36/0b", "8/1200a"]
