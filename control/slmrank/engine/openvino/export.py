"""Turn a ranker checkpoint into one OpenVINO graph, quantise it, and cut a second one out of it.

`items.xml`: ids [B, S], lengths [B], prefix_lengths [Q], prefix_of [B] int64, past
[Q, L, 2, K, P, D] -> logits [B] float32. Items of several queries share a pass, each behind its
own prefix.
`prefix.xml`: the same without lengths -> keys and values of the new tokens of all layers,
[B, L, 2, K, S, D] float32: those of a query behind the instruction that all prompts begin with.

Keys and values of that instruction are computed once, in float32: the first tokens of a decoder
carry huge activations that ruin per-tensor INT8 ranges (calibrated on whole prompts the ranking was
destroyed, design.md section 7). Behind them a query's tokens are INT8 like an item's: mean |dp|
0.0099 instead of 0.0094 with the whole prefix in bfloat16, 256 pairs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import openvino as ov
import torch
from openvino import opset13 as opset
from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
from torch import Tensor, nn

from slmrank.engine.openvino.int8 import PassInputs
from slmrank.engine.openvino.runtime import keep_apart, prefix_inputs, unshared
from slmrank.model.checkpoint import Geometry
from slmrank.model.decoder import LoadedRanker, causal_mask, item_mask, label_row, run_layers
from slmrank.model.quiet import quiet
from slmrank.prompt.corpus import EncodedQuery
from slmrank.tokens import Ids

PREFIX_GRAPH = "prefix.xml"
ITEMS_GRAPH = "items.xml"


class ItemsPass(nn.Module):
    """What `items.xml` computes, of a ranker in float32."""

    def __init__(self, ranker: LoadedRanker) -> None:
        super().__init__()
        self.model: Any = ranker.network
        _fold_scale(self.model)
        self.register_buffer("head", label_row(ranker).detach().float())

    @torch.no_grad()
    def past_of(self, ids: Ids) -> Tensor:
        """Keys and values [1, L, 2, K, P, D] of a prompt's first tokens, which may be none."""
        if not len(ids):
            config = self.model.config
            kept = (config.num_hidden_layers, 2, config.num_key_value_heads)
            return torch.zeros(1, *kept, 0, self.model.model.layers[0].self_attn.head_dim)
        rows = torch.from_numpy(ids[None].astype(np.int64))
        places = torch.arange(rows.shape[1])
        mask = causal_mask(rows.shape[1], rows.device)
        _, cache = run_layers(self.model, rows, places[None], mask)
        return torch.stack([torch.stack(one, dim=1) for one in cache], dim=1)

    def forward(
        self, ids: Tensor, lengths: Tensor, past: Tensor, prefix_lengths: Tensor, prefix_of: Tensor
    ) -> Tensor:
        size = ids.shape[1]
        starts = prefix_lengths[prefix_of]
        positions = starts[:, None] + torch.arange(size)[None]
        mask = item_mask(starts, past.shape[4], size)
        cache = [(one[:, 0][prefix_of], one[:, 1][prefix_of]) for one in past.unbind(1)]
        hidden, _ = run_layers(self.model, ids, positions, mask, cache, last=lengths - 1)
        normed: Tensor = self.model.model.norm(hidden)
        head: Tensor = self.head  # type: ignore[assignment]
        # Not a matrix product, which would be rounded to INT8, where it made more than half of the
        # error of p (mean |dp| 0.011 instead of 0.005), or to bfloat16, where neighbours tie.
        return (normed.float() * head).sum(-1)


def export_items(items_pass: ItemsPass, shape: Geometry) -> Any:
    """The items graph, in float32."""
    kept = (shape.layers, 2, shape.kv_heads)
    example = {
        "ids": torch.ones(3, 7, dtype=torch.long),
        "lengths": torch.tensor([7, 4, 5]),
        "past": torch.zeros(2, *kept, 5, shape.head_dim),
        "prefix_lengths": torch.tensor([5, 3]),
        "prefix_of": torch.tensor([0, 1, 1]),
    }
    shapes = {
        "ids": [-1, -1],
        "lengths": [-1],
        "past": [-1, *kept, -1, shape.head_dim],
        "prefix_lengths": [-1],
        "prefix_of": [-1],
    }
    with torch.no_grad(), quiet():
        items_graph = _convert(items_pass, example, shapes)
    _name(items_graph, "items", "logits")
    return items_graph


def _fold_scale(network: Any) -> None:
    """Put the scale of attention into the weights that make its queries. Where it stands beside
    them, the plugin scales all keys instead and copies them transposed: 5 % of an INT8 pass."""
    for layer in network.model.layers:
        attention = layer.self_attn
        queries = attention.q_norm if hasattr(attention, "q_norm") else attention.q_proj
        for parameter in queries.parameters():
            parameter.data = parameter.data * attention.scaling
        attention.scaling = 1.0


def prefix_of_items(items_graph: Any) -> Any:
    """The prefix graph: the items graph, whatever its precision, up to the keys and values of its
    last layer."""
    graph = items_graph.clone()
    layers = []
    for node in graph.get_ordered_ops():
        if node.get_type_name() == "ScaledDotProductAttention":
            # Keys and values are those of the prefix with the new ones behind them.
            new = [node.input_value(place).get_node().input_value(1) for place in (1, 2)]
            both = opset.concat([opset.unsqueeze(one, 1) for one in new], 1)
            layers.append(opset.unsqueeze(both, 1))
    unread = "lengths"  # which positions are read is the items' matter
    parameters = [one for one in graph.get_parameters() if one.get_friendly_name() != unread]
    made = ov.Model([opset.concat(layers, 1)], parameters)
    _name(made, "prefix", "past")
    return made


def _convert(network: nn.Module, example: dict[str, Tensor], shapes: dict[str, list[int]]) -> Any:
    """`network` as a graph whose inputs have `shapes`, -1 for any size.

    torch's check of a trace, which traces once more, took 3 of 12 s; the parity gate checks more.
    """
    decoder = TorchScriptPythonDecoder(
        network, example_input=example, trace_kwargs={"check_trace": False}
    )
    inputs = [(name, ov.PartialShape(shape)) for name, shape in shapes.items()]
    try:
        return ov.convert_model(decoder, input=inputs)
    except RuntimeError as error:
        if "KeyboardInterrupt" in str(error):  # it is a fault of its conversion to OpenVINO
            raise KeyboardInterrupt from error
        raise


def separate_outputs(graph: Any) -> None:
    """Clamps that change nothing behind the output projections. The plugin takes their scales
    behind the addition of the residual, which then must be divided by them: two more passes over
    all states."""
    for node in graph.get_ordered_ops():
        if node.get_type_name() == "MatMul" and "o_proj" in node.get_friendly_name():
            keep_apart(list(node.output(0).get_target_inputs()))
    graph.validate_nodes_and_infer_types()


def calibration_inputs(
    items_pass: ItemsPass, head: Ids, queries: Iterable[EncodedQuery]
) -> list[PassInputs]:
    """Inputs of the items pass for real queries and items, one item each: behind the `head` that
    all prompts begin with where it can be, as the query's tokens are to be rounded as well."""
    pasts: dict[bytes, Any] = {}
    found = []
    for query in queries:
        for item in query.items:
            prefix, (ids,) = unshared(head, query.prefix, [item])
            key = prefix.tobytes()
            if key not in pasts:
                pasts[key] = items_pass.past_of(prefix).numpy()
            length = np.array([len(ids)], dtype=np.int64)
            found.append({**prefix_inputs(ids[None], pasts[key]), "lengths": length})
    return found


def _name(graph: Any, name: str, output: str) -> None:
    graph.set_friendly_name(name)
    graph.output(0).get_tensor().set_names({output})
