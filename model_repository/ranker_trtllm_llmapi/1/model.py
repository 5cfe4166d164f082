"""Triton stage `ranker` on `tensorrt_llm.LLM` (PyTorch backend): token ids -> P(relevant). Thin
over slmrank.engine.fan_out."""

import json
import time
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils
from slmrank.engine.fan_out import label_probability, only_rows, split_items, whole_prompts
from slmrank.errors import ControlError
from slmrank.prompt.labels import Labels
from slmrank.serving.admission import open_meter
from slmrank.serving.depth import first_items, open_depth
from slmrank.serving.score_cache import open_cache
from tensorrt_llm import LLM, SamplingParams
from tensorrt_llm.llmapi import KvCacheConfig


class TritonPythonModel:
    def initialize(self, args):
        folder = Path(args["model_repository"]) / args["model_version"]
        given = json.loads(args["model_config"])["parameters"]
        value = {name: one["string_value"] for name, one in given.items()}
        self._cache = open_cache(given, pb_utils, args["model_instance_name"])
        self._depth = open_depth(given, pb_utils, args["model_instance_name"])
        self._meter = open_meter(given, args["model_instance_name"], pb_utils)
        self._limits = {name: int(value[name]) for name in ("vocab_size", "max_tokens")}
        self._labels = Labels(yes=int(value["yes_id"]), no=int(value["no_id"]))
        self._llm = LLM(
            model=str(folder / "model"),
            skip_tokenizer_init=True,
            gather_generation_logits=True,
            max_batch_size=int(value["max_batch_size"]),
            max_num_tokens=int(value["max_num_tokens"]),
            max_seq_len=int(value["max_seq_len"]),
            kv_cache_config=KvCacheConfig(
                enable_block_reuse=value["kv_cache_reuse"] == "true",
                free_gpu_memory_fraction=float(value["kv_cache_fraction"]),
                tokens_per_block=int(value["tokens_per_block"]),
            ),
        )
        # Without a tokenizer the end must be named; -1 ends nothing, max_tokens does.
        self._sampling = SamplingParams(
            max_tokens=1, end_id=-1, pad_id=0, return_generation_logits=True, detokenize=False
        )

    def execute(self, requests):
        with self._meter.passing(requests):
            return self._answers(requests)

    def _answers(self, requests):
        started = time.perf_counter()
        depths = self._depth.begin(requests)
        asked, failures = {}, {}
        for index, request in enumerate(requests):
            try:
                asked[index] = self._read(request, depths[index])
            except ControlError as error:
                text = f"{error.message}. Fix: {error.hint}"
                failures[index] = pb_utils.TritonError(text, pb_utils.TritonError.INVALID_ARG)
        try:
            scores = self._scores(asked)
        except Exception:
            # One prompt that the engine refuses must not fail the requests that it was joined with.
            scores = {}
            for index, one in asked.items():
                try:
                    scores |= self._scores({index: one})
                except Exception as error:
                    failures[index] = pb_utils.TritonError(f"TensorRT-LLM: {error}")
        self._cache.publish()
        micros = round((time.perf_counter() - started) * 1e6)
        return [
            pb_utils.InferenceResponse(error=failures[index])
            if index in failures
            else self._answer(request, depths[index], scores[index], micros)
            for index, request in enumerate(requests)
        ]

    def finalize(self):
        self._llm.shutdown()

    def _read(self, request, depth):
        """The prefix and the items of one request."""
        names = ("prefix_ids", "item_ids", "item_lengths")
        prefix, ids, lengths = only_rows(
            [pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in names]
        )
        return prefix, first_items(split_items(prefix, ids, lengths, **self._limits), depth)

    def _scores(self, asked):
        """P(relevant) [N] by request, in one call: the engine batches the prompts."""
        planned = self._cache.plan(list(asked.values()))
        self._meter.scored(planned.missing)
        prompts = [whole_prompts(*one) for one in planned.missing]
        inputs = [
            {"prompt_token_ids": prompt.tolist()}
            for some in prompts
            for prompt in some
            if len(prompt)
        ]
        made = self._llm.generate(inputs, self._sampling, use_tqdm=False) if inputs else []
        found = iter(
            label_probability(one.outputs[0].generation_logits.float().cpu().numpy(), self._labels)
            for one in made
        )
        scored = [
            np.array([next(found) if len(one) else np.nan for one in some], dtype=np.float32)
            for some in prompts
        ]
        return dict(zip(asked, planned.finish(scored), strict=True))

    def _answer(self, request, depth, scores, micros):
        lengths = pb_utils.get_input_tensor_by_name(request, "item_lengths").as_numpy()[0]
        taken = np.array([[micros]], dtype=np.int32)
        tensors = [
            pb_utils.Tensor("score", scores[np.newaxis]),
            pb_utils.Tensor("ranker_us", taken),
        ]
        return pb_utils.InferenceResponse(tensors + self._depth.answer(request, depth, lengths))
