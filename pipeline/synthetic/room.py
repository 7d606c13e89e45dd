"""Rooms of the generated corpus: palettes, walls, furniture that never acts, and the disturbances of a busy room.

Shapes are placed on a sheet of 160 x 120 units, whatever the size of the frame.
"""

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from skipreel.pipeline.synthetic.scenes import BALL, PLANT, SLOT_CENTERS, Color, Scene

UNITS = (160.0, 120.0)
FLOOR_Y = 84.0
BASE_Y = 91.0
# Frames are drawn larger by this factor and averaged down, for soft edges.
OVERSAMPLING = 2

# Wall, floor, trim, dark wood, sky: one harmony per room.
PALETTES: tuple[tuple[Color, Color, Color, Color, Color], ...] = (
    ((207, 216, 196), (184, 146, 112), (250, 246, 236), (104, 84, 72), (186, 219, 232)),
    ((245, 218, 200), (160, 120, 98), (255, 247, 238), (112, 78, 66), (196, 226, 236)),
    ((194, 214, 224), (202, 172, 140), (248, 250, 250), (84, 88, 98), (228, 240, 246)),
    ((218, 208, 226), (152, 132, 138), (250, 246, 252), (92, 78, 96), (204, 222, 240)),
    ((246, 230, 188), (174, 126, 92), (255, 250, 236), (110, 80, 58), (190, 224, 226)),
    ((112, 124, 154), (98, 86, 102), (206, 208, 220), (58, 54, 72), (58, 68, 108)),
)
INK = (62, 54, 58)


class Brush:
    """Draws in sheet units on an image of any size; a fourth colour component is opacity."""

    def __init__(self, image: Image.Image) -> None:
        self._draw = ImageDraw.Draw(image, "RGBA")
        self._sx, self._sy = image.width / UNITS[0], image.height / UNITS[1]

    def _points(self, points: list[tuple[float, float]]) -> list[tuple[float, float]]:
        return [(x * self._sx, y * self._sy) for x, y in points]

    def polygon(self, fill: Any, *points: tuple[float, float]) -> None:
        self._draw.polygon(self._points(list(points)), fill=fill)

    def line(self, fill: Any, width: float, *points: tuple[float, float]) -> None:
        self._draw.line(self._points(list(points)), fill=fill, width=max(1, round(width * self._sx)), joint="curve")

    def box(self, fill: Any, x0: float, y0: float, x1: float, y1: float, radius: float = 0.0) -> None:
        box = (x0 * self._sx, y0 * self._sy, x1 * self._sx, y1 * self._sy)
        self._draw.rounded_rectangle(box, radius=radius * self._sx, fill=fill)

    def oval(self, fill: Any, x: float, y: float, rx: float, ry: float) -> None:
        box = ((x - rx) * self._sx, (y - ry) * self._sy, (x + rx) * self._sx, (y + ry) * self._sy)
        self._draw.ellipse(box, fill=fill)

    def slice(self, fill: Any, x: float, y: float, r: float, start_deg: float, sweep_deg: float) -> None:
        box = ((x - r) * self._sx, (y - r) * self._sy, (x + r) * self._sx, (y + r) * self._sy)
        self._draw.pieslice(box, start_deg, start_deg + sweep_deg, fill=fill)


def shade(color: Color, factor: float) -> Color:
    """Darken (factor < 1) or lighten towards white (factor > 1)."""
    if factor <= 1:
        r, g, b = (round(c * factor) for c in color)
    else:
        r, g, b = (round(c + (255 - c) * (factor - 1)) for c in color)
    return r, g, b


def draw_room(scene: Scene) -> Image.Image:
    """Draw the room with furniture that never acts, at the oversampled size."""
    wall, floor, trim, wood, sky = PALETTES[scene.palette]
    rng = np.random.default_rng(scene.decor_seed)
    image = Image.new("RGB", (scene.width * OVERSAMPLING, scene.height * OVERSAMPLING), wall)
    brush = Brush(image)
    for stripe in range(0, 160, 16):
        brush.box((*shade(wall, 1.25), 70), stripe, 0, stripe + 7, FLOOR_Y)
    brush.box(floor, 0, FLOOR_Y, 160, 120)
    for row, y in enumerate((92, 101, 111)):
        brush.line((*shade(floor, 0.86), 160), 0.6, (0, y), (160, y))
        for board in range(-20 + 17 * (row % 2), 170, 41):
            brush.line((*shade(floor, 0.86), 160), 0.6, (board, y), (board - 3, y + 10))
    brush.box(shade(trim, 0.96), 0, FLOOR_Y - 3, 160, FLOOR_Y)
    brush.oval((*shade(wall, 0.78), 150), 80, 106, float(rng.uniform(42, 56)), 10)
    brush.oval((*shade(wall, 1.3), 120), 80, 106, 36, 6.5)

    taken = [prop.x for prop in scene.props if prop.kind != BALL]
    free = [x for x in SLOT_CENTERS if all(abs(x - other) > 4 for other in taken)]
    low = [prop.x for prop in scene.props if prop.kind == PLANT]
    window_x = free.pop(int(rng.integers(len(free)))) if free else (low[0] if low else 80.0)
    _draw_window(brush, window_x, sky, trim)
    for x in free:
        (_draw_shelf, _draw_armchair, _draw_picture)[int(rng.integers(3))](brush, x, rng, wood)
    return image


def _draw_window(brush: Brush, x: float, sky: Color, trim: Color) -> None:
    brush.box(shade(trim, 0.9), x - 13, 13, x + 13, 46, 1)
    brush.box(sky, x - 11, 15, x + 11, 44)
    brush.oval((255, 255, 255, 150), x - 4, 24, 6, 2.4)
    brush.oval((255, 255, 255, 150), x + 1, 22, 5, 3)
    brush.polygon((120, 160, 120), (x - 11, 44), (x - 11, 38), (x - 3, 35), (x + 4, 39), (x + 11, 36), (x + 11, 44))
    brush.line(trim, 1.4, (x, 15), (x, 44))
    brush.line(trim, 1.4, (x - 11, 29), (x + 11, 29))
    brush.box(shade(trim, 0.84), x - 15, 46, x + 15, 48.5, 1)


def _draw_shelf(brush: Brush, x: float, rng: np.random.Generator, wood: Color) -> None:
    brush.box(wood, x - 13, 44, x + 13, BASE_Y, 1)
    for y in (47, 62, 77):
        brush.box(shade(wood, 0.72), x - 11, y, x + 11, y + 12)
        at = x - 10.0
        while at < x + 6:
            width, height = float(rng.uniform(2, 4)), float(rng.uniform(7, 11))
            tint = ((196, 110, 92), (222, 184, 120), (110, 140, 136), (146, 124, 150))[int(rng.integers(4))]
            brush.box(tint, at, y + 12 - height, at + width, y + 12)
            at += width + 0.6


def _draw_armchair(brush: Brush, x: float, rng: np.random.Generator, wood: Color) -> None:
    color = ((150, 112, 110), (104, 130, 128), (140, 132, 104))[int(rng.integers(3))]
    brush.oval((0, 0, 0, 40), x, BASE_Y + 1, 15, 2.4)
    brush.box(wood, x - 11, 84, x - 9, BASE_Y)
    brush.box(wood, x + 9, 84, x + 11, BASE_Y)
    brush.box(color, x - 11, 56, x + 11, 84, 4)
    brush.box(shade(color, 1.15), x - 9, 70, x + 9, 80, 2)
    brush.box(shade(color, 0.85), x - 14, 66, x - 8, 87, 2.5)
    brush.box(shade(color, 0.85), x + 8, 66, x + 14, 87, 2.5)


def _draw_picture(brush: Brush, x: float, rng: np.random.Generator, wood: Color) -> None:
    y = float(rng.uniform(22, 32))
    brush.box(wood, x - 10, y, x + 10, y + 16, 0.5)
    brush.box((244, 238, 226), x - 8.5, y + 1.5, x + 8.5, y + 14.5)
    brush.polygon((126, 156, 150), (x - 8.5, y + 14.5), (x - 2, y + 6), (x + 4, y + 14.5))
    brush.polygon((186, 140, 120), (x - 2, y + 14.5), (x + 4, y + 8), (x + 8.5, y + 14.5))
    brush.oval((236, 182, 96), x + 4.5, y + 5, 1.8, 1.8)


def draw_visitors(brush: Brush, scene: Scene, t: float) -> None:
    """Draw what moves in a busy room without being an action: drifting balloons and a cat."""
    rng = np.random.default_rng(scene.decor_seed + 1)
    for _ in range(2):
        speed, begin, height, sway = rng.uniform((4, 0, 14, 0), (9, 220, 34, 6.28)).tolist()
        color = ((222, 106, 96), (240, 190, 90), (120, 170, 200), (170, 130, 180))[int(rng.integers(4))]
        x, y = (begin + speed * t) % 220 - 30, height + 3 * math.sin(0.9 * t + sway)
        brush.line((90, 80, 80, 160), 0.5, (x, y + 7), (x + math.sin(1.3 * t + sway), y + 20))
        brush.oval((*color, 225), x, y, 5.5, 7)
        brush.oval((255, 255, 255, 110), x - 1.8, y - 2.6, 1.4, 2)
    speed, begin = rng.uniform((9, 0), (16, 240)).tolist()
    _draw_cat(brush, (begin + speed * t) % 240 - 40, speed * t / 3, shade(PALETTES[scene.palette][3], 0.8))


def _draw_cat(brush: Brush, x: float, step: float, color: Color) -> None:
    y = 112.0
    for dx, phase in ((-6, 0.0), (-4, math.pi), (5, math.pi / 2), (7, -math.pi / 2)):
        brush.line(color, 1.6, (x + dx, y), (x + dx + 2 * math.sin(step + phase), y + 6))
    brush.line(color, 1.6, (x - 9, y - 1), (x - 13, y - 6), (x - 12 + math.sin(step / 2), y - 11))
    brush.oval(color, x, y - 1, 10, 4.2)
    brush.oval(color, x + 10, y - 5, 4.2, 3.8)
    brush.polygon(color, (x + 6.5, y - 7), (x + 7.2, y - 12), (x + 10, y - 8))
    brush.polygon(color, (x + 10.5, y - 8), (x + 13, y - 12), (x + 13.8, y - 6.5))
    brush.oval((250, 236, 150), x + 11.6, y - 5.6, 0.9, 0.9)


@lru_cache(maxsize=2)
def _noise(scene: Scene) -> NDArray[np.int16]:
    rng = np.random.default_rng(scene.decor_seed + 2)
    return rng.normal(0, 3, (scene.height + 16, scene.width + 16, 1)).round().astype(np.int16)


def disturb(pixels: NDArray[np.uint8], scene: Scene, t: float) -> NDArray[np.uint8]:
    """Add sensor noise and flickering light, which depend on the frame's number alone, to (H, W, 3) uint8 pixels."""
    index = round(t * scene.fps)
    flicker = 4 * math.sin(2.1 * t + scene.decor_seed % 7) + 5 * math.sin(23.0 * t)
    dy, dx = index * 7 % 16, index * 11 % 16
    noise = _noise(scene)[dy : dy + scene.height, dx : dx + scene.width] + np.int16(round(flicker))
    return np.clip(pixels + noise, 0, 255).astype(np.uint8)
