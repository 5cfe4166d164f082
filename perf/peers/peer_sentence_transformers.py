# /// script
# dependencies = ["torch==2.13.0", "transformers==5.23.0", "sentence-transformers==6.2.0"]
# ///
"""sentence-transformers' CrossEncoder on the same directory: texts in, its own tokens (the parity
figure tells whether they are the same prompts), float32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from sentence_transformers import CrossEncoder
from worker import Request, Score, Setting, main


def start(setting: Setting) -> tuple[Score, dict[str, Any]]:
    torch.set_num_threads(setting.threads)
    model = CrossEncoder(str(setting.checkpoint), device="cpu")

    def score(requests: Sequence[Request]) -> list[float]:
        pairs = [(request.query, text) for request in requests for text in request.texts]
        return [float(one) for one in model.predict(pairs, batch_size=32)]

    return score, {"precision": "float32"}


if __name__ == "__main__":
    main(start)
