"""Sparse recovery on the location grid: channel and scatterers by pursuit or by sparse Bayesian learning.

What the location-domain dictionary alone is worth: points do not move, no prior couples support and stations (unless
variances are shared), and neither the user nor the offsets are refined. These come from the coarse stage of the
classical estimator, unchanged, and are therefore not returned as results of the baseline; its flags are, because the
points stand and fall with it.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sensing.baselines.location_grid import CloudGrid, LocationGrid, grid_operator
from sensing.coarse.detection import PathDetector
from sensing.coarse.localization import CoarseLocalizer
from sensing.coarse.noise import detect
from sensing.containers import Deployment, Estimate, Example, Observation, PathEstimates, in_double
from sensing.errors import ConfigError
from sensing.estimator import Detector, Localizer, check_batch
from sensing.inference.omp import RULES, omp
from sensing.inference.sbl import Settings, sparse_bayes
from sensing.operators.khatri_rao import PathOperator

WIDE = 3.2
"""Reach of the clouds of OMP [c / bandwidth]: it chooses best where neighbours are far (docs/baselines.md)."""


class SparseGains(NamedTuple):
    """What a sparse solver returns."""

    gain: Tensor  # [b bs node] complex
    chosen: Tensor  # [b bs node] bool: the station sees the point


class GridEstimator(ABC):
    """Coarse location, grid around it, sparse gains on the grid.

    Args:
        detector: front end, called where the caller brings no paths; the default when None.
        localizer: coarse stage, or its settings; the default when None.
        grid: candidate points.
        name: label in tables.
        front_end: name of the front end; estimators with the same one share its paths.
    """

    needs_truth, bound = False, "peb"

    def __init__(
        self,
        detector: Detector | None,
        localizer: Localizer | Mapping[str, Any] | None,
        grid: LocationGrid,
        name: str,
        front_end: str,
    ) -> None:
        self.detector = PathDetector() if detector is None else detector
        self.localizer = localizer if callable(localizer) else CoarseLocalizer(**(localizer or {}))
        self.grid, self.name, self.front_end = grid, name, front_end

    @abstractmethod
    def solve(self, operator: PathOperator, observation: Observation) -> SparseGains:
        """Gains of the points of all scenes and stations."""

    @torch.no_grad()
    def __call__(
        self,
        observation: Observation,
        deployment: Deployment,
        paths: PathEstimates | None = None,
        truth: Example | None = None,
    ) -> Estimate:
        """Channel, points that a station sees, and the coarse stage's flags. One batch axis."""
        check_batch(observation, deployment, paths)
        if paths is None:
            observation, paths = detect(observation, deployment, self.detector)
        coarse = self.localizer(in_double(paths), deployment)
        geometry = coarse.geometry
        candidates = self.grid(geometry, deployment)
        operator = grid_operator(candidates, geometry, deployment, torch.complex128)
        found = self.solve(operator, observation._replace(y=observation.y.to(torch.complex128)))
        return Estimate(
            channel=operator.matvec(found.gain),
            scatterer_position=candidates.position,
            scatterer_mask=found.chosen.any(-2),
            support=found.chosen.to(candidates.position.dtype),
            gain=found.gain,
            cost_per_dof=coarse.cost_per_dof,
            flags=coarse.flags,
        )


class GridOmp(GridEstimator):
    """Orthogonal matching pursuit, or orthogonal least squares, station by station.

    Args:
        detector, localizer, grid, name, front_end: as in `GridEstimator`.
        max_atoms: most points of a station (the order, where both thresholds are off).
        peak: finished when no point explains more energy than so many noise variances; 0: off. ln(points / p) is a
            false alarm probability of about p per station.
        residual: finished when the residual's energy is below its expectation plus so many standard deviations; None:
            off.
        rule: omp, or ols; see `sensing.inference.omp`.
    """

    def __init__(
        self,
        detector: Detector | None = None,
        localizer: Localizer | Mapping[str, Any] | None = None,
        grid: LocationGrid | None = None,
        max_atoms: int = 24,
        peak: float = 8.0,
        residual: float | None = None,
        rule: str = "omp",
        name: str = "omp",
        front_end: str = "nomp",
    ) -> None:
        super().__init__(detector, localizer, CloudGrid(WIDE) if grid is None else grid, name, front_end)
        if max_atoms < 1 or not 0 <= peak < math.inf:
            raise ConfigError(f"omp needs max_atoms >= 1 and a finite peak >= 0, got {max_atoms}, {peak}")
        if rule not in RULES:
            raise ConfigError(f"rule must be one of {RULES}, got {rule!r}")
        self.max_atoms, self.peak, self.residual, self.rule = max_atoms, peak, residual, rule

    def solve(self, operator: PathOperator, observation: Observation) -> SparseGains:
        """See `GridEstimator.solve`."""
        y, noise_var = observation.y, observation.noise_var
        entries = y.shape[-2] * y.shape[-1]
        excess = -math.inf if self.residual is None else entries + self.residual * math.sqrt(entries)
        pursuit = omp(
            operator,
            operator.rmatvec(y),
            y.abs().square().sum((-2, -1)),
            min(self.max_atoms, entries),
            stop_energy=excess * noise_var,
            stop_peak=self.peak * noise_var,
            rule=self.rule,
        )
        return SparseGains(*pursuit.scatter(operator.steering.shape[-1]))


class GridSbl(GridEstimator):
    """Sparse Bayesian learning with one variance per point.

    A station sees a point when the data determine more than half of its gain: for a point by itself, when it explains
    more energy than the noise does. The channel is made of all gains.

    Args:
        detector, localizer, grid, name, front_end: as in `GridEstimator`.
        update: em, mackay or convex; see `sensing.inference.sbl`.
        shared: the stations share the variance of a point, hence the support.
        learn_noise: learn the noise variance instead of taking the given one.
        sparsity: weight of the hyperprior `p(v) = v^-sparsity`: 0 is flat, 1 has no scale.
        prune: a point leaves when its expected energy falls below this multiple of the noise variance.
        iterations: most updates.
        tolerance: finished when the evidence of a scene changes by less [nats].
    """

    def __init__(
        self,
        detector: Detector | None = None,
        localizer: Localizer | Mapping[str, Any] | None = None,
        grid: LocationGrid | None = None,
        update: str = "em",
        shared: bool = False,
        learn_noise: bool = False,
        sparsity: float = 1.0,
        prune: float = 1e-3,
        iterations: int = 30,
        tolerance: float = 0.01,
        name: str = "em_sbl",
        front_end: str = "nomp",
    ) -> None:
        super().__init__(detector, localizer, CloudGrid() if grid is None else grid, name, front_end)
        self.settings = Settings(update, shared, learn_noise, sparsity, prune, iterations, tolerance).validate()

    def solve(self, operator: PathOperator, observation: Observation) -> SparseGains:
        """See `GridEstimator.solve`."""
        y, noise_var = observation.y, observation.noise_var
        energy, entries = y.abs().square().sum((-2, -1)), y.shape[-2] * y.shape[-1]
        found = sparse_bayes(operator.gram(), operator.rmatvec(y), energy, noise_var.double(), entries, self.settings)
        return SparseGains(found.mean, found.determined > 0.5)
