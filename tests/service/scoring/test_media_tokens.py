"""What stands for an image is refused by name: without the image the score would be that of another input."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tests.support.fake_scorer import FakeScorer
from tests.support.live_service import live_service
from tests.support.tiny_models import tiny_tokenizer
from vigor_service.engine.interface import EngineInfo
from vigor_service.runtime import LoadedModel

IMAGE_TOKEN = 300


class ImageScorer(FakeScorer):
    @property
    def info(self) -> EngineInfo:
        return replace(super().info, media_token_ids=frozenset({IMAGE_TOKEN}))


def test_a_prompt_or_a_completion_with_an_image_is_refused_and_text_is_scored(tmp_path: Path) -> None:
    def load() -> LoadedModel:
        return LoadedModel(ImageScorer(), tiny_tokenizer())  # pyright: ignore[reportArgumentType] - see __main__

    with live_service(tmp_path / "staging", load_model=load) as service:
        text = {"prompt_ids": [1, 2], "completions": [[3], [4]]}
        assert service.score(groups=[text]).status_code == 200
        with_image = {"prompt_ids": [1, 2], "completions": [[3], [4, IMAGE_TOKEN]]}
        refused = service.score(groups=[text, with_image])
        assert refused.status_code == 422
        (fault,) = refused.json()["errors"]
        assert fault["loc"] == ["groups", 1, "completions", 1]
        assert "token 300, which stands for an image" in fault["msg"]
        in_prompt = {"prompt_ids": [1, IMAGE_TOKEN], "completions": [[3], [4]]}
        assert len(service.score(groups=[in_prompt]).json()["errors"]) == 2
