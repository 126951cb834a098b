"""Detection of the paths of every station by three-dimensional MUSIC, the front end of paper 1.

One snapshot is smoothed forward and backward over windows of pilots and antennas; the leading eigenvectors of the
smoothed covariance span the responses of the paths; the minima of the null spectrum over (delay, horizontal, vertical)
frequency are their ranges and directions; gains follow by least squares. The window costs aperture: errors lie above
the Cramer-Rao bound and paths closer than its resolution merge. Covariances are the bound's times what smoothing costs
a single path; close paths and weak ones do worse.
"""

import math

import torch
from torch import Tensor

from sensing.coarse.detection import collect_paths
from sensing.coarse.order import CRITERIA, effective_snapshots, model_order
from sensing.coarse.peaks import distinct, find_minima
from sensing.coarse.refinement import Fit, Refiner, Snapshots
from sensing.coarse.smoothing import (
    UniformGrid,
    Window,
    check_window,
    complex_vectors,
    real_covariance,
    smoothed_covariance,
    smoothing_loss,
    uniform_grid,
)
from sensing.coarse.spectrum import leading_eigenpairs
from sensing.containers import Deployment, Observation, PathEstimates
from sensing.errors import ConfigError, ShapeError

_CHUNK = 64  # snapshots searched at once
_SMALL_CHUNK = 4  # covariances formed at once: they stay in the cache
_UNRESOLVED_RANGE_M = 1e3  # scale of the unknown range where a single pilot says nothing about it


class MusicDetector:
    """Paths of every station by smoothed MUSIC, with least squares gains.

    Args:
        window: pilots, horizontal and vertical antennas of the smoothing window.
        order: `mdl`, `aic`, or the number of paths.
        max_paths: most paths of a station.
        oversampling: search grid points per resolution cell of the window.
        merge: minima closer than this are one [resolution cells of the window].
        steps: Levenberg-Marquardt steps of each minimum, when it is found and again at the end.
    """

    def __init__(
        self,
        window: tuple[int, int, int] = (32, 5, 5),
        order: str | int = "mdl",
        max_paths: int = 24,
        oversampling: int = 2,
        merge: float = 0.05,
        steps: int = 8,
    ) -> None:
        if len(window) != 3 or min(window) < 1:
            raise ConfigError(f"window must be three sizes (delay, y, z) >= 1, got {window}")
        known = order in CRITERIA if isinstance(order, str) else order >= 1
        if not known:
            raise ConfigError(f"order must be one of {', '.join(CRITERIA)} or a number of paths >= 1, got {order!r}")
        if max_paths < 1 or oversampling < 1 or not merge >= 0 or steps < 0:
            raise ConfigError(
                "MUSIC needs max_paths >= 1, oversampling >= 1, merge >= 0 and steps >= 0, got "
                f"{max_paths}, {oversampling}, {merge}, {steps}"
            )
        self.window = (window[0], window[1], window[2])
        self.order, self.max_paths, self.oversampling = order, max_paths, oversampling
        self.merge, self.steps = merge, steps

    @torch.no_grad()
    def __call__(self, observation: Observation, deployment: Deployment) -> PathEstimates:
        """Detect the paths of all stations of a batch.

        Args:
            observation: y [* bs ant sc], noise_var [* bs].
            deployment: the stations, with uniform planar arrays and uniform pilots.

        Returns:
            Estimates [* bs path] sorted by decreasing power; ranges in [0, c / pilot spacing).

        Raises:
            DomainError: array or pilots are not uniform.
            ShapeError: the window does not fit into them.
        """
        observation.validate(deployment)
        grid = uniform_grid(deployment)
        check_window(self.window, grid.shape)
        if any(width == 1 < size for width, size in zip(self.window, grid.shape, strict=True)):
            raise ShapeError(f"window must be at least 2 where the grid {grid.shape} is, got {self.window}")
        loss = smoothing_loss(grid.shape, self.window)
        widen = (
            torch.tensor([loss[0], max(loss[1:]), max(loss[1:])], dtype=torch.float64).sqrt().to(observation.y.device)
        )
        sigma = observation.noise_var.to(torch.float64).sqrt()
        y = (observation.y.to(torch.complex128) / sigma[..., None, None]).reshape(-1, 1, *observation.y.shape[-2:])
        frame = torch.eye(3, dtype=torch.float64, device=y.device)
        local = deployment._replace(bs_position=0.0 * frame[:1], bs_rotation=frame[None])
        period = float(deployment.range_ambiguity)
        refiner = Refiner(local, period if math.isfinite(period) else _UNRESOLVED_RANGE_M, frame[0])
        found: list[tuple[Tensor, Fit, Tensor]] = []
        for start in range(0, len(y), _CHUNK):
            omega, chosen = self.search(grid.cube(y[start : start + _CHUNK, 0]), grid)
            for count in chosen.sum(-1).unique().tolist():
                index = (chosen.sum(-1) == count).nonzero()[:, 0]
                if count:
                    picked = omega[index][chosen[index]].reshape(len(index), 1, count, 3)
                    fit = refiner.fit(Snapshots(y[start + index]), *_plane_waves(picked, grid))
                    covariance = widen[:, None] * refiner.covariance(fit) * widen
                    found.append((start + index, fit, covariance))
        return collect_paths(found, sigma, deployment)

    def search(self, cube: Tensor, grid: UniformGrid) -> tuple[Tensor, Tensor]:
        """Frequencies of the paths of snapshots on a uniform grid.

        Args:
            cube: [n sc y z].
            grid: the grid.

        Returns:
            omega [n peak 3], phase steps along (delay, y, z) [rad], and which are paths [n peak] bool.
        """
        parts = [self._subspace(part, grid.shape) for part in cube.split(_SMALL_CHUNK)]
        vector, order = (torch.cat(part) for part in zip(*parts, strict=True))
        present = torch.arange(max(int(order.max()), 1), device=order.device) < order[:, None]
        subspace = complex_vectors(vector[..., : present.shape[-1]] * present[:, None]).unflatten(1, self.window)
        t, y, z = (self.oversampling * width if width > 1 else 1 for width in self.window)
        points = (t, y, z)
        omega, null = find_minima(subspace, order, points, _visible(points, grid), self.steps)
        cell = 2.0 * math.pi / omega.new_tensor(self.window)
        return omega, distinct(omega, null, present[:, : omega.shape[1]], cell, self.merge)

    def _subspace(self, cube: Tensor, shape: Window) -> tuple[Tensor, Tensor]:
        """Leading vectors of the real covariance [n D max_paths], and how many of them are signal [n]."""
        covariance = real_covariance(smoothed_covariance(cube, self.window))
        size = covariance.shape[-1]
        value, vector = leading_eigenpairs(covariance, min(self.max_paths, size - 1), rounds=1, exact=False)
        if not isinstance(self.order, str):
            return vector, torch.full_like(value[:, 0], min(self.order, value.shape[-1]), dtype=torch.long)
        trace = covariance.diagonal(dim1=-2, dim2=-1).sum(-1)
        # above what rounding leaves of the zeros of a noise-free covariance; of no signal at all, the noise's variance
        floor = torch.where(trace > 0, size * torch.finfo(trace.dtype).eps * trace, 1.0)
        chol = torch.linalg.cholesky(covariance + floor[:, None, None] * torch.eye(size).to(covariance))
        logdet = 2.0 * chol.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        snapshots = effective_snapshots(shape, self.window)
        return vector, model_order(value + floor[:, None], trace + size * floor, logdet, size, snapshots, self.order)


def _visible(points: tuple[int, ...], grid: UniformGrid) -> Tensor:
    """Grid frequencies that belong to a direction, up to one step: bool [points_y points_z]."""
    squares = []
    for num, step in zip(points[1:], grid.step[1:], strict=True):
        cosine = torch.fft.fftfreq(num, dtype=step.dtype, device=step.device).abs() - 1.0 / num
        squares.append((cosine.clamp(min=0.0) / step.where(step > 0, torch.inf)).square())
    return squares[0][:, None] + squares[1] <= 1.0


def _plane_waves(omega: Tensor, grid: UniformGrid) -> tuple[Tensor, Tensor]:
    """Ranges [*] in [0, c / pilot spacing) and unit directions [* xyz] in the local frame of frequencies [* 3]."""
    cycles = omega / (2.0 * math.pi)
    step = grid.step.where(grid.step > 0, torch.inf)
    range_m = (-cycles[..., 0]).remainder(1.0) / step[0]
    side = ((cycles[..., 1:] + 0.5).remainder(1.0) - 0.5) / step[1:]
    # noise may carry a grazing path beyond the horizon
    side = side / torch.linalg.vector_norm(side, dim=-1, keepdim=True).clamp(min=1.0)
    front = (1.0 - side.square().sum(-1, keepdim=True)).clamp(min=0.0).sqrt()
    return range_m, torch.cat([front, side], -1)
