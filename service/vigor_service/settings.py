"""Every setting of `vigor-service`: a flag, an environment variable `VIGOR_…`, a default and its unit.

Imports no torch: `--help` answers at once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from vigor_client.schemas.faults import Fault, faults_of
from vigor_service.http.authentication import checked_key, is_loopback, read_key


class Settings(BaseSettings):
    """The VIGOR scoring service: exact gradient norms of the current policy over HTTP.

    Each flag is also an environment variable: --max-batch-tokens is VIGOR_MAX_BATCH_TOKENS. A flag wins.
    """

    model_config = SettingsConfigDict(
        env_prefix="VIGOR_",
        env_ignore_empty=True,
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,  # the input may be a key
        use_attribute_docstrings=True,
        cli_prog_name="vigor-service",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
    )

    model: str | None = None
    """Model to score with: a model directory, a directory with a PEFT adapter that names its base model, a hub name, or
    a GGUF file. Default: the embedded SmolLM2-135M-Instruct."""

    host: str = "127.0.0.1"
    """Address to listen on. An address that other machines can reach needs a key, or --allow-anonymous."""

    port: int = Field(default=8000, ge=0, le=65535)
    """TCP port to listen on. 0 chooses a free port, which is logged."""

    device: str = "auto"
    """Device to compute on: auto (a GPU if there is one), cpu, cuda, cuda:1, …"""

    engines: int = Field(default=1, ge=1)
    """Number of engines, each with its own copy of the model on a GPU or CPU core of its own. More than one run as Ray
    actors on any machine of the Ray cluster, and need the extra ray."""

    shard: int = Field(default=1, ge=1)
    """Number of devices among which each engine divides its model, for a model that does not fit on one device. Each
    device holds a part of the weights, gathers one layer at a time, and scores its own sequences. More than one run as
    Ray actors. Requires a directory with a whole model; attribution and estimated norms are not available."""

    ray_address: str | None = None
    """Address of the Ray cluster on which the engines run: auto, or host:port. Default: with more than one engine, a
    cluster on this machine alone, which ends with the service."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Element type of the weights. auto is float32 on a CPU and the checkpoint's own type elsewhere."""

    parameters: str | None = None
    """Parameters whose gradient norm is measured: all, lora, norms, last-K-layers (such as last-4-layers), or a regular
    expression over parameter names. Default: lora if the model has LoRA parameters, else all."""

    norm_probes: int | None = Field(default=None, gt=0)
    """Number of random vectors (probes) per weight matrix for estimating norms, which is cheaper and enough where only
    ranks matter. Default: norms are not estimated but exact."""

    trust_remote_code: bool = False
    """Run the Python code that comes with a checkpoint. Use it only if you trust the checkpoint as you trust a program
    that you install."""

    max_batch_tokens: int | Literal["auto"] = "auto"
    """Maximum number of tokens in one batch, over all its sequences; a longer sequence runs alone. auto measures at
    start what fits into memory, up to 16384 on a GPU and 4096 on a CPU. If memory still runs out, the batch is split in
    half and later batches are smaller."""

    activation_mib: int | None = Field(default=None, gt=0)
    """Approximate maximum size of the activations that batches keep at once, in MiB, without the logits. To stay below
    it, some layers (on a GPU all or none) are computed again instead of keeping their activations. On a CPU, setting it
    also returns freed memory to the system at once, which takes time. Default: 70 % of the free memory."""

    product_library: Literal["auto", "onednn", "torch"] = "auto"
    """Library that multiplies float32 matrices on a CPU. auto times both libraries on this machine, for each size, and
    uses the faster one; torch uses PyTorch's own, which is MKL on most processors."""

    max_queued_tokens: int = Field(default=4_194_304, gt=0)
    """Maximum number of tokens that are queued or computed at once (429 above it)."""

    max_queued_requests: int = Field(default=1024, gt=0)
    """Maximum number of score requests that are queued or computed at once (429 above it)."""

    max_request_tokens: int = Field(default=16_777_216, gt=0)
    """Maximum number of tokens of one score request, each completion counted with its prompt (413 above it)."""

    preparation_seconds: float = Field(default=30.0, gt=0)
    """Maximum CPU time for applying chat templates and tokenizing one request, in seconds (413 above it)."""

    score_cache_entries: int = Field(default=65_536, ge=0)
    """Number of most recent scores that are cached, at about 400 bytes each; a cached completion is not computed again
    under the same weights. 0 disables the cache."""

    max_url_bytes: int = Field(default=8192, gt=0)
    """Maximum size of a request's URL, in bytes (414 above it)."""

    max_header_bytes: int = Field(default=32_768, gt=0)
    """Maximum total size of a request's headers, in bytes (431 above it)."""

    max_body_bytes: int = Field(default=16 << 20, gt=0)
    """Maximum size of a JSON request body, in bytes (413 above it)."""

    max_held_bytes: int = Field(default=1 << 30, gt=0)
    """Maximum memory for the bodies of all requests in progress, in bytes (429 above it). A body counts from its first
    byte until its request is answered, as JSON or as the objects parsed from it."""

    max_upload_bytes: int | None = Field(default=None, gt=0)
    """Maximum total size of the files of a weight update, in bytes. Default: the largest size that an update of the
    model can have."""

    staging_dir: Path | None = None
    """Directory for weight updates in progress. Default: a directory within --state-dir, or else one of this user in
    the temporary directory."""

    state_dir: Path | None = None
    """Directory that stores the published weights, so that a restarted service serves them again. It needs space for
    two copies of the model and for the smaller updates since the last full one. Default: unset; a restarted service
    serves --model."""

    weights_root: Path | None = None
    """Directory on this machine's disk below which weights may be loaded: checkpoints (/update_weights_from_disk),
    published versions (/pull_weights), and the files of an update. Default: unset; nothing is loaded from disk."""

    allow_broadcast: bool = False
    """Receive weight updates through torch.distributed, from any address that a publisher names. The traffic is neither
    encrypted nor authenticated: use it only in a network that you trust."""

    update_timeout_seconds: float = Field(default=120.0, gt=0)
    """Maximum time between two requests for an open weight update, in seconds; after it the update is dropped."""

    request_timeout_seconds: float = Field(default=600.0, gt=0)
    """Maximum time for answering a score request, in seconds, in addition to the time that it asks to wait for
    weights."""

    group_timeout_seconds: float = Field(default=120.0, gt=0)
    """Maximum time between the first and the last sample of a group whose samples arrive one by one, in seconds. The
    answer is kept for the same time, for samples that are sent again."""

    watchdog_seconds: float = Field(default=900.0, gt=0)
    """Maximum time for one batch or one swap of weights, in seconds; above it /healthz answers 503, so that an
    orchestrator restarts the service."""

    drain_seconds: float = Field(default=30.0, gt=0)
    """Maximum time for requests in progress to finish after SIGTERM, in seconds."""

    score_key: SecretStr | None = None
    """API key for scoring and reading, sent as a bearer token. A file is safer: other users of the machine can see
    command lines."""

    score_key_file: Path | None = None
    """File that contains the score key on one line."""

    publish_key: SecretStr | None = None
    """API key for publishing weights; it also allows scoring and reading. With only a score key, publishing is
    disabled."""

    publish_key_file: Path | None = None
    """File that contains the publish key on one line."""

    allow_anonymous: bool = False
    """Allow callers without a key although other machines can reach the address."""

    otlp_endpoint: str | None = None
    """URL of an OpenTelemetry collector that receives traces over HTTP, such as http://127.0.0.1:4318; the path
    /v1/traces is added. Needs the extra otel. Default: OTEL_EXPORTER_OTLP_ENDPOINT; if neither is set, nothing is
    traced."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Lowest level of the lines that are logged to standard error."""

    log_format: Literal["text", "json"] = "text"
    """Format of log lines: text, or json with one object per line, whose members are time, level, logger, message and
    the fields of the event."""

    @field_validator("max_batch_tokens", mode="before")
    @classmethod
    def _check_batch_tokens(cls, value: object) -> int | str:
        text = str(value)
        if text == "auto":
            return text
        if not (text.isascii() and text.isdecimal() and int(text) > 0):
            raise ValueError(f"{value!r} is neither auto nor a whole number above 0")
        return int(text)

    @field_validator("parameters")
    @classmethod
    def _check_selection(cls, value: str | None) -> str | None:
        if re.fullmatch("last-0+-layers", value or ""):
            raise ValueError(f"{value!r} selects no layer: give last-1-layers or more")
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(
                f"{value!r} is neither all, lora, norms, last-K-layers nor a regular expression: {error}"
            ) from error
        return value

    @field_validator("otlp_endpoint")
    @classmethod
    def _check_endpoint(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"https?://[^\s/?#]+(/[^\s?#]*)?", value):
            raise ValueError("not an HTTP URL: give one like http://127.0.0.1:4318")
        return value

    @model_validator(mode="before")
    @classmethod
    def _read_key_files(cls, values: dict[str, Any]) -> dict[str, Any]:
        read = {name: _key(name, values) for name in ("score_key", "publish_key")}
        return {**values, **{name: key for name, key in read.items() if key is not None}}

    @model_validator(mode="after")
    def _check_keys(self) -> Self:
        if self.score_key is not None and self.score_key == self.publish_key:
            raise ValueError(
                "the score key and the publish key are the same: give only --publish-key (VIGOR_PUBLISH_KEY, or its "
                "file), which also allows scoring"
            )
        if self.allow_anonymous and self.has_key:
            raise ValueError("--allow-anonymous (VIGOR_ALLOW_ANONYMOUS) cannot be combined with a key: give only one")
        return self

    @model_validator(mode="after")
    def _check_directories(self) -> Self:
        if self.state_dir is not None and self.staging_dir is not None:
            raise ValueError(
                "--staging-dir (VIGOR_STAGING_DIR) and --state-dir (VIGOR_STATE_DIR): give only one; with a state "
                "directory, updates are staged within it"
            )
        return self

    @model_validator(mode="after")
    def _check_exposure(self) -> Self:
        if not self.allow_anonymous and not self.has_key and not is_loopback(self.host):
            raise ValueError(
                f"--host {self.host} (VIGOR_HOST) can be reached from other machines and no key is set: "
                "give --publish-key-file or --score-key-file (VIGOR_PUBLISH_KEY_FILE, VIGOR_SCORE_KEY_FILE), or "
                "--allow-anonymous (VIGOR_ALLOW_ANONYMOUS) if that is intended, or listen on 127.0.0.1"
            )
        return self

    @property
    def has_key(self) -> bool:
        """Whether callers must send a key."""
        return self.score_key is not None or self.publish_key is not None


def fault_lines(error: ValidationError) -> list[str]:
    """Return one line for each fault: the flag, its environment variable, what is wrong and what to set."""
    return [_fault_line(fault) for fault in faults_of(error, Settings)]


def _fault_line(fault: Fault) -> str:
    if not fault.loc:  # the message for several settings names them itself
        return fault.msg
    name = str(fault.loc[0])
    begins_with_verb = fault.msg.startswith("is ")
    return f"--{name.replace('_', '-')} (VIGOR_{name.upper()}){' ' if begins_with_verb else ': '}{fault.msg}"


def _key(name: str, values: Mapping[str, Any]) -> str | None:
    """Return the key, which is given directly or in a file; None if neither is given."""
    given, file = values.get(name), values.get(f"{name}_file")
    flag, variable = f"--{name.replace('_', '-')}", f"VIGOR_{name.upper()}"
    if given is not None and file is not None:
        raise ValueError(f"{flag} ({variable}) and {flag}-file ({variable}_FILE): give only one")
    try:
        if file is not None:
            return read_key(Path(file))
        return None if given is None else checked_key(_revealed(given))
    except ValueError as error:
        where = f"{flag} ({variable})" if file is None else f"{flag}-file ({variable}_FILE)"
        raise ValueError(f"{where}: {error}") from error


def _revealed(key: str | SecretStr) -> str:
    return key.get_secret_value() if isinstance(key, SecretStr) else key
