"""Stands in for the C++ TensorRT-LLM backend under a CPU tritonserver: the same tensors and the same
refusals, logits computed from the emitted checkpoint."""

import json
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils
from slmrank.engine.trtllm.reference import EmittedModel


class TritonPythonModel:
    def initialize(self, args):
        given = json.loads(args["model_config"])["parameters"]
        value = {name: one["string_value"] for name, one in given.items()}
        for name in (
            "gpt_model_type",
            "guided_decoding_backend",
            "tokenizer_dir",
            "xgrammar_tokenizer_info_path",
        ):
            assert name in value, f"Cannot find parameter with name: {name}"
        self._model = EmittedModel(Path(value["stand_in_checkpoint"]))
        self._max_input_len = int(value["stand_in_max_input_len"])
        self._log = Path(value["stand_in_log"])
        self._joined = []

    def execute(self, requests):
        self._joined.append(len(requests))
        self._log.write_text(json.dumps(self._joined))
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        asked = set(request.requested_output_names())
        lacking = {"output_ids", "sequence_length"} - asked
        if lacking:
            return _refused(f"{sorted(lacking)} must be requested")
        ids = _input(request, "input_ids")
        if ids is None or ids.shape[0] != 1:
            return _refused("expected batch size 1")
        length, output = _input(request, "input_lengths"), _input(request, "request_output_len")
        if length is None or length.shape != (1,) or int(length[0]) != ids.shape[1]:
            return _refused("input_lengths does not match input_ids")
        if output is None or int(output[0]) < 1:
            return _refused("request_output_len must be at least 1")
        if ids.shape[1] > self._max_input_len:
            return _refused(
                f"Prompt length ({ids.shape[1]}) exceeds maximum input length "
                f"({self._max_input_len})"
            )
        outputs = [
            pb_utils.Tensor("output_ids", np.zeros((1, 1, 1), np.int32)),
            pb_utils.Tensor("sequence_length", np.ones((1, 1), np.int32)),
        ]
        wanted = _input(request, "return_generation_logits")
        if "generation_logits" in asked:
            if wanted is None or not bool(wanted.reshape(-1)[0]):
                return _refused("generation_logits were not computed")
            logits = self._model.last_logits([ids[0]]).numpy().astype(np.float32)
            outputs.append(pb_utils.Tensor("generation_logits", logits.reshape(1, 1, 1, -1)))
        return pb_utils.InferenceResponse(outputs)


def _input(request, name):
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy()


def _refused(text):
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(text))
