# SPDX-License-Identifier: Apache-2.0
"""Blocks of a UNet as the papers write them, small, for adapters that sit in blocks."""

import torch
from torch import nn

WIDTH, TEXT, CHANNELS, OUT = 8, 6, 4, 8
INPUTS = {"block": (4, 5, WIDTH), "residual": (4, CHANNELS, 6, 5), "same": (4, OUT, 6, 5)}


class Attention(nn.Module):
    def __init__(self, width, context):
        super().__init__()
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context, width, bias=False)
        self.to_v = nn.Linear(context, width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, width), nn.Dropout(0.0))

    def forward(self, x, context):
        q, k, v = self.to_q(x), self.to_k(context), self.to_v(context)
        shares = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
        return self.to_out(shares @ v)


class Transformer(nn.Module):
    """x + attn1(norm1 x), then + attn2(norm2, text), then + ff(norm3); ``writes``: as hosts that add in place."""

    writes = False
    ff_in = False

    def __init__(self):
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(WIDTH) for _ in range(3))
        self.attn1, self.attn2 = Attention(WIDTH, WIDTH), Attention(WIDTH, TEXT)
        self.ff = nn.Sequential(nn.Linear(WIDTH, 12), nn.GELU(), nn.Linear(12, WIDTH))
        self.register_buffer("text", torch.randn(1, 3, TEXT))

    def forward(self, x):
        text = self.text.repeat(len(x), 1, 1)
        n = self.norm1(x)
        x = self.add(x, self.attn1(n, n))
        x = self.add(x, self.attn2(self.norm2(x), text))
        return self.add(x, self.ff(self.norm3(x)))

    def add(self, x, n):
        if self.writes:
            n += x
            return n
        return n + x


class Residual(nn.Module):
    updown = False

    def __init__(self, channels=CHANNELS, out=OUT):
        super().__init__()
        self.in_layers = nn.Sequential(
            nn.GroupNorm(2, channels), nn.SiLU(), nn.Conv2d(channels, out, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(3, out))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(2, out), nn.SiLU(), nn.Dropout(0.0), nn.Conv2d(out, out, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1)
        self.register_buffer("embedding", torch.randn(1, 3))

    def forward(self, x):
        h = self.out_layers(self.in_layers(x) + self.emb_layers(self.embedding)[..., None, None])
        return self.skip_connection(x) + h


def base():
    torch.manual_seed(0)
    model = nn.Module()
    model.block, model.residual, model.same = Transformer(), Residual(), Residual(OUT, OUT)
    return model.requires_grad_(False)


def flow(block, x, adapters):
    """What a transformer block with adapters computes, written out: Xiang et al. 2023, SPECS 2.2.

    ``adapters`` is A by (din, dout); a change of a stream flows on in it.
    """

    def stream(name, x):
        for (din, dout), a in adapters.items():
            if dout == name and din != name:
                x = x + a(seen[din])
        seen[name] = x
        return x + adapters[name, name](x) if (name, name) in adapters else x

    seen = {}
    a1i = stream("attn1i", x)
    n = block.norm1(a1i)
    seen["attn1o"] = block.attn1(n, n)
    a2i = stream("attn2i", seen["attn1o"] + a1i)
    text = block.text.repeat(len(x), 1, 1)
    if ("attn2c", "attn2c") in adapters:
        text = text + adapters["attn2c", "attn2c"](text)
    seen["attn2o"] = block.attn2(block.norm2(a2i), text)
    ffni = stream("ffni", seen["attn2o"] + a2i)
    seen["ffno"] = block.ff(block.norm3(ffni))
    return stream("transo", seen["ffno"] + ffni)


def residual_flow(block, x, adapters):
    """The same of a residual block."""
    before = x
    if ("resi", "resi") in adapters:
        x = x + adapters["resi", "resi"](x)
    h = block.in_layers(x) + block.emb_layers(block.embedding)[..., None, None]
    out = block.skip_connection(x) + block.out_layers(h)
    if ("resi", "reso") in adapters:
        out = out + adapters["resi", "reso"](before)
    if ("reso", "reso") in adapters:
        out = out + adapters["reso", "reso"](out)
    return out


def flow_of(block, x, adapters):
    return (residual_flow if isinstance(block, Residual) else flow)(Plain(block), x, adapters)


class Plain:
    """A block's parts by their forwards, so that hooks on them count for nothing."""

    def __init__(self, module):
        self._module = module

    def __getattr__(self, name):
        value = getattr(self._module, name)
        return Unhooked(value) if isinstance(value, nn.Module) else value


class Unhooked:
    def __init__(self, module):
        self._module = module

    def __call__(self, *args):
        return call(self._module, *args)


def call(module, *args):
    """A module without the hooks on it and on its parts."""
    hooks = {}
    for part in module.modules():
        hooks[part] = part._forward_hooks, part._forward_pre_hooks
        part._forward_hooks, part._forward_pre_hooks = (
            type(part._forward_hooks)(),
            type(part._forward_pre_hooks)(),
        )
    try:
        return module(*args)
    finally:
        for part, (after, before) in hooks.items():
            part._forward_hooks, part._forward_pre_hooks = after, before
