"""An output folder of TRL's DPOTrainer: the files and keys that trl 1.16.0 with transformers 5.23.0 wrote for a run of
six steps on the tiny model of tests/tiny.py (16 pairs, 8 held out), with the keys that nothing here reads left out.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LOG: list[dict[str, Any]] = [
    {
        "epoch": 0.5,
        "learning_rate": 8.333e-4,
        "loss": 0.5019,
        "num_tokens": 460.0,
        "rewards/accuracies": 0.5,
        "step": 2,
    },
    {
        "epoch": 0.5,
        "eval_loss": 0.1656,
        "eval_rewards/accuracies": 0.75,
        "eval_rewards/margins": 1.7191,
        "eval_runtime": 11.7297,
        "eval_samples_per_second": 0.682,
        "step": 2,
    },
    {"epoch": 1.0, "learning_rate": 5e-4, "loss": 0.1402, "num_tokens": 924.0, "rewards/accuracies": 1.0, "step": 4},
    {
        "epoch": 1.0,
        "eval_loss": 0.0687,
        "eval_rewards/accuracies": 0.875,
        "eval_rewards/margins": 2.6528,
        "eval_runtime": 3.6771,
        "eval_samples_per_second": 2.176,
        "step": 4,
    },
    {
        "epoch": 1.5,
        "learning_rate": 1.667e-4,
        "loss": 0.0667,
        "num_tokens": 1388.0,
        "rewards/accuracies": 1.0,
        "step": 6,
    },
    {
        "epoch": 1.5,
        "eval_loss": 0.0482,
        "eval_rewards/accuracies": 1.0,
        "eval_rewards/margins": 3.0194,
        "eval_runtime": 1.2721,
        "eval_samples_per_second": 6.289,
        "step": 6,
    },
    {
        "epoch": 1.5,
        "step": 6,
        "total_flos": 182052864.0,
        "train_loss": 0.2363,
        "train_runtime": 64.4745,
        "train_samples_per_second": 0.372,
        "train_steps_per_second": 0.093,
    },
]


def state(**changes: Any) -> dict[str, Any]:
    """trainer_state.json."""
    own = {
        "best_global_step": 6,
        "best_metric": 0.0482,
        "best_model_checkpoint": "out/checkpoint-6",
        "epoch": 1.5,
        "global_step": 6,
        "max_steps": 6,
        "num_train_epochs": 2,
        "total_flos": 182052864.0,
        "train_batch_size": 4,
        "log_history": LOG,
    }
    return own | changes


def write_trl(folder: Path, **changes: Any) -> Path:
    """The folder with its model, adapter and card, and a pickle that must not be opened."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "trainer_state.json").write_text(json.dumps(state(**changes)), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}))
    (folder / "README.md").write_text(
        "---\nbase_model: org/tiny\nlibrary_name: transformers\ntags:\n- dpo\n---\n# Card\n"
    )
    (folder / "training_args.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    (folder / "checkpoint-4").mkdir(exist_ok=True)
    return folder
