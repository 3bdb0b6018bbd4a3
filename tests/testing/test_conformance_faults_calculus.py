"""The kit finds wrong derivatives: faults planted one at a time in torch's."""

import pytest

import linop_gn as lg

conformance = pytest.importorskip("linop_gn.testing.conformance")
torch = pytest.importorskip("torch")
Torch = type(lg.load("torch"))
Calculus = type(lg.load("torch").calculus)

LAWS = conformance.laws()
ABOUT_DERIVATIVES = LAWS[LAWS.index("linearize") : LAWS.index("curvature_of_an_objective")]
FAULTS = {}


def fault(law):
    """Keep a calculus in which ``law`` is the first that fails."""

    def keep(cls):
        FAULTS[cls.__name__] = cls, law
        return cls

    return keep


class Linear:
    """A linearisation with something wrong about it."""

    fresh = False

    def __init__(self, sound):
        self.sound, self.outputs, self.gradient = sound, sound.outputs, sound.gradient

    def without_gradient(self):
        return type(self)(self.sound.without_gradient())

    def jvp(self, tangents, only=None):
        return self.sound.jvp(tangents, only)

    def vjp(self, cotangent, only=None):
        return self.sound.vjp(cotangent, only)


class Wrong(Calculus):
    linear = Linear

    def linearize(self, function, params, cotangent):
        return self.linear(super().linearize(function, params, cotangent))


@fault("vjp")
class TheAdjointIsAnothers(Wrong):
    class linear(Linear):  # noqa: N801
        def vjp(self, cotangent, only=None):
            return self.sound.vjp(cotangent.flip(0), only)


@fault("vjp")
class VjpWritesToTheCotangent(Wrong):
    class linear(Linear):  # noqa: N801
        def vjp(self, cotangent, only=None):
            made = self.sound.vjp(cotangent, only)
            cotangent.zero_()
            return made


@fault("jvp")
class JvpWritesToTheTangents(Wrong):
    class linear(Linear):  # noqa: N801
        def jvp(self, tangents, only=None):
            made = self.sound.jvp(tangents, only)
            tangents[-1].mul_(0.5)
            return made


@fault("jvp")
class JvpWorksOnce(Wrong):
    class linear(Linear):  # noqa: N801
        def jvp(self, tangents, only=None):
            made = self.sound.jvp(tangents, only)
            self.sound = Linear(self.sound)
            self.sound.jvp = lambda tangents, only=None: 2 * made
            return made


@fault("jvp")
class WhatIsFreshIsKept(Wrong):
    class linear(Linear):  # noqa: N801
        fresh = True

        def jvp(self, tangents, only=None):
            self.made = getattr(self, "made", None)
            self.made = self.sound.jvp(tangents, only) if self.made is None else self.made
            return self.made


@fault("adjoint")
class TheAdjointIsALittleOff(Wrong):
    class linear(Linear):  # noqa: N801
        def vjp(self, cotangent, only=None):
            return [leaf * (1 + 9e-14) for leaf in self.sound.vjp(cotangent, only)]


@fault("only")
class JvpIgnoresOnly(Wrong):
    class linear(Linear):  # noqa: N801
        def jvp(self, tangents, only=None):
            if only is None:
                return self.sound.jvp(tangents)
            everywhere = self.sound.vjp(self.outputs)
            return self.sound.jvp([*tangents, *everywhere[len(tangents) :]]) if len(tangents) < 2 else self.outputs


@fault("only")
class VjpSortsOnly(Wrong):
    class linear(Linear):  # noqa: N801
        def vjp(self, cotangent, only=None):
            return self.sound.vjp(cotangent, None if only is None else tuple(sorted(only)))


@fault("ignored_leaves")
class ZerosAreNotExact(Wrong):
    class linear(Linear):  # noqa: N801
        def vjp(self, cotangent, only=None):
            return [leaf + 1e-30 for leaf in self.sound.vjp(cotangent, only)]


@fault("linearize")
class TheGradientIsOfAnotherCotangent(Wrong):
    class linear(Linear):  # noqa: N801
        def __init__(self, sound):
            super().__init__(sound)
            self.gradient = None if self.gradient is None else [-leaf for leaf in self.gradient]


@fault("derivatives_keep_the_precision")
class SinglePrecisionWidens(Wrong):
    class linear(Linear):  # noqa: N801
        def vjp(self, cotangent, only=None):
            return [leaf.double() for leaf in self.sound.vjp(cotangent, only)]


@fault("linearize")
class DoublePrecisionNarrows(Calculus):
    def linearize(self, function, params, cotangent):
        def narrow(leaves):
            return function([leaf.float().double() for leaf in leaves])

        return super().linearize(narrow, params, cotangent)


@fault("gradient")
class TheGradientIsTwiceItself(Calculus):
    def gradient(self, function, params):
        value, gradient = super().gradient(function, params)
        return value, [2 * leaf for leaf in gradient]


@fault("evaluate")
class AdaptWrapsAnew(Calculus):
    def adapt(self, model, seed=0):
        return lambda *arguments: model(*arguments)


@fault("packing_is_differentiable")
class GradientsOfSeveralLeavesAreOfTheFirst(Calculus):
    def gradient(self, function, params, cotangent=None):
        value, gradient = super().gradient(function, params, cotangent)
        lost = len(gradient) == 3 and gradient[1].ndim == 0
        return value, [gradient[0], *(0 * leaf for leaf in gradient[1:])] if lost else gradient


@fault("gradient")
class CotangentsAreOnes(Calculus):
    def gradient(self, function, params, cotangent=None):
        return super().gradient(function, params, cotangent and torch.ones_like)


@fault("jacobian_rows")
class RowsAreSorted(Calculus):
    def jacobian_rows(self, function, params, rows):
        return super().jacobian_rows(function, params, sorted(rows))


@fault("hessian_rows")
class HessianRowsAreSorted(Calculus):
    def hessian_rows(self, function, params, rows):
        return super().hessian_rows(function, params, sorted(rows))


@fault("only_scalars_have_a_gradient")
class SumsWhatIsNotScalar(Calculus):
    def gradient(self, function, params, cotangent=None):
        return super().gradient((lambda p: function(p).sum()) if cotangent is None else function, params, cotangent)


class Second:
    """A linearised gradient with something wrong about its products."""

    def __init__(self, sound, product):
        self.value, self.gradient, self.hvp = sound.value, sound.gradient, lambda v: product(sound, v)


@fault("hvp")
class TheHessianIsGaussNewtons(Calculus):
    def linearize_gradient(self, function, params):
        return Second(super().linearize_gradient(function, params), lambda sound, v: [2 * h for h in sound.hvp(v)])


@fault("hessian_is_symmetric")
class TheHessianIsNotSymmetric(Calculus):
    def linearize_gradient(self, function, params):
        def product(sound, v):
            return [h + 1e-9 * x.roll(1) * (h != 0) for h, x in zip(sound.hvp(v), v, strict=True)]

        return Second(super().linearize_gradient(function, params), product)


def check(calculus):
    backend = object.__new__(Torch)
    backend.__dict__.update(lg.load("torch").__dict__, calculus=calculus)
    return conformance.check_backend(backend, only=ABOUT_DERIVATIVES, stop=True)


def test_sound_derivatives_pass():
    assert check(Calculus()).passed


@pytest.mark.parametrize("name", FAULTS)
def test_the_law_that_is_broken_is_the_first_to_fail(name):
    calculus, law = FAULTS[name]
    report = check(calculus())
    assert report.failed == (law,), report
