"""INT8 for the products of a ranker's layers: how each is rounded, chosen by what it does to p.

Weights have a scale for every row, inputs one for the whole tensor, symmetric. SmoothQuant's scales
of input channels (arXiv 2211.10438, equation 4) are part of the kernel that rounds or, before the
down projection, stand in the rows of the up projection. Products that read the same input are one
group, with a strength of its own.

What rounding a group does to p is taken to first order: the error of its outputs times the gradient
of the log-odds, an item at a time. Groups that would move p most stay in bfloat16.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from openvino import opset13 as opset
from torch import Tensor, nn

from slmrank.engine.openvino.runtime import NO_LIMIT
from slmrank.model.probability import probability

STRENGTHS = (0.55, 0.7, 0.85, 1.0)
LEAST_SCALE = 0.2  # of the median: channels that calibration hardly saw would be blown up
DP_LIMIT = 0.01  # by the estimate: the demo has 0.0100 with every product, measured 0.0096
TRIED_PROMPTS = 48  # on which strengths are compared, with the ranges of others
STEPS = 127
CHUNK_TOKENS = 1024  # some 0.7 GB for a ranker of 92M parameters
PassInputs = dict[str, Any]
_EMBEDDING = re.compile(r"\bmodel\.embed_tokens\b")
_PRODUCT = re.compile(r"\bmodel\.layers\.\d+\.(?:self_attn|mlp)\.[a-z]+_proj\b")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What an INT8 product reads: `step`, the size of one of 256 steps, and the scales [I] by which
    the input is divided before, None where what makes it does so already."""

    step: float
    scales: Tensor | None = None


@dataclass(kw_only=True)
class Group:
    """Products [O, I] of one layer that read the same input, and the product that makes it from
    another input by the row, where there is one."""

    products: list[Any]
    maker: Any = None
    most: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.most = torch.full((self.products[0].in_features,), 1e-5)

    def scales_at(self, strength: float) -> Tensor:
        """Scales [I] of the inputs."""
        weight = torch.stack([one.weight.detach().abs().amax(0) for one in self.products]).amax(0)
        found = self.most**strength / weight.clamp(min=1e-5) ** (1 - strength)
        return found.clamp(min=LEAST_SCALE * float(found.median()))

    def step(self, scales: Tensor) -> float:
        return float((self.most / scales).max()) / STEPS

    @torch.no_grad()
    def fold(self, scales: Tensor) -> Reading:
        """Multiply the products' weights by the scales; the maker's rows are divided by them."""
        for one in self.products:
            one.weight.data = one.weight.data * scales
        if self.maker is None:
            return Reading(step=self.step(scales), scales=scales)
        for parameter in self.maker.parameters(recurse=False):
            parameter.data = parameter.data / scales.view(-1, *[1] * (parameter.dim() - 1))
        return Reading(step=self.step(scales))


def groups_of(network: Any) -> list[Group]:
    """All products of the layers, in the order in which they are computed."""
    found = []
    for layer in network.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        found += [
            Group(products=[attention.q_proj, attention.k_proj, attention.v_proj]),
            Group(products=[attention.o_proj]),
            Group(products=[mlp.gate_proj, mlp.up_proj]),
            Group(products=[mlp.down_proj], maker=mlp.up_proj),
        ]
    return found


def rounded(weight: Tensor) -> Tensor:
    """A weight [O, I] on the 255 steps of each of its rows."""
    steps = weight.abs().amax(1, keepdim=True).clamp(min=1e-12) / STEPS
    return (weight / steps).round() * steps


def smooth(
    items_pass: Any, inputs: Sequence[PassInputs], strength: float | None
) -> dict[str, Reading]:
    """Fold scales of input channels into the products of `items_pass`, those that are to be INT8,
    and return what these read, by the product's name: as many as move p, by the root of the sum of
    squares, by no more than DP_LIMIT on average. Only with what they read are scores as before.

    `inputs` are of passes of one item each; `strength` None: what moves p least, group by group.
    """
    groups = groups_of(items_pass.model)
    passes = [{key: torch.from_numpy(one) for key, one in given.items()} for given in inputs]
    # Of the prompts that gave the ranges, equal channels look best and others fall out of them.
    _widen(items_pass, groups, passes[1::2] or passes)
    tried = passes[::2][:TRIED_PROMPTS]
    strengths = STRENGTHS if strength is None else (strength,)
    moved = sum(_moved(items_pass, groups, chunk, strengths) for chunk in _chunks(tried))
    moved /= len(tried)
    _widen(items_pass, groups, passes[::2])
    best, least = moved.argmin(1), moved.min(1)
    work = [sum(one.weight.numel() for one in group.products) for group in groups]
    order = np.argsort(least**2 / work, kind="stable")
    kept = order[np.sqrt(np.cumsum(least[order] ** 2)) <= DP_LIMIT]
    names = {one: name for name, one in items_pass.model.named_modules()}
    found: dict[str, Reading] = {}
    for place in sorted(kept):
        group = groups[place]
        reading = group.fold(group.scales_at(strengths[best[place]]))
        found |= {names[one]: reading for one in group.products}
    return found


def all_products(network: Any) -> list[str]:
    """The names of the layers' products."""
    return [name for name, _ in network.named_modules() if _PRODUCT.fullmatch(name)]


@torch.no_grad()
def _widen(items_pass: Any, groups: Sequence[Group], passes: Sequence[PassInputs]) -> None:
    """Raise the ranges of the groups' inputs to what these passes have."""
    for given in passes:
        with _watched(groups) as (read, _):
            items_pass(**given)
        for group in groups:
            for one in group.products:
                group.most = torch.maximum(group.most, read[one].abs().amax(0))


def _moved(
    items_pass: Any, groups: Sequence[Group], passes: Sequence[Any], strengths: Sequence[float]
) -> Any:
    """The sum over passes of what rounding a group at a strength moves p by [groups, strengths]."""
    reads: dict[Any, list[Tensor]] = {}
    slopes: dict[Any, list[Tensor]] = {}
    for given in passes:
        with _watched(groups) as (read, zeros):
            logit = items_pass(**given).sum()
            found = torch.autograd.grad(logit, list(zeros.values()))
        p = float(probability(logit.detach().numpy()))
        for one, gradient in zip(zeros, found, strict=True):
            reads.setdefault(one, []).append(read[one])
            slopes.setdefault(one, []).append(gradient.flatten(0, -2) * (p * (1 - p)))
    moved = np.zeros((len(groups), len(strengths)))
    for row, group in enumerate(groups):
        by = torch.zeros(len(strengths), len(passes))
        ways = [group.scales_at(strength) for strength in strengths]
        for one in group.products:
            weight, states = one.weight.detach(), torch.cat(reads[one])
            slope = torch.cat(slopes[one])
            exact = states @ weight.T
            for column, scales in enumerate(ways):
                step = group.step(scales)
                near = (states / scales / step).round().clamp(-STEPS - 1, STEPS) * step
                error = near @ rounded(weight * scales).T - exact
                parts = (error * slope).sum(1).split([*map(len, reads[one])])
                by[column] += torch.stack([part.sum() for part in parts])
        moved[row] = by.abs().sum(1).numpy()
    return moved


def _chunks(passes: Sequence[PassInputs]) -> Iterator[list[PassInputs]]:
    chunk: list[PassInputs] = []
    for given in passes:
        chunk.append(given)
        if sum(one["ids"].numel() for one in chunk) >= CHUNK_TOKENS:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


@contextmanager
def _watched(groups: Sequence[Group]) -> Iterator[tuple[dict[Any, Tensor], dict[Any, Tensor]]]:
    """During one pass: what each product reads [T, I], and zeros that are added to what it gives,
    by which one may differentiate."""
    read: dict[Any, Tensor] = {}
    zeros: dict[Any, Tensor] = {}

    def note(product: nn.Module, given: tuple[Tensor], output: Tensor) -> Tensor:
        read[product] = given[0].detach().flatten(0, -2)
        zeros[product] = torch.zeros_like(output, requires_grad=True)
        return output + zeros[product]

    hooks = [one.register_forward_hook(note) for group in groups for one in group.products]
    try:
        yield read, zeros
    finally:
        for hook in hooks:
            hook.remove()


def round_graph(graph: Any, readings: Mapping[str, Reading | None]) -> None:
    """Give the embedding and the products that `readings` names INT8 weights with a scale for each
    row, and let these products read what it says; None leaves their inputs as they are."""
    read: dict[tuple[str, int], Any] = {}
    for node in graph.get_ordered_ops():
        kind, name = node.get_type_name(), node.get_friendly_name()
        if kind == "Gather" and _EMBEDDING.search(name):
            _round_weight(node.input(0))
        found = _PRODUCT.search(name) if kind == "MatMul" else None
        if found is None or found[0] not in readings:
            continue
        _round_weight(node.input(1))
        reading = readings[found[0]]
        if reading is None:
            continue
        source = node.input_value(0)
        place = (source.get_node().get_friendly_name(), source.get_index())
        if place not in read:
            read[place] = _rounded_input(source, reading).output(0)
        node.input(0).replace_source_output(read[place])
    graph.validate_nodes_and_infer_types()


def _rounded_input(source: Any, reading: Reading) -> Any:
    """An output of the graph divided by scales and rounded. The plugin would take the scales into
    the norm before, behind which rounding is two kernels in float32; behind a clamp that changes
    nothing they are one with it."""
    if reading.scales is not None:
        if "norm" in source.get_node().get_friendly_name():
            source = opset.clamp(source, -NO_LIMIT, NO_LIMIT).output(0)
        factors = (1 / reading.scales).numpy().astype(np.float32)
        source = opset.multiply(source, opset.constant(factors[None, None])).output(0)
    low = np.float32(-(STEPS + 1) * reading.step)
    high = np.float32(STEPS * reading.step)
    return opset.fake_quantize(source, low, high, low, high, 2 * (STEPS + 1))


def _round_weight(reader: Any) -> None:
    """Let an input of a graph's operation read its constant [O, I] in INT8."""
    weight = reader.get_source_output().get_node().data
    scale = np.abs(weight).max(axis=1, keepdims=True).clip(min=1e-12) / STEPS
    whole = opset.constant(np.rint(weight / scale).astype(np.int8))
    back = opset.multiply(opset.convert(whole, "f32"), opset.constant(scale))
    reader.replace_source_output(back.output(0))
