# syntax=docker/dockerfile:1
# CPU: docker build .            CUDA: docker build --build-arg DEVICE=cuda .
FROM python:3.11-slim

ARG DEVICE=cpu

# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends make \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /app
COPY . .

# On Linux the default torch is the CUDA build; the CPU build, several GB smaller, has an index of its own.
RUN --mount=type=cache,target=/root/.cache/pip \
    case "$DEVICE" in \
        cpu) from="--extra-index-url https://download.pytorch.org/whl/cpu" ;; \
        cuda) from="" ;; \
        *) echo "DEVICE is cpu or cuda, not $DEVICE." >&2; exit 1 ;; \
    esac \
    && make setup EXTRAS= PIP_ARGS="$from"

RUN useradd --create-home --uid 1000 nightschool \
    && install --directory --mode=0700 --owner=nightschool --group=nightschool /data
USER 1000

ENV PATH=/app/.venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    NIGHTSCHOOL_DATA=/data \
    NIGHTSCHOOL_CACHE=/data/cache \
    HF_HOME=/data/cache/huggingface
VOLUME /data
EXPOSE 7860

# The first start unpacks the embedded model, hence the start period.
HEALTHCHECK --interval=30s --timeout=5s --start-period=3m \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:7860/healthz', timeout=4)"]

# Beyond loopback the server wants an owner: NIGHTSCHOOL_OWNER_PASSWORD, or NIGHTSCHOOL_OWNER_PASSWORD_FILE for a secret.
ENTRYPOINT ["nightschool"]
CMD ["serve", "--host", "0.0.0.0"]
