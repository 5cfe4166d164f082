"""The OpenVINO engine."""

import sys

# openvino sends what it is used for to Google Analytics unless this package is absent.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
