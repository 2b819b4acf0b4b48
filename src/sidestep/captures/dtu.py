"""DTU as IDR and NeuS prepared it: image/, mask/ and cameras.npz, whose matrices project the world into the pictures.

Their pixels are counted from the centre of the first one, (0, 0); here that is (0.5, 0.5). The shift is made here and
nowhere else.
"""

import io
import lzma
import re
import zipfile
import zlib
from pathlib import Path

import numpy as np

from sidestep.captures.folders import hidden, natural
from sidestep.captures.lens import Array, Lens
from sidestep.captures.scene import Scene, make_frame
from sidestep.errors import SidestepError
from sidestep.images import SUFFIXES, stored_size
from sidestep.inputs import read_bytes

# NeuS trains in the world of cameras_sphere.npz; cameras_large.npz is one in which more of the scene is in the sphere.
CAMERA_FILES = ("cameras_sphere.npz", "cameras.npz", "cameras_large.npz")
_MOST_BYTES = 4 * 2**20  # of a file; a scene of 64 photos takes 70 kB
_MOST_MATRIX = 4096  # bytes of one matrix
_DAMAGE = (
    OSError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    NotImplementedError,
    RuntimeError,
    EOFError,
    ValueError,
)


def camera_file(folder: Path) -> Path | None:
    """The file of cameras of a scene's folder in this layout, or None where it is not one."""
    if not (folder / "image").is_dir():
        return None
    return next((folder / name for name in CAMERA_FILES if (folder / name).is_file()), None)


def read_dtu(folder: Path, category: str | None = None) -> Scene:
    """The scene of a folder with image/, mask/ and cameras_sphere.npz, cameras.npz or cameras_large.npz.

    Photo i in the order of names has the matrices number i, as for IDR and NeuS; where some photos are not there, the
    numbers in the names of the others tell, if they count from zero as the matrices do. Masks belong to photos by
    their numbers where both count from zero, and by their order where there is one for each. World lengths are those
    of the normalised scene: each projection is world_mat_i scale_mat_i, so that the object lies in the unit sphere.

    Raises:
        SidestepError: naming the file, if it is damaged, a matrix is no camera, or photos, matrices and masks do not
            match.
    """
    path = camera_file(folder)
    if path is None:
        raise SidestepError(f"{folder}: no image/ and cameras.npz; IDR's data convention describes the layout")
    projections = _read_projections(path)
    photos = _pictures(folder / "image")
    if not photos:
        raise SidestepError(f"{path}: none of its {len(projections)} photos are in {folder / 'image'}; put them there")
    numbers = _numbered(path, photos, projections)
    masks = _masks(folder / "mask", photos)
    frames = []
    for number, photo in numbers.items():
        intrinsics, pose = decompose(f"{path}: world_mat_{number} scale_mat_{number}", projections[number])
        intrinsics[:2] += 0.5 * intrinsics[2]
        width, height, orientation = stored_size(photo)
        lens = Lens(intrinsics, *((height, width) if orientation >= 5 else (width, height)))
        frames.append(make_frame(photo.name, photo, lens, pose, path, masks.get(photo)))
    width = len(photos[0].stem)
    missing = [f"{number:0{width}d}{photos[0].suffix}" for number in sorted(projections.keys() - numbers.keys())]
    return Scene(folder.resolve().name, category, tuple(frames), None, tuple(missing))


def decompose(where: str, projection: Array) -> tuple[Array, Array]:
    """K (3, 3) and [R t; 0 0 0 1] of a projection matrix (3, 4), which is K [R t] up to a factor.

    RQ factorisation: K is upper triangular with a positive diagonal, R a rotation.

    Raises:
        SidestepError: if the matrix is not finite, or no camera's (its left part is singular).
    """
    left = projection[:, :3]
    if not np.isfinite(projection).all() or np.linalg.matrix_rank(left / max(np.abs(left).max(), 1e-300)) < 3:
        raise SidestepError(f"{where}: not the projection of a camera (not finite, or singular)")
    projection = projection / np.abs(left).max()  # far from what a float64 holds, a determinant is 0 or infinite
    left = projection[:, :3]
    projection = projection * np.sign(np.linalg.det(left))  # what is in front of the camera has a positive depth
    flipped_q, flipped_r = np.linalg.qr(projection[::-1, :3].T)
    triangle, rotation = flipped_r.T[::-1, ::-1], flipped_q.T[::-1]
    signs = np.diag(np.sign(np.diag(triangle)))
    triangle, rotation = triangle @ signs, signs @ rotation
    pose = np.eye(4)
    pose[:3, :3] = rotation
    pose[:3, 3] = np.linalg.solve(triangle, projection[:, 3])
    return np.triu(triangle / triangle[2, 2]), pose


def _read_projections(path: Path) -> dict[int, Array]:
    """world_mat_i scale_mat_i, (3, 4), by i; without a scale_mat_i, the world is taken as it is."""
    matrices: dict[str, Array] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(read_bytes(path, _MOST_BYTES))) as archive:
            for item in archive.infolist():
                name = item.filename.removesuffix(".npy")
                if re.fullmatch(r"(world|scale)_mat_[0-9]{1,6}", name):
                    if item.file_size > _MOST_MATRIX:
                        raise SidestepError(f"{path}: {name} takes {item.file_size} bytes, which no 4x4 matrix does")
                    matrices[name] = _matrix(f"{path}: {name}", archive.read(item))
    except _DAMAGE as error:
        raise SidestepError(f"{path}: cannot be read as an archive of arrays ({error}); copy it again") from None
    worlds = {int(name.rpartition("_")[2]): matrix for name, matrix in matrices.items() if name.startswith("world")}
    if not worlds:
        raise SidestepError(f"{path}: no world_mat_0; IDR's data convention describes the file")
    identity = np.eye(4)
    return {number: worlds[number][:3] @ matrices.get(f"scale_mat_{number}", identity) for number in sorted(worlds)}


def _matrix(where: str, data: bytes) -> Array:
    """A 4x4 (or 3x4) array of numbers in NumPy's format (NEP 1); its header is searched, and not evaluated."""
    begin, size = re.match(rb"\x93NUMPY[\x01-\x03]\x00", data), 2 if data[6:7] == b"\x01" else 4
    start = 8 + size + int.from_bytes(data[8 : 8 + size], "little")
    shape = re.search(rb"'shape': \(([34]), 4\)", data[:start])
    kind = re.search(rb"'descr': '([<>=|](?:f[248]|[iu][1248]))'", data[:start])
    if not (begin and shape and kind):
        raise SidestepError(f"{where} is no 4x4 array of numbers; IDR's data convention describes the file")
    rows = int(shape[1])
    flat = np.frombuffer(data, kind[1].decode(), 4 * rows, start).astype(np.float64)
    array = flat.reshape((rows, 4), order="F" if b"'fortran_order': True" in data[:start] else "C")
    return np.vstack((array, (0.0, 0.0, 0.0, 1.0))) if rows == 3 else array


def _pictures(folder: Path) -> list[Path]:
    """The pictures in a folder, in the order of their numbers."""
    files = sorted(folder.iterdir(), key=lambda file: natural(file.name)) if folder.is_dir() else []
    return [path for path in files if path.suffix.lower() in SUFFIXES and not hidden(path)]


def _numbered(path: Path, photos: list[Path], projections: dict[int, Array]) -> dict[int, Path]:
    """The photos by the number of their matrix."""
    if len(photos) == len(projections):
        return dict(zip(projections, photos, strict=True))
    numbers = _from_zero(photos)
    if numbers is None or not numbers.keys() <= projections.keys():
        raise SidestepError(
            f"{path}: {len(projections)} cameras, but {photos[0].parent} holds {len(photos)} photos, whose names do "
            "not tell which is which (they do where they count from 0, and 0 is there); give one photo a camera"
        )
    return {number: numbers[number] for number in sorted(numbers)}


def _masks(folder: Path, photos: list[Path]) -> dict[Path, Path]:
    """The masks by their photos."""
    masks = _pictures(folder)
    of_photos, of_masks = _from_zero(photos), _from_zero(masks)
    if of_photos is not None and of_masks is not None:
        return {photo: of_masks[number] for number, photo in of_photos.items() if number in of_masks}
    if masks and len(masks) != len(photos):
        raise SidestepError(
            f"{folder}: {len(masks)} masks for {len(photos)} photos, and their names do not tell which is which (they "
            "do where both count from 0, and 0 is there); give one photo a mask, or move the masks away"
        )
    return dict(zip(photos, masks, strict=False))


def _from_zero(pictures: list[Path]) -> dict[int, Path] | None:
    """Pictures by the numbers that their names end in; None where these are not known to count from zero."""
    ends = [re.search(r"[0-9]+$", picture.stem) for picture in pictures]
    numbers = {int(end[0]): picture for end, picture in zip(ends, pictures, strict=True) if end}
    return numbers if len(numbers) == len(pictures) and 0 in numbers else None
