"""Stands in for the part of TensorRT-LLM's Python API that the stage `ranker` calls: the same names,
the same demands, logits computed by transformers from the exported model directory."""

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch

from tensorrt_llm.llmapi import KvCacheConfig


@dataclass(kw_only=True)
class SamplingParams:
    max_tokens: int = 32
    end_id: int | None = None
    pad_id: int | None = None
    return_generation_logits: bool = False
    detokenize: bool = True


class LLM:
    def __init__(
        self,
        model: str,
        *,
        skip_tokenizer_init: bool = False,
        gather_generation_logits: bool = False,
        max_batch_size: int = 2048,
        max_num_tokens: int = 8192,
        max_seq_len: int | None = None,
        kv_cache_config: KvCacheConfig | None = None,
    ) -> None:
        from transformers import AutoConfig, AutoModelForCausalLM

        assert isinstance(kv_cache_config, KvCacheConfig)
        assert max_num_tokens >= max_seq_len
        assert max_batch_size > 0
        # transformers 4.57 knows only these spellings.
        written = json.loads((Path(model) / "config.json").read_text())
        assert written.pop("rope_parameters")["rope_theta"] == written["rope_theta"]
        assert written.pop("dtype") == written["torch_dtype"]
        config = AutoConfig.for_model(**written)
        self._model = AutoModelForCausalLM.from_pretrained(
            model, config=config, dtype=torch.float32
        ).eval()
        self._tokenizer = None if skip_tokenizer_init else object()
        self._gather = gather_generation_logits
        self._max_seq_len = max_seq_len

    @torch.no_grad()
    def generate(self, inputs, sampling_params, use_tqdm=True):
        if sampling_params.end_id is None and self._tokenizer is None:
            raise ValueError("tokenizer is required to reset end_id if it is None")
        answers = []
        for one in inputs:
            ids = one["prompt_token_ids"]
            if not isinstance(ids, list) or not all(type(token) is int for token in ids):
                raise TypeError("prompt_token_ids must be a list of int")
            if len(ids) + sampling_params.max_tokens > self._max_seq_len:
                raise ValueError(f"prompt of {len(ids)} tokens exceeds max_seq_len")
            logits = None
            if sampling_params.return_generation_logits and self._gather:
                found = self._model(torch.tensor([ids])).logits[0, -1:]
                logits = found.expand(sampling_params.max_tokens, -1)
            answers.append(SimpleNamespace(outputs=[SimpleNamespace(generation_logits=logits)]))
        return answers

    def shutdown(self) -> None:
        del self._model
