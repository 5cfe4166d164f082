"""Which precision `auto` is, and that it is the engine's key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from slmrank.engine.targets import openvino
from slmrank.engine.targets.openvino import quickest_precision
from slmrank.pipeline.bundle import Bundle
from slmrank.spec.reading import change_spec, load_spec


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        (frozenset({"avx2", "fma"}), "float32"),
        (frozenset({"avx2", "avx512f"}), "float32"),
        (frozenset({"avx2", "avx_vnni"}), "int8"),
        (frozenset({"avx512f", "avx512_vnni", "amx_int8"}), "int8"),
        (None, "int8"),
    ],
)
def test_int8_is_for_processors_that_multiply_it(
    features: frozenset[str] | None, expected: str
) -> None:
    assert quickest_precision(features) == expected


@pytest.mark.parametrize(("flag", "precision"), [("avx512_vnni", "int8"), ("avx2", "float32")])
def test_auto_is_the_same_engine_as_the_precision_it_stands_for(
    tiny: Any, monkeypatch: pytest.MonkeyPatch, flag: str, precision: str
) -> None:
    monkeypatch.setattr(openvino, "cpu_features", lambda: frozenset({flag}))
    keys = {}
    for asked in ("auto", "int8", "float32"):
        spec = change_spec(
            load_spec(Path(tiny.spec)), {"engine": {"openvino": {"precision": asked}}}
        )
        keys[asked] = Bundle(spec).engine.key
    assert keys["auto"] == keys[precision]
    assert keys["int8"] != keys["float32"]
