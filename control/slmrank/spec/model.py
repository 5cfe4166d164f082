"""Sections `base`, `prompt` and `trim`: the model to start from, and how it is asked."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator

from slmrank.spec.section import Section, multiple_of_64

PACKAGED_MODEL = "smollm2-135m-instruct"


Preset = Literal["plain", "qwen3-reranker", "mxbai-rerank-v2"]
NOT_YET = {
    "bge-reranker-v2-gemma": "it scores by the logit of 'Yes' alone, on Gemma layers, which the "
    "decoder does not read yet"
}


class BaseSpec(Section):
    """The model to start from."""

    source: str = PACKAGED_MODEL
    """`smollm2-135m-instruct`, or a local Llama/Qwen2/Qwen3 checkpoint directory"""
    preset: Preset = "plain"
    """a public reranker's exact template and answers, for its own weights; without a finetune
    section the model is served as it is. plain: the prompt section's wording"""
    instruction: str = "Given a web search query, retrieve relevant passages that answer the query"
    """what qwen3-reranker is asked to do; its card's default"""

    @field_validator("preset", mode="before")
    @classmethod
    def _supported(cls, value: Any) -> Any:
        if isinstance(value, str) and value in NOT_YET:
            raise ValueError(f"base.preset {value} is not supported: {NOT_YET[value]}")
        return value


class PromptSpec(Section):
    """The fixed wording; query and job text are tokenised apart from it."""

    prefix: str = "Does the job match the search?\nSearch: {query}\n"
    """must hold {query}, once"""
    closing: str = "\nMatch:"
    """what follows the job's text in every item, never truncated"""
    yes: str = Field(" Yes", description="answer whose token means relevant; one token")
    no: str = Field(" No", description="answer whose token means not relevant; one token")
    joined: bool = True
    """line ends after the query become ids together with it, as when the whole prompt is
    tokenised at once"""
    max_item_tokens: int = Field(128, ge=8, le=8192)
    """longest item incl. closing question; longer text is cut"""
    max_query_tokens: int = Field(96, ge=4, le=4096)
    """longest query; a longer one is refused"""

    @field_validator("prefix")
    @classmethod
    def _slot(cls, value: str) -> str:
        if value.count("{query}") != 1:
            raise ValueError(f"prompt.prefix {value!r} must hold {{query}} once")
        return value


class TrimSpec(Section):
    """Vocabulary trimming of the base model: embedding, head and tokenizer together."""

    tokens: Annotated[int, Field(ge=512), AfterValidator(multiple_of_64)] = 16384
    """vocabulary rows kept, a multiple of 64: what jobs and training queries use, then the
    tokenizer's own most frequent"""


_QWEN3 = {
    "prefix": "<|im_start|>system\nJudge whether the Document meets the requirements based on the "
    'Query and the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n<Instruct>: {instruction}\n<Query>: {query}\n<Document>: ",
    "closing": "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    "yes": "yes",
    "no": "no",
}
_MXBAI = {
    "prefix": "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful "
    "assistant.<|im_end|>\n<|im_start|>user\nquery: {query}\ndocument: ",
    "closing": "\nYou are a search relevance expert who evaluates how well documents match search "
    "queries. For each query-document pair, carefully analyze the semantic relationship between "
    "them, then provide your binary relevance judgment (0 for not relevant, 1 for relevant).\n"
    "Relevance:<|im_end|>\n<|im_start|>assistant\n",
    "yes": "1",
    "no": "0",
    # Its own code makes ids of the query, the line end and the document apart.
    "joined": False,
}
# Where a closing question leaves a summary of the default budget no room in the default item.
PRESET_ITEM_TOKENS = {"mxbai-rerank-v2": 192}
PRESETS: dict[str, dict[str, Any]] = {
    "plain": {},
    "qwen3-reranker": _QWEN3,
    "mxbai-rerank-v2": _MXBAI,
}


def wording(base: BaseSpec, prompt: PromptSpec) -> PromptSpec:
    """The prompt section with the wording of the base model's preset (the model cards of
    Qwen/Qwen3-Reranker-0.6B and mixedbread-ai/mxbai-rerank-base-v2)."""
    given = dict(PRESETS[base.preset])
    if "{instruction}" in given.get("prefix", ""):
        given["prefix"] = given["prefix"].replace("{instruction}", base.instruction)
    return prompt.model_copy(update=given)
