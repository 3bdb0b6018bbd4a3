"""Solvers of other libraries behind one face: the same system, what they return, and what they say about it.

Each takes a :class:`peer_cases.Case` and gives a :class:`Run`: a call that does the work and waits for it, and a way
to read the answer. Tolerances are the ones that a user of that library would write for the tolerance of the case:

* SciPy's and CuPy's ``rtol`` (``atol=btol`` for least squares), jax.scipy's ``tol``, the ``tolerance`` of the
  conjugate gradients that curvlinops calls (those of linear_operator), matfree's ``atol=btol``;
* lineax tests ``|r_i| <= atol + rtol |b_i|`` entry by entry, and the change of x likewise, so that ``atol=0`` would ask
  for the impossible where b_i is small: it gets ``atol = rtol max|b|``. Its least-squares solver adds ``atol`` to
  relative terms and gets 0.

Everybody has the same limit on steps; all other options are the library's defaults.
"""

from __future__ import annotations

import importlib
from importlib.metadata import version

from .face import Answer, Peer, Run
from .jax_like import jax_scipy, lineax, matfree_lanczos, matfree_lsmr
from .scipy_like import scipy_eigsh, scipy_least_squares, scipy_region, scipy_symmetric
from .torch_like import curvlinops_cg

__all__ = ["PEERS", "Answer", "Peer", "Run", "absent", "versions"]


def absent(peer: Peer) -> str | None:
    """Why a peer cannot run here, or None."""
    needed = {"curvlinops-for-pytorch": ["curvlinops"], "cupy": ["cupy"]}.get(peer.package, [peer.package])
    for module in needed:
        try:
            importlib.import_module(module)
        except ImportError as error:
            return f"{peer.package} cannot be imported: {error}"
    if peer.package == "cupy":
        try:
            importlib.import_module("cupy").cuda.runtime.getDeviceCount()
        except Exception as error:
            return f"CuPy finds no GPU: {error}"
    return None


def versions(peers: list[Peer]) -> dict[str, str]:
    """Versions of the packages of these peers."""
    return {peer.package: version(peer.package) for peer in peers if peer.package != "cupy"}


PEERS = [
    Peer("SciPy cg", "scipy", ("definite",), scipy_symmetric("cg")),
    Peer("jax.scipy cg", "jax", ("definite",), jax_scipy("cg")),
    Peer("lineax CG", "lineax", ("definite",), lineax("CG")),
    Peer("curvlinops CGInverse", "curvlinops-for-pytorch", ("definite",), curvlinops_cg),
    Peer("CuPy cg", "cupy", ("definite",), scipy_symmetric("cg", "cupy")),
    Peer("SciPy minres", "scipy", ("symmetric",), scipy_symmetric("minres")),
    Peer("jax.scipy gmres", "jax", ("symmetric",), jax_scipy("gmres")),
    Peer("lineax GMRES", "lineax", ("symmetric",), lineax("GMRES")),
    Peer("CuPy minres", "cupy", ("symmetric",), scipy_symmetric("minres", "cupy")),
    Peer("SciPy lsmr", "scipy", ("rectangular",), scipy_least_squares("lsmr")),
    Peer("SciPy lsqr", "scipy", ("rectangular",), scipy_least_squares("lsqr")),
    Peer("lineax LSMR", "lineax", ("rectangular",), lineax("LSMR")),
    Peer("matfree lsmr", "matfree", ("rectangular",), matfree_lsmr()),
    Peer("CuPy lsmr", "cupy", ("rectangular",), scipy_least_squares("lsmr", "cupy")),
    Peer("SciPy eigsh", "scipy", ("spectrum",), scipy_eigsh()),
    Peer("matfree tridiag full", "matfree", ("spectrum",), matfree_lanczos("full")),
    Peer("matfree tridiag none", "matfree", ("spectrum",), matfree_lanczos("none")),
    Peer("CuPy eigsh", "cupy", ("spectrum",), scipy_eigsh("cupy")),
    Peer("SciPy trust-krylov", "scipy", ("region",), scipy_region("trust-krylov")),
    Peer("SciPy trust-exact", "scipy", ("region",), scipy_region("trust-exact")),
]
