import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sidestep.cameras import Camera, distance_scale, elevations
from sidestep.errors import SidestepError
from sidestep.images import resize_and_crop

CAPTURE = Path(__file__).parents[2] / "shared/data/furniture/bedroom/blendswapcc0087/sparse/0"


def rotation(*axis_angle: float) -> torch.Tensor:
    x, y, z = axis_angle
    return torch.linalg.matrix_exp(torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64))


def pose(turn: tuple[float, float, float], translation: tuple[float, float, float]) -> torch.Tensor:
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] = rotation(*turn)
    matrix[:3, 3] = torch.tensor(translation)
    return matrix


def at(centre: tuple[float, float, float], looks_at: tuple[float, float, float] | None = None) -> torch.Tensor:
    """The pose of a camera at `centre`, turned to a point, or with the world's axes."""
    forward = torch.tensor([0.0, 0.0, 1.0] if looks_at is None else looks_at, dtype=torch.float64)
    place = torch.tensor(centre, dtype=torch.float64)
    if looks_at is not None:
        forward = torch.nn.functional.normalize(forward - place, dim=0)
    right = torch.nn.functional.normalize(
        torch.linalg.cross(torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64), forward), dim=0
    )
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] = torch.stack([right, torch.linalg.cross(forward, right), forward])
    matrix[:3, 3] = -matrix[:3, :3] @ place
    return matrix


K = torch.tensor([[310.0, 1.5, 201.0], [0.0, 290.0, 140.0], [0.0, 0.0, 1.0]], dtype=torch.float64)


@pytest.fixture
def camera() -> Camera:
    """An uneven camera: skewed, off-centre, oblong pixels, any pose."""
    return Camera(K, pose((0.3, -0.8, 0.2), (0.4, -0.2, 2.5)), 400, 300)


@pytest.fixture
def batch(camera: Camera) -> Camera:
    poses = [pose((0.1 * i, 0.4, -0.2 * i), (0.1, 0.2 * i, 3.0 + i)) for i in range(3)]
    return Camera(K, torch.stack(poses), 400, 300)


@pytest.fixture
def points() -> torch.Tensor:
    return torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.4


def same_projection(first: Camera, second: Camera, points: torch.Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(first.project(points)[0], second.project(points)[0], atol=tolerance, rtol=1e-9)


# --- against COLMAP's own camera and pose ---------------------------------------------------------------------------


def test_matches_pycolmap(points: torch.Tensor) -> None:
    pycolmap = pytest.importorskip("pycolmap")
    params = [310.0, 290.0, 201.0, 140.0]
    theirs = pycolmap.Camera(model="PINHOLE", width=400, height=300, params=params)
    rigid = pycolmap.Rigid3d(pycolmap.Rotation3d(np.array([0.3, -0.8, 0.2])), np.array([0.4, -0.2, 2.5]))
    ours = Camera(
        torch.as_tensor(theirs.calibration_matrix()),
        torch.cat([torch.as_tensor(rigid.matrix()), torch.tensor([[0.0, 0.0, 0.0, 1.0]])]),
        theirs.width,
        theirs.height,
    )
    seen = rigid * points.numpy()
    pixels, depth = ours.project(points)
    np.testing.assert_allclose(pixels, theirs.img_from_cam(seen), atol=1e-9)
    np.testing.assert_allclose(depth, seen[:, 2], atol=1e-12)
    np.testing.assert_allclose(ours.centre, rigid.tgt_origin_in_src(), atol=1e-12)

    # One cell a pixel: the rays are COLMAP's through the pixels' centres, turned into the world.
    _, directions = ours.rays(300, 400)
    centres = np.stack(np.meshgrid(np.arange(400) + 0.5, np.arange(300) + 0.5), axis=-1).reshape(-1, 2)
    expected = np.concatenate([theirs.cam_from_img(centres), np.ones((len(centres), 1))], axis=1)
    expected = expected @ rigid.rotation.matrix()
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(directions.reshape(-1, 3), expected, atol=1e-12)

    theirs.rescale(100, 60)
    np.testing.assert_allclose(ours.resize(100, 60).intrinsics, theirs.calibration_matrix(), atol=1e-9)


@pytest.mark.skipif(not CAPTURE.exists(), reason="the furniture captures are not here")
def test_matches_pycolmap_on_a_capture() -> None:
    pycolmap = pytest.importorskip("pycolmap")
    scene = pycolmap.Reconstruction(str(CAPTURE))
    points = np.array([point.xyz for point in scene.points3D.values()])
    assert len(points) > 100
    for image in scene.images.values():
        rigid = image.cam_from_world()
        ours = Camera(
            image.camera.calibration_matrix(),
            np.concatenate([rigid.matrix(), [[0, 0, 0, 1]]]),
            image.camera.width,
            image.camera.height,
        )
        pixels, depth = ours.project(torch.as_tensor(points))
        np.testing.assert_allclose(pixels, image.camera.img_from_cam(rigid * points), atol=1e-2)
        assert (depth > 0).all()
        np.testing.assert_allclose(ours.centre, image.projection_center(), atol=1e-5)


# --- rays and pictures -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (8, 8), (16, 16), (3, 5), (64, 64)])
def test_rays_project_to_the_centres_of_their_cells(camera: Camera, batch: Camera, rows: int, cols: int) -> None:
    for cameras in (camera, batch):
        origins, directions = cameras.rays(rows, cols)
        assert directions.shape == (*cameras.batch_shape, rows, cols, 3)
        torch.testing.assert_close(directions.norm(dim=-1), torch.ones_like(directions[..., 0]))
        pixels, depth = cameras.project((origins + 2.0 * directions).flatten(-3, -2))
        u = (torch.arange(cols) + 0.5) * 400 / cols
        v = (torch.arange(rows) + 0.5) * 300 / rows
        expected = torch.stack(torch.meshgrid(u, v, indexing="xy"), dim=-1).reshape(-1, 2).to(torch.float64)
        torch.testing.assert_close(pixels, expected.expand_as(pixels))
        assert (depth > 0).all()


def test_a_camera_at_the_origin_looks_along_z_with_x_right_and_y_down() -> None:
    camera = Camera.from_fov(90, 400, 200)
    pixels, depth = camera.project(torch.tensor([[0.0, 0.0, 2.0], [1.0, 0.0, 2.0], [0.0, 1.0, 2.0], [0.0, 0.0, -1.0]]))
    # At 90 degrees across the 200 pixels the focal length is 100.
    torch.testing.assert_close(pixels[:3], torch.tensor([[200.0, 100.0], [250.0, 100.0], [200.0, 150.0]]))
    assert depth.tolist() == [2.0, 2.0, 2.0, -1.0]


@pytest.mark.parametrize(("width", "height"), [(400, 200), (200, 400), (300, 300)])
def test_fov_is_across_the_shorter_side(width: int, height: int) -> None:
    camera = Camera.from_fov(50, width, height)
    assert float(camera.fov) == pytest.approx(50, abs=1e-4)
    half = math.tan(math.radians(25))
    edge = [half, 0.0, 1.0] if width < height else [0.0, half, 1.0]
    pixels, _ = camera.project(torch.tensor([edge]))
    assert float(pixels[0, 0 if width < height else 1]) == pytest.approx(min(width, height), abs=1e-3)


def test_resize_and_crop_commute_with_projection(batch: Camera, points: torch.Tensor) -> None:
    pixels, depth = batch.project(points)
    resized = batch.resize(200, 60)
    assert (resized.width, resized.height) == (200, 60)
    torch.testing.assert_close(resized.project(points)[0], pixels * torch.tensor([0.5, 0.2], dtype=torch.float64))
    cropped = resized.crop(20, 5, 100, 50)
    assert (cropped.width, cropped.height) == (100, 50)
    expected = pixels * torch.tensor([0.5, 0.2]) - torch.tensor([20.0, 5.0])
    torch.testing.assert_close(cropped.project(points)[0], expected)
    torch.testing.assert_close(cropped.project(points)[1], depth)


@pytest.mark.parametrize(("width", "height", "size"), [(64, 48, 32), (45, 60, 32), (33, 47, 16), (20, 31, 40)])
def test_resize_and_crop_follows_the_picture(width: int, height: int, size: int) -> None:
    """A ramp picture, whose values are its own pixel coordinates, lands where the new camera says."""
    camera = Camera.from_fov(50, width, height)
    new = camera.resize_and_crop(size)
    _, directions = new.rays(size, size)
    expected, _ = camera.project(directions.reshape(-1, 3))
    middle = slice(size // 4, -(size // 4))  # the resampling filter bends a ramp at the picture's edges
    for axis in (0, 1):
        ramp = (np.indices((height, width), dtype=np.float32)[1 - axis]) + 0.5
        picture = np.asarray(resize_and_crop(Image.fromarray(ramp), size))
        assert picture.shape == (new.height, new.width)
        wanted = expected[:, axis].reshape(size, size).numpy()
        np.testing.assert_allclose(picture[middle, middle], wanted[middle, middle], atol=0.05)


# --- frames and scale ------------------------------------------------------------------------------------------------


def test_relative_and_scaled_cameras_see_the_same_pictures(camera: Camera, batch: Camera, points: torch.Tensor) -> None:
    in_reference = points @ camera.rotation.mT + camera.translation
    relative = batch.relative_to(camera)
    same_projection_points = relative.project(in_reference)
    torch.testing.assert_close(same_projection_points[0], batch.project(points)[0])
    scaled = relative.scaled(0.25)
    torch.testing.assert_close(scaled.project(in_reference * 0.25)[0], batch.project(points)[0])
    torch.testing.assert_close(scaled.project(in_reference * 0.25)[1], batch.project(points)[1] * 0.25)


def test_the_reference_relative_to_itself_is_the_identity(camera: Camera) -> None:
    relative = camera.relative_to(camera)
    torch.testing.assert_close(relative.world_to_camera, torch.eye(4, dtype=torch.float64))


def test_each_camera_of_a_batch_has_its_own_reference_and_scale(batch: Camera, points: torch.Tensor) -> None:
    scales = torch.tensor([0.5, 1.0, 2.0])
    others = batch[torch.tensor([1, 2, 0])]
    together = others.relative_to(batch).scaled(scales)
    for i in range(3):
        alone = others[i].relative_to(batch[i]).scaled(float(scales[i]))
        same_projection(together[i], alone, points + torch.tensor([0.0, 0.0, 3.0]))


def test_a_scale_may_batch_one_camera(camera: Camera) -> None:
    scaled = camera.scaled(torch.tensor([1.0, 2.0]))
    assert scaled.batch_shape == (2,)
    torch.testing.assert_close(scaled[1].centre, 2 * camera.centre)
    assert scaled.vector().shape == (2, 16)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf])
def test_refuses_a_scale_that_is_none(camera: Camera, scale: float) -> None:
    with pytest.raises(SidestepError, match="scale must be positive"):
        camera.scaled(scale)


def test_the_mirrored_camera_sees_the_mirrored_world_mirrored(
    camera: Camera, batch: Camera, points: torch.Tensor
) -> None:
    mirror = torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64)
    for cameras in (camera, batch):
        pixels, depth = cameras.project(points)
        mirrored_pixels, mirrored_depth = cameras.mirrored().project(points * mirror)
        torch.testing.assert_close(mirrored_pixels[..., 0], 400 - pixels[..., 0])
        torch.testing.assert_close(mirrored_pixels[..., 1], pixels[..., 1])
        torch.testing.assert_close(mirrored_depth, depth)


def test_rays_of_the_mirrored_camera_are_the_mirrored_rays_of_the_flipped_grid(batch: Camera) -> None:
    mirror = torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64)
    origins, directions = batch.rays(3, 4)
    mirrored_origins, mirrored_directions = batch.mirrored().rays(3, 4)
    torch.testing.assert_close(mirrored_origins, origins.flip(-2) * mirror)
    torch.testing.assert_close(mirrored_directions, directions.flip(-2) * mirror)


def test_a_mirrored_camera_is_a_camera_and_mirrored_again_the_same(camera: Camera) -> None:
    mirrored = camera.mirrored()
    Camera(mirrored.intrinsics, mirrored.world_to_camera, mirrored.width, mirrored.height)  # refuses a reflection
    assert not torch.equal(mirrored.world_to_camera, camera.world_to_camera)
    torch.testing.assert_close(mirrored.mirrored().intrinsics, camera.intrinsics)
    torch.testing.assert_close(mirrored.mirrored().world_to_camera, camera.world_to_camera)


def test_relative_to_a_mirrored_reference_is_the_relative_camera_mirrored(camera: Camera, batch: Camera) -> None:
    outside = batch.mirrored().relative_to(camera.mirrored())
    inside = batch.relative_to(camera).mirrored()
    torch.testing.assert_close(outside.world_to_camera, inside.world_to_camera)
    torch.testing.assert_close(outside.intrinsics, inside.intrinsics)


def test_mirroring_turns_a_step_to_the_right_into_one_to_the_left() -> None:
    right = Camera.from_fov(50, 64, 64, at((0.5, 0.0, 0.2), looks_at=(0.0, 0.0, 1.0)))
    left = Camera.from_fov(50, 64, 64, at((-0.5, 0.0, 0.2), looks_at=(0.0, 0.0, 1.0)))
    torch.testing.assert_close(right.mirrored().world_to_camera, left.world_to_camera)
    torch.testing.assert_close(right.mirrored().intrinsics, left.intrinsics)


def ring(elevation: float, azimuths: list[float], wobble: float = 0.0) -> Camera:
    """Cameras about the origin of a world that no longer knows its vertical, looking down by `elevation` degrees."""
    turned = torch.eye(4, dtype=torch.float64)
    turned[:3, :3] = rotation(1.1, -0.7, 2.3)
    turned[:3, 3] = torch.tensor([3.0, -1.0, 0.5])
    poses = []
    for index, azimuth in enumerate(azimuths):
        e, a = math.radians(elevation + wobble * (-1) ** index), math.radians(azimuth)
        centre = (2 * math.cos(e) * math.sin(a), -2 * math.sin(e), -2 * math.cos(e) * math.cos(a))
        poses.append(at(centre, looks_at=(0.0, 0.0, 0.0)) @ turned)
    return Camera.from_fov(50, 64, 64, torch.stack(poses))


@pytest.mark.parametrize("elevation", [-20.0, 0.0, 12.0, 35.0, 70.0])
@pytest.mark.parametrize("azimuths", [list(range(-25, 30, 5)), list(range(0, 360, 20)), [100.0, 130.0]])
def test_elevations_are_found_in_a_world_of_any_orientation(elevation: float, azimuths: list[float]) -> None:
    found = elevations(ring(elevation, azimuths))
    assert found.shape == (len(azimuths),)
    torch.testing.assert_close(found, torch.full((len(azimuths),), elevation), rtol=0, atol=0.5)


def test_each_camera_has_its_own_elevation() -> None:
    found = elevations(ring(20.0, [-30.0, -10.0, 10.0, 30.0], wobble=5.0))
    torch.testing.assert_close(found, torch.tensor([25.0, 15.0, 25.0, 15.0]), rtol=0, atol=0.5)


def test_where_nothing_tells_the_vertical_the_elevation_is_zero() -> None:
    assert elevations(ring(30.0, [10.0])).tolist() == [0.0]
    assert elevations(ring(30.0, [10.0, 10.0], wobble=8.0)).tolist() == [0.0, 0.0]


def test_distance_scale_from_points_is_the_median_depth_of_those_in_view() -> None:
    reference = Camera.from_fov(60, 100, 100, at((0.0, 0.0, -1.0)))
    seen = [[0.0, 0.0, 1.0], [0.1, 0.2, 3.0], [0.0, -0.1, 4.0]]  # at depths 2, 4 and 5
    outside = [[50.0, 0.0, 9.0], [0.0, 0.0, -7.0], [0.0, 0.0, -8.0], [0.0, 40.0, 9.0]]
    other = Camera.from_fov(60, 100, 100, at((5.0, 0.0, 5.0), (0.0, 0.0, 5.0)))
    assert distance_scale(reference, other, torch.tensor(seen + outside)) == pytest.approx(1 / 4)
    # None in view: back to the axes, which meet 6 before the reference.
    assert distance_scale(reference, other, torch.tensor(outside)) == pytest.approx(1 / 6)


def test_distance_scale_from_axes_is_the_distance_to_where_they_meet() -> None:
    meeting = (0.3, -0.2, 4.0)
    places = [(0.0, 0.0, 0.0), (2.0, 0.0, 0.0), (-1.0, 1.0, 1.0), (0.0, 2.0, 9.0)]
    cameras = [Camera.from_fov(40, 64, 64, at(place, meeting)) for place in places]
    scale = distance_scale(cameras[0], Camera.stack(cameras[1:]))
    assert scale == pytest.approx(1 / math.hypot(*meeting), rel=1e-5)
    # Axes that only pass each other: the nearest point is midway between them.
    passing = Camera.from_fov(40, 64, 64, at((3.0, 1.0, 2.0), (0.0, 1.0, 2.0)))
    straight = Camera.from_fov(40, 64, 64)
    assert distance_scale(straight, passing) == pytest.approx(1 / math.hypot(2.0, 0.5), rel=1e-5)


def test_distance_scale_without_points_or_crossing_axes_is_one() -> None:
    reference = Camera.from_fov(40, 64, 64)
    assert distance_scale(reference) == 1.0
    assert distance_scale(reference, Camera.from_fov(40, 64, 64, at((1.0, 0.0, 0.0)))) == 1.0
    assert distance_scale(reference, points=torch.empty(0, 3)) == 1.0
    # Cameras that look outwards from one place: their axes meet behind them.
    outwards = Camera.from_fov(40, 64, 64, at((1.0, 0.0, 0.0), (2.0, 0.0, 1.0)))
    assert distance_scale(reference, outwards) == 1.0


def test_distance_scale_puts_the_subject_at_distance_one(camera: Camera, points: torch.Tensor) -> None:
    scale = distance_scale(camera, points=points)
    in_reference = points @ camera.rotation.mT + camera.translation
    rescaled = camera.relative_to(camera).scaled(scale)
    assert distance_scale(rescaled, points=in_reference * scale) == pytest.approx(1.0)


def test_distance_scale_wants_one_reference(batch: Camera) -> None:
    with pytest.raises(SidestepError, match="one reference"):
        distance_scale(batch)


# --- the vector ------------------------------------------------------------------------------------------------------


def test_a_camera_can_be_rebuilt_from_its_vector(batch: Camera, points: torch.Tensor) -> None:
    straight = Camera(K * torch.tensor([[1, 0, 1], [1, 1, 1], [1, 1, 1]]), batch.world_to_camera, 400, 300)
    vector = straight.vector()
    assert vector.shape == (3, 16)
    for numbers, original in zip(vector, straight, strict=True):
        fx, fy, cx, cy = (numbers[:4] * torch.tensor([400, 300, 400, 300])).tolist()
        matrix = torch.eye(4, dtype=torch.float64)
        matrix[:3, :3], matrix[:3, 3] = numbers[4:13].reshape(3, 3), numbers[13:]
        rebuilt = Camera(torch.tensor([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]), matrix, 400, 300)
        same_projection(rebuilt, original, points, tolerance=1e-3)


def test_the_vector_does_not_change_with_resolution(camera: Camera) -> None:
    torch.testing.assert_close(camera.resize(800, 90).vector(), camera.vector())


# --- batches and input -----------------------------------------------------------------------------------------------


def test_batching(camera: Camera, batch: Camera, points: torch.Tensor) -> None:
    assert camera.batch_shape == ()
    assert batch.batch_shape == (3,)
    stacked = Camera.stack([batch, batch[[2, 1, 0]]])
    assert stacked.batch_shape == (2, 3)
    same_projection(stacked[1, 0], batch[2], points)
    same_projection(stacked[:, 1][0], batch[1], points)
    assert [one.batch_shape for one in batch] == [()] * 3
    with pytest.raises(IndexError):
        batch[3]
    with pytest.raises(IndexError):
        camera[0]


def test_stacking_refuses_other_sizes(camera: Camera) -> None:
    with pytest.raises(SidestepError, match="resize them first"):
        Camera.stack([camera, camera.resize(10, 10)])
    with pytest.raises(SidestepError, match="no cameras to batch"):
        Camera.stack([])


def test_a_pickled_camera_does_not_bring_its_batch_along(camera: Camera) -> None:
    one = Camera.stack([camera] * 1000)[3]
    data = pickle.dumps(one)
    assert len(data) < 3000
    read = pickle.loads(data)
    assert torch.equal(read.world_to_camera, one.world_to_camera)
    assert torch.equal(read.intrinsics, one.intrinsics)
    assert (read.width, read.height) == (one.width, one.height)


def test_lists_and_arrays_become_float32_and_float64_tensors_stay() -> None:
    from_lists = Camera(K.tolist(), np.eye(4), 400, 300)  # type: ignore[arg-type]
    assert from_lists.intrinsics.dtype == from_lists.world_to_camera.dtype == torch.float32
    assert Camera(K, torch.eye(4, dtype=torch.float64), 400, 300).rays(2, 2)[1].dtype == torch.float64
    assert from_lists.to(dtype=torch.float64).centre.dtype == torch.float64
    with pytest.raises(SidestepError, match="too coarse"):
        from_lists.to(dtype=torch.float16)


def _with_rotation(matrix: object) -> torch.Tensor:
    result = torch.eye(4)
    result[:3, :3] = torch.as_tensor(matrix)
    return result


@pytest.mark.parametrize(
    ("intrinsics", "world_to_camera", "message"),
    [
        (K, torch.full((4, 4), math.nan), "not finite"),
        (K, _with_rotation(torch.diag(torch.tensor([1.0, 1.0, -1.0]))), "reflection"),
        (K, _with_rotation(2 * torch.eye(3)), "not a rotation"),
        (K, torch.zeros(4, 4), "last row"),
        (K, torch.eye(3), r"\(3, 3\)"),
        (K, "nonsense", "not an array"),
        (K, [[1, 0], [0]], "not an array"),
        (torch.diag(torch.tensor([0.0, 300.0, 1.0])), torch.eye(4), "focal length of 0"),
        (torch.diag(torch.tensor([300.0, -5.0, 1.0])), torch.eye(4), "focal length of -5"),
        (K.mT, torch.eye(4), "intrinsics must be"),
        (K * math.inf, torch.eye(4), "not finite"),
        (K.expand(2, 3, 3), torch.eye(4).expand(3, 4, 4), "differ in number"),
    ],
)
def test_refuses_what_is_no_camera_in_one_line(intrinsics: object, world_to_camera: object, message: str) -> None:
    with pytest.raises(SidestepError, match=message) as caught:
        Camera(intrinsics, world_to_camera, 400, 300)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fov", [0, 180, -10, math.nan])
def test_refuses_an_impossible_field_of_view(fov: float) -> None:
    with pytest.raises(SidestepError, match="field of view"):
        Camera.from_fov(fov, 64, 64)


def test_refuses_an_empty_picture(camera: Camera) -> None:
    for make in (
        lambda: Camera.from_fov(40, 0, 10),
        lambda: camera.resize(10, -1),
        lambda: camera.crop(0, 0, 0, 5),
        lambda: Camera(K, torch.eye(4), 400, 0),
    ):
        with pytest.raises(SidestepError, match="pixels"):
            make()
