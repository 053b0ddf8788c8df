"""Train TRL's DPOTrainer on curated pairs and measure it on held-out pairs; or score any model folder the same way.

    run.py train MODEL_DIR train.jsonl heldout.jsonl --learning-rate 1e-5 --seed 0 --out result.json
    run.py score MODEL_DIR BASE_DIR heldout.jsonl --out result.json

The pair files are those `druthers curate` writes. This file needs the packages of requirements.txt and nothing else.
Shapes: T tokens of one sequence, R response tokens, V vocabulary, H hidden size; batch size is always 1 here.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from trl.trainer.dpo_trainer import DPOTrainer

NORMAL_975 = 1.959963984540054  # 97.5 % quantile of the standard normal: a two-sided 95 % interval
PACKAGES = ("trl", "torch", "transformers", "accelerate", "datasets")
SETTLED = {"p": 1.0, "margin": 0.0, "weight": 1.0, "tools": None}  # the only values TRL's sigmoid loss can express


@dataclass(frozen=True)
class Pair:
    """One line of a pair file, as chat messages."""

    id: str
    prompt: list[dict[str, str]]
    chosen: list[dict[str, str]]
    rejected: list[dict[str, str]]


@dataclass(frozen=True)
class Tokens:
    """A pair as ids; both responses end with the end-of-turn token."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]

    @property
    def longest(self) -> int:
        """Tokens of the longer of the two sequences."""
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))


@dataclass(frozen=True)
class Logps:
    """Log-probability of each response given the prompt, summed over its tokens, in nats."""

    chosen: float
    rejected: float


@dataclass(frozen=True)
class Recipe:
    """What one training run is made of; the rest stands in `dpo_config`."""

    learning_rate: float
    seed: int
    beta: float
    pairs_per_step: int
    micro_batch: int
    max_length: int
    order: str


def read_pairs(path: Path, *, limit: int | None) -> list[Pair]:
    """The first `limit` pairs of a pair file; ValueError naming the line where a pair says more than TRL can use."""
    with path.open(encoding="utf-8") as lines:
        pairs = [_pair(json.loads(line), where=f"{path}:{i}") for i, line in enumerate(lines, 1) if line.strip()]
    if not pairs:
        raise ValueError(f"{path}: no pairs; give the file that curation wrote")
    return pairs[:limit]


def _pair(row: dict[str, Any], *, where: str) -> Pair:
    for name, settled in SETTLED.items():
        if row.get(name, settled) != settled:
            raise ValueError(f"{where}: {name} is {row[name]!r}, which TRL ignores; compare on pairs with {settled!r}")
    sides = {side: [_message(m, where=where) for m in row[side]] for side in ("prompt", "chosen", "rejected")}
    return Pair(id=row["id"], **sides)


def _message(message: dict[str, str], *, where: str) -> dict[str, str]:
    if set(message) != {"role", "content"}:
        raise ValueError(f"{where}: a message has the keys {sorted(message)}; only role and content are compared")
    return message


def tokenize(pair: Pair, tokenizer: Any) -> Tokens:
    """Ids of the rendered chat, cut behind the last end-of-turn token (a template may add a line break there).

    Raises ValueError where the prompt is not a prefix of prompt and response.
    """
    prompt = _render(pair.prompt, tokenizer, open_turn=True)
    return Tokens(prompt, *(_response(pair, side, prompt, tokenizer) for side in (pair.chosen, pair.rejected)))


def _response(pair: Pair, side: list[dict[str, str]], prompt: list[int], tokenizer: Any) -> list[int]:
    full = _render(pair.prompt + side, tokenizer, open_turn=False)
    if full[: len(prompt)] != prompt:
        raise ValueError(f"pair {pair.id}: the rendered prompt is not a prefix of prompt and response; drop the pair")
    last = len(full) - full[::-1].index(tokenizer.eos_token_id)
    return full[len(prompt) : last]


def _render(messages: list[dict[str, str]], tokenizer: Any, *, open_turn: bool) -> list[int]:
    ids: list[int] = tokenizer.apply_chat_template(messages, add_generation_prompt=open_turn, return_dict=False)
    return ids


@contextmanager
def scoring(model: Any, *, precision: str) -> Iterator[None]:
    """Evaluation mode, no gradient, and bf16 autocast over the float32 weights unless `precision` is "fp32"."""
    import torch

    was_training = model.training
    model.eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        yield
    model.train(was_training)


def score(model: Any, tokens: Sequence[Tokens], *, precision: str) -> list[Logps]:
    """Log-probabilities of every pair, one sequence a forward pass: no padding, no truncation, no batching."""
    with scoring(model, precision=precision):
        return [Logps(_logp(model, t.prompt, t.chosen), _logp(model, t.prompt, t.rejected)) for t in tokens]


def _logp(model: Any, prompt: list[int], response: list[int]) -> float:
    """Sum of log p(response token | what precedes it), log-softmax in float32, summed in float64."""
    import torch

    ids_1T = torch.tensor([prompt + response])
    hidden_TH = model.base_model(input_ids=ids_1T, use_cache=False).last_hidden_state[0]
    logits_RV = model.get_output_embeddings()(hidden_TH[len(prompt) - 1 : -1])
    logps_RV: torch.Tensor = torch.log_softmax(logits_RV.float(), dim=-1)
    return logps_RV.gather(1, ids_1T[0, len(prompt) :, None]).double().sum().item()


def differences(policy: Sequence[Logps], reference: Sequence[Logps]) -> list[float]:
    """Per pair, log(policy / reference) of chosen minus that of rejected: the implicit reward margin over beta."""
    return [
        (p.chosen - r.chosen) - (p.rejected - r.rejected)  # Rafailov et al. 2023, eq. 5
        for p, r in zip(policy, reference, strict=True)
    ]


def accuracy(values: Sequence[float]) -> dict[str, float]:
    """Share of values above zero, ties half, with its 95 % Wilson interval.

    >>> accuracy([1.0, 2.0, -1.0, 0.0])["value"]
    0.625
    """
    wins, ties = sum(v > 0 for v in values), sum(v == 0 for v in values)
    low, high = wilson(wins + ties / 2, len(values))
    return {"value": (wins + ties / 2) / len(values), "low": low, "high": high, "n": len(values), "ties": ties}


def wilson(successes: float, n: int) -> tuple[float, float]:
    """95 % score interval of a share (Wilson 1927).

    >>> [round(x, 4) for x in wilson(8, 10)]
    [0.4902, 0.9433]
    """
    share, z2 = successes / n, NORMAL_975**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = NORMAL_975 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def heldout_result(policy: Sequence[Logps], reference: Sequence[Logps], pairs: Sequence[Pair]) -> dict[str, Any]:
    """The held-out section of a result: the headline and the numbers it came from, pair by pair."""
    values = differences(policy, reference)
    return {
        "accuracy": accuracy(values),
        "accuracy_base": accuracy([r.chosen - r.rejected for r in reference]),
        "difference": {"mean": statistics.fmean(values), "median": statistics.median(values)},
        "chosen_fell": statistics.fmean(p.chosen < r.chosen for p, r in zip(policy, reference, strict=True)),
        "pairs": [
            {"id": pair.id, "policy": asdict(p), "reference": asdict(r), "difference": d}
            for pair, p, r, d in zip(pairs, policy, reference, values, strict=True)
        ],
    }


def dpo_config(recipe: Recipe, *, scratch: Path) -> Any:
    """The DPOConfig of a recipe; every value that the comparison rests on is spelled out, defaults included."""
    from trl.trainer.dpo_config import DPOConfig

    if recipe.pairs_per_step % recipe.micro_batch:
        raise ValueError(f"{recipe.pairs_per_step} pairs a step is not a multiple of micro-batch {recipe.micro_batch}")
    return DPOConfig(
        output_dir=str(scratch),
        seed=recipe.seed,
        data_seed=recipe.seed,
        # the objective
        loss_type=["sigmoid"],
        beta=recipe.beta,
        label_smoothing=0.0,
        disable_dropout=True,
        precompute_ref_log_probs=True,
        max_length=recipe.max_length,
        truncation_mode="keep_start",
        # the steps
        num_train_epochs=1,
        per_device_train_batch_size=recipe.micro_batch,
        precompute_ref_batch_size=recipe.micro_batch,
        gradient_accumulation_steps=recipe.pairs_per_step // recipe.micro_batch,
        train_sampling_strategy="group_by_length" if recipe.order == "length" else "random",
        remove_unused_columns=False,  # the sampler looks for the "length" column after the unused ones are gone
        optim="adamw_torch_fused",
        adam_beta1=0.9,
        adam_beta2=0.999,
        adam_epsilon=1e-8,
        weight_decay=0.0,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,  # below 1 it is a share of all steps
        max_grad_norm=1.0,
        # the machine
        use_cpu=True,
        bf16=True,  # autocast; the weights stay float32
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
        # nothing beside the training
        eval_strategy="no",
        save_strategy="no",
        report_to="none",
        logging_steps=1,
    )


def build_trainer(
    model: Any, tokenizer: Any, pairs: Sequence[Pair], tokens: Sequence[Tokens], config: Any
) -> DPOTrainer:
    """A trainer with tokenized pairs and their reference log-probabilities: the latter are computed in here."""
    from datasets import Dataset
    from trl.trainer.dpo_trainer import DPOTrainer

    rows = [
        {"prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected, "length": t.longest}
        for p, t in zip(pairs, tokens, strict=True)
    ]
    return DPOTrainer(model=model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)


def truncation(trainer: DPOTrainer, *, offered: int, max_length: int) -> dict[str, int]:
    """How many pairs TRL dropped (prompt alone too long) or will cut, read from its own tokenized rows."""
    rows = trainer.train_dataset.select_columns(["prompt_ids", "chosen_ids", "rejected_ids"])
    longest = [len(r["prompt_ids"]) + max(len(r["chosen_ids"]), len(r["rejected_ids"])) for r in rows]
    cut = sum(length > max_length for length in longest)
    return {"dropped": offered - len(longest), "cut": cut, "longest": max(longest, default=0)}


@contextmanager
def watching_dtype(model: Any) -> Iterator[set[str]]:
    """Collects the dtypes in which the first attention projection really computes."""
    seen: set[str] = set()
    projection = model.base_model.layers[0].self_attn.q_proj
    handle = projection.register_forward_hook(lambda module, args, output: seen.add(str(output.dtype)))
    yield seen
    handle.remove()


def in_effect(trainer: DPOTrainer, *, dtypes: set[str]) -> dict[str, Any]:
    """What the trained trainer shows of its settings: observed on its parts, not copied from the configuration."""
    import torch

    # accelerate wraps the optimizer that torch made
    optimizer = trainer.optimizer.optimizer
    dropouts = [m.p for m in trainer.model.modules() if isinstance(m, torch.nn.Dropout)]
    return {
        "compute": sorted(dtypes),
        "weights": sorted({str(p.dtype) for p in trainer.model.parameters()}),
        "optimizer": {"class": type(optimizer).__name__}
        | {k: optimizer.defaults[k] for k in ("betas", "eps", "fused")}
        | {"weight_decay": sorted({g["weight_decay"] for g in optimizer.param_groups})},
        "sampler": type(trainer._get_train_sampler()).__name__,
        "reference_precomputed": "ref_chosen_logps" in trainer.train_dataset.column_names,
        "reference_model_in_memory": trainer.ref_model is not None,
        "gradient_checkpointing": trainer.model.is_gradient_checkpointing,
        "dropout": max(dropouts, default=0.0),
        "attention": trainer.model.config._attn_implementation,
        "steps": trainer.state.global_step,
    }


def check_in_effect(found: dict[str, Any], *, steps: int) -> None:
    """Raises RuntimeError where the run was not the one that the comparison describes."""
    wanted = {
        "compute": ["torch.bfloat16"],
        "weights": ["torch.float32"],
        "reference_precomputed": True,
        "reference_model_in_memory": False,
        "gradient_checkpointing": False,
        "dropout": 0.0,
        "steps": steps,  # one epoch, the last step on the pairs that are left
    }
    wrong = {name: found[name] for name, value in wanted.items() if found[name] != value}
    if wrong:
        raise RuntimeError(f"TRL ran with {wrong}, but the comparison needs { ({k: wanted[k] for k in wrong}) }")


def load(folder: str) -> Any:
    """The causal language model of a folder with float32 weights and SDPA attention."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")


def load_tokenizer(folder: str) -> Any:
    """The tokenizer of a model folder."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def peak_gib() -> float:
    """Largest resident size of this process so far, in GiB."""
    scale = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, in KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 2**30


def environment() -> dict[str, Any]:
    """Versions and machine."""
    import torch

    packages = {name: version(name) for name in PACKAGES}
    machine = {"platform": platform.platform(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    return {"python": platform.python_version(), "packages": packages, **machine}


def file_record(path: Path, *, pairs: int) -> dict[str, Any]:
    """Name, hash of the whole file, and pairs used of it."""
    return {"name": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "pairs": pairs}


def write_json(path: Path, value: object) -> None:
    """Writes JSON to a temporary name beside `path`, then renames: the file is whole or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("x", encoding="utf-8") as file:
            json.dump(value, file, indent=1, allow_nan=False)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def train(options: argparse.Namespace) -> dict[str, Any]:
    """One epoch of TRL with its result; the base model is scored before the first step, so one copy is enough."""
    recipe = Recipe(**{name: getattr(options, name) for name in Recipe.__dataclass_fields__})
    pairs = read_pairs(options.train, limit=options.limit)
    heldout = read_pairs(options.heldout, limit=options.limit)
    tokenizer, model = load_tokenizer(options.model), load(options.model)
    tokens = [tokenize(pair, tokenizer) for pair in pairs]
    heldout_tokens = [tokenize(pair, tokenizer) for pair in heldout]
    seconds, mark = {}, time.perf_counter()
    reference = score(model, heldout_tokens, precision="bf16")
    seconds["score_base"], mark = time.perf_counter() - mark, time.perf_counter()
    memory = {"before": peak_gib()}
    with tempfile.TemporaryDirectory() as scratch, watching_dtype(model) as dtypes:
        trainer = build_trainer(model, tokenizer, pairs, tokens, dpo_config(recipe, scratch=Path(scratch)))
        cut = truncation(trainer, offered=len(pairs), max_length=recipe.max_length)
        seconds["prepare"], mark = time.perf_counter() - mark, time.perf_counter()
        trainer.train()
        seconds["train"], mark = time.perf_counter() - mark, time.perf_counter()
    memory["train"] = peak_gib()
    found = in_effect(trainer, dtypes=dtypes)
    check_in_effect(found, steps=math.ceil(len(trainer.train_dataset) / recipe.pairs_per_step))
    policy = score(model, heldout_tokens, precision="bf16")
    seconds["score_policy"] = time.perf_counter() - mark
    if options.save:
        model.save_pretrained(options.save)
        tokenizer.save_pretrained(options.save)
    wall = seconds["prepare"] + seconds["train"]
    return {
        "kind": "train",
        "recipe": asdict(recipe),
        "heldout": heldout_result(policy, reference, heldout),
        "seconds": {**seconds, "wall": wall, "wall_per_pair": wall / len(pairs)},
        "peak_gib": memory,
        "truncation": cut,
        "in_effect": found,
        "inputs": {
            "train": file_record(options.train, pairs=len(pairs)),
            "heldout": file_record(options.heldout, pairs=len(heldout)),
        },
        "environment": environment(),
        "log": trainer.state.log_history,
    }


def score_folders(options: argparse.Namespace) -> dict[str, Any]:
    """The held-out section for a finished model folder, whoever trained it, tokenized by the base's tokenizer."""
    heldout = read_pairs(options.heldout, limit=options.limit)
    tokenizer = load_tokenizer(options.base)
    tokens = [tokenize(pair, tokenizer) for pair in heldout]
    started = time.perf_counter()
    policy, reference = (score(load(folder), tokens, precision="bf16") for folder in (options.model, options.base))
    return {
        "kind": "score",
        "heldout": heldout_result(policy, reference, heldout),
        "seconds": {"score": time.perf_counter() - started},
        "inputs": {"heldout": file_record(options.heldout, pairs=len(heldout))},
        "environment": environment(),
    }


def arguments() -> argparse.ArgumentParser:
    """The two commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    both = argparse.ArgumentParser(add_help=False)
    both.add_argument("--out", type=Path, required=True, help="JSON file to write")
    both.add_argument("--limit", type=int, help="use the first N pairs of each file, for a trial")

    training = commands.add_parser("train", parents=[both], help="train TRL and measure it")
    training.set_defaults(command=train)
    training.add_argument("model", help="folder of the base model, with tokenizer and chat template")
    training.add_argument("train", type=Path, help="pair file to train on")
    training.add_argument("heldout", type=Path, help="pair file to measure on")
    training.add_argument("--learning-rate", type=float, required=True)
    training.add_argument("--seed", type=int, required=True)
    training.add_argument("--beta", type=float, default=0.1)
    training.add_argument("--pairs-per-step", type=int, default=16)
    training.add_argument("--micro-batch", type=int, default=1, help="pairs a forward pass")
    training.add_argument("--max-length", type=int, default=1536, help="tokens of prompt and response")
    training.add_argument("--order", choices=("random", "length"), default="random", help="how TRL draws its batches")
    training.add_argument("--save", help="folder for the trained model; without it nothing is kept")

    scored = commands.add_parser("score", parents=[both], help="measure a model folder")
    scored.set_defaults(command=score_folders)
    scored.add_argument("model", help="folder of the trained, merged model")
    scored.add_argument("base", help="folder of the base model: the reference, and the tokenizer of both")
    scored.add_argument("heldout", type=Path, help="pair file to measure on")
    return parser


def main() -> None:
    """Runs a command, writes its result and prints the headline."""
    options = arguments().parse_args()
    result = options.command(options)
    write_json(options.out, result)
    headline = {"out": str(options.out), **result["heldout"]["accuracy"], "seconds": result["seconds"]}
    sys.stdout.write(json.dumps(headline) + "\n")


if __name__ == "__main__":
    main()
