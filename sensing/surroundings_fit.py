"""Learns surroundings from observations without labels.

Noise and tail by maximum likelihood of what the detected paths leave over, alternating with the detection; the
deviation of the clocks from the offsets that the estimator finds under a flat prior. `ResidualStatistics` and
`OffsetStatistics` hold what one pass over the observations adds up; the functions make all passes.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sensing import ofdm
from sensing.adapted_estimator import AdaptedEstimator
from sensing.coarse.noise import detect
from sensing.coarse.surroundings import Surroundings, onset, residual
from sensing.containers import Deployment, Observation, PathEstimates, in_double
from sensing.errors import DomainError

NEGLIGIBLE = 0.05
"""Density of a tail over that of the noise, where it is strongest, below which there is none."""
WELL_FITTING = 1.5
"""Median cost per degree of freedom of the scenes' geometry above which offsets hold errors of the geometry."""
NORMAL_MAD = 1.4826
"""Standard deviation of a normal law over its median absolute value."""


class ResidualStatistics:
    """Covariances over the pilots of what detected paths leave over, in one pass.

    Args:
        estimator: finds the paths, with the surroundings to be learned.
        deployment: the stations, as told.
        first: nothing was learned yet: the noise is taken to be white, of unknown variance.
    """

    def __init__(self, estimator: AdaptedEstimator, deployment: Deployment, first: bool) -> None:
        estimator.surroundings.check(deployment)
        self.estimator, self.deployment, self.first = estimator, in_double(deployment), first
        self.covariance: list[Tensor] = []
        self.observed: list[Observation] = []

    @torch.no_grad()
    def add(self, observation: Observation) -> None:
        """Detect the paths of a batch with the nominal noise variances, and keep what they leave over."""
        deployment, surroundings = self.deployment, self.estimator.surroundings
        if self.first:
            _, paths = detect(observation, deployment, self.estimator.detector, "estimated")
            rest = residual(observation.y, paths, deployment)
            start = torch.where(paths.mask, paths.range_m, torch.inf).amin(-1)
            start = torch.where(start.isfinite(), start, torch.zeros_like(start))
        else:
            _, paths = surroundings.detect(observation, deployment, self.estimator.detector)
            rest = residual(observation.y, paths, deployment)
            start = _onset(surroundings, rest, observation, deployment)
        entries = rest.shape[-2] * rest.shape[-1]
        freedom = entries / (entries - 2.5 * paths.mask.sum(-1)).clamp_min(entries / 4)
        rows = rest * ofdm.response(start[..., None], deployment.pilot_freq).mT.conj()
        scale = freedom / (rest.shape[-2] * observation.noise_var)
        self.covariance.append(scale[..., None, None] * (rows.mT @ rows.conj()))
        self.observed.append(observation)

    def learn(self) -> None:
        """Set noise, tail and decay to the most likely values.

        Raises:
            DomainError: no observation.
        """
        if not self.observed:
            raise DomainError("learning the surroundings needs an observation, got none")
        _fit(self.estimator.surroundings, torch.cat(self.covariance), _joined(self.observed), self.deployment)


class OffsetStatistics:
    """Clock offsets found under a flat prior, in one pass.

    Args:
        estimator: finds them, with the surroundings to be learned.
        deployment: the stations, with the prior to be corrected (finite and positive).

    Raises:
        DomainError: a prior that cannot be corrected.
    """

    def __init__(self, estimator: AdaptedEstimator, deployment: Deployment) -> None:
        self.prior = float(deployment.clock_offset_std)
        if not (math.isfinite(self.prior) and self.prior > 0):
            raise DomainError(f"clock_offset_std must be finite and positive to be corrected, got {self.prior}")
        flat = deployment.clock_offset_std.new_tensor(math.inf)
        self.estimator, self.flat = estimator, in_double(deployment)._replace(clock_offset_std=flat)
        self.found: list[Tensor] = []
        self.cost: list[Tensor] = []

    @torch.no_grad()
    def add(self, observation: Observation) -> None:
        """Locate a batch."""
        estimate = self.estimator(observation, self.flat)
        assert estimate.clock_offset is not None
        assert estimate.cost_per_dof is not None
        self.found.append(estimate.clock_offset.flatten())
        self.cost.append(estimate.cost_per_dof)

    @torch.no_grad()
    def learn(self) -> None:
        """Set the deviation to that of the offsets, from their median absolute value.

        The prior is left alone where the deviation is within its own uncertainty, `1 / sqrt(offsets)` relative,
        threefold, and where the geometry does not fit: stations out of place or scatterers with extent spread the
        offsets too, and a wider prior would then give way to their errors.
        """
        if float(torch.cat(self.cost).median()) > WELL_FITTING:
            return
        offsets = torch.cat(self.found)
        factor = float(NORMAL_MAD * offsets.abs().median()) / self.prior
        if abs(math.log(factor)) > 3.0 / math.sqrt(len(offsets)):
            self.estimator.surroundings.clock.fill_(math.log(factor))


def learn_surroundings(
    estimator: AdaptedEstimator, observations: Sequence[Observation], deployment: Deployment, rounds: int = 3
) -> None:
    """Learn noise and tail in place, from observations alone.

    Args:
        estimator: with surroundings of as many stations.
        observations: batches, with the nominal noise variances.
        deployment: the stations, as told.
        rounds: of detection and fit.

    Raises:
        DomainError: no observation.
        ConfigError: surroundings of another number of stations.
    """
    for number in range(rounds):
        statistics = ResidualStatistics(estimator, deployment, first=number == 0)
        for observation in observations:
            statistics.add(observation)
        statistics.learn()


def learn_clock(estimator: AdaptedEstimator, observations: Sequence[Observation], deployment: Deployment) -> None:
    """Learn the deviation of the clocks in place, see `OffsetStatistics`.

    Args:
        estimator: with surroundings.
        observations: batches.
        deployment: the stations, with the prior to be corrected (finite and positive).

    Raises:
        DomainError: a prior that cannot be corrected.
    """
    statistics = OffsetStatistics(estimator, deployment)
    for observation in observations:
        statistics.add(observation)
    statistics.learn()


@torch.no_grad()
def log_likelihood(observation: Observation, paths: PathEstimates, deployment: Deployment) -> Tensor:
    """Log likelihood per entry less the Bayesian information criterion's price of the paths, up to a constant, [b].

    With C the covariance over the pilots, `-ln det C - |C^(-1/2) (y - x)|^2` for each antenna, and `5/2 ln(2 ant sc)`
    for the five real parameters of a path.

    Args:
        observation: with noise variance and whitener as `AdaptedEstimator.detect` returns it.
        paths: detected under these.
        deployment: the stations.
    """
    rest = residual(observation.y, paths, deployment)
    antennas, pilots = rest.shape[-2:]
    log_det = pilots * observation.noise_var.log()
    if observation.whitener is not None:
        rest = rest @ observation.whitener.mT
        log_det = log_det - 2.0 * torch.linalg.slogdet(observation.whitener).logabsdet
    misfit = rest.abs().square().sum((-2, -1)) / observation.noise_var
    price = 2.5 * math.log(2.0 * antennas * pilots) * paths.mask.sum(-1)
    return -(antennas * log_det + misfit + price).mean(-1) / (antennas * pilots)


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
