"""What `tune` measures and writes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from slmrank.cli.tune import _axes
from slmrank.pipeline import measure
from slmrank.pipeline.bundle import Bundle
from slmrank.spec.reading import change_spec

from tests.conftest import TinyBundle


def test_values_of_an_axis_that_is_given_twice_add_up() -> None:
    assert _axes(("threads=1,2", "instances=1", "threads=2,4")) == {
        "threads": [1, 2, 4],
        "instances": [1],
    }


def test_what_answers_without_scoring_is_off_while_it_is_measured(
    tiny: TinyBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had to be switched off by hand, and was then off in the overlay as well."""
    tried: list[Bundle] = []

    def opened(bundle: Bundle, *_: Any) -> Any:
        tried.append(bundle)
        cell = {
            "items_per_s": 5.0,
            "items_per_s_range": [4.0, 6.0],
            "items": 2,
            "failed_at": 3.5,
        }
        found = [SimpleNamespace(figures=cell)]
        return SimpleNamespace(slo=lambda _report: (found, None))

    monkeypatch.setattr(measure, "open_bundle_session", opened)
    spec = {"repository": {"depth": {"target_ms": 50}, "cache": {"place": "memory:"}}}
    bundle = Bundle(change_spec(tiny.bundle.spec, spec))
    found = measure.measure_settings(bundle, {"threads": 2}, tiny.store, None, print)  # type: ignore[arg-type]
    (asked,) = (one.spec.repository for one in tried)
    assert (asked.depth, asked.cache, asked.threads) == (None, None, 2)
    assert found.settings == {"threads": 2}
