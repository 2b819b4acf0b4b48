"""Networks with the published weights that LPIPS and FID are defined by, which no package carries."""

import hashlib
import io
import shutil
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Literal
from urllib.request import urlopen

import torch
from torch import Tensor, nn

from sidestep.errors import SidestepError
from sidestep.files import atomic_path

_TIMEOUT = 30.0  # seconds without an answer


class NotAtHandError(Exception):
    """Published weights are neither here nor to be fetched; the message says what to put where."""


@dataclass(frozen=True)
class PublishedFile:
    """Weights at an address, under a name that ends in the first 8 hexadecimal digits of their SHA-256.

    Attributes:
        other_names: what else the same file is called.
    """

    url: str
    other_names: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]

    @property
    def digest_start(self) -> str:
        return Path(self.name).stem.rpartition("-")[2]


ALEXNET = PublishedFile("https://download.pytorch.org/models/alexnet-owt-7be5be79.pth")
VGG16 = PublishedFile("https://download.pytorch.org/models/vgg16-397923af.pth")
INCEPTION = PublishedFile(
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    other_names=("pt_inception-2015-12-05-6726825d.pth",),
)


def load_lpips(backbone: Literal["alex", "vgg"], folder: Path | None, device: torch.device) -> nn.Module:
    """LPIPS 0.1 as torchmetrics has it: of two batches in [-1, 1], (B, 3, H, W), the distances (B, 1, 1, 1).

    Raises:
        NotAtHandError: if its backbone's weights cannot be had.
        SidestepError: if a file under their name is another.
    """
    # Private, because the public class fetches the backbone by itself and unpickles it unchecked.
    from torchmetrics.functional.image.lpips import _LPIPS

    weights = _load({"alex": ALEXNET, "vgg": VGG16}[backbone], folder)
    lpips = _LPIPS(net=backbone, pnet_rand=True)
    # "slice2.3.weight" here is "features.3.weight" there.
    names = {name: "features." + name.partition(".")[2] for name in lpips.net.state_dict()}
    lpips.net.load_state_dict({name: weights[published] for name, published in names.items()})
    return lpips.to(device)


def load_inception(folder: Path | None, device: torch.device) -> nn.Module:
    """FID's Inception as torch-fidelity has it: of 8-bit pictures (B, 3, H, W), a tuple of one (B, 2048).

    It resizes to 299 px as the first implementation of FID did, bilinearly and without antialiasing.

    Raises:
        NotAtHandError: if its weights cannot be had.
        SidestepError: if a file under their name is another.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import (  # type: ignore[import-untyped]
        FeatureExtractorInceptionV3,
    )

    # The class would unpickle the file unchecked, so it is given what was read from it.
    checked = io.BytesIO()
    torch.save(_load(INCEPTION, folder), checked)
    checked.seek(0)
    network: nn.Module = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], checked)
    return network.to(device)


def _load(file: PublishedFile, folder: Path | None) -> dict[str, Tensor]:
    """The weights from the folder, or torch's own cache, or its address, which fills the cache."""
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    names = (file.name, *file.other_names)
    places = [place / name for place in (folder, cache) if place is not None for name in names]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        path = cache / file.name
        try:
            _fetch(file, path)
        except (OSError, HTTPException) as error:
            raise NotAtHandError(
                f"{file.name} is not at hand and could not be fetched ({error}); put it, from {file.url}, into the "
                f"folder of published weights or into {_shortened(cache)}"
            ) from None
    elif (start := _digest_start(path)) != file.digest_start:
        raise SidestepError(
            f"{path}: not the published weights: its SHA-256 begins with {start}, not {file.digest_start}; "
            f"fetch it again from {file.url}"
        )
    weights: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return weights


def _shortened(path: Path) -> str:
    """The path from the home folder on: a report that is passed on need not tell whose it was."""
    home = Path.home()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)


def _fetch(file: PublishedFile, path: Path) -> None:
    with urlopen(file.url, timeout=_TIMEOUT) as response, atomic_path(path) as temporary:
        with temporary.open("wb") as copy:
            shutil.copyfileobj(response, copy)
        if _digest_start(temporary) != file.digest_start:  # a proxy's page, say
            raise OSError("its address answered with another file")


def _digest_start(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:8]
