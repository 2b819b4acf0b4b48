"""The kinds of things that an inspection of captures finds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")  # the worst first


@dataclass(frozen=True)
class Kind:
    """A kind of finding: how bad it is, its title, and what to do about it.

    An error stops or shrinks a run: a scene is left out, or encoding stops. A warning is what a trained model would
    suffer from. A note is good to know.
    """

    severity: Severity
    title: str
    advice: str


KINDS: dict[str, Kind] = {
    "unreadable": Kind(
        "error", "Scene cannot be read", "Mend what the message names; until then every command leaves the scene out."
    ),
    "same-name": Kind(
        "error", "Two scenes of one name", "Rename one of the folders; until then every command leaves the second out."
    ),
    "damaged-photo": Kind(
        "error", "Photo cannot be decoded", "Copy or export the photo again, or delete it; encoding stops at it."
    ),
    "no-scene": Kind(
        "warning",
        "Folder without a scene",
        "Every command passes it over: put the photos into its images/, or move it elsewhere.",
    ),
    "missing-photos": Kind(
        "warning", "Listed photos are missing", "Put them back, or run the reconstruction again without them."
    ),
    "few-frames": Kind(
        "warning", "Too few frames for a pair", "Training draws pairs from 11 frames or more: capture more of them."
    ),
    "name-order": Kind(
        "warning",
        "Frames out of order",
        "Frames are sorted by name as text; pad the numbers with zeros (and in the model, too).",
    ),
    "same-photo": Kind("warning", "Photo twice in a scene", "Delete one of them and its entry in the model."),
    "shared-photo": Kind(
        "warning",
        "Photo in two scenes",
        "Delete one of the scenes: the same thing on both sides of a split spoils an evaluation.",
    ),
    "same-pose": Kind(
        "warning",
        "Cameras at one place",
        "Different photos from one pose teach the model to ignore the camera: check the poses, delete one of each.",
    ),
    "far-camera": Kind(
        "warning", "Camera far from the others", "The pose is probably wrong: delete the frame, or register it again."
    ),
    "jump": Kind(
        "warning",
        "Sudden jump in the path",
        "Look at the drawing: a wrong pose, or two paths in one scene? Pairs count frames along one smooth path.",
    ),
    "looks-away": Kind(
        "warning", "Camera looks away from the subject", "The pose is probably wrong: delete the frame, or check it."
    ),
    "rolled": Kind(
        "warning",
        "Photo lies on its side",
        "Its camera is rolled against the others': save the photo upright and run the reconstruction again.",
    ),
    "no-subject": Kind(
        "warning",
        "Cameras look at no common place",
        "Sidestep steps around a subject: if this is a capture of one, the poses are in another convention "
        "(docs/cameras.md).",
    ),
    "no-baseline": Kind(
        "warning",
        "Camera turns but does not move",
        "Nothing is seen from another side, and depth is a guess: step around the subject.",
    ),
    "points-behind": Kind(
        "warning",
        "Points lie behind the cameras",
        "The poses are probably camera to world, mirrored, or in OpenGL's axes (docs/cameras.md).",
    ),
    "points-outside": Kind(
        "warning",
        "Points fall outside the pictures",
        "The focal length, the picture size or the poses are probably wrong: check the lens in the model first.",
    ),
    "few-points": Kind(
        "warning",
        "Frame sees hardly any points",
        "The pose is probably wrong, or the reconstruction poor: check the frame.",
    ),
    "scale": Kind(
        "warning",
        "Scales disagree",
        "Distances are measured by the points' median depth: check for stray points, and for a focal length far off.",
    ),
    "odd-lens": Kind("warning", "Implausible lens", "Check the focal length, the picture size and their unit."),
    "sizes": Kind("note", "Photos of different sizes", "All are cropped to the middle square; check that it fits."),
    "unlisted-photos": Kind(
        "note", "Photos that the model does not list", "They have no camera and are not used; delete or register them."
    ),
    "no-points": Kind(
        "note", "No surface points", "Scale comes from where the optical axes meet; no pose could be checked by points."
    ),
    "distortion": Kind("note", "Lens distortion", "It is taken out when the photos are loaded; nothing to do."),
    "several-models": Kind(
        "note",
        "Several models of one scene",
        "Photos that only the smaller ones have are not used: capture what joins them, or register them again.",
    ),
    "same-model": Kind(
        "note", "Several scenes of one thing", "All of them fall on one side of a split; nothing to do."
    ),
}


@dataclass(frozen=True)
class Finding:
    """Something to know about a set.

    Attributes:
        kind: a key of KINDS.
        scene: the scene's id; of a folder that is none, its path in the set.
        path: the file or folder where it is.
        message: what was found, in one line.
        frames: names of the frames concerned, where it is about frames.
    """

    kind: str
    scene: str
    path: str
    message: str
    frames: tuple[str, ...] = ()

    @property
    def severity(self) -> Severity:
        return KINDS[self.kind].severity


def listed(names: Sequence[str], most: int = 4) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
