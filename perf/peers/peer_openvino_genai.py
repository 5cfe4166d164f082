# /// script
# dependencies = [
#     "torch==2.13.0", "transformers==5.5.4", "optimum-intel==2.2.0", "nncf==3.4.0",
#     "openvino==2026.4.1", "openvino-genai==2026.4.1.0",
# ]
# ///
"""OpenVINO GenAI's continuous batching with INT8 weights and cached prefixes: the head cut to its
two rows, so that the log-probability of the one token generated tells that of the other."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import openvino
from worker import Request, Score, Setting, main

MODEL = "openvino_model.xml"
BLOCK = 32  # tokens that GenAI caches together on a CPU
NO, YES, END = 0, 1, 2  # the two rows of the head, and an id that it cannot give


def convert(setting: Setting) -> None:
    # optimum-intel asks for it, and PyPI's build is for CUDA, which fails beside a CPU torch.
    sys.modules["torchvision"] = None  # type: ignore[assignment]
    import nncf
    from optimum.intel import OVModelForCausalLM

    model = OVModelForCausalLM.from_pretrained(
        str(setting.checkpoint), export=True, load_in_8bit=False, compile=False
    ).model
    product = model.output("logits").get_node().input_value(0).get_node()
    weight = product.input_value(1).get_node()
    if product.get_type_name() != "MatMul" or weight.get_type_name() != "Constant":
        raise SystemExit("the exported graph does not end in a product with the head")
    # The embedding may be the same constant: it stays whole.
    rows = np.ascontiguousarray(weight.data[[setting.no, setting.yes]])
    product.input(1).replace_source_output(openvino.opset13.constant(rows).output(0))
    model.validate_nodes_and_infer_types()
    mode = nncf.CompressWeightsMode.INT8_ASYM
    openvino.save_model(nncf.compress_weights(model, mode=mode), setting.folder / MODEL)


def start(setting: Setting) -> tuple[Score, dict[str, Any]]:
    from openvino_genai import ContinuousBatchingPipeline, GenerationConfig, SchedulerConfig

    scheduler = SchedulerConfig()
    scheduler.cache_size = 1  # GB
    scheduler.enable_prefix_caching = True
    scheduler.max_num_batched_tokens = 4096
    scheduler.max_num_seqs = 256
    pipeline = ContinuousBatchingPipeline(
        str(setting.folder), scheduler, "CPU", {"INFERENCE_NUM_THREADS": setting.threads}
    )
    answer = GenerationConfig()
    answer.max_new_tokens = 1
    answer.do_sample = False
    answer.logprobs = 1
    answer.ignore_eos = True
    answer.set_eos_token_id(END)

    def generate(prompts: Sequence[list[int]]) -> list[float]:
        ids = [openvino.Tensor(np.array([prompt], dtype=np.int64)) for prompt in prompts]
        found = []
        for result in pipeline.generate(ids, [answer] * len(ids)):
            likely = math.exp(result.m_scores[0])
            found.append(likely if result.m_generation_ids[0][0] == YES else 1 - likely)
        return found

    def score(requests: Sequence[Request]) -> list[float]:
        # Prompts of one call find only what earlier calls cached, whole blocks of it.
        shared = [one.prefix for one in requests if len(one.items) > 1 and len(one.prefix) >= BLOCK]
        if shared:
            generate(shared)
        return generate([prompt for request in requests for prompt in request.prompts()])

    return score, {"precision": "int8 weights"}


if __name__ == "__main__":
    main(start, convert)
