"""
A model of Hugging Face, with LoRA
==================================

GPT-2 as ``transformers`` has it, small and with random weights, so that nothing is downloaded. Low-rank adapters are
trained by Levenberg-Marquardt, chosen by a pattern of names, on dicts of batches with labels.
"""

import matplotlib.pyplot as plt
import torch
import transformers
from linop_gn_torch import optim


class LoRA(torch.nn.Module):
    """A layer with a low-rank term beside it."""

    def __init__(self, layer, rank=4):
        super().__init__()
        self.layer, (inputs, outputs) = layer, layer.weight.shape
        self.lora_A = torch.nn.Parameter(torch.randn(inputs, rank) / inputs**0.5)
        self.lora_B = torch.nn.Parameter(torch.zeros(rank, outputs))

    def forward(self, x):
        return self.layer(x) + x @ self.lora_A @ self.lora_B


def model():
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=64, n_positions=32, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3
    )
    gpt = transformers.GPT2LMHeadModel(config).eval()
    for block in gpt.transformer.h:
        block.attn.c_attn = LoRA(block.attn.c_attn)
        block.mlp.c_fc = LoRA(block.mlp.c_fc)
    return gpt


torch.manual_seed(1)
ids = (torch.randint(64, (32, 1)) + torch.arange(24) * torch.randint(1, 4, (32, 1))) % 64  # steps of 1, 2 or 3
labels = ids.masked_fill(torch.arange(24) < 2, -100)  # what cannot be foretold does not count
batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}

# %%
# The loss is the model's own, which one forward at the first batch verifies.

steps = 30  # quick: 2
gpt = model()
opt = optim.LevenbergMarquardt(gpt, params="*lora_*")
losses = [float(opt.step(batch)) for _ in range(steps)]
print(opt.last)
trained = sum(p.numel() for name, p in gpt.named_parameters() if "lora_" in name)
print(f"{trained} of {sum(p.numel() for p in gpt.parameters())} parameters, loss {losses[0]:.2f} -> {losses[-1]:.2f}")

plt.figure(figsize=(6, 3.5), layout="constrained")
plt.plot(losses, ".-")
plt.xlabel("step")
plt.ylabel("loss")
plt.show()
