# /// script
# dependencies = ["torch==2.13.0", "transformers==5.23.0", "ctranslate2==4.8.5"]
# ///
"""ctranslate2 with INT8 weights and activations: one step of generation that returns its logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ctranslate2
import numpy as np
from transformers import AutoTokenizer
from worker import Request, Score, Setting, main, sigmoid

BATCH = 32


def convert(setting: Setting) -> None:
    converter = ctranslate2.converters.TransformersConverter(str(setting.checkpoint))
    converter.convert(str(setting.folder / "model"), quantization="int8", force=True)


def start(setting: Setting) -> tuple[Score, dict[str, Any]]:
    generator = ctranslate2.Generator(
        str(setting.folder / "model"), device="cpu", intra_threads=setting.threads
    )
    tokenizer = AutoTokenizer.from_pretrained(str(setting.checkpoint))
    names = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))

    def score(requests: Sequence[Request]) -> list[float]:
        prompts = [prompt for request in requests for prompt in request.prompts()]
        found = generator.generate_batch(
            [[names[one] for one in prompt] for prompt in prompts],
            max_batch_size=BATCH,
            max_length=1,
            include_prompt_in_result=False,
            return_logits_vocab=True,
        )
        logits = [np.asarray(one.logits[0][0]) for one in found]
        return [sigmoid(float(one[setting.yes] - one[setting.no])) for one in logits]

    return score, {"precision": generator.compute_type}


if __name__ == "__main__":
    main(start, convert)
