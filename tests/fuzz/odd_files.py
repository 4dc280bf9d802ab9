"""A directory for weights in which nothing is what it seems."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path


def plant(root: Path) -> None:
    """Make files under the root: pipes, links to themselves and outwards, directories, headers that lie, indexes."""
    os.mkfifo(root / "fifo")
    (root / "itself").symlink_to("itself")
    (root / "outwards").symlink_to("/etc")
    (root / "directory").mkdir()
    (root / "a").mkdir()
    (root / "a" / "model.safetensors").write_bytes(_safetensors(2**40))
    (root / "b").mkdir()
    os.mkfifo(root / "b" / "model.safetensors")
    (root / "c").mkdir()
    index = {f"tensor.{number}": f"{number}.safetensors" for number in range(5000)}
    (root / "c" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (root / "d").mkdir()
    (root / "d" / "model.safetensors.index.json").write_text('{"weight_map": {"x": "../../etc/passwd", "y": "y.bin"}}')
    (root / "e").mkdir()
    (root / "e" / "model.safetensors.index.json").write_text("[" * 100_000)


def _safetensors(end: int) -> bytes:
    header = json.dumps({"lm_head.weight": {"dtype": "F32", "shape": [end // 4], "data_offsets": [0, end]}}).encode()
    return struct.pack("<Q", len(header)) + header
