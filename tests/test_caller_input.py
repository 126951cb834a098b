"""What a caller hands to an estimator beside stations and pilots: what does not fit is refused by name."""

import math

import pytest
import torch

from sensing import arrays, ofdm
from sensing.baselines import GenieLmmse, GridOmp, IdealSync, PathLs
from sensing.containers import PathEstimates, in_double
from sensing.errors import ConfigError, DomainError, ShapeError
from sensing.estimator import build_estimator
from sensing.paper_estimator import PaperEstimator
from sensing.simulation import SceneSampler, Simulator, build_deployment
from tests.reference.oracle import single_path

CLASSICAL = build_estimator(unrolled={"num_iterations": 1})
ESTIMATORS = {
    "classical": CLASSICAL,
    "paper": PaperEstimator(),
    "omp": GridOmp(),
    "nomp_ls": PathLs(),
    "ideal_sync": IdealSync(CLASSICAL),
}
PLAN = build_deployment(
    [[0, 0, 6], [40, 0, 5], [40, 40, 6]],
    arrays.upa(3, 3),
    ofdm.pilot_frequencies(128, 120e3, 16),
    28e9,
    1e-8,
    target=[20, 20, 4],
    region=[[0, 0, 0], [40, 40, 8]],
)
SIMULATOR = Simulator(PLAN, SceneSampler([[3, 3, 1], [37, 37, 2]], [[1, 1, 0.5], [39, 39, 7.5]], 3, 1), seed=5)
EXAMPLE = SIMULATOR.examples("test", range(2), snr_db=8.0)


def paths() -> PathEstimates:
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(2, 3, 4, 3, generator=generator, dtype=torch.float64)
    return single_path(20.0 + 10.0 * torch.rand(2, 3, 4, generator=generator), direction, 0.1, 0.01)


def poisoned(field):
    field = field.clone()
    field[0, 1, 2] = math.nan
    return field


BROKEN = {
    "range": ("range_m", poisoned, DomainError, "range_m of paths must be finite"),
    "gain": ("gain", poisoned, DomainError, "gain of paths must be finite"),
    "covariance": ("covariance", poisoned, DomainError, "covariance of paths must be finite"),
    "information": ("information", poisoned, DomainError, "information of paths must be finite"),
    "no direction": ("direction", lambda x: 0 * x, DomainError, "direction of paths must hold unit vectors"),
    "complex": ("range_m", lambda x: x + 0j, DomainError, "range_m of paths must be real"),
    "mask": ("mask", lambda x: x.long(), DomainError, "mask of paths must be bool"),
    "station missing": ("mask", lambda x: x[:, :2], ShapeError, "mask of paths must be .* with bs=3"),
    "path missing": ("range_m", lambda x: x[..., :3], ShapeError, r"range_m of paths must be \[2, 3, 4\]"),
}


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("how", BROKEN)
def test_paths_that_do_not_fit_are_refused(name, how):
    field, change, error, message = BROKEN[how]
    broken = paths()._replace(**{field: change(getattr(paths(), field))})
    with pytest.raises(error, match=message):
        ESTIMATORS[name](EXAMPLE.observation, PLAN, broken, EXAMPLE)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_paths_of_other_scenes_are_refused(name):
    one = PathEstimates(*(field[:1] for field in paths()))
    with pytest.raises(ShapeError, match=r"mask of paths must be \[2, 3, 'path'\] as y is, got \[1, 3, 4\]"):
        ESTIMATORS[name](EXAMPLE.observation, PLAN, one, EXAMPLE)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_paths_in_single_precision_are_the_same_paths(name):
    def single(field):
        return (
            field.to(torch.complex64) if field.is_complex() else field if field.dtype == torch.bool else field.float()
        )

    rounded = PathEstimates(*map(single, paths()))
    with torch.no_grad():
        found = ESTIMATORS[name](EXAMPLE.observation, PLAN, rounded, EXAMPLE)
        wanted = ESTIMATORS[name](EXAMPLE.observation, PLAN, in_double(rounded), EXAMPLE)
    torch.testing.assert_close(found.channel, wanted.channel)


def test_a_path_that_does_not_exist_may_hold_anything():
    given = paths()
    mask = given.mask.clone()
    mask[0, 1, 2] = False
    empty = given._replace(mask=mask, range_m=poisoned(given.range_m))
    assert empty.validate(PLAN) is empty


@pytest.mark.parametrize(
    ("field", "change", "error"),
    [
        ("y", poisoned, DomainError),
        ("y", lambda y: y.real, DomainError),
        ("y", lambda y: y[:1], ShapeError),
        ("noise_var", lambda v: -v, DomainError),
        ("noise_var", lambda v: math.nan * v, DomainError),
    ],
)
@pytest.mark.parametrize("estimator", [GenieLmmse(), PathLs(CLASSICAL.detector)], ids=["genie_lmmse", "nomp_ls"])
def test_baselines_that_only_fit_gains_refuse_what_the_others_refuse(estimator, field, change, error):
    observation = EXAMPLE.observation._replace(**{field: change(getattr(EXAMPLE.observation, field))})
    with pytest.raises(error, match=field):
        estimator(observation, PLAN, truth=EXAMPLE)


@pytest.mark.parametrize("estimator", [GenieLmmse(), ESTIMATORS["ideal_sync"]], ids=["genie_lmmse", "ideal_sync"])
def test_a_truth_of_other_scenes_is_refused(estimator):
    other = SIMULATOR.examples("test", range(3), snr_db=8.0)
    with pytest.raises(ShapeError, match=r"clock_offset of the true scene must be \[2, 3\] as y is, got \[3, 3\]"):
        estimator(EXAMPLE.observation, PLAN, truth=other)


@pytest.mark.parametrize("residual", [-1.0, math.inf, math.nan])
def test_a_residual_that_is_no_deviation_is_refused(residual):
    with pytest.raises(ConfigError, match="residual must be a finite number >= 0"):
        IdealSync(CLASSICAL, residual)
