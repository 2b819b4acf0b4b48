"""Sidestep: novel views of a scene from one photo, by DDIM inversion."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sidestep.cameras import Camera, distance_scale
    from sidestep.captures import read_captures, write_capture
    from sidestep.errors import SidestepError
    from sidestep.fusion import FusionSettings
    from sidestep.inversion import InversionSettings, invert, sample
    from sidestep.pipeline import NovelViewPipeline, Reference, Views
    from sidestep.prior import LatentPrior
    from sidestep.trajectories import dolly, dolly_zoom, interpolate, orbit, spiral, step_aside
    from sidestep.tunet import TUNet

_HOMES = {
    "Camera": "cameras",
    "distance_scale": "cameras",
    "read_captures": "captures",
    "write_capture": "captures",
    "SidestepError": "errors",
    "FusionSettings": "fusion",
    "InversionSettings": "inversion",
    "invert": "inversion",
    "sample": "inversion",
    "NovelViewPipeline": "pipeline",
    "Reference": "pipeline",
    "Views": "pipeline",
    "LatentPrior": "prior",
    "dolly": "trajectories",
    "dolly_zoom": "trajectories",
    "interpolate": "trajectories",
    "orbit": "trajectories",
    "spiral": "trajectories",
    "step_aside": "trajectories",
    "TUNet": "tunet",
}

__all__ = [
    "Camera",
    "FusionSettings",
    "InversionSettings",
    "LatentPrior",
    "NovelViewPipeline",
    "Reference",
    "SidestepError",
    "TUNet",
    "Views",
    "distance_scale",
    "dolly",
    "dolly_zoom",
    "interpolate",
    "invert",
    "orbit",
    "read_captures",
    "sample",
    "spiral",
    "step_aside",
    "write_capture",
]


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first asked for, so that `sidestep --help` does not wait for torch."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"sidestep.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'sidestep' has no attribute {name!r}")
