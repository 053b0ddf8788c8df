"""TRL's DPOTrainer as a contender, tuned or with its defaults. Run by bench.py with SPEC.json and RESULT.json.

What both levels share is what the comparison holds equal: ids, order, pairs a step, learning rate, AdamW without decay,
clipping, no truncation, the CPU. The ids come ready made: tokenizing, the only method of the trainer that is replaced,
is skipped.
"""

from __future__ import annotations

import sys
import tempfile
import time
from typing import Any

import cell
import torch
from datasets import Dataset, disable_progress_bars
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from transformers.utils import logging
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer


class Trainer(DPOTrainer):
    """DPOTrainer on ids, with its reference scoring timed."""

    reference_seconds = 0.0

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def _precompute_ref_logps(self, *args: Any, **kwargs: Any) -> Any:
        since = time.perf_counter()
        found = super()._precompute_ref_logps(*args, **kwargs)
        self.reference_seconds += time.perf_counter() - since
        return found


class Watch(TrainerCallback):
    """The clock of the steps; TRL's own line of a step comes after it has ended and gives loss and norm."""

    def __init__(self, record: cell.Record) -> None:
        self.record = record

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.record.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.record.stepped(loss=float("nan"), norm=float("nan"))

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if logs and "grad_norm" in logs:
            self.record.losses[-1], self.record.norms[-1] = float(logs["loss"]), float(logs["grad_norm"])


def config(spec: cell.Spec, *, scratch: str) -> DPOConfig:
    """TRL's settings: those held equal, and for the tuned level those that make it fast on a CPU."""
    equal = {
        "output_dir": scratch,
        "num_train_epochs": 1,
        "train_sampling_strategy": "sequential",
        "learning_rate": cell.RATE[spec.mode],
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": cell.CLIP,
        "beta": cell.BETA,
        "max_length": None,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "save_strategy": "no",
        "report_to": "none",
        "logging_steps": 1,
        "disable_tqdm": True,
    }
    micro = (
        spec.micro_batch if spec.level == "tuned" else min(DPOConfig.per_device_train_batch_size, spec.pairs_per_step)
    )
    equal |= {"per_device_train_batch_size": micro, "gradient_accumulation_steps": spec.pairs_per_step // micro}
    if spec.level == "default":
        return DPOConfig(**equal)
    tuned = {
        "bf16": True,
        "gradient_checkpointing": False,
        "precompute_ref_log_probs": True,
        "precompute_ref_batch_size": micro,
        "optim": "adamw_torch_fused",
    }
    return DPOConfig(**equal, **tuned)


def main() -> None:
    """One cell."""
    spec, record = cell.read_spec(), cell.Record()
    steps = cell.steps_of(cell.read_pairs(spec.pairs_file), steps=spec.steps, size=spec.pairs_per_step)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    disable_progress_bars()
    torch.set_num_threads(spec.threads)
    adapter = None
    if spec.mode == "lora":
        from peft import LoraConfig

        adapter = LoraConfig(**cell.LORA)
    record.imported()
    rows = [
        {"prompt_ids": list(p.prompt), "chosen_ids": list(p.chosen), "rejected_ids": list(p.rejected)}
        for step in steps
        for p in step
    ]
    tokenizer = AutoTokenizer.from_pretrained(spec.model)
    model = AutoModelForCausalLM.from_pretrained(spec.model, dtype=torch.float32, attn_implementation=spec.attention)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(
            model=model,
            args=config(spec, scratch=scratch),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            peft_config=adapter,
            callbacks=[Watch(record)],
        )
        dtypes = set()
        model.base_model.layers[0].self_attn.q_proj.register_forward_hook(lambda m, a, out: dtypes.add(str(out.dtype)))
        record.reference = trainer.reference_seconds
        sys.stdout = sys.stderr  # a line a step, which is not part of the result
        trainer.train()
    cell.write_result(spec, record, steps, in_effect=checked(spec, in_effect(trainer, dtypes)))


def in_effect(trainer: Trainer, dtypes: set[str]) -> dict[str, Any]:
    """What the finished trainer shows of its settings, observed on its parts."""
    trained = [w for w in trainer.model.parameters() if w.requires_grad]
    return {
        "compute": sorted(dtypes),
        "weights": sorted({str(w.dtype) for w in trained}),
        "fused": trainer.optimizer.optimizer.defaults["fused"],
        "sampler": type(trainer._get_train_sampler()).__name__,
        "reference_precomputed": "ref_chosen_logps" in trainer.train_dataset.column_names,
        "reference_model_in_memory": trainer.ref_model is not None,
        "gradient_checkpointing": bool(trainer.args.gradient_checkpointing),
        "attention": trainer.model.config._attn_implementation,
        "micro_batch": trainer.args.per_device_train_batch_size,
        "threads": torch.get_num_threads(),
    }


def checked(spec: cell.Spec, found: dict[str, Any]) -> dict[str, Any]:
    """`found`; raises RuntimeError where the run was not the one that the comparison describes."""
    tuned = spec.level == "tuned"
    wanted = {
        "compute": ["torch.bfloat16"],
        "weights": ["torch.float32"],
        "fused": True,
        "sampler": "SequentialSampler",
        "reference_precomputed": tuned,
        "reference_model_in_memory": not tuned and spec.mode == "full",
        "gradient_checkpointing": not tuned,
    }
    wrong = {name: (found[name], value) for name, value in wanted.items() if found[name] != value}
    if wrong:
        raise RuntimeError(f"TRL ran otherwise than the comparison says (found, wanted): {wrong}")
    return found


if __name__ == "__main__":
    main()
