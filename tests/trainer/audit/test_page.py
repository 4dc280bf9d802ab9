"""The page of an audit."""

from __future__ import annotations

import re
from pathlib import Path

from tests.trainer.audit.planted import WEIGHTS, PlantedService, group
from vigor_trainer.audit.metrics import audit_metrics
from vigor_trainer.audit.page import write_page
from vigor_trainer.audit.scoring import REWARDS, audited
from vigor_trainer.audit.verdict import verdict_of


def test_the_page_shows_the_verdict_and_every_reward_and_asks_for_nothing(tmp_path: Path) -> None:
    completions = [each for number in range(12) for each in group(number, [10, 20, 11, 21], [True, False] * 2)]
    scored = audited(completions, PlantedService(), WEIGHTS, seed=0)
    metrics = audit_metrics(scored)
    verdict = verdict_of(metrics)
    write_page(tmp_path / "audit.html", metrics, verdict, scored, title="Audit of <tiny>")
    page = (tmp_path / "audit.html").read_text()
    assert verdict.sentence in page
    assert "Audit of &lt;tiny&gt;" in page
    assert page.count('class="plotly-graph-div"') == 4
    for name in REWARDS:
        assert f"<tr><th>{name.replace('_', ' ')}</th>" in page
    own = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"(?:src|href)=", own)
    assert "default-src 'none'" in own
