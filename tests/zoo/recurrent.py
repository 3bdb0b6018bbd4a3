"""Recurrent networks and state spaces, in torch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from .cases import Case

F = nn.functional


class Tagger(nn.Module):
    """Tokens, a recurrent layer, and a class for each."""

    def __init__(self, kind: type[nn.RNNBase], **options) -> None:
        super().__init__()
        self.embedding, self.rnn = nn.Embedding(9, 6), kind(6, 5, batch_first=True, **options)
        self.head = nn.Linear(5 * (1 + self.rnn.bidirectional), 4)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.rnn(self.embedding(tokens))[0])


class Packed(Tagger):
    """The last state of sequences of several lengths."""

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.embedding(tokens), lengths, batch_first=True, enforce_sorted=False)
        padded, _ = pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
        return self.head(padded[torch.arange(len(lengths)), lengths - 1])


class Seq2Seq(nn.Module):
    """Encoder and decoder with Bahdanau's additive attention, teacher forced."""

    def __init__(self, d: int = 6) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(9, d), nn.Embedding(9, d)
        self.encoder, self.cell = nn.GRU(d, d, batch_first=True), nn.GRUCell(2 * d, d)
        self.query, self.key, self.energy = nn.Linear(d, d), nn.Linear(d, d, bias=False), nn.Linear(d, 1, bias=False)
        self.head = nn.Linear(d, 9)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        memory, state = self.encoder(self.source(source))
        state, outputs = state[0], []
        for embedded in self.target(target).unbind(1):
            scores = self.energy(torch.tanh(self.query(state)[:, None] + self.key(memory)))
            context = (scores.softmax(1) * memory).sum(1)
            state = self.cell(torch.cat([embedded, context], -1), state)
            outputs.append(self.head(state))
        return torch.stack(outputs, 1)


class TreeLSTM(nn.Module):
    """Child-sum Tree-LSTM (Tai et al., 2015) on fixed binary trees."""

    def __init__(self, d: int = 5) -> None:
        super().__init__()
        self.gates, self.inner = nn.Linear(d, 3 * d), nn.Linear(d, 3 * d, bias=False)
        self.forget, self.of_child, self.head = nn.Linear(d, d), nn.Linear(d, d, bias=False), nn.Linear(d, 3)

    def node(self, x: Tensor, children: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        h = sum((h for h, _ in children), torch.zeros_like(x))
        i, o, u = (self.gates(x) + self.inner(h)).chunk(3, -1)
        c = i.sigmoid() * u.tanh()
        for hk, ck in children:
            c = c + (self.forget(x) + self.of_child(hk)).sigmoid() * ck
        return o.sigmoid() * c.tanh(), c

    def forward(self, x: Tensor) -> Tensor:
        leaves = [self.node(x[:, i], []) for i in range(4)]
        left, right = self.node(x[:, 4], leaves[:2]), self.node(x[:, 5], leaves[2:])
        return self.head(self.node(x[:, 6], [left, right])[0])


class S4D(nn.Module):
    """A diagonal state space (Gu et al., 2022) as a long convolution by FFT; its complex numbers are inside."""

    def __init__(self, channels: int = 4, states: int = 3) -> None:
        super().__init__()
        self.log_dt = nn.Parameter(torch.full((channels,), -1.0))
        self.log_real = nn.Parameter(torch.zeros(channels, states))
        self.imag = nn.Parameter(torch.pi * torch.arange(states).repeat(channels, 1))
        self.C = nn.Parameter(torch.randn(channels, states, 2))
        self.D, self.out = nn.Parameter(torch.randn(channels)), nn.Conv1d(channels, 2 * channels, 1)

    def forward(self, u: Tensor) -> Tensor:
        length, dt = u.shape[-1], self.log_dt.exp()
        A = torch.complex(-self.log_real.exp(), self.imag)
        dtA = A * dt[:, None]
        C = torch.view_as_complex(self.C) * (dtA.exp() - 1.0) / A
        powers = (dtA[..., None] * torch.arange(length)).exp()
        kernel = 2 * torch.einsum("cn,cnl->cl", C, powers).real
        y = torch.fft.irfft(torch.fft.rfft(u, 2 * length) * torch.fft.rfft(kernel, 2 * length), n=2 * length)
        return F.glu(self.out(F.gelu(y[..., :length] + u * self.D[:, None])), dim=1).mean(-1)


class Mamba(nn.Module):
    """The selective scan (Gu and Dao, 2023), written out, with its causal depthwise convolution and gate."""

    def __init__(self, d: int = 4, states: int = 3) -> None:
        super().__init__()
        self.norm, self.into, self.out = nn.RMSNorm(d), nn.Linear(d, 4 * d, bias=False), nn.Linear(2 * d, d)
        self.conv = nn.Conv1d(2 * d, 2 * d, 3, groups=2 * d, padding=2)
        self.select, self.dt = nn.Linear(2 * d, 1 + 2 * states, bias=False), nn.Linear(1, 2 * d)
        self.A_log = nn.Parameter(torch.arange(1, states + 1).repeat(2 * d, 1).log())
        self.D, self.states = nn.Parameter(torch.ones(2 * d)), states

    def forward(self, x: Tensor) -> Tensor:
        u, gate = self.into(self.norm(x)).chunk(2, -1)
        u = F.silu(self.conv(u.mT)[..., : x.shape[1]].mT)
        dt, B, C = self.select(u).split([1, self.states, self.states], -1)
        dt, A = F.softplus(self.dt(dt)), -self.A_log.exp()
        state, made = u.new_zeros(len(u), u.shape[-1], self.states), []
        for t in range(u.shape[1]):
            state = (dt[:, t, :, None] * A).exp() * state + (dt[:, t] * u[:, t])[..., None] * B[:, t, None]
            made.append((state * C[:, t, None]).sum(-1) + self.D * u[:, t])
        return x + self.out(torch.stack(made, 1) * F.silu(gate))


class RWKV(nn.Module):
    """RWKV's time mixing (Peng et al., 2023), its recurrence in logarithms."""

    def __init__(self, d: int = 4) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.rand(3, d))
        self.decay, self.first = nn.Parameter(torch.randn(d)), nn.Parameter(torch.randn(d))
        self.r, self.k, self.v, self.o = (nn.Linear(d, d, bias=False) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        before = F.pad(x, (0, 0, 1, -1))
        r, k, v = (lin(before + m * (x - before)) for lin, m in zip((self.r, self.k, self.v), self.mix, strict=True))
        w, made = -self.decay.exp(), []
        num, den, top = torch.zeros_like(k[:, 0]), torch.zeros_like(k[:, 0]), torch.full_like(k[:, 0], -1e38)
        for kt, vt in zip(k.unbind(1), v.unbind(1), strict=True):
            high = torch.maximum(top, self.first + kt)
            a, b = (top - high).exp(), (self.first + kt - high).exp()
            made.append((a * num + b * vt) / (a * den + b))
            high = torch.maximum(top + w, kt)
            a, b = (top + w - high).exp(), (kt - high).exp()
            num, den, top = a * num + b * vt, a * den + b, high
        return x + self.o(r.sigmoid() * torch.stack(made, 1))


class Memory(nn.Module):
    """A Neural Turing Machine's addressing (Graves et al., 2014): by content, gated, shifted, sharpened."""

    def __init__(self, slots: int = 4, width: int = 3) -> None:
        super().__init__()
        self.controller = nn.LSTMCell(2 + width, 6)
        self.address, self.write, self.head = nn.Linear(6, width + 6), nn.Linear(6, 2 * width), nn.Linear(6 + width, 2)
        self.start, self.width = nn.Parameter(torch.randn(slots, width)), width

    def forward(self, x: Tensor) -> Tensor:
        memory, read = self.start.expand(len(x), -1, -1), x.new_zeros(len(x), self.width)
        state, w, made = None, x.new_full((len(x), len(self.start)), 1.0 / len(self.start)), []
        for xt in x.unbind(1):
            state = self.controller(torch.cat([xt, read], -1), state)
            key, beta, gate, shift, gamma = self.address(state[0]).split([self.width, 1, 1, 3, 1], -1)
            content = (F.softplus(beta) * F.cosine_similarity(memory, key[:, None], dim=-1)).softmax(-1)
            w = gate.sigmoid() * content + (1 - gate.sigmoid()) * w
            w = sum(s[:, None] * w.roll(i - 1, -1) for i, s in enumerate(shift.softmax(-1).unbind(-1)))
            w = w ** (1 + F.softplus(gamma))
            w = w / w.sum(-1, keepdim=True)
            erase, add = self.write(state[0]).chunk(2, -1)
            memory = memory * (1 - w[..., None] * erase.sigmoid()[:, None]) + w[..., None] * add[:, None]
            read = (w[..., None] * memory).sum(1)
            made.append(self.head(torch.cat([state[0], read], -1)))
        return torch.stack(made, 1)


class EchoState(nn.Module):
    """A reservoir that stays as it is; the head alone is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.reservoir, self.head = nn.RNN(2, 12, batch_first=True), nn.Linear(12, 2)
        self.reservoir.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.reservoir(x)[0])


def tagged(kind: type[nn.RNNBase], **options):
    return lambda: Case(Tagger(kind, **options), torch.randint(9, (3, 4)), torch.randint(4, (3, 4)))


def packed() -> Case:
    tokens, lengths = torch.randint(9, (4, 5)), torch.tensor([5, 2, 4, 1])
    return Case(Packed(nn.LSTM, bidirectional=True), (tokens, lengths), torch.randint(4, (4,)))


def series(make, shape=(3, 5, 4), classes=None):
    def case() -> Case:
        model, x = make(), torch.randn(shape)
        z = model(x)
        y = torch.randn_like(z).detach() if classes is None else torch.randint(classes, z.shape[:-1])
        return Case(model, x, y, "squares" if classes is None else "classes")

    return case


CASES = {
    "Elman network": tagged(nn.RNN, nonlinearity="tanh"),
    "Elman network, ReLU": tagged(nn.RNN, nonlinearity="relu"),
    "LSTM": tagged(nn.LSTM, num_layers=2),
    "LSTM, projected": tagged(nn.LSTM, proj_size=0, bidirectional=True),
    "GRU, both ways, dropout": tagged(nn.GRU, num_layers=2, bidirectional=True, dropout=0.3),
    "LSTM of packed sequences": packed,
    "Encoder, decoder, additive attention": lambda: Case(
        Seq2Seq(), (torch.randint(9, (2, 4)), torch.randint(9, (2, 3))), torch.randint(9, (2, 3))
    ),
    "Tree-LSTM": series(TreeLSTM, (3, 7, 5), classes=3),
    "S4D": series(S4D, (3, 4, 8)),
    "Mamba's selective scan": series(Mamba),
    "RWKV's time mixing": series(RWKV),
    "Neural Turing machine": series(Memory, (2, 4, 2)),
    "Echo state network": series(EchoState, (3, 5, 2)),
}
