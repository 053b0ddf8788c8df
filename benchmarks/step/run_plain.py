"""The loop that one writes first: padded rows, full logits, the reference beside the policy in every step.

Run by bench.py with SPEC.json and RESULT.json. Letters: S rows (chosen ones, then rejected ones), T tokens, V words.
"""

from __future__ import annotations

import cell
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.utils import logging

Batch = tuple[Tensor, Tensor, Tensor]


def collate(pairs: list[cell.Ids], pad: int) -> Batch:
    """Ids, mask of the tokens that are no padding, and mask of the scored ones, each (S, T)."""
    rows = [(p.prompt, r) for side in ("chosen", "rejected") for p in pairs for r in [getattr(p, side)]]
    width = max(len(prompt) + len(response) for prompt, response in rows)
    ids_ST = torch.full((len(rows), width), pad)
    real_ST, scored_ST = torch.zeros_like(ids_ST), torch.zeros(len(rows), width)
    for i, (prompt, response) in enumerate(rows):
        stop = len(prompt) + len(response)
        ids_ST[i, :stop] = torch.tensor(prompt + response)
        real_ST[i, :stop] = 1
        scored_ST[i, len(prompt) : stop] = 1
    return ids_ST, real_ST, scored_ST


def logps(model: torch.nn.Module, batch: Batch) -> Tensor:
    """Summed log-probabilities of the responses, (2, pairs)."""
    ids_ST, real_ST, scored_ST = batch
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits_STV = model(input_ids=ids_ST, attention_mask=real_ST, use_cache=False).logits[:, :-1]
    logp_ST = logits_STV.float().log_softmax(-1).gather(-1, ids_ST[:, 1:, None])[..., 0]
    return (logp_ST * scored_ST[:, 1:]).sum(-1).view(2, -1)


@torch.no_grad()
def reference_logps(policy: torch.nn.Module, reference: torch.nn.Module | None, batch: Batch) -> Tensor:
    """Those of the second model, or of the policy with its adapter off."""
    if reference is not None:
        return logps(reference, batch)
    with policy.disable_adapter():
        return logps(policy, batch)


def main() -> None:
    """One cell."""
    spec, record = cell.read_spec(), cell.Record()
    steps = cell.steps_of(cell.read_pairs(spec.pairs_file), steps=spec.steps, size=spec.pairs_per_step)
    logging.set_verbosity_error()
    torch.set_num_threads(spec.threads)
    if spec.mode == "lora":
        from peft import LoraConfig, get_peft_model
    record.imported()

    def load() -> torch.nn.Module:
        how = {"dtype": torch.float32, "attn_implementation": spec.attention}
        return AutoModelForCausalLM.from_pretrained(spec.model, **how)

    policy = get_peft_model(load(), LoraConfig(**cell.LORA)) if spec.mode == "lora" else load()
    reference = None if spec.mode == "lora" else load()
    weights = [w for w in policy.parameters() if w.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=cell.RATE[spec.mode], weight_decay=0.0, fused=True)
    record.start()
    for step in steps:
        loss = 0.0
        for at in range(0, len(step), spec.micro_batch):
            batch = collate(step[at : at + spec.micro_batch], pad=0)
            ratio_CB = logps(policy, batch) - reference_logps(policy, reference, batch)
            part = -F.logsigmoid(cell.BETA * (ratio_CB[0] - ratio_CB[1])).sum() / len(step)
            part.backward()
            loss += part.item()
        norm = torch.nn.utils.clip_grad_norm_(weights, cell.CLIP).item()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        record.stepped(loss=loss, norm=norm)
    effect = {"attention": policy.config._attn_implementation, "weights": sorted({str(w.dtype) for w in weights})}
    cell.write_result(spec, record, steps, in_effect=effect)


if __name__ == "__main__":
    main()
