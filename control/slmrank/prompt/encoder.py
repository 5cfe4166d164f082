"""The prompt of a (query, job) pair, as token ids.

prefix (instruction + query) | item (job text + closing question). The parts are tokenised apart,
everywhere: their ids concatenate exactly, job texts can be stored as ids, and N items share one
prefix (design.md 5.1). A space of the wording before a text, and line ends behind the query, become
ids with that text: so the ids are those of the whole prompt tokenised at once, as far as the
tokenizer joins no mark at the end of a text with the closing question (model/export.py). Texts of
users are encoded with special tokens switched off, so that a query holding `<|im_end|>` is only
text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from tokenizers import AddedToken, Tokenizer

from slmrank.errors import CheckpointError, InvalidQuery
from slmrank.prompt.template import PromptTemplate
from slmrank.surrogates import without_surrogates
from slmrank.tokens import Ids

MAX_QUERY_BYTES = 16_384


@dataclass(frozen=True, kw_only=True)
class Item:
    """One encoded item: ids [length] and whether the job text was cut to fit."""

    ids: Ids
    truncated: bool


class PromptEncoder:
    """Turns queries and job texts into ids for one template and tokenizer."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: PromptTemplate,
        *,
        max_item_tokens: int,
        max_query_tokens: int,
    ) -> None:
        before, slot, after = template.prefix.partition("{query}")
        if not slot:
            raise CheckpointError(
                f"prompt prefix {template.prefix!r} has no {{query}}", "add {query} to the prefix"
            )
        self.template = template
        self._tokenizer = tokenizer
        self._marked = mark_controls(tokenizer)
        # The space before a text belongs to its first word, as in running text.
        head, self._lead = _without_space(before)
        self._line_end = after[: len(after) - len(after.lstrip("\n"))] if template.joined else ""
        tail, self._item_lead = _without_space(after.removeprefix(self._line_end))
        self._head = self._literal(head)
        self._tail = self._literal(tail)
        self._closing = self._literal(template.closing)
        self._line_end_ids = self._literal(self._line_end)
        self.max_query_tokens = max_query_tokens
        self.max_item_tokens = max_item_tokens
        self.max_body_tokens = max_item_tokens - len(self._closing)
        if self.max_body_tokens < 1:
            raise CheckpointError(
                f"max_item_tokens {max_item_tokens} leaves no room beside the closing question "
                f"({len(self._closing)} tokens)",
                "raise max_item_tokens",
            )

    @property
    def head_ids(self) -> Ids:
        """Ids that every prompt begins with: the wording before the query."""
        return self._head

    @property
    def fixed_ids(self) -> Ids:
        """Ids of the template's own wording: before the query, after it, and the closing question,
        end to end."""
        return np.concatenate([self._head, self._line_end_ids, self._tail, self._closing])

    @cached_property
    def vocab_size(self) -> int:
        """Ids that the tokenizer can give lie below this; they may have gaps."""
        return 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())

    @property
    def body_form(self) -> str:
        """What the ids of a job text depend on beside text and tokenizer: part of the identity of
        a store of them."""
        return f"{'3' if self._marked else '2'}{self._item_lead}"

    @property
    def max_prompt_tokens(self) -> int:
        """Tokens of the longest prompt that can leave this encoder."""
        fixed = len(self._head) + len(self._line_end_ids) + len(self._tail)
        return fixed + self.max_query_tokens + self.max_item_tokens

    def prefix(self, query: str) -> Ids:
        """Ids [P] of instruction and query.

        Raises InvalidQuery when the query is blank or too long: a cut query would be another query.
        """
        size = len(query.encode("utf-8", "surrogatepass"))
        if size > MAX_QUERY_BYTES:
            raise InvalidQuery(
                f"query has {size} bytes, the limit is {MAX_QUERY_BYTES}", "shorten the query"
            )
        if not query.strip():
            raise InvalidQuery("query is empty", "give at least one word")
        [ids] = self._texts([self._lead + " ".join(query.split()) + self._line_end])
        size = len(ids) - len(self._line_end_ids)
        if size > self.max_query_tokens:
            raise InvalidQuery(
                f"query has {size} tokens, the limit is {self.max_query_tokens}",
                "shorten the query or raise prompt.max_query_tokens in the spec",
            )
        return np.concatenate([self._head, ids, self._tail])

    def takes(self, query: str) -> bool:
        """Whether a query is short enough; a word out of a text may be an address, or a paragraph
        in a script without spaces."""
        try:
            self.prefix(query)
        except InvalidQuery:
            return False
        return True

    def body(self, text: str) -> Ids:
        """Ids of a job text, whole but for the white space around it; this is what the summary
        store keeps."""
        return self.bodies([text])[0]

    def bodies(self, texts: Sequence[str]) -> list[Ids]:
        """`body` of each text: on all cores, and without the offsets that nobody asks for."""
        return self._texts([self._item_lead + text.strip() for text in texts])

    def text(self, body: Ids) -> str:
        """A job text from its ids."""
        decoded: str = self._tokenizer.decode(body.tolist(), skip_special_tokens=False)
        return decoded.removeprefix(self._item_lead)

    def item(self, body: Ids) -> Item:
        """Body ids cut to fit, then the closing question, which is never cut."""
        kept = body[: self.max_body_tokens]
        return Item(
            ids=np.concatenate([kept, self._closing]).astype(np.int32, copy=False),
            truncated=len(kept) < len(body),
        )

    def _literal(self, text: str) -> Ids:
        self._tokenizer.encode_special_tokens = False
        return np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.int32)

    def _texts(self, texts: list[str]) -> list[Ids]:
        self._tokenizer.encode_special_tokens = True
        clean = [without_surrogates(text) for text in texts]
        encoded = self._tokenizer.encode_batch_fast(clean, add_special_tokens=False)
        return [np.array(one.ids, dtype=np.int32) for one in encoded]


_CONTROL = re.compile(r"\s*[<\[{|].*[>\]}|]\s*", re.DOTALL)


def is_control(token: AddedToken) -> bool:
    """Whether an added token is none of the words and runs of spaces that users write."""
    return bool(token.special or _CONTROL.fullmatch(token.content))


def mark_controls(tokenizer: Tokenizer) -> bool:
    """Make every control token that was added to a tokenizer, as `</think>`, one that users cannot
    write: some of Qwen3's are not marked as special, and stand in the closing question. Words and
    runs of spaces that were added stay. Whether there were any."""
    added = tokenizer.get_added_tokens_decoder().values()
    plain = [one for one in added if not one.special and is_control(one)]
    marked = [
        AddedToken(
            one.content,
            single_word=one.single_word,
            lstrip=one.lstrip,
            rstrip=one.rstrip,
            normalized=one.normalized,
            special=True,
        )
        for one in plain
    ]
    tokenizer.add_special_tokens(marked)
    return bool(marked)


def _without_space(text: str) -> tuple[str, str]:
    """The text without the spaces at its end, and those spaces."""
    bare = text.rstrip(" ")
    return bare, text[len(bare) :]
