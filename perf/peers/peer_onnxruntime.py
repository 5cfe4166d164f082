# /// script
# dependencies = [
#     "torch==2.13.0", "transformers==5.23.0", "onnx==1.23.2", "onnxscript==0.7.2",
#     "onnxruntime==1.32.0",
# ]
# ///
"""onnxruntime with dynamic INT8: weights per channel, the head cut to its two rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime
from worker import Request, Score, Setting, in_batches, main, padded

BATCH = 32
MODEL = "model.onnx"


def convert(setting: Setting) -> None:
    import torch
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from transformers import AutoModelForCausalLM

    whole = AutoModelForCausalLM.from_pretrained(
        str(setting.checkpoint), dtype=torch.float32, attn_implementation="sdpa"
    ).eval()
    labels = torch.tensor([setting.yes, setting.no])

    class Ranker(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = whole.model
            self.head = torch.nn.Parameter(whole.lm_head.weight[labels].detach().clone())

        def forward(self, ids: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
            hidden = self.model(ids, use_cache=False).last_hidden_state
            place = last[:, None, None].expand(-1, 1, hidden.shape[-1])
            return hidden.gather(1, place)[:, 0] @ self.head.T

    rows = {0: torch.export.Dim("rows", min=1, max=512), 1: torch.export.Dim("tokens", max=2048)}
    plain = setting.folder / "float32.onnx"
    with torch.no_grad():
        torch.onnx.export(
            Ranker(),
            (torch.ones(3, 40, dtype=torch.int64), torch.full((3,), 39)),
            str(plain),
            input_names=["ids", "last"],
            output_names=["logits"],
            dynamic_shapes=(rows, {0: rows[0]}),
            dynamo=True,
            external_data=False,
        )
    # Without VNNI the products of U8 and S8 overflow 16 bits unless weights keep to seven.
    quantize_dynamic(
        plain,
        setting.folder / MODEL,
        per_channel=True,
        reduce_range=True,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["MatMul", "Gemm"],
    )
    plain.unlink()


def start(setting: Setting) -> tuple[Score, dict[str, Any]]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = setting.threads
    session = onnxruntime.InferenceSession(
        str(setting.folder / MODEL), options, providers=["CPUExecutionProvider"]
    )

    def log_odds(prompts: list[list[int]]) -> list[float]:
        rows, last = padded(prompts)
        given = {"ids": np.array(rows, dtype=np.int64), "last": np.array(last, dtype=np.int64)}
        (logits,) = session.run(["logits"], given)
        return list((logits[:, 0] - logits[:, 1]).tolist())

    def score(requests: Sequence[Request]) -> list[float]:
        prompts = [prompt for request in requests for prompt in request.prompts()]
        return in_batches(prompts, BATCH, log_odds)

    return score, {"precision": "int8"}


if __name__ == "__main__":
    main(start, convert)
