"""What notebooks show stands in the page, escaped, and is well-formed whatever the numbers are."""

from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

import linop_gn as lg
from linop_gn import html

NUMBERS = npst.arrays(
    np.float64, npst.array_shapes(min_dims=1, max_dims=2, min_side=0, max_side=9), elements=st.floats()
)


@given(NUMBERS)
@pytest.mark.filterwarnings("ignore:overflow")
def test_any_history_is_drawn_inside_of_its_box_or_not_at_all(values):
    shown = html.page("<&>", html.picture({"a < b": values}))
    for line in ElementTree.fromstring(shown).iter("polyline"):
        for point in line.get("points").split():
            x, y = map(float, point.split(","))
            assert 0 <= x <= 240
            assert 0 <= y <= 64


def test_curves_fall_where_numbers_fall_and_many_steps_are_thinned_out():
    (line,) = ElementTree.fromstring(html.picture({"residual": np.geomspace(1.0, 1e-9, 10_000)})).iter("polyline")
    y = [float(point.split(",")[1]) for point in line.get("points").split()]
    assert len(y) <= 400
    assert y == sorted(y)  # downwards in SVG
    np.testing.assert_allclose(np.diff(y), np.mean(np.diff(y)), atol=0.11)  # a line: the axis is logarithmic


def test_a_density_shows_its_text_and_its_curve():
    density = lg.spectral_density(lg.Diagonal(np.linspace(-1.0, 4.0, 40)), probes=2, steps=8)
    shown = ElementTree.fromstring(density._repr_html_())
    assert shown.find("pre").text == repr(density)
    assert len(list(shown.iter("polyline"))) == 1


def test_a_run_that_ends_in_nan_says_so():
    assert "1 .. nan" in html.picture({"residual": [1.0, 0.5, np.nan]})
