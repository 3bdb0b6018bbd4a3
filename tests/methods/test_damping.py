"""The rules that turn gain ratios into dampings."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

import linop_gn as lg
from linop_gn.methods.damping import clip

ops = lg.load("numpy")
finite = st.floats(1e-8, 1e8)


@given(finite, st.floats(-10, 10))
def test_marquardt_has_two_thresholds(damping, ratio):
    new, _ = lg.Marquardt().update(ops, damping, 2.0, ratio)
    expected = damping * 1.5 if ratio < 0.25 else damping * 2 / 3 if ratio > 0.75 else damping
    assert new == pytest.approx(expected)


@given(finite, st.floats(0.01, 2.0))
def test_nielsen_shrinks_smoothly_on_success(damping, ratio):
    new, growth = lg.Nielsen().update(ops, damping, 16.0, ratio)
    assert new == pytest.approx(damping * max(1 / 3, 1 - (2 * ratio - 1) ** 3))
    assert growth == 2.0


def test_nielsen_grows_faster_with_every_failure():
    damping, growth, seen = 1.0, 2.0, []
    for _ in range(4):
        damping, growth = lg.Nielsen().update(ops, damping, growth, -1.0)
        seen.append(damping)
    assert seen == [2.0, 8.0, 64.0, 1024.0]


@pytest.mark.parametrize("rule", [lg.Marquardt(), lg.Nielsen()])
@pytest.mark.parametrize("ratio", [math.nan, -math.inf])
def test_a_ratio_that_is_no_number_is_a_failure(rule, ratio):
    assert rule.update(ops, 1.0, 2.0, ratio)[0] > 1.0


@given(finite, st.floats(-2, 2))
def test_constant_damping_is_constant(damping, ratio):
    assert lg.ConstantDamping().update(ops, damping, 2.0, ratio) == (damping, 2.0)


@given(st.floats(0, math.inf), finite, finite)
def test_clip(damping, a, b):
    least, most = sorted((a, b))
    assert least <= clip(ops, damping, least, most) <= most
