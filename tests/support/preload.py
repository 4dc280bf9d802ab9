"""What every service loads first: imported once, by the fork server of `preloaded_process`."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported

import torch  # noqa: F401
import transformers.models.auto.modeling_auto  # noqa: F401

import vigor_service.__main__
import vigor_service.app
import vigor_service.engine.engine  # noqa: F401
