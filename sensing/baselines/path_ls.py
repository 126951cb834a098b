"""Channel from the detected paths alone: what a front end reaches without any location."""

import torch

from sensing.baselines.gains import regularised_gains
from sensing.containers import Deployment, Estimate, Example, Observation, PathEstimates, in_double
from sensing.errors import DomainError
from sensing.estimator import Detector, check_input
from sensing.operators.khatri_rao import path_operator


class PathLs:
    """Channel from the detected paths with least squares gains, `h = Phi (Phi^H Phi)^-1 Phi^H y`; no location.

    `nomp_ls` and `music_ls` are this class with different front ends.

    Args:
        detector: front end, called where the caller brings no paths.
        name: label in tables.
        front_end: name of the front end; estimators with the same one share its paths.
    """

    needs_truth, bound = False, "peb"

    def __init__(self, detector: Detector | None = None, name: str = "nomp_ls", front_end: str = "nomp") -> None:
        self.detector, self.name, self.front_end = detector, name, front_end

    def __call__(
        self,
        observation: Observation,
        deployment: Deployment,
        paths: PathEstimates | None = None,
        truth: Example | None = None,
    ) -> Estimate:
        """Estimate the channel; raises DomainError if there are neither paths nor a detector."""
        check_input(observation, deployment, paths, noise_known=paths is None)
        if paths is None:
            if self.detector is None:
                raise DomainError(f"{self.name} needs paths or a detector, got neither")
            paths = self.detector(observation, deployment)
        paths = in_double(paths)
        operator = path_operator(paths.range_m, paths.direction, deployment, paths.mask, observation.y.dtype)
        # plain least squares up to rounding: the ridge only keeps two coinciding columns factorisable
        ant, sc = observation.y.shape[-2:]
        ridge = 8 * paths.mask.shape[-1] * torch.finfo(observation.y.dtype).eps * ant * sc
        gain = regularised_gains(operator, observation.y, ridge)
        return Estimate(channel=operator.matvec(gain))


NompLs = PathLs
