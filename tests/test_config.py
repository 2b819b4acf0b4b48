from dataclasses import field
from pathlib import Path
from typing import Literal

import pytest

from sidestep.config import load_config, save_config, settings
from sidestep.errors import SidestepError


@settings
class Network:
    steps: int = 10
    rate: float = 1e-3
    channels: tuple[int, ...] = (1, 2)


@settings
class Experiment:
    data: Path
    mirror: bool = False
    init: str | None = None
    mode: Literal["fast", "exact"] = "fast"
    network: Network = field(default_factory=Network)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "experiment.yaml"
    path.write_text("data: pictures\n")
    return path


def test_what_is_not_said_keeps_its_default(file):
    assert load_config(Experiment, file) == Experiment(data=Path("pictures"))


@pytest.mark.parametrize("number", ["1e-4", "1.0e-4", "1e-04", "0.0001", "1.E-4"])
def test_small_numbers_are_numbers_in_the_file_and_on_the_command_line(file, number):
    assert load_config(Experiment, file, [f"network.rate={number}"]).network.rate == 1e-4
    file.write_text(f"data: pictures\nnetwork:\n  rate: {number}\n")
    assert load_config(Experiment, file).network.rate == 1e-4


def test_whole_numbers_may_be_written_with_an_exponent(file):
    assert load_config(Experiment, file, ["network.steps=2e3"]).network.steps == 2000
    file.write_text("data: pictures\nnetwork:\n  steps: 2e3\n")
    assert load_config(Experiment, file).network.steps == 2000


def test_overrides_win_over_the_file_and_the_last_over_the_first(file):
    file.write_text("data: pictures\nnetwork:\n  steps: 5\n  rate: 0.5\n")
    config = load_config(
        Experiment, file, ["network.steps=7", "network.steps=8", "mirror=true", "network.channels=[3, 4]", "init=a=b"]
    )
    assert config == Experiment(
        data=Path("pictures"), mirror=True, init="a=b", network=Network(steps=8, rate=0.5, channels=(3, 4))
    )


def test_an_override_can_take_a_setting_back(file):
    file.write_text("data: pictures\ninit: bundled\n")
    assert load_config(Experiment, file, ["init=null"]).init is None


@pytest.mark.parametrize("text", ["infinity", "nan", "'7'", "'1e5'"])
def test_text_that_looks_like_a_number_stays_text(file, text):
    assert load_config(Experiment, file, [f"init={text}"]).init == text.strip("'")


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ("datum: pictures", "datum"),
        ("data: pictures\nnetwork:\n  step: 3", "network.step"),
        ("data: pictures\nnetwork:\n  steps: many", "network.steps.*many"),
        ("data: pictures\nmode: slow", "mode.*fast.*slow"),
        ("mode: fast", "data.*required"),
        ("", "data.*required"),
        ("- data", "key: value"),
        ("data: pictures\nmode: [fast", "line 2"),
        ("data: a: b", "line 1"),
    ],
)
def test_a_wrong_file_is_refused_by_name_with_the_place(file, lines, told):
    file.write_text(lines)
    with pytest.raises(SidestepError, match=f"^{file}: .*(?i:{told})") as error:
        load_config(Experiment, file)
    assert "\n" not in str(error.value)


def test_missing_and_unreadable_files_are_refused_by_name(tmp_path):
    with pytest.raises(SidestepError, match=r"none\.yaml"):
        load_config(Experiment, tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"data: \xff\xfe")
    with pytest.raises(SidestepError, match=r"latin\.yaml"):
        load_config(Experiment, tmp_path / "latin.yaml")


@pytest.mark.parametrize(
    "override", ["mirror", "=true", "mode.fast=1", "init={a", "network.step=3", "networks.steps=3"]
)
def test_a_wrong_override_is_refused(file, override):
    file.write_text("data: pictures\nmode: fast\n")
    with pytest.raises(SidestepError) as error:
        load_config(Experiment, file, [override])
    assert override.split("=")[0].split(".")[0] in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("init", [None, "bundled", "2024", "12e5", "1e-4", "null", "ü # no comment"])
def test_saved_settings_are_read_back_equal(tmp_path, init):
    config = Experiment(Path("somewhere/else"), True, init, "exact", Network(3, 1e-5, (8, 16)))
    save_config(config, tmp_path / "run" / "config.yaml")
    assert load_config(Experiment, tmp_path / "run" / "config.yaml") == config
