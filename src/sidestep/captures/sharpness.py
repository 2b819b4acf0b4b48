"""The sharp frames of a video: of every stretch of equal time the sharpest one."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import torch
from PIL import Image
from torch import Tensor

from sidestep.errors import SidestepError
from sidestep.images import MAX_PIXELS, gradient_energy
from sidestep.inputs import open_file

MEASURED_AT = 640  # the longest side of the grey picture that sharpness is measured in
# What videos come in. Of FFmpeg's other formats some are lists of further files, which it would open.
CONTAINERS = "mov,matroska,avi,mpegts,mpeg,ogg,asf,flv,h264,hevc,m4v,mjpeg,gif"


def sharpness(pictures: Tensor) -> Tensor:
    """How much finer than four pixels the detail of pictures (B, C, H, W) is, (B,); 0 where there is none at all.

    The energy of the differences between neighbours, over that between means of 4×4 pixels. Blur takes the first away
    and leaves the second, while a cloth with more pattern has more of both.
    """
    coarse = gradient_energy(torch.nn.functional.avg_pool2d(pictures, 4))
    return torch.where(coarse > 0, gradient_energy(pictures) / coarse.clamp(min=1e-12), 0.0)


def sharp_frames(
    path: Path, count: int, progress: Callable[[int, int], None] | None = None
) -> Iterator[tuple[str, Image.Image]]:
    """The sharpest frame of each of `count` stretches of equal time, upright, in order, with its time, "12.35 s".

    All frames of a video that has no more than `count`; fewer where nothing was recorded for a while. In a video that
    has no times, a frame has its number, "frame 17", and the stretches are of as many frames. Frames that are damaged
    are passed over, and counted in a warning.

    Args:
        progress: called with (frames decoded, frames in all).

    Raises:
        SidestepError: if the file is missing or no video.
    """
    times = _times(path)
    start, length = min(times), max(times) - min(times) + 1
    best: tuple[float, int, Any] | None = None
    window = 0
    try:
        with _opened(path) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
            for number, frame in enumerate(_decode(path, container, stream)):
                if progress is not None:
                    progress(min(number + 1, len(times)), len(times))
                place = number if len(times) <= count else (_time(frame, number) - start) * count // length
                place = min(place, count - 1)  # an AVI shows its last frame after the time of its last packet
                if place != window and best is not None:
                    yield _still(*best[1:])
                    best = None
                window = place
                value = float(sharpness(_grey(frame)))
                if best is None or value > best[0]:
                    best = value, number, frame
    except SidestepError:
        raise
    except Exception as error:  # what a damaged frame is turned into fails in ways of its own
        raise _unreadable(path, error) from None
    if best is not None:
        yield _still(*best[1:])


def _decode(path: Path, container: Any, stream: Any) -> Iterator[Any]:
    """The frames that can be decoded."""
    damaged = 0
    for packet in container.demux(stream):
        try:
            yield from packet.decode()
        except av.error.InvalidDataError:
            damaged += 1
    if damaged:
        warnings.warn(f"{path}: frames that are damaged and were passed over: {damaged}", stacklevel=2)


def _times(path: Path) -> list[int]:
    """When each frame is shown, in the stream's unit, in the order of the file; nothing is decoded."""
    try:
        with _opened(path) as container:
            if not container.streams.video:
                raise SidestepError(f"{path}: holds no video; give a video or a folder of photos")
            size = container.streams.video[0].codec_context
            if size.width * size.height > MAX_PIXELS:
                raise SidestepError(f"{path}: {size.width}x{size.height} pixels; scale it down first")
            packets = (packet for packet in container.demux(container.streams.video[0]) if packet.size)
            times = [_time(packet, number) for number, packet in enumerate(packets)]
    except FileNotFoundError:
        raise SidestepError(f"{path}: no such file or folder") from None
    except SidestepError:
        raise
    except Exception as error:  # FFmpeg's own, the system's, and what PyAV makes of a damaged header
        raise _unreadable(path, error) from None
    if not times:
        raise SidestepError(f"{path}: holds no frames; export the video again")
    return times


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    open_file(path).close()  # FFmpeg would wait for a pipe
    options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
    with av.open(str(path.absolute()), options=options) as container:
        yield container


def _unreadable(path: Path, error: Exception) -> SidestepError:
    return SidestepError(f"{path}: cannot be read as a video ({error}); export it again, as MP4 for example")


def _time(timed: Any, number: int) -> int:
    """A packet's or frame's time; its number where the file has no times."""
    return number if timed.pts is None else int(timed.pts)


def _grey(frame: Any) -> Tensor:
    """(1, 1, H, W) in [0, 1]."""
    scale = min(1.0, MEASURED_AT / max(frame.width, frame.height))
    small = frame.reformat(max(8, round(frame.width * scale)), max(8, round(frame.height * scale)), format="gray")
    return torch.from_numpy(small.to_ndarray())[None, None] / 255.0


def _still(number: int, frame: Any) -> tuple[str, Image.Image]:
    name = f"frame {number}" if frame.time is None else f"{frame.time:.2f} s"
    # A phone stores what its sensor sees, and by how much that has to be turned counter-clockwise.
    return name, frame.to_image().rotate(frame.rotation, expand=True)
