"""A temperature: the least cross-entropy, in the weights, and without any change of the order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from slmrank.model.batch_tensors import batch_tensors
from slmrank.model.decoder import score_items
from slmrank.model.reference import load_model
from slmrank.train.adapter import read_note, write_note
from slmrank.train.temperature import apply_temperature, calibrate, fit_temperature

from tests.train.test_sft import QUERIES


def test_it_is_the_minimum_and_finds_what_was_done() -> None:
    rng = np.random.default_rng(0)
    true = rng.normal(scale=2, size=40_000)
    targets = (rng.random(40_000) < 1 / (1 + np.exp(-true))).astype(float)
    assert fit_temperature(2.5 * true, targets) == pytest.approx(2.5, rel=0.04)
    assert fit_temperature(0.5 * true, targets) == pytest.approx(0.5, rel=0.04)
    logits, soft = rng.normal(size=50), rng.random(50)

    def cost(t: float) -> float:
        return float(np.mean(np.logaddexp(0, logits / t) - soft * logits / t))

    best = minimize_scalar(cost, bounds=(0.2, 5), method="bounded").x
    assert cost(fit_temperature(logits, soft)) <= cost(best) + 1e-6


def test_the_weights_carry_it(make_checkpoint: Callable[..., Any]) -> None:
    ranker = load_model(make_checkpoint("qwen3"))
    tensors = batch_tensors(QUERIES, ranker.placement)
    before = score_items(ranker, *tensors).detach()
    apply_temperature(ranker, 1.7)
    after = score_items(ranker, *tensors).detach()
    assert (before / 1.7).numpy() == pytest.approx(after.numpy(), abs=1e-5)


def test_calibration_lowers_the_cross_entropy_of_an_overconfident_model(
    make_checkpoint: Callable[..., Any],
) -> None:
    ranker = load_model(make_checkpoint())
    apply_temperature(ranker, 0.1)
    found = calibrate(ranker, QUERIES)
    assert found["temperature"] > 2
    assert found["ece_after"] < found["ece_before"]
    assert calibrate(ranker, QUERIES)["temperature"] == pytest.approx(1.0, abs=0.05)


def test_the_adapter_keeps_it(make_checkpoint: Callable[..., Any], tmp_path: Path) -> None:
    template = make_checkpoint().template
    assert read_note(tmp_path, template) is None
    write_note(tmp_path, template, 1.25)
    assert read_note(tmp_path, template) == 1.25
