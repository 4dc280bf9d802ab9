"""The panels for who runs the service: load, latency, queue, engine, weights."""

from __future__ import annotations

from k8s.components.monitoring.panel import Panel, quantiles, rate, ratio

_NO_PROBES = 'route!~"/metrics|/healthz|/readyz",'

OPERATIONS: dict[str, list[Panel]] = {
    "Load": [
        Panel(
            "Requests",
            "Answered requests of each route; probes and scrapes are left out.",
            "reqps",
            {"{{route}}": f"{rate('vigor_requests_total', where=_NO_PROBES, by='route')} > 0"},
        ),
        Panel(
            "Refusals",
            "Requests that got a problem, by its code. queue_full: callers send more than is computed.",
            "reqps",
            {"{{code}}": f"{rate('vigor_rejections_total', by='code')} > 0"},
        ),
        Panel(
            "Clients that left",
            "Score requests whose client went away before the answer (its time limit is too short, or it died), and "
            "connections that were closed because more were open than there are descriptors for.",
            "reqps",
            {"left": rate("vigor_disconnects_total"), "closed": rate("vigor_closed_connections_total")},
        ),
        Panel(
            "Tokens",
            "Tokens of scored prompts and completions per second.",
            "suffix: tokens/s",
            {"{{kind}}": rate("vigor_tokens_total", by="kind")},
        ),
        Panel(
            "Completions",
            "Ranked completions per second, by what became of them.",
            "suffix: completions/s",
            {"{{status}}": rate("vigor_completions_total", by="status")},
        ),
        Panel(
            "Cache hits",
            "Scores per second that came from the cache and cost nothing.",
            "suffix: scores/s",
            {"cached": rate("vigor_cached_scores_total")},
        ),
    ],
    "Latency": [
        Panel(
            "Score requests, end to end",
            "From the first byte of a request to its answer.",
            "s",
            quantiles("vigor_request_seconds", where='route=~"/v1/score.*",'),
        ),
        Panel("In the queue", "Until the first batch of a request began.", "s", quantiles("vigor_queue_seconds")),
        Panel("In computation", "From the first batch of a request on.", "s", quantiles("vigor_compute_seconds")),
    ],
    "Queue": [
        Panel(
            "Requests in the queue",
            "Waiting: none of their batches began. Running: a batch began. Admitted: all that are not answered, also "
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
            "At 100 % requests are refused with queue_full.",
            "percentunit",
            {
                "requests {{instance}}": "vigor_queued_requests{$of} / vigor_max_queued_requests{$of}",
                "tokens {{instance}}": "vigor_queued_tokens{$of} / vigor_max_queued_tokens{$of}",
            },
            warn_above=0.9,
        ),
        Panel(
            "Gathering",
            "Groups whose samples come one at a time and are not whole, and their samples.",
            "short",
            {
                "groups": "sum(vigor_gathering_groups{$of})",
                "samples": "sum(vigor_gathering_samples{$of})",
            },
        ),
    ],
    "Engine": [
        Panel(
            "Busy",
            "Share of the time in which engines worked, their mean: on batches; where there is one, on swaps as well.",
            "percentunit",
            {"{{instance}}": "avg without (engine) (rate(vigor_engine_busy_seconds_total{$of}[$window]))"},
        ),
        Panel(
            "Batches",
            "Mean sequences of a batch.",
            "suffix: sequences",
            {"mean": ratio("vigor_batch_sequences_sum", "vigor_batch_sequences_count")},
        ),
        Panel(
            "Tokens of a batch",
            "Mean tokens of a batch, and how many it may have: fewer after memory ran out.",
            "suffix: tokens",
            {
                "mean": ratio("vigor_batch_tokens_sum", "vigor_batch_tokens_count"),
                "allowed {{instance}}": "vigor_max_batch_tokens{$of}",
            },
        ),
        Panel(
            "Device memory",
            "Of the GPU; where the model is on a CPU, of the process and its machine.",
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
            "Cores",
            "Cores that the process used.",
            "suffix: cores",
            {"{{instance}}": "rate(vigor_process_cpu_seconds_total{$of}[$window])"},
        ),
    ],
    "Engines": [
        Panel(
            "Up",
            "Engines that take batches, and those that there should be.",
            "short",
            {
                "up {{instance}}": "sum without (engine) (vigor_engine_up{$of})",
                "wanted {{instance}}": "count without (engine) (vigor_engine_up{$of})",
            },
        ),
        Panel(
            "Busy, by engine",
            "Share of the time in which each engine worked.",
            "percentunit",
            {"{{engine}} {{instance}}": "rate(vigor_engine_busy_seconds_total{$of}[$window])"},
        ),
        Panel(
            "Batches, by engine",
            "Batches that each engine computed, per second.",
            "suffix: batches/s",
            {"{{engine}} {{instance}}": "rate(vigor_engine_batches_total{$of}[$window])"},
        ),
        Panel(
            "Versions, by engine",
            "The version of the weights that each engine holds: they differ within a swap alone.",
            "none",
            {"{{engine}} {{instance}}": "vigor_engine_weight_version{$of}"},
        ),
        Panel(
            "Restarts",
            "Engines that ended and were replaced.",
            "short",
            {"{{engine}} {{instance}}": "increase(vigor_engine_restarts_total{$of}[$window])"},
        ),
    ],
    "Weights": [
        Panel(
            "Version",
            "The version that each instance serves.",
            "none",
            {"{{instance}}": "vigor_weight_version{$of}"},
            "stat",
        ),
        Panel(
            "State",
            "Of each instance. Poisoned: a swap failed half-way, and nothing is scored until a full update lands.",
            "none",
            {
                "{{instance}}": 'sum by (instance) (vigor_weight_state{state="applying",$of})'
                ' + 2 * sum by (instance) (vigor_weight_state{state="poisoned",$of})'
            },
            "state-timeline",
            states=(("ready", "green"), ("applying", "blue"), ("poisoned", "red")),
        ),
        Panel(
            "Age",
            "Seconds since the served weights were published, or loaded.",
            "s",
            {"{{instance}}": "time() - vigor_weight_published_timestamp_seconds{$of}"},
        ),
        Panel(
            "Weight update time by phase",
            "Mean seconds of receiving a file, verifying, staging on the engines, storing and swapping.",
            "s",
            {
                "{{phase}}": f"{rate('vigor_weight_update_seconds_sum', by='phase')}"
                f" / {rate('vigor_weight_update_seconds_count', by='phase')}"
            },
        ),
        Panel(
            "Update traffic",
            "Bytes of files that came with updates, per second.",
            "Bps",
            {"{{encoding}}": rate("vigor_weight_update_bytes_total", by="encoding")},
        ),
        Panel(
            "Open updates",
            "1 while an instance has an update open; one that stays is stuck.",
            "short",
            {"{{instance}}": "vigor_weight_update_active{$of}"},
        ),
    ],
}
