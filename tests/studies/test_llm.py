"""The study of language models: its network, SOAP's rule, and its runs in the smallest form."""

import json
import random

import numpy as np
import pytest
from linop_gn_studies import llm, llm_claims
from linop_gn_studies.data import characters
from linop_gn_studies.language import CONTROL, Case, Scale, Small, Transposed, changed, entries
from linop_gn_studies.plan import HELD, NOT_HELD, Form, Results, Run
from linop_gn_studies.running import ordered
from linop_gn_studies.transformer import Size, decoder, drawn

import linop_gn as lg

TINY = Size(1, 8, 2)


def leaves(tree):
    return [leaf for v in tree.values() for leaf in leaves(v)] if isinstance(tree, dict) else [tree]


def test_the_network_has_so_many_parameters_and_sees_nothing_that_is_yet_to_come():
    params = drawn(TINY, seed=0)
    assert sum(leaf.size for leaf in leaves(params)) == TINY.parameters
    tokens = np.random.default_rng(0).integers(0, 128, (2, 6)).astype(np.int32)
    other = tokens.copy()
    other[:, 4] += 1 - 2 * (other[:, 4] > 60)
    a, b = (decoder(TINY)(params, t) for t in (tokens, other))
    assert a.shape == (2, 6, 128)
    assert np.array_equal(a[:, :4], b[:, :4])
    assert abs(a[:, 4:] - b[:, 4:]).min(axis=-1).max() > 0


def test_positions_are_relative():
    """A shift of all characters leaves what is said of them as it is, where there is nothing before them."""
    params, model = drawn(TINY, seed=1), decoder(TINY)
    tokens = np.full((1, 5), 7, np.int32)
    z = model(params, tokens)  # the same character everywhere: every place mixes the same values
    assert np.allclose(z, z[:, :1], atol=1e-10)
    q = model(params, np.array([[3, 7, 9]], np.int32)), model(params, np.array([[7, 3, 9]], np.int32))
    assert not np.allclose(q[0][:, 2], q[1][:, 2])  # the order of what came before matters


class AuthorsSoap:
    """The authors' rule for one array, in NumPy."""

    def __init__(self, rate=3e-3, b1=0.95, b2=0.95, eps=1e-8, decay=0.01, frequency=10):
        self.rate, self.b1, self.b2, self.eps, self.decay, self.frequency = rate, b1, b2, eps, decay, frequency
        self.t, self.m, self.v, self.GG, self.Q = 0, None, None, None, None

    def project(self, g, back=False):
        if g.ndim == 1:
            return g
        left, right = (q.T if back else q for q in self.Q)
        return left.T @ g @ right

    def step(self, w, g):
        outer = [g @ g.T, g.T @ g] if g.ndim == 2 else []
        if self.m is None:  # the first gradient makes the bases, and no step
            self.m, self.v = np.zeros_like(g), np.zeros_like(g)
            self.GG = [(1 - self.b2) * p for p in outer]
            self.Q = [np.linalg.eigh(p + 1e-30 * np.eye(len(p)))[1][:, ::-1] for p in self.GG]
            return w
        self.t += 1
        there = self.project(g)
        self.m = self.b1 * self.m + (1 - self.b1) * g  # kept in the arrays' own basis
        self.v = self.b2 * self.v + (1 - self.b2) * there**2
        size = self.rate * (1 - self.b2**self.t) ** 0.5 / (1 - self.b1**self.t)
        w = w - size * self.project(self.project(self.m) / (np.sqrt(self.v) + self.eps), back=True)
        w = w - self.rate * self.decay * w
        self.GG = [self.b2 * p + (1 - self.b2) * q for p, q in zip(self.GG, outer, strict=True)]
        if self.t % self.frequency == 0:
            for side, (p, u) in enumerate(zip(self.GG, self.Q, strict=True)):
                order = np.argsort(-np.diag(u.T @ p @ u))
                self.v = np.take(self.v, order, axis=side)
                self.Q[side] = np.linalg.qr(p @ u[:, order])[0]
        return w


def test_soap_is_the_authors_rule_step_by_step():
    jax, optax = pytest.importorskip("jax"), pytest.importorskip("optax")
    from linop_gn_studies.soap import soap

    rng = np.random.default_rng(0)
    w = {"matrix": rng.standard_normal((4, 4)), "vector": rng.standard_normal(3)}
    rules = {name: AuthorsSoap() for name in w}
    with jax.enable_x64(True):
        ours, rule = {name: jax.numpy.asarray(v) for name, v in w.items()}, soap()
        state, update = rule.init(ours), jax.jit(rule.update)
        for step in range(24):
            g = {name: rng.standard_normal(v.shape) * (1 + np.arange(v.shape[-1])) for name, v in w.items()}
            w = {name: rules[name].step(w[name], g[name]) for name in w}
            made, state = update({name: jax.numpy.asarray(v) for name, v in g.items()}, state, ours)
            ours = optax.apply_updates(ours, made)
            for name in w:
                assert np.allclose(ours[name], w[name], rtol=1e-9, atol=1e-11), (step, name)


def test_transposed_matrices():
    """An optimiser that scales columns scales rows of what is transposed."""

    @lg.record
    class Columns(lg.optimisers.Optimiser):
        def init(self, ops, space, x):
            return None

        def update(self, ops, space, gradient, kept, x, rate):
            return space.join([-rate * leaf * np.arange(leaf.shape[1]) for leaf in space.split(gradient)]), kept

    ops, space = lg.load("numpy"), lg.Space.of({"w": np.zeros((2, 3))})
    step, _ = Transposed(Columns()).update(ops, space, np.ones(6), None, np.zeros(6), 0.5)
    assert step.reshape(2, 3).tolist() == [[0.0] * 3, [-0.5] * 3]


def test_a_run_comes_behind_those_that_it_depends_on_and_is_another_when_they_are():
    sweep = [Run("rates", f"rate={rate}", 0, dict, {"rate": rate}) for rate in (1, 2)]
    best = Run("main", "best", 0, dict, {"steps": 3}, after=sweep)
    assert [run.name for run in ordered([best, sweep[0]])] == ["rates--rate=1--0", "rates--rate=2--0", "main--best--0"]
    assert Run("main", "best", 0, dict, {"steps": 3}, after=sweep[:1]).key != best.key
    assert json.loads(Run("a", "b", 0, dict, {"steps": 3}).key) == {"steps": 3}


@pytest.fixture
def form(tmp_path):
    rng = random.Random(0)
    words = ["def ", "return ", "x", " = ", "self.", "(1)\n", "for i in ", "range", ":\n    "]
    (tmp_path / "corpus.txt").write_text("".join(rng.choice(words) for _ in range(40_000)), encoding="ascii")
    return Form("quick", "torch", tmp_path)


def test_every_method_trains_on_torch_and_the_text_is_read_once(form):
    pytest.importorskip("torch")
    pytest.importorskip("pytorch_optimizer")
    scale = Scale(TINY, length=8, inner=4, count=2, warm=2, steps=2, longer=1, common=1, measured=4)
    case = Case("tiny", scale, form)
    found = []
    methods = entries("torch", TINY)
    for name in ("GN", "layerwise prox", CONTROL, "GGN-CG-LM", "SOAP", "AdamW"):
        entry = methods[name]
        _, numbers, method = next(entry.made())
        made = case.train(name, method, isinstance(entry, Small), 0, 2, 1, lambda _: None, numbers=numbers)
        found.append({"case": "tiny", "entry": name, "seed": 0, **made})
        assert made["status"] == "COMPLETED"
        assert made["curves"]["step"] == [0, 1, 2]
        searched = 2 if "length" in made["curves"] and name != "GGN-CG-LM" else 1
        assert made["curves"]["tokens"][-1] == 2 * 2 * 4 * 8 * searched, name
        assert np.isfinite(made["figures"]["held_out_loss"])
    for name, (method, other) in changed("torch", TINY, scale).items():
        if name in ("EMA 0.5", "N = 8"):
            seen = Case("tiny", other, form).train(name, method(0.01), False, 0, 1, 1, lambda _: None)
            assert ("averaged_held_out_loss" in seen["figures"]) == name.startswith("EMA")
    starts = {r["entry"]: r["curves"]["held_out_loss"][0] for r in found}
    assert len(set(starts.values())) == 1  # one checkpoint
    assert {v.outcome for v in llm_claims.claims(Results(found))} & {HELD, NOT_HELD}
    with pytest.raises(ValueError, match="each is read once"):
        list(case.task("small", 0).feed(lambda x: None, 0, 10**6))


def test_the_plan_picks_the_best_rate_when_it_is_made(form):
    pytest.importorskip("pytorch_optimizer")
    runs = {run.name: run for run in llm.plan(form)}
    best = runs["quick--gn--0"]
    assert [run.entry for run in best.after] == ["GN rate=0.01", "GN rate=0.02", "GN rate=0.04"]
    losses = zip(best.after, (2.0, 1.0, None), strict=True)
    found = [{**vars(r), "numbers": r.settings["numbers"], "figures": {"held_out_loss": v}} for r, v in losses]
    assert llm.best_numbers(Results(found)) == {"rate": 0.02}
    assert any(run.entry == CONTROL for run in runs.values())


def made(case, entry, seed, losses, **columns):
    steps = list(range(len(losses)))
    kept = ("sequential", "products", "tokens", "solve_tokens", "seconds")
    curves = {"step": steps, "held_out_loss": losses} | {name: columns.get(name, steps) for name in kept}
    figures = {"held_out_loss": losses[-1], "lengths": columns.get("lengths", [])}
    result = {"case": case, "entry": entry, "of": entry.split(" rate")[0], "seed": seed, "curves": curves}
    return {**result, "figures": figures, "common": 4, "count": 16, "data": {"source": "none"}}


def falling(pace, count=10):
    return [3.0 - 0.1 * pace * i for i in range(count + 1)]


def test_claims_are_judged_by_steps_to_the_common_loss():
    paces = {"GN": 4, "layerwise": 3, "prox": 4, "layerwise prox": 3, "SOAP": 1, "Muon": 0.9, "AdamW": 0.5, CONTROL: 5}
    found = [made("1M", name, seed, falling(pace)) for name, pace in paces.items() for seed in range(3)]
    verdicts = {v.claim: v for v in llm_claims.claims(Results(found))}
    order = next(v for claim, v in verdicts.items() if "GN < layerwise < SOAP" in claim)
    assert order.outcome == HELD
    assert order.ours == "GN 1, layerwise 1.33, SOAP 4, Muon 4.44, AdamW 8"
    by = {claim.split(": ", 1)[1]: v for claim, v in verdicts.items() if ": " in claim}
    assert by["layerwise takes at most 1.5 times the steps of GN"].ours == "1.33 (1.33 to 1.33)"
    assert by["SOAP takes 3.7 times the steps of layerwise, or more"].outcome == NOT_HELD
    assert by["GN takes fewer steps than N inner steps on the true loss"].outcome == NOT_HELD


def test_batches_are_compared_at_equal_tokens():
    found = []
    for size, gain in ((4, 0.0), (16, 0.1), (64, 0.2)):
        for name in ("GN", "SOAP", "Muon", "AdamW"):
            losses = [3.0 - (0.1 + gain * (name == "GN")) * i for i in range(11)]
            solve = [2 * i for i in range(11)]
            found.append(made(f"1M: batches of {size}k", f"{name} rate=1", 0, losses, tokens=solve, solve_tokens=solve))
            found.append(made("1M", name, 0, losses))
    verdicts = [v for v in llm_claims.claims(Results(found)) if "gain on SOAP" in v.claim]
    assert [v.outcome for v in verdicts] == [HELD, HELD]
    assert verdicts[0].ours.startswith("4k: GN 2.000, AdamW 2.000, Muon 2.000, SOAP 2.000; 16k: GN 1.000")


def test_characters_are_ascii_and_files_are_held_out():
    text = characters(None)
    assert max(text.train.max(), text.test.max()) < 128
    assert 10 * len(text.test) < len(text.train)


def test_the_order_is_of_seeds_that_all_have():
    rows = [made("a", name, 0, falling(pace)) for name, pace in (("GN", 4), ("layerwise", 3), ("SOAP", 1), ("Muon", 1))]
    rows += [made("a", "AdamW", seed, falling(0.5, 30)) for seed in (0, 1)]
    rows += [made("a", "SOAP", 1, falling(1)), made("a", "GN", 1, [5.0] * 10)]  # of seed 1 others are still to come
    first = llm_claims.claims(Results(rows))[0]
    assert first.outcome == HELD
    assert "never" not in first.ours
    assert llm_claims._Reached(Results(rows), "a").ratio("SOAP", "GN")[0] == 0.0
