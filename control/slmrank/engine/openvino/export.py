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

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import torch
from openvino import opset13 as opset
from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
from torch import Tensor, nn

from slmrank.engine.openvino.runtime import keep_apart, no_past, prefix_inputs
from slmrank.model.checkpoint import Checkpoint
from slmrank.model.decoder import item_mask, label_row, run_layers
from slmrank.model.quiet import quiet
from slmrank.model.reference import load_model
from slmrank.prompt.corpus import EncodedQuery
from slmrank.tokens import Ids

PREFIX_GRAPH = "prefix.xml"
ITEMS_GRAPH = "items.xml"
ItemInputs = dict[str, Any]


class _ItemsPass(nn.Module):
    def __init__(self, model: nn.Module, head: Tensor) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("head", head)

    def forward(
        self, ids: Tensor, lengths: Tensor, past: Tensor, prefix_lengths: Tensor, prefix_of: Tensor
    ) -> Tensor:
        size = ids.shape[1]
        starts = prefix_lengths[prefix_of]
        positions = starts[:, None] + torch.arange(size)[None]
        mask = item_mask(starts, past.shape[4], size)
        cache = [(one[:, 0][prefix_of], one[:, 1][prefix_of]) for one in past.unbind(1)]
        hidden, _ = run_layers(self.model, ids, positions, mask, cache, last=lengths - 1)
        network: Any = self.model
        normed: Tensor = network.model.norm(hidden)
        head: Tensor = self.head  # type: ignore[assignment]
        # Not a matrix product, which would be rounded to INT8, where it made more than half of the
        # error of p (mean |dp| 0.011 instead of 0.005), or to bfloat16, where neighbours tie.
        return (normed.float() * head).sum(-1)


def export_items(checkpoint: Checkpoint) -> Any:
    """The items graph, in float32."""
    ranker = load_model(checkpoint)
    _fold_scale(ranker.network)
    head = label_row(ranker).detach().float()
    shape = checkpoint.geometry
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
        items_graph = _convert(_ItemsPass(ranker.network, head), example, shapes)
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


def past_of(compiled_prefix: Any, ids: Ids) -> Any:
    """Keys and values [1, L, 2, K, P, D] of a prompt's first tokens."""
    nothing = no_past(compiled_prefix)
    return compiled_prefix(prefix_inputs(ids[None], nothing))[0].copy()


def compiled_prefix(items_graph: Any) -> Any:
    """The prefix graph of a float32 items graph, to be run here."""
    graph = prefix_of_items(items_graph)
    return ov.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


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


def quantize_weights(items_graph: Any) -> Any:
    """INT8 weights per output channel; activations are quantised at run time."""
    import nncf

    nncf.set_log_level(logging.ERROR)
    with quiet():
        return nncf.compress_weights(items_graph, mode=nncf.CompressWeightsMode.INT8_SYM)


def quantize(items_graph: Any, compiled: Any, queries: Sequence[EncodedQuery], alpha: float) -> Any:
    """INT8 weights and activations with SmoothQuant, calibrated on item passes alone.

    The down projections stay in bfloat16: their inputs have outliers that cost more accuracy
    (error 0.19 -> 0.23 logits) than INT8 gains (5 % items/s); measured in design.md section 7.
    Attention stays whole: NNCF would round its queries and keys, which no INT8 product follows, and
    keep the plugin from running it in one kernel (mean |dp| 0.018 instead of 0.016, 192 pairs).
    """
    import nncf

    inputs = list(calibration_inputs(compiled, queries))
    nncf.set_log_level(logging.ERROR)
    # NNCF draws its progress on stdout, which belongs to results.
    with quiet():
        quantized = nncf.quantize(
            items_graph,
            nncf.Dataset(inputs),
            subset_size=len(inputs),
            model_type=nncf.ModelType.TRANSFORMER,
            preset=nncf.QuantizationPreset.PERFORMANCE,
            ignored_scope=nncf.IgnoredScope(
                patterns=[".*down_proj.*"], types=["ScaledDotProductAttention"]
            ),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=alpha)
            ),
        )
    _keep_apart(quantized)
    return quantized


def _keep_apart(quantized: Any) -> None:
    """Clamps that change nothing, between operations that the plugin joins to its own loss.

    It takes the scales of an output projection behind the addition of the residual, which then must
    be divided by them: two more passes over all states. And it takes SmoothQuant's scales into the
    norm, from where rounding to INT8 takes two kernels instead of one with those scales. Without
    both an INT8 pass takes 10 % less time, and scores stay as they are.
    """
    for node in quantized.get_ordered_ops():
        name, kind = node.get_friendly_name(), node.get_type_name()
        if kind == "MatMul" and "o_proj" in name:
            readers = list(node.output(0).get_target_inputs())
        elif kind == "Multiply" and "norm" in name and name.endswith("nncf_smooth_quant"):
            readers = [node.input(0)]
        else:
            continue
        keep_apart(readers)
    quantized.validate_nodes_and_infer_types()


def calibration_inputs(compiled: Any, queries: Sequence[EncodedQuery]) -> Iterable[ItemInputs]:
    """Inputs of the items graph for real queries and items, without padding rows."""
    for query in queries:
        past = past_of(compiled, query.prefix)
        for item in query.items:
            yield {
                "ids": item[None].astype(np.int64),
                "lengths": np.array([len(item)], dtype=np.int64),
                "past": past,
                "prefix_lengths": np.array([len(query.prefix)], dtype=np.int64),
                "prefix_of": np.zeros(1, dtype=np.int64),
            }


def save_graph(graph: Any, path: Path, *, half_weights: bool) -> None:
    """Write `path` (.xml) and its .bin; `half_weights` stores float weights as float16."""
    ov.save_model(graph, str(path), compress_to_fp16=half_weights)


def _name(graph: Any, name: str, output: str) -> None:
    graph.set_friendly_name(name)
    graph.output(0).get_tensor().set_names({output})
