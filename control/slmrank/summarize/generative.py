"""Summaries that a causal language model writes, trained against a frozen ranker (the paper's
actor, section 3).

`fit` trains it (`policy`); what is kept is the whole model with its adapter merged, so that a
repository needs nothing else. It reads title and description and writes at most the budget's
tokens, the likeliest one each time, one job at a time: the same job gives the same summary whatever
stands beside it. Words that the posting does not have can be struck out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from slmrank.data.records import Job
from slmrank.errors import DataError, MissingDependencyError
from slmrank.hashing import hash_file
from slmrank.prompt.encoder import is_control
from slmrank.spec.compress import GenerativeSpec, SummarizeSpec
from slmrank.summarize.new_words import without_new_words
from slmrank.summarize.sentences import cut_words, within_budget
from slmrank.summarize.summarizer import Encode, Fitting, Summary

POLICY_FOLDER, HISTORY_FILE = "policy", "history.json"
WEIGHTS_FILE = "model.safetensors"
RUN = 3  # tokens
TITLE_TOKENS = 64
ASKED = "\nShort summary for search:"  # what is written starts with a space, which is a token's own


def request_of(job: Job, source_tokens: int, encode: Encode) -> str:
    """What the model reads of a job; a long title or description is cut."""
    title, text = cut_words(job.title, TITLE_TOKENS, encode), job.description
    return f"{title}\n{cut_words(text, source_tokens, encode)}{ASKED}"


def without_controls(text: str, tokenizer: Any) -> str:
    """The text with a space inside of each control token of the model that a job's text spells: it
    would close the text and open another speaker's turn. (A tokenizer told to split them would
    split the end as well that training appends to what is to be learnt.)"""
    for token in tokenizer.added_tokens_decoder.values():
        content = token.content.strip()
        if content and is_control(token):
            parted = f"{content[:1]} {content[1:]}" if len(content) > 1 else " "
            text = text.replace(content, parted)
    return text


def served_text(job: Job, text: str, spec: GenerativeSpec, budget: int, encode: Encode) -> str:
    """What becomes of a written summary: servers, the reward and its measurement take the same.
    Where nothing is left the first words of the description are served."""
    kept = text if spec.new_words else without_new_words(job, text)
    return kept or cut_words(job.description, budget, encode)


class GenerativeKind:
    """A causal language model with what reinforcement learning made of it."""

    needs_ranker = True

    def fit(self, fitting: Fitting) -> GenerativeSummarizer:
        """Raises DataError without training queries that tell jobs apart, MissingDependencyError
        without trl."""
        from slmrank.summarize.policy import train_policy

        folder = train_policy(fitting)
        own = fitting.spec.generative or GenerativeSpec()
        return GenerativeSummarizer(folder, own, fitting.spec.budget_tokens, fitting.encode)

    def load(self, folder: Path, spec: SummarizeSpec, encode: Encode) -> GenerativeSummarizer:
        """Raises DataError when the model is not there."""
        path = folder / POLICY_FOLDER
        if not (path / WEIGHTS_FILE).is_file():
            raise DataError(f"{path} holds no model", "run `control train-summarizer` again")
        own = spec.generative or GenerativeSpec()
        if (path / HISTORY_FILE).is_file():  # as it was trained, but for what is asked for
            # How it was trained may be told in another version's words.
            try:
                history = json.loads((path / HISTORY_FILE).read_text(encoding="utf-8"))
                read = {name: history["settings"][name] for name in ("source_tokens", "new_words")}
                asked = own.model_dump(exclude_unset=True)
                own = GenerativeSpec.model_validate({**read, **asked})
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"{path / HISTORY_FILE} does not say how the model was trained: {error}",
                    "run `control train-summarizer` again",
                ) from error
        return GenerativeSummarizer(path, own, spec.budget_tokens, encode)


@dataclass(frozen=True)
class GenerativeSummarizer:
    """A model's folder, how it is asked, and a budget in tokens of the summary alone."""

    folder: Path
    spec: GenerativeSpec
    budget: int
    encode: Encode
    device: str = field(default="auto", compare=False)

    def identity(self) -> dict[str, Any]:
        return {
            "method": "generative",
            "budget_tokens": self.budget,
            "weights": hash_file(self.folder / WEIGHTS_FILE)[:16],
            "source_tokens": self.spec.source_tokens,
            "title_tokens": TITLE_TOKENS,
            "new_words": self.spec.new_words,
        }

    def summarize(self, jobs: Sequence[Job]) -> list[Summary]:
        """Raises MissingDependencyError without torch and transformers."""

        def shorten(jobs: Sequence[Job], budget: int) -> list[str]:
            return [self._write(job, budget) for job in jobs]

        return within_budget(jobs, self.budget, self.encode, shorten)

    def save(self, folder: Path) -> None:
        import shutil

        shutil.copytree(self.folder, folder / POLICY_FOLDER)

    def _write(self, job: Job, budget: int) -> str:
        text = self._writer.write(request_of(job, self.spec.source_tokens, self.encode), budget)
        return served_text(job, text, self.spec, budget, self.encode)

    @cached_property
    def _writer(self) -> Writer:
        return Writer(self.folder, self.device)


class Writer:
    """The model, loaded when the first summary is asked for: a server that only reads stored ones
    has no need of torch."""

    def __init__(self, folder: Path, device: str) -> None:
        try:
            import torch
            from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
        except ImportError as error:
            raise MissingDependencyError(
                f"summaries of method generative are written by a language model: {error}",
                "pip install 'slmrank[train]', or send ids of stored jobs",
            ) from error
        from slmrank.model.placement import choose_placement
        from slmrank.model.quiet import quiet

        self._torch = torch
        placement = choose_placement(device)
        self._device = placement.device
        with quiet():
            self._model: Any = AutoModelForCausalLM.from_pretrained(
                str(folder), dtype=placement.torch_dtype
            )
            self._tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder))
        self._model.eval().to(self._device)

    def write(self, request: str, tokens: int) -> str:
        """The likeliest continuation in one line, token by token: of those without a run of
        `RUN` tokens that it has written before. A small model otherwise says one phrase until its
        tokens are spent; runs out of the request stay allowed, for they are what is summarised."""
        encoded = self._tokenizer(without_controls(request, self._tokenizer), return_tensors="pt")
        encoded = {name: encoded[name].to(self._device) for name in ("input_ids", "attention_mask")}
        start = encoded["input_ids"].shape[1]
        with self._torch.no_grad():
            ids = self._model.generate(
                **encoded,
                max_new_tokens=tokens,
                do_sample=False,
                logits_processor=[partial(_forbid_runs, start)],
            )
        written = ids[0, start:]
        return " ".join(self._tokenizer.decode(written, skip_special_tokens=True).split())


def _forbid_runs(start: int, ids: Any, scores: Any) -> Any:
    """Logits [1, V] without the tokens that would repeat a run of what was written from `start`
    on."""
    written = ids[0, start:].tolist()
    last = written[len(written) - RUN + 1 :]
    for place in range(len(written) - RUN + 1):
        if written[place : place + RUN - 1] == last:
            scores[0, written[place + RUN - 1]] = -float("inf")
    return scores
