"""An inspection of captures as one HTML page that needs nothing else: no script, no font, no picture from outside."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from sidestep.captures.arrangement import Arrangement
from sidestep.captures.findings import KINDS, SEVERITIES, Finding
from sidestep.captures.inspection import InspectedScene, Inspection, Range, SceneFacts
from sidestep.captures.lens import Array
from sidestep.errors import SidestepError
from sidestep.files import atomic_path
from sidestep.images import Stored, jpeg_url, load_image

MOST_FAULTY, MOST_SOUND = 240, 60  # scenes drawn with an error or a warning, and without
MOST_ROWS = 100  # of one kind of finding
MOST_CAMERAS = 80  # drawn of one scene, besides those with findings
THUMBNAIL = 120  # pixels of the longer side
_STYLE = Path(__file__).with_suffix(".css")


def write_page(path: str | Path, inspection: Inspection) -> None:
    """Writes the inspection as an HTML page: totals, findings by kind, and a card with drawings for each scene.

    The page of a large set stays usable: cards are drawn for the first 240 scenes with an error or a warning and the
    first 60 of the others, and it says so.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(_page(inspection), encoding="utf-8")


def _page(inspection: Inspection) -> str:
    of_scene: dict[str, list[Finding]] = defaultdict(list)
    for finding in inspection.findings:
        of_scene[finding.scene].append(finding)
    shown = _shown(inspection, of_scene)
    anchors = {scene.id: f"scene-{index}" for index, scene in enumerate(shown)}
    title = f"Captures in {inspection.path.resolve().name}"
    cards = "".join(_card(scene, of_scene[scene.id], anchors[scene.id]) for scene in shown)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title><style>{_STYLE.read_text(encoding="utf-8")}</style></head><body>
<header><h1>{escape(title)}</h1><p class="path">{escape(str(inspection.path))}</p></header>
{_totals(inspection)}
<h2>Findings</h2>{_findings(inspection, anchors)}
<h2>Scenes</h2>{_legend(len(shown), len(inspection.scenes))}
<div class="cards">{cards}</div>
<footer>Written by <code>sidestep capture inspect</code>. Distances are from the subject, in the
unit in which the first frame sees it at 1.</footer></body></html>
"""


def _shown(inspection: Inspection, findings: dict[str, list[Finding]]) -> list[InspectedScene]:
    """The scenes that get a card, in the set's order."""
    faulty = {scene for scene, of_it in findings.items() if any(finding.severity != "note" for finding in of_it)}
    left = {True: MOST_FAULTY, False: MOST_SOUND}
    shown = []
    for scene in inspection.scenes:
        is_faulty = scene.id in faulty
        if left[is_faulty] > 0:
            left[is_faulty] -= 1
            shown.append(scene)
    return shown


def _totals(inspection: Inspection) -> str:
    totals = inspection.totals
    tiles = [(f"{totals[key]:,}", key) for key in ("scenes", "models", "frames", "pairs")]
    tiles += [(f"{totals[f'{severity}s']:,}", f"{severity}s") for severity in SEVERITIES]
    boxes = "".join(
        f'<div class="tile {name if value != "0" else ""}"><b>{value}</b><span>{name}</span></div>'
        for value, name in tiles
    )
    read = totals["scenes"] - totals["unreadable"]
    parts = "".join(
        f'<i class="{split}" style="flex:{count}"></i>' for split, count in totals["splits"].items() if count
    )
    splits = ", ".join(f"{count} {split}" for split, count in totals["splits"].items())
    bar = f'<p class="splits"><span class="bar">{parts}</span> {splits}: split by model</p>' if read else ""
    categories = sorted(totals["categories"].items(), key=lambda item: (-item[1], item[0]))
    names = "".join(f"<li>{escape(name)} <b>{count}</b></li>" for name, count in categories)
    listed = f'<ul class="categories">{names}</ul>' if categories else ""
    undecoded = "" if inspection.decoded else '<p class="muted">Photos were not decoded: damaged ones go unseen.</p>'
    return f'<section><div class="tiles">{boxes}</div>{bar}{listed}{undecoded}</section>'


def _findings(inspection: Inspection, anchors: dict[str, str]) -> str:
    if not inspection.findings:
        return '<p class="good">Nothing is wrong with this set.</p>'
    kinds: dict[str, list[Finding]] = defaultdict(list)
    for finding in inspection.findings:
        kinds[finding.kind].append(finding)
    return "".join(_kind(inspection.path, kind, findings, anchors) for kind, findings in kinds.items())


def _kind(root: Path, kind: str, findings: Sequence[Finding], anchors: dict[str, str]) -> str:
    severity, title, advice = KINDS[kind].severity, KINDS[kind].title, KINDS[kind].advice
    is_open = "" if severity == "note" else ' open=""'
    rows = "".join(
        f"<tr><td>{_link(finding.scene, anchors)}</td><td>{escape(_within(finding.message, root))}</td>"
        f"<td class='path'>{escape(_within(finding.path, root))}</td></tr>"
        for finding in findings[:MOST_ROWS]
    )
    more = len(findings) - MOST_ROWS
    left_out = f'<p class="muted">and {more:,} more, all of them in the output of --json</p>' if more > 0 else ""
    return (
        f'<details class="kind"{is_open}><summary><span class="pill {severity}">'
        f"{severity}</span> {escape(title)} <span class='muted'>{len(findings):,}</span></summary>"
        f'<p class="advice">{escape(advice)}</p><div class="scroll"><table><thead><tr><th>scene</th><th>found</th>'
        f"<th>where</th></tr></thead><tbody>{rows}</tbody></table></div>{left_out}</details>"
    )


def _link(scene: str, anchors: dict[str, str]) -> str:
    return f'<a href="#{anchors[scene]}">{escape(scene)}</a>' if scene in anchors else escape(scene)


def _within(text: str, root: Path) -> str:
    """The text with paths below `root` shortened to begin there."""
    return root.name if text == str(root) else text.replace(f"{root}/", "")


def _legend(shown: int, total: int) -> str:
    part = (
        f"Drawn are {shown:,} of {total:,} scenes: the first {MOST_FAULTY} with an error or a warning and the first "
        f"{MOST_SOUND} of the others; the figures of all are in the output of --json. "
        if shown < total
        else ""
    )
    return (
        f'<p class="muted">{part}Left: from above, right: from the side, both as the first camera has it (it looks '
        "away from you, or to the right). The dot is where the path starts, the cross the subject, the dashed ring "
        "the median distance; red cameras have findings. Hover over a camera for its name.</p>"
    )


def _card(scene: InspectedScene, findings: Sequence[Finding], anchor: str) -> str:
    counts = Counter(finding.severity for finding in findings)
    pills = "".join(
        f'<span class="pill {severity}">{counts[severity]} {severity}{"s" if counts[severity] > 1 else ""}</span>'
        for severity in SEVERITIES
        if counts[severity]
    )
    facts, arrangement = scene.facts, scene.arrangement
    body = '<p class="muted">It cannot be read.</p>'
    split = ""
    if facts is not None and arrangement is not None:
        split = f'<span class="pill {facts.split}">{facts.split}</span>'
        marked = {name for finding in findings if finding.severity != "note" for name in finding.frames}
        names = [name for name, _ in scene.photos]
        body = f'<div class="views">{_drawing(arrangement, names, marked)}</div>{_photos(scene)}{_facts(facts)}'
    lines = "".join(
        f'<li class="{finding.severity}">{escape(KINDS[finding.kind].title)}: '
        f"{escape(_within(_within(finding.message, scene.folder), scene.folder.parent))}</li>"
        for finding in findings
    )
    told = f'<ul class="found">{lines}</ul>' if lines else ""
    return f'<article id="{anchor}"><h3>{escape(scene.id)} {split}{pills}</h3>{body}{told}</article>'


def _facts(facts: SceneFacts) -> str:
    turning = {None: "", "none": ", not turning", "both": ", to both sides"}.get(
        facts.turning, f", to the {facts.turning}"
    )
    rows = {
        "frames": f"{facts.frames}, {facts.pairs or 'no'} pairs",
        "pictures": ", ".join(facts.sizes[:2]) + (" …" if len(facts.sizes) > 2 else ""),
        "field of view": _range(facts.fov, "°", 0),
        "points": "none" if facts.points is None else f"{facts.points:,}",
        "arc": "unknown" if facts.arc is None else f"{facts.arc:.0f}°{turning}",
        "step": "unknown" if facts.step is None else f"{facts.step:.1f}°",
        "looks down": _range(facts.elevation, "°", 0),
        "distance": _range(facts.distance, "", 2),
    }
    return "<dl>" + "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in rows.items()) + "</dl>"


def _range(values: Range | None, unit: str, digits: int) -> str:
    if values is None:
        return "unknown"
    low, high = (f"{round(value, digits) + 0.0:.{digits}f}" for value in values)  # no "-0"
    return f"{low}{unit}" if low == high else f"{low} to {high}{unit}"


def _photos(scene: InspectedScene) -> str:
    places = sorted({0, len(scene.photos) // 2, len(scene.photos) - 1})
    return '<div class="photos">' + "".join(_photo(*scene.photos[place]) for place in places) + "</div>"


def _photo(name: str, path: Path | Stored) -> str:
    caption = f"<figcaption>{escape(name)}</figcaption>"
    try:
        picture = load_image(path)
    except SidestepError:
        return f'<figure><span class="damaged">damaged</span>{caption}</figure>'
    picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    return f'<figure><img src="{jpeg_url(picture, 75)}" alt="{escape(name)}"/>{caption}</figure>'


def _drawing(arrangement: Arrangement, names: Sequence[str], marked: set[str]) -> str:
    """The scene from above (x to the right, away upwards) and from the side (away to the right), at one scale."""
    frusta = _frusta(arrangement)
    low, high = _bounds(arrangement, frusta)
    unit = 200.0 / float(max(high[0] - low[0], high[1] - low[1], high[2] - low[2], 1e-9))
    chosen = _spread(len(names), MOST_CAMERAS)
    drawn = [index for index, name in enumerate(names) if index in chosen or name in marked]
    views = []
    for title, (across, upwards) in (("from above", (0, 1)), ("from the side", (1, 2))):
        axes = [across, upwards]
        box = (low[across] * unit, -high[upwards] * unit, *((high - low)[axes] * unit))

        def flat(points: Array, axes: list[int] = axes) -> Array:
            return np.asarray(points[..., axes] * (unit, -unit))

        parts = []
        if len(arrangement.points):
            dots = flat(arrangement.points)
            parts.append(f'<path class="points" d="{"".join(f"M{x:.1f} {y:.1f}h0" for x, y in dots)}"/>')
        if arrangement.has_subject:
            if across == 0:
                radius = float(np.median(np.linalg.norm(arrangement.centres[:, :2], axis=1))) * unit
                parts.append(f'<circle class="ring" r="{radius:.1f}"/>')
            parts.append('<path class="subject" d="M-5 0h10M0-5v10"/>')
        centres = flat(arrangement.centres)
        parts.append(f'<path class="way" d="M{_line(centres)}"/>')
        cameras = flat(frusta)
        for index in drawn:
            name = names[index]
            style = "camera marked" if name in marked else "camera"
            parts.append(f'<path class="{style}" d="{_wires(cameras[index])}"><title>{escape(name)}</title></path>')
        x, y = centres[0]
        parts.append(
            f'<circle class="first" cx="{x:.1f}" cy="{y:.1f}" r="4"><title>{escape(names[0])}</title></circle>'
        )
        view = " ".join(f"{value:.1f}" for value in box)
        size = f'style="aspect-ratio:{box[2]:.1f}/{box[3]:.1f};flex:{box[2]:.1f}"'
        views.append(f'<svg viewBox="{view}" {size} role="img" aria-label="{title}">{"".join(parts)}</svg>')
    return "".join(views)


def _frusta(arrangement: Arrangement) -> Array:
    """(N, 5, 3): each camera's centre and the corners of a picture held before it, clockwise from the upper left."""
    depth = 0.14 * float(np.median(arrangement.distances)) or 1.0
    corners = np.array(((-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)))
    rays = np.concatenate((corners * arrangement.half_angles[:, None], np.ones((len(arrangement.centres), 4, 1))), -1)
    ends = arrangement.centres[:, None] + depth * rays @ arrangement.rotations
    return np.concatenate((arrangement.centres[:, None], ends), axis=1)


def _bounds(arrangement: Arrangement, frusta: Array) -> tuple[Array, Array]:
    """The box to draw: the cameras, save those far from the rest, the origin, and the points that are no farther."""
    reach = 3.0 * float(np.median(arrangement.distances)) or 1.0
    content = [np.zeros((1, 3)), frusta[arrangement.distances <= reach].reshape(-1, 3)]
    content.append(arrangement.points[np.linalg.norm(arrangement.points, axis=1) <= reach / 3.0])
    everything = np.concatenate(content)
    low, high = everything.min(0), everything.max(0)
    margin = 0.05 * float((high - low).max())
    return low - margin, high + margin


def _spread(count: int, most: int) -> set[int]:
    return set(np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist())


def _wires(frustum: Array) -> str:
    apex, *corners = (f"{x:.1f} {y:.1f}" for x, y in frustum)
    sides = "".join(f"M{apex}L{corner}" for corner in corners)
    return f"M{'L'.join(corners)}Z{sides}"


def _line(points: Iterable[Sequence[float]]) -> str:
    return "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
