"""What a backend says of itself: its name, and capabilities that are neither more nor less than what is there."""

from __future__ import annotations

import copy
import pickle

import numpy as np

from ...dispatch import backend_of
from ...protocols import CAPABILITIES, CONTRACT
from .base import Kit, agree, claim
from .vectors import UPDATES

__all__ = ["Claims"]


class Claims(Kit):
    """Capabilities, each with what shows it."""

    def _shown(self, capability: str, there: bool, sign: str) -> None:
        """Fail unless the capability is claimed exactly where ``sign`` shows it."""
        claimed = capability in self.claimed
        says = "is claimed, but" if claimed else "is not claimed, but"
        claim(claimed == there, f"{capability!r} {says} {sign}: {there}")

    def test_capabilities(self) -> None:
        """The capability set that the kit is given is the one that the backend declares."""
        declared = frozenset(self.ops.capabilities)
        more, less = sorted(self.claimed - declared), sorted(declared - self.claimed)
        claim(not more, f"the kit is told of {more}, which the backend does not declare")
        claim(not less, f"the backend declares {less}, which the kit is not told of and would not look at")
        unknown = sorted(declared - set(CAPABILITIES))
        claim(not unknown, f"{unknown} are no capabilities; there are {sorted(CAPABILITIES)}")

    def test_identity(self) -> None:
        """There is one instance, hashable, with a name, a version and this contract; its arrays lead to it."""
        ops = self.ops
        claim(isinstance(ops.name, str) and ops.name, f"name is {ops.name!r}; it must be a word")
        claim(isinstance(ops.version(), str) and ops.version(), "version() must be a string")
        contract = getattr(ops, "contract", None)
        claim(contract == CONTRACT, f"contract is {contract!r}; set contract = {CONTRACT}, which these laws are of")
        claim(hash(ops) == hash(ops), "a backend is part of programs and must be hashable")
        claim(copy.deepcopy(ops) is ops, "a deep copy is another instance; define __reduce__ as ArrayApiBackend does")
        claim(pickle.loads(pickle.dumps(ops)) is ops, "unpickling makes another instance; define __reduce__")
        if self.derivatives is not None:  # its arrays are those of another backend
            return
        found = backend_of(self.array(np.ones(2), "float32"))
        claim(
            found is ops,
            f"backend_of finds {found!r} for its arrays; announce it by an entry point of the group "
            "'linop_gn.backends', or in this process by linop_gn.register.",
        )

    def test_operator_of(self) -> None:
        """Objects of no library that it knows become no operator: ``operator_of`` answers None."""
        made = self.ops.operator_of(object(), None, None, False)
        claim(made is None, f"operator_of made {made!r} of a plain object; inherit it from BackendDefaults")

    def test_claims_derivatives(self) -> None:
        """``derivatives`` is claimed exactly where there is a calculus."""
        self._shown("derivatives", self.ops.calculus is not None, "calculus is there")

    def test_claims_compiled(self) -> None:
        """``compiled`` is claimed exactly where a function that is called twice runs as Python once."""
        runs: list[int] = []

        def counted(x: object) -> object:
            runs.append(1)
            return x

        for value in (1.0, 2.0):
            result = self.ops.call(counted, self.array(np.full(3, value), self.wide))
            agree(self.host(result), np.full(3, value), 0.0, "call(x -> x)")
        self._shown("compiled", len(runs) == 1, "call keeps a function's program")

    def test_claims_in_place(self) -> None:
        """``in_place`` is claimed exactly where updates overwrite what they consume."""
        written = []
        for update in UPDATES.values():
            for shape in ((5,), (5, 2)):
                y = self.array(np.full(shape, 2.0), self.wide)
                update.run(self.ops, self.scalar(np.full(shape[1:], 3.0), y), self.ops.copy(y), 5.0, y)
                written.append(not np.array_equal(self.host(y), np.full(shape, 2.0)))
        told = f"of {[*UPDATES]}, each of a vector and of columns, only some overwrite what they consume: {written}"
        claim(all(written) or not any(written), told)
        self._shown("in_place", all(written), "updates overwrite what they consume")

    def test_claims_views(self) -> None:
        """``views`` is claimed exactly where the leaves that a vector is split into share its memory."""
        if "in_place" not in self.claimed:
            claim("views" not in self.claimed, "'views' is claimed, but nothing is written in place, so none can show")
            return
        vector = self.array(np.ones(5), self.wide)
        _, leaf = self.ops.split(vector, [(2,), (3,)], [self.wide, self.wide])
        self.ops.scale(3.0, vector)
        self._shown("views", not np.array_equal(self.host(leaf), np.ones(3)), "a leaf follows its vector")

    def test_claims_float64(self) -> None:
        """``float64`` is claimed exactly where a float64 array keeps its 16 digits."""
        third = np.array([1 / 3])
        try:
            made = self.array(third, "float64")
            exact = self.ops.describe(made)[1] == "float64" and np.array_equal(self.host(made), third)
        except Exception as error:
            claim("float64" not in self.claimed, f"'float64' is claimed, but making an array raised {error!r}")
            return
        self._shown("float64", exact, "a third keeps its digits")

    def test_claims_devices(self) -> None:
        """Without ``devices`` there is one device; with it, an array lies on the device that it was put on."""
        names = self.ops.devices()
        claim(names and all(isinstance(name, str) for name in names), f"devices() is {names!r}; expected names")
        if "devices" not in self.claimed:
            claim(len(names) == 1, f"'devices' is not claimed, but there are several: {names}")
        device = self.ops.describe(self.array(np.ones(2), "float32"))[2]
        placed = self.ops.describe(self.ops.asarray(np.ones(2), "float32", device))[2]
        claim(placed == device, f"an array asked for on {device!r} lies on {placed!r}")

    def test_claims_trees(self) -> None:
        """``trees`` is claimed exactly where dicts, lists and tuples of arrays are taken apart."""
        x = self.array(np.ones(2), self.wide)
        try:
            leaves = self.ops.flatten({"a": [x, (x,)]})[1]
        except Exception as error:
            claim("trees" not in self.claimed, f"'trees' is claimed, but flatten raised {error!r}")
            return
        self._shown("trees", len(leaves) == 2 and all(leaf is x for leaf in leaves), "a nested tree has its leaves")
