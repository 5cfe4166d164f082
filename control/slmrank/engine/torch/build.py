"""Weights of a checkpoint as the torch runtime reads them: products that share an input are one
matrix, rotary frequencies and the one-row head stand beside them."""

from __future__ import annotations

import torch
from safetensors.torch import save_file
from torch import Tensor

from slmrank.artifacts import write_atomic
from slmrank.engine.targets.base import Building
from slmrank.engine.torch.runtime import ENGINE_FILE, WEIGHTS_FILE, TorchInfo
from slmrank.errors import SpecError
from slmrank.model.decoder import LoadedRanker, label_row
from slmrank.model.reference import load_model

# Frequencies of these depend on nothing but the configuration.
FIXED_ROTARY = ("default", "linear", "llama3", "yarn")


def write_torch(building: Building) -> None:
    """Write model.safetensors and engine.json into the folder.

    Raises SpecError for a model that the runtime does not run.
    """
    spec, folder = building.spec.engine.torch, building.folder
    building.report("write weights")
    ranker = load_model(building.checkpoint)
    config = ranker.network.config
    kind = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if config.hidden_act != "silu" or kind not in FIXED_ROTARY:
        raise SpecError(
            f"the target torch runs no model with {config.hidden_act} and rotary type {kind}",
            f"it runs silu with {', '.join(FIXED_ROTARY)}; use engine.target openvino",
        )
    first = ranker.network.model.layers[0]
    attention, mlp = first.self_attn, first.mlp
    if any(one.bias is not None for one in (attention.o_proj, mlp.gate_proj, mlp.down_proj)):
        raise SpecError(
            "the target torch runs no model with a bias behind attention or in the MLP",
            "use engine.target openvino",
        )
    info = TorchInfo(
        layers=len(ranker.network.model.layers),
        heads=attention.q_proj.out_features // attention.head_dim,
        kv_heads=attention.k_proj.out_features // attention.head_dim,
        head_dim=attention.head_dim,
        norm_eps=config.rms_norm_eps,
        attention_scale=attention.scaling,
        rotary_scale=ranker.network.model.rotary_emb.attention_scaling,
        device=spec.device,
        dtype=spec.dtype,
        max_batch_tokens=spec.max_batch_tokens,
    )
    save_file(fused_weights(ranker, getattr(torch, spec.dtype)), folder / WEIGHTS_FILE)
    write_atomic(folder / ENGINE_FILE, info.model_dump_json() + "\n")


def fused_weights(ranker: LoadedRanker, dtype: torch.dtype) -> dict[str, Tensor]:
    """Name -> tensor, as `runtime` names them."""
    decoder = ranker.network.model
    found = {"embedding": decoder.embed_tokens.weight, "norm": decoder.norm.weight}
    for number, layer in enumerate(decoder.layers):
        attention, mlp = layer.self_attn, layer.mlp
        read = (attention.q_proj, attention.k_proj, attention.v_proj)
        own = {
            "input_norm": layer.input_layernorm.weight,
            "qkv": torch.cat([one.weight for one in read]),
            "out": attention.o_proj.weight,
            "mlp_norm": layer.post_attention_layernorm.weight,
            "gate_up": torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]),
            "down": mlp.down_proj.weight,
        }
        if read[0].bias is not None:
            own["qkv_bias"] = torch.cat([one.bias for one in read])
        if hasattr(attention, "q_norm"):
            own |= {"q_norm": attention.q_norm.weight, "k_norm": attention.k_norm.weight}
        found |= {f"{number}.{name}": tensor for name, tensor in own.items()}
    stored = {name: tensor.detach().to(dtype).contiguous() for name, tensor in found.items()}
    stored["label_row"] = label_row(ranker).detach().float().contiguous()
    stored["inv_freq"] = decoder.rotary_emb.inv_freq.float().contiguous()
    return stored
