"""What is learned of noise, diffuse tail and clocks: corrections of what an estimator is told, neutral at zero.

The noise of station b and the diffuse tail behind its paths have the covariance over pilots

    C = s2 e^n I + P D(r_0) K(r_d) D(r_0)^H,   P = rho / (1 + rho) (E - s2 e^n)+,   r_d = decay_m e^d,

white over the antennas: s2 the nominal noise variance, E the mean power of y, K the covariance of an exponential delay
profile (`ofdm.profile_covariance`) and D(r_0) the response of its onset. n, rho and d are learned for each station; the
onset is found in each observation, as the most likely one given what the detected paths leave over. The whitener
`W = (C / s2 e^n)^(-1/2)` then goes with the observation to detector, joint detection, E-step and M-step.
"""

import math

import torch
from torch import Tensor, nn

from sensing import ofdm
from sensing.coarse.noise import Detector, least_variance
from sensing.containers import Deployment, Observation, PathEstimates
from sensing.errors import ConfigError
from sensing.operators.khatri_rao import path_operator
from sensing.units import SPEED_OF_LIGHT

STEPS_PER_CELL = 4
"""Onsets tried in each resolution cell c / bandwidth."""


class Surroundings(nn.Module):
    """Learned corrections of the noise variance, the clock prior, and the diffuse tail.

    Args:
        stations: how many.
        decay_m: path length over which a tail falls by a factor e, before its correction [m].

    Raises:
        ConfigError: a value outside its range.
    """

    def __init__(self, stations: int, decay_m: float = 10.0) -> None:
        super().__init__()
        if stations < 1 or not (decay_m > 0 and math.isfinite(decay_m)):
            raise ConfigError(f"surroundings need stations >= 1 and decay_m > 0, got {stations}, {decay_m}")
        self.decay_m = decay_m
        self.noise = nn.Parameter(torch.zeros(stations, dtype=torch.float64))  # log of true over nominal variance
        self.diffuse = nn.Parameter(torch.zeros(stations, dtype=torch.float64))  # rho; none where negative
        self.decay = nn.Parameter(torch.zeros(stations, dtype=torch.float64))  # log of the decay over decay_m
        self.clock = nn.Parameter(torch.zeros((), dtype=torch.float64))  # log of true over prior deviation

    def check(self, deployment: Deployment) -> None:
        """Raise ConfigError unless the deployment has as many stations."""
        if (stations := len(deployment.bs_position)) != len(self.noise):
            raise ConfigError(
                f"surroundings must be of as many stations as there are, {stations}, got {len(self.noise)}"
            )

    def told(self, deployment: Deployment) -> Deployment:
        """The deployment with the learned deviation of the clock offsets."""
        return deployment._replace(clock_offset_std=deployment.clock_offset_std * self.clock.exp())

    def described(self) -> str:
        """All values in words, for tables."""
        with torch.no_grad():
            noise = " ".join(f"{10.0 * float(x) / math.log(10.0):.2f}" for x in self.noise)
            ratio = " ".join(f"{float(x):.3f}" for x in self.diffuse.clamp_min(0.0))
            decay = " ".join(f"{float(x):.1f}" for x in self.decay_m * self.decay.exp())
            return f"noise {noise} dB; tail {ratio}, decay {decay} m; clock {float(self.clock.exp()):.3f}"

    def noise_var(self, observation: Observation) -> Tensor:
        """Noise variance [* bs]."""
        return torch.maximum(observation.noise_var * self.noise.exp(), least_variance(observation.y))

    def profile(self, deployment: Deployment) -> Tensor:
        """K, [bs sc sc]."""
        return ofdm.profile_covariance(self.decay_m * self.decay.exp(), deployment.pilot_freq)

    def tail(self, observation: Observation) -> Tensor:
        """Power of the diffuse tail over the noise variance, [* bs]."""
        above = observation.y.abs().square().mean((-2, -1)) / self.noise_var(observation) - 1.0
        share = self.diffuse.clamp_min(0.0)
        return share / (1.0 + share) * above.clamp_min(0.0)

    @torch.no_grad()
    def detect(
        self, observation: Observation, deployment: Deployment, detector: Detector
    ) -> tuple[Observation, PathEstimates]:
        """Paths, and the observation with noise variance and whitener.

        Without a tail this is one detection. With one, a first detection takes the whole noise to be as strong as it
        is where the tail is strongest, so that only paths are found; what these leave over tells the onset.

        Args:
            observation: with the nominal noise variance, [b bs].
            deployment: the stations.
            detector: of paths.
        """
        noise_var, tail = self.noise_var(observation), self.tail(observation)
        known = observation._replace(noise_var=noise_var)
        if not bool((tail > 0).any()):
            return known, detector(known, deployment)
        power, basis = torch.linalg.eigh(self.profile(deployment))
        spectrum = 1.0 + tail[..., None] * power.clamp_min(0.0)  # [b bs sc]
        first = detector(known._replace(noise_var=noise_var * spectrum[..., -1]), deployment)
        rest = residual(observation.y, first, deployment)
        known = known._replace(whitener=whitener(spectrum, basis, onset(rest, spectrum, basis, deployment), deployment))
        return known, detector(known, deployment)


def whitener(spectrum: Tensor, basis: Tensor, onset_m: Tensor, deployment: Deployment) -> Tensor:
    """`diag(spectrum)^(-1/2) U^H D(onset)^H`, [* bs sc sc].

    Args:
        spectrum: [* bs sc] eigenvalues of the covariance over the noise variance, the tail starting at zero.
        basis: [bs sc sc] its eigenvectors U.
        onset_m: [* bs] [m].
        deployment: gives the pilots.
    """
    start = ofdm.response(onset_m[..., None], deployment.pilot_freq)[..., 0]
    return spectrum.rsqrt()[..., None] * basis.mH * start.conj()[..., None, :]


def residual(y: Tensor, paths: PathEstimates, deployment: Deployment) -> Tensor:
    """What paths leave of y [* bs ant sc]."""
    return y - path_operator(paths.range_m, paths.direction, deployment, paths.mask).matvec(paths.gain)


def onset(rest: Tensor, spectrum: Tensor, basis: Tensor, deployment: Deployment) -> Tensor:
    """Most likely onset of the tail [* bs] [m]: minimises `tr(C^-1 R)` over one period of the delays.

    The determinant does not depend on the onset. With `A = U diag(1 / spectrum) U^H` and R the sample covariance of the
    residual, the trace is `sum_kl A_lk R_kl exp(j 2 pi (f_k - f_l) r / c)`.

    Args:
        rest: [* bs ant sc] residual.
        spectrum: [* bs sc] as in `whitener`.
        basis: [bs sc sc].
        deployment: gives the pilots.
    """
    freq = deployment.pilot_freq
    inverse = (basis / spectrum[..., None, :]) @ basis.mH
    weight = (inverse.mT * (rest.mT @ rest.conj())).flatten(-2)
    cell = SPEED_OF_LIGHT / float(deployment.bandwidth)
    steps = math.ceil(float(deployment.range_ambiguity) / cell * STEPS_PER_CELL)
    range_m = torch.arange(steps, dtype=freq.dtype, device=freq.device) * (cell / STEPS_PER_CELL)
    lag = (freq[:, None] - freq).flatten()
    cost = (weight @ ofdm.response(range_m, -lag)).real
    return range_m[cost.argmin(-1)]
