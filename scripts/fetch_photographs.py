"""Photographs under free licences from Debian's wallpaper packages, for `photographs` of `sidestep pretrain`.

    apt-get update
    python scripts/fetch_photographs.py OUT

For Debian and Ubuntu: the packages are downloaded with `apt-get download` from the distribution that the machine runs
(220 MB go through a temporary folder; nothing is installed) and unpacked with `dpkg-deb`. OUT, which must not exist yet
or be empty, gets PACKAGE/NAME.jpg, the shorter side 512 pixels, and PACKAGE/copyright, which names authors and
licences: Creative Commons BY, BY-SA and zero, and the GPL, by picture or by package.

Which of the packages' pictures are photographs, and neither drawings nor gradients, was decided by looking at Debian
12's, where gnome-backgrounds and ukui-wallpapers have none. Other releases may lack some of them, and say so; what they
have besides is left alone. Of a photograph at several resolutions the largest is taken. Only JPEG, PNG and WebP are
read, not JPEG XL, in which newer releases store some.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from sidestep.errors import SidestepError
from sidestep.files import atomic_path
from sidestep.images import SUFFIXES, load_image

SHORTER_SIDE = 512

# Below /usr/share: the folder, then the photographs in it, each a file's stem or a wallpaper's folder.
PHOTOGRAPHS: dict[str, tuple[str, tuple[str, ...]]] = {
    "lomiri-wallpapers-16.04": (
        "backgrounds",
        (
            "aitzgorri_by_Aitzol_Berasategi",
            "Bridge_by_Sander_Klootwijk",
            "Dragonfly_by_Bolly",
            "free_by_Peter_Nerlich",
            "friends_by_Aitzol_Berasategi",
            "greentock_by_Peter_Nerlich",
            "life_by_Aitzol_Berasategi",
            "picosdeeuropa_by_Aitzol_Berasategi",
            "Picture_0B_by_freespace",
            "Picture_1A_by_freespace",
            "seeding_by_Clements_Engelhardt",
            "sunset_by_Aitzol_Berasategi",
            "Wine_by_Jakkub_Mede",
        ),
    ),
    "lomiri-wallpapers-20.04": ("backgrounds", ("Infinite-Sea_by_Aury88", "Kleiber_by_Lukas_Baubkus")),
    "mate-backgrounds": (
        "backgrounds/mate/nature",
        (
            "Aqua",
            "Blinds",
            "Dune",
            "FreshFlower",
            "Garden",
            "GreenMeadow",
            "LadyBird",
            "RainDrops",
            "Storm",
            "TwoWings",
            "Wood",
            "YellowFlower",
        ),
    ),
    "plasma-workspace-wallpapers": (
        "wallpapers",
        (
            "BytheWater",
            "ColdRipple",
            "ColorfulCups",
            "DarkestHour",
            "EveningGlow",
            "FallenLeaf",
            "Grey",
            "Kite",
            "OneStandsOut",
            "Path",
            "summer_1am",
        ),
    ),
}


def fetch(out: Path) -> int:
    """Writes all photographs to `out`, or nothing; returns how many there are.

    Raises:
        SidestepError: if `out` holds anything, a package cannot be downloaded or unpacked, or none has a photograph.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SidestepError(f"{out}: exists already; name a new folder, or delete it")
    count = 0
    with atomic_path(out) as finished, tempfile.TemporaryDirectory() as temporary:
        for package, (folder, names) in PHOTOGRAPHS.items():
            unpacked = unpack(package, Path(temporary))
            for name in names:
                found = largest(unpacked / "usr/share" / folder, name)
                if found is None:
                    print(f"{package}: this release has no photograph {name}", file=sys.stderr)
                    continue
                path = finished / package / f"{name}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                shrunk(load_image(found)).save(path, quality=95)
                count += 1
            if (finished / package).exists():
                copyright_file = unpacked / "usr/share/doc" / package / "copyright"
                (finished / package / "copyright").write_bytes(copyright_file.read_bytes())
        if count == 0:
            raise SidestepError("this release's packages hold none of the photographs; try another release")
    return count


def unpack(package: str, folder: Path) -> Path:
    """Downloads a package into `folder` and unpacks it there; returns where."""
    run(["apt-get", "download", package], folder)
    (archive,) = folder.glob(f"{package}_*.deb")
    run(["dpkg-deb", "-x", archive.name, package], folder)
    archive.unlink()
    return folder / package


def run(command: list[str], folder: Path) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise SidestepError(f"{command[0]}: not found; this works on Debian and Ubuntu only") from None
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise SidestepError(f"{' '.join(command)}: {reason}; run apt-get update first") from None


def largest(folder: Path, name: str) -> Path | None:
    """The largest picture that is called `name`, or lies in a wallpaper's folder of that name."""
    candidates = [*folder.glob(f"{name}.*"), *folder.glob(f"{name}/contents/images/*")]
    pictures = [path for path in candidates if path.suffix.lower() in SUFFIXES]
    return max(pictures, key=lambda path: path.stat().st_size, default=None)


def shrunk(image: Image.Image) -> Image.Image:
    scale = SHORTER_SIDE / min(image.size)
    if scale >= 1:
        return image
    size = (round(image.width * scale), round(image.height * scale))
    return image.resize(size, Image.Resampling.LANCZOS)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        print(f"{fetch(Path(sys.argv[1]))} photographs in {sys.argv[1]}")
    except SidestepError as error:
        sys.exit(f"error: {error}")
