"""MUSIC spectrum over azimuth and elevation against pyroomacoustics: from a covariance, responses known beforehand."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.frame import Case, installed
from sensing import arrays
from sensing.coarse.spectrum import AngleSpectrum

INSTALL = "pip install --no-deps pyroomacoustics"


def cases(tiny: bool) -> Iterator[Case]:
    """An 8 x 8 array with seven sources of 20 dB, on two grids; covariances in one batch, and one alone."""
    antenna, sources = (arrays.upa(3, 3), 2) if tiny else (arrays.upa(8, 8), 7)
    name = installed("pyroomacoustics")
    for num_az, num_el in ((7, 5),) if tiny else ((61, 31), (181, 61)):
        azimuth = torch.linspace(-math.pi / 2, math.pi / 2, num_az, dtype=torch.float64)
        elevation = torch.linspace(-math.pi / 3, math.pi / 3, num_el, dtype=torch.float64)
        for batch, averaged in ((2, False), (2, True)) if tiny else ((32, True), (32, False), (1, True)):
            covariance = covariances(antenna, batch, sources, averaged)
            spectrum = AngleSpectrum(antenna, azimuth, elevation, averaged)

            def ours(given: Tensor = covariance, spectrum: AngleSpectrum = spectrum) -> Tensor:
                return spectrum(given, sources)

            yield Case(
                what="MUSIC spectrum, " + ("forward-backward covariance" if averaged else "general covariance"),
                size=f"{num_az} x {num_el} angles, {len(antenna)} antennas, {sources} sources, batch {batch}",
                ours=ours,
                peer=_pyroomacoustics(antenna, azimuth, elevation, covariance, sources) if name else None,
                peer_name=name,
                tolerance=1e-6,
                per=(batch, "covariance"),
                target=20.0,
                note="the peer's responses are precomputed too; it takes one covariance at a time",
            )


def covariances(antenna: Tensor, batch: int, sources: int, averaged: bool) -> Tensor:
    """Sample covariances of 200 snapshots, forward-backward averaged or not, [batch ant ant]."""
    generator = torch.Generator().manual_seed(0)
    # a spiral, turned from one to the next: directions a beam apart, so that all sources are there to be found
    index = torch.arange(sources, dtype=torch.float64)
    angle = index * math.pi * (3.0 - math.sqrt(5.0)) + torch.rand(batch, 1, dtype=torch.float64, generator=generator)
    side = 0.8 * ((index + 0.5) / sources).sqrt()[:, None] * torch.stack([angle.cos(), angle.sin()], -1)
    direction = torch.cat([(1.0 - side.square().sum(-1, keepdim=True)).sqrt(), side], -1)
    steering = arrays.response(direction, antenna, torch.ones((), dtype=torch.float64))
    signal = torch.randn(batch, sources, 200, dtype=torch.complex128, generator=generator)
    noise = torch.randn(batch, len(antenna), 200, dtype=torch.complex128, generator=generator)
    data = 10.0 * steering @ signal + noise
    covariance = data @ data.mH / 200
    return 0.5 * (covariance + covariance.conj().flip(-2, -1)).resolve_conj() if averaged else covariance


def _pyroomacoustics(
    antenna: Tensor, azimuth: Tensor, elevation: Tensor, covariance: Tensor, order: int
) -> Callable[[], Tensor]:
    import numpy
    from pyroomacoustics.doa import MUSIC
    from pyroomacoustics.doa.doa import ModeVector

    # positions in wavelengths: a wave of 1 Hz at 1 m/s, bin 1 of a transform of length 2 at 2 Hz
    peer = MUSIC(
        antenna.numpy().T.copy(),
        fs=2,
        nfft=2,
        c=1.0,
        num_src=order,
        dim=3,
        azimuth=azimuth.numpy(),
        colatitude=math.pi / 2 - elevation.numpy(),
    )
    peer.mode_vec = ModeVector(peer.L, peer.fs, peer.nfft, peer.c, peer.grid, precompute=True)
    peer.freq_bins, peer.num_freq = numpy.array([1]), 1
    identity = numpy.eye(len(antenna))

    def run() -> Tensor:
        """The steps of its `_process` behind the covariance."""
        spectra = []
        for each in covariance.numpy():
            signal = peer._subspace_decomposition(each[None])[0]
            cross = identity - signal @ signal.conj().swapaxes(-2, -1)
            spectra.append(peer._compute_spatial_spectrumvec(cross)[:, 0])
        # colatitude ascends there, elevation here; responses have norm one here
        stacked = torch.from_numpy(numpy.stack(spectra)).unflatten(-1, (len(elevation), len(azimuth)))
        return len(antenna) * stacked.flip(-2).mT

    return run
