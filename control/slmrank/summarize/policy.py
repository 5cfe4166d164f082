"""Training of the summarizing language model: warm start, then GSPO against the frozen ranker.

The warm start is supervised, on the summaries of method `ranker`. Then TRL's GRPO trainer with
sequence-level importance ratios (GSPO, arXiv 2507.18071) on the reward of `held_out`; both of
its terms are logged apart. The reward of the likeliest summaries of held-out jobs is measured after
the warm start and at the end.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from slmrank.artifacts import write_atomic
from slmrank.data.records import Job
from slmrank.errors import DataError, needs
from slmrank.spec.compress import GenerativeSpec
from slmrank.summarize.generative import (
    HISTORY_FILE,
    POLICY_FOLDER,
    request_of,
    served_text,
    without_controls,
)
from slmrank.summarize.held_out import Judged, Reward, judged_jobs
from slmrank.summarize.sentences import cut_words
from slmrank.summarize.summarizer import Encode, Fitting

WARM_FOLDER = "warm"


def train_policy(fitting: Fitting) -> Path:
    """The folder of the trained model, with its history beside it (`history.json`).

    Raises DataError without training queries that tell jobs apart, MissingDependencyError without
    trl.
    """
    assert fitting.base is not None
    assert fitting.work is not None
    require_trl()
    spec = fitting.spec.generative or GenerativeSpec()
    jobs = judged_jobs(fitting, spec)
    held_out, jobs = jobs[: spec.held_out], jobs[spec.held_out :]
    # TRL leaves out a batch that is not whole: with fewer it ends at once, and says nothing.
    least = max(1, spec.batch_size * spec.steps_per_generation // spec.samples if spec.steps else 1)
    if len(jobs) < least:
        raise DataError(
            f"{len(held_out) + len(jobs)} jobs have training queries of both kinds, and "
            f"summarize.generative.held_out takes {len(held_out)}: {len(jobs)} are left to train "
            f"on, {least} at least are needed",
            "raise summarize.generative.jobs, lower batch_size or steps_per_generation there, or "
            "give more judged pairs",
        )
    reward = Reward(fitting, spec)
    warm, trained = fitting.work / WARM_FOLDER, fitting.work / POLICY_FOLDER
    with warnings.catch_warnings():  # of transformers, to those who call it
        warnings.simplefilter("ignore", FutureWarning)
        _warm_up(fitting, spec, jobs, warm)
        history = [reward.measure("warm start", 0, warm, held_out)]
        log = _reinforce(fitting, spec, jobs, reward, warm, trained)
    history.append(reward.measure("trained", spec.steps, trained, held_out))
    told = {
        "settings": spec.settings(),
        "jobs": len(jobs),
        "held_out": [asdict(one) for one in history],
        "log": log,
    }
    write_atomic(trained / HISTORY_FILE, json.dumps(told, indent=1) + "\n")
    return trained


def require_trl() -> None:
    """Raises MissingDependencyError without trl and datasets."""
    with needs("training a summarizer needs trl", "rl"):
        import datasets  # noqa: F401
        import trl  # noqa: F401


def _warm_up(fitting: Fitting, spec: GenerativeSpec, jobs: Sequence[Judged], target: Path) -> None:
    """Supervised training on the summaries of method `ranker`, into `target`; nothing where an
    earlier run left it."""
    from trl import SFTConfig, SFTTrainer

    from slmrank.summarize.ranker import RankerKind

    if target.is_dir():
        return
    assert fitting.base is not None
    scorer = RankerKind().fit(fitting).scorer
    trainer = _trainer(
        SFTTrainer,
        SFTConfig,
        fitting.base,
        warm_up_examples(jobs, spec, scorer.choose, fitting.encode),
        fitting,
        spec,
        "warm-up steps",
        output_dir=str(target.with_name("warm-up")),
        num_train_epochs=spec.warm_up_epochs,
        per_device_train_batch_size=4,
        learning_rate=spec.warm_up_learning_rate,
        completion_only_loss=True,
        max_length=None,
        save_strategy="no",
    )
    if spec.warm_up_epochs:
        trainer.train()
    _save_merged(trainer, fitting.base, target)


def warm_up_examples(
    jobs: Sequence[Judged], spec: GenerativeSpec, choose: Callable[[str, int], str], encode: Encode
) -> list[dict[str, str]]:
    """Requests, and what `choose` takes of the part of the posting that they show: of the whole
    one, half of the words would be none that the model can read, and it would learn to make them
    up."""
    return [
        {
            "prompt": request_of(one.job, spec.source_tokens, encode),
            "completion": " "
            + choose(cut_words(one.job.description, spec.source_tokens, encode), spec.tokens - 2),
        }
        for one in jobs
    ]


def _reinforce(
    fitting: Fitting,
    spec: GenerativeSpec,
    jobs: Sequence[Judged],
    reward: Reward,
    warm: Path,
    target: Path,
) -> list[dict[str, float]]:
    """The log of the training whose model is written into `target`."""
    from transformers import TrainerState
    from trl import GRPOConfig, GRPOTrainer

    rows = [
        {"prompt": request_of(one.job, spec.source_tokens, fitting.encode), "place": place}
        for place, one in enumerate(jobs)
    ]

    def texts_of(job: Job, written: Iterable[str]) -> list[str]:
        return [served_text(job, text, spec, spec.tokens, fitting.encode) for text in written]

    def term(of: Callable[[Judged, Sequence[str]], list[float]], name: str) -> Any:
        def rewards(completions: list[str], place: list[int], **_: Any) -> list[float]:
            texts: dict[int, list[int]] = {}
            for row, at in enumerate(place):
                texts.setdefault(at, []).append(row)
            found = [0.0] * len(completions)
            for at, own in texts.items():
                written = (" ".join(completions[row].split()) for row in own)
                job = jobs[at].job
                values = of(jobs[at], texts_of(job, written))
                for row, value in zip(own, values, strict=True):
                    found[row] = value
            return found

        rewards.__name__ = name
        return rewards

    rewards = [term(reward.faithfulness, "faithfulness"), term(reward.brevity, "brevity")]
    trainer = _trainer(
        partial(GRPOTrainer, reward_funcs=rewards),
        GRPOConfig,
        warm,
        rows,
        fitting,
        spec,
        "steps",
        output_dir=str(target.with_name("reinforced")),
        max_steps=spec.steps,
        per_device_train_batch_size=spec.batch_size,
        gradient_accumulation_steps=spec.gradient_accumulation_steps,
        steps_per_generation=spec.steps_per_generation,
        num_generations=spec.samples,
        max_completion_length=spec.tokens,
        temperature=spec.temperature,
        learning_rate=spec.learning_rate,
        importance_sampling_level="sequence",
        loss_type=spec.loss,
        # GSPO's own 3e-4 and 4e-4 are for all weights and small steps: an adapter's first step
        # passes them, and what is left of a sampling teaches nothing.
        epsilon=0.02,
        epsilon_high=0.03,
        # Within a group the terms differ little: its own deviation would amplify noise.
        scale_rewards="batch",
        beta=0.0,
        save_strategy="steps",
        save_steps=20,
    )
    if spec.steps:
        states = Path(trainer.args.output_dir).glob("*/trainer_state.json")
        whole = [path.parent for path in states if _is_json(path)]
        newest = max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)
        if newest is not None and int(newest.name.rpartition("-")[2]) >= spec.steps:
            # It ended before its model was kept: the trainer would take one more step.
            trainer._load_from_checkpoint(str(newest))
            trainer.state = TrainerState.load_from_json(str(newest / "trainer_state.json"))
        else:
            trainer.train(resume_from_checkpoint=None if newest is None else str(newest))
    _save_merged(trainer, warm, target)
    return [_figures(record) for record in trainer.state.log_history]


def _is_json(path: Path) -> bool:
    """The last file of a checkpoint, which is written in place: half of it is none."""
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return True


def _trainer(
    kind: Any,
    configure: Any,
    source: Path,
    rows: list[dict[str, Any]],
    fitting: Fitting,
    spec: GenerativeSpec,
    what: str,
    **settings: Any,
) -> Any:
    """TRL's trainer of a fresh adapter on the model in `source`; `settings` are its own."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import (
        AutoModelForCausalLM,
        PreTrainedTokenizerFast,
        PrinterCallback,
        TrainerCallback,
    )

    from slmrank.model.placement import choose_placement, has_bfloat16
    from slmrank.model.quiet import quiet

    class Told(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            fitting.progress(state.global_step, state.max_steps, what)

    def plain(item: tuple[str, Any]) -> tuple[str, Any]:
        name, value = item
        return name, without_controls(value, tokenizer) if isinstance(value, str) else value

    device = choose_placement(fitting.device).device
    processor = device.partition(":")[0]
    with quiet():
        tokenizer = PreTrainedTokenizerFast.from_pretrained(str(source))
        tokenizer.padding_side = "left"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        trainer = kind(
            model=AutoModelForCausalLM.from_pretrained(str(source), dtype="float32").to(device),
            args=configure(
                **settings,
                use_cpu=processor == "cpu",
                bf16=has_bfloat16(processor),
                gradient_checkpointing=False,
                lr_scheduler_type="constant_with_warmup",
                warmup_steps=5,
                logging_steps=1,
                report_to="none",
                disable_tqdm=True,
                save_total_limit=1,
                seed=spec.seed,
                dataloader_pin_memory=False,
            ),
            train_dataset=Dataset.from_list([dict(map(plain, row.items())) for row in rows]),
            processing_class=tokenizer,
            peft_config=LoraConfig(
                r=spec.rank,
                lora_alpha=2 * spec.rank,
                target_modules="all-linear",
                task_type="CAUSAL_LM",
            ),
            callbacks=[Told()],
        )
    # Without a bar, the trainer prints its log: standard output is the verb's.
    trainer.remove_callback(PrinterCallback)
    return trainer


def _save_merged(trainer: Any, source: Path, target: Path) -> None:
    """The model with its adapter merged; a run that was killed leaves no half folder."""
    from slmrank.model.quiet import quiet

    draft = target.with_name(f"{target.name}.part")
    shutil.rmtree(draft, ignore_errors=True)
    with quiet():
        merged = trainer.accelerator.unwrap_model(trainer.model).merge_and_unload()
        merged.save_pretrained(draft)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        if (source / file).is_file():
            shutil.copy2(source / file, draft / file)
    shutil.rmtree(target, ignore_errors=True)
    draft.rename(target)


def _figures(record: Mapping[str, Any]) -> dict[str, float]:
    """What is kept of one line of the trainer's log."""
    names = {
        "step": "step",
        "reward": "reward",
        "reward_std": "reward_std",
        "rewards/faithfulness/mean": "faithfulness",
        "rewards/brevity/mean": "brevity",
        "completions/mean_length": "tokens",
        "clip_ratio/region_mean": "clipped",
        "step_time": "seconds",
        "entropy": "entropy",
    }
    return {ours: float(record[theirs]) for theirs, ours in names.items() if theirs in record}
