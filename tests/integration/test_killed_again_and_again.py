"""A service that is killed at random moments under load and pushes: every restart serves what was committed."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.service_process import ServiceProcess, service_process
from tests.support.tiny_models import save_tiny_checkpoint, tiny_model
from vigor_client import VigorClient, VigorError, WeightSnapshot, digest_of_tensors
from vigor_client.schemas.weights import TensorList

NUM_KILLS = int(os.environ.get("VIGOR_TEST_KILLS", "200"))
MAX_SECONDS_TO_LIVE = 1.5
PROMPT, COMPLETIONS = [1, 2, 3], [[4, 5], [6], [7, 8, 9]]
CHANGED = "model.embed_tokens.weight"
FULL_EVERY = 4

Tensors = dict[str, torch.Tensor]


class History:
    """What was pushed: version by version, the tensors of each, and which a commit was answered for."""

    def __init__(self, base: Tensors) -> None:
        self._base = base
        self._norms: dict[int, list[float]] = {}
        self._snapshot = WeightSnapshot()
        self.sent = 0
        self.committed = 0
        self.encodings: list[str] = []

    def tensors(self, version: int) -> Tensors:
        table = self._base[CHANGED]
        changed = (torch.arange(len(table)) % 9 == version % 9)[:, None]
        return {**self._base, CHANGED: table + 0.01 * version * changed}

    def push(self, client: VigorClient) -> None:
        """Push the next version: mostly what changed, now and then all weights."""
        version = self.sent + 1
        if version % FULL_EVERY == 1:
            self._snapshot = WeightSnapshot()
        self.sent = version
        published = client.publish_weights(self.tensors(version), weight_version=version, snapshot=self._snapshot)
        self.encodings.append(str(published.encoding))
        self.committed = version

    def norms(self, version: int) -> list[float]:
        """Gradient norms under the weights of a version, computed without the service."""
        if version not in self._norms:
            self._norms = {version: reference_norms(self.tensors(version))}
        return self._norms[version]


def reference_norms(tensors: Tensors) -> list[float]:
    """The norm of the gradient of each completion's mean negative log-likelihood, one backward pass each."""
    model = tiny_model("llama")
    model.load_state_dict(tensors, strict=False)
    parameters = list(model.parameters())
    norms: list[float] = []
    for completion in COMPLETIONS:
        ids = torch.tensor([PROMPT + completion])
        logits = model(input_ids=ids).logits[0, len(PROMPT) - 1 : -1].double()
        loss = torch.nn.functional.cross_entropy(logits, ids[0, len(PROMPT) :])
        gradients = torch.autograd.grad(loss, parameters)
        norms.append(float(torch.stack([gradient.double().norm() for gradient in gradients]).norm()))
    return norms


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
def test_every_restart_serves_committed_weights_and_their_norms(tmp_path: Path) -> None:
    checkpoint = save_tiny_checkpoint(tmp_path / "checkpoint")
    history, chance = History(load_file(checkpoint / "model.safetensors")), random.Random(0)
    given = ("--model", str(checkpoint), "--state-dir", str(tmp_path / "state"), "--score-cache-entries", "0")
    served: list[int] = []
    for _ in range(NUM_KILLS):
        with service_process(tmp_path, *given) as service:
            served.append(assert_serves_what_was_committed(service, history))
            with load(service, history) as is_pushing:
                is_pushing.wait(30)
                threading.Event().wait(chance.uniform(0, MAX_SECONDS_TO_LIVE))
                service.kill()
    with service_process(tmp_path, *given) as service:
        served.append(assert_serves_what_was_committed(service, history))
    new = sum(later > earlier for earlier, later in pairwise(served))
    kinds = {kind: history.encodings.count(kind) for kind in ("full", "delta")}
    print(f"{NUM_KILLS} kills, {history.sent} pushes sent, answered {kinds}; {new} restarts served newer weights")
    assert new > 0
    assert all(kinds.values())


def assert_serves_what_was_committed(service: ServiceProcess, history: History) -> int:
    """Return the version that is served: the last that was committed, or one that was on its way when it was killed."""
    with VigorClient(service.url, timeout_seconds=60) as client:
        weights, wanted = client.weights(), client.tensors()
        version = weights.weight_version
        assert weights.state == "ready"
        assert history.committed <= version <= history.sent
        assert weights.weight_digest == digest_of(history, version, wanted)
        group = client.score([{"prompt_ids": PROMPT, "completions": COMPLETIONS}]).groups[0]
    norms = [completion.grad_norm for completion in group.completions]
    assert norms == pytest.approx(history.norms(version), rel=1e-4)
    history.committed = version
    return version


def digest_of(history: History, version: int, wanted: TensorList) -> str:
    return digest_of_tensors(history.tensors(version), wanted)


@contextmanager
def load(service: ServiceProcess, history: History) -> Iterator[threading.Event]:
    """Score and push from threads until the service is gone; the event tells that pushing has begun."""
    is_pushing, is_over = threading.Event(), threading.Event()

    def push(client: VigorClient) -> None:
        is_pushing.set()
        history.push(client)

    def score(client: VigorClient) -> None:
        client.score([{"prompt_ids": PROMPT, "completions": COMPLETIONS}])

    def repeat(call: Callable[[VigorClient], object]) -> None:
        with VigorClient(service.url, timeout_seconds=30, max_retries=0) as client:
            while not is_over.is_set():
                try:
                    call(client)
                except VigorError:
                    is_over.wait(0.01)

    threads = [threading.Thread(target=repeat, args=(call,)) for call in (push, score, score)]
    for thread in threads:
        thread.start()
    try:
        yield is_pushing
    finally:
        is_over.set()
        for thread in threads:
            thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
