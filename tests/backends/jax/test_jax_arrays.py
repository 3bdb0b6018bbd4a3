"""Arrays and trees: names, devices, packing, dtypes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from linop_gn_jax import backend

import linop_gn as lg

TREE = {"layers": [{"weight": jnp.ones((2, 3)), "bias": None}, (jnp.zeros(2), jnp.ones(()))], "scale": jnp.ones(4)}
ENTRIES = npst.arrays(np.float32, (13,), elements=st.floats(-1e6, 1e6, width=32))


def test_leaves_are_named_by_their_path_and_none_is_no_leaf():
    names, leaves, structure = backend.flatten(TREE)
    assert names == ["layers.0.weight", "layers.1.0", "layers.1.1", "scale"]
    again = backend.unflatten(structure, leaves)
    assert again["layers"][0]["bias"] is None
    assert isinstance(again["layers"][1], tuple)
    assert hash(structure) == hash(backend.flatten(again)[2])
    assert backend.flatten(jnp.ones(3))[0] == [""]


def test_flax_trees_are_trees():
    nn, core = pytest.importorskip("flax.linen"), pytest.importorskip("flax.core")
    params = nn.Dense(3).init(jax.random.key(0), jnp.ones((1, 2)))
    names, leaves, _ = backend.flatten(core.freeze(params))
    assert names == ["params.bias", "params.kernel"]
    assert all(map(backend.is_array, leaves))


def test_equinox_trees_are_trees():
    equinox = pytest.importorskip("equinox")
    params, _ = equinox.partition(equinox.nn.MLP(2, 1, 4, 1, key=jax.random.key(0)), equinox.is_inexact_array)
    names, _, structure = backend.flatten(params)
    assert names == ["layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias"]
    assert backend.unflatten(structure, [1, 2, 3, 4]).layers[0].bias == 2


def test_what_is_an_array():
    assert backend.is_array(jnp.ones(2))
    assert not backend.is_array(np.ones(2))
    assert not backend.is_array(1.0)
    seen = []
    jax.jit(lambda x: seen.append((backend.is_array(x), backend.is_concrete({"x": x, "y": 1.0}))))(jnp.ones(2))
    assert seen == [(True, False)]
    assert backend.is_concrete({"x": jnp.ones(2), "y": 1.0})


def test_a_device_is_described_only_where_it_is_fixed():
    device = jax.devices()[0]
    assert backend.describe(jnp.ones((2, 3))) == ((2, 3), "float32", None)
    placed = jax.device_put(jnp.ones(2, jnp.bfloat16), device)
    assert backend.describe(placed) == ((2,), "bfloat16", device)
    assert backend.describe(backend.asarray([1, 2], "int32", device)) == ((2,), "int32", device)
    seen = []
    jax.jit(lambda x: seen.append(backend.describe(x)))(placed)
    assert seen == [((2,), "bfloat16", None)]


@given(ENTRIES)
def test_split_undoes_pack(entries):
    leaves = [jnp.asarray(entries[:6].reshape(2, 3)), jnp.asarray(entries[6]), jnp.asarray(entries[7:], jnp.bfloat16)]
    shapes, dtypes = [(2, 3), (), (6,)], ["float32", "float32", "bfloat16"]
    vector = backend.pack(leaves, "float32")
    assert vector.shape == (13,)
    for there, back in zip(leaves, backend.split(vector, shapes, dtypes), strict=True):
        assert back.dtype == there.dtype
        np.testing.assert_array_equal(back, there)


def test_split_keeps_columns_and_works_in_a_trace():
    columns = jnp.arange(20.0).reshape(10, 2)
    whole = jax.jit(lambda v: backend.split(v, [(2, 3), (4,)], ["float32", "float32"]))(columns)
    assert [leaf.shape for leaf in whole] == [(2, 3, 2), (4, 2)]
    np.testing.assert_array_equal(whole[0][..., 1].ravel(), columns[:6, 1])


def test_pack_never_returns_its_argument():
    leaf = jnp.ones(5)
    packed = backend.pack([leaf], "float32")
    jax.jit(lambda x: x + 1, donate_argnums=0)(packed)
    assert packed.is_deleted()
    assert not leaf.is_deleted()


def test_pack_is_differentiable():
    gradient = jax.grad(lambda tree: backend.pack(tree, "float32") @ jnp.arange(5.0))([jnp.ones((2, 2)), jnp.ones(1)])
    np.testing.assert_array_equal(gradient[0], [[0, 1], [2, 3]])


def test_64_bit_types_are_refused_while_they_are_off():
    for make in (lambda: backend.asarray(np.ones(2), "float64"), lambda: backend.cast(jnp.ones(2), "float64")):
        with pytest.raises(TypeError, match=r"jax\.config\.update\('jax_enable_x64', True\)"):
            make()
    with backend.calculus.high_precision():
        assert backend.asarray(np.full(2, 0.1), "float64").dtype == np.float64
        assert backend.pack([jnp.ones(2)], "float64").dtype == np.float64


def test_host_data_arrive_in_the_dtype_asked_for():
    made = backend.asarray(np.full(3, 1 / 3), "float32")
    np.testing.assert_array_equal(made, np.full(3, 1 / 3, np.float32))
    assert backend.asarray(2, "bool").dtype == bool


def test_numpy_copies_are_the_callers_own():
    x = jnp.arange(3.0)
    copy = backend.to_numpy(x)
    copy += 1
    np.testing.assert_array_equal(x, [0, 1, 2])
    assert isinstance(backend.read({"a": x, "b": 2})["a"], np.ndarray)


def test_the_namespace_is_jax_numpy():
    assert backend.namespace() is jnp
    assert backend.version() == jax.__version__
    assert len(backend.devices()) == len(jax.devices())


def test_keys_of_random_numbers_are_inputs():
    key, x = jax.random.key(3), jnp.ones((4, 2))
    assert (backend.to_numpy(key) == jax.random.key_data(key)).all()

    def dropped(p, inputs):
        x, key = inputs
        return (x * jax.random.bernoulli(key, 0.5, x.shape)) @ p

    objective = lg.Objective(dropped, lg.losses.SquaredError(), ((x, key), jnp.zeros((4, 1))))
    want = 0.5 * float((dropped(jnp.ones((2, 1)), (x, key)) ** 2).sum()) / 4
    assert want > 0
    assert float(objective.value(jnp.ones((2, 1)))) == pytest.approx(want, rel=1e-6)
