# The image of vigor-service, or with EXTRAS=trainer that of vigor-trainer: docs/operations/operating.md builds both.
FROM python:3.11-slim-bookworm AS build
# Arguments of pip for torch. PyPI's build is for CUDA; a smaller one for CPUs is
# "torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu".
ARG TORCH="torch==2.13.0"
ARG EXTRAS=service,otel
ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
RUN python -m venv /opt/vigor
# Layers that change least come first: torch, then the other dependencies, then the project.
COPY constraints.txt ./
RUN /opt/vigor/bin/pip install --constraint constraints.txt ${TORCH}
COPY pyproject.toml ./
RUN python -c "import os, tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
    extras = [project['optional-dependencies'][name] for name in os.environ['EXTRAS'].split(',')]; \
    print(*project['dependencies'], *sum(extras, []), sep='\n')" \
    > requirements.txt \
    && /opt/vigor/bin/pip install --constraint constraints.txt --requirement requirements.txt
COPY README.md LICENSE ./
COPY client client
COPY service service
COPY trainer trainer
RUN /opt/vigor/bin/pip wheel --no-deps --wheel-dir dist . \
    && /opt/vigor/bin/pip install --no-deps dist/*.whl

FROM python:3.11-slim-bookworm
LABEL org.opencontainers.image.title="vigor-rl" \
    org.opencontainers.image.description="Scores completions of a language model by exact gradient norms" \
    org.opencontainers.image.licenses="Apache-2.0"
# Debian packages. On a GPU "gcc libc6-dev": Triton compiles a part of each kernel at run time. Without a compiler
# the service measures with torch alone. Their versions may be pinned.
ARG PACKAGES=""
# hadolint ignore=DL3008
RUN if [ -n "${PACKAGES}" ]; then \
    apt-get update && apt-get install --yes --no-install-recommends ${PACKAGES} && rm -rf /var/lib/apt/lists/*; fi
RUN groupadd --gid 10001 vigor \
    && useradd --uid 10001 --gid vigor --no-log-init --no-create-home --home-dir /var/cache/vigor vigor \
    && install --directory --owner=vigor --group=vigor /var/cache/vigor /var/lib/vigor
COPY --from=build /opt/vigor /opt/vigor
# Models and compiled kernels are cached in the user's home. MALLOC_… and GLIBC_TUNABLES are not set: the service
# configures glibc's heap itself, unless the environment does (docs/decisions/0015).
ENV PATH=/opt/vigor/bin:${PATH} \
    HOME=/var/cache/vigor \
    VIGOR_HOST=0.0.0.0 \
    VIGOR_PORT=8000
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=600s --retries=6 CMD ["python", "-c", "import os; \
    from http.client import HTTPConnection; \
    service = HTTPConnection('127.0.0.1', int(os.environ['VIGOR_PORT']), timeout=4); \
    service.request('GET', '/healthz'); \
    raise SystemExit(service.getresponse().status != 200)"]
ENTRYPOINT ["vigor-service"]
