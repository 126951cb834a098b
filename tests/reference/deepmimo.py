"""DeepMIMO's channel by loops, after its published formulas (generator of version 3, `construct_deepmimo.py`)."""

import math

import numpy as np


def rotated(rotation_deg, theta_deg, phi_deg):
    """Zenith and azimuth [rad] in the axes of a panel turned by (x, y, z) degrees: `rotate_angles`."""
    theta, phi = math.radians(theta_deg), math.radians(phi_deg)
    gamma, beta, alpha = (math.radians(angle) for angle in rotation_deg)
    ca, sa, cb, sb, cg, sg = (f(x) for x in (phi - alpha, beta, gamma) for f in (math.cos, math.sin))
    ct, st = math.cos(theta), math.sin(theta)
    zenith = math.acos(cb * cg * ct + st * (sb * cg * ca - sg * sa))
    azimuth = math.atan2(cb * sg * ct + st * (sb * sg * ca + cg * sa), cb * st * ca - sb * ct)
    return zenith, azimuth


def panel(columns, rows):
    """Places of the antennas in their order, in spacings: `ant_indices`."""
    return [(0, y, z) for z in range(rows) for y in range(columns)]


def channel(paths, rotation_deg, shape, spacing, subcarriers, total, bandwidth):
    """Channel [ant, subcarrier] of one user; paths: (power, phase_deg, delay, azimuth_deg, zenith_deg) each."""
    places = panel(*shape)
    out = np.zeros((len(places), len(subcarriers)), complex)
    for power, phase, delay, azimuth, zenith in paths:
        theta, phi = rotated(rotation_deg, zenith, azimuth)
        wave = (math.sin(theta) * math.cos(phi), math.sin(theta) * math.sin(phi), math.cos(theta))
        for m, place in enumerate(places):
            steering = 2 * math.pi * spacing * sum(i * k for i, k in zip(place, wave, strict=True))
            for n, k in enumerate(subcarriers):
                turn = math.radians(phase) - 2 * math.pi / total * (delay * bandwidth) * k
                out[m, n] += math.sqrt(power / total) * np.exp(1j * (steering + turn))
    return out
