"""Claims of paper 1 beside what this package measures: association by angles, plain-gradient EM, the clock offsets,
and the grid.

    python -m benchmarks.paper_claims [--only association urban refinement offsets grid] [--scenes 64]

prints one table each (all by default), as in docs/paper1.md. Scenes and noise are seeded; a table takes a minute
or a few on one core.
"""

import argparse
import time
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from benchmarks.hall import BANDWIDTH, hall
from benchmarks.tune_baselines import simulator as configured
from sensing.bounds.asynchronous import uplink_bound
from sensing.coarse import CoarseLocalizer, MusicDetector, PathDetector
from sensing.coarse.cliques import cluster_rays, ray_graph
from sensing.coarse.paper import PaperLocalizer
from sensing.containers import Deployment, Example, PathEstimates
from sensing.estimator import LocationEstimator
from sensing.geometry import bounce_ranges
from sensing.inference.starts import perturbed_start
from sensing.inference.unrolled import Unrolled
from sensing.metrics import nmse_db
from sensing.paper_estimator import PaperEstimator
from sensing.simulation import Simulator
from sensing.simulation.sampler import scene_generator
from sensing.units import SPEED_OF_LIGHT

BATCH = 16


def batches(
    simulator: Simulator, scenes: int, snr_db: float = 10.0, size: int = BATCH
) -> Iterator[tuple[range, Example]]:
    """Test scenes in small batches."""
    for first in range(0, scenes, size):
        indices = range(first, min(first + size, scenes))
        yield indices, simulator.examples("test", indices, snr_db)


def origin(paths: PathEstimates, example: Example, deployment: Deployment, reach_m: float = 1.0) -> Tensor:
    """Scatterer behind every detected path, -1 where there is none within the reach and three degrees, [b bs path]."""
    scene = example.scene
    assert scene is not None
    offset = SPEED_OF_LIGHT * scene.clock_offset
    length, direction, _, _ = bounce_ranges(scene.scatterer_position, scene.ue_position, deployment.bs_position, offset)
    period = deployment.range_ambiguity
    gap = paths.range_m[..., None] - length[..., None, :]
    gap = (gap - period * torch.round(gap / period)).abs()
    turn = (paths.direction[..., None, :] - direction[..., None, :, :]).norm(dim=-1)
    near = (gap < reach_m) & (turn < 0.05) & scene.visible[..., None, :]
    distance = (gap / reach_m + turn / 0.05).where(near, torch.inf)
    nearest, point = distance.min(-1)
    return torch.where(nearest.isfinite() & paths.mask, point, -1)


def purity(path: Tensor, point: Tensor) -> tuple[int, int]:
    """False clusters, and all clusters: nodes of several stations whose paths do not stem from one scatterer."""
    scene = torch.arange(len(path))[:, None, None]
    station = torch.arange(path.shape[-1])
    member = path >= 0
    behind = torch.where(member, point[scene, station, path.clamp_min(0)], -2)
    first = behind.amax(-1, keepdim=True)
    shared = member.sum(-1) >= 2
    pure = ((behind == first) | ~member).all(-1) & (first[..., 0] >= 0)
    return int((shared & ~pure).sum()), int(shared.sum())


def association(scenes: int) -> None:
    """Share of false clusters against the height of the hall, NOMP paths at 10 dB, threshold 0.3 m."""
    print(
        "height [m] | wrong pairs within 0.3 m | false clusters, >= 2 stations | >= 3 stations | with delays, classical"
    )
    for height in (4.0, 8.0, 16.0, 32.0, 64.0):
        simulator, detector, classical = hall(8, height=height), PathDetector(), CoarseLocalizer()
        counts = {name: torch.zeros(2) for name in ("pairs", "two", "three", "classical")}
        for _, example in batches(simulator, scenes):
            paths = detector(example.observation, simulator.deployment)
            point = origin(paths, example, simulator.deployment)
            graph = ray_graph(paths, simulator.deployment, 0.3)
            other = paths.mask[:, :, :, None, None] & paths.mask[:, None, None]
            other = other & ~torch.eye(4, dtype=torch.bool)[:, None, :, None]
            same = (point[:, :, :, None, None] == point[:, None, None]) & (point >= 0)[:, :, :, None, None]
            counts["pairs"] += torch.tensor([(graph & ~same).sum(), (other & ~same).sum()])
            for name, views in (("two", 2), ("three", 3)):
                found = cluster_rays(paths, simulator.deployment, 0.3, views)
                counts[name] += torch.tensor(purity(found.path, point))
            counts["classical"] += torch.tensor(purity(classical(paths, simulator.deployment).path, point))
        shares = [float(false / total) for false, total in counts.values()]
        print(f"{height:5.0f} | " + " | ".join(f"{share:6.3f}" for share in shares), flush=True)
    _false_clusters_and_error(scenes)


def _false_clusters_and_error(scenes: int) -> None:
    """User error of the default coarse stage in scenes with and without a false cluster."""
    simulator, detector, coarse = hall(8), PathDetector(), PaperLocalizer()
    errors, impure = [], []
    for _, example in batches(simulator, scenes):
        assert example.scene is not None
        paths = detector(example.observation, simulator.deployment)
        found, point = coarse(paths, simulator.deployment), origin(paths, example, simulator.deployment)
        errors.append((found.geometry.ue_position - example.scene.ue_position).norm(dim=-1))
        impure += [purity(path[None], behind[None])[0] > 0 for path, behind in zip(found.path, point, strict=True)]
    error, wrong = torch.cat(errors), torch.tensor(impure)
    for name, scene in (("without", ~wrong), ("with", wrong)):
        print(f"{_described(error[scene])} {name} a false cluster")


def _described(error: Tensor) -> str:
    """A user error [scene]."""
    rms, below = error.square().mean().sqrt(), int((error < 3).sum())
    return f"{len(error)} scenes, median {error.median():.2f} m, rms {rms:.2f} m, {below} below 3 m,"


def urban(scenes: int) -> None:
    """Clusters of the coarse stage in the urban square, where one needs all three stations, and the user's error."""
    simulator, coarse = configured("urban"), PaperLocalizer()
    for snr_db in (20.0, 10.0):
        for name, detector in (("MUSIC", MusicDetector()), ("Newtonized OMP", PathDetector())):
            errors, counts = [], []
            for _, example in batches(simulator, scenes, snr_db):
                assert example.scene is not None
                paths = detector(example.observation, simulator.deployment)
                found, point = coarse(paths, simulator.deployment), origin(paths, example, simulator.deployment, 4.0)
                errors.append((found.geometry.ue_position - example.scene.ue_position).norm(dim=-1))
                counts += [purity(path[None], behind[None]) for path, behind in zip(found.path, point, strict=True)]
            error, (false, number) = torch.cat(errors), torch.tensor(counts).T
            mean, bad = number.double().mean(), false.double().mean()
            print(f"{snr_db:g} dB, {name}: {mean:.2f} clusters, {bad:.2f} of them false")
            for group, where in (
                ("with four clusters or more, none false", (false == 0) & (number >= 4)),
                ("with fewer than four, none false", (false == 0) & (number < 4)),
                ("with a false cluster", false > 0),
            ):
                if where.any():
                    print(f"  {_described(error[where])} {group}", flush=True)


def refinement(scenes: int) -> None:
    """Error over bound after the EM, from starts four standard deviations of the bound out, 10 dB, six shared."""
    simulator = hall(6)
    variants: Mapping[str, Unrolled | None] = {
        "start": None,
        "gradient, 8 iterations": Unrolled(8, kind="gradient"),
        "gradient, 8 iterations of 10 steps": Unrolled(8, kind="gradient", ascents=10),
        "gradient, 40 iterations": Unrolled(40, kind="gradient"),
        "Gauss-Newton on the same surrogate (missing=0), 8": Unrolled(8, missing=0.0),
        "Gauss-Newton, classical (missing=0.9), 8": Unrolled(8),
    }
    ratio: dict[str, list[Tensor]] = {name: [] for name in variants}
    deployment = simulator.deployment
    for indices, example in batches(simulator, scenes):
        assert example.scene is not None
        bound = uplink_bound(example.scene, example.observation.noise_var, deployment)
        rngs = [scene_generator(0, "test", i, 2) for i in indices]
        start = perturbed_start(example, deployment, bound.covariance, 4.0, 1, rngs)
        for name, unrolled in variants.items():
            ue = start.ue_position
            if unrolled is not None:
                with torch.no_grad():
                    ue = unrolled(example.observation, deployment, start).final.geometry.ue_position
            ratio[name].append((ue - example.scene.ue_position).norm(dim=-1) / peb(bound.covariance))
    print("M-step | median error / PEB | rms error / PEB | converged (< 3 PEB)")
    for name, parts in ratio.items():
        r = torch.cat(parts)
        print(f"{name} | {r.median():.2f} | {r.square().mean().sqrt():.2f} | {(r < 3).double().mean():.2f}")


def peb(covariance: Tensor) -> Tensor:
    """Position error bound of the user [*] from the covariance of (u, ...)."""
    return covariance.diagonal(dim1=-2, dim2=-1)[..., :3].sum(-1).sqrt()


def offsets(scenes: int) -> None:
    """User error against the deviation of the clock offsets, eight shared scatterers, 10 dB; NOMP paths unless said."""
    print("sigma * B | method | median error [m] | rms error [m] | converged (< 3 PEB)")
    nomp, music, coarse, prior = PathDetector(), MusicDetector((24, 4, 4)), PaperLocalizer(), PaperLocalizer(prior=True)
    paper, classical = PaperEstimator(), LocationEstimator()
    for sigma in (0.1, 1.0, 10.0, 100.0):
        simulator = hall(8, sigma / BANDWIDTH)
        known = simulator.deployment
        # a pilot every hertz: path lengths are taken as they come
        endless = known._replace(pilot_freq=torch.arange(2, dtype=torch.float64))
        synchronous = known._replace(clock_offset_std=torch.zeros(()).double())
        error: dict[str, list[Tensor]] = {}
        for _, example in batches(simulator, scenes):
            assert example.scene is not None
            truth, given = example.scene.ue_position, example.observation
            with torch.no_grad():
                paths, smoothed = nomp(given, known), music(given, known)
                found = {
                    "paper (MUSIC)": paper(given, known, smoothed).ue_position,
                    "paper (NOMP)": paper(given, known, paths).ue_position,
                    "its coarse stage": coarse(paths, known).geometry.ue_position,
                    "coarse, with offset prior": prior(paths, known).geometry.ue_position,
                    "coarse, lengths not unwrapped": coarse(paths, endless).geometry.ue_position,
                    "coarse, offsets ignored": prior(paths, synchronous).geometry.ue_position,
                    "classical": classical(given, known, paths).ue_position,
                }
            bound = peb(uplink_bound(example.scene, given.noise_var, known).covariance)
            error.setdefault("bound", []).append(bound)
            for name, ue in found.items():
                assert ue is not None
                error.setdefault(name, []).append((ue - truth).norm(dim=-1))
        limit = 3.0 * torch.cat(error["bound"])
        for name, parts in error.items():
            e = torch.cat(parts)
            share = "" if name == "bound" else f"{(e < limit).double().mean():.2f}"
            print(f"{sigma:g} | {name} | {e.median():.3f} | {e.square().mean().sqrt():.2f} | {share}", flush=True)


def grid(scenes: int) -> None:
    """One movable point per scatterer against local clouds, on what the coarse stage finds: 10 dB, NOMP paths."""
    simulator, detector = hall(8, visibility=1.0), PathDetector()
    points = {"activity": 0.5}, {"activity": 0.5 / 7}  # prior: half of the points, or of the clouds' points, exist
    variants = {
        "coarse stage": PaperEstimator(unrolled=Unrolled(1, kind="gradient", cap=1e-9)),
        "one movable point": PaperEstimator(unrolled=Unrolled(8, kind="gradient", **points[0])),
        "7 points 0.1 m apart": PaperEstimator(
            unrolled=Unrolled(8, kind="gradient", merge=0.02, **points[1]), neighbours=6, spacing_m=0.1
        ),
        "7 points 0.5 m apart": PaperEstimator(
            unrolled=Unrolled(8, kind="gradient", merge=0.02, **points[1]), neighbours=6, spacing_m=0.5
        ),
        "one point, Gauss-Newton (missing=0)": PaperEstimator(unrolled=Unrolled(8, missing=0.0, **points[0])),
    }
    table: dict[str, list[tuple[Tensor, ...]]] = {name: [] for name in variants}
    for _, example in batches(simulator, scenes, size=4):
        assert example.scene is not None
        assert example.channel is not None
        paths = detector(example.observation, simulator.deployment)
        for name, estimator in variants.items():
            begin = time.process_time()
            with torch.no_grad():
                found = estimator(example.observation, simulator.deployment, paths)
            spent = torch.full((len(paths.mask),), (time.process_time() - begin) / len(paths.mask))
            assert found.ue_position is not None
            assert found.scatterer_mask is not None
            error = (found.ue_position - example.scene.ue_position).norm(dim=-1)
            active = found.scatterer_mask.sum(-1).double()
            table[name].append((error, nmse_db(found.channel, example.channel), active, 1e3 * spent))
    print("grid | median user error [m] | median NMSE [dB] | points believed to exist (truth: 16) | ms per scene")
    for name, rows in table.items():
        error, nmse, active, spent = (torch.cat(column) for column in zip(*rows, strict=True))
        print(f"{name} | {error.median():.3f} | {nmse.median():.1f} | {active.mean():.1f} | {spent.mean():.0f}")


def main() -> None:
    """Print the tables asked for."""
    tables = {f.__name__: f for f in (association, urban, refinement, offsets, grid)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=tables, default=list(tables), help="tables; all by default")
    parser.add_argument("--scenes", type=int, default=64)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in args.only:
        print(f"\n## {name}: {tables[name].__doc__}")
        tables[name](args.scenes)


if __name__ == "__main__":
    main()
