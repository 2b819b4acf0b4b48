"""Pinhole cameras, in one convention (docs/cameras.md): OpenCV axes, world to camera, pixel centres at +0.5."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sidestep.errors import SidestepError

_TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class Camera:
    """One camera, or a batch of cameras that share a picture size.

    A world point X lies at R X + t in the camera (x right, y down, z forward) and at K (R X + t) / depth in the
    picture, which spans 0..width and 0..height in pixels: the first pixel's centre is at (0.5, 0.5).

    Attributes:
        intrinsics: K, (..., 3, 3), in pixels.
        world_to_camera: [R t; 0 0 0 1], (..., 4, 4), in the scene's unit of length.
        width: pixels.
        height: pixels.

    Arrays and lists become float32 tensors and float64 tensors stay float64; batch dimensions are broadcast.

    Raises:
        SidestepError: if a value is not finite, a size or focal length not positive, or the pose not rigid.
    """

    intrinsics: Tensor
    world_to_camera: Tensor
    width: int
    height: int

    def __post_init__(self) -> None:
        intrinsics = _as_matrix(self.intrinsics, 3, "intrinsics")
        pose = _as_matrix(self.world_to_camera, 4, "world_to_camera")
        dtype = torch.promote_types(intrinsics.dtype, pose.dtype)
        intrinsics, pose = intrinsics.to(pose.device, dtype), pose.to(dtype)
        _check_size(self.width, self.height)
        _check_intrinsics(intrinsics)
        _check_pose(pose)
        try:
            batch = torch.broadcast_shapes(intrinsics.shape[:-2], pose.shape[:-2])
        except RuntimeError:
            raise SidestepError(
                f"camera: intrinsics {tuple(intrinsics.shape)} and poses {tuple(pose.shape)} differ in number; "
                "give one of each, or one for all"
            ) from None
        object.__setattr__(self, "intrinsics", intrinsics.expand(*batch, 3, 3))
        object.__setattr__(self, "world_to_camera", pose.expand(*batch, 4, 4))

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled: matrices of its own, because torch pickles with a view all that it is a view of."""
        own = {"intrinsics": self.intrinsics.clone(), "world_to_camera": self.world_to_camera.clone()}
        return {**self.__dict__, **own}

    @classmethod
    def from_fov(cls, fov: float, width: int, height: int, world_to_camera: Any = None) -> "Camera":
        """A camera with square pixels and a centred principal point.

        Args:
            fov: the field of view across the shorter side, in degrees, between 0 and 180.
            width: pixels.
            height: pixels.
            world_to_camera: (..., 4, 4); the identity if left out.

        Raises:
            SidestepError: if `fov` is out of range or the pose is not one.
        """
        if not 0 < fov < 180:
            raise SidestepError(f"camera: a field of view of {fov} degrees is not between 0 and 180")
        _check_size(width, height)
        focal = min(width, height) / 2 / math.tan(math.radians(fov) / 2)
        pose = torch.eye(4) if world_to_camera is None else world_to_camera
        return cls(
            torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]]), pose, width=width, height=height
        )

    @staticmethod
    def stack(cameras: "list[Camera] | tuple[Camera, ...]") -> "Camera":
        """Cameras of one picture size, batched along a new first dimension.

        Raises:
            SidestepError: if there are none, or their sizes or batch shapes differ.
        """
        if not cameras:
            raise SidestepError("camera: there are no cameras to batch")
        shapes = sorted({(camera.width, camera.height, *camera.batch_shape) for camera in cameras})
        if len(shapes) != 1:
            raise SidestepError(f"camera: cannot batch cameras of different sizes {shapes}; resize them first")
        return cameras[0]._changed(
            torch.stack([camera.intrinsics for camera in cameras]),
            torch.stack([camera.world_to_camera for camera in cameras]),
        )

    def __getitem__(self, index: Any) -> "Camera":
        """The cameras at `index` of the batch, indexed as a tensor of `batch_shape` would be.

        Raises:
            IndexError: if the batch has no such index, or this is a single camera.
        """
        numbers = torch.arange(self.batch_shape.numel(), device=self.world_to_camera.device)
        chosen = numbers.reshape(self.batch_shape)[index]
        return self._changed(self.intrinsics.reshape(-1, 3, 3)[chosen], self.world_to_camera.reshape(-1, 4, 4)[chosen])

    @property
    def batch_shape(self) -> torch.Size:
        """The leading dimensions; empty for a single camera."""
        return self.world_to_camera.shape[:-2]

    def __repr__(self) -> str:
        fovs = sorted({f"{fov:.4g}" for fov in self.fov.reshape(-1).tolist()}, key=float)
        lens = " to ".join(fovs[:1] + fovs[1:][-1:])
        if self.batch_shape:
            return f"Camera(batch {tuple(self.batch_shape)}, {self.width}x{self.height}, fov {lens}°)"
        at, ahead = (", ".join(f"{x + 0.0:.3g}" for x in p.tolist()) for p in (self.centre, self.rotation[2]))
        return f"Camera({self.width}x{self.height}, fov {lens}°, at ({at}), looking along ({ahead}))"

    @property
    def rotation(self) -> Tensor:
        """R, world to camera, (..., 3, 3)."""
        return self.world_to_camera[..., :3, :3]

    @property
    def translation(self) -> Tensor:
        """t, world to camera, (..., 3)."""
        return self.world_to_camera[..., :3, 3]

    @property
    def centre(self) -> Tensor:
        """Where the camera stands in the world, -R't, (..., 3)."""
        return -(self.rotation.mT @ self.translation[..., None])[..., 0]

    @property
    def fov(self) -> Tensor:
        """The field of view across the shorter side, in degrees, (...)."""
        axis, side = (0, self.width) if self.width <= self.height else (1, self.height)
        return torch.rad2deg(2 * torch.atan(side / 2 / self.intrinsics[..., axis, axis]))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Camera":
        """The same camera on another device, or in float32 or float64.

        Raises:
            SidestepError: if `dtype` is another type: half precision moves a ray by whole pixels.
        """
        if dtype not in (None, torch.float32, torch.float64):
            raise SidestepError(f"camera: {dtype} is too coarse for a camera; use float32 or float64")
        return self._changed(
            self.intrinsics.to(device=device, dtype=dtype), self.world_to_camera.to(device=device, dtype=dtype)
        )

    def resize(self, width: int, height: int) -> "Camera":
        """The camera of the same picture resampled to `width` × `height` pixels."""
        _check_size(width, height)
        scale = self.intrinsics.new_tensor([width / self.width, height / self.height, 1.0])
        return self._changed(scale[:, None] * self.intrinsics, width=width, height=height)

    def crop(self, left: int, top: int, width: int, height: int) -> "Camera":
        """The camera of the `width` × `height` window whose upper left corner is at pixel (left, top)."""
        _check_size(width, height)
        shift = torch.zeros_like(self.intrinsics[..., :2, :])
        shift[..., 0, 2], shift[..., 1, 2] = left, top
        intrinsics = torch.cat([self.intrinsics[..., :2, :] - shift, self.intrinsics[..., 2:, :]], dim=-2)
        return self._changed(intrinsics, width=width, height=height)

    def resize_and_crop(self, size: int) -> "Camera":
        """The camera after the shorter side went to `size` and the middle `size` × `size` was cut out.

        The same whole-pixel geometry as `sidestep.images.resize_and_crop`, which must be given the same picture.
        """
        _check_size(size, size)
        scale = size / min(self.width, self.height)
        width, height = max(size, round(self.width * scale)), max(size, round(self.height * scale))
        return self.resize(width, height).crop((width - size) // 2, (height - size) // 2, size, size)

    def rays(self, rows: int, cols: int) -> tuple[Tensor, Tensor]:
        """The ray through the centre of each cell of a rows × cols grid laid over the picture.

        With K scaled to the grid, o = -R't and d = R' K⁻¹ (u + 1/2, v + 1/2, 1), normalised (the rays that the
        paper's cross-attention joins to its queries and keys).

        Returns:
            Origins and unit directions in the world, each (..., rows, cols, 3).
        """
        k = self.resize(cols, rows).intrinsics[..., None, None, :, :]
        v, u = torch.meshgrid(
            torch.arange(rows, device=k.device, dtype=k.dtype) + 0.5,
            torch.arange(cols, device=k.device, dtype=k.dtype) + 0.5,
            indexing="ij",
        )
        y = (v - k[..., 1, 2]) / k[..., 1, 1]
        x = (u - k[..., 0, 2] - k[..., 0, 1] * y) / k[..., 0, 0]
        directions = torch.stack([x, y, torch.ones_like(x)], dim=-1) @ self.rotation[..., None, :, :]
        directions = torch.nn.functional.normalize(directions, dim=-1)
        return self.centre[..., None, None, :].expand_as(directions), directions

    def project(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Where world points fall in the picture.

        Args:
            points: (..., N, 3), in the scene's unit; leading dimensions broadcast with the batch.

        Returns:
            Pixels (..., N, 2) and depths (..., N), the z coordinate in the camera. A point whose depth is not
            positive is not in front of the camera, and its pixel means nothing.
        """
        points = points.to(self.world_to_camera)
        seen = points @ self.rotation.mT + self.translation[..., None, :]
        depth = seen[..., 2]
        pixels = (seen @ self.intrinsics.mT)[..., :2] / depth[..., None]
        return pixels, depth

    def relative_to(self, reference: "Camera") -> "Camera":
        """The same camera in a world whose origin and axes are the reference camera's."""
        inverse = torch.zeros_like(reference.world_to_camera)
        inverse[..., :3, :3] = reference.rotation.mT
        inverse[..., :3, 3] = reference.centre
        inverse[..., 3, 3] = 1
        return self._changed(world_to_camera=self.world_to_camera @ inverse.to(self.world_to_camera))

    def scaled(self, scale: float | Tensor) -> "Camera":
        """The same camera in a world whose lengths are `scale` times as many units; a tensor scales each of a batch.

        Raises:
            SidestepError: if the scale is not positive and finite.
        """
        factor = torch.as_tensor(scale).to(self.world_to_camera)
        if not bool(((factor > 0) & factor.isfinite()).all()):
            raise SidestepError(f"camera: a scene cannot be scaled by {scale}; the scale must be positive and finite")
        pose = self.world_to_camera.expand(*torch.broadcast_shapes(self.batch_shape, factor.shape), 4, 4).clone()
        pose[..., :3, 3] *= factor[..., None]
        return self._changed(world_to_camera=pose)

    def mirrored(self) -> "Camera":
        """The camera that takes the mirrored picture (left and right exchanged) of the mirrored world (x to -x).

        With M = diag(-1, 1, 1): R becomes M R M, t becomes M t, and cx becomes W - cx. A camera in a reference's
        frame stays in that of the mirrored reference.
        """
        flip = self.world_to_camera.new_tensor([-1.0, 1.0, 1.0, 1.0])
        intrinsics = self.intrinsics.clone()
        intrinsics[..., 0, 1] *= -1
        intrinsics[..., 0, 2] = self.width - intrinsics[..., 0, 2]
        return self._changed(intrinsics, self.world_to_camera * flip[:, None] * flip)

    def vector(self) -> Tensor:
        """The camera as 16 numbers, (..., 16): fx/W, fy/H, cx/W, cy/H, R row by row, t.

        What the paper's camera embedding e_C is made of, with the intrinsics in units of the picture so that they
        do not change with its resolution.
        """
        k = self.intrinsics
        size = k.new_tensor([self.width, self.height, self.width, self.height])
        lens = torch.stack([k[..., 0, 0], k[..., 1, 1], k[..., 0, 2], k[..., 1, 2]], dim=-1) / size
        return torch.cat([lens, self.rotation.flatten(-2), self.translation], dim=-1)

    def _changed(
        self,
        intrinsics: Tensor | None = None,
        world_to_camera: Tensor | None = None,
        width: int | None = None,
        height: int | None = None,
    ) -> "Camera":
        # What is derived from a valid camera is valid; checking it again would make a GPU wait for each answer.
        camera = object.__new__(Camera)
        intrinsics = self.intrinsics if intrinsics is None else intrinsics
        pose = self.world_to_camera if world_to_camera is None else world_to_camera
        batch = torch.broadcast_shapes(intrinsics.shape[:-2], pose.shape[:-2])
        object.__setattr__(camera, "intrinsics", intrinsics.expand(*batch, 3, 3))
        object.__setattr__(camera, "world_to_camera", pose.expand(*batch, 4, 4))
        object.__setattr__(camera, "width", self.width if width is None else width)
        object.__setattr__(camera, "height", self.height if height is None else height)
        return camera


def distance_scale(reference: Camera, others: Camera | None = None, points: Tensor | None = None) -> float:
    """What to multiply a scene's lengths by so that its subject stands at distance 1 from the reference.

    A reconstruction's unit is arbitrary, so lengths are measured in this one (Singh and Subramanyam 2025 do not say
    which they use).

    Args:
        reference: one camera.
        others: the scene's other cameras, batched.
        points: the scene's points, (N, 3).

    Returns:
        One over the median depth of the points that the reference sees; where it sees none, one over the distance
        from the reference to the point nearest all optical axes in the least-squares sense; where there is no such
        point in front of the reference (one camera, parallel axes, cameras that look outwards), 1.

    Raises:
        SidestepError: if `reference` is a batch.
    """
    if reference.batch_shape:
        raise SidestepError(f"camera: one reference is wanted, not a batch of shape {tuple(reference.batch_shape)}")
    reference = reference.to("cpu", torch.float64)
    if points is not None:
        pixels, depth = reference.project(points)
        limit = pixels.new_tensor([reference.width, reference.height])
        seen = (depth > 0) & (pixels >= 0).all(-1) & (pixels <= limit).all(-1)
        if seen.any():
            return 1 / float(depth[seen].median())
    if others is not None:
        point = _nearest_to_axes(reference, others.to("cpu", torch.float64))
        if point is not None and float(reference.project(point[None])[1]) > 0:
            return 1 / float((point - reference.centre).norm())
    return 1.0


def vertical(cameras: Camera) -> Tensor | None:
    """The direction up in the world of a scene's cameras, a unit vector (3,) in float64 on the CPU.

    A captured scene's world has no known vertical. Cameras held level have their x axes in the horizontal plane, so
    the vertical is the direction most nearly perpendicular to all of them, on the side that the pictures' tops are.

    Returns:
        None for one camera, or cameras that do not turn: nothing tells the vertical from the viewing direction.
    """
    rotation = cameras.rotation.reshape(-1, 3, 3).double().cpu()
    x, up = rotation[:, 0], -rotation[:, 1]
    values, vectors = torch.linalg.eigh(x.mT @ x / len(x))
    if float(values[1]) < 1e-3:  # all x axes are one
        return None
    return vectors[:, 0] * torch.sign((up @ vectors[:, 0]).sum())


def elevations(cameras: Camera) -> Tensor:
    """How far each of a scene's cameras looks down from the `vertical`'s horizon, in degrees, (N,).

    One camera, or cameras that do not turn, look down by 0.
    """
    forward = cameras.rotation.reshape(-1, 3, 3)[:, 2].double().cpu()
    up = vertical(cameras)
    if up is None:
        return torch.zeros(len(forward))
    return torch.rad2deg(torch.asin((-forward @ up).clamp(-1, 1))).float()


def quaternions(rotation: Tensor) -> Tensor:
    """Rotations as unit quaternions (w, x, y, z) with w >= 0, (..., 3, 3) -> (..., 4).

    Each is the eigenvector of a symmetric matrix made of R's entries, for its largest eigenvalue (Bar-Itzhack 2000),
    which is sound at every angle; the usual formula from the trace loses the axis near 180 degrees.
    """
    r = rotation
    trace = r.diagonal(dim1=-2, dim2=-1).sum(-1)
    twist = torch.stack([r[..., 2, 1] - r[..., 1, 2], r[..., 0, 2] - r[..., 2, 0], r[..., 1, 0] - r[..., 0, 1]], dim=-1)
    matrix = r.new_zeros(*r.shape[:-2], 4, 4)
    matrix[..., 0, 0] = trace
    matrix[..., 1:, 0] = matrix[..., 0, 1:] = twist
    matrix[..., 1:, 1:] = r + r.mT - trace[..., None, None] * torch.eye(3).to(r)
    found = torch.linalg.eigh(matrix).eigenvectors[..., -1]
    return torch.where(found[..., :1] < 0, -found, found)


def _nearest_to_axes(reference: Camera, others: Camera) -> Tensor | None:
    """The point with the least sum of squared distances to all optical axes, or None if they are parallel."""
    centres = torch.cat([reference.centre[None], others.centre.reshape(-1, 3)])
    axes = torch.cat([reference.rotation[None, 2], others.rotation.reshape(-1, 3, 3)[:, 2]])
    away = torch.eye(3, dtype=axes.dtype) - axes[:, :, None] * axes[:, None, :]
    total = away.sum(0)
    # The smallest eigenvalue is the axes' mean squared sine about their common direction: below a spread of about
    # a twentieth of a degree the meeting point is noise.
    if float(torch.linalg.eigvalsh(total / len(axes))[0]) < 1e-6:
        return None
    return torch.linalg.solve(total, (away @ centres[..., None]).sum(0)[:, 0])


def _as_matrix(value: Any, side: int, name: str) -> Tensor:
    try:
        matrix = value if isinstance(value, Tensor) else torch.as_tensor(value, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError):
        raise SidestepError(f"camera: {name} is not an array of numbers") from None
    if matrix.shape[-2:] != (side, side):
        raise SidestepError(f"camera: {name} has shape {tuple(matrix.shape)}; it must end in {side} × {side}")
    if matrix.dtype != torch.float64:
        matrix = matrix.to(torch.float32)
    if not bool(matrix.isfinite().all()):
        raise SidestepError(f"camera: {name} holds a value that is not finite (NaN or infinite)")
    return matrix


def _check_size(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise SidestepError(f"camera: a picture of {width} × {height} pixels; both must be at least 1")


def _check_intrinsics(intrinsics: Tensor) -> None:
    focal = torch.stack([intrinsics[..., 0, 0], intrinsics[..., 1, 1]])
    if not bool((focal > 0).all()):
        raise SidestepError(f"camera: a focal length of {float(focal.min()):g} pixels; fx and fy must be positive")
    lower = torch.stack([intrinsics[..., 1, 0], intrinsics[..., 2, 0], intrinsics[..., 2, 1]])
    if bool((lower != 0).any()) or bool((intrinsics[..., 2, 2] != 1).any()):
        raise SidestepError("camera: intrinsics must be [fx s cx; 0 fy cy; 0 0 1]")


def _check_pose(pose: Tensor) -> None:
    if bool((pose[..., 3, :] != pose.new_tensor([0, 0, 0, 1])).any()):
        raise SidestepError("camera: the last row of world_to_camera must be 0 0 0 1")
    rotation = pose[..., :3, :3]
    error = (rotation @ rotation.mT - torch.eye(3).to(rotation)).abs()
    if bool((error > _TOLERANCE).any()):
        raise SidestepError(
            f"camera: the 3 × 3 part of world_to_camera is not a rotation (R R' is off the identity by "
            f"{float(error.max()):.2g}); remove scale and shear from it"
        )
    if bool((torch.linalg.det(rotation) < 0).any()):
        raise SidestepError(
            "camera: the 3 × 3 part of world_to_camera is a reflection (determinant -1); an axis is flipped once too "
            "often, or once too little"
        )
