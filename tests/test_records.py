"""Records: which fields are data, how they compare, who is told of them."""

import copy
import dataclasses
import pickle

import pytest

import linop_gn as lg
from linop_gn.records import (
    data_fields,
    fields,
    fill,
    memo,
    on_new_record,
    rebuild,
    record,
    replace,
    static,
    static_fields,
)


@record
class Base:
    value: float
    name: str = static(default="base")

    def __repr__(self):
        return f"<{self.name}>"


@record
class Child(Base):
    more: tuple = ()
    flag: bool = static(default=False)


@record
class Plain:
    value: float


@record
class Wider(Plain):
    other: float = 0.0


def test_fields_are_data_unless_declared_static():
    assert data_fields(Child) == ("value", "more")
    assert static_fields(Child) == ("name", "flag")
    assert data_fields(Child(1.0)) == ("value", "more")


def test_records_are_frozen_and_compared_by_identity():
    one, two = Base(1.0), Base(1.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.value = 2.0
    assert one != two
    assert len({one, two}) == 2


def test_replace_makes_a_new_record():
    child = Child(1.0, flag=True)
    changed = replace(child, value=2.0)
    assert (changed.value, changed.flag, child.value) == (2.0, True, 1.0)


def test_copies_start_without_what_was_remembered():
    child = Child(1.0, flag=True)
    memo(child).prepared = "something"
    assert memo(child).prepared == "something"
    copies = copy.copy(child), copy.deepcopy(child), pickle.loads(pickle.dumps(child)), replace(child, value=2.0)
    assert [memo(made).prepared for made in copies] == [None] * 4
    with pytest.raises(AttributeError):
        memo(child).something_else = 1


def test_fields_are_set_by_constructors_and_nobody_else():
    @record
    class Half(Base):
        def __init__(self, twice):
            fill(self, value=twice / 2, name="half")

    half = Half(3.0)
    assert fields(half) == {"value": 1.5, "name": "half"}
    assert fields(rebuild(Half, fields(half) | {"value": 2.0})) == {"value": 2.0, "name": "half"}


def test_a_class_that_says_how_it_reads_says_so_for_its_children():
    assert repr(Child(1.0, name="child")) == "<child>"


def test_a_generated_text_lists_all_fields_of_the_child():
    assert repr(Wider(1.0, 2.0)) == "Wider(value=1.0, other=2.0)"


def test_subscribers_hear_of_past_and_future_records():
    heard = []
    on_new_record(heard.append)
    assert Base in heard
    assert Child in heard

    @record
    class Later:
        x: float

    assert heard[-1] is Later
    assert heard.count(Base) == 1


def test_a_field_that_would_hide_what_is_inherited_is_refused():
    with pytest.raises(TypeError, match="the field 'diagonal' has the name"):

        @lg.record
        class Hides(lg.LinearOperator):
            diagonal: object

    with pytest.raises(TypeError, match="call it otherwise"):

        @lg.record
        class Defaults(lg.LinearOperator):
            psd: bool

    @lg.record
    class Says(lg.LinearOperator):
        psd: bool = lg.static(default=True)

    assert Says().psd
