"""Shapes and a canvas to paint them on, in NumPy: what toycats.py draws with.

Each shape is a *signed distance*: how far a point lies outside it (negative inside). Divided by the
width of a pixel it says how much of the pixel is covered, so edges are smooth at any size. Source:
Inigo Quilez, "2D distance functions".
"""

import numpy as np

Point = tuple[float, float]
Length = np.ndarray | float


class Canvas:
    """Pictures (B, 3, H, W) in [0, 1], and where each pixel's centre lies in its cat's own frame.

    Shapes are signed distances (B, H, W). Given x = side_x (left and right folded onto each other)
    one formula draws the left part and the right part; given x they are drawn once.
    """

    def __init__(self, image: np.ndarray, x: np.ndarray, y: np.ndarray, pixel: np.ndarray) -> None:
        self.image, self.x, self.y = image, x, y  # x, y (B, H, W)
        self.pixel = pixel  # its width, (B, 1, 1)
        self.side_x = abs(x)

    def rows(self, low: float, high: float) -> "Canvas":
        """The part of the canvas between two heights: painting less is faster."""
        hit = np.flatnonzero(((self.y > low) & (self.y < high)).any(axis=(0, 2)))
        part = slice(hit[0], hit[-1] + 1)
        return Canvas(self.image[:, :, part], self.x[:, part], self.y[:, part], self.pixel)

    def cover(self, distance: np.ndarray) -> np.ndarray:
        """Share of each pixel that a shape covers, from its signed distance."""
        return np.clip(0.5 - distance / self.pixel, 0, 1)

    def thin(self, distance: np.ndarray, half_width: Length) -> np.ndarray:
        """The same for a line, from the distance to its middle, be it thinner than a pixel."""
        distance, width = distance / self.pixel, half_width / self.pixel
        return np.clip(0.5 + width - distance, 0, 1) - np.clip(0.5 - width - distance, 0, 1)

    def paint(self, share: np.ndarray, colour: np.ndarray) -> None:
        """Lay a colour, (3,) or (B, 3), over the picture where share (B, H, W) says so."""
        colour = np.broadcast_to(colour, (len(self.image), 3))
        for channel in range(3):
            layer = self.image[:, channel]
            layer += share * (colour[:, channel, None, None] - layer)

    def circle(self, x: np.ndarray, cx: float, cy: float, radius: float) -> np.ndarray:
        """Distance to a circle around (cx, cy)."""
        u, v = x - cx, self.y - cy
        return np.sqrt(u * u + v * v) - radius

    def ellipse(self, x: np.ndarray, cx: float, cy: float, rx: Length, ry: Length) -> np.ndarray:
        """Distance to an ellipse around (cx, cy) with half axes rx and ry."""
        u, v = (x - cx) / rx, (self.y - cy) / ry
        length = np.sqrt(u * u + v * v)
        u, v = u / rx, v / ry
        return length * (length - 1) / (np.sqrt(u * u + v * v) + 1e-6)  # right near the edge

    def stroke(self, x: np.ndarray, a: Point, b: Point, start: float, end: float) -> np.ndarray:
        """A line from a to b whose half width goes from start to end."""
        u, v, du, dv = x - a[0], self.y - a[1], b[0] - a[0], b[1] - a[1]
        along = np.clip((u * du + v * dv) / (du * du + dv * dv), 0, 1)
        u, v = u - du * along, v - dv * along
        return np.sqrt(u * u + v * v) - (start + (end - start) * along)

    def leaf(self, x: np.ndarray, a: Point, tip: Point, b: Point, bulge: float,
             rounding: float) -> np.ndarray:
        """The corner at tip between arcs of radius bulge from a to tip and from tip to b."""
        p, q = self._arc(x, a, tip, bulge) + rounding, self._arc(x, tip, b, bulge) + rounding
        out_p, out_q = np.maximum(p, 0), np.maximum(q, 0)
        outside, inside = np.sqrt(out_p * out_p + out_q * out_q), np.minimum(np.maximum(p, q), 0)
        return outside + inside - rounding

    def _arc(self, x: np.ndarray, a: Point, b: Point, radius: float) -> np.ndarray:
        du, dv = b[0] - a[0], b[1] - a[1]
        chord = (du * du + dv * dv) ** 0.5
        depth = (radius * radius - chord * chord / 4) ** 0.5 / chord
        middle_x, middle_y = (a[0] + b[0]) / 2, (a[1] + b[1]) / 2
        return self.circle(x, middle_x - dv * depth, middle_y + du * depth, radius)
