"""The panels for people who train: norms, length bias, ties and duplicates, versions. An instance serves one run."""

from __future__ import annotations

from k8s.components.monitoring.panel import Panel, buckets, quantiles, rate, ratio

_COMPLETION = 'kind="completion",'
_NOT_OK = 'status!="ok",'

REWARD: dict[str, list[Panel]] = {
    "Norms": [
        Panel(
            "Scaled gradient norms",
            "Gradient norm of a completion times the square root of its length. The smallest in a group ranks first.",
            "none",
            quantiles("vigor_scaled_grad_norm", of=(0.1, 0.5, 0.9), apart=True),
        ),
        Panel(
            "Distribution of scaled norms",
            "Number of completions in each range of norms.",
            "short",
            buckets("vigor_scaled_grad_norm"),
            "heatmap",
        ),
        Panel(
            "Spread of norms within groups",
            "Standard deviation of a group's norms divided by their mean. Near 0, the ranking is mostly noise.",
            "none",
            quantiles("vigor_norm_spread_ratio", of=(0.1, 0.5, 0.9), apart=True),
        ),
    ],
    "Length": [
        Panel(
            "Correlation of reward and length",
            "Mean of the groups' Spearman correlations. Near 1, longer completions win regardless of content; near -1, "
            "shorter ones win.",
            "none",
            {
                "{{instance}}": ratio(
                    "vigor_reward_length_correlation_plus_one_total",
                    "vigor_reward_length_correlation_count",
                    by="instance",
                )
                + " - 1"
            },
        ),
        Panel(
            "Distribution of the correlation",
            "Number of groups in each range of the correlation.",
            "short",
            buckets("vigor_reward_length_correlation"),
            "heatmap",
        ),
        Panel(
            "Completion length",
            "Mean number of tokens in a completion.",
            "suffix: tokens",
            {
                "{{instance}}": f"{rate('vigor_tokens_total', where=_COMPLETION, by='instance')}"
                f" / {rate('vigor_completions_total', by='instance')}"
            },
        ),
    ],
    "Ties and duplicates": [
        Panel(
            "Tied completions",
            "Share of completions that have the same rank as another completion of their group.",
            "percentunit",
            {"{{instance}}": ratio("vigor_tied_completions_total", "vigor_completions_total", by="instance")},
        ),
        Panel(
            "Duplicate completions",
            "Share of completions that equal an earlier one of their group. A high share means that the policy repeats "
            "itself.",
            "percentunit",
            {"{{instance}}": ratio("vigor_duplicate_completions_total", "vigor_completions_total", by="instance")},
        ),
        Panel(
            "Completions without a norm",
            "Share of completions that were empty, truncated, or had a norm that is not finite.",
            "percentunit",
            {
                "{{status}} {{instance}}": f"{rate('vigor_completions_total', where=_NOT_OK, by='status, instance')}"
                f" / on (instance) group_left () {rate('vigor_completions_total', by='instance')}"
            },
        ),
    ],
    "Versions": [
        Panel(
            "Weight version",
            "Version of the weights that each instance serves. Versions should rise together.",
            "none",
            {"{{instance}}": "vigor_weight_version{$of}"},
        ),
        Panel(
            "Publications per hour",
            "Number of versions published in the last hour.",
            "short",
            {"{{instance}}": "changes(vigor_weight_published_timestamp_seconds{$of}[1h])"},
        ),
        Panel(
            "Wait for weights",
            "Time that a score request waits until the version that it names is served.",
            "s",
            quantiles("vigor_weight_wait_seconds"),
        ),
    ],
}
