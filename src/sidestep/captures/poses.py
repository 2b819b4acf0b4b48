"""Rigid motions out of the numbers of files."""

import numpy as np

from sidestep.captures.lens import Array
from sidestep.errors import SidestepError

_TOLERANCE = 2e-3  # of R R' = 1; instant-ngp's own files are off by up to about 1e-4 in scale


def rigid(where: str, rotation: Array, translation: Array) -> Array:
    """[R t; 0 0 0 1], (4, 4), of a rotation (3, 3) that is one but for rounding, made exact, and a translation (3,).

    Args:
        where: the beginning of a message, "FILE: frame NAME".

    Raises:
        SidestepError: if a number is not finite, or the rotation is off by more than rounding, or a mirroring.
    """
    if not (np.isfinite(rotation).all() and np.isfinite(translation).all()):
        raise SidestepError(f"{where} has a pose that is not finite (NaN or infinite); remove the frame")
    error = float(np.abs(rotation @ rotation.T - np.eye(3)).max())
    determinant = float(np.linalg.det(rotation))
    if error > _TOLERANCE or determinant < 0:
        raise SidestepError(
            f"{where} has a pose that is not a rotation and a translation (R R' is off the identity by {error:.2g}, "
            f"determinant {determinant:.2g}); remove scale, shear and mirroring"
        )
    u, _, vt = np.linalg.svd(rotation)  # the nearest rotation
    pose = np.eye(4)
    pose[:3, :3] = u @ vt
    pose[:3, 3] = translation
    return pose
