"""
The curvature of a small GPT
============================

A language model as nanoGPT writes it, small, on the docstrings of Python: the sharpest directions of its Hessian, and
how much of the Gauss-Newton matrix each layer has. Attention runs as it is: the operators take care of its second
derivatives.
"""

import matplotlib.pyplot as plt
import torch

import linop_gn as lg

text = " ".join(function.__doc__ or "" for function in (map, zip, filter, range, slice, print, sorted, property))
letters = sorted(set(text))
tokens = torch.tensor([letters.index(c) for c in text])
x, y = (torch.stack([tokens[i + o : i + o + 32] for i in range(0, 768, 32)]) for o in (0, 1))


class Block(torch.nn.Module):
    def __init__(self, n):
        super().__init__()
        self.before, self.after = torch.nn.LayerNorm(n), torch.nn.LayerNorm(n)
        self.qkv, self.out = torch.nn.Linear(n, 3 * n), torch.nn.Linear(n, n)
        self.mlp = torch.nn.Sequential(torch.nn.Linear(n, 4 * n), torch.nn.GELU(), torch.nn.Linear(4 * n, n))

    def forward(self, h):
        q, k, v = self.qkv(self.before(h)).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        h = h + self.out(mixed.transpose(1, 2).flatten(-2))
        return h + self.mlp(self.after(h))


torch.manual_seed(0)
ends = torch.nn.Embedding(len(letters), 32), torch.nn.Linear(32, len(letters))
gpt = torch.nn.Sequential(ends[0], Block(32), Block(32), torch.nn.LayerNorm(32), ends[1])
objective = lg.Objective(gpt, lg.losses.CrossEntropy(), (x, y))

# %%
# A few steps of training, and the five largest eigenvalues of the Hessian, each with a bound.

steps = 10  # quick: 1
trained = lg.minimize(objective, gpt, lg.SGN(damping=1e-3), max_steps=steps).params
print(f"loss {float(objective.value(gpt)):.3f}, {float(objective.value(trained)):.3f} after {steps} steps")
print(lg.eigsh(lg.Hessian(objective, trained), k=5, rtol=1e-3))

# %%
# The share of each layer in the trace of the Gauss-Newton matrix, from its diagonal.

G = lg.GGN(objective, trained)
diagonal = lg.diagonal(G, "hutchinson", products=20)
shares = {name: float(part.sum()) for name, part in G.domain.unpack(diagonal.value).items()}
largest = sorted(shares, key=shares.get)[-14:]
plt.figure(figsize=(7, 4), layout="constrained")
plt.barh(largest, [shares[name] for name in largest])
plt.title("trace of the Gauss-Newton matrix, by parameters")
plt.show()
