"""`render_frame`: a pure function from a planned scene and a time to pixels, and a painter for each kind of prop.

What stands still is drawn once and cached. A painter draws one prop at time t, in seconds; t is minus or plus infinity
before or after all that the prop does.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from skipreel.pipeline.synthetic.room import BASE_Y, INK, OVERSAMPLING, Brush, disturb, draw_room, draw_visitors, shade
from skipreel.pipeline.synthetic.scenes import BALL, CUE_S, DOOR, FAN, FLAG, LAMP, PLANT, SETTLE_S, Prop, Scene


def render_frame(scene: Scene, t_seconds: float) -> NDArray[np.uint8]:
    """Draw the scene at `t_seconds`; a scene that is not busy changes only in the moving spans of its props.

    Returns:
        (height, width, 3) uint8 RGB, a new array.
    """
    phases = tuple(_phase(prop, t_seconds) for prop in scene.props)
    image = _still_sheet(scene, phases).copy()
    brush = Brush(image)
    for prop, phase in zip(scene.props, phases, strict=True):
        if phase == 1:
            _PAINTERS[prop.kind](brush, prop, t_seconds)
    if scene.busy:
        draw_visitors(brush, scene, t_seconds)
    image = image.reduce(OVERSAMPLING)
    if scene.mirrored:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = np.array(image)
    return disturb(pixels, scene, t_seconds) if scene.busy else pixels


def _phase(prop: Prop, t: float) -> int:
    """0 before the prop moves, 1 while it may move, 2 after."""
    first, last = prop.moving_span
    return int(t >= first) + int(t >= last)


@lru_cache(maxsize=8)
def _still_sheet(scene: Scene, phases: tuple[int, ...]) -> Image.Image:
    image = draw_room(scene)
    brush = Brush(image)
    for prop, phase in zip(scene.props, phases, strict=True):
        if phase != 1:
            _PAINTERS[prop.kind](brush, prop, math.inf if phase else -math.inf)
    return image


def _draw_ball(brush: Brush, prop: Prop, t: float) -> None:
    """Rolls from x to x + travel at constant speed; at rest it lies at either end."""
    done, active = _progress(prop, t)
    x, y, r = prop.x + prop.travel * done, 104.0, 9.0
    brush.oval((0, 0, 0, 60), x, y + r, r * 0.9, 2)
    if active:
        back = -math.copysign(1.0, prop.travel)
        for k, length in enumerate((13, 19, 15)):
            line_y = y - 6 + 5 * k
            brush.line((255, 255, 255, 170), 1.2, (x + back * (r + 2), line_y), (x + back * (r + 2 + length), line_y))
        for k in range(3):
            brush.oval((255, 255, 255, 220 - 45 * k), x + back * (r + 1 + 6 * k), y + 6, 4.6 - 0.7 * k, 3.8 - 0.5 * k)
    turn = math.degrees(prop.travel * done / r) + 360 * prop.variant
    brush.oval(prop.color, x, y, r, r)
    for k in range(3):
        brush.slice(shade(prop.color, 1.7), x, y, r, turn + 120 * k, 60)
    brush.oval(prop.color, x, y, 2, 2)
    brush.oval((255, 255, 255, 120), x - 2.5, y - 3.5, 2.2, 1.6)


def _draw_door(brush: Brush, prop: Prop, t: float) -> None:
    """Swings open and stays open; some doors are ajar from the beginning. A light above announces the swing."""
    done, active = _progress(prop, t)
    closed_deg = 32.0 if prop.variant < 0.35 else 0.0
    angle = math.radians(closed_deg + (78.0 - closed_deg) * done)
    x, top, half = prop.x, 38.0, 12.0
    brush.box((246, 240, 230), x - half - 2, top - 2, x + half + 2, BASE_Y - 4)
    brush.box((255, 214, 132), x - half, top, x + half, BASE_Y - 4)
    left, sill = x - half, BASE_Y - 4
    brush.polygon((226, 168, 96), (left, sill), (x + half, sill), (x + half - 7, 74), (left + 7, 74))
    edge, drop = x - half + 2 * half * math.cos(angle), 7 * math.sin(angle)
    brush.polygon(prop.color, (left, top), (edge, top - drop * 0.4), (edge, sill + drop), (left, sill))
    inset = (edge - left) * 0.18
    for y0, y1 in ((44, 58), (63, 80)):
        brush.box(shade(prop.color, 0.82), left + inset, y0, edge - inset, y1)
    brush.oval((240, 200, 110), edge - inset * 0.5, 62, max(0.6, 1.4 * math.cos(angle)), 1.4)
    announced = prop.action is not None and -CUE_S[DOOR] <= t - prop.action.start_s < 0
    brush.box(INK, x - 5, 30, x + 5, 35, 2)
    brush.oval((90, 240, 130) if announced or active else (120, 112, 112), x, 32.5, 3.6, 1.9)
    if announced or active:
        brush.oval((90, 240, 130, 60), x, 32.5, 9, 5)


def _draw_flag(brush: Brush, prop: Prop, t: float) -> None:
    """Hangs down its pole until waved, then streams out in a running wave."""
    _, active = _progress(prop, t)
    x, top, length = prop.x - 11, 38.0, 25.0
    brush.oval((0, 0, 0, 50), x, BASE_Y, 6, 1.6)
    brush.box((120, 100, 84), x - 4, BASE_Y - 2.5, x + 4, BASE_Y, 1)
    brush.line((226, 214, 196), 1.6, (x, top - 3), (x, BASE_Y - 2))
    brush.oval((236, 190, 90), x, top - 4, 1.8, 1.8)
    lift = 0.0
    if active and prop.action is not None:
        lift = 0.35 + 0.65 * min(1.0, (t - prop.action.start_s) / 0.3, (prop.action.end_s - t) / 0.3)
    upper, lower = [], []
    for k in range(9):
        along = k / 8
        wave = lift * 4.0 * along**0.6 * math.sin(7.5 * along - 2 * math.pi * 1.6 * t) if lift else 0.0
        sag = (1 - lift) * along * 19
        at = x + along * (length * lift + 7 * (1 - lift))
        upper.append((at, top + sag + wave))
        lower.append((at - 3 * (1 - lift) * along, top + 15 + sag * 1.1 + wave))
    middle = [(u[0] * 0.5 + v[0] * 0.5, u[1] * 0.5 + v[1] * 0.5) for u, v in zip(upper, lower, strict=True)]
    brush.polygon(prop.color, *upper, *reversed(middle))
    brush.polygon(shade(prop.color, 1.75), *middle, *reversed(lower))


def _draw_lamp(brush: Brush, prop: Prop, t: float) -> None:
    """Flashes, dark in between; at rest it is dark or, as a look-alike, softly lit."""
    _, active = _progress(prop, t)
    lit_at_rest = prop.variant < 0.35
    lit = lit_at_rest
    if active and prop.action is not None:
        half_period = 0.25 + 0.15 * prop.variant
        lit = int((t - prop.action.start_s) / half_period) % 2 == 0
    x, y = prop.x, 46.0
    if lit:
        for r, alpha in ((31, 34), (23, 44), (16, 60)):
            brush.oval((255, 236, 150, alpha), x, y + 8, r, r)
    if lit and active:
        for k in range(12):
            dx, dy = math.cos(math.pi * k / 6), math.sin(math.pi * k / 6)
            brush.line((255, 250, 214), 1.5, (x + 15 * dx, y + 4 + 15 * dy), (x + 22 * dx, y + 4 + 22 * dy))
    brush.oval((0, 0, 0, 50), x, BASE_Y, 7, 1.8)
    brush.box(INK, x - 5, BASE_Y - 2, x + 5, BASE_Y, 1)
    brush.line(INK, 1.4, (x, y + 12), (x, BASE_Y - 1))
    fill = (255, 228, 128) if lit else shade(prop.color, 0.85)
    brush.polygon(fill, (x - 6, y - 4), (x + 6, y - 4), (x + 11, y + 12), (x - 11, y + 12))
    brush.polygon(shade(fill, 0.88), (x - 10.2, y + 9.5), (x + 10.2, y + 9.5), (x + 11, y + 12), (x - 11, y + 12))


def _draw_fan(brush: Brush, prop: Prop, t: float) -> None:
    """Sharp blades at rest, a blurred disc with turning glints while spinning."""
    _, active = _progress(prop, t)
    x, y, r = prop.x, 56.0, 13.0
    brush.oval((0, 0, 0, 50), x, BASE_Y, 9, 2)
    brush.box(shade(prop.color, 0.7), x - 7, BASE_Y - 3, x + 7, BASE_Y, 1.4)
    brush.line(shade(prop.color, 0.7), 2, (x, y), (x, BASE_Y - 2))
    brush.oval(shade(prop.color, 0.7), x, y, r + 1.4, r + 1.4)
    brush.oval((246, 246, 242), x, y, r, r)
    turn = 120 * prop.variant
    if active and prop.action is not None:
        turn += 360 * 1.7 * (t - prop.action.start_s)
        brush.oval((*prop.color, 120), x, y, r - 1, r - 1)
        for k in range(3):
            brush.slice((*prop.color, 110), x, y, r - 1, turn + 120 * k, 80)
    else:
        for k in range(3):
            brush.slice(prop.color, x, y, r - 1, turn + 120 * k, 46)
    brush.oval(INK, x, y, 2.6, 2.6)
    brush.oval((255, 255, 255, 150), x - 0.8, y - 0.8, 0.9, 0.9)


def _draw_plant(brush: Brush, prop: Prop, t: float) -> None:
    """A can on a shelf tilts (the cue), drops fall on the plant below, then the can swings back."""
    _, active = _progress(prop, t)
    x, tilt = prop.x + 1, 0.0
    if prop.action is not None and math.isfinite(t):
        rise = (t - prop.action.start_s + CUE_S[PLANT]) / CUE_S[PLANT]
        fall = (prop.action.end_s + SETTLE_S[PLANT] - t) / SETTLE_S[PLANT]
        tilt = min(1.0, max(0.0, rise), max(0.0, fall))
    brush.box((150, 118, 92), x - 9, BASE_Y - 9, x + 1, BASE_Y, 0.5)
    brush.box((196, 104, 74), x - 9.5, BASE_Y - 18, x + 1.5, BASE_Y - 9, 1)
    for dx, dy in ((-8, -24), (0, -24), (-4, -28), (-7, -20), (-1, -20)):
        brush.oval((84, 148, 92) if dx % 2 else (104, 170, 104), x + dx, BASE_Y + dy, 4.2, 3.4)
    brush.box((150, 118, 92), x - 3, 51, x + 12, 53)
    brush.polygon((124, 96, 76), (x + 7, 53), (x + 10, 53), (x + 10, 57))
    _draw_can(brush, prop, x + 4, 45.0, tilt)
    if active:
        for k in range(9):
            fraction = (t * 1.9 + k / 9) % 1.0
            size = 1.0 + 0.5 * fraction
            brush.oval(
                (64, 148, 226), x - 6 - 2.5 * fraction + 1.6 * (k % 3 - 1) * fraction, 49 + 15 * fraction, size, 1.7
            )


def _draw_can(brush: Brush, prop: Prop, x: float, y: float, tilt: float) -> None:
    cos, sin = math.cos(-0.75 * tilt), math.sin(-0.75 * tilt)

    def at(dx: float, dy: float) -> tuple[float, float]:
        return x + cos * dx - sin * dy, y + sin * dx + cos * dy - 3 * tilt

    brush.line(shade(prop.color, 0.8), 1.6, at(5, -4), at(9, -2), at(8, 4), at(5, 4))
    brush.polygon(shade(prop.color, 0.85), at(-4, 4), at(-5, 0), at(-11, -5), at(-12, -3))
    brush.polygon(prop.color, at(-5, -5), at(5, -5), at(6, 6), at(-6, 6))
    brush.polygon(shade(prop.color, 1.35), at(-5, -5), at(5, -5), at(5.2, -3), at(-5.2, -3))


_PAINTERS: dict[int, Callable[[Brush, Prop, float], None]] = {
    BALL: _draw_ball,
    DOOR: _draw_door,
    FLAG: _draw_flag,
    LAMP: _draw_lamp,
    FAN: _draw_fan,
    PLANT: _draw_plant,
}


def _progress(prop: Prop, t: float) -> tuple[float, bool]:
    """The share of the action that is done (0 to 1), and whether it happens at time t."""
    if prop.action is None:
        return 0.0, False
    start, end = prop.action.start_s, prop.action.end_s
    return min(1.0, max(0.0, (t - start) / (end - start))), start <= t < end
