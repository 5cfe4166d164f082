"""Sections `base`, `prompt` and `trim`: the model to start from, and how it is asked."""

from __future__ import annotations

from pydantic import Field, field_validator

from slmrank.spec.section import Section, multiple_of_64

PACKAGED_MODEL = "smollm2-135m-instruct"


class BaseSpec(Section):
    """The model to start from."""

    source: str = Field(
        PACKAGED_MODEL,
        description="`smollm2-135m-instruct`, or a local Llama/Qwen2/Qwen3 checkpoint directory",
    )


class PromptSpec(Section):
    """The fixed wording; query and job text are tokenised apart from it."""

    prefix: str = Field(
        "Does the job match the search?\nSearch: {query}\n", description="must hold {query}"
    )
    closing: str = Field("Match:", description="closing question of every item, never truncated")
    yes: str = Field(" Yes", description="answer whose token means relevant; one token")
    no: str = Field(" No", description="answer whose token means not relevant; one token")
    max_item_tokens: int = Field(
        128, ge=8, le=8192, description="longest item incl. closing question; longer text is cut"
    )
    max_query_tokens: int = Field(
        96, ge=4, le=4096, description="longest query; a longer one is refused"
    )

    @field_validator("prefix")
    @classmethod
    def _slot(cls, value: str) -> str:
        if "{query}" not in value:
            raise ValueError(f"prompt.prefix {value!r} must hold {{query}}")
        return value


class TrimSpec(Section):
    """Vocabulary trimming of the base model: embedding, head and tokenizer together."""

    tokens: int = Field(
        16384,
        ge=512,
        description="vocabulary rows kept, a multiple of 64: what jobs and training queries use, "
        "then the tokenizer's own most frequent",
    )

    @field_validator("tokens")
    @classmethod
    def _aligned(cls, value: int) -> int:
        return multiple_of_64("trim.tokens", value)
