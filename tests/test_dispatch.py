"""Finding the backend of an array, without importing frameworks."""

import importlib.util
import json
import re
import subprocess
import sys
from email.message import Message

import numpy as np
import pytest

import linop_gn as lg
from linop_gn import dispatch
from linop_gn.app import doctor
from linop_gn.backend import CONTRACT, ArrayApiBackend, BackendDefaults
from linop_gn.dispatch import namespace
from linop_gn.testing.strategies import array


def run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_arrays_find_their_backend_in_any_container(backend):
    x = array(backend, np.ones(2))
    for tree in (x, [x], (x, None), {"a": {"b": [x, 3, "name", None]}}):
        assert lg.backend_of(tree) is backend
    assert lg.backend_of({}, None, [x], 1.0) is backend


def test_subclasses_are_served_by_their_parents_backend():
    class Mine(np.ndarray):
        pass

    assert lg.backend_of(np.ones(2).view(Mine)) is lg.load("numpy")


def test_a_registered_type_goes_before_its_parents():
    class Mine(np.ndarray):
        pass

    backend = ArrayApiBackend("mine", np, (Mine,))
    backend.contract = CONTRACT
    lg.register(Mine, backend)
    assert lg.backend_of(np.ones(2).view(Mine)) is backend
    assert lg.backend_of(np.ones(2)) is lg.load("numpy")


def test_two_frameworks_are_refused_and_named(backend, other):
    with pytest.raises(TypeError) as error:
        lg.backend_of({"a": array(backend, np.ones(1))}, array(other, np.ones(1)))
    assert "arrays of several frameworks are mixed" in str(error.value)
    assert f"{backend.name}: " in str(error.value)
    assert f"{other.name}: " in str(error.value)


def test_no_array_at_all_says_what_was_found():
    with pytest.raises(TypeError, match=r"no array of a known framework was found \(got float, str\)"):
        lg.backend_of([1.0, "x"])
    with pytest.raises(TypeError, match=r"\(got None, or an empty tree\)"):
        lg.backend_of()


def test_backends_whose_framework_is_not_installed_are_told_apart(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(dispatch, "find_spec", lambda name: None if name == "jax" else found(name))
    monkeypatch.delitem(sys.modules, "jax", raising=False)
    for ask in (lambda: lg.backend_of([1.0]), lambda: lg.load("abacus")):
        with pytest.raises((TypeError, LookupError), match=r"numpy.* \(not installed: [^)]*jax[^)]*\)"):
            ask()


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(LookupError, match=r"no backend called 'abacus' is installed; there are: .*numpy"):
        lg.load("abacus")


def test_available_holds_backends_or_the_errors_of_importing_them():
    found = lg.available()
    assert found["numpy"] is lg.load("numpy")
    for name, backend in found.items():
        assert isinstance(backend, ImportError) or backend.name == name


def test_the_namespace_is_the_arrays_own(backend):
    x = array(backend, np.array([1.0, 4.0]))
    np.testing.assert_allclose(backend.to_numpy(namespace(x).sqrt(x)), [1.0, 2.0])


def test_working_on_numpy_arrays_imports_no_other_framework():
    code = """
import sys, json, numpy as np, linop_gn as lg
class Unknown: ...
x = np.ones(3)
lg.Damped(lg.Dense(np.eye(3)), 1.0) @ x
lg.backend_of([x, Unknown(), "text"])
print(json.dumps([m for m in ("torch", "jax", "jaxlib", "cupy", "rich", "hypothesis") if m in sys.modules]))
"""
    assert run(code) == []


def test_a_container_that_only_its_framework_knows_is_opened_by_it(jax):
    class Holder:
        def __init__(self, weight):
            self.weight = weight

    jax.tree_util.register_pytree_with_keys(
        Holder,
        lambda h: (((jax.tree_util.GetAttrKey("weight"), h.weight),), None),
        lambda _, children: Holder(*children),
    )
    backend = lg.load("jax")
    held = Holder(jax.numpy.ones(3))
    assert lg.backend_of(held) is backend
    back = lg.Space.of(held).unpack(jax.numpy.arange(3.0))
    assert isinstance(back, Holder)
    assert back.weight.tolist() == [0.0, 1.0, 2.0]


class Entry:
    """An entry point of somebody's, for a backend of the contract with this number."""

    dist, module = None, "linop_gn_mine"

    def __init__(self, contract):
        self.contract = contract

    def load(self):
        backend = ArrayApiBackend("mine", np, ())
        backend.contract = self.contract
        return backend


@pytest.mark.parametrize(
    ("contract", "advice"),
    [(CONTRACT - 1, "upgrade linop_gn_mine, or install the linop_gn of its time"), (CONTRACT + 1, "upgrade linop_gn")],
)
def test_a_backend_of_another_contract_is_refused(contract, advice, monkeypatch):
    monkeypatch.setattr(dispatch, "_entries", lambda: {"mine": Entry(contract)})
    told = rf"written for contract {contract} and this linop_gn keeps contract {CONTRACT}: {advice}\.$"
    with pytest.raises(ImportError, match=told):
        dispatch.load.__wrapped__("mine")
    with pytest.raises(ImportError, match=f"written for contract {contract}"):
        lg.register(Entry, Entry(contract).load())


def test_what_the_contract_grew_by_has_defaults():
    """So that its number stays what it is."""
    for name in ("layout", "spread", "agreed", "gathered", "qr", "processes", "apart"):
        assert hasattr(BackendDefaults, name)


def test_a_backend_that_names_no_contract_works_for_one_release_more(monkeypatch):
    monkeypatch.setattr(dispatch, "_entries", lambda: {"mine": Entry(None)})
    with pytest.warns(DeprecationWarning, match=f"set contract = {CONTRACT} in its class"):
        assert dispatch.load.__wrapped__("mine").name == "mine"


class Broken:
    """The entry point of a stranger's backend, and its distribution."""

    name, value, module = "strange", "linop_gn_strange:backend", "linop_gn_strange"

    def __init__(self, error, requires=()):
        self.error, self.dist, self.requires = error, self, list(requires)
        self.metadata = Message()
        self.metadata["Name"] = "linop-gn-strange"
        self.metadata["Provides-Extra"] = "fast"

    def load(self):
        raise self.error


@pytest.mark.parametrize("error", [RuntimeError("no licence"), SystemExit(3), OSError("lib")])
def test_a_strangers_backend_that_raises_leaves_the_others_alone(error, monkeypatch):
    monkeypatch.setitem(dispatch._entries(), "strange", Broken(error))
    monkeypatch.setitem(sys.modules, "strange", sys)
    found = lg.available()
    assert found["numpy"] is lg.load("numpy")
    assert isinstance(found["strange"], ImportError)
    assert f"(linop-gn-strange) fails as it is imported: {type(error).__name__}: {error}" in str(found["strange"])
    assert lg.backend_of({"a": object(), "b": np.ones(2)}) is lg.load("numpy")
    told = rf"no array of a known framework.*not usable: strange: .* as it is imported: {type(error).__name__}: {error}"
    with pytest.raises(TypeError, match=told):
        lg.backend_of(object())


@pytest.mark.parametrize("made", [None, type(lg.load("numpy")), lambda: 1 / 0, ArrayApiBackend, object()])
def test_what_is_no_backend_is_refused_as_those_that_raise_are(made, monkeypatch):
    entry = Broken(None)
    monkeypatch.setattr(entry, "load", lambda: made)
    monkeypatch.setitem(dispatch._entries(), "strange", entry)
    monkeypatch.setitem(sys.modules, "strange", sys)
    found = lg.available()
    assert found["numpy"] is lg.load("numpy")
    assert re.match("linop-gn-strange brings .* for a backend, which is none: it is ", str(found["strange"]))
    assert lg.backend_of({"a": object(), "b": np.ones(2)}) is lg.load("numpy")
    theirs = type("Array", (), {"__module__": "strange"})
    for ask in (lambda: lg.backend_of(theirs()), lambda: lg.register(theirs, made)):
        with pytest.raises(ImportError, match="which is none"):
            ask()


@pytest.mark.parametrize(
    ("module", "advice"),
    [
        ("strange", "pip install strange"),
        ("some_solver.fast", "pip install linop-gn-strange"),
        ("quick", "pip install 'linop-gn-strange[fast]'"),
        ("linop_gn_strange", "pip install --force-reinstall linop-gn-strange"),
        ("other", "pip install other (imported by linop-gn-strange, which does not say that it requires it)"),
    ],
)
def test_doctor_says_how_to_get_what_a_strangers_backend_misses(module, advice, monkeypatch):
    requires = ["numpy>=2", "Some.Solver[cpu]>=1; python_version > '3'", "quick>=2 ; extra == 'fast'"]
    entry = Broken(ModuleNotFoundError(f"No module named {module!r}", name=module), requires)
    monkeypatch.setitem(dispatch._entries(), "strange", entry)
    monkeypatch.setattr(doctor, "entry_points", lambda group: [entry])
    (told,) = doctor.diagnose()["missing"]
    assert (told["reason"], told["install"]) == (f"{module} is not installed", advice)
