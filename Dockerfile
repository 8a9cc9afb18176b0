# Two images: the model server and the gateway. docs/containers.md has the commands.
#
#   docker build --target cpu --tag audiocnn-server .
#   docker build --target gpu --tag audiocnn-server:gpu .
#   docker build --target gateway --tag audiocnn-gateway .
#
# Any Debian 12 with Python 3.11 and its venv module will do as a base.
ARG BASE_IMAGE=docker.io/library/python:3.11.14-slim-bookworm@sha256:65a93d69fa75478d554f4ad27c85c1e69fa184956261b4301ebaf6dbb0a3543d

FROM ${BASE_IMAGE} AS base
# Numbers, so that Kubernetes can see that this is not root. Everything in /app belongs to root: what serves
# cannot change what is served. It writes to /tmp and /var/log/audiocnn, and nowhere else.
RUN groupadd --gid 10001 audiocnn \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin audiocnn \
    && install --directory --mode 1777 /var/log/audiocnn
ENV PATH=/opt/venv/bin:/opt/java/bin:$PATH \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
# As in audiocnn/torchserve/server.py, which says why; here for the gateway, which nobody starts but tini.
ENV MALLOC_ARENA_MAX=2 \
    MALLOC_MMAP_THRESHOLD_=4194304 \
    MALLOC_TRIM_THRESHOLD_=16777216
WORKDIR /app
STOPSIGNAL SIGTERM

# --- What builds; none of it is in an image ----------------------------------------------------------
FROM base AS build
# Java is cut to the modules that TorchServe uses: 50 MB, where Debian's JRE has 189.
RUN apt-get update -qq \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        binutils make openjdk-17-jdk-headless tini \
    && jlink --output /opt/java --strip-debug --no-man-pages --no-header-files --compress=2 --add-modules \
        java.base,java.desktop,java.instrument,java.logging,java.management,java.naming,java.scripting,java.sql,java.xml,jdk.crypto.ec,jdk.management,jdk.unsupported,jdk.zipfs \
    && python3 -m venv /opt/pip \
    && python3 -m venv --without-pip /opt/venv
COPY pyproject.toml deploy/constraints.txt ./
# Prints the requirements of the extras that are named (base: those of the package itself). `pip install .`
# would need all of our source first, and every change to it would rebuild the layer.
ENV REQUIREMENTS="import sys, tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
extras = project['optional-dependencies'] | {'base': project['dependencies']}; \
print(*(line for name in sys.argv[1:] for line in extras[name] if not line.startswith('audiocnn-serve')), sep='\\n')"
# pip reads these: a folder of wheels or a mirror instead of PyPI.
ARG PIP_NO_INDEX
ARG PIP_FIND_LINKS
ARG PIP_INDEX_URL

FROM build AS packages-gateway
ARG PIP_NO_INDEX
ARG PIP_FIND_LINKS
ARG PIP_INDEX_URL
# "base formats" for BACKEND=v2: the gateway then decodes itself.
ARG GATEWAY_EXTRAS=
RUN python3 -c "${REQUIREMENTS}" client gateway ${GATEWAY_EXTRAS} > requirements.txt \
    && /opt/pip/bin/pip --python /opt/venv/bin/python install --quiet --no-cache-dir \
        --requirement requirements.txt --constraint constraints.txt

FROM build AS packages-cpu
ARG PIP_NO_INDEX
ARG PIP_FIND_LINKS
ARG PIP_INDEX_URL
# PyPI's torch brings several GB of CUDA; the version of this index has none.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# Nothing here reads torch's tests and C++ headers (200 MB) or OpenVINO's parts for GPUs and NPUs (52 MB).
RUN python3 -c "${REQUIREMENTS}" base client formats openvino torchserve > requirements.txt \
    && /opt/pip/bin/pip --python /opt/venv/bin/python install --quiet --no-cache-dir \
        --extra-index-url "${TORCH_INDEX}" --requirement requirements.txt --constraint constraints.txt \
    && rm -f /opt/venv/lib/python3.11/site-packages/openvino/libs/libopenvino_intel_[gn]pu_plugin.so \
    && cd /opt/venv/lib/python3.11/site-packages/torch \
    && rm -rf test include share && find bin -type f ! -name torch_shm_manager -delete

# The archive, from a checkpoint: exported, quantised, compared with PyTorch, tried.
FROM packages-cpu AS archive
ARG PIP_NO_INDEX
ARG PIP_FIND_LINKS
ARG PIP_INDEX_URL
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN python3 -c "${REQUIREMENTS}" base client formats torchserve export > requirements.txt \
    && /opt/pip/bin/pip --python /opt/venv/bin/python install --quiet --no-cache-dir \
        --extra-index-url "${TORCH_INDEX}" --requirement requirements.txt --constraint constraints.txt
COPY Makefile config.properties ./
COPY audiocnn audiocnn
COPY export export
COPY handler handler
COPY checkpoints checkpoints
ARG CHECKPOINT=checkpoints/esc50
ARG VERSION
RUN mkdir deploy && cp constraints.txt deploy/ && touch /opt/venv/.serving \
    && make archive VENV=/opt/venv CHECKPOINT="${CHECKPOINT}" VERSION="${VERSION}" \
    && install --directory /served/model_store \
    && cp model_store/audiocnn.mar /served/model_store/ && cp audiocnn.mar.sha256 config.properties /served/ \
    && cp -r audiocnn handler /served/ && python3 -m compileall -q /served/audiocnn /served/handler

# --- The gateway: no torch ---------------------------------------------------------------------------
FROM build AS gateway-source
COPY audiocnn /served/audiocnn
ARG CHECKPOINT=checkpoints/esc50
COPY ${CHECKPOINT}/config.json /served/model-config.json
RUN python3 -m compileall -q /served

FROM base AS gateway
COPY --from=build /usr/bin/tini-static /usr/bin/tini
COPY --from=packages-gateway /opt/venv /opt/venv
COPY --from=gateway-source /served /app
# TORCHSERVE_URL says where the server is; docs/gateway.md has all settings.
ENV GATEWAY_HOST=0.0.0.0 \
    GATEWAY_PORT=8000 \
    MODEL_CONFIG_FILE=/app/model-config.json
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['GATEWAY_PORT'] + '/health', timeout=5)"]
ENTRYPOINT ["/usr/bin/tini", "--"]
CMD ["python", "-m", "audiocnn", "gateway"]

# --- The server --------------------------------------------------------------------------------------
FROM base AS server
COPY --from=build /usr/bin/tini-static /usr/bin/tini
COPY --from=build /opt/java /opt/java
# What predicts and what tells its metrics can be reached from outside the container, if a port is published;
# the management API, which runs code, and gRPC stay on the container's own loopback.
USER 10001:10001
EXPOSE 8080 8082
HEALTHCHECK --interval=30s --timeout=15s --start-period=120s --retries=3 \
    CMD ["python", "-m", "audiocnn", "manage", "ready"]
ENTRYPOINT ["/usr/bin/tini", "--"]
CMD ["python", "-m", "audiocnn", "serve", "--no-restart", "--logs", "/var/log/audiocnn", \
    "--set", "inference_address=http://0.0.0.0:8080", "--set", "metrics_address=http://0.0.0.0:8082"]

FROM build AS packages-gpu
ARG PIP_NO_INDEX
ARG PIP_FIND_LINKS
ARG PIP_INDEX_URL
RUN python3 -c "${REQUIREMENTS}" base gpu client formats torchserve | grep -v "^onnxruntime>" > requirements.txt \
    && /opt/pip/bin/pip --python /opt/venv/bin/python install --quiet --no-cache-dir \
        --requirement requirements.txt --constraint constraints.txt \
    && cd /opt/venv/lib/python3.11/site-packages/torch \
    && rm -rf test include share && find bin -type f ! -name torch_shm_manager -delete

# The driver comes from the host (NVIDIA Container Toolkit), CUDA's libraries with torch.
FROM server AS gpu
COPY --from=packages-gpu /opt/venv /opt/venv
COPY --from=archive /served /app
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

FROM server AS cpu
COPY --from=packages-cpu /opt/venv /opt/venv
COPY --from=archive /served /app
