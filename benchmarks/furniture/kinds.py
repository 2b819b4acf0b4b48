"""What kind of thing a catalogue's entry is, from its title, section and size: its category and its place in a room."""

import re
from dataclasses import dataclass

from models import Place

SECTIONS_LEFT_OUT = {"Characters", "Doors and windows", "Staircases", "Vehicles"}
OUTDOORS = re.compile(r"chair|sofa|table|bench|bank|flower|plant box|lounge|hammock|dog house", re.I)
LEFT_OUT = re.compile(
    r"socket|plug|switch|railing|fence|curtain|blind|container|bill \d|speech|detector|antenna|carpet|rug$|bathmat|"
    r"doormat|tatami|screen$|shower|tennis$|fitness|treadmill|bench$.*abdominal|abdominal|wall hanger|sleeping|"
    r"hanging clothes|hood|upper|cooktop|cooker [24]|induction|air condition|water heater|cctv|surveillance|"
    r"emergency|clothes hanger|coathanger|dress$|trousers|jacket|skirt|short$|sock|snowman|beach|camping tent|"
    r"number lock|flashlight|stone lantern|concrete|barnum|grinder|mower|^saw$|shovel|intercom|chimney|radiator|fan$|"
    r"umbrella$|dart|glove|newspaper|stove$|tool$|cards?|card game",
    re.I,
)
KINDS = (  # the first that fits the title
    ("lamp", r"lamp|light|lantern|candle"),
    ("decoration", r"table (fan|tennis bat)|basketball|soccer"),
    ("bench", r"bench|\bbank\b"),
    ("chair", r"chair|stool|class seat|puff|lounge"),
    ("sofa", r"sofa|couch"),
    ("bed", r"\bbed$|\bbed \d|crib|futon|mattress|bunk|daybed|convertible"),
    ("table", r"table|desk"),
    ("shelf", r"shel(f|ves)|bookcase|full bookcase"),
    ("cabinet", r"wardrobe|cupboard|cabinet|dresser|chest|drawer|television|tv stand|vanity|trunck|locker|safe"),
    ("plant", r"plant|flower|ficus|cactus|bamboo|orchid|yucca|tulip|lily|bonsai|spathiphyllum|tree|decorative"),
    ("piano", r"piano"),
    ("bathroom", r"toilet|bidet|washbasin|\bbath|basin|lavatory|urinal|potty"),
    ("kitchen", r"fridge|refrigerator|oven|washing machine|dryer|freezer|island|sink|furnace|microwave|hood"),
)
STANDS_AT_WALL = {"bed", "cabinet", "shelf", "piano", "bathroom", "kitchen"}
ALWAYS_MAIN = {"chair", "sofa", "table", "bed", "bench", "shelf", "cabinet", "piano"}
SMALLEST, LARGEST, TALLEST = 0.07, 3.0, 2.3  # metres; what is smaller or larger is no thing to walk about in a room


@dataclass(frozen=True)
class Kind:
    category: str
    place: Place
    main: bool


def kind_of(title: str, section: str, size: tuple[float, float, float], elevation: float) -> Kind | None:
    """The kind of an entry, or None where it does not belong into a furnished room.

    Args:
        section: the catalogue's own ("Living room", "Exterior").
        size: width, depth and height in metres.
        elevation: how far above the floor the catalogue hangs it, in metres.
    """
    if section in SECTIONS_LEFT_OUT or LEFT_OUT.search(title) or (section == "Exterior" and not OUTDOORS.search(title)):
        return None
    width, depth, height = size
    if max(size) < SMALLEST or max(width, depth) > LARGEST or height > TALLEST or min(size) < 0.005:
        return None
    category = next((name for name, words in KINDS if re.search(words, title, re.I)), "decoration")
    if elevation > 0.3:
        if category == "lamp":
            return Kind(category, "ceiling" if elevation + height > 2.2 else "hang", False)
        return None if elevation > 0.9 else Kind(category, "wall", category in ALWAYS_MAIN)
    if category in STANDS_AT_WALL and height > 0.4:
        return Kind(category, "wall", category in ALWAYS_MAIN or height > 0.6)
    if category in ALWAYS_MAIN and max(size) > 0.4:
        return Kind(category, "floor", True)
    if height <= 0.62 and max(width, depth) <= 0.6:
        return Kind(category, "table", min(size) > 0.08 and max(size) > 0.18)
    return Kind(category, "floor", height > 0.3)
