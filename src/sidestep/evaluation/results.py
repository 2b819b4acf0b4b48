"""What an evaluation found: plain data, which the report draws and `results.json` keeps."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import pydantic

from sidestep.errors import SidestepError
from sidestep.files import write_json
from sidestep.inputs import read_json

_MOST_BYTES = 2**30  # of a results.json; fifteen rows of ten figures take 4 kB a pair

Group = Literal["baseline", "model", "option", "limit", "predictions"]

# The subsets that figures are given for: by view distance in frames, and by the side that the camera steps to.
SUBSETS: dict[str, str] = {
    "all": "all pairs",
    "near": "1-5 frames apart",
    "middle": "6-15 frames apart",
    "far": "16 and more frames apart",
    "left": "camera to the left",
    "right": "camera to the right",
}

# The parts of a target that figures are given for by themselves.
PARTS: dict[str, str] = {
    "object": "on the object alone",  # the target's mask
    "unseen": "where the reference could not see",  # hidden from it, or outside its picture, by both depth maps
}


@dataclass(frozen=True)
class EvaluatedPair:
    """A pair of the list, by scene id and frame names.

    Attributes:
        gap: frames between the two, at least 1.
        turn: degrees between the two viewing directions.
        subsets: keys of SUBSETS that the pair belongs to.
        shares: how much of the target's picture its parts are (PARTS), where maps tell it.
    """

    scene: str
    reference: str
    target: str
    gap: int
    turn: float
    subsets: tuple[str, ...]
    shares: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One method of the table.

    Attributes:
        name: of letters, digits, "-", "_" and "."; names files too.
        title: what the tables call it.
        group: "baseline" (needs no model), "model" (the method's own outputs), "option" (a reading the paper leaves
            open), "limit" (a part of the method given the true target, so that what is lost where is plain),
            "predictions" (another program's pictures).
        uses_target: it saw the true target, so it is no method: the paper's oracle, and what a part loses.
        note: one sentence for the report.
        true_geometry: it was given the scene's true distances, which no method is: a bound, and no baseline to beat.
    """

    name: str
    title: str
    group: Group
    uses_target: bool = False
    note: str = ""
    true_geometry: bool = False

    @property
    def mark(self) -> str:
        """What stands beside its title: † if it saw the true target, § if it was given the true distances."""
        return "†" if self.uses_target else "§" if self.true_geometry else ""

    @property
    def competes(self) -> bool:
        """Whether it can be the best: it was given the reference photo and the cameras, and no more."""
        return not self.mark


@dataclass(frozen=True)
class Figure:
    """One kind of figure.

    Attributes:
        name: "psnr", "lpips_alex@256" and the like: what is measured, and "@" the size it was measured at where that
            is not the views' own.
        title: what the tables call it.
        better: which way is better; "one" is best at 1.
        digits: decimals to show.
        per_pair: whether each pair has a value of its own; FID and the kernel distance are of whole sets.
        part: the part of the target that it is measured on, a key of PARTS; empty for all of it.
        diagnostic: it says nothing by itself, so no row is the best in it and the summary leaves it out.
    """

    name: str
    title: str
    better: Literal["higher", "lower", "one"]
    digits: int
    per_pair: bool = True
    part: str = ""
    diagnostic: bool = False


@dataclass(frozen=True)
class Estimate:
    """A figure over a set of pairs, with its 95% bootstrap interval over scenes."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """A paired difference, `row` minus `against`, of one figure on one subset, with its interval."""

    row: str
    against: str
    figure: str
    subset: str
    estimate: Estimate


@dataclass(frozen=True)
class Published:
    """A line of somebody's table, as they printed it.

    Attributes:
        method: whose.
        source: where it was printed.
        figures: figure's title -> value as printed.
    """

    method: str
    source: str
    figures: dict[str, str]


@dataclass
class Results:
    """An evaluation, whole.

    Attributes:
        about: what was evaluated and how, for people: model, fingerprints, data, command, device, date.
        missing: figure title -> why it is not there and what to do.
        values: row -> figure -> one value a pair, in the order of `pairs`; a pair that a row has no picture for
            is None. Only figures that have a value per pair.
        estimates: row -> subset -> figure -> estimate. Subsets without a pair are absent.
        seconds: row -> seconds a view, if the row was made here.
        published: lines of other people's tables for the same protocol, copied and not measured here.
        memory: peak bytes of the process (and of the GPU), for the whole evaluation.
        not_finite: row -> how many of its views, second ones for the agreement too, hold NaN or infinity, and so were
            left out; absent where none does.
    """

    about: dict[str, str]
    pairs: list[EvaluatedPair]
    rows: list[Row]
    figures: list[Figure]
    missing: dict[str, str] = field(default_factory=dict)
    values: dict[str, dict[str, list[float | None]]] = field(default_factory=dict)
    estimates: dict[str, dict[str, dict[str, Estimate]]] = field(default_factory=dict)
    differences: list[Difference] = field(default_factory=list)
    published: list[Published] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)
    not_finite: dict[str, int] = field(default_factory=dict)

    def write(self, path: str | Path) -> None:
        """Writes JSON that `read` reads."""
        write_json(path, asdict(self))

    @classmethod
    def read(cls, path: str | Path) -> "Results":
        """Reads what `write` wrote.

        Raises:
            SidestepError: if the file is missing or no such results.
        """
        data = read_json(path, _MOST_BYTES)
        try:
            return pydantic.TypeAdapter(cls).validate_python(data)
        except pydantic.ValidationError as error:
            first = error.errors(include_url=False)[0]
            key = ".".join(map(str, first["loc"]))
            raise SidestepError(f"{path}: not an evaluation's results.json ({key}: {first['msg']})") from None
