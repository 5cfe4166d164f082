# /// script
# dependencies = ["torch==2.13.0", "transformers==5.23.0"]
# ///
"""transformers as people run it: padded batches, SDPA, in float32 or bfloat16, whichever is faster
on this machine (timed at the start)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from worker import Request, Score, Setting, in_batches, main, padded

BATCH = 32


def start(setting: Setting) -> tuple[Score, dict[str, Any]]:
    torch.set_num_threads(setting.threads)
    labels = [setting.yes, setting.no]

    def load(dtype: torch.dtype) -> Any:
        loaded = AutoModelForCausalLM.from_pretrained(str(setting.checkpoint), dtype=dtype)
        return loaded.eval()

    @torch.inference_mode()
    def log_odds(model: Any, prompts: list[list[int]]) -> list[float]:
        rows, last = padded(prompts)
        hidden = model.model(torch.tensor(rows), use_cache=False).last_hidden_state
        final = hidden[torch.arange(len(rows)), torch.tensor(last)]
        yes, no = (final @ model.lm_head.weight[labels].T).float().unbind(-1)
        return list((yes - no).tolist())

    def seconds(model: Any) -> float:
        trial = [[setting.yes] * 64] * 8
        log_odds(model, trial)
        started = time.perf_counter()
        log_odds(model, trial)
        return time.perf_counter() - started

    models = {name: load(getattr(torch, name)) for name in ("float32", "bfloat16")}
    times = {name: seconds(model) for name, model in models.items()}
    fastest = min(times, key=lambda name: times[name])
    model = models.pop(fastest)
    models.clear()

    def score(requests: Sequence[Request]) -> list[float]:
        prompts = [prompt for request in requests for prompt in request.prompts()]
        return in_batches(prompts, BATCH, lambda some: log_odds(model, some))

    return score, {"precision": fastest}


if __name__ == "__main__":
    main(start)
