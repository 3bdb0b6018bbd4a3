"""Cutting parameters into blocks."""

import re

import numpy as np
import pytest

import linop_gn as lg
from linop_gn.curvature.partition import partition

from .cases import put
from .networks import NETWORKS, fill

LAYER = {"attn": {"k": (2, 2), "v": (2,)}, "mlp": (2,)}
TREE = {"emb": (3, 2), "h": [LAYER, LAYER]}


def space_of(backend, tree=TREE):
    return lg.Space.of(put(backend, fill(tree, np.ones)))


def names(space, blocks):
    return {block.name: [space.names[i] for i in block.leaves] for block in partition(space, blocks)}


def test_every_way_on_every_framework(backend):
    space = space_of(backend)
    leaves = ["emb", "h.0.attn.k", "h.0.attn.v", "h.0.mlp", "h.1.attn.k", "h.1.attn.v", "h.1.mlp"]
    assert list(space.names) == leaves
    assert names(space, "leaf") == {name: [name] for name in leaves}
    assert names(space, "layer") == {
        "emb": ["emb"],
        "h.0.attn": leaves[1:3],
        "h.0": ["h.0.mlp"],
        "h.1.attn": leaves[4:6],
        "h.1": ["h.1.mlp"],
    }
    whole = {"emb": ["emb"], "h.0": leaves[1:4], "h.1": leaves[4:]}
    assert names(space, re.compile(r"h\.\d+")) == whole
    assert names(space, re.compile(r"^(h\.\d+)\.")) == whole
    assert names(space, {"emb": "emb", "h.0": ["h.0.*"], "h.1": ("h.1.attn.*", "h.1.mlp")}) == whole
    assert names(space, lambda name: name[:3] if name[0] == "h" else "emb") == whole
    depth = {"0": leaves[:1], "3": leaves[1:3] + leaves[4:6], "2": [leaves[3], leaves[6]]}
    assert names(space, lambda name: name.count(".")) == depth
    # A group that takes no part in the match leaves the whole match.
    assert names(space, re.compile(r"emb|(h\.\d)")) == whole


def test_blocks_cover_the_space_once_in_spaces_of_their_own(backend):
    space = space_of(backend)
    for blocks in ("leaf", "layer", re.compile("attn"), lambda name: "one"):
        parts = partition(space, blocks)
        assert sorted(i for block in parts for i in block.leaves) == list(range(len(space.names)))
        for block in parts:
            where = [space.slices[space.names[i]] for i in block.leaves]
            assert block.space.size == sum(part.stop - part.start for part in where)
            v = block.space.random(0)
            tree = block.space.unpack(v)
            assert np.array_equal(backend.to_numpy(block.space.pack(tree)), backend.to_numpy(v))


def test_a_block_whose_keys_a_framework_would_sort_keeps_its_order(jax):
    backend = lg.load("jax")
    tree = {"h": [put(backend, np.full(1, float(i))) for i in range(12)]}  # "h.10" sorts before "h.2"
    space = lg.Space.of(tree)
    (block,) = partition(space, lambda name: "all")
    assert backend.to_numpy(block.space.pack({f"h.{i}": tree["h"][i] for i in range(12)})).tolist() == list(range(12))


def test_one_array_is_one_block(backend):
    for shape in ((), (3,), (2, 2)):
        space = lg.Space.of(put(backend, np.ones(shape)))
        for blocks in ("leaf", "layer", {"all": "*"}, lambda name: "all"):
            (block,) = partition(space, blocks)
            assert block.space == space


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ("layers", r"blocks must be 'layer', 'leaf'.*got 'layers'"),
        (None, r"blocks must be .*got None"),
        (re.compile("decoder"), r"'decoder' matches no leaf; there are \['fc1\.bias'"),
        ({"one": ["fc1.*", "fc3.*"], "two": "fc2.*"}, r"block 'one': 'fc3\.\*' matches no leaf"),
        ({"one": "fc1.*"}, r"leaves \['fc2\.bias', 'fc2\.weight'\] are in no block"),
        ({"one": "*", "two": "fc2.bias"}, r"leaf 'fc2\.bias' is in two blocks, 'one' and 'two'"),
        (lambda name: None, r"leaf 'fc1\.bias' is in no block: the function gave None"),
    ],
)
def test_partitions_that_are_none(numpy_backend, blocks, message):
    space = space_of(numpy_backend, NETWORKS["mlp"].shapes)
    with pytest.raises(ValueError, match=message):
        partition(space, blocks)
