"""These tests say which precision they mean: single, unless they ask for double."""

import jax
import pytest


@pytest.fixture(autouse=True)
def single():
    with jax.enable_x64(False):
        yield
