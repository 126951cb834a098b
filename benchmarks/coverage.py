"""Map of the position error bound of monostatic stations against equation 2.10 in plain loops and in numpy.

The loop is what one writes first: a 2 x 2 matrix for each point, summed over stations and inverted. The numpy version
does the same for all points at once. Asked for: a million points and four stations in 2 s.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from benchmarks.frame import Case
from sensing.arrays import ula
from sensing.bounds.coverage import build_area, coverage_map
from sensing.bounds.radar import build_radar
from sensing.units import SPEED_OF_LIGHT

INSTALL = None
SIDE, SUBCARRIERS, SPACING, SYMBOLS, ANTENNAS = 72.0, 3168, 120e3, 1120, 50
CARRIER, EIRP, RHO, NOISE = 28e9, 20.0, 0.3, 4e-20
STATIONS = [[0.0, 0.0], [SIDE, 0.0], [SIDE, SIDE], [0.0, SIDE]]
STATIONS += [[SIDE / 2, 0.0], [SIDE, SIDE / 2], [SIDE / 2, SIDE], [0.0, SIDE / 2]]


def cases(tiny: bool) -> Iterator[Case]:
    """Paper 2's square; the loop on few points, numpy on a million; then other numbers of points and stations."""
    array, middle = ula(ANTENNAS), [SIDE / 2, SIDE / 2]

    def case(side: int, stations: int, peer: str) -> Case:
        model = build_radar(
            STATIONS[:stations], array=array, carrier_hz=CARRIER, num_subcarriers=SUBCARRIERS, spacing_hz=SPACING,
            num_symbols=SYMBOLS, symbol_s=8.93e-6, eirp_w=EIRP, sensing_fraction=RHO, noise_psd=NOISE, target=middle,
        )  # fmt: skip
        area = build_area(model.bs_position, [[0, 0], [SIDE, SIDE]], num_points=[side, side])
        x, y = area.x_m.numpy(), area.y_m.numpy()
        theirs = {
            "plain loop": lambda: loop(x, y, stations),
            f"numpy {np.__version__}": lambda: with_numpy(x, y, stations),
        }
        return Case(
            what="map of the bound, float64",
            size=f"{side * side} points, {stations} stations",
            ours=lambda: coverage_map(model, area).peb_m,
            peer=theirs.get(peer),
            peer_name=peer,
            tolerance=1e-8,
            error=relative,
        )

    numpy = f"numpy {np.__version__}"
    if tiny:
        yield case(8, 3, "plain loop")
        yield case(8, 4, numpy)
        return
    yield case(64, 4, "plain loop")
    yield case(1000, 4, numpy)
    for side, stations in ((316, 4), (1000, 1), (1000, 2), (1000, 8)):
        yield case(side, stations, "")


def relative(ours: Tensor, theirs: Tensor) -> float:
    """Largest error of a point in units of its own bound: the values span decades."""
    ours, theirs = torch.as_tensor(ours), torch.as_tensor(theirs)
    return float(((ours - theirs).abs() / theirs).max())


def terms(r: np.ndarray | float) -> tuple[np.ndarray | float, float, float]:
    """Echo SNR, and delay and direction information over it, in metres and broadside (equations 2.5 and 2.6)."""
    gamma = RHO * EIRP / SUBCARRIERS * SPEED_OF_LIGHT**2 / ((4 * math.pi) ** 3 * CARRIER**2 * r**4 * NOISE * SPACING)
    samples = SYMBOLS * SUBCARRIERS * ANTENNAS
    delay = samples * (4 * math.pi * SPACING / SPEED_OF_LIGHT) ** 2 * (SUBCARRIERS**2 - 1) / 6
    return gamma, delay, samples * math.pi**2 * (ANTENNAS**2 - 1) / 6


def loop(x: np.ndarray, y: np.ndarray, stations: int) -> np.ndarray:
    """Point by point and station by station (equation 2.10)."""
    peb = np.empty((len(y), len(x)))
    for row, at_y in enumerate(y.tolist()):
        for column, at_x in enumerate(x.tolist()):
            total = np.zeros((2, 2))
            for bx, by in STATIONS[:stations]:
                r = math.hypot(at_x - bx, at_y - by)
                turn = math.atan2(SIDE / 2 - by, SIDE / 2 - bx)
                theta = math.atan2(at_y - by, at_x - bx) - turn
                gamma, delay, direction = terms(r)
                u = np.array([(at_x - bx) / r, (at_y - by) / r])
                v = np.array([-u[1], u[0]])
                total += gamma * (delay * np.outer(u, u) + direction * (math.cos(theta) / r) ** 2 * np.outer(v, v))
            peb[row, column] = math.sqrt(np.trace(np.linalg.inv(total)))
    return peb


def with_numpy(x: np.ndarray, y: np.ndarray, stations: int) -> np.ndarray:
    """All points at once, the inverse written out."""
    xx = xy = yy = 0.0
    for bx, by in STATIONS[:stations]:
        dx, dy = x[None, :] - bx, y[:, None] - by
        r = np.hypot(dx, dy)
        theta = np.arctan2(dy, dx) - math.atan2(SIDE / 2 - by, SIDE / 2 - bx)
        gamma, delay, direction = terms(r)
        along, across = gamma * delay, gamma * direction * (np.cos(theta) / r) ** 2
        ux, uy = dx / r, dy / r
        xx = xx + along * ux**2 + across * uy**2
        xy = xy + (along - across) * ux * uy
        yy = yy + along * uy**2 + across * ux**2
    return np.sqrt((xx + yy) / (xx * yy - xy**2))
