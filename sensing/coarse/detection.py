"""Detection of the paths of every station by Newtonized orthogonal matching pursuit.

One path at a time: the largest peak of the residual's periodogram is polished alone, tested against a false-alarm
threshold, and refined together with the paths found before; a snapshot is finished when its peak fails the test
(Mamandipoor, Ramasamy and Madhow, "Newtonized orthogonal matching pursuit", IEEE TSP 64(19), 2016). All snapshots of a
batch advance together and leave it when they finish, so that those still running have the same number of paths and no
masks are needed.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from sensing.coarse.periodogram import SearchGrid, correlate, residual_peak, search_grid
from sensing.coarse.refinement import Fit, Refiner, Snapshots
from sensing.containers import Deployment, Observation, PathEstimates
from sensing.errors import ConfigError
from sensing.geometry import tangent_basis
from sensing.operators.khatri_rao import path_operator

Group = tuple[Tensor, Fit]
"""Indices [n] of snapshots with the same number of paths, and their paths."""

_CHUNK = 256  # snapshots searched at once: bounds the memory of the periodograms
_CLOSE = 0.5  # coherence of the responses of two paths from which one may be a remainder of the other


class PathDetector:
    """Paths of every station with gains and covariances, at the Cramer-Rao bound where they are resolved.

    Everything is done on `y / sqrt(noise_var)`, hence equivariant to the scale of the data.

    Args:
        false_alarm: probability that a further path is found in noise alone, per station.
        max_paths: most paths of a station.
        oversampling: search grid points per resolution cell.
        polish_steps: Levenberg-Marquardt steps of a new path alone, before it is tested.
        newton_steps: steps of all paths together, after each new one.
        final_steps: most steps of all paths together, at the end.
        trial_steps: steps of the other paths when one is left out on trial.
        search_dtype: complex type of the periodogram; the refinement is always double.
    """

    def __init__(
        self,
        false_alarm: float = 5e-2,
        max_paths: int = 24,
        oversampling: float = 2.0,
        polish_steps: int = 2,
        newton_steps: int = 2,
        final_steps: int = 20,
        trial_steps: int = 6,
        search_dtype: str = "complex64",
    ) -> None:
        if not 0 < false_alarm < 1:
            raise ConfigError(f"false_alarm must be in (0, 1), got {false_alarm}")
        steps = (polish_steps, newton_steps, final_steps, trial_steps)
        if max_paths < 1 or not oversampling >= 1 or min(steps) < 0:
            raise ConfigError(
                "a path detector needs max_paths >= 1, oversampling >= 1 and steps >= 0, got "
                f"{max_paths}, {oversampling}, {steps}"
            )
        if search_dtype not in ("complex64", "complex128"):
            raise ConfigError(f"search_dtype must be complex64 or complex128, got {search_dtype!r}")
        self.false_alarm, self.max_paths, self.oversampling = false_alarm, max_paths, oversampling
        self.polish_steps, self.newton_steps = polish_steps, newton_steps
        self.final_steps, self.trial_steps = final_steps, trial_steps
        self.search_dtype = search_dtype
        self.tolerance = 1e-6  # of the log-likelihood: estimates within 1e-3 of a standard deviation of the maximum

    @torch.no_grad()
    def __call__(self, observation: Observation, deployment: Deployment) -> PathEstimates:
        """Detect the paths of all stations of a batch.

        Args:
            observation: y [* bs ant sc], noise_var [* bs].
            deployment: the stations.

        Returns:
            Estimates [* bs path] sorted by decreasing power, as many columns as the station with the most paths has
            (at least one); ranges in [0, c / pilot spacing) where the pilots lie on a raster.
        """
        sigma = observation.noise_var.to(torch.float64).sqrt()
        snapshots = _snapshots(observation, sigma)
        frame = torch.eye(3, dtype=torch.float64, device=sigma.device)
        local = deployment._replace(bs_position=0.0 * frame[:1], bs_rotation=frame[None])
        grid = search_grid(local, self.oversampling, self.false_alarm, getattr(torch, self.search_dtype))
        refiner = Refiner(local, grid.range_scale, grid.normal)
        found = []
        for start in range(0, sigma.numel(), _CHUNK):
            chunk = snapshots.select(slice(start, start + _CHUNK))
            for index, fit in self._finish(chunk, self._search(chunk, grid, refiner), grid, refiner):
                found.append((index + start, fit, refiner.covariance(fit)))
        return collect_paths(found, sigma, deployment)

    def _search(self, snapshots: Snapshots, grid: SearchGrid, refiner: Refiner) -> Iterator[Group]:
        """Yield groups of snapshots whose residual holds no further path; snapshots without any path are left out."""
        number = len(snapshots.y)
        index = torch.arange(number, device=snapshots.y.device)
        correlation, energy = correlate(_back(snapshots, snapshots.y)[:, 0], grid), _grid_energy(snapshots, grid)
        fit = refiner.fit(snapshots, grid.range_m.new_zeros(number, 1, 0), grid.range_m.new_zeros(number, 1, 0, 3))
        for count in range(min(self.max_paths, max(1, snapshots.y[0].numel() // 2))):
            operator = path_operator(fit.range_m, fit.direction, refiner.local).whitened(snapshots.whitener)
            residual = snapshots._replace(y=snapshots.y - operator.matvec(fit.gain))
            delay = _back(snapshots, operator.delay.mT).mT
            peak = residual_peak(correlation, operator.steering[:, 0], delay[:, 0], fit.gain[:, 0], grid, energy)
            new = refiner.fit(residual, *(point[:, None, None] for point in peak))
            new = refiner.refine(residual, new, self.polish_steps, self.tolerance)
            passed = (new.explained > grid.threshold).squeeze(-1)
            if not bool(passed.all()):
                if count:
                    yield index[~passed], fit.select(~passed)
                index, snapshots, correlation = index[passed], snapshots.select(passed), correlation[passed]
                energy = None if energy is None else energy[passed]
                fit, new = fit.select(passed), new.select(passed)
            if not len(index):
                return
            range_m = torch.cat([fit.range_m, new.range_m], -1)
            direction = torch.cat([fit.direction, new.direction], -2)
            fit = refiner.refine(
                snapshots, refiner.fit(snapshots, range_m, direction), self.newton_steps, self.tolerance
            )
        yield index, fit

    def _finish(
        self, snapshots: Snapshots, groups: Iterable[Group], grid: SearchGrid, refiner: Refiner
    ) -> Iterator[Group]:
        """Refine to convergence and undo splits: yield groups of snapshots with their final paths.

        Groups with the most paths come first; snapshots that lose a path join those that had one less from the start.
        """
        waiting: defaultdict[int, list[Group]] = defaultdict(list)
        for group in groups:
            waiting[group[1].gain.shape[-1]].append(group)
        while waiting:
            count = max(waiting)
            indices, fits = zip(*waiting.pop(count), strict=True)
            index, fit = torch.cat(indices), Fit(*(torch.cat(field) for field in zip(*fits, strict=True)))
            index, fit, dropped = self._undo_splits(snapshots, index, fit, grid, refiner)
            waiting[count - 1].extend(dropped)
            if not waiting[count - 1]:
                del waiting[count - 1]
            if len(index):
                range_m = fit.range_m if grid.period is None else fit.range_m.remainder(grid.period)
                yield index, refiner.fit(snapshots.select(index), range_m, fit.direction)

    def _undo_splits(
        self, snapshots: Snapshots, index: Tensor, fit: Fit, grid: SearchGrid, refiner: Refiner
    ) -> tuple[Tensor, Fit, list[Group]]:
        """Snapshots whose paths are all needed, refined; and groups of those that have lost one.

        A path that was found while its neighbours were still off may be the remains of theirs. The two weakest paths
        that are insignificant or close to another are each left out on trial; the path is dropped when the others,
        refined again, explain the data as well up to the detection threshold.
        """
        fit = refiner.refine(snapshots.select(index), fit, self.final_steps, self.tolerance)
        strength = fit.gain.abs().square() / fit.gain_var  # log-likelihood lost without the path, the others kept
        suspect = (_coherence(fit, refiner.local) > _CLOSE) | (strength < grid.threshold)
        ranked, order = strength.where(suspect, torch.inf).sort(-1)
        groups: list[Group] = []
        for rank in range(min(2, strength.shape[-1] - 1)):
            tried = ranked[:, 0, rank].isfinite()
            if not bool(tried.any()):
                break
            part = snapshots.select(index[tried])
            trial = _without(part, fit.select(tried), order[tried, :, rank, None], refiner)
            trial = refiner.refine(part, trial, self.trial_steps, self.tolerance)
            dropped = (fit.explained[tried] - trial.explained < grid.threshold).squeeze(-1)
            if bool(dropped.any()):
                groups.append((index[tried][dropped], trial.select(dropped)))
            kept = tried.logical_not().masked_scatter(tried, ~dropped)
            index, fit, ranked, order = index[kept], fit.select(kept), ranked[kept], order[kept]
        return index, fit, groups


def _snapshots(observation: Observation, sigma: Tensor) -> Snapshots:
    """All stations of all scenes one after another, with unit white noise."""
    y, whitener = observation.y.to(torch.complex128) / sigma[..., None, None], observation.whitener
    if whitener is not None:
        whitener = whitener.to(y.dtype)
        y, whitener = y @ whitener.mT, whitener.reshape(-1, 1, *whitener.shape[-2:])
    return Snapshots(y.reshape(-1, 1, *y.shape[-2:]), whitener)


def _back(snapshots: Snapshots, rows: Tensor) -> Tensor:
    """`W^H` times whitened rows over the pilots: what is correlated with responses that are not whitened."""
    return rows if snapshots.whitener is None else rows @ snapshots.whitener.conj()


def _grid_energy(snapshots: Snapshots, grid: SearchGrid) -> Tensor | None:
    """`|W d|^2 / sc` of the grid's delay responses, [n rng]; None where nothing is whitened."""
    if snapshots.whitener is None:
        return None
    return (snapshots.whitener[:, 0].to(grid.delay.dtype) @ grid.delay.conj()).abs().square().mean(-2)


def _without(snapshots: Snapshots, fit: Fit, which: Tensor, refiner: Refiner) -> Fit:
    """The fit less one path, `which` [n 1 1], of every snapshot."""
    others = torch.arange(fit.gain.shape[-1] - 1, device=which.device)
    others = others + (others >= which)  # [n 1 path-1]
    direction = fit.direction.gather(-2, others[..., None].expand(*others.shape, 3))
    return refiner.fit(snapshots, fit.range_m.gather(-1, others), direction)


def _coherence(fit: Fit, local: Deployment) -> Tensor:
    """Largest `|phi_l^H phi_m| / (ant * sc)` of every path with another, [n 1 path]."""
    gram = path_operator(fit.range_m, fit.direction, local).gram().abs()
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    return (gram - torch.diag_embed(diagonal)).amax(-1) / diagonal


def collect_paths(found: list[tuple[Tensor, Fit, Tensor]], sigma: Tensor, deployment: Deployment) -> PathEstimates:
    """Scatter groups (snapshots, fit, tangential covariance) into masked tensors in global axes, strongest first."""
    path = max((fit.gain.shape[-1] for _, fit, _ in found), default=1)
    station = torch.arange(sigma.numel(), device=sigma.device) % sigma.shape[-1]
    range_m = sigma.new_zeros(sigma.numel(), path)
    direction = deployment.boresight[station, None].repeat(1, path, 1)
    gain, mask = torch.zeros_like(range_m, dtype=torch.complex128), torch.zeros_like(range_m, dtype=torch.bool)
    covariance, information = sigma.new_zeros(2, sigma.numel(), path, 4, 4)
    for index, fit, tangential in found:
        order = fit.gain.abs().argsort(-1, descending=True)[:, 0]
        member = torch.arange(len(index), device=index.device)[:, None], torch.zeros_like(order), order
        place = index[:, None], torch.arange(order.shape[-1], device=index.device)
        rotation = deployment.bs_rotation[station[index], None]
        lift = sigma.new_zeros(*order.shape, 4, 3)
        lift[..., 0, 0] = 1.0
        lift[..., 1:, 1:] = rotation @ tangent_basis(fit.direction[member])
        range_m[place], gain[place], mask[place] = fit.range_m[member], fit.gain[member], True
        direction[place] = (rotation @ fit.direction[member][..., None]).squeeze(-1)
        covariance[place] = lift @ tangential[member] @ lift.mT
        information[place] = lift @ torch.linalg.inv(tangential[member]) @ lift.mT
    gain = gain * sigma.reshape(-1, 1)
    fields = (range_m, direction, gain, information, covariance, mask)
    return PathEstimates(*(field.unflatten(0, sigma.shape) for field in fields))
