"""What a Hugging Face decoder becomes as a TensorRT-LLM 1.2.1 checkpoint: names, shapes, config.

Pure: from `config.json` and the shapes on disk to the list of tensors to write and the new
`config.json`. The names are TensorRT-LLM's, and two of them mislead: `mlp.fc` is the activated
branch (Hugging Face `gate_proj`) and `mlp.gate` the multiplier (`up_proj`). Swapped weights load
without an error and score garbage, so the build compares scores afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slmrank import __version__
from slmrank.errors import CheckpointError
from slmrank.model.checkpoint import SUPPORTED, Geometry
from slmrank.model.tensor_files import NewTensor, Part, StoredTensor, same_content

EMBEDDING = "transformer.vocab_embedding.weight"
HEAD = "lm_head.weight"
FINAL_NORM = "transformer.ln_f.weight"
ROPE_TYPES = ("default", "linear", "llama3")
Index = Mapping[str, StoredTensor]

# Weights of one layer: ours -> Hugging Face, concatenated along the output dimension.
_LAYER: dict[str, tuple[str, ...]] = {
    "input_layernorm": ("input_layernorm",),
    "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention.dense": ("self_attn.o_proj",),
    "post_layernorm": ("post_attention_layernorm",),
    "mlp.fc": ("mlp.gate_proj",),
    "mlp.gate": ("mlp.up_proj",),
    "mlp.proj": ("mlp.down_proj",),
    "attention.q_layernorm": ("self_attn.q_norm",),
    "attention.k_layernorm": ("self_attn.k_norm",),
}


def layer_prefix(layer: int) -> str:
    return f"transformer.layers.{layer}."


def plan_tensors(geometry: Geometry, config: Mapping[str, Any], index: Index) -> list[NewTensor]:
    """The tensors of `rank0.safetensors`, in the order they are written.

    Raises CheckpointError for an architecture detail that the engine cannot hold, a missing or
    unknown tensor, or layers of different widths.
    """
    refuse_unsupported(geometry, config)
    wanted = expected_shapes(geometry, config)
    missing = [name for name in wanted if name not in index]
    if missing:
        raise CheckpointError(
            f"the checkpoint lacks {len(missing)} tensors, for example {missing[0]!r}",
            "save the whole model again",
        )
    for name, shape in wanted.items():
        if index[name].shape != shape:
            raise CheckpointError(
                f"{name!r} has shape {list(index[name].shape)}, config.json says {list(shape)}",
                "TensorRT-LLM needs one width for all layers: prune uniformly (control prune "
                "does), and save config.json with the model (num_key_value_heads and head_dim "
                "included)",
            )
    tied = bool(config.get("tie_word_embeddings", False))
    embedding, head = index["model.embed_tokens.weight"], index.get("lm_head.weight")
    if tied and head is not None and not same_content(embedding, head):
        raise CheckpointError(
            "config.json ties the head to the embedding, but a different lm_head.weight is stored",
            "set tie_word_embeddings to false, or remove lm_head.weight",
        )
    ignored = {"lm_head.weight"} if tied else set()
    unknown = [
        name
        for name in index
        if name not in wanted and name not in ignored and not name.endswith("rotary_emb.inv_freq")
    ]
    if unknown:
        raise CheckpointError(
            f"{len(unknown)} tensors do not belong to {SUPPORTED[geometry.family]}, "
            f"for example {unknown[0]!r}",
            "merge adapters into the weights and save a plain model",
        )

    def new(name: str, *sources: str) -> NewTensor:
        return NewTensor(name=name, parts=tuple(Part(tensor=index[one]) for one in sources))

    planned = [new(EMBEDDING, "model.embed_tokens.weight")]
    for layer in range(geometry.layers):
        ours, theirs = layer_prefix(layer), f"model.layers.{layer}."
        for name, sources in _LAYER.items():
            for suffix in ("weight", "bias"):
                full = [f"{theirs}{one}.{suffix}" for one in sources]
                if full[0] in wanted:
                    planned.append(new(f"{ours}{name}.{suffix}", *full))
    planned.append(new(FINAL_NORM, "model.norm.weight"))
    # Always written, a copy where the model ties it: loaders disagree about its absence
    # (TensorRT-LLM #1733, #2585, #3324).
    planned.append(new(HEAD, "model.embed_tokens.weight" if tied else "lm_head.weight"))
    return planned


def expected_shapes(geometry: Geometry, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor that a Hugging Face checkpoint of this geometry must hold."""
    hidden, ffn = geometry.hidden_size, geometry.intermediate_size
    query = geometry.heads * geometry.head_dim
    key_value = geometry.kv_heads * geometry.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (geometry.vocab_size, hidden)
    }
    linears = {
        "self_attn.q_proj": (query, hidden),
        "self_attn.k_proj": (key_value, hidden),
        "self_attn.v_proj": (key_value, hidden),
        "self_attn.o_proj": (hidden, query),
        "mlp.gate_proj": (ffn, hidden),
        "mlp.up_proj": (ffn, hidden),
        "mlp.down_proj": (hidden, ffn),
    }
    biased = _biased(geometry.family, config)
    for layer in range(geometry.layers):
        prefix = f"model.layers.{layer}."
        for name, shape in linears.items():
            shapes[f"{prefix}{name}.weight"] = shape
            if name in biased:
                shapes[f"{prefix}{name}.bias"] = shape[:1]
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{prefix}{norm}.weight"] = (hidden,)
        if geometry.family == "qwen3":
            for norm in ("q_norm", "k_norm"):
                shapes[f"{prefix}self_attn.{norm}.weight"] = (geometry.head_dim,)
    shapes["model.norm.weight"] = (hidden,)
    if not config.get("tie_word_embeddings", False):
        shapes["lm_head.weight"] = (geometry.vocab_size, hidden)
    return shapes


def trtllm_config(
    geometry: Geometry, config: Mapping[str, Any], *, dtype: str, logits_dtype: str
) -> dict[str, Any]:
    """The new `config.json`. `dtype`: bfloat16, float16 or float32; `logits_dtype`: float32 or
    float16, which must be the data type of the repository's logits."""
    biased = _biased(geometry.family, config)
    theta, scaling = rotary(config)
    made: dict[str, Any] = {
        "producer": {"name": "slmrank", "version": __version__},
        "architecture": SUPPORTED[geometry.family],
        "dtype": dtype,
        "logits_dtype": logits_dtype,
        "num_hidden_layers": geometry.layers,
        "hidden_size": geometry.hidden_size,
        "intermediate_size": geometry.intermediate_size,
        "num_attention_heads": geometry.heads,
        "num_key_value_heads": geometry.kv_heads,
        "head_size": geometry.head_dim,
        "vocab_size": geometry.vocab_size,
        "max_position_embeddings": positions_of(config),
        "hidden_act": "silu",
        "norm_epsilon": float(_required(config, "rms_norm_eps")),
        "position_embedding_type": "rope_gpt_neox",
        "rotary_base": theta,
        "rotary_scaling": scaling,
        "attn_bias": "self_attn.q_proj" in biased,
        "mlp_bias": "mlp.gate_proj" in biased,
        "tie_word_embeddings": bool(config.get("tie_word_embeddings", False)),
        "use_parallel_embedding": False,
        "embedding_sharding_dim": 0,
        "mapping": {"world_size": 1, "tp_size": 1, "pp_size": 1},
        "quantization": {"quant_algo": None, "kv_cache_quant_algo": None},
    }
    if geometry.family == "llama":
        made["residual_mlp"] = False
    else:
        # Read by the Qwen classes' attention; 8192 and no logn scaling are its converter's values.
        made |= {"qwen_type": geometry.family, "seq_length": 8192, "use_logn_attn": False}
    return made


def positions_of(config: Mapping[str, Any]) -> int:
    """max_position_embeddings. Raises CheckpointError when config.json has none."""
    return int(_required(config, "max_position_embeddings"))


def rotary(config: Mapping[str, Any]) -> tuple[float, dict[str, Any] | None]:
    """(base, scaling) of the rotary embedding.

    transformers 5 writes `rope_parameters`, 4.x `rope_theta` and `rope_scaling`. A reader that
    knows only the other spelling silently falls back to another base (10,000 or 100,000 instead of
    1,000,000), so both are read here, must agree, and one must be there.
    """
    nested = dict(config.get("rope_parameters") or {})
    scaling = nested or dict(config.get("rope_scaling") or {})
    inner, outer = nested.get("rope_theta"), config.get("rope_theta")
    if inner is None and outer is None:
        raise CheckpointError(
            "config.json names no rope_theta", "add the base that the model was trained with"
        )
    if inner is not None and outer is not None and float(inner) != float(outer):
        raise CheckpointError(
            f"config.json has rope_theta {outer} and rope_parameters.rope_theta {inner}",
            "keep the one that the model was trained with",
        )
    base = float(inner if inner is not None else outer)  # type: ignore[arg-type]
    kind = str(scaling.pop("rope_type", None) or scaling.pop("type", None) or "default")
    scaling.pop("type", None)
    scaling.pop("rope_theta", None)
    if kind not in ROPE_TYPES:
        raise CheckpointError(
            f"rotary scaling {kind!r} is not supported; known: {', '.join(ROPE_TYPES)}",
            "use a checkpoint without it, or remove it if no prompt exceeds the original length",
        )
    if kind == "default":
        return base, None
    return base, {"type": kind, "rope_type": kind, **scaling}


def refuse_unsupported(geometry: Geometry, config: Mapping[str, Any]) -> None:
    """Raises CheckpointError for what an engine cannot hold or would misread."""
    if "is_pruned" in config:
        raise CheckpointError(
            "config.json has the key is_pruned: TensorRT-LLM reads it as 'weights were stripped' "
            "and builds an engine without them",
            "remove the key; a structurally pruned model is an ordinary checkpoint",
        )
    if config.get("hidden_act") != "silu":
        raise CheckpointError(
            f"hidden_act is {config.get('hidden_act')!r}, the gated MLP needs 'silu'",
            "use a Llama, Qwen2 or Qwen3 model with SwiGLU",
        )
    if config.get("quantization_config"):
        raise CheckpointError(
            "the checkpoint is already quantised", "give the unquantised weights; quantise here"
        )
    if geometry.heads % geometry.kv_heads:
        raise CheckpointError(
            f"{geometry.heads} heads are not a multiple of {geometry.kv_heads} key/value heads",
            "prune whole groups of heads",
        )


def _required(config: Mapping[str, Any], key: str) -> Any:
    if config.get(key) is None:
        raise CheckpointError(f"config.json has no {key}", "save config.json with the model again")
    return config[key]


def _biased(family: str, config: Mapping[str, Any]) -> frozenset[str]:
    """The linear maps of a layer that have a bias."""
    if family == "qwen2":
        return frozenset({"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"})
    names: set[str] = set()
    if config.get("attention_bias"):
        if family == "qwen3":
            raise CheckpointError(
                "Qwen3 with attention_bias is not emitted: its engine class has no output bias",
                "use a checkpoint without attention biases",
            )
        names |= {f"self_attn.{one}_proj" for one in "qkvo"}
    if config.get("mlp_bias"):
        names |= {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}
    return frozenset(names)
