"""The estimator with learned surroundings, and how they are learned without labels.

Noise and tail are learned by maximum likelihood of what the detected paths leave over, alternating with the detection;
the deviation of the clocks from the offsets that the estimator finds under a flat prior.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sensing import ofdm
from sensing.coarse.noise import detect
from sensing.coarse.surroundings import Surroundings, onset, residual
from sensing.containers import Deployment, Estimate, Example, Observation, PathEstimates, in_double
from sensing.errors import DomainError
from sensing.estimator import LocationEstimator, check_batch

NEGLIGIBLE = 0.05
"""Density of a tail over that of the noise, where it is strongest, below which there is none."""
NORMAL_MAD = 1.4826
"""Standard deviation of a normal law over its median absolute value."""


class AdaptedEstimator(LocationEstimator):
    """`LocationEstimator` that corrects what it is told, and finds paths under coloured noise.

    Args:
        surroundings: learned corrections; untrained the estimator is the classical one, bit for bit.
        settings: of `LocationEstimator`.
    """

    front_end = None  # paths found under white noise are of no use

    def __init__(self, surroundings: Surroundings, name: str = "adapted", **settings: Any) -> None:
        super().__init__(name=name, **settings)
        self.surroundings = surroundings

    def detect(self, observation: Observation, deployment: Deployment) -> tuple[Observation, PathEstimates]:
        """Paths, and the observation with the learned noise variance and whitener."""
        return self.surroundings.detect(observation, deployment, self.detector)

    def forward(
        self,
        observation: Observation,
        deployment: Deployment,
        paths: PathEstimates | None = None,
        truth: Example | None = None,
    ) -> Estimate:
        """See `Estimator`; the caller's paths are ignored. The channel holds the tail's linear MMSE estimate too."""
        check_batch(observation, deployment)
        with torch.no_grad():
            observation, paths = self.detect(observation, in_double(deployment))
        return self.located(observation, deployment, paths)

    def located(self, observation: Observation, deployment: Deployment, paths: PathEstimates | None = None) -> Estimate:
        """Estimate under the noise variance and whitener that an observation holds.

        Args:
            observation: as `detect` returns it.
            deployment: as told.
            paths: found under that noise; found here when None.
        """
        deployment = self.surroundings.told(in_double(deployment))
        if paths is None:
            with torch.no_grad():
                paths = self.detector(observation, deployment)
        return with_tail(super().forward(observation, deployment, paths), observation)


def adapted(base: LocationEstimator, surroundings: Surroundings) -> AdaptedEstimator:
    """An estimator with learned surroundings and the parts of another."""
    parts: dict[str, Any] = {"detector": base.detector, "localizer": base.localizer, "unrolled": base.unrolled}
    return AdaptedEstimator(surroundings, joint_false_alarm=base.joint_false_alarm, **parts)


def with_tail(estimate: Estimate, observation: Observation) -> Estimate:
    """Adds to the channel the linear MMSE estimate of the tail, `(I - W^H W) (y - channel)` over the pilots."""
    if observation.whitener is None:
        return estimate
    rest = observation.y - estimate.channel
    noise = rest @ (observation.whitener.mT @ observation.whitener.conj()).to(rest.dtype)
    return estimate._replace(channel=estimate.channel + rest - noise)


def learn_surroundings(
    estimator: AdaptedEstimator, observations: Sequence[Observation], deployment: Deployment, rounds: int = 3
) -> None:
    """Learn noise and tail in place, from observations alone.

    The first detection knows nothing and takes the noise to be white, of unknown variance; the later ones use what was
    learned so far.

    Args:
        estimator: with surroundings of as many stations.
        observations: batches, with the nominal noise variances.
        deployment: the stations, as told.
        rounds: of detection and fit.

    Raises:
        DomainError: no observation.
    """
    if not observations:
        raise DomainError("learning the surroundings needs an observation, got none")
    deployment, surroundings = in_double(deployment), estimator.surroundings
    for number in range(rounds):
        covariance, observed = [], []
        for observation in observations:
            if number == 0:
                _, paths = detect(observation, deployment, estimator.detector, "estimated")
                rest = residual(observation.y, paths, deployment)
                start = torch.where(paths.mask, paths.range_m, torch.inf).amin(-1)
                start = torch.where(start.isfinite(), start, torch.zeros_like(start))
            else:
                _, paths = surroundings.detect(observation, deployment, estimator.detector)
                rest = residual(observation.y, paths, deployment)
                start = _onset(surroundings, rest, observation, deployment)
            entries = rest.shape[-2] * rest.shape[-1]
            freedom = entries / (entries - 2.5 * paths.mask.sum(-1)).clamp_min(entries / 4)
            rows = rest * ofdm.response(start[..., None], deployment.pilot_freq).mT.conj()
            scale = freedom / (rest.shape[-2] * observation.noise_var)
            covariance.append(scale[..., None, None] * (rows.mT @ rows.conj()))
            observed.append(observation)
        _fit(surroundings, torch.cat(covariance), _joined(observed), deployment)


@torch.no_grad()
def _onset(surroundings: Surroundings, rest: Tensor, observation: Observation, deployment: Deployment) -> Tensor:
    power, basis = torch.linalg.eigh(surroundings.profile(deployment))
    spectrum = 1.0 + surroundings.tail(observation)[..., None] * power.clamp_min(0.0)
    return onset(rest, spectrum, basis, deployment)


def _joined(observations: Sequence[Observation]) -> Observation:
    return Observation(torch.cat([o.y for o in observations]), torch.cat([o.noise_var for o in observations]))


def _fit(surroundings: Surroundings, covariance: Tensor, observation: Observation, deployment: Deployment) -> None:
    """Maximise `-ln det C - tr(C^-1 R)` over noise, tail and decay.

    Args:
        surroundings: start, and result.
        covariance: [scene bs sc sc] sample covariances R over the nominal noise variance, the onset at zero.
        observation: they come from.
        deployment: gives the pilots.
    """
    learned = [surroundings.noise, surroundings.diffuse, surroundings.decay]
    pilots = covariance.shape[-1]
    power = covariance.diagonal(dim1=-2, dim2=-1).real.mean((0, -1))
    with torch.no_grad():  # a tail that starts at zero would not feel its decay
        surroundings.noise.copy_((0.5 * power).log())
        surroundings.diffuse.clamp_(min=0.02)
    eye = torch.eye(pilots, dtype=covariance.dtype)

    def cost() -> Tensor:
        level = surroundings.noise.exp()[:, None, None]
        tail = surroundings.tail(observation)[..., None, None] * level
        model = level * eye + tail * surroundings.profile(deployment)
        chol = torch.linalg.cholesky(model)
        log_det = 2.0 * chol.diagonal(dim1=-2, dim2=-1).real.log().sum(-1)
        misfit = torch.cholesky_solve(covariance, chol).diagonal(dim1=-2, dim2=-1).real.sum(-1)
        return (log_det + misfit).mean() / pilots

    optimizer = torch.optim.LBFGS(learned, max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = cost()
        value.backward()
        return value

    optimizer.step(closure)
    with torch.no_grad():
        strongest = torch.linalg.eigvalsh(surroundings.profile(deployment)).amax(-1)
        weak = surroundings.tail(observation).mean(0) * strongest < NEGLIGIBLE
        surroundings.diffuse.masked_fill_(weak, 0.0)
        surroundings.noise.copy_(torch.where(weak, power.log(), surroundings.noise))
        surroundings.decay.masked_fill_(weak, 0.0)


@torch.no_grad()
def learn_clock(estimator: AdaptedEstimator, observations: Sequence[Observation], deployment: Deployment) -> None:
    """Learn the deviation of the clocks in place: that of the offsets found under a flat prior, from their median.

    A deviation within its own uncertainty of the prior's is left alone: `1 / sqrt(offsets)` relative, threefold.

    Args:
        estimator: with surroundings.
        observations: batches.
        deployment: the stations, with the prior to be corrected (finite and positive).
    """
    prior = float(deployment.clock_offset_std)
    if not (math.isfinite(prior) and prior > 0):
        raise DomainError(f"clock_offset_std must be finite and positive to be corrected, got {prior}")
    flat = in_double(deployment)._replace(clock_offset_std=deployment.clock_offset_std.new_tensor(math.inf))
    found = []
    for observation in observations:
        estimate = estimator(observation, flat)
        assert estimate.clock_offset is not None
        found.append(estimate.clock_offset.flatten())
    offsets = torch.cat(found)
    factor = float(NORMAL_MAD * offsets.abs().median()) / prior
    if abs(math.log(factor)) > 3.0 / math.sqrt(len(offsets)):
        estimator.surroundings.clock.fill_(math.log(factor))
