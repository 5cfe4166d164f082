"""The wording of a prompt, and the tokenizer that it is written for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from slmrank.data.records import Job
from slmrank.errors import CheckpointError
from slmrank.hashing import hash_file, hash_value
from slmrank.spec.model import PromptSpec


@dataclass(frozen=True, kw_only=True)
class PromptTemplate:
    """The fixed wording around query and job, and the two answers whose tokens give the score."""

    prefix: str
    closing: str
    yes: str
    no: str
    joined: bool = True

    @property
    def hash(self) -> str:
        """16 hex digits over the wording."""
        return hash_value([self.prefix, self.closing, self.yes, self.no, self.joined])[:16]


def template_of(spec: PromptSpec) -> PromptTemplate:
    """The wording that a spec asks for."""
    names = PromptTemplate.__dataclass_fields__
    return PromptTemplate(**{name: getattr(spec, name) for name in names})


def job_text(job: Job, text: str) -> str:
    """The item's text for one job: title, company and place, then `text` (summary or full)."""
    place = ", ".join(part for part in (job.company, job.location) if part.strip())
    lines = [f"Job: {job.title}" if job.title.strip() else "", place, text]
    return "\n".join(line for line in lines if line.strip())


def load_tokenizer(checkpoint: Path) -> Tokenizer:
    """The tokenizer of a checkpoint directory. Raises CheckpointError when it is not there."""
    path = checkpoint / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(
            f"{checkpoint} has no tokenizer.json",
            "save the checkpoint with a fast tokenizer (tokenizer.save_pretrained)",
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the binding raises bare Exception
        raise CheckpointError(f"{path} does not load: {error}", "restore tokenizer.json") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def tokenizer_hash(checkpoint: Path) -> str:
    """16 hex digits over the bytes of `tokenizer.json`."""
    return hash_file(checkpoint / "tokenizer.json")[:16]
