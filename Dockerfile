# The handbook, as files: what builds it stays in this stage.
FROM python:3.12-slim-bookworm AS handbook

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ONLY_BINARY=:all: \
    PIP_ROOT_USER_ACTION=ignore

WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE Makefile ./
COPY dmsae dmsae
RUN pip install --constraint constraints.txt --editable '.[docs]'
COPY api api
COPY deploy deploy
COPY docs docs
COPY handbook handbook
RUN python -m handbook

# The API, the sweeper and the migrations: whatever trains nothing. No torch, no compiler, no root.
FROM python:3.12-slim-bookworm

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ONLY_BINARY=:all: \
    PIP_ROOT_USER_ACTION=ignore \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1

RUN groupadd --gid 10001 dmsae \
    && useradd --uid 10001 --gid 10001 --home-dir /var/lib/dmsae --create-home --shell /usr/sbin/nologin dmsae

# The service runs from its checkout: api/, worker/ and migrations/ are in no wheel. What it needs comes first,
# so that a change of the code installs nothing again.
WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY dmsae/__init__.py dmsae/
RUN pip install --constraint constraints.txt --editable '.[server]'
COPY dmsae dmsae
COPY api api
COPY worker worker
COPY migrations migrations
COPY --from=handbook /app/build/docs build/docs

USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=10s --start-period=60s --retries=4 \
    CMD ["python", "-m", "api.probe", "/healthz"]
CMD ["python", "-m", "api"]
