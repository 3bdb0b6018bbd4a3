"""Block GGN products against the block-masked dense GGN."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from systems import FULL, in_full, spare

import linop_gn as lg

from .cases import Case, Streamed, cases, dense, host, objective, put
from .networks import NETWORKS, close, flat, leaves, like

# For each network: ways of cutting it up, and the group that each leaf should be in.
BLOCKS = {
    "mlp": [("leaf", [0, 1, 2, 3]), ("layer", [0, 0, 1, 1]), ({"b": "*.bias", "w": "*.weight"}, [0, 1, 0, 1])],
    "convolutional": [("layer", [0, 0, 1, 1, 2]), (lambda name: name.endswith("bias"), [0, 1, 0, 1, 1])],
    "attention": [("layer", [0, 1, 1, 1, 2]), ("leaf", [0, 1, 2, 3, 4])],
    "transformer": [
        (re.compile(r"h\.\d+"), [0, 1, 1, 1, 1, 2, 2, 2, 2]),
        (re.compile(r"attn\.(\w)"), [0, 1, 2, 3, 4, 1, 2, 3, 5]),
        ({"ends": ["embedding", "h.1.*"], "middle": "h.0.*"}, [0, 1, 1, 1, 1, 0, 0, 0, 0]),
    ],
    "residual": [("layer", [0, 1, 2]), (lambda name: "01"[name == "1"], [0, 1, 0])],
    "single": [("layer", [0]), ("leaf", [0])],
    "decay": [("layer", [0])],
}  # fmt: skip


@st.composite
def blocked(draw):
    case = draw(cases())
    return case, draw(st.sampled_from(range(len(BLOCKS[case.network]))))


def masked(case, groups):
    """The dense GGN with everything between groups of leaves set to zero, and the entries of each group."""
    sizes = [np.size(leaf) for leaf in leaves(case.params())]
    owner = np.repeat(groups, sizes)
    entries = [np.flatnonzero(owner == group) for group in sorted(set(groups))]
    return np.where(owner[:, None] == owner, dense(case).G, 0.0), entries


def check(case, which, backend, hold=list):
    blocks, groups = BLOCKS[case.network][which]
    want, entries = masked(case, groups)
    made, params = objective(case, backend, hold=hold), put(backend, case.params())
    B = lg.BlockGGN(made, params, blocks=blocks)
    v = np.random.default_rng(case.seed).standard_normal((len(want), 2))
    first = dense(case)
    size = float((abs(first.J).T @ abs(first.H) @ abs(first.J) @ abs(v)).max())
    assert (B.symmetric, B.psd, B.prepare().psd) == (True, True, True)
    close(backend.to_numpy(B @ put(backend, v)), want @ v, 1e-12, size)
    tree = put(backend, like(case.params(), v[:, 0]))
    close(host(backend, B @ tree), want @ v[:, 0], 1e-12, size)
    if B.host:
        with pytest.raises(ValueError, match="streamed data cannot be taken apart"):
            B.diagonal_blocks()
        return
    parts = B.diagonal_blocks()
    assert len(parts) == len(entries)
    for part, where in zip(parts.values(), entries, strict=True):
        assert part.psd
        close(backend.to_numpy(part @ put(backend, v[where])), want[np.ix_(where, where)] @ v[where], 1e-12, size)


@given(blocked(), st.sampled_from([list, Streamed]))
def test_blocks_in_torch(torch, case, hold):
    check(*case, lg.load("torch"), hold)


@given(blocked(), st.sampled_from([list, Streamed]))
def test_blocks_where_derivatives_are_supplied(numpy_backend, case, hold):
    check(*case, numpy_backend, hold)


@settings(max_examples=6)
@given(blocked(), st.sampled_from([list, Streamed]))
def test_blocks_on_spoiled_and_on_foreign_arrays(backend, case, hold):
    if backend.name in ("poison", "array_api_strict"):
        check(*case, backend, hold)


@pytest.mark.parametrize(
    ("case", "which", "hold"),
    [
        (Case("mlp", "softmax", "mean", 0, "weights", sizes=(2, 2, 1)), 1, list),
        (Case("mlp", "softmax", "mean", 0, sizes=(3, 2)), 2, Streamed),
        pytest.param(Case("attention", "softmax", "sum", 0, ignore=True), 0, list, marks=in_full),
        (Case("residual", "poisson", "mean", 0, "mask"), 1, list),
    ],
    ids=["stacked", "streamed", "attention", "apart"],
)
def test_blocks_in_jax(jax, case, which, hold):
    for seed in range(2):
        check(case._replace(seed=seed), which, lg.load("jax"), hold)


@pytest.mark.parametrize("name", ["numpy", "torch", "jax"])
def test_blocks_have_names_and_trees_of_their_own(request, name):
    if name != "numpy":
        request.getfixturevalue(name)
    backend = lg.load(name)
    case = Case("mlp", "squared", "mean", 3)
    made, params = objective(case, backend), put(backend, case.params())
    parts = lg.BlockGGN(made, params).diagonal_blocks()
    assert list(parts) == ["fc1", "fc2"]
    tree = {f"fc1.{key}": value for key, value in params["fc1"].items()}
    product = parts["fc1"] @ tree
    assert product.keys() == tree.keys()
    vector = flat(case.params()["fc1"])
    want = masked(case, [0, 0, 1, 1])[0][: vector.size, : vector.size]
    close(host(backend, product), want @ vector, 1e-12)


def test_one_pass_over_a_stream_serves_all_blocks(torch):
    backend = lg.load("torch")
    case = Case("transformer", "softmax", "mean", 3, sizes=(2, 1, 2))
    holders = []

    def hold(batches):
        holders.append(Streamed(batches))
        return holders[0]

    B = lg.BlockGGN(objective(case, backend, hold=hold), put(backend, case.params()), blocks="leaf")
    before = holders[0].passes
    B @ B.domain.random(0)
    assert holders[0].passes == before + 1


def many(backend, count, examples):
    """An objective of many leaves, with 2 * ``examples`` outputs, and its parameters."""
    xp, rng = backend.namespace(), np.random.default_rng(0)

    def given(*shape):
        return backend.asarray(rng.standard_normal(shape), "float64")

    params = {f"w{i}": given(3, 2) for i in range(count)}
    data = given(examples, 3), given(examples, 2)
    model = lg.Objective(lambda p, x: sum(xp.tanh(x @ w) for w in p.values()) / count, lg.losses.SquaredError(), data)
    return model, params, given(6 * count)


@pytest.mark.parametrize("examples", [4, 12])
@pytest.mark.parametrize("name", ["torch", "jax"])
def test_more_blocks_than_a_program_should_hold_copies_of(request, name, examples):
    """Of more outputs and of fewer: all of J is made where it has fewer rows than there are blocks."""
    request.getfixturevalue(name)
    backend = lg.load(name)
    spare(backend, FULL or examples == 4)
    for pairs in (False, True)[: 1 + (name == "torch")]:
        count = 20 * (1 + pairs)
        plane, params, v = many(backend, count, examples)
        blocks = (lambda name: str(int(name[1:]) % 20)) if pairs else "leaf"
        owner = np.repeat(np.arange(count) % 20, 6)
        want = (backend.to_numpy(lg.GGN(plane, params).to_dense()) * (owner[:, None] == owner)) @ host(backend, v)
        close(host(backend, lg.BlockGGN(plane, params, blocks=blocks).prepare().matvec(v)), want, 1e-12)


def test_work_grows_with_the_blocks_where_outputs_are_few(torch):
    from torch.utils.flop_counter import FlopCounterMode

    def flops(count):
        plane, params, v = many(lg.load("torch"), count, 4)
        B = lg.BlockGGN(plane, params, blocks="leaf").prepare()
        with FlopCounterMode(display=False) as counter:
            B.matvec(v)
        return counter.get_total_flops()

    assert 0 < flops(80) <= 2.1 * flops(40)


def test_not_of_a_scalar_function(numpy_backend):
    f = lg.Objective.from_function(lambda p: p @ p, gradient=lambda p: 2 * p)
    with pytest.raises(ValueError, match=r"lg\.BlockGGN needs to know the model and the loss apart"):
        lg.BlockGGN(f, np.ones(2))
    assert set(BLOCKS) == set(NETWORKS)
