"""Random targets, their noisy echoes, and what the classical estimator makes of them, beside the bound."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sensing.bounds.cooperative import sharpness, target_bound
from sensing.bounds.radar import Radar
from sensing.containers import Flag
from sensing.errors import ConfigError
from sensing.evaluation.statistics import Floats
from sensing.evaluation.sweep import progress_bar
from sensing.geometry import direction_and_range
from sensing.metrics import nees, wrapped
from sensing.radar import EchoParameters, RadarNetwork, Target, echo_parameters, echo_response, echo_snr
from sensing.simulation.sampler import scene_generator, unit_noise
from sensing.targets import EchoEstimates, EchoEstimator, locate_target
from sensing.units import SPEED_OF_LIGHT, from_db

_MOST_SAMPLES = 1 << 25  # of one trial: 2 GB with noise and products
UNLOCATED = Flag.NO_PATHS | Flag.UNOBSERVABLE


class TargetLaw(NamedTuple):
    """Uniform law of the targets."""

    area: Sequence[Sequence[float]]  # lower and upper corner, [2 xy] [m]
    height_m: Sequence[float] = (0.0, 0.0)  # lowest and highest
    speed_m_s: float = 8.0  # fastest; the heading is uniform and horizontal
    seed: int = 0

    def draw(self, indices: Sequence[int], links: int) -> Target:
        """Targets of trials, each from a generator of its own."""
        low, high = (np.array([*corner, z]) for corner, z in zip(self.area, self.height_m, strict=True))
        rows = []
        for i in indices:
            rng = scene_generator(self.seed, "test", i)
            place, speed, angle = rng.uniform(low, high), rng.uniform(0, self.speed_m_s), rng.uniform(0, 2 * np.pi)
            heading = speed * np.array([np.cos(angle), np.sin(angle), 0.0])
            rows.append(np.concatenate([place, heading, rng.uniform(0, 2 * np.pi, links)]))
        values = torch.from_numpy(np.stack(rows))
        return Target(values[:, :3], values[:, 3:6], values[:, 6:])

    def corners(self) -> Tensor:
        """Corners of the box, [8 xyz]."""
        axes = [*zip(*self.area, strict=True), self.height_m]
        return torch.cartesian_prod(*(torch.tensor(axis, dtype=torch.float64) for axis in axes))

    @property
    def centre(self) -> Tensor:
        """Middle of the box, [xyz]."""
        return self.corners().mean(0)


class Trials(NamedTuple):
    """Errors of all trials; without an echo the estimate is the centre of the area."""

    error_m: Floats  # [case snr trial]
    peb_m: Floats  # [case snr trial]
    nees: Floats  # [case snr trial] of the position with the estimator's own covariance; NaN where it has none
    velocity_error_m_s: Floats  # [case snr trial] NaN where the bound is infinite
    veb_m_s: Floats  # [case snr trial] inf where the links do not observe the velocity
    flags: NDArray[np.int64]  # [case snr trial]
    detected: NDArray[np.bool_]  # [snr trial link]
    echo_error: Floats  # [snr trial link 3] of range, Doppler and direction over their bounds
    echo_snr_db: Floats  # [snr trial link] true, of all samples of the link together
    position: Floats  # [trial xyz] truth [m]
    velocity: Floats  # [trial xyz] truth [m/s]

    @property
    def located(self) -> NDArray[np.bool_]:
        """[case snr trial]: there was an estimate."""
        return (self.flags & UNLOCATED) == 0


def run_trials(
    radar: Radar,
    law: TargetLaw,
    snr_db: Sequence[float],
    cases: Sequence[Sequence[int]],
    num_trials: int,
    batch_size: int = 10,
    false_alarm: float = 1e-3,
    progress: bool = True,
) -> Trials:
    """Estimate targets at every SNR with every case's links; echoes are estimated once, noise and targets are shared.

    Args:
        radar: the network and what is unknown of a target.
        law: law of the targets.
        snr_db: SNR of the echo of a target in the middle of the area, all samples of a link together, mean over links.
        cases: the links, by number, that each case may use.
        num_trials: targets per point.
        batch_size: targets at once; does not change the results.
        false_alarm: of the detection of an echo.
        progress: show a progress bar.

    Raises:
        ConfigError: the samples do not fit in memory, or ranges or Doppler shifts of the law are ambiguous.
    """
    network = radar.network
    receivers = network.receivers
    shape = (
        len(network.links),
        len(receivers.antenna_local),
        len(network.symbol_time),
        len(receivers.pilot_freq),
    )
    estimator = EchoEstimator(network, false_alarm)
    _check_law(law, network, estimator, shape)
    gamma = echo_snr(law.centre, network).mean() * np.prod(shape[1:])
    if not bool(gamma > 0):
        raise ConfigError("network.eirp_w must reach the centre of the area, got no power there")
    networks = [network._replace(eirp_w=network.eirp_w * (from_db(float(snr)) / gamma)) for snr in snr_db]
    parts: list[list[list[Tensor]]] = [[] for _ in snr_db]
    links: list[list[list[Tensor]]] = [[] for _ in snr_db]
    targets = []
    with progress_bar(progress, "targets") as bar:
        job = bar.add_task("locating", total=num_trials * len(networks))
        for first in range(0, num_trials, batch_size):
            indices = range(first, min(first + batch_size, num_trials))
            target = law.draw(indices, shape[0])
            targets.append(target)
            noise = unit_noise(shape, law.seed, "test", indices)
            noise = noise * network.noise_var.sqrt()[:, None, None, None]
            for row, powered in enumerate(networks):
                echo = echo_parameters(target, powered)
                estimates = estimator(echo_response(echo, powered) + noise)
                links[row].append(_echo_scores(estimates, echo, powered, estimator))
                found = [_scores(estimates, target, powered, case, radar.unknown, law.centre) for case in cases]
                parts[row].append([torch.stack(column) for column in zip(*found, strict=True)])
                bar.advance(job, len(indices))
    by_snr = [torch.stack([torch.cat(field, -1) for field in zip(*row, strict=True)]) for row in parts]
    error, peb, score, speed, veb, flags = torch.stack(by_snr, 2).numpy()  # [case snr trial] each
    detected, echo_error, level = (
        torch.stack([torch.cat(batches) for batches in column]).numpy()
        for column in zip(*(list(zip(*row, strict=True)) for row in links), strict=True)
    )
    position, velocity = (torch.cat([target[i] for target in targets]).numpy() for i in (0, 1))
    return Trials(
        error, peb, score, speed, veb, flags.astype(np.int64), detected, echo_error, level, position, velocity
    )


def _scores(
    echoes: EchoEstimates, target: Target, network: RadarNetwork, case: Sequence[int], unknown: str, centre: Tensor
) -> list[Tensor]:
    """Error, bound, NEES, velocity error and bound, flags of one case, [trial] each."""
    index = torch.tensor(case)
    part = network._replace(links=network.links[index])
    chosen = EchoEstimates(*(field[:, index] for field in echoes))
    found = locate_target(chosen, part, unknown, target.position[..., 2])
    bound = target_bound(target.position, part, target.velocity, unknown)
    assert bound.veb_m_s is not None
    size = found.covariance.shape[-1] // 2
    located = (found.flags & UNLOCATED) == 0
    error = torch.where(located[:, None], found.position, centre) - target.position
    score = torch.where(located, nees(error[:, :size], found.covariance[:, :size, :size]), torch.nan)
    speed = torch.linalg.vector_norm(found.velocity - target.velocity, dim=-1)
    seen = torch.isfinite(bound.veb_m_s) & torch.isfinite(found.veb_m_s)
    length = torch.linalg.vector_norm(error, dim=-1)
    return [length, bound.peb_m, score, torch.where(seen, speed, torch.nan), bound.veb_m_s, found.flags.double()]


def _echo_scores(
    echoes: EchoEstimates, truth: EchoParameters, network: RadarNetwork, estimator: EchoEstimator
) -> list[Tensor]:
    """Detection, errors over their bounds, and SNR of every link, [trial link *]."""
    sharp = sharpness(network)
    gamma = truth.gain.abs().square() / network.noise_var
    far = wrapped(echoes.range_m - truth.range_m, estimator.range_period).abs() * (gamma * sharp.range).sqrt()
    shift = wrapped(echoes.doppler_hz - truth.doppler_hz, estimator.doppler_period).abs()
    turn = echoes.direction - truth.direction
    rank = torch.linalg.matrix_rank(sharp.direction, hermitian=True).clamp(min=1)
    turned = torch.einsum("nli,lij,nlj->nl", turn, sharp.direction, turn) * gamma / rank
    error = torch.stack([far, shift * (gamma * sharp.doppler).sqrt(), turned.sqrt()], -1)
    samples = len(estimator.rate) * len(estimator.turn) * estimator.antenna.shape[-2]
    return [echoes.mask, error, 10.0 * torch.log10(gamma * samples)]


def _check_law(law: TargetLaw, network: RadarNetwork, estimator: EchoEstimator, shape: Sequence[int]) -> None:
    """Raise ConfigError for what cannot be run, or be told apart."""
    samples = int(np.prod(shape))
    if samples > _MOST_SAMPLES:
        raise ConfigError(
            f"network must have at most {_MOST_SAMPLES} samples per target (links x antennas x symbols x subcarriers), "
            f"got {' x '.join(map(str, shape))} = {samples}: see task.waveform"
        )
    corner = law.corners()[:, None]
    _, out = direction_and_range(corner, network.transmitter_position)
    _, back = direction_and_range(corner, network.receivers.bs_position)
    longest = float((out + back).max())
    if longest >= estimator.range_period:
        raise ConfigError(
            f"task.area must lie within the unambiguous way c / spacing_hz = {estimator.range_period:.1f} m, "
            f"got ways of up to {longest:.1f} m"
        )
    fastest = 2.0 * law.speed_m_s * float(network.deployment.carrier_hz) / SPEED_OF_LIGHT
    if len(network.symbol_time) > 1 and fastest >= 0.5 * estimator.doppler_period:
        raise ConfigError(
            f"task.speed_m_s must keep the Doppler shift below 1 / (2 symbol_s) = {0.5 * estimator.doppler_period:.0f}"
            f" Hz, got shifts of up to {fastest:.0f} Hz"
        )
