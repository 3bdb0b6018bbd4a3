"""What users forbid in their own code, ``numpy_rank_promotion`` and ``transfer_guard``, does not stop ours."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from systems import FULL

import linop_gn as lg


def test_all_works_where_broadcasts_and_transfers_are_forbidden():
    X = jnp.asarray(np.random.default_rng(0).standard_normal((6, 3)), "float32")
    objective = lg.Objective(lambda w, x: jnp.tanh(x @ w), lg.losses.CrossEntropy(), (X, jnp.arange(6) % 3))
    w, b = 0.1 * X[:3], X[:, 0]
    matrix, columns, row, zero = X.T @ X + jnp.eye(3), X[:3, :2], X[0], jnp.zeros(3)
    method = lg.CG(rtol=1e-5, preconditioner=lg.preconditioners.Jacobi())
    with jax.numpy_rank_promotion("raise"), jax.transfer_guard("disallow"):
        product = lg.GGN(objective, w) @ objective.gradient(w)
        found = lg.solve(lg.Dense(matrix, psd=True), columns, method)
        fit = lg.least_squares(lambda p: X @ p - b, zero)
        if FULL:
            lg.minimize(objective, w, max_steps=2)
            lg.validate(lg.Hessian(objective, w))
        with pytest.raises(ValueError, match="rank_promotion"):
            X + row  # what is the user's stays forbidden
    np.testing.assert_allclose(product, lg.GGN(objective, w) @ objective.gradient(w))
    np.testing.assert_allclose(matrix @ found.x, columns, atol=1e-4)
    np.testing.assert_allclose(fit.x, [1.0, 0.0, 0.0], atol=1e-5)
