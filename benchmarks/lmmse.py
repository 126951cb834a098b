"""LMMSE with one frequency covariance for many observations, against Sionna.

Its public estimator, `LMMSEChannelEstimator` ("f-t" over a single OFDM symbol full of pilots, where the pass over time
changes nothing), takes a noise variance per antenna and factorises the shared covariance plus noise anew for each;
it gives mean and variance like ours. Where all noise variances are equal, a user of Sionna can do better by hand: one
`lmmse_matrix` and one product, mean only; the second case compares with that.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.frame import Case, installed
from sensing.inference.shared_lmmse import shared_lmmse

INSTALL = "pip install --no-deps sionna importlib-resources"


def cases(tiny: bool) -> Iterator[Case]:
    """Exponential power delay profile of 200 ns, subcarriers 480 kHz apart, 64 antennas of 8 stations."""
    name = installed("sionna")
    batch, antennas, n = (2, 3, 6) if tiny else (8, 64, 64)
    offset = torch.arange(n, dtype=torch.float64)
    covariance = 1.0 / (1.0 + 2j * torch.pi * 480e3 * 200e-9 * (offset[:, None] - offset))
    generator = torch.Generator().manual_seed(0)
    noise_var = 0.05 + torch.rand(batch, antennas, dtype=torch.float64, generator=generator)
    y = torch.randn(batch, antennas, n, dtype=torch.complex128, generator=generator)
    size = f"{batch * antennas} observations of {n} subcarriers"
    yield Case(
        "LMMSE mean and variance, complex128, a noise variance per observation",
        size,
        ours=lambda: torch.stack(shared_lmmse(y, covariance, noise_var)),
        peer=_estimator(y, covariance, noise_var) if name else None,
        peer_name=name,
        per=(batch * antennas, "observation"),
        note="the peer adds 64 eps to the diagonal",
    )
    common = noise_var[0, 0]
    yield Case(
        "LMMSE mean, complex128, one noise variance, peer factorises once by hand",
        size,
        ours=lambda: shared_lmmse(y, covariance, common).mean,
        peer=_matrix(y, covariance, common) if name else None,
        peer_name=name,
        per=(batch * antennas, "observation"),
        note="ours gives the variance too",
    )


def _estimator(y: Tensor, covariance: Tensor, noise_var: Tensor):
    from sionna.phy.ofdm import LMMSEChannelEstimator, ResourceGrid

    n = y.shape[-1]
    grid = ResourceGrid(
        num_ofdm_symbols=1,
        fft_size=n,
        subcarrier_spacing=480e3,
        pilot_pattern="kronecker",
        pilot_ofdm_symbol_indices=[0],
        precision="double",
    )
    estimator = LMMSEChannelEstimator(
        grid, torch.ones(1, 1, dtype=y.dtype), covariance, order="f-t", precision="double"
    )
    received = (y * grid.pilot_pattern.pilots.reshape(n))[:, None, :, None]

    def run() -> Tensor:
        mean, variance = estimator(received, noise_var[:, None])
        return torch.stack([mean.reshape(y.shape), variance.reshape(y.shape)])

    return run


def _matrix(y: Tensor, covariance: Tensor, noise_var: Tensor):
    from sionna.phy.mimo import lmmse_matrix

    root = torch.linalg.cholesky(covariance)
    noise = noise_var * torch.eye(y.shape[-1], dtype=y.dtype)
    return lambda: y @ (root @ lmmse_matrix(root, noise, precision="double")).mT
