"""Plans the generated corpus: scenes, their props and their actions.

How long one may look away depends on what is on screen: each class has its typical duration, two have a visible cue
before they begin, and after an action nothing begins for a while, except actions that overlap.
"""

import string
from dataclasses import dataclass
from typing import Literal

import numpy as np

Split = Literal["train", "test"]
Color = tuple[int, int, int]

BALL, DOOR, FLAG, LAMP, FAN, PLANT = range(6)

CLASS_NAMES = (
    "Rolling a ball",
    "Opening a door",
    "Waving a flag",
    "Flashing a lamp",
    "Spinning a fan",
    "Watering a plant",
)
PROP_NAMES = ("ball", "door", "flag", "lamp", "fan", "plant")

# Shortest and longest duration of each class, in seconds.
DURATION_S = ((0.9, 1.5), (1.8, 2.6), (5.0, 7.0), (2.4, 3.6), (3.5, 5.0), (1.6, 2.4))
# Seconds for which the door's green light and the tilting can announce an action; not part of the label.
CUE_S = (0.0, 1.2, 0.0, 0.0, 0.0, 1.0)
# Seconds in which the can swings back after the last drop; not part of the label.
SETTLE_S = (0.0, 0.0, 0.0, 0.0, 0.0, 0.4)
GAP_S = (1.3, 3.2)
LEAD_OUT_S = 0.5
TRIES = 20

SLOT_CENTERS = (18.0, 49.0, 80.0, 111.0, 142.0)
NUM_PALETTES = 6
PROP_COLORS: tuple[tuple[Color, ...], ...] = (
    ((217, 72, 62), (42, 119, 184), (128, 68, 152), (28, 138, 120)),
    ((122, 74, 52), (64, 104, 120), (150, 62, 58), (86, 110, 74)),
    ((214, 62, 78), (38, 104, 178), (232, 142, 40), (46, 140, 96)),
    ((206, 120, 92), (116, 142, 130), (150, 116, 160), (190, 150, 96)),
    ((84, 148, 170), (226, 134, 110), (120, 130, 176), (108, 158, 118)),
    ((70, 128, 178), (198, 92, 86), (232, 176, 72), (130, 104, 160)),
)


@dataclass(frozen=True, slots=True)
class CorpusConfig:
    """The number and size of the videos, and their seed.

    Attributes:
        num_train, num_test: videos per split.
        seed: the only source of randomness.
        width, height: frame size in pixels, both even (4:2:0 video has half-size colour planes).
        busy_share: share of scenes with a busy background, 0 to 1.
        overlap_share: probability that an action begins while the one before it still runs.
    """

    num_train: int = 72
    num_test: int = 40
    seed: int = 0
    width: int = 160
    height: int = 120
    busy_share: float = 0.5
    overlap_share: float = 0.4

    def __post_init__(self) -> None:
        if min(self.num_train, self.num_test) < 0 or self.num_train + self.num_test == 0:
            raise ValueError(f"need at least one video, got num_train={self.num_train}, num_test={self.num_test}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")
        if min(self.width, self.height) < 16 or self.width % 2 or self.height % 2:
            raise ValueError(f"width and height must be even and at least 16, got {self.width}x{self.height}")
        for name in ("busy_share", "overlap_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class Action:
    """Class `class_id` is visible at times t with start_s <= t < end_s, in seconds."""

    class_id: int
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Prop:
    """One object of the room, which acts once or never.

    Attributes:
        kind: class id of the action that this object can perform.
        x, travel: centre and, for the ball, the distance it rolls; in 1/160 of the frame's width.
        color: main colour, RGB.
        variant: in [0, 1); decides rhythm, pattern and pose at rest.
        action: None for an object that is always at rest.
    """

    kind: int
    x: float
    travel: float
    color: Color
    variant: float
    action: Action | None

    @property
    def moving_span(self) -> tuple[float, float]:
        """The times in seconds between which the prop may move: cue, action and settling."""
        if self.action is None:
            return (float("inf"), float("inf"))
        return (self.action.start_s - CUE_S[self.kind], self.action.end_s + SETTLE_S[self.kind])


@dataclass(frozen=True, slots=True)
class Scene:
    """One video: `num_frames` frames of (height, width) at `fps`, a room, and its props in drawing order."""

    video_id: str
    split: Split
    width: int
    height: int
    fps: int
    num_frames: int
    busy: bool
    palette: int
    mirrored: bool
    decor_seed: int
    props: tuple[Prop, ...]

    @property
    def duration_s(self) -> float:
        return self.num_frames / self.fps

    @property
    def actions(self) -> tuple[Action, ...]:
        """The labels, sorted by start."""
        actions = (prop.action for prop in self.props if prop.action is not None)
        return tuple(sorted(actions, key=lambda action: action.start_s))


def plan_corpus(config: CorpusConfig) -> tuple[Scene, ...]:
    """Plan all videos of the corpus, train before test.

    Each video has its own random stream and does not depend on the number of videos. Only its id depends on the videos
    before it, because ids are unique.
    """
    taken: set[str] = set()
    scenes = []
    splits: tuple[tuple[Split, int], ...] = (("train", config.num_train), ("test", config.num_test))
    for stream, (split, count) in enumerate(splits):
        for index in range(count):
            rng = np.random.default_rng(np.random.SeedSequence([config.seed, stream, index]))
            scenes.append(_plan_scene(config, split, rng, taken))
    return tuple(scenes)


def _plan_scene(config: CorpusConfig, split: Split, rng: np.random.Generator, taken: set[str]) -> Scene:
    video_id = _draw_id(rng, taken)
    fps = int(rng.choice((24, 25, 30)))
    num_frames = round(float(rng.uniform(10.0, 15.0)) * fps)
    actions = _plan_actions(config, num_frames / fps, rng)
    return Scene(
        video_id=video_id,
        split=split,
        width=config.width,
        height=config.height,
        fps=fps,
        num_frames=num_frames,
        busy=bool(rng.random() < config.busy_share),
        palette=int(rng.integers(NUM_PALETTES)),
        mirrored=bool(rng.random() < 0.5),
        decor_seed=int(rng.integers(2**31)),
        props=_plan_props(actions, rng),
    )


def _draw_id(rng: np.random.Generator, taken: set[str]) -> str:
    alphabet = list(string.ascii_uppercase + string.digits)
    while True:
        video_id = "".join(rng.choice(alphabet, size=5))
        if video_id not in taken:
            taken.add(video_id)
            return video_id


def _plan_actions(config: CorpusConfig, duration_s: float, rng: np.random.Generator) -> dict[int, Action]:
    """Place one to three actions of different classes on the time line.

    A class is given up only after several tries, so that long actions are as common as short ones.
    """
    wanted = int(rng.choice((1, 2, 3), p=(0.15, 0.4, 0.45)))
    classes = rng.permutation(len(CLASS_NAMES)).tolist()[:wanted]
    while True:
        for _ in range(TRIES):
            actions = _draw_timeline(config, rng.permutation(classes).tolist(), rng)
            if max(action.end_s for action in actions.values()) <= duration_s - LEAD_OUT_S:
                return actions
        # A single action always ends in time.
        classes.pop()


def _draw_timeline(config: CorpusConfig, classes: list[int], rng: np.random.Generator) -> dict[int, Action]:
    actions: dict[int, Action] = {}
    idle_from, start = 0.0, 0.0
    for class_id in classes:
        length, gap = float(rng.uniform(*DURATION_S[class_id])), float(rng.uniform(*GAP_S))
        into_previous = float(rng.uniform(0.3, 0.7)) * (idle_from - start)
        overlaps = bool(actions) and bool(rng.random() < config.overlap_share)
        start = round(start + into_previous if overlaps else idle_from + gap, 2)
        actions[class_id] = Action(class_id, start, round(start + length, 2))
        idle_from = max(idle_from, actions[class_id].end_s)
    return actions


def _plan_props(actions: dict[int, Action], rng: np.random.Generator) -> tuple[Prop, ...]:
    """Place the props that act and some look-alikes that never do, in shuffled slots along the wall."""
    slots = iter(rng.permutation(SLOT_CENTERS).tolist())
    props = []
    for kind in (DOOR, FAN, LAMP, FLAG, PLANT, BALL):
        color = PROP_COLORS[kind][int(rng.integers(len(PROP_COLORS[kind])))]
        variant, present = float(rng.random()), bool(rng.random() < 0.5)
        if kind == BALL:
            x, travel = float(rng.uniform(16, 48)), float(rng.uniform(60, 90))
            if variant < 0.5:
                x, travel = x + travel, -travel
        else:
            x, travel = next(slots) + float(rng.uniform(-2, 2)), 0.0
        if kind in actions or present:
            props.append(Prop(kind, round(x, 2), round(travel, 2), color, variant, actions.get(kind)))
    return tuple(props)
