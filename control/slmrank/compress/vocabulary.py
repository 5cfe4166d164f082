"""Vocabulary trimming: embedding, head and tokenizer together, without changing a score.

A ranker reads job texts and answers with one of two tokens; most rows of a general vocabulary are
never used (on a 375M Qwen3 geometry the embedding is 41 % of the parameters). Kept are all special
tokens, the labels, the byte alphabet, what the given texts use, and then the tokenizer's own first
merges, which are its most frequent. The set is closed under merging: whatever a BPE merge needs on
the way to a kept token is kept. So a text whose tokens are all kept tokenises to the same tokens,
and scores the same; any other text still tokenises, into more and smaller tokens.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slmrank.artifacts import write_atomic
from slmrank.errors import CheckpointError, InvalidQuery
from slmrank.model.checkpoint import TOKENIZER_FILES, Checkpoint, read_config
from slmrank.model.tensor_files import NewTensor, Part, read_index, write_tensors
from slmrank.prompt.encoder import PromptEncoder
from slmrank.prompt.template import load_tokenizer
from slmrank.tokens import Ids

ROW_TENSORS = ("model.embed_tokens.weight", "lm_head.weight")
_ID_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """A BPE tokenizer as its JSON, and how its tokens come about."""

    tokenizer: dict[str, Any]
    ids: dict[str, int]
    merges: list[tuple[str, str]]

    @property
    def tokens(self) -> dict[int, str]:
        return {token_id: token for token, token_id in self.ids.items()}


def read_vocabulary(folder: Path) -> Vocabulary:
    """Raises CheckpointError when the tokenizer is not plain BPE."""
    load_tokenizer(folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    model = tokenizer["model"]
    kind = model.get("type") or ("BPE" if "merges" in model else "unknown")
    if kind == "BPE" and (
        model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")
    ):
        kind = "BPE with marked word parts"
    if kind != "BPE":
        raise CheckpointError(
            f"{folder}: the tokenizer is {kind}, only plain BPE can be trimmed",
            "leave the trim section out of the spec",
        )
    pairs = [
        tuple(one.split(" ", 1)) if isinstance(one, str) else tuple(one) for one in model["merges"]
    ]
    return Vocabulary(
        tokenizer=tokenizer, ids=dict(model["vocab"]), merges=[(a, b) for a, b in pairs]
    )


def choose_tokens(
    vocabulary: Vocabulary, used: Mapping[int, int], always: Iterable[int], size: int
) -> npt.NDArray[np.int64]:
    """The ids to keep, ascending: exactly `size`.

    `used` counts the texts' tokens: the frequent ones enter first. Raises CheckpointError when
    `size` does not even hold what must be kept, or is no less than the vocabulary.
    """
    ids, tokens = vocabulary.ids, vocabulary.tokens
    parts: dict[str, set[str]] = {}
    for first, second in vocabulary.merges:
        parts.setdefault(first + second, set()).update((first, second))
    if size >= len(set(ids.values()) | _special(vocabulary)):
        raise CheckpointError(
            f"trim.tokens {size} is not below the vocabulary, which has {len(ids)} tokens",
            "leave the trim section out, or ask for fewer",
        )
    kept: set[int] = _special(vocabulary)
    for wanted in [*always, *_alphabet(vocabulary)]:
        kept |= _closure(wanted, kept, tokens, ids, parts)
    if len(kept) > size:
        raise CheckpointError(
            f"trim.tokens {size} is too small: {len(kept)} tokens are special, labels or bytes",
            f"use at least {-(-len(kept) // 64) * 64}",
        )
    by_count = sorted(used, key=lambda token_id: (-used[token_id], token_id))
    by_rank = [ids[a + b] for a, b in vocabulary.merges if a + b in ids]
    for candidate in [*by_count, *by_rank, *sorted(ids.values())]:
        if candidate in kept:
            continue
        new = _closure(candidate, kept, tokens, ids, parts)
        if len(kept) + len(new) <= size:
            kept |= new
        if len(kept) == size:
            break
    return np.array(sorted(kept), dtype=np.int64)


def trim_tokenizer(vocabulary: Vocabulary, kept: npt.NDArray[np.int64]) -> dict[str, Any]:
    """`tokenizer.json` with only the kept tokens, renumbered in their old order."""
    new_ids = {int(old): new for new, old in enumerate(kept)}
    made: dict[str, Any] = json.loads(json.dumps(vocabulary.tokenizer))
    model = made["model"]
    model["vocab"] = {
        token: new_ids[old] for token, old in vocabulary.ids.items() if old in new_ids
    }
    present = model["vocab"].keys()
    merges = [
        [first, second]
        for first, second in vocabulary.merges
        if first in present and second in present and first + second in present
    ]
    as_text = any(isinstance(one, str) for one in model["merges"])
    model["merges"] = [" ".join(pair) for pair in merges] if as_text else merges
    for holder, place in _special_places(made):
        holder[place] = new_ids[int(holder[place])]
    return made


def trim_checkpoint(source: Path, target: Path, kept: npt.NDArray[np.int64]) -> dict[str, Any]:
    """Write the trimmed model into the folder `target`, streaming; returns sizes before and after.

    `ranker.json` is not written: the label ids have new numbers.
    """
    vocabulary = read_vocabulary(source)
    config = read_config(source)
    new_ids = {int(old): new for new, old in enumerate(kept)}
    index = read_index(source)
    if config.get("tie_word_embeddings"):
        index.pop("lm_head.weight", None)  # the embedding again
    tensors = [
        NewTensor(
            name=name, parts=(Part(tensor=stored, rows=kept if name in ROW_TENSORS else None),)
        )
        for name, stored in index.items()
    ]
    target.mkdir(parents=True, exist_ok=True)
    write_tensors(target / "model.safetensors", tensors)
    _write_json(target / "tokenizer.json", trim_tokenizer(vocabulary, kept))
    for name in TOKENIZER_FILES:
        if name != "tokenizer.json" and (source / name).is_file():
            shutil.copy2(source / name, target / name)
    settings = target / "tokenizer_config.json"
    if settings.is_file():
        loaded = json.loads(settings.read_text(encoding="utf-8"))
        decoder = loaded.get("added_tokens_decoder")
        if decoder:
            loaded["added_tokens_decoder"] = {
                str(new_ids[int(old)]): token
                for old, token in decoder.items()
                if int(old) in new_ids
            }
        _write_json(settings, loaded)
    generation = source / "generation_config.json"
    if generation.is_file():
        loaded = json.loads(generation.read_text(encoding="utf-8"))
        _write_json(target / generation.name, _renumbered(loaded, new_ids))
    _write_json(target / "config.json", {**_renumbered(config, new_ids), "vocab_size": len(kept)})
    load_tokenizer(target)
    rows = sum(1 for name in ROW_TENSORS if name in index)
    hidden = index[ROW_TENSORS[0]].shape[1]
    before = sum(one.elements for one in index.values())
    after = before - rows * hidden * (index[ROW_TENSORS[0]].shape[0] - len(kept))
    return {
        "tokens_before": index[ROW_TENSORS[0]].shape[0],
        "tokens_after": len(kept),
        "parameters_before": before,
        "parameters_after": after,
        "embedding_share_before": rows * hidden * index[ROW_TENSORS[0]].shape[0] / before,
        "embedding_share_after": rows * hidden * len(kept) / after,
    }


def same_tokens_share(
    before: Checkpoint,
    after: Checkpoint,
    encode: Callable[[PromptEncoder, str], Ids],
    texts: Sequence[str],
) -> float:
    """Share of the texts that `encode` cuts into the same tokens with both; 1.0 for no texts. A
    text that became too long counts as another."""

    def tokens(checkpoint: Checkpoint) -> list[list[str | None] | None]:
        tokenizer, encoder = load_tokenizer(checkpoint.path), checkpoint.encoder()
        found: list[list[str | None] | None] = []
        for text in texts:
            try:
                found.append([tokenizer.id_to_token(int(one)) for one in encode(encoder, text)])
            except InvalidQuery:
                found.append(None)
        return found

    pairs = list(zip(tokens(before), tokens(after), strict=True))
    return sum(old == new for old, new in pairs) / len(pairs) if pairs else 1.0


def _special(vocabulary: Vocabulary) -> set[int]:
    """Ids that the tokenizer names beside its vocabulary."""
    return {int(holder[place]) for holder, place in _special_places(vocabulary.tokenizer)}


def _special_places(tokenizer: dict[str, Any]) -> Iterator[tuple[Any, str | int]]:
    """Where `tokenizer.json` names ids, as (what holds one, its key): added tokens, those that a
    template, Bert or Roberta post-processor puts around a text, and the padding."""
    for token in tokenizer.get("added_tokens", []):
        yield token, "id"
    waiting = [tokenizer.get("post_processor") or {}]
    while waiting:
        processor = waiting.pop()
        waiting += processor.get("processors", [])
        for token in (processor.get("special_tokens") or {}).values():
            yield from ((token["ids"], place) for place in range(len(token["ids"])))
        pairs = (processor.get(name) for name in ("sep", "cls"))
        yield from ((pair, 1) for pair in pairs if isinstance(pair, list))
    if tokenizer.get("padding"):
        yield tokenizer["padding"], "pad_id"


def _alphabet(vocabulary: Vocabulary) -> list[int]:
    """Single characters and `<0x..>` bytes: what any other text falls back to."""
    return [
        token_id
        for token, token_id in vocabulary.ids.items()
        if len(token) == 1
        or (len(token) == 6 and token.startswith("<0x") and token.endswith(">"))
        or token == vocabulary.tokenizer["model"].get("unk_token")
    ]


def _closure(
    wanted: int,
    kept: set[int],
    tokens: Mapping[int, str],
    ids: Mapping[str, int],
    parts: Mapping[str, set[str]],
) -> set[int]:
    """`wanted` and everything that any merge on the way to it makes, without what is kept."""
    found: set[int] = set()
    waiting = [wanted]
    while waiting:
        token_id = waiting.pop()
        if token_id in kept or token_id in found:
            continue
        found.add(token_id)
        waiting += [ids[part] for part in parts.get(tokens.get(token_id, ""), ()) if part in ids]
    return found


def _renumbered(config: Mapping[str, Any], new_ids: Mapping[int, int]) -> dict[str, Any]:
    """Special ids of a config with their new numbers; one that was cut away is dropped."""
    made = dict(config)
    for key in _ID_KEYS:
        value = made.get(key)
        if isinstance(value, int):
            made[key] = new_ids.get(value)
        elif isinstance(value, list):
            made[key] = [new_ids[one] for one in value if one in new_ids]
    return made


def _write_json(path: Path, value: Any) -> None:
    write_atomic(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")
