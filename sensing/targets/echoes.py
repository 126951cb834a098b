"""Maximum likelihood estimate of range, Doppler and direction of one echo per link.

With the complex gain at its best the log-likelihood of a link is its periodogram, `|phi^H y|^2 / (noise_var ant sym
sc)`, phi the response of a target. Its largest value on a grid, by FFTs over symbols and subcarriers of the beams of a
direction grid, starts a Levenberg-Marquardt search with the Fisher information as curvature. That information is the
one of the bound (`sensing.bounds.cooperative`): the axes do not couple once the gain is eliminated.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sensing.bounds.cooperative import Sharpness, sharpness
from sensing.checks import check_finite, check_shape
from sensing.coarse.periodogram import detection_threshold, direction_grid
from sensing.errors import ConfigError, DomainError
from sensing.geometry import tangent_basis
from sensing.radar.network import RadarNetwork
from sensing.units import SPEED_OF_LIGHT
from sensing.waves import plane_waves

_GRID_POINTS = 1 << 22  # of periodograms held at once
_TOLERANCE = 1e-6  # of the log-likelihood: within 1e-3 of a standard deviation of the maximum
_MIN_DAMPING, _MAX_DAMPING = 1e-9, 1e6


class EchoEstimates(NamedTuple):
    """What each link measures of a target.

    The information is over (range, Doppler, direction x, y, z). It is that of the cosines along the array's own axes: a
    line of antennas says nothing of the other two components, and its direction is the one in the plane of array and
    boresight; a residual `direction(p) - direction` weighted with it asks nothing that the array cannot tell. The
    information of azimuth and elevation is `T^T information T`, T their tangents (`geometry.tangent_basis`).
    """

    range_m: Tensor  # [* link] way from transmitter to target to receiver, in [0, c / subcarrier spacing) [m]
    doppler_hz: Tensor  # [* link] in [-1, 1) / (2 symbol distance), positive for an approaching target [Hz]
    direction: Tensor  # [* link xyz] unit vector from the receiver, on the front side of a line or plane of antennas
    gain: Tensor  # [* link] complex amplitude, that of `sensing.radar.EchoParameters`
    snr: Tensor  # [* link] |gain|^2 over the noise power, per sample
    information: Tensor  # [* link 5 5]; zero where there is no echo
    mask: Tensor  # [* link] bool: there is an echo; else the other fields are those of the largest peak of noise


class _Fit(NamedTuple):
    """A point of the search and what a step from it needs, y divided by the noise's standard deviation."""

    range_m: Tensor  # [n link]
    doppler_hz: Tensor  # [n link]
    direction: Tensor  # [n link xyz]
    gain: Tensor  # [n link]
    explained: Tensor  # [n link] log-likelihood over that of no echo
    gradient: Tensor  # [n link 4] over (range, Doppler, two tangents)


class EchoEstimator:
    """Strongest echo of every link at the Cramer-Rao bound, and whether it is one.

    Args:
        network: the stations; subcarriers and symbols on a raster, which the FFTs take for granted.
        false_alarm: probability that noise alone passes for an echo, per link.
        oversampling: search grid points per resolution cell in every dimension.
        steps: most steps of the refinement.

    Raises:
        ConfigError, DomainError: an option is outside its range, or the network's axes are no raster.
    """

    def __init__(
        self, network: RadarNetwork, false_alarm: float = 1e-3, oversampling: float = 2.0, steps: int = 15
    ) -> None:
        if not 0 < false_alarm < 1 or not oversampling >= 1 or steps < 0:
            raise ConfigError(
                "an echo estimator needs false_alarm in (0, 1), oversampling >= 1 and steps >= 0, "
                f"got {false_alarm}, {oversampling}, {steps}"
            )
        self.network, self.receivers, self.steps = network.validate(), network.receivers, steps
        freq, time = self.receivers.pilot_freq, network.symbol_time
        self.range_period = SPEED_OF_LIGHT / _raster("pilot_freq", freq)
        self.doppler_period = 1.0 / _raster("symbol_time", time)
        self.grid, normal, cells, dimension = direction_grid(self.receivers, oversampling)
        self.normal = None if normal is None else self.receivers.bs_rotation @ normal  # [link xyz]
        self.points = tuple(math.ceil(oversampling * len(axis)) if len(axis) > 1 else 1 for axis in (time, freq))
        self.antenna = (2.0 * math.pi / self.receivers.wavelength) * self.receivers.antenna_global  # [link ant xyz]
        self.rate = (-2.0 * math.pi / SPEED_OF_LIGHT) * freq[:, None]  # [sc 1] [rad/m]
        self.turn = 2.0 * math.pi * time[:, None]  # [sym 1] [rad/Hz]
        self.sharp: Sharpness = sharpness(network)
        spans = (self.range_period * self.rate.std(correction=0), self.doppler_period * self.turn.std(correction=0))
        self.threshold = detection_threshold(false_alarm, *((float(span), 1) for span in spans), (cells, dimension))

    @torch.no_grad()
    def __call__(self, y: Tensor) -> EchoEstimates:
        """Estimate the echo of every link.

        Args:
            y: [* link ant sym sc] samples after division by the symbols.

        Returns:
            The estimates [* link].

        Raises:
            ShapeError, DomainError: y does not fit the network, is not complex or not finite.
        """
        sizes = {"link": len(self.network.links), "ant": self.antenna.shape[-2]}
        check_shape("y", y, "* link ant sym sc", **sizes, sym=len(self.turn), sc=len(self.rate))
        if not y.is_complex():
            raise DomainError(f"y must be complex, got {y.dtype}")
        check_finite("y", y)
        sigma = self.network.noise_var.sqrt()
        white = y.to(torch.complex128).reshape(-1, *y.shape[-4:]) / sigma[:, None, None, None]
        fit = self._refine(white, self._fit(white, *self._search(white)))
        doppler = (fit.doppler_hz + 0.5 * self.doppler_period).remainder(self.doppler_period)
        wrapped = fit.range_m.remainder(self.range_period), doppler - 0.5 * self.doppler_period
        fit = self._fit(white, *wrapped, fit.direction)  # the gain turns with every period
        mask, snr = fit.explained > self.threshold, fit.gain.abs().square()
        information = torch.zeros(*snr.shape, 5, 5, dtype=snr.dtype, device=snr.device)
        seen = torch.where(mask, snr, 0.0)
        information[..., 0, 0], information[..., 1, 1] = seen * self.sharp.range, seen * self.sharp.doppler
        information[..., 2:, 2:] = seen[..., None, None] * self.sharp.direction
        fields = (fit.range_m, fit.doppler_hz, fit.direction, fit.gain * sigma, snr, information, mask)
        return EchoEstimates(*(field.reshape(y.shape[:-4] + field.shape[1:]) for field in fields))

    def _search(self, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Range, Doppler [n link] and direction [n link xyz] of the largest value on the grid."""
        n, link, ant, sym, sc = y.shape
        steering = plane_waves((2.0 * math.pi / self.receivers.wavelength) * self.receivers.antenna_local, self.grid)
        steering = steering.mH.to(torch.complex64)  # [dir ant]
        flat = y.reshape(n * link, ant, sym * sc).to(torch.complex64)
        best, place = y.real.new_full((n * link,), -1.0), torch.zeros(n * link, dtype=torch.int64, device=y.device)
        cells = math.prod(self.points)
        beams = max(1, min(len(steering), _GRID_POINTS // cells))
        rows = max(1, _GRID_POINTS // (cells * beams))
        for row in range(0, len(flat), rows):
            part = slice(row, row + rows)
            for first in range(0, len(steering), beams):
                beam = (steering[first : first + beams] @ flat[part]).unflatten(-1, (sym, sc))
                field = torch.fft.fft(torch.fft.ifft(beam, self.points[1], -1), self.points[0], -2)
                value, index = torch.view_as_real(field).square().sum(-1).flatten(1).max(-1)
                better = value > best[part]
                best[part] = torch.where(better, value.to(best), best[part])
                place[part] = torch.where(better, index + first * cells, place[part])
        place = place.reshape(n, link)
        beam_index, cell = place // cells, place % cells
        turns = torch.fft.fftfreq(self.points[0], dtype=y.real.dtype, device=y.device)
        direction = (self.receivers.bs_rotation @ self.grid[beam_index][..., None]).squeeze(-1)
        doppler = turns[cell // self.points[1]] * self.doppler_period
        return (cell % self.points[1]).to(doppler) * (self.range_period / self.points[1]), doppler, direction

    def _fit(self, y: Tensor, range_m: Tensor, doppler_hz: Tensor, direction: Tensor) -> _Fit:
        """Gain, likelihood and gradient; derivatives of phi are `j w phi` with a real weight w along one axis."""
        steering = plane_waves(self.antenna, direction[..., None, :]).mH  # [n link 1 ant]
        delay = plane_waves(self.rate, range_m[..., None, None]).conj()  # [n link sc 1]
        doppler = plane_waves(self.turn, doppler_hz[..., None, None]).conj()[..., 0]  # [n link sym]
        slope = (self.antenna @ tangent_basis(direction)).mT  # [n link 2 ant]
        left = torch.cat([steering, slope * steering], -2)  # [n link 3 ant]
        right = torch.cat([delay, self.rate * delay], -1)[..., None, :, :]  # [n link 1 sc 2]
        part = y @ right  # [n link ant sym 2]
        moment = (left @ (part * doppler[..., None, :, None]).sum(-2)) / y[0, 0].numel()  # [n link 3 2]
        turned = (steering @ (part[..., 0] * (doppler * self.turn[:, 0])[..., None, :]).sum(-1, keepdim=True))[..., 0]
        gain = moment[..., 0, 0]
        total = y[0, 0].numel()
        columns = [moment[..., :1, 1], turned / total, moment[..., 1:, 0]]
        gradient = 2.0 * total * (gain.conj()[..., None] * torch.cat(columns, -1)).imag
        return _Fit(range_m, doppler_hz, direction, gain, total * gain.abs().square(), gradient)

    def _refine(self, y: Tensor, fit: _Fit) -> _Fit:
        """Steps that raise the likelihood; a link that has converged, or whose step fails, keeps its point."""
        damping = torch.full_like(fit.explained, 1e-3)
        for _ in range(self.steps):
            step = self._step(fit, damping)
            running = (fit.gradient * step).sum(-1) > _TOLERANCE
            if not bool(running.any()):
                break
            direction = fit.direction + (tangent_basis(fit.direction) @ step[..., 2:, None]).squeeze(-1)
            if self.normal is not None:  # a line or a plane cannot tell a direction from its mirror image
                direction = direction - 2.0 * (direction * self.normal).sum(-1, keepdim=True).clamp(max=0) * self.normal
            direction = direction / torch.linalg.vector_norm(direction, dim=-1, keepdim=True)
            trial = self._fit(y, fit.range_m + step[..., 0], fit.doppler_hz + step[..., 1], direction)
            better = running & (trial.explained > fit.explained)
            fit = _Fit(
                *(
                    torch.where(better.reshape(*better.shape, *[1] * (new.ndim - better.ndim)), new, old)
                    for new, old in zip(trial, fit, strict=True)
                )
            )
            damping = torch.where(better, damping / 10.0, damping * 10.0).clamp(_MIN_DAMPING, _MAX_DAMPING)
        return fit

    def _step(self, fit: _Fit, damping: Tensor) -> Tensor:
        """Damped scoring step [n link 4]; an axis that the samples do not resolve stays."""
        snr, more = fit.gain.abs().square(), 1.0 + damping
        steps = []
        for place, sharp in enumerate((self.sharp.range, self.sharp.doppler)):
            known = snr * sharp * more
            steps.append(torch.where(known > 0, fit.gradient[..., place] / torch.where(known > 0, known, 1.0), 0.0))
        basis = tangent_basis(fit.direction)
        known = snr[..., None, None] * (basis.mT @ self.sharp.direction @ basis)
        size = known.diagonal(dim1=-2, dim2=-1).sum(-1)
        # of the trace, so that the step of a line of antennas stays in its plane; 1 rad^-2 where nothing is resolved
        ridge = (damping * size + 1.0)[..., None, None] * torch.eye(2, dtype=known.dtype, device=known.device)
        tangent = torch.linalg.solve(known + ridge, fit.gradient[..., 2:, None]).squeeze(-1)
        return torch.cat([torch.stack(steps, -1), tangent], -1)


def _raster(name: str, axis: Tensor) -> float:
    """Distance of neighbours of a uniform axis (1 for a single point); raises DomainError for another."""
    if len(axis) == 1:
        return 1.0
    step = axis.diff()
    if float((step - step.mean()).abs().max()) > 1e-6 * float(step.mean()):
        raise DomainError(
            f"{name} must be uniformly spaced, got distances from {float(step.min()):g} to {float(step.max()):g}"
        )
    return float(step.mean())
