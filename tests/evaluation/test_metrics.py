import hashlib
import math
import sys
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision
from torchmetrics.image.fid import NoTrainInceptionV3

from sidestep.errors import SidestepError
from sidestep.evaluation import published
from sidestep.evaluation.metrics import Metrics
from sidestep.evaluation.published import PublishedFile
from sidestep.evaluation.statistics import frechet_distance
from sidestep.images import load_image, resize_and_crop, to_tensor

DATA = Path(__file__).parents[1] / "data" / "furniture"
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path) -> Path:
    """torch's cache, empty; there is no network."""

    def offline(url: str, timeout: float) -> None:
        raise URLError(f"no network in tests: {url}")

    monkeypatch.setattr(published, "urlopen", offline)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture(scope="module")
def photos() -> torch.Tensor:
    paths = sorted(DATA.glob("*/*/images/*.jpg"))[::13]
    return torch.stack([to_tensor(resize_and_crop(load_image(path), 64)) for path in paths])


def blurred(images: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.avg_pool2d(images, 5, stride=1, padding=2, count_include_pad=False)


def store(weights: dict[str, torch.Tensor], path: Path) -> str:
    """Writes the weights as the published files are, in the older format, and returns how their digest starts."""
    torch.save(weights, path, _use_new_zipfile_serialization=False)
    return hashlib.sha256(path.read_bytes()).hexdigest()[:8]


def test_figures_of_a_view_worse_by_a_known_amount(photos):
    metrics = Metrics(CPU)
    targets = metrics.target(photos.clamp(-0.9, 0.9), photos.clamp(-0.9, 0.9), range(len(photos)))
    values = metrics.compare("brighter", photos.clamp(-0.9, 0.9) + 0.1, targets, range(len(photos)))
    assert values["psnr"] == pytest.approx([20.0 * math.log10(2.0 / 0.1)] * len(photos), abs=1e-3)
    assert values["gradient"] == pytest.approx([1.0] * len(photos), abs=1e-4)


def test_ssim_of_flat_pictures_is_its_brightness_term():
    metrics = Metrics(CPU)
    targets = metrics.target(torch.full((1, 3, 32, 32), 0.5), torch.full((1, 3, 32, 32), 0.5), [0])
    value = metrics.compare("darker", torch.full((1, 3, 32, 32), 0.25), targets, [0])["ssim"][0]
    c1 = (0.01 * 2.0) ** 2
    assert value == pytest.approx((2 * 0.5 * 0.25 + c1) / (0.5**2 + 0.25**2 + c1), abs=1e-3)


def test_the_photo_itself_is_best_in_every_figure_and_a_blur_is_not(photos):
    metrics = Metrics(CPU, sizes=(48,))
    indices = range(len(photos))
    targets = metrics.target(photos, photos, indices)
    same, blur = (metrics.compare("row", views, targets, indices) for views in (photos, blurred(photos)))
    for name, best in {"psnr": 100.0, "ssim": 1.0, "perceptual": 0.0, "same_class": 1.0, "gradient": 1.0}.items():
        assert same[name] == pytest.approx([best] * len(photos), abs=1e-5)
    for index in indices:
        assert blur["psnr"][index] < 40.0
        assert blur["ssim"][index] < 0.95
        assert blur["perceptual"][index] > 0.1
        assert blur["gradient"][index] < 0.5
        # Shrinking hides blur.
        assert blur["psnr@48"][index] > blur["psnr"][index]
        assert blur["perceptual@48"][index] < blur["perceptual"][index]


def test_a_view_has_moved_when_it_looks_more_like_the_target_than_like_the_reference(photos):
    metrics = Metrics(CPU)
    references, indices = photos.roll(1, 0), range(len(photos))
    targets = metrics.target(photos, references, indices)
    for views, moved in (
        (references, 0.0),
        (0.8 * references + 0.2 * photos, 0.0),
        (0.2 * references + 0.8 * photos, 1.0),
        (photos, 1.0),
    ):
        assert metrics.compare("row", views, targets, indices)["moved"] == [moved] * len(photos)


def test_a_flat_view_still_has_a_sharpness_that_a_geometric_mean_can_take(photos):
    metrics = Metrics(CPU)
    targets = metrics.target(photos[:1], photos[:1], [0])
    values = metrics.compare("grey", torch.zeros_like(photos[:1]), targets, [0])
    assert 0.0 < values["gradient"][0] < 0.02


def test_figures_of_a_part_speak_of_it_alone(photos):
    metrics = Metrics(CPU, parts=("object", "unseen"))
    part = torch.zeros(len(photos), 64, 64, dtype=torch.bool)
    part[:, 16:40, 20:50] = True
    part[1] = False  # a target without it
    indices = range(len(photos))
    targets = metrics.target(photos.clamp(-0.8, 0.8), photos, indices, {"object": part})
    outside, inside = photos.clamp(-0.8, 0.8).clone(), photos.clamp(-0.8, 0.8).clone()
    far = torch.nn.functional.max_pool2d(part[:, None].float(), 17, stride=1, padding=8)[:, 0] == 0
    outside += 0.2 * far[:, None]
    inside += 0.2 * part[:, None]
    away = metrics.compare("outside", outside, targets, indices)
    within = metrics.compare("inside", inside, targets, indices)
    for name in ("psnr_object", "ssim_object", "perceptual_object"):
        assert away[name][1] is None
    assert all(value is None for value in away["psnr_unseen"])  # no target has that part
    assert away["psnr_object"][0] == 100.0
    assert away["ssim_object"][0] == pytest.approx(1.0, abs=1e-4)
    assert away["psnr"][0] < 25
    assert within["psnr_object"][0] == pytest.approx(20.0 * math.log10(2.0 / 0.2), abs=1e-3)
    assert within["psnr"][0] > within["psnr_object"][0] + 5
    assert within["ssim_object"][0] < within["ssim"][0]
    assert within["perceptual_object"][0] > away["perceptual_object"][0]
    assert [figure.title for figure in metrics.figures if figure.part == "object"] == [
        "PSNR object (dB)", "SSIM object", "Perceptual distance object",
    ]  # fmt: skip


def test_a_part_that_is_the_whole_picture_gives_the_figures_of_the_whole(photos):
    metrics = Metrics(CPU, parts=("object",))
    indices = range(len(photos))
    everywhere = torch.ones(len(photos), 64, 64, dtype=torch.bool)
    targets = metrics.target(photos, photos, indices, {"object": everywhere})
    values = metrics.compare("row", blurred(photos), targets, indices)
    for name in ("psnr", "ssim", "perceptual"):
        assert values[f"{name}_object"] == pytest.approx(values[name], abs=1e-3)


def test_rows_may_lack_views_and_give_them_in_another_order(photos):
    metrics = Metrics(CPU)
    views = blurred(photos)
    targets = metrics.target(photos, photos, [10, 11, 12, 13, 14, 15][: len(photos)])
    whole = metrics.compare("whole", views, targets, targets.indices)
    part = metrics.compare("part", views[[3, 1]], targets, [13, 11])
    assert part.keys() == whole.keys() == {figure.name for figure in metrics.figures if figure.per_pair}
    for name, values in part.items():
        assert values == pytest.approx([whole[name][3], whole[name][1]], rel=1e-4)

    scenes = ["a", "b", "a", "b", "a", "b"][: len(photos)]
    metrics.compare("same part", views[[1, 3]], targets, [11, 13])
    assert metrics.whole("part", targets.indices, scenes, 0) == metrics.whole("same part", [11, 13], ["b", "b"], 0)
    assert metrics.whole("part", [11, 12], ["b", "a"], 0) == {}  # one view is not a set
    assert metrics.whole("no such row", targets.indices, scenes, 0) == {}


def test_kernel_distance_tells_blurred_pictures_from_photos_though_they_come_in_batches(photos):
    def whole(views: torch.Tensor, batch: int) -> float:
        metrics = Metrics(CPU)
        for start in range(0, len(photos), batch):
            indices = range(start, min(start + batch, len(photos)))
            own = photos[indices.start : indices.stop]
            targets = metrics.target(own, own, indices)
            metrics.compare("row", views[indices.start : indices.stop], targets, indices)
        scenes = [str(index) for index in range(len(photos))]
        estimate = metrics.whole("row", range(len(photos)), scenes, 0)["kernel"]
        assert estimate.low <= estimate.high
        return estimate.value

    assert whole(photos, 4) < whole(blurred(photos), 4)
    assert whole(photos, 2) == pytest.approx(whole(photos, 4), abs=1e-5)


def test_without_published_weights_the_rest_is_measured_and_the_reason_says_what_to_put_where(photos, cache, tmp_path):
    metrics = Metrics(CPU, weights=tmp_path)
    assert [figure.name for figure in metrics.figures] == [
        "psnr", "ssim", "perceptual", "moved", "same_class", "gradient", "kernel",
    ]  # fmt: skip
    assert list(metrics.missing) == ["LPIPS (Alex)", "LPIPS (VGG)", "FID"]
    reason = metrics.missing["LPIPS (Alex)"]
    assert "put it, from https://download.pytorch.org/models/alexnet-owt-7be5be79.pth, into" in reason
    assert str(cache) in reason
    assert "\n" not in reason
    assert not list(cache.iterdir())


@pytest.mark.parametrize(
    "name", ["alexnet-owt-7be5be79.pth", "vgg16-397923af.pth", "pt_inception-2015-12-05-6726825d.pth"]
)
def test_a_file_that_is_not_what_its_name_says_is_refused(name, tmp_path):
    (tmp_path / name).write_bytes(b"other weights")
    with pytest.raises(SidestepError, match=rf"{name}: not the published weights: .* begins with 53959fa1, not"):
        Metrics(CPU, weights=tmp_path)


@pytest.mark.parametrize("in_cache", [False, True])
def test_lpips_of_given_weights(monkeypatch, photos, cache, tmp_path, in_cache):
    torch.manual_seed(0)
    network = torchvision.models.alexnet(weights=None)
    weights = {name: value for name, value in network.state_dict().items() if name.startswith("features.")}
    folder = cache if in_cache else tmp_path
    start = store(weights, folder / "given.pth")
    (folder / "given.pth").rename(folder / f"given-{start}.pth")
    monkeypatch.setattr(published, "ALEXNET", PublishedFile(f"https://example.org/given-{start}.pth"))
    metrics = Metrics(CPU, sizes=(48,), weights=tmp_path)
    assert "LPIPS (Alex)" not in metrics.missing
    assert {"lpips_alex", "lpips_alex@48"} < {figure.name for figure in metrics.figures}

    targets = metrics.target(photos[:2], photos[:2], [0, 1])
    same = metrics.compare("same", photos[:2], targets, [0, 1])
    blur = metrics.compare("blur", blurred(photos[:2]), targets, [0, 1])
    assert same["lpips_alex"] == pytest.approx([0.0, 0.0], abs=1e-6)
    assert min(blur["lpips_alex"]) > 1e-4

    # The backbone is the file's and not a random one: its first layer is what the file says.
    lpips = metrics._lpips[next(figure for figure in metrics._lpips if figure.name == "lpips_alex")]
    first = torch.relu(
        torch.nn.functional.conv2d(photos[:1], weights["features.0.weight"], weights["features.0.bias"], 4, 2)
    )
    assert torch.allclose(lpips.net(photos[:1])[0], first, atol=1e-5)


def test_what_is_fetched_is_checked_and_kept_for_the_next_time(monkeypatch, cache, tmp_path):
    weights = torchvision.models.alexnet(weights=None).state_dict()
    weights = {name: value for name, value in weights.items() if name.startswith("features.")}
    start = store(weights, tmp_path / "published.pth")
    monkeypatch.setattr(published, "ALEXNET", PublishedFile(f"https://example.org/net-{start}.pth"))
    monkeypatch.setattr(published, "urlopen", lambda url, timeout: (tmp_path / "published.pth").open("rb"))
    published.load_lpips("alex", None, CPU)
    assert [path.name for path in cache.iterdir()] == [f"net-{start}.pth"]

    # A proxy's page in place of VGG's weights is not kept.
    monkeypatch.setattr(published, "urlopen", lambda url, timeout: (DATA / "README.md").open("rb"))
    with pytest.raises(published.NotAtHandError, match="another file"):
        published.load_lpips("vgg", None, CPU)
    assert len(list(cache.iterdir())) == 1


def test_fid_is_of_the_given_weights_and_of_8_bit_pictures(monkeypatch, photos, tmp_path):
    with monkeypatch.context() as patch:  # builds the network without weights
        patch.setattr(NoTrainInceptionV3, "load_state_dict", lambda self, weights: None)
        patch.setattr(torch, "load", lambda *args, **options: {})
        torch.manual_seed(0)
        inception = NoTrainInceptionV3("inception-v3-compat", ["2048"], "unread", antialias=False)
    start = store(inception.state_dict(), tmp_path / "given.pth")
    (tmp_path / "given.pth").rename(tmp_path / f"pt_given-{start}.pth")
    file = PublishedFile(f"https://example.org/given-{start}.pth", other_names=(f"pt_given-{start}.pth",))
    monkeypatch.setattr(published, "INCEPTION", file)

    metrics = Metrics(CPU, weights=tmp_path)
    targets = metrics.target(photos[:2], photos[:2], [0, 1])
    metrics.compare("blur", blurred(photos[:2]), targets, [0, 1])
    estimate = metrics.whole("blur", [0, 1], ["a", "b"], 0)["fid"]

    with torch.inference_mode():
        real, fake = (
            inception(((pictures[:2] + 1.0) * 127.5).round().to(torch.uint8)) for pictures in (photos, blurred(photos))
        )
    assert estimate.value == pytest.approx(frechet_distance(real, fake), rel=1e-3)
    assert estimate.low == estimate.high == estimate.value > 0.0


@pytest.mark.parametrize("package", ["torchmetrics", "torchvision", "torch_fidelity"])
def test_without_the_packages_the_error_says_what_to_install(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SidestepError, match=rf"{package} is not installed; run: pip install 'sidestep\[evaluate\]'"):
        Metrics(CPU)


def test_what_cannot_be_measured_is_refused(photos, tmp_path):
    with pytest.raises(SidestepError, match="absent: no such folder"):
        Metrics(CPU, weights=tmp_path / "absent")
    with pytest.raises(SidestepError, match="a size of 16 px is too small"):
        Metrics(CPU, sizes=(16,))
    metrics = Metrics(CPU)
    with pytest.raises(SidestepError, match="photos of 64x16 px are too small"):
        metrics.target(photos[:, :, :16], photos[:, :, :16], range(len(photos)))
    targets = metrics.target(photos, photos, range(len(photos)))
    views = photos.clone()
    views[2, 0, 5, 5] = torch.nan
    with pytest.raises(SidestepError, match="broken row: the view of pair 2 holds NaN"):
        metrics.compare("broken row", views, targets, range(len(photos)))
