"""Orthogonal matching pursuit against scikit-learn (Gram form, real numbers only) and pylops (operator form).

All run ten steps on the same dictionary; scikit-learn and ours are given the Gram matrix. pylops solves the least
squares of each step by LSQR to its default tolerance, hence the wider tolerance of the check; ours updates a Cholesky
factor.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.frame import Case, installed
from sensing import arrays, ofdm
from sensing.inference.omp import DenseGram, omp
from sensing.operators.khatri_rao import PathOperator

INSTALL = "pip install pylops scikit-learn"
ATOMS = 10


def cases(tiny: bool) -> Iterator[Case]:
    """Random dictionaries, many observations and one; then plane waves, whose dictionary ours never forms."""
    learn, lops = installed("scikit-learn"), installed("pylops")
    rows, columns, batch = (64, 96, 3) if tiny else (256, 1024, 64)
    for name, peer, dtype, observations in (
        (learn, _scikit, torch.float64, batch),
        (lops, _pylops, torch.complex128, batch),
        (lops, _pylops, torch.complex128, 1),
    ):
        dictionary, y = _problem(rows, columns, observations, dtype)
        gram = dictionary.mH @ dictionary
        yield Case(
            what=f"OMP, {ATOMS} atoms, {'float64' if dtype == torch.float64 else 'complex128'}",
            size=f"{observations} observations, dictionary {rows} x {columns}",
            ours=_dense(dictionary, gram, y),
            peer=peer(dictionary, gram, y) if name else None,
            peer_name=name,
            tolerance=1e-9 if peer is _scikit else 1e-4,
            per=(observations, "observation"),
        )
    side, columns = (3, 40) if tiny else (8, 1000)
    operator = _waves(side, columns)
    dense = (operator.steering[:, None, :] * operator.delay[None]).flatten(0, 1)
    y = _sparse(dense, 1)
    yield Case(
        what=f"OMP, {ATOMS} atoms, complex128, plane waves as a Khatri-Rao product",
        size=f"1 observation, {side * side} antennas x 64 pilots, {columns} columns",
        ours=_structured(operator, y.unflatten(-1, (side * side, 64))),
        peer=_pylops(dense, dense.mH @ dense, y) if lops else None,
        peer_name=lops,
        tolerance=1e-4,
        note="the peer multiplies by the dense dictionary",
    )


def _problem(rows: int, columns: int, observations: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Columns of unit norm and observations of ten of them, 40 dB above the noise."""
    generator = torch.Generator().manual_seed(0)
    dictionary = torch.randn(rows, columns, dtype=dtype, generator=generator)
    dictionary = dictionary / dictionary.norm(dim=0)
    return dictionary, _sparse(dictionary, observations)


def _sparse(dictionary: Tensor, observations: int) -> Tensor:
    """[observation row]: gains of modulus one to two on ten random columns, and weak noise."""
    generator = torch.Generator().manual_seed(1)
    rows, columns = dictionary.shape
    place = torch.rand(observations, columns, generator=generator).topk(ATOMS).indices
    gain = torch.randn(observations, ATOMS, dtype=dictionary.dtype, generator=generator)
    gain = gain / gain.abs() * (1.0 + torch.rand(observations, ATOMS, generator=generator))
    noise = torch.randn(observations, rows, dtype=dictionary.dtype, generator=generator)
    return (dictionary.mT[place] * gain[..., None]).sum(-2) + 1e-2 * rows**-0.5 * noise


def _waves(side: int, columns: int) -> PathOperator:
    generator = torch.Generator().manual_seed(2)
    direction = torch.randn(columns, 3, dtype=torch.float64, generator=generator)
    direction[:, 0] = direction[:, 0].abs()
    direction = direction / direction.norm(dim=-1, keepdim=True)
    range_m = 150.0 * torch.rand(columns, dtype=torch.float64, generator=generator)
    pilots = ofdm.pilot_frequencies(1024, 120e3, 16)
    return PathOperator(
        arrays.response(direction, arrays.upa(side, side), torch.tensor(1.0)), ofdm.response(range_m, pilots)
    )


def _dense(dictionary: Tensor, gram: Tensor, y: Tensor) -> Callable[[], Tensor]:
    def run() -> Tensor:
        pursuit = omp(DenseGram(gram), (y.conj() @ dictionary).conj(), y.abs().square().sum(-1), ATOMS)
        return pursuit.scatter(len(gram))[0]

    return run


def _structured(operator: PathOperator, y: Tensor) -> Callable[[], Tensor]:
    operator = PathOperator(*(factor[None] for factor in operator))

    def run() -> Tensor:
        pursuit = omp(operator, operator.rmatvec(y), y.abs().square().sum((-2, -1)), ATOMS)
        return pursuit.scatter(operator.delay.shape[-1])[0]

    return run


def _scikit(dictionary: Tensor, gram: Tensor, y: Tensor) -> Callable[[], Tensor]:
    from sklearn.linear_model import orthogonal_mp_gram

    a, g, b = dictionary.numpy(), gram.numpy(), y.numpy()
    return lambda: torch.from_numpy(orthogonal_mp_gram(g, a.T @ b.T, n_nonzero_coefs=ATOMS)).mT.reshape(y.shape[0], -1)


def _pylops(dictionary: Tensor, gram: Tensor, y: Tensor) -> Callable[[], Tensor]:
    import numpy as np
    from pylops import MatrixMult
    from pylops.optimization.sparsity import omp as pylops_omp

    operator = MatrixMult(dictionary.numpy(), dtype="complex128")
    return lambda: torch.from_numpy(
        np.stack([pylops_omp(operator, row, niter_outer=ATOMS, niter_inner=40, sigma=0.0)[0] for row in y.numpy()])
    )
