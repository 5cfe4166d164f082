"""Training: the loss is the KL, it falls, and an interrupted run continues as if it had not."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from slmrank.errors import DataError
from slmrank.model.decoder import LoadedRanker
from slmrank.model.reference import load_model
from slmrank.prompt.corpus import EncodedQuery
from slmrank.spec.train import TrainSpec
from slmrank.train.batches import draw_batches, learning_rate_at, micro_batches, tokens_of
from slmrank.train.losses import bernoulli_kl
from slmrank.train.sft import Scorer, score_dev, train


def query(seed: int, items: int = 6) -> EncodedQuery:
    rng = np.random.default_rng(seed)
    return EncodedQuery(
        query=f"q{seed}",
        prefix=rng.integers(1, 900, 8).astype(np.int32),
        items=tuple(rng.integers(1, 900, 20).astype(np.int32) for _ in range(items)),
        job_ids=tuple(f"j{index}" for index in range(items)),
        grades=tuple([4, 0, 2, 0, 0, 4][:items]),
        targets=tuple(g / 4 for g in tuple([4, 0, 2, 0, 0, 4][:items])),
    )


QUERIES = [query(seed) for seed in range(3)]


def settings(**changes: Any) -> TrainSpec:
    given: dict[str, Any] = {
        "steps": 12,
        "queries_per_step": 2,
        "items_per_query": 4,
        "learning_rate": 3e-3,
        "warmup_steps": 2,
        "weight_decay": 0.0,
        "checkpoint_every": 4,
    }
    return TrainSpec(**(given | changes))


def fit(
    ranker: LoadedRanker,
    spec: TrainSpec,
    work: Path,
    progress: Callable[[int, int, float], None] = lambda *_: None,
    inputs: dict[str, str] | None = None,
    **more: Any,
) -> dict[str, Any]:
    return train(ranker, QUERIES, spec, work, progress, inputs=inputs or {}, **more)


def stop_at_six(step: int, _total: int, _loss: float) -> None:
    if step == 6:
        raise KeyboardInterrupt


def watch_steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, float, float]]:
    """Rate, weight decay and norm of the gradients of every step of the optimizer, as it comes."""
    seen: list[tuple[float, float, float]] = []
    own: Any = torch.optim.AdamW.step

    def step(self: torch.optim.AdamW, *given: Any, **named: Any) -> Any:
        (group,) = self.param_groups
        norms = [one.grad.norm() for one in group["params"] if one.grad is not None]
        seen.append((group["lr"], group["weight_decay"], float(torch.stack(norms).norm())))
        return own(self, *given, **named)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    return seen


@pytest.mark.usefixtures("in_float32")
def test_long_items_of_a_dev_query_are_scored_in_several_passes(
    make_checkpoint: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """16 items of 1,024 tokens at once had a pass of 16,384, whatever the steps were held to."""
    ranker = load_model(make_checkpoint())
    scorer, passes = Scorer(ranker), []
    scorer.register_forward_hook(lambda *given: passes.append(len(given[1][1].sizes)))
    whole = score_dev(scorer, ranker.placement, QUERIES)
    monkeypatch.setattr("slmrank.model.batch_tensors.BATCH_TOKENS", 50)
    assert score_dev(scorer, ranker.placement, QUERIES) == whole
    assert passes == [6] * 3 + [2] * 9


def test_kl_is_zero_at_the_target_and_matches_the_formula() -> None:
    targets = torch.tensor([0.0, 0.25, 0.5, 1.0])
    inside = torch.tensor([0.25, 0.5])
    assert float(bernoulli_kl(torch.logit(inside), inside)[0]) == pytest.approx(0, abs=1e-6)
    logit, p = 0.3, 1 / (1 + math.exp(-0.3))
    expected = np.mean(
        [
            sum(a * math.log(a / b) for a, b in ((t, p), (1 - t, 1 - p)) if a > 0)
            for t in targets.tolist()
        ]
    )
    summed, count = bernoulli_kl(torch.full((4,), logit), targets)
    found = float(summed / count)
    assert found == pytest.approx(float(expected), abs=1e-6)


def test_batches_follow_the_seed_and_mix_grades() -> None:
    batches = list(draw_batches(QUERIES, settings()))
    again = draw_batches(QUERIES, settings())
    assert [[q.job_ids for q in b] for [b] in batches] == [[q.job_ids for q in b] for [b] in again]
    for [batch] in batches:
        for one in batch:
            assert len(one.items) == 4
            assert set(one.grades) == {0, 2, 4}
    with pytest.raises(DataError, match="no training pairs"):
        draw_batches([], settings())


def test_a_token_budget_fills_steps_with_whole_queries() -> None:
    spec = settings(tokens_per_step=200, steps=20)
    for [batch] in draw_batches(QUERIES, spec):
        assert 1 <= sum(tokens_of(one) for one in batch) <= 200
        assert len(batch) == 2
    for parts in draw_batches(QUERIES, spec, processes=3):
        assert [len(part) for part in parts] == [2, 2, 2]
    for parts in draw_batches(QUERIES, settings(tokens_per_step=16), processes=2):
        assert [len(part) for part in parts] == [1, 1], "every process has a query"
    uneven = [*QUERIES, replace(QUERIES[0], items=(np.arange(90, dtype=np.int32),) * 6)]
    for parts in draw_batches(uneven, settings(tokens_per_step=500, steps=40), processes=2):
        assert max(sum(tokens_of(one) for one in part) for part in parts) <= 500
    assert [len(part) for part in micro_batches(QUERIES, 300)] == [2, 1]
    assert micro_batches(QUERIES, None) == [QUERIES]


def test_the_rate_warms_up_and_decays() -> None:
    rates = [learning_rate_at(step, settings(steps=20)) for step in range(20)]
    assert rates[0] == pytest.approx(1.5e-3)
    assert max(rates) == pytest.approx(3e-3)
    assert rates[-1] < 0.5e-3


def test_every_step_has_its_rate_its_decay_and_a_gradient_of_at_most_one(
    make_checkpoint: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = settings(steps=6, weight_decay=0.03)
    seen = watch_steps(monkeypatch)
    fit(load_model(make_checkpoint()), spec, tmp_path)
    rates, decays, norms = zip(*seen, strict=True)
    assert list(rates) == [learning_rate_at(step, spec) for step in range(6)]
    assert set(decays) == {0.03}
    assert max(norms) == pytest.approx(1, abs=1e-3), "the first gradients are larger"


def test_the_loss_inside_queries_weighs_what_the_spec_says(
    make_checkpoint: Callable[..., Any], tmp_path: Path
) -> None:
    checkpoint = make_checkpoint()

    def first_loss(weight: float) -> float:
        spec = settings(steps=1, list_loss="ranknet", list_weight=weight)
        return float(fit(load_model(checkpoint), spec, tmp_path / str(weight))["loss"][0])

    quarter, half, whole = map(first_loss, (0.25, 0.5, 1.0))
    assert whole - half > 1e-2
    assert whole - half == pytest.approx(2 * (half - quarter), abs=1e-3)


def test_it_learns_and_leaves_the_embedding_alone(
    make_checkpoint: Callable[..., Any], tmp_path: Path
) -> None:
    ranker = load_model(make_checkpoint())
    embedding = ranker.network.get_input_embeddings().weight
    before = embedding.clone()
    figures = fit(ranker, settings(steps=30), tmp_path)
    assert np.mean(figures["loss"][-5:]) < 0.6 * np.mean(figures["loss"][:5])
    assert torch.equal(before, embedding)


@pytest.mark.slow
def test_an_interrupted_run_ends_like_an_undisturbed_one(
    make_checkpoint: Callable[..., Any], tmp_path: Path
) -> None:
    checkpoint = make_checkpoint()
    whole = load_model(checkpoint)
    expected = fit(whole, settings(), tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        fit(load_model(checkpoint), settings(), tmp_path / "b", stop_at_six)
    resumed = load_model(checkpoint)
    figures = fit(resumed, settings(), tmp_path / "b")
    assert figures["resumed_at"] == 4
    assert figures["loss"] == pytest.approx(expected["loss"], abs=1e-4)
    pairs = zip(whole.network.parameters(), resumed.network.parameters(), strict=True)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in pairs)


def test_a_resumed_run_returns_the_best_weights_of_before(
    make_checkpoint: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The evaluations after the interruption are worse: what is kept is in the state alone."""
    checkpoint, spec = make_checkpoint(), settings(dev_every=4)

    def score(*values: float) -> None:
        left = iter(values)

        def scored(*_: Any) -> tuple[dict[str, float], list[float]]:
            value = next(left)
            return {"dev_ndcg10": value, "dev_auc": 0.5}, [value] * 3

        monkeypatch.setattr("slmrank.train.sft.score_dev", scored)

    whole, resumed = load_model(checkpoint), load_model(checkpoint)
    score(0.9, 0.5, 0.4)
    assert fit(whole, spec, tmp_path / "a", dev=QUERIES)["kept_step"] == 4
    score(0.9)
    with pytest.raises(KeyboardInterrupt):
        fit(load_model(checkpoint), spec, tmp_path / "b", stop_at_six, dev=QUERIES)
    score(0.5, 0.4)
    figures = fit(resumed, spec, tmp_path / "b", dev=QUERIES)
    assert (figures["resumed_at"], figures["kept_step"], figures["steps"]) == (4, 4, 12)
    pairs = zip(whole.network.parameters(), resumed.network.parameters(), strict=True)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in pairs)


@pytest.mark.parametrize(
    ("changes", "inputs"), [({"steps": 6}, {"student": "a"}), ({}, {"student": "b"})]
)
def test_state_of_other_settings_or_inputs_is_not_used(
    make_checkpoint: Callable[..., Any],
    tmp_path: Path,
    changes: dict[str, Any],
    inputs: dict[str, str],
) -> None:
    """Killed, the student made again, started again: the old student's weights must not go on."""
    checkpoint = make_checkpoint()
    with pytest.raises(KeyboardInterrupt):
        fit(load_model(checkpoint), settings(), tmp_path, stop_at_six, {"student": "a"})
    figures = fit(load_model(checkpoint), settings(**changes), tmp_path, inputs=inputs)
    assert figures["resumed_at"] == 0


def test_a_state_that_cannot_be_read_is_named(
    make_checkpoint: Callable[..., Any], tmp_path: Path
) -> None:
    checkpoint = make_checkpoint()
    with pytest.raises(KeyboardInterrupt):
        fit(load_model(checkpoint), settings(), tmp_path, stop_at_six)
    state = next(tmp_path.rglob("state.pt"))
    whole = state.read_bytes()
    for broken in (b"", whole[: len(whole) // 2]):
        state.write_bytes(broken)
        with pytest.raises(DataError, match="the state of an interrupted run cannot be read"):
            fit(load_model(checkpoint), settings(), tmp_path)
    assert not list(tmp_path.rglob(".state*"))


def test_a_teacher_replaces_the_grades(make_checkpoint: Callable[..., Any], tmp_path: Path) -> None:
    checkpoint = make_checkpoint()
    teacher = load_model(checkpoint)
    figures = fit(load_model(checkpoint), settings(steps=2), tmp_path, teacher=teacher)
    # The student starts as the teacher, so the first loss is (nearly) nothing.
    assert figures["loss"][0] < 1e-4
