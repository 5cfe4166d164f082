"""The two label tokens. A label that is not one ordinary token would make scores meaningless
without any error (infinity #645: special tokens leaked into the yes/no ids), so it is refused."""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import Tokenizer

from slmrank.errors import CheckpointError
from slmrank.prompt.template import PromptTemplate


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Vocabulary ids of the answers: p = sigmoid(logit[yes] - logit[no])."""

    yes: int
    no: int


def find_labels(tokenizer: Tokenizer, template: PromptTemplate) -> Labels:
    """The label ids of a template.

    Raises CheckpointError when an answer is not exactly one token, is a special token, or when
    both are the same token.
    """
    labels = Labels(
        yes=_single_token(tokenizer, "yes", template.yes),
        no=_single_token(tokenizer, "no", template.no),
    )
    if labels.yes == labels.no:
        raise CheckpointError(
            f"prompt.yes {template.yes!r} and prompt.no {template.no!r} are the same token "
            f"({labels.yes})",
            "choose answers that differ, such as ' Yes' and ' No'",
        )
    return labels


def _single_token(tokenizer: Tokenizer, name: str, text: str) -> int:
    tokenizer.encode_special_tokens = False
    encoded = tokenizer.encode(text, add_special_tokens=False)
    if len(encoded.ids) != 1:
        bare = tokenizer.encode(text.strip(), add_special_tokens=False).ids
        known = f"this one holds it as {text.strip()!r}" if len(bare) == 1 else "often with a space"
        raise CheckpointError(
            f"prompt.{name} {text!r} is {len(encoded.ids)} tokens {encoded.tokens}, "
            "a label must be exactly one",
            f"choose an answer that this tokenizer holds as one token ({known}); "
            "the wording of a base.preset is for its own model's tokenizer, else take plain",
        )
    token = tokenizer.get_added_tokens_decoder().get(encoded.ids[0])
    if token is not None and token.special:
        raise CheckpointError(
            f"prompt.{name} {text!r} is the special token {encoded.ids[0]}",
            "choose an ordinary word such as ' Yes'",
        )
    return int(encoded.ids[0])
