"""What programs of this repository load first: imported once, by the process that `fork_server` forks."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported

import gc

import torch.distributed  # noqa: F401
import transformers.models.auto.modeling_auto  # noqa: F401
import trl.trainer.grpo_trainer  # noqa: F401

import vigor_service.__main__
import vigor_service.app
import vigor_service.engine.engine  # noqa: F401

gc.collect()
gc.freeze()  # or the first collection of each process would copy all of it
