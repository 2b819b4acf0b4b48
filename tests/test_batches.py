"""Batches that fit, and what happens where they do not."""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import sidestep.devices
from sidestep.batches import in_batches
from sidestep.cameras import Camera
from sidestep.errors import SidestepError
from sidestep.fusion import FusionSettings
from sidestep.pipeline import NovelViewPipeline
from sidestep.trajectories import orbit

CPU = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "4000000000000 bytes. Error code 12 (Cannot allocate memory)"
)
CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of ...")
MPS = RuntimeError("MPS backend out of memory (MPS allocated: 18.1 GB)")


class Machine:
    """Holds so many views at once; remembers what it was asked for."""

    def __init__(self, room: int, error: Exception = CPU) -> None:
        self.room, self.error = room, error
        self.asked: list[int] = []

    def make(self, chosen: slice) -> list[int]:
        size = chosen.stop - chosen.start
        self.asked.append(size)
        if size > self.room:
            raise self.error
        return list(range(chosen.start, chosen.stop))


def test_every_view_is_made_once_and_in_order() -> None:
    machine = Machine(room=4)
    assert list(in_batches(machine.make, 10, 4)) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert machine.asked == [4, 4, 2]


@pytest.mark.parametrize("error", [CPU, CUDA, MPS], ids=["cpu", "cuda", "mps"])
def test_a_batch_too_large_for_memory_is_halved_until_it_fits(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    machine = Machine(room=3, error=error)
    with caplog.at_level(logging.WARNING, "sidestep"):
        made = list(in_batches(machine.make, 13, 12))
    assert [view for views in made for view in views] == list(range(13))
    assert machine.asked == [12, 6, 3, 3, 3, 3, 1]  # and stays halved
    told = [record.getMessage() for record in caplog.records]
    assert told[-1] == "memory is too small for 6 views at once; going on with 3"


def test_a_real_allocation_that_fails_is_recognised() -> None:
    def make(chosen: slice) -> int:
        return torch.empty(2**55 if chosen.stop - chosen.start > 1 else 1).numel()

    assert list(in_batches(make, 3, 2)) == [1, 1, 1]


def test_a_view_that_does_not_fit_alone_is_told_and_other_errors_are_not_hidden() -> None:
    with pytest.raises(SidestepError, match="not enough memory for one view"):
        list(in_batches(Machine(room=0).make, 3, 8))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        list(in_batches(Machine(0, RuntimeError("mat1 and mat2 shapes cannot be multiplied")).make, 3, 8))


@pytest.mark.parametrize("network", ["unet", "tunet"])
def test_a_pipeline_makes_the_same_views_where_memory_is_short(
    network: str, make_tiny_pipeline: Callable[..., NovelViewPipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sidestep.devices, "network_dtype", lambda device: torch.float32)
    pipe = make_tiny_pipeline()
    path = orbit(Camera.from_fov(45, 16, 16), 5)
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    settings = FusionSettings(noise="gaussian")  # drawn again at the second try, it would be another

    def views() -> np.ndarray:
        return np.stack(
            [np.asarray(image, dtype=int) for image in pipe(photo, path, steps=2, settings=settings).images]
        )

    plain = views()

    def short(module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        if len(inputs[0]) > 2:
            raise CUDA

    hook = getattr(pipe, network).register_forward_pre_hook(short)
    try:
        assert np.abs(views() - plain).max() <= 1
    finally:
        hook.remove()
