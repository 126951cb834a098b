"""Array calibration: one complex gain per station and element, in front of everything that reads the observation.

    y[b, m, k] = g[b, m] h[b, m, k] + n,    g = exp(a - mean a + j (phi - mean phi)),

the means over the elements of a station: its common gain and phase belong to the gains of its paths. The estimator
works on y / g, whose noise is as unequal as |g|^-2 (a fraction of a dB for real hardware), and returns channels as
they were observed. With the parameters at zero nothing changes, bit for bit.

**Self-calibration** is EM with g as a parameter: given the channels h that the estimator finds with the present g,

    g[b, m] <- g[b, m] sum_k,s (y / g) conj(h) / noise  /  sum_k,s |h|^2 / noise        over scenes s and pilots k

maximises the likelihood. Plane waves of one station alone tell g but for a linear phase across the array, which turns
all its directions alike; that only shows where stations look at the same scatterers, and EM creeps there.
`Anderson` mixing of the last updates makes up for it.
"""

import torch
from torch import Tensor, nn

from sensing.containers import Observation
from sensing.errors import ConfigError, NumericalError, ShapeError


class ArrayCalibration(nn.Module):
    """Gain and phase of every element, learned; neutral at zero.

    Args:
        num_stations: stations of the deployment, in its order.
        num_antennas: elements per station.

    Raises:
        ConfigError: a count below one.
    """

    def __init__(self, num_stations: int, num_antennas: int) -> None:
        super().__init__()
        if num_stations < 1 or num_antennas < 1:
            raise ConfigError(
                f"calibration needs num_stations and num_antennas >= 1, got {num_stations}, {num_antennas}"
            )
        self.log_gain = nn.Parameter(torch.zeros(num_stations, num_antennas, dtype=torch.float64))
        self.phase = nn.Parameter(torch.zeros(num_stations, num_antennas, dtype=torch.float64))

    def gain(self) -> Tensor:
        """g, [bs ant] complex; geometric mean one and mean phase zero at every station."""
        log_gain = self.log_gain - self.log_gain.mean(-1, keepdim=True)
        return torch.polar(log_gain.exp(), self.phase - self.phase.mean(-1, keepdim=True))

    def forward(self, observation: Observation) -> Observation:
        """The observation as an ideal array would have made it.

        Raises:
            ShapeError: made for other stations or arrays.
        """
        if observation.y.shape[-3:-1] != self.phase.shape:
            raise ShapeError(
                f"calibration belongs to {list(self.phase.shape)} stations and antennas, "
                f"got y with {list(observation.y.shape[-3:-1])}"
            )
        return observation._replace(y=observation.y / self.gain()[..., None].to(observation.y.dtype))

    def observed(self, channel: Tensor) -> Tensor:
        """The channel as this array sees it, [* bs ant sc]."""
        return channel * self.gain()[..., None].to(channel.dtype)

    def vector(self) -> Tensor:
        """All parameters as one vector, [2 bs ant]."""
        return torch.stack([self.log_gain.detach(), self.phase.detach()]).flatten()

    @torch.no_grad()
    def assign(self, vector: Tensor) -> None:
        """Set all parameters, see `vector`; the gauge is fixed on the way.

        Raises:
            NumericalError: not finite.
        """
        if not bool(torch.isfinite(vector).all()):
            raise NumericalError("calibration must be finite, got NaN or infinity: too few paths were found")
        log_gain, phase = vector.reshape(2, *self.phase.shape)
        self.log_gain.copy_(log_gain - log_gain.mean(-1, keepdim=True))
        self.phase.copy_(phase - phase.mean(-1, keepdim=True))


class GainStatistics:
    """Sums of the M-step over scenes: `sum y conj(h) / noise` and `sum |h|^2 / noise`, [bs ant].

    Args:
        calibration: whose gain is estimated.
    """

    def __init__(self, calibration: ArrayCalibration) -> None:
        self.calibration = calibration
        self.match = torch.zeros_like(calibration.gain())
        self.energy = torch.zeros_like(calibration.phase.detach())

    def add(self, calibrated: Observation, channel: Tensor) -> None:
        """Take in a batch.

        Args:
            calibrated: observation divided by the present gain.
            channel: [* bs ant sc] the channel found in it.
        """
        inverse = calibrated.noise_var[..., None].reciprocal()
        lead = tuple(range(channel.ndim - 3))
        self.match = self.match + (inverse * (calibrated.y * channel.conj()).sum(-1)).sum(lead)
        self.energy = self.energy + (inverse * channel.abs().square().sum(-1)).sum(lead)

    def updated(self) -> Tensor:
        """Where EM moves the calibration's vector; an element without any signal stays."""
        heard = self.energy > 0
        factor = torch.where(heard, self.match / torch.where(heard, self.energy, 1.0), 1.0 + 0j)
        step = torch.stack([factor.abs().log(), factor.angle()])
        step = step - step.mean(-1, keepdim=True)
        return self.calibration.vector() + step.flatten()


class Anderson:
    """Anderson mixing of a fixed-point iteration x <- G(x).

    With residuals f_i = G(x_i) - x_i, the next point is x + f - (dX + dF) c, with c the least squares solution of
    dF c = f, the differences taken to the present point (Walker and Ni, SIAM J. Numer. Anal. 49, 2011).

    Args:
        memory: earlier points that are kept.
    """

    def __init__(self, memory: int = 5) -> None:
        self.memory = memory
        self.points: list[Tensor] = []
        self.residuals: list[Tensor] = []

    def restart(self) -> None:
        """Forget all points: G has changed."""
        self.points, self.residuals = [], []

    def step(self, point: Tensor, image: Tensor) -> Tensor:
        """The next point after x = `point`, G(x) = `image`."""
        residual = image - point
        following = image
        if self.points:
            dx = torch.stack([point - each for each in self.points], -1)
            df = torch.stack([residual - each for each in self.residuals], -1)
            mix = torch.linalg.lstsq(df, residual[:, None], driver="gelsd" if not df.is_cuda else None).solution
            following = image - ((dx + df) @ mix)[:, 0]
        self.points = [*self.points, point][-self.memory :]
        self.residuals = [*self.residuals, residual][-self.memory :]
        return following
