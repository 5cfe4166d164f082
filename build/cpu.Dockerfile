# Serving image for CPUs: tritonserver from nvidia-pytriton and OpenVINO, plus slmrank. No torch.
#   rm -rf dist && python -m pip wheel --no-deps -w dist .
#   docker build -f build/cpu.Dockerfile -t slmrank-cpu:0.1.0 .
# Pin the base by digest in production: --build-arg BASE_IMAGE=...@sha256:...
ARG BASE_IMAGE=python:3.11-slim-bookworm
# hadolint ignore=DL3006
FROM ${BASE_IMAGE}
# With `,ray` it also summarises catalogues on KubeRay (optional/rayjob.yaml).
ARG EXTRAS=serve,gateway,redis,kafka,parquet

COPY constraints.txt dist/*.whl /tmp/wheels/
# The tested set, in an environment of its own: the base may carry other packages.
RUN python3 -m venv /opt/slmrank \
    && wheel="$(echo /tmp/wheels/slmrank-*.whl)" \
    && /opt/slmrank/bin/pip install --no-cache-dir -c /tmp/wheels/constraints.txt "${wheel}[${EXTRAS}]" \
    && rm -rf /tmp/wheels

# By number everywhere: runAsNonRoot cannot check a name.
RUN groupadd --gid 1000 slmrank \
    && useradd --uid 1000 --gid slmrank --home-dir /tmp --no-create-home slmrank \
    && mkdir -p /models && chown slmrank:slmrank /models
USER 1000:1000
WORKDIR /tmp
ENV PATH=/opt/slmrank/bin:${PATH}

# 8001 gRPC, 8000 health over HTTP, 8002 metrics
EXPOSE 8000 8001 8002
ENTRYPOINT ["control"]
CMD ["serve", "/models", "--address", "0.0.0.0", "--http", "health"]
