"""Draws the image of a ledger problem: one coloured shape with a number in each cell of a grid."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import cache

from PIL import Image, ImageDraw, ImageFont

CELL = 32
"""Pixels per side: one cell is one image token (patch 16, merged 2 x 2)."""
COLUMNS, ROWS = 3, 2

_RGB = {
    "red": (214, 40, 40),
    "blue": (38, 84, 201),
    "green": (34, 139, 58),
    "yellow": (240, 200, 30),
    "purple": (128, 50, 160),
    "orange": (245, 125, 20),
}
_DARK_TEXT = {"yellow", "orange"}
_CORNERS = {"triangle": (3, -90), "diamond": (4, -90), "square": (4, -45)}


@dataclass(frozen=True, slots=True)
class Cell:
    """A coloured shape with a number from 1 to 9; a problem's image shows each look once."""

    color: str
    shape: str
    number: int

    @property
    def name(self) -> str:
        return f"{self.color} {self.shape}"


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def draw(cells: tuple[Cell, ...], seed: int) -> Image.Image:
    """Render cells row by row; position, size, shade and noise vary with the seed."""
    rng = random.Random(seed)
    background = rng.randint(225, 255)
    image = Image.new("RGB", (COLUMNS * CELL, ROWS * CELL), (background,) * 3)
    canvas = ImageDraw.Draw(image)
    for index, cell in enumerate(cells):
        x = (index % COLUMNS + 0.5) * CELL + rng.uniform(-2, 2)
        y = (index // COLUMNS + 0.5) * CELL + rng.uniform(-2, 2)
        _draw_cell(canvas, cell, (x, y), rng)
    return image


def _draw_cell(canvas: ImageDraw.ImageDraw, cell: Cell, center: tuple[float, float], rng: random.Random) -> None:
    radius = rng.uniform(12.0, 13.5)
    red, green, blue = (min(255, max(0, channel + rng.randint(-12, 12))) for channel in _RGB[cell.color])
    fill = (red, green, blue)
    x, y = center
    if cell.shape == "circle":
        canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
    else:
        canvas.polygon(_outline(cell.shape, center, radius), fill=fill)
    text = (20, 20, 20) if cell.color in _DARK_TEXT else (255, 255, 255)
    # The triangle is wide only below its centre; the number moves there to stay on the shape.
    drop = radius * 0.2 if cell.shape == "triangle" else 0.0
    canvas.text((x, y + drop), str(cell.number), fill=text, font=_font(14), anchor="mm")


def _outline(shape: str, center: tuple[float, float], radius: float) -> list[tuple[float, float]]:
    x, y = center
    if shape == "star":
        radii = [radius * 1.1 if corner % 2 == 0 else radius * 0.62 for corner in range(10)]
        return [_polar(x, y, r, -90 + 36 * corner) for corner, r in enumerate(radii)]
    corners, first = _CORNERS[shape]
    reach = radius * (1.15 if corners != 3 else 1.2)
    return [_polar(x, y, reach, first + 360 / corners * corner) for corner in range(corners)]


def _polar(x: float, y: float, radius: float, degrees: float) -> tuple[float, float]:
    angle = math.radians(degrees)
    return x + radius * math.cos(angle), y + radius * math.sin(angle)
