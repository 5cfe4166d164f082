"""What leaving early could save: after which layer can items be dropped that end below the top k?

    python perf/early_exit.py build/demo.yaml --out perf/results/early_exit.json

Listings as retrieval gives them (BM25's first, filled with other jobs), scored by the served
ranker. A linear probe on the last token's state after each layer is fitted to the final log-odds on
training queries. On dev queries, the probe's order then says how many items of a listing must go on
so that all of the final top k are among them, in the worst listing and in nine of ten; from that
follows the share of the layers' work that would be left. It is a bound: a probe's own cost, and the
smaller batches of the later layers, come on top.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from slmrank.artifacts import ArtifactStore
from slmrank.data.bm25 import Bm25
from slmrank.data.labelled import read_labelled
from slmrank.model.checkpoint import CHECKPOINT_FOLDER, open_checkpoint
from slmrank.pipeline.bundle import Bundle
from slmrank.pipeline.steps import run
from slmrank.spec.reading import load_spec
from slmrank.store.registry import open_store
from transformers import AutoModelForCausalLM

RIDGE = 300.0


class Listings:
    """Items of a query and, for each, the states after every layer and the final log-odds."""

    def __init__(self, bundle: Bundle, store: ArtifactStore, items: int) -> None:
        self.labelled = read_labelled(run(bundle.data, store).path)
        self._checkpoint = open_checkpoint(run(bundle.final, store).path / CHECKPOINT_FOLDER)
        self._encoder = self._checkpoint.encoder()
        summaries = run(bundle.summaries, store)
        self._store = open_store(summaries.manifest["settings"]["store"], summaries.path)
        self._bm25 = Bm25(self.labelled.jobs)
        self._items = items
        path = str(self._checkpoint.path)
        self._network: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        head, labels = self._network.lm_head.weight, self._checkpoint.labels
        self._row = (head[labels.yes] - head[labels.no]).detach()

    @torch.inference_mode()
    def states(self, query: str, rng: random.Random) -> tuple[Any, Any]:
        """States after each layer [L, N, E] of the last tokens, and log-odds [N]."""
        found = self._bm25.top(query, self._items * 3 // 4)
        others = rng.sample(list(self.labelled.jobs), self._items * 2)
        job_ids = list(dict.fromkeys(found + others))[: self._items]
        prefix = self._encoder.prefix(query)
        prompts = [
            np.concatenate([prefix, self._encoder.item(ids).ids])
            for ids in self._store.ids_many(job_ids)
            if ids is not None
        ]
        last = torch.tensor([len(one) - 1 for one in prompts])
        ids = torch.zeros((len(prompts), int(last.max()) + 1), dtype=torch.int64)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = torch.from_numpy(prompt.astype(np.int64))
        out = self._network.model(ids, use_cache=False, output_hidden_states=True)
        rows = torch.arange(len(prompts))
        layers = torch.stack([state[rows, last] for state in out.hidden_states[1:-1]])
        return layers.numpy(), (out.last_hidden_state[rows, last] @ self._row).numpy()


def probe(states: Any, log_odds: Any) -> Any:
    """Ridge regression [E + 1] from states [N, E]."""
    whole = np.hstack([states, np.ones((len(states), 1))])
    scale = np.maximum(whole.std(axis=0), 1e-6)
    scale[-1] = 1.0
    x = whole / scale
    gram = x.T @ x + RIDGE * np.diag([1.0] * (x.shape[1] - 1) + [0.0])
    return np.linalg.solve(gram, x.T @ log_odds) / scale


def needed(probed: Any, final: Any, top: int) -> int:
    """How many of the probe's first items hold all of the final top."""
    place = np.empty(len(final), dtype=int)
    place[np.argsort(-probed)] = np.arange(len(final))
    return int(place[np.argsort(-final)[:top]].max()) + 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("spec", type=Path)
    parser.add_argument("--artifacts", type=Path, default=Path("artifacts"))
    parser.add_argument("--items", type=int, default=64, help="of a listing")
    parser.add_argument("--queries", type=int, nargs=2, default=[24, 16], help="train and dev")
    parser.add_argument("--tops", type=int, nargs="+", default=[5, 10])
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    bundle, store = Bundle(load_spec(given.spec)), ArtifactStore(given.artifacts)
    listings, rng = Listings(bundle, store, given.items), random.Random(0)
    both = []
    for split, count in zip(("train", "dev"), given.queries, strict=True):
        pairs = listings.labelled.pairs[split]  # type: ignore[index]
        queries = rng.sample(sorted({pair.query for pair in pairs}), count)
        made = []
        for number, query in enumerate(queries, start=1):
            made.append(listings.states(query, rng))
            print(f"{split} {number}/{count}", file=sys.stderr, flush=True)
        both.append(made)
    train, dev = both
    rows = []
    count = len(train[0][0]) + 1
    for layer in range(count // 4, count - 1):
        weights = probe(
            np.concatenate([states[layer - 1] for states, _ in train]),
            np.concatenate([final for _, final in train]),
        )
        probed = [states[layer - 1] @ weights[:-1] + weights[-1] for states, _ in dev]
        finals = [final for _, final in dev]
        row: dict[str, Any] = {
            "layer": layer,
            "correlation": round(
                float(np.corrcoef(np.concatenate(probed), np.concatenate(finals))[0, 1]), 3
            ),
        }
        for top in given.tops:
            counts = [needed(a, b, top) for a, b in zip(probed, finals, strict=True)]
            for name, kept in (("all", max(counts)), ("nine in ten", np.percentile(counts, 90))):
                left = layer / count + (1 - layer / count) * float(kept) / given.items
                row[f"top {top}, {name}"] = {"go on": int(kept), "work left": round(left, 3)}
        rows.append(row)
    text = json.dumps({"layers": count, "items": given.items, "rows": rows}, indent=1)
    print(text)
    if given.out:
        given.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
