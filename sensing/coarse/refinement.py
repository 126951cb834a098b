"""Maximum likelihood refinement of the paths of snapshots by Levenberg-Marquardt with the complex gains eliminated.

With unit noise the negative log-likelihood of range and direction of all paths, the gains put at their best, is
`|y|^2 - b^H G^-1 b` with `b = Phi^H y`, `G = Phi^H Phi` (variable projection; Golub and Pereyra, SIAM J. Numer. Anal.
10, 1973). Its gradient and its Gauss-Newton matrix, the Fisher information, follow from the Gram matrix and the moments
of the columns and their derivatives, so that no residual of length ant * sc is formed. Snapshots carry an axis bs of
size one: each is the only station, in its own frame.

A path's derivatives are `j w phi` with a real weight w per antenna or pilot; here the columns are `w phi` and the j
is written out. Parameters are ordered by kind: all ranges, all first tangents, all second tangents.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sensing.containers import Deployment
from sensing.geometry import tangent_basis
from sensing.units import SPEED_OF_LIGHT
from sensing.waves import plane_waves

_MIN_DAMPING, _MAX_DAMPING = 1e-12, 1e6


class Snapshots(NamedTuple):
    """Observations of single stations with unit noise, whitened over the pilots."""

    y: Tensor  # [n 1 ant sc] `W y / sigma`
    whitener: Tensor | None = None  # [n 1 sc sc] W; None: the identity

    def select(self, index: Tensor | slice) -> "Snapshots":
        """The snapshots at an index (or bool mask)."""
        return Snapshots(self.y[index], None if self.whitener is None else self.whitener[index])


class Fit(NamedTuple):
    """Paths of n snapshots with the quantities of a Gauss-Newton step."""

    range_m: Tensor  # [n 1 path]
    direction: Tensor  # [n 1 path xyz]
    gain: Tensor  # [n 1 path] least squares
    gain_var: Tensor  # [n 1 path] of the gain, ranges and directions given
    explained: Tensor  # [n 1] b^H G^-1 b
    gradient: Tensor  # [n 1 3*path] of the log-likelihood over (ranges, t1, t2)
    information: Tensor  # [n 1 3*path 3*path]

    def select(self, index: Tensor) -> "Fit":
        """The snapshots at an index (or bool mask)."""
        return Fit(*(field[index] for field in self))

    def replace(self, index: Tensor, other: "Fit") -> "Fit":
        """A copy whose snapshots at an index are those of another fit."""
        return Fit(*(mine.index_copy(0, index, theirs) for mine, theirs in zip(self, other, strict=True)))


class Refiner:
    """Levenberg-Marquardt steps on whitened snapshots.

    Args:
        local: a deployment of one station in its own frame.
        range_scale: range [m] whose inverse square is the weak prior information on every range; on the
            tangents it is 1 rad^-2. It keeps what the array or the pilots do not resolve at a finite variance.
        normal: [xyz] directions are mirrored to this side of a planar array, which cannot tell the two apart.
    """

    def __init__(self, local: Deployment, range_scale: float, normal: Tensor | None) -> None:
        self.local, self.normal = local, normal
        self.antenna = (2.0 * math.pi / local.wavelength) * local.antenna_local  # [ant xyz] [rad]
        self.rate = (-2.0 * math.pi / SPEED_OF_LIGHT) * local.pilot_freq[:, None]  # [sc 1] [rad/m]
        self.prior = self.rate.new_tensor([range_scale**-2, 1.0, 1.0])

    def fit(self, snapshots: Snapshots, range_m: Tensor, direction: Tensor) -> Fit:
        """Gains, likelihood, gradient and information at given ranges and directions.

        Args:
            snapshots: of n stations.
            range_m: [n 1 path].
            direction: [n 1 path xyz].
        """
        path, y = range_m.shape[-1], snapshots.y
        steering, delay = plane_waves(self.antenna, direction), plane_waves(self.rate, range_m[..., None])
        slope = self.antenna @ tangent_basis(direction).permute(0, 1, 3, 4, 2).flatten(-2)  # [n 1 ant 2*path]
        steering = torch.cat([steering, slope * steering.repeat(1, 1, 1, 2)], -1)
        delay = torch.cat([delay, self.rate * delay], -1)
        delay = delay if snapshots.whitener is None else snapshots.whitener @ delay
        gram, moment = _products(y, steering, delay)
        floor = 1e-12 * float(y.shape[-2] * y.shape[-1])  # of the diagonal: coincident paths share their gain
        eye = torch.eye(path, dtype=gram.dtype, device=gram.device)
        chol = torch.linalg.cholesky(gram[..., :path, :path] + floor * eye)
        right = torch.cat([moment[..., :path, None], eye.expand(chol.shape), gram[..., :path, path:]], -1)
        right = torch.linalg.solve_triangular(chol, right, upper=False)
        white, root, cross = right[..., :1], right[..., 1 : path + 1], right[..., path + 1 :]
        gain = (root.mH @ white).squeeze(-1)
        weight = gain.repeat(1, 1, 3)
        left = moment[..., path:] - (cross.mH @ white).squeeze(-1)
        inner = gram[..., path:, path:] - cross.mH @ cross
        return Fit(
            range_m=range_m,
            direction=direction,
            gain=gain,
            gain_var=root.abs().square().sum(-2),
            explained=white.abs().square().sum((-2, -1)),
            gradient=2.0 * (weight.conj() * left).imag,
            information=2.0 * (weight.conj()[..., :, None] * weight[..., None, :] * inner).real,
        )

    def covariance(self, fit: Fit) -> Tensor:
        """Covariance of (range, t1, t2) of every path, all others unknown, [n 1 path 3 3]."""
        inverse = torch.cholesky_inverse(self._factor(fit, torch.zeros_like(fit.explained)))
        path = fit.gain.shape[-1]
        return inverse.unflatten(-1, (3, path)).unflatten(-3, (3, path)).diagonal(dim1=-3, dim2=-1).movedim(-1, -3)

    def refine(self, snapshots: Snapshots, fit: Fit, steps: int, tolerance: float) -> Fit:
        """At most so many steps; a snapshot stops once a step changes its log-likelihood by less than the tolerance.

        A step that does not raise the likelihood is undone and damped more. What happens to a snapshot does not depend
        on the others of the batch; those that have stopped leave it.
        """
        result, index = fit, torch.arange(len(snapshots.y), device=fit.range_m.device)
        damping = torch.full_like(fit.explained, 1e-3)
        for _ in range(steps):
            step = torch.cholesky_solve(fit.gradient[..., None], self._factor(fit, damping)).squeeze(-1)
            running = ((fit.gradient * step).sum(-1) > tolerance).squeeze(-1)
            if not bool(running.all()):
                result = result.replace(index, fit)
                index, snapshots, fit = index[running], snapshots.select(running), fit.select(running)
                step, damping = step[running], damping[running]
            if not len(index):
                break
            trial = self.fit(snapshots, *self.move(fit, step))
            better = trial.explained > fit.explained
            fit = Fit(*(torch.where(_like(better, new), new, old) for new, old in zip(trial, fit, strict=True)))
            damping = torch.where(better, damping / 10.0, damping * 10.0).clamp(_MIN_DAMPING, _MAX_DAMPING)
        return result.replace(index, fit)

    def move(self, fit: Fit, step: Tensor) -> tuple[Tensor, Tensor]:
        """Ranges and directions after a step [n 1 3*path] in the tangent space."""
        step = step.unflatten(-1, (3, -1))
        direction = fit.direction + (tangent_basis(fit.direction) * step[..., 1:, :].mT[..., None, :]).sum(-1)
        direction = direction / torch.linalg.vector_norm(direction, dim=-1, keepdim=True)
        if self.normal is not None:
            direction = direction - 2.0 * (direction @ self.normal).clamp(max=0.0)[..., None] * self.normal
        return fit.range_m + step[..., 0, :], direction

    def _factor(self, fit: Fit, damping: Tensor) -> Tensor:
        """Cholesky factor of the information with prior and with damping relative to its diagonal."""
        diagonal = fit.information.diagonal(dim1=-2, dim2=-1)
        prior = self.prior.repeat_interleave(fit.gain.shape[-1])
        ridge = (damping[..., None] + _MIN_DAMPING) * diagonal + prior
        factor, failed = torch.linalg.cholesky_ex(fit.information + torch.diag_embed(ridge))
        if bool(failed.any()):  # paths that coincide to rounding: damped like a rejected step rather than refused
            ridge = torch.where(failed[..., None] > 0, ridge + 1e-6 * diagonal, ridge)
            factor = torch.linalg.cholesky_ex(fit.information + torch.diag_embed(ridge)).L
        return factor


def _products(y: Tensor, steering: Tensor, delay: Tensor) -> tuple[Tensor, Tensor]:
    """Gram and moments of the columns (phi, range, t1, t2 of all paths).

    Args:
        y: [n 1 ant sc].
        steering: [n 1 ant 3*path] responses, times the weight of either tangent.
        delay: [n 1 sc 2*path] responses, times the weight of the range.

    Returns:
        [n 1 4*path 4*path] and [n 1 4*path].
    """
    path = delay.shape[-1] // 2
    place = torch.arange(path, device=y.device)
    antenna_factor = torch.cat([place, place, path + place, 2 * path + place])
    delay_factor = torch.cat([place, path + place, place, place])
    conj_steering, conj_delay = steering.conj().resolve_conj(), delay.conj().resolve_conj()  # once for two products
    s_gram = (conj_steering.mT @ steering).index_select(-1, antenna_factor).index_select(-2, antenna_factor)
    d_gram = (conj_delay.mT @ delay).index_select(-1, delay_factor).index_select(-2, delay_factor)
    # pilots first: two products with y per path where antennas first would take three
    right = (conj_steering.mT @ (y @ conj_delay)).unflatten(-1, (2, path)).unflatten(-3, (3, path))
    right = right.diagonal(dim1=-3, dim2=-1)  # [n 1 3 2 path]
    moment = torch.cat([right[..., 0, :, :].flatten(-2), right[..., 1:, 0, :].flatten(-2)], -1)
    return s_gram * d_gram, moment


def _like(flag: Tensor, tensor: Tensor) -> Tensor:
    """A flag [n 1] with as many axes as a tensor."""
    return flag.reshape(flag.shape + (1,) * (tensor.ndim - flag.ndim))
