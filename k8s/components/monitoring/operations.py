"""The panels for operators of the service: load, latency, queue, engine, weights."""

from __future__ import annotations

from k8s.components.monitoring.panel import Panel, quantiles, rate, ratio

_NO_PROBES = 'route!~"/metrics|/healthz|/readyz",'

OPERATIONS: dict[str, list[Panel]] = {
    "Load": [
        Panel(
            "Request rate",
            "Answered requests by route, without probes and scrapes.",
            "reqps",
            {"{{route}}": f"{rate('vigor_requests_total', where=_NO_PROBES, by='route')} > 0"},
        ),
        Panel(
            "Rejected requests",
            "Requests that were answered with an error, by its code. queue_full: the queue was full.",
            "reqps",
            {"{{code}}": f"{rate('vigor_rejections_total', by='code')} > 0"},
        ),
        Panel(
            "Disconnected clients",
            "disconnected: score requests whose client left before the answer, because its timeout is too short or it "
            "died. closed: connections that the service closed because it had no file descriptors left.",
            "reqps",
            {"disconnected": rate("vigor_disconnects_total"), "closed": rate("vigor_closed_connections_total")},
        ),
        Panel(
            "Token rate",
            "Tokens of scored prompts and completions per second.",
            "suffix: tokens/s",
            {"{{kind}}": rate("vigor_tokens_total", by="kind")},
        ),
        Panel(
            "Completion rate",
            "Ranked completions per second, by status.",
            "suffix: completions/s",
            {"{{status}}": rate("vigor_completions_total", by="status")},
        ),
        Panel(
            "Cached scores",
            "Scores per second that came from the cache and were not computed again.",
            "suffix: scores/s",
            {"cached": rate("vigor_cached_scores_total")},
        ),
    ],
    "Latency": [
        Panel(
            "Score request latency",
            "Time from the first byte of a score request to its answer.",
            "s",
            quantiles("vigor_request_seconds", where='route=~"/v1/score.*",'),
        ),
        Panel(
            "Queue time",
            "Time from the admission of a score request to its first batch.",
            "s",
            quantiles("vigor_queue_seconds"),
        ),
        Panel(
            "Compute time",
            "Time from the first batch of a score request to its last score.",
            "s",
            quantiles("vigor_compute_seconds"),
        ),
    ],
    "Queue": [
        Panel(
            "Requests by state",
            "waiting: no batch has begun. running: a batch has begun. admitted: all unanswered requests, including "
            "those that wait for weights.",
            "short",
            {
                "waiting": "sum(vigor_waiting_requests{$of})",
                "running": "sum(vigor_running_requests{$of})",
                "admitted": "sum(vigor_queued_requests{$of})",
            },
        ),
        Panel(
            "Queue utilization",
            "Share of the queue that is in use. At 100 %, requests are rejected with queue_full.",
            "percentunit",
            {
                "requests {{instance}}": "vigor_queued_requests{$of} / vigor_max_queued_requests{$of}",
                "tokens {{instance}}": "vigor_queued_tokens{$of} / vigor_max_queued_tokens{$of}",
            },
            warn_above=0.9,
        ),
        Panel(
            "Incomplete groups",
            "Groups whose samples arrive one at a time and have not all arrived, and the samples that wait in them.",
            "short",
            {
                "groups": "sum(vigor_gathering_groups{$of})",
                "samples": "sum(vigor_gathering_samples{$of})",
            },
        ),
    ],
    "Engine": [
        Panel(
            "Engine utilization",
            "Share of the time that engines spend on batches, as a mean over engines. A single engine's time includes "
            "swaps of weights.",
            "percentunit",
            {"{{instance}}": "avg without (engine) (rate(vigor_engine_busy_seconds_total{$of}[$window]))"},
        ),
        Panel(
            "Sequences per batch",
            "Mean number of sequences in a batch.",
            "suffix: sequences",
            {"mean": ratio("vigor_batch_sequences_sum", "vigor_batch_sequences_count")},
        ),
        Panel(
            "Tokens per batch",
            "Mean number of tokens in a batch, and the maximum, which falls after the device runs out of memory.",
            "suffix: tokens",
            {
                "mean": ratio("vigor_batch_tokens_sum", "vigor_batch_tokens_count"),
                "allowed {{instance}}": "vigor_max_batch_tokens{$of}",
            },
        ),
        Panel(
            "Device memory",
            "Memory of the GPU. If the model is on a CPU: memory of the process and its machine.",
            "bytes",
            {"{{kind}} {{instance}}": "vigor_memory_bytes{$of}"},
        ),
        Panel(
            "Process memory",
            "Resident memory of the process.",
            "bytes",
            {"{{instance}}": "vigor_process_resident_memory_bytes{$of}"},
        ),
        Panel(
            "CPU usage",
            "Number of CPU cores that the process uses.",
            "suffix: cores",
            {"{{instance}}": "rate(vigor_process_cpu_seconds_total{$of}[$window])"},
        ),
    ],
    "Engines": [
        Panel(
            "Engines up",
            "Number of engines that take batches, and the number that should.",
            "short",
            {
                "up {{instance}}": "sum without (engine) (vigor_engine_up{$of})",
                "wanted {{instance}}": "count without (engine) (vigor_engine_up{$of})",
            },
        ),
        Panel(
            "Utilization by engine",
            "Share of the time that each engine spends on batches.",
            "percentunit",
            {"{{engine}} {{instance}}": "rate(vigor_engine_busy_seconds_total{$of}[$window])"},
        ),
        Panel(
            "Batch rate by engine",
            "Batches per second that each engine computes.",
            "suffix: batches/s",
            {"{{engine}} {{instance}}": "rate(vigor_engine_batches_total{$of}[$window])"},
        ),
        Panel(
            "Weight version by engine",
            "Version of the weights that each engine holds. Versions differ only during a swap.",
            "none",
            {"{{engine}} {{instance}}": "vigor_engine_weight_version{$of}"},
        ),
        Panel(
            "Engine restarts",
            "Number of engines that ended and were replaced.",
            "short",
            {"{{engine}} {{instance}}": "increase(vigor_engine_restarts_total{$of}[$window])"},
        ),
    ],
    "Weights": [
        Panel(
            "Weight version",
            "Version of the weights that each instance serves.",
            "none",
            {"{{instance}}": "vigor_weight_version{$of}"},
            "stat",
        ),
        Panel(
            "Weight state",
            "State of the weights. poisoned: a swap failed halfway, and nothing is scored until a full update.",
            "none",
            {
                "{{instance}}": 'sum by (instance) (vigor_weight_state{state="applying",$of})'
                ' + 2 * sum by (instance) (vigor_weight_state{state="poisoned",$of})'
            },
            "state-timeline",
            states=(("ready", "green"), ("applying", "blue"), ("poisoned", "red")),
        ),
        Panel(
            "Weight age",
            "Time since the served weights were published or loaded.",
            "s",
            {"{{instance}}": "time() - vigor_weight_published_timestamp_seconds{$of}"},
        ),
        Panel(
            "Weight update time by phase",
            "Mean time to receive a file, verify it, stage it on the engines, store it, and swap the weights.",
            "s",
            {
                "{{phase}}": f"{rate('vigor_weight_update_seconds_sum', by='phase')}"
                f" / {rate('vigor_weight_update_seconds_count', by='phase')}"
            },
        ),
        Panel(
            "Update traffic",
            "Bytes of weight updates received per second, by encoding.",
            "Bps",
            {"{{encoding}}": rate("vigor_weight_update_bytes_total", by="encoding")},
        ),
        Panel(
            "Open updates",
            "1 while an instance has an open update. An update that stays open is stuck.",
            "short",
            {"{{instance}}": "vigor_weight_update_active{$of}"},
        ),
    ],
}
