"""The tensors that travel between modules, by name.

All are NamedTuples of tensors, because these pass collate, device transfer and vmap unchanged. Axes: `*` batch, `bs`
base station, `ant` antenna, `sc` pilot subcarrier, `path` path of one station, `point` scatterer of the scene, `node`
hypothesised scatterer of an estimate, `xyz` Cartesian. Units at these boundaries: metres, seconds, hertz.
"""

from collections.abc import Callable
from typing import ClassVar, NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from sensing.checks import (
    check_finite,
    check_increasing,
    check_magnitude,
    check_positive,
    check_real,
    check_rotation,
    check_shape,
)
from sensing.errors import DomainError, ShapeError
from sensing.units import SPEED_OF_LIGHT

T = TypeVar("T")

LARGEST_M, LARGEST_HZ, LEAST_HZ, LEAST_M = 1e9, 1e15, 1e-3, 1e-3
AMPLITUDES = (1e-50, 1e50, " (its unit is free: rescale it with the noise)")
"""Magnitudes beyond which nothing is measured and products of four of them leave double precision."""
UNIT = 1e-3
"""Most by which the length of a direction may differ from one: rounding in single precision is far below."""


class Deployment(NamedTuple):
    """What the receivers know beforehand; common to all scenes of a batch."""

    bs_position: Tensor  # [bs xyz] [m]
    bs_rotation: Tensor  # [bs 3 3] local to global, column 0 is the boresight
    antenna_local: Tensor  # [ant xyz] element positions in the local frame [m]; [bs ant xyz] in true hardware alone
    pilot_freq: Tensor  # [sc] offsets from the carrier [Hz]
    carrier_hz: Tensor  # [] [Hz]
    clock_offset_std: Tensor  # [] standard deviation of the Gaussian offset prior [s]; inf is a flat prior
    region: Tensor | None = None  # [2 xyz] lower and upper corner of the region of interest [m]
    ue_height_range: Tensor | None = None  # [2] lowest and highest height of the user [m]

    @property
    def wavelength(self) -> Tensor:
        """Carrier wavelength [] [m]."""
        return SPEED_OF_LIGHT / self.carrier_hz

    @property
    def antenna_global(self) -> Tensor:
        """Element positions relative to the station in global axes, [bs ant xyz] [m]."""
        layout = "qij,mj->qmi" if self.antenna_local.ndim == 2 else "qij,qmj->qmi"
        return torch.einsum(layout, self.bs_rotation, self.antenna_local)

    @property
    def boresight(self) -> Tensor:
        """Unit vector normal to the array, [bs xyz]."""
        return self.bs_rotation[..., 0]

    @property
    def pilot_spacing(self) -> Tensor:
        """Smallest distance of two pilots [] [Hz]."""
        return self.pilot_freq.diff().min() if len(self.pilot_freq) > 1 else self.pilot_freq.new_tensor(float("inf"))

    @property
    def range_ambiguity(self) -> Tensor:
        """Path lengths are known modulo c / (pilot spacing), [] [m] (uniform pilots)."""
        return SPEED_OF_LIGHT / self.pilot_spacing

    @property
    def bandwidth(self) -> Tensor:
        """Pilot bandwidth, number of pilots times their mean spacing [] [Hz]."""
        count = len(self.pilot_freq)
        return (self.pilot_freq[-1] - self.pilot_freq[0]) * (count / max(count - 1, 1))

    def validate(self) -> "Deployment":
        """Check shapes and values of every field.

        Returns:
            The deployment itself.

        Raises:
            ShapeError: an axis does not fit.
            DomainError: a value is not finite, not positive, unsorted, or no rotation.
        """
        for name, field in zip(self._fields, self, strict=True):
            if field is not None:
                check_real(name, field)
        check_shape("bs_position", self.bs_position, "bs xyz", xyz=3)
        check_finite("bs_position", self.bs_position)
        check_shape("bs_rotation", self.bs_rotation, "bs 3 3", bs=self.bs_position.shape[0])
        check_rotation("bs_rotation", self.bs_rotation)
        check_shape("antenna_local", self.antenna_local, "ant xyz", xyz=3)
        check_finite("antenna_local", self.antenna_local)
        check_shape("pilot_freq", self.pilot_freq, "sc")
        check_increasing("pilot_freq", self.pilot_freq)
        if 0 in (*self.bs_position.shape, *self.antenna_local.shape, *self.pilot_freq.shape):
            sizes = len(self.bs_position), len(self.antenna_local), len(self.pilot_freq)
            raise ShapeError(f"a deployment needs a station, an antenna and a pilot, got {sizes} of them")
        check_shape("carrier_hz", self.carrier_hz, "")
        check_shape("clock_offset_std", self.clock_offset_std, "")
        check_positive("carrier_hz", self.carrier_hz)
        if not bool(self.clock_offset_std >= 0):
            raise DomainError(f"clock_offset_std must be >= 0 (inf: flat prior), got {float(self.clock_offset_std):g}")
        if self.region is not None:
            check_shape("region", self.region, "2 xyz", xyz=3)
            check_finite("region", self.region)
            if not bool((self.region[0] < self.region[1]).all()):
                raise DomainError(f"region must be (lower, upper) corner, got {self.region.tolist()}")
        if self.ue_height_range is not None:
            check_shape("ue_height_range", self.ue_height_range, "2")
            check_finite("ue_height_range", self.ue_height_range)
            if not bool(self.ue_height_range[0] <= self.ue_height_range[1]):
                raise DomainError(f"ue_height_range must be (lowest, highest), got {self.ue_height_range.tolist()}")
        self._check_magnitudes()
        return self

    def _check_magnitudes(self) -> None:
        for name in ("bs_position", "antenna_local", "region", "ue_height_range"):
            lengths = getattr(self, name)
            if lengths is not None:
                check_magnitude(name, lengths, 0.0, LARGEST_M)
        if self.region is not None:
            check_magnitude("the size of the region", self.region[1] - self.region[0], LEAST_M, LARGEST_M)
        check_magnitude("carrier_hz", self.carrier_hz, LEAST_HZ, LARGEST_HZ)
        check_magnitude("pilot_freq", self.pilot_freq, 0.0, LARGEST_HZ)
        check_magnitude("the spacing of pilot_freq", self.pilot_freq.diff(), LEAST_HZ, LARGEST_HZ)
        if bool(torch.isfinite(self.clock_offset_std)):
            check_magnitude("clock_offset_std", self.clock_offset_std, 0.0, LARGEST_M)


class Scene(NamedTuple):
    """The truth behind an observation. `gain` is None where it is unknown (files)."""

    ue_position: Tensor  # [* xyz] [m]
    scatterer_position: Tensor  # [* point xyz] [m]
    visible: Tensor  # [* bs point] bool: the single-bounce path user - point - station exists
    clock_offset: Tensor  # [* bs] [s], positive for a late clock
    gain: Tensor | None = None  # [* bs point] complex


class Paths(NamedTuple):
    """Plane waves arriving at each station."""

    delay: Tensor  # [* bs path] [s], clock offset included
    direction: Tensor  # [* bs path xyz] unit vector from the station to the last bounce
    gain: Tensor  # [* bs path] complex
    mask: Tensor  # [* bs path] bool: the path exists


class Observation(NamedTuple):
    """Received pilots divided by the pilot symbols."""

    y: Tensor  # [* bs ant sc] complex
    noise_var: Tensor  # [* bs] total power of the complex noise per entry
    whitener: Tensor | None = None  # [* bs sc sc] W over the pilots, W C W^H = noise_var I; None: the noise is white
    known_user: Tensor | None = None  # [* xyz] its position from elsewhere, which refinement holds; NaN: not known

    def validate(self, deployment: Deployment, noise_known: bool = True) -> "Observation":
        """Check shapes and values against a deployment; returns the observation itself.

        Args:
            deployment: the stations.
            noise_known: refuse noise variances that are not positive; else nobody reads their values (say NaN).

        Raises:
            ShapeError: an axis does not fit the deployment, or the batch axes of the two fields differ.
            DomainError: NaN or infinity, a noise variance that is not real and positive, or y is not complex.
        """
        fields = deployment.bs_position, deployment.antenna_local, deployment.pilot_freq
        sizes = dict(zip(("bs", "ant", "sc"), map(len, fields), strict=True))
        check_shape("y", self.y, "* bs ant sc", **sizes)
        check_shape("noise_var", self.noise_var, "* bs", bs=sizes["bs"])
        if self.noise_var.shape != self.y.shape[:-2]:
            raise ShapeError(f"noise_var must be {list(self.y.shape[:-2])} as y is, got {list(self.noise_var.shape)}")
        if not self.y.is_complex():
            raise DomainError(f"y must be complex, got {self.y.dtype}")
        check_real("noise_var", self.noise_var)
        check_finite("y", self.y)
        if noise_known and self.noise_var.numel() and bool(self.noise_var.isnan().all()):
            raise DomainError("noise_var must be known (or be estimated: noise=estimated), got NaN throughout")
        check_magnitude("y", self.y, *AMPLITUDES)
        if noise_known:
            check_positive("noise_var", self.noise_var)
            check_magnitude("the root of noise_var", self.noise_var.sqrt(), *AMPLITUDES)
        return self


class Example(NamedTuple):
    """One batch of data: the observation and what is known of its truth."""

    observation: Observation
    scene: Scene | None = None
    channel: Tensor | None = None  # [* bs ant sc] noise-free y
    noise_var: Tensor | None = None  # [* bs] the true one; None: the observation's is true

    @property
    def true_noise_var(self) -> Tensor:
        """Noise variance of y, [* bs]."""
        return self.observation.noise_var if self.noise_var is None else self.noise_var


class PathEstimates(NamedTuple):
    """Detected paths of every station, with their uncertainty.

    Information and covariance are over (range, direction x, y, z) in global axes, hence free of the choice of a tangent
    basis; both have rank 3, being zero along the direction itself.
    """

    range_m: Tensor  # [* bs path] c * (delay + clock offset) [m], modulo the range ambiguity
    direction: Tensor  # [* bs path xyz]
    gain: Tensor  # [* bs path] complex
    information: Tensor  # [* bs path 4 4]
    covariance: Tensor  # [* bs path 4 4]
    mask: Tensor  # [* bs path] bool

    def validate(self, deployment: Deployment) -> "PathEstimates":
        """Check shapes, types and the values of existing paths against a deployment; returns the paths themselves.

        Raises:
            ShapeError: an axis does not fit the deployment or the other fields.
            DomainError: NaN or infinity in a path that exists, a wrong type, or a direction that is none.
        """
        check_shape("the mask of paths", self.mask, "* bs path", bs=len(deployment.bs_position))
        if self.mask.dtype != torch.bool:
            raise DomainError(f"the mask of paths must be bool, got {self.mask.dtype}")
        further: dict[str, list[int]] = {
            "range_m": [],
            "direction": [3],
            "gain": [],
            "information": [4, 4],
            "covariance": [4, 4],
        }
        for name, axes in further.items():
            field, wanted = getattr(self, name), [*self.mask.shape, *axes]
            if list(field.shape) != wanted:
                raise ShapeError(f"{name} of paths must be {wanted} as their mask is, got {list(field.shape)}")
            if name != "gain":
                check_real(f"{name} of paths", field)
            exists = self.mask.reshape(*self.mask.shape, *(1 for _ in axes))
            check_finite(f"{name} of paths", torch.where(exists, field, torch.zeros_like(field)))
        length = self.direction[self.mask].norm(dim=-1)
        if bool(((length - 1.0).abs() > UNIT).any()):
            worst = float(length[(length - 1.0).abs().argmax()])
            raise DomainError(f"direction of paths must hold unit vectors, got one of length {worst:.3g}")
        return self


class Geometry(NamedTuple):
    """Unknowns of the location domain: what the coarse stage returns and the iterations refine.

    A located node is a scatterer hypothesis common to all stations. A free path belongs to one station and is a plane
    wave of unknown range and direction that is tied to no position; it takes part in the channel, not in the user's
    location.
    """

    ue_position: Tensor  # [* xyz] [m]
    offset_m: Tensor  # [* bs] c times the clock offset [m]
    node_position: Tensor  # [* node xyz] [m]
    node_mask: Tensor  # [* node] bool
    member: Tensor  # [* bs node] bool: a detected path of the station was associated with the node
    free_range_m: Tensor  # [* bs free] clock offset included [m]
    free_direction: Tensor  # [* bs free xyz]
    free_mask: Tensor  # [* bs free] bool


class Estimate(NamedTuple):
    """What an estimator returns. A field is None where the estimator has no such output, and says so by that."""

    channel: Tensor  # [* bs ant sc] complex
    ue_position: Tensor | None = None  # [* xyz] [m]
    clock_offset: Tensor | None = None  # [* bs] [s]
    covariance: Tensor | None = None  # [* 3+bs 3+bs] of (user x, y, z, c * clock offsets) [m^2]
    scatterer_position: Tensor | None = None  # [* node xyz] [m]
    scatterer_covariance: Tensor | None = None  # [* node 3 3] [m^2]
    scatterer_mask: Tensor | None = None  # [* node] bool: the node is believed to exist
    support: Tensor | None = None  # [* bs node] posterior probability that the station sees the node
    gain: Tensor | None = None  # [* bs node] complex
    cost_per_dof: Tensor | None = None  # [*] weighted squared path residual over its degrees of freedom
    flags: Tensor | None = None  # [*] int64, bits of sensing.containers.Flag; 0 is a trusted solution
    fallback: Tensor | None = None  # [*] bool, scenes that classical iterations redid where learned ones went wrong
    near: Tensor | None = None  # [*] bool, scenes whose start left nothing for learned layers to do


class Flag:
    """Bits of `Estimate.flags`: why a solution is doubtful."""

    NO_PATHS = 1  # nothing was detected in any station
    TOO_FEW_SHARED = 2  # fewer shared scatterers than unknowns: the prior holds the solution
    POOR_FIT = 4  # the path residuals fail their chi-square test
    SECOND_MODE = 8  # another user position explains the paths about as well
    UNOBSERVABLE = 16  # the information matrix is singular to working precision
    DIVERGED = 32  # the refinement left the region or became non-finite; the coarse solution is returned
    RANGE_AMBIGUOUS = 64  # too few pilots, or path lengths repeat within the region
    DIRECTION_AMBIGUOUS = 128  # the antennas form a line or a point
    OUTSIDE_REGION = 256  # the user lies outside the region or height range that was given
    COARSE_ARRAY = 512  # the antennas resolve so few directions that paths merge
    NAMES: ClassVar[dict[int, str]] = {
        1: "no_paths",
        2: "too_few_shared",
        4: "poor_fit",
        8: "second_mode",
        16: "unobservable",
        32: "diverged",
        64: "range_ambiguous",
        128: "direction_ambiguous",
        256: "outside_region",
        512: "coarse_array",
    }

    @classmethod
    def describe(cls, bits: int) -> str:
        """Names of the set bits, joined by `|`; empty when none is set."""
        return "|".join(name for bit, name in cls.NAMES.items() if bits & bit)


def map_tensors(container: T, function: Callable[[Tensor], Tensor]) -> T:
    """Apply a function to every tensor of a (nested) NamedTuple and keep its type."""
    if isinstance(container, Tensor):
        return cast(T, function(container))
    if isinstance(container, tuple) and hasattr(container, "_fields"):
        return type(container)(*(map_tensors(field, function) for field in container))
    return container


def in_double(container: T) -> T:
    """Every floating point tensor of a NamedTuple in double precision, complex ones included."""

    def wide(tensor: Tensor) -> Tensor:
        return tensor.to(torch.complex128) if tensor.is_complex() else tensor.double()

    return map_tensors(container, lambda t: wide(t) if t.is_complex() or t.is_floating_point() else t)


def to_device(container: T, device: torch.device | str) -> T:
    """Move every tensor of a NamedTuple to a device."""
    return map_tensors(container, lambda tensor: tensor.to(device))
