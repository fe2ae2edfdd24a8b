# syntax=docker/dockerfile:1
# A server on CPUs. Build: docker build -t pfberxit .     With Ray: --build-arg EXTRAS=ray
# Run: docker run -p 8080:8080 -v FOLDER-OF-A-MODEL:/model:ro pfberxit
# No secret is in it: a token is a file that is mounted, --token-file /run/secrets/token behind the image's name.
FROM python:3.12-slim

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    HF_HUB_DISABLE_TELEMETRY=1 RAY_USAGE_STATS_ENABLED=0

RUN useradd --uid 10001 --create-home pfberxit

# torch comes first, and from where its wheels hold no CUDA: whatever is installed after it finds it there.
ARG TORCH=2.13.0
RUN pip install "torch==${TORCH}" --index-url https://download.pytorch.org/whl/cpu

ARG EXTRAS=serve
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY configuration configuration
COPY model_cards model_cards
COPY modeling_pfberxit modeling_pfberxit
COPY pfberxit pfberxit
# hadolint ignore=DL3013
RUN pip install ".[${EXTRAS}]"

WORKDIR /home/pfberxit
USER 10001:10001

EXPOSE 8080
# Healthy once warm; SIGTERM answers what is open first, so stop it with --stop-timeout 40.
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/health', timeout=2)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["pfberxit", "serve", "/model", "--host", "0.0.0.0", "--port", "8080"]
