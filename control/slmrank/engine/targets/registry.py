"""The engine targets by name."""

from __future__ import annotations

from slmrank.engine.targets.base import EngineTarget
from slmrank.registry import Registry
from slmrank.spec.engine import declare_target
from slmrank.spec.section import Section


def _built_in() -> None:
    from slmrank.engine.targets.openvino import OpenVinoTarget
    from slmrank.engine.targets.torch import TorchTarget
    from slmrank.engine.targets.trtllm_engine import TrtllmEngineTarget
    from slmrank.engine.targets.trtllm_llmapi import TrtllmLlmApiTarget

    for target in (OpenVinoTarget(), TorchTarget(), TrtllmEngineTarget(), TrtllmLlmApiTarget()):
        TARGETS.register(target.name, target)


TARGETS: Registry[EngineTarget] = Registry("engine target", _built_in)


def register_target(target: EngineTarget, section: type[Section] | None = None) -> None:
    """Make a target known to specs and commands; `section` reads `engine.NAME` of a spec."""
    declare_target(target.name, section)
    TARGETS.register(target.name, target)
