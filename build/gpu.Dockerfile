# Serving and engine-building image for NVIDIA GPUs: NVIDIA's Triton with TensorRT-LLM, plus slmrank.
#   rm -rf dist && python -m pip wheel --no-deps -w dist .
#   docker build -f build/gpu.Dockerfile -t slmrank-gpu:0.1.0 .
# Pin the base by digest in production: --build-arg BASE_IMAGE=...@sha256:...
# The tag must be one that build/compatibility.yaml lists for TensorRT-LLM 1.2.1.
ARG CONTAINER=26.07
ARG BASE_IMAGE=nvcr.io/nvidia/tritonserver:${CONTAINER}-trtllm-python-py3
# hadolint ignore=DL3006
FROM ${BASE_IMAGE}

SHELL ["/bin/bash", "-o", "pipefail", "-c"]

# The container's own packages stay as they are: TensorRT-LLM is built against them.
COPY dist/*.whl /tmp/wheels/
RUN python3 -m pip freeze --exclude-editable \
      | { grep -E '^[A-Za-z0-9_.-]+==' || true; } > /tmp/constraints.txt \
    && PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --no-cache-dir \
         -c /tmp/constraints.txt "$(echo /tmp/wheels/slmrank-*.whl)[gateway,redis,kafka,parquet]" \
    && rm -rf /tmp/wheels /tmp/constraints.txt

# uid 1000 is the container's own user triton-server.
RUN mkdir -p /models /engines /bundles && chown 1000:1000 /models /engines /bundles
USER 1000:1000
WORKDIR /tmp

# 8001 gRPC, 8000 health over HTTP, 8002 metrics
EXPOSE 8000 8001 8002
ENTRYPOINT ["/opt/nvidia/nvidia_entrypoint.sh"]
CMD ["control", "serve", "/models", "--address", "0.0.0.0", "--http", "health"]
