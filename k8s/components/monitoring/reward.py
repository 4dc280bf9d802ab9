"""The panels for who trains: norms, length bias, ties and duplicates, versions. Each instance is a run of its own."""

from __future__ import annotations

from k8s.components.monitoring.panel import Panel, buckets, quantiles, rate, ratio

_COMPLETION = 'kind="completion",'
_NOT_OK = 'status!="ok",'

REWARD: dict[str, list[Panel]] = {
    "Norms": [
        Panel(
            "Scaled norms",
            "Norm of a completion's gradient times the root of its length: what is ranked, smallest first.",
            "none",
            quantiles("vigor_scaled_grad_norm", of=(0.1, 0.5, 0.9), apart=True),
        ),
        Panel(
            "Distribution of scaled norms",
            "Completions in each range of norms.",
            "short",
            buckets("vigor_scaled_grad_norm"),
            "heatmap",
        ),
        Panel(
            "Spread within groups",
            "Standard deviation of a group's norms by their mean. Near 0 the ranking is mostly noise.",
            "none",
            quantiles("vigor_norm_spread_ratio", of=(0.1, 0.5, 0.9), apart=True),
        ),
    ],
    "Length": [
        Panel(
            "Reward and length",
            "Mean of the groups' Spearman correlations. Near 1 longer answers win whatever they say, near -1 shorter.",
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
            "Groups in each range of the correlation.",
            "short",
            buckets("vigor_reward_length_correlation"),
            "heatmap",
        ),
        Panel(
            "Length",
            "Mean tokens of a completion.",
            "suffix: tokens",
            {
                "{{instance}}": f"{rate('vigor_tokens_total', where=_COMPLETION, by='instance')}"
                f" / {rate('vigor_completions_total', by='instance')}"
            },
        ),
    ],
    "Ties and duplicates": [
        Panel(
            "Ties",
            "Share of completions that have the rank of another one of their group.",
            "percentunit",
            {"{{instance}}": ratio("vigor_tied_completions_total", "vigor_completions_total", by="instance")},
        ),
        Panel(
            "Duplicates",
            "Share of completions that came before in their group: the policy repeats itself.",
            "percentunit",
            {"{{instance}}": ratio("vigor_duplicate_completions_total", "vigor_completions_total", by="instance")},
        ),
        Panel(
            "Without a norm of their own",
            "Share of completions that were empty, cut off, or whose numbers were not finite.",
            "percentunit",
            {
                "{{status}} {{instance}}": f"{rate('vigor_completions_total', where=_NOT_OK, by='status, instance')}"
                f" / on (instance) group_left () {rate('vigor_completions_total', by='instance')}"
            },
        ),
    ],
    "Versions": [
        Panel(
            "Version",
            "The version that each instance serves. They should go up together.",
            "none",
            {"{{instance}}": "vigor_weight_version{$of}"},
        ),
        Panel(
            "Publications",
            "Versions that were published in an hour.",
            "short",
            {"{{instance}}": "changes(vigor_weight_published_timestamp_seconds{$of}[1h])"},
        ),
        Panel(
            "Waiting for a version",
            "Seconds from a score request that names weights until these served.",
            "s",
            quantiles("vigor_weight_wait_seconds"),
        ),
    ],
}
