"""Path-to-OFDM channel against Sionna's `cir_to_ofdm_channel`: sum of plane waves over antennas and subcarriers.

Sionna's function takes the coefficient of every path at every antenna, ours the direction of the path. Both ways of
comparing are shown: Sionna with its coefficients given (it does less), and with their forming in it (the same work).
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.frame import Case, installed
from sensing import arrays, ofdm
from sensing.channel import channel_response
from sensing.containers import Deployment, Paths
from sensing.simulation import build_deployment

INSTALL = "pip install --no-deps sionna importlib-resources"
PATHS = 10


def cases(tiny: bool) -> Iterator[Case]:
    """Ten paths, an 8 x 8 array, 64 and 256 subcarriers; 64 stations at once (16 scenes of four)."""
    name = installed("sionna")
    for subcarriers in (6,) if tiny else (64, 256):
        deployment, paths = _problem(3 if tiny else 16, subcarriers)
        size = f"{paths.delay.numel() // PATHS} stations, {PATHS} paths, 64 antennas, {subcarriers} subcarriers"
        for dtype, bits in ((torch.complex128, 128), (torch.complex64, 64)):

            def ours(d: Deployment = deployment, p: Paths = paths, t: torch.dtype = dtype) -> Tensor:
                return channel_response(p, d, t)

            for given in (True, False):
                yield Case(
                    what=f"channel, complex{bits}, " + ("peer is given its coefficients" if given else "same work"),
                    size=size,
                    ours=ours,
                    peer=_sionna(deployment, paths, dtype, given) if name else None,
                    peer_name=name,
                    tolerance=1e-11 if bits == 128 else 2e-4,
                    per=(paths.delay.numel() / PATHS, "station"),
                    target=None if given else 2.0,
                    note=""
                    if bits == 128
                    else "ours forms phases in double, the peer in single: the error is the peer's",
                )


def _problem(scenes: int, subcarriers: int) -> tuple[Deployment, Paths]:
    """Four stations in a hall and random paths in front of them."""
    deployment = build_deployment(
        [[0, 0, 6], [40, 0, 6], [40, 40, 6], [0, 40, 6]],
        arrays.upa(8, 8),
        ofdm.pilot_frequencies(subcarriers, 120e3, 1),
        28e9,
        1e-8,
        target=[20, 20, 4],
    )
    generator = torch.Generator().manual_seed(0)
    shape = (scenes, 4, PATHS)
    direction = torch.randn(*shape, 3, dtype=torch.float64, generator=generator)
    gain = torch.randn(shape, dtype=torch.complex128, generator=generator)
    delay = 1e-6 * torch.rand(shape, dtype=torch.float64, generator=generator)
    direction = direction / direction.norm(dim=-1, keepdim=True)
    return deployment, Paths(delay, direction, gain, torch.ones(shape, dtype=torch.bool))


def _sionna(deployment: Deployment, paths: Paths, dtype: torch.dtype, given: bool):
    from sionna.phy.channel import cir_to_ofdm_channel

    real = torch.float64 if dtype == torch.complex128 else torch.float32
    frequencies = deployment.pilot_freq.to(real)
    antenna = 2.0 * math.pi / deployment.wavelength * deployment.antenna_global
    batch = paths.delay.shape[:2]
    delay = paths.delay.to(real).reshape(-1, 1, 1, PATHS)

    def coefficients() -> Tensor:
        phase = (antenna @ paths.direction.mT).to(real)
        a = paths.gain.to(dtype)[..., None, :] * torch.exp(torch.complex(torch.zeros_like(phase), phase))
        return a.reshape(-1, 1, len(deployment.antenna_local), 1, 1, PATHS, 1)

    fixed = coefficients()

    def run() -> Tensor:
        h = cir_to_ofdm_channel(frequencies, fixed if given else coefficients(), delay)
        return h[:, 0, :, 0, 0, 0].reshape(*batch, h.shape[2], h.shape[-1])

    return run
