"""Our OSSCAR beside fmchisel's, its authors' own: layer by layer, the same inputs, equal widths.

    python -m pip install --no-deps --target .bench/fmchisel fmchisel==0.1.2
    python perf/osscar_fmchisel.py build/demo.yaml --out perf/results/osscar_fmchisel.json

The inputs of `down_proj` are those of the fine-tuned ranker on real prompts. The error is the share
of the layer's output energy that is lost, |X W - X W0|^2 / |X W0|^2, on the calibration prompts and
on prompts that neither has seen. Both drop as many neurons between two updates. fmchisel solves in
float32, as it does in its own pipeline; of llmcompressor, which it asks for, it reads the name of
that type alone, so a module with this name stands in.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from slmrank.artifacts import ArtifactStore
from slmrank.compress.calibration import attend_all, embed, feed_all, gram_of_neurons
from slmrank.compress.osscar import prune_neurons, relative_error
from slmrank.compress.record import RECORD_FILE, read_record
from slmrank.model.checkpoint import CHECKPOINT_FOLDER, open_checkpoint
from slmrank.model.placement import choose_placement
from slmrank.model.reference import load_model
from slmrank.pipeline.bundle import Bundle
from slmrank.pipeline.steps import run
from slmrank.spec.reading import load_spec


def fmchisel_prune(folder: Path) -> Any:
    """fmchisel's solver of one layer, from its file: the package itself imports llmcompressor.

    Raises SystemExit when it is not in the folder.
    """
    path = folder / "fmchisel" / "pruning" / "osscar" / "utils" / "osscar_sparsify.py"
    if not path.is_file():
        raise SystemExit(f"no {path}; this file says at its start how to get it")
    name = "llmcompressor.modifiers.obcq.sgpt_sparsify"
    for depth in range(1, name.count(".") + 2):
        sys.modules[".".join(name.split(".")[:depth])] = ModuleType(name)
    sys.modules[name].SGPT_PRECISION = torch.float32  # type: ignore[attr-defined]
    spec = importlib.util.spec_from_file_location("osscar_sparsify", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.OSSCAR_fastprune


def theirs(
    solve: Any, gram: Any, weights: Any, keep: int, damping: float, per_round: int
) -> tuple[Any, Any]:
    """(kept, weights) as fmchisel's `sparsify_weight` makes them of a Gram matrix."""
    count = len(weights)
    hessian = torch.from_numpy(gram).float()
    hessian += torch.eye(count) * damping * torch.mean(torch.diag(hessian))
    start = torch.from_numpy(weights).float()
    found, _ = solve(start.clone(), hessian, hessian @ start, count, keep, False, per_round)
    fitted = found.t().double().numpy()
    kept = np.flatnonzero(np.abs(fitted).sum(axis=1))
    return kept, fitted[kept]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("spec", type=Path)
    parser.add_argument("--fmchisel", type=Path, default=Path(".bench/fmchisel"))
    parser.add_argument("--artifacts", type=Path, default=Path("artifacts"))
    parser.add_argument("--layers", type=int, default=8, help="layers, evenly over the model")
    parser.add_argument("--widths", type=int, nargs="+", default=[1024, 768])
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    solve = fmchisel_prune(given.fmchisel)
    bundle, store = Bundle(load_spec(given.spec)), ArtifactStore(given.artifacts)
    prompts = list(read_record(run(bundle.pruned, store).path / RECORD_FILE).prompts)
    checkpoint = open_checkpoint(run(bundle.finetuned, store).path / CHECKPOINT_FOLDER)
    ranker = load_model(checkpoint, choose_placement("cpu"))
    spec = bundle.spec.prune
    assert spec is not None
    known = len(prompts) * 3 // 4
    rows = []
    with torch.no_grad():
        parts = [embed(ranker, some, None) for some in (prompts[:known], prompts[known:])]
        count = len(ranker.network.model.layers)
        chosen = set(np.linspace(0, count - 1, given.layers).round().astype(int).tolist())
        for index, layer in enumerate(ranker.network.model.layers):
            for one in parts:
                attend_all(ranker, layer, one)
            if index in chosen:
                gram, unseen = (gram_of_neurons(ranker, layer, one)[0] for one in parts)
                weights = layer.mlp.down_proj.weight.T.double().numpy()
                for keep in given.widths:
                    row: dict[str, Any] = {"layer": index, "keep": keep}
                    damping, per_round = spec.damping, spec.neurons_per_round
                    began = time.perf_counter()
                    pruned = prune_neurons(
                        gram, weights, keep, damping=damping, per_round=per_round
                    )
                    both = {"ours": (pruned.kept, pruned.weights, time.perf_counter() - began)}
                    began = time.perf_counter()
                    found = theirs(solve, gram, weights, keep, damping, per_round)
                    both["fmchisel"] = (*found, time.perf_counter() - began)
                    for name, (kept, fitted, seconds) in both.items():
                        row[name] = {
                            "kept": len(kept),
                            "error": round(relative_error(gram, weights, kept, fitted), 6),
                            "unseen": round(relative_error(unseen, weights, kept, fitted), 6),
                            "seconds": round(seconds, 2),
                        }
                    row["same neurons"] = len(set(pruned.kept) & set(found[0]))
                    print(json.dumps(row), file=sys.stderr, flush=True)
                    rows.append(row)
            for one in parts:
                feed_all(ranker, layer, one)
    summary = {}
    for keep in given.widths:
        of = [row for row in rows if row["keep"] == keep]
        summary[str(keep)] = {
            name: {
                measure: round(float(np.mean([row[name][measure] for row in of])), 6)
                for measure in ("error", "unseen", "seconds")
            }
            for name in ("ours", "fmchisel")
        }
    text = json.dumps({"mean": summary, "rows": rows}, indent=1)
    print(text)
    if given.out:
        given.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
