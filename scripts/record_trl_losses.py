"""Record what TRL's own trainers compute on a few random pairs: `python scripts/record_trl_losses.py FILE`.

Run once in an environment with TRL 0.24 (`trl==0.24.0 transformers==4.57.3 datasets==3.6.0 accelerate==1.10.1
peft==0.17.1`) and once in one with TRL 1.x (`trl==1.16.0 transformers==5.23.0 datasets`); each writes its part of FILE
and leaves the other. The trainers' methods are called on a stand-in for the trainer, with a model that looks its logits
up, so every number is TRL's code; this script knows no loss. `tests/test_losses_against_trl.py` reads the file.
"""

from __future__ import annotations

import json
import random
import sys
from collections import defaultdict
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
import trl
from torch import Tensor

VOCABULARY, PAIRS, PROMPT = 11, 5, 2
Tree = dict[str, Any]


def draw_pairs() -> list[Tree]:
    """Prompts, responses of 3 to 9 tokens, and the logits of policy and reference at every position."""
    draw = random.Random(20)

    def logits(length: int) -> list[list[float]]:
        return [[round(draw.gauss(0, 2), 3) for _ in range(VOCABULARY)] for _ in range(length)]

    def near(table: list[list[float]]) -> list[list[float]]:
        return [[round(x + draw.gauss(0, 0.7), 3) for x in row] for row in table]

    def response(prompt: list[int]) -> Tree:
        tokens = [draw.randrange(1, VOCABULARY) for _ in range(draw.randint(3, 9))]  # 0 is "ignored" in TRL 0.24
        policy = logits(len(prompt) + len(tokens))
        return {"ids": prompt + tokens, "policy": policy, "reference": near(policy)}

    prompts = [[draw.randrange(1, VOCABULARY) for _ in range(PROMPT)] for _ in range(PAIRS)]
    return [{"chosen": response(p), "rejected": response(p), "other": response(p)} for p in prompts]


def scored(of: Tree, who: str) -> Tree:
    """What the package takes of one response: log-probs of its tokens, and log sum p^2 at their positions."""
    table = torch.tensor(of[who], dtype=torch.float64).log_softmax(-1)[PROMPT - 1 : -1]
    tokens = torch.tensor(of["ids"][PROMPT:])
    squares = torch.logsumexp(2 * table, dim=-1)
    return {"logps": table.gather(1, tokens[:, None])[:, 0].tolist(), "log_sum_sq": squares.tolist()}


class Table(torch.nn.Module):
    """A model whose logits are looked up by the tokens of a row."""

    is_gradient_checkpointing = False

    def __init__(self, pairs: list[Tree], who: str, dtype: torch.dtype) -> None:
        super().__init__()
        rows = [pair[side] for pair in pairs for side in ("chosen", "rejected", "other")]
        self.known, self.dtype = {tuple(row["ids"]): row[who] for row in rows}, dtype

    def row(self, ids: Tensor) -> Tensor:
        table = torch.zeros(len(ids), VOCABULARY, dtype=self.dtype)
        found = torch.tensor(self.known[tuple(i for i in ids.tolist() if i)], dtype=self.dtype)
        table[: len(found)] = found
        return table

    def forward(self, input_ids: Tensor, labels: Tensor | None = None, **_: Any) -> SimpleNamespace:
        logits = torch.stack([self.row(ids) for ids in input_ids])
        if labels is None:
            return SimpleNamespace(logits=logits)
        log_p, target = logits[:, :-1].log_softmax(-1), labels[:, 1:]
        picked = log_p.gather(2, target.clamp(min=0)[..., None])[..., 0]
        zero = torch.zeros_like(picked)
        return SimpleNamespace(
            log_probs=torch.where(target >= 0, picked, zero),
            log_sum_sq_probs=torch.logsumexp(2 * log_p, dim=-1),
            entropy=zero,
            mean_logits=zero,
            is_top1=zero > 1,
        )


def same(value: Tensor) -> Tensor:
    """Gathering over one process."""
    return value


ACCELERATOR = SimpleNamespace(device="cpu", use_distributed=False, gather=same, gather_for_metrics=same)


def padded(rows: list[list[int]]) -> Tensor:
    """Rows of tokens to the longest, zeros behind."""
    return torch.tensor([row + [0] * (max(map(len, rows)) - len(row)) for row in rows])


def both_sides(pairs: list[Tree]) -> Tree:
    """The batch of TRL 1.x: chosen above rejected."""
    ids = padded([pair[side]["ids"] for side in ("chosen", "rejected") for pair in pairs])
    mask = (ids > 0).long()
    completion = mask.clone()
    completion[:, :PROMPT] = 0
    return {"input_ids": ids, "attention_mask": mask, "completion_mask": completion}


def in_parts(pairs: list[Tree]) -> Tree:
    """The batch of TRL 0.24's DPO, and of CPO with its labels."""
    batch: Tree = {"prompt_input_ids": padded([pair["chosen"]["ids"][:PROMPT] for pair in pairs])}
    batch["prompt_attention_mask"] = torch.ones_like(batch["prompt_input_ids"])
    for side in ("chosen", "rejected"):
        batch[f"{side}_input_ids"] = padded([pair[side]["ids"][PROMPT:] for pair in pairs])
        batch[f"{side}_attention_mask"] = (batch[f"{side}_input_ids"] > 0).long()
    return batch


def whole(pairs: list[Tree]) -> Tree:
    """The batch of CPO: prompt and response in one row, labels of the response."""
    batch: Tree = {}
    for side in ("chosen", "rejected"):
        ids = padded([pair[side]["ids"] for pair in pairs])
        labels = torch.where(ids > 0, ids, -100)
        labels[:, :PROMPT] = -100
        batch |= {f"{side}_input_ids": ids, f"{side}_attention_mask": (ids > 0).long(), f"{side}_labels": labels}
    return batch


def listed(value: Any) -> list[str]:
    """A name, or a list of them, as a list."""
    return [value] if isinstance(value, str) else list(value)


def dpo_1(pairs: list[Tree], policy: Table, reference: Table, options: Tree) -> float:
    """`DPOTrainer._compute_loss` of TRL 1.x."""
    kinds = listed(options.get("loss_type", "sigmoid"))
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True),
        ref_model=reference,
        accelerator=ACCELERATOR,
        args=SimpleNamespace(gradient_checkpointing_kwargs=None, discopop_tau=options.get("discopop_tau", 0.05)),
        aux_loss_enabled=False,
        ld_alpha=options.get("ld_alpha"),
        precompute_ref_logps=False,
        f_divergence_type=options.get("f_divergence_type", "reverse_kl"),
        f_alpha_divergence_coef=options.get("f_alpha_divergence_coef", 0.5),
        loss_types=kinds,
        loss_weights=options.get("loss_weights") or [1.0] * len(kinds),
        beta=options.get("beta", 0.1),
        label_smoothing=options.get("label_smoothing", 0.0),
        use_weighting=options.get("use_weighting", False),
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
    )
    trainer.model = policy
    return trl.DPOTrainer._compute_loss(trainer, policy, both_sides(pairs), return_outputs=False).item()


def kto_1(pairs: list[Tree], policy: Table, reference: Table, options: Tree) -> float:
    """`KTOTrainer._compute_loss` of TRL 1.x: good and bad answers by turns, mismatched ones beside them."""
    rows = [(pair["chosen" if i % 2 == 0 else "rejected"], pair["other"], i % 2 == 0) for i, pair in enumerate(pairs)]

    def part(which: int, prefix: str) -> Tree:
        ids = padded([row[which]["ids"] for row in rows])
        completion = (ids > 0).long()
        completion[:, :PROMPT] = 0
        names = ("input_ids", "attention_mask", "completion_mask")
        return {f"{prefix}{n}": v for n, v in zip(names, (ids, (ids > 0).long(), completion), strict=True)}

    batch = {**part(0, ""), **part(1, "KL_"), "label": torch.tensor([row[2] for row in rows])}
    for which, name in ((0, "ref_logps"), (1, "ref_KL_logps")):
        batch[name] = torch.tensor([sum(scored(row[which], "reference")["logps"]) for row in rows])
    trainer = SimpleNamespace(
        model=policy,
        accelerator=ACCELERATOR,
        aux_loss_enabled=False,
        precompute_ref_logps=True,
        calculate_KL=options["loss_type"] == "kto",
        loss_type=options["loss_type"],
        beta=options.get("beta", 0.1),
        desirable_weight=options.get("desirable_weight", 1.0),
        undesirable_weight=options.get("undesirable_weight", 1.0),
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
    )
    trainer._compute_kl_logps = partial(trl.KTOTrainer._compute_kl_logps, trainer)
    return trl.KTOTrainer._compute_loss(trainer, policy, batch, return_outputs=False).item()


def cpo(pairs: list[Tree], policy: Table, reference: Table, options: Tree) -> float:
    """`CPOTrainer.get_batch_loss_metrics`, of either version."""
    trainer_of = CPO
    trainer = SimpleNamespace(
        accelerator=ACCELERATOR,
        is_encoder_decoder=False,
        padding_value=0,
        pad_token_id=0,
        label_pad_token_id=-100,
        aux_loss_enabled=False,
        loss_type=options["loss_type"],
        beta=options.get("beta", 0.1),
        label_smoothing=0.0,
        simpo_gamma=options.get("simpo_gamma", 0.5),
        cpo_alpha=options.get("cpo_alpha", 1.0),
        alpha=options.get("alpha", 0.0),
        concatenated_inputs=trainer_of.concatenated_inputs,
        get_batch_logps=trainer_of.get_batch_logps,
    )
    trainer.concatenated_forward = partial(trainer_of.concatenated_forward, trainer)
    trainer.cpo_loss = partial(trainer_of.cpo_loss, trainer)
    return trainer_of.get_batch_loss_metrics(trainer, policy, whole(pairs), "train")[0].item()


def orpo(pairs: list[Tree], policy: Table, reference: Table, options: Tree) -> float:
    """`ORPOTrainer.odds_ratio_loss`, of either version: the odds ratio alone; its likelihood takes in the prompt."""
    trainer = SimpleNamespace(accelerator=ACCELERATOR, beta=options.get("beta", 0.1))
    means = [
        torch.tensor([sum(x) / len(x) for pair in pairs for x in (scored(pair[side], "policy")["logps"],)])
        for side in ("chosen", "rejected")
    ]
    return -ORPO.odds_ratio_loss(trainer, *means)[0].mean().item()


def dpo_0(pairs: list[Tree], policy: Table, reference: Table, options: Tree) -> float:
    """`DPOTrainer.get_batch_loss_metrics` of TRL 0.24."""
    from trl.trainer.dpo_config import FDivergenceType
    from trl.trainer.utils import RunningMoments

    given = options.get("loss_type", "sigmoid")
    kinds = listed(given)
    weights = options.get("loss_weights") or [1.0] * len(kinds)
    trainer = SimpleNamespace(
        accelerator=ACCELERATOR,
        args=SimpleNamespace(
            use_liger_loss=False,
            rpo_alpha=options.get("rpo_alpha"),
            ld_alpha=options.get("ld_alpha"),
            discopop_tau=options.get("discopop_tau", 0.05),
        ),
        aux_loss_enabled=False,
        beta=options.get("beta", 0.1),
        concatenated_inputs=trl.DPOTrainer.concatenated_inputs,
        f_divergence_params=options.get("f_divergence_params"),
        f_divergence_type=FDivergenceType(options.get("f_divergence_type", "reverse_kl")),
        is_encoder_decoder=False,
        label_smoothing=options.get("label_smoothing", 0.0),
        loss_type=kinds,
        loss_weights=weights,
        max_length=None,
        pad_token_id=0,
        padding_free=False,
        reference_free=options.get("reference_free", False),
        running=RunningMoments(ACCELERATOR),
        use_logits_to_keep=False,
        use_weighting=options.get("use_weighting", False),
    )
    trainer.concatenated_forward = partial(trl.DPOTrainer.concatenated_forward, trainer)
    trainer.dpo_loss = partial(trl.DPOTrainer.dpo_loss, trainer)
    batch = in_parts(pairs)
    scores = trainer.concatenated_forward(reference, batch, is_ref_model=True)
    batch |= {"ref_chosen_logps": scores["chosen_logps"], "ref_rejected_logps": scores["rejected_logps"]}
    return trl.DPOTrainer.get_batch_loss_metrics(trainer, policy, batch, "train")[0].item()


def sums(pairs: list[Tree], side: str, who: str) -> Tensor:
    """Log-probs of whole responses."""
    return torch.tensor([sum(scored(pair[side], who)["logps"]) for pair in pairs], dtype=torch.float64)


def labelled_0(pairs: list[Tree], policy: Table, reference: Table, options: Tree) -> float:
    """`BCOTrainer.bco_loss` and `KTOTrainer.kto_loss` of TRL 0.24: good and bad answers by turns."""
    from trl.trainer.utils import RunningMoments

    good, bad = pairs[::2], pairs[1::2]
    trainer = SimpleNamespace(
        accelerator=ACCELERATOR,
        beta=options.get("beta", 0.1),
        calculate_KL=options["loss_type"] == "kto",
        desirable_weight=options.get("desirable_weight", 1.0),
        undesirable_weight=options.get("undesirable_weight", 1.0),
        loss_type=options["loss_type"],
        match_underlying_distribution=False,
        running=RunningMoments(ACCELERATOR),
    )
    of = {who: (sums(good, "chosen", who), sums(bad, "rejected", who)) for who in ("policy", "reference")}
    if options["loss_type"] == "bco":
        return trl.BCOTrainer.bco_loss(trainer, *of["policy"], *of["reference"], None, None)[0].mean().item()
    other = {who: sums(pairs, "other", who) for who in of}
    scores = (*of["policy"], other["policy"], *of["reference"], other["reference"])
    return trl.KTOTrainer.kto_loss(trainer, *scores)[0].mean().item()


SHARED: list[Tree] = [
    {},
    {"beta": 0.3},
    {"loss_type": "hinge"},
    {"loss_type": "ipo"},
    {"loss_type": "exo_pair", "label_smoothing": 0.001},
    {"loss_type": "nca_pair"},
    {"loss_type": "robust", "label_smoothing": 0.2},
    {"loss_type": "bco_pair"},
    {"loss_type": "sppo_hard", "beta": 0.01},
    {"loss_type": "aot"},
    {"loss_type": "aot", "label_smoothing": 0.1},
    {"loss_type": "apo_zero"},
    {"loss_type": "apo_down"},
    {"loss_type": "discopop"},
    {"loss_type": "discopop", "discopop_tau": 0.2},
    {"loss_type": "sft"},
    {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]},
    {"ld_alpha": 0.4},
    {"use_weighting": True},
    {"loss_type": "hinge", "use_weighting": True},
    {"f_divergence_type": "js_divergence"},
    {"loss_type": "robust", "label_smoothing": 0.1, "f_divergence_type": "js_divergence"},
]
IN_1: list[Tree] = [
    {"loss_type": "aot_unpaired", "label_smoothing": 0.1},
    {"loss_type": "sigmoid_norm", "beta": 5.0},
    {"f_divergence_type": "forward_kl"},
    {"loss_type": "ipo", "f_divergence_type": "forward_kl"},
    {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.3},
]
IN_0: list[Tree] = [
    {"label_smoothing": 0.2},
    {"loss_type": "exo_pair"},
    {"loss_type": "aot_pair", "label_smoothing": 0.1},
    {"rpo_alpha": 0.5},
    {"f_divergence_type": "alpha_divergence"},
    {"f_divergence_type": "alpha_divergence", "f_divergence_params": {"alpha_divergence_coef": 0.6}},
    {"reference_free": True},
]
SIMPO: Tree = {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0, "cpo_alpha": 0.5}
CPO_CASES: list[tuple[Tree, Tree | None]] = [
    (SIMPO, None),
    ({**SIMPO, "cpo_alpha": 0.0}, None),
    ({"loss_type": "sigmoid", "cpo_alpha": 0.5}, {"name": "cpo", "beta": 0.1, "nll_weight": 0.5}),
    (
        {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0, "cpo_alpha": 0.0, "alpha": 0.25},
        {"name": "alphapo", "beta": 2.0, "gamma": 1.0, "alpha": 0.25},
    ),
]
LABELLED: list[tuple[Tree, Tree | None]] = [
    ({"loss_type": "kto", "desirable_weight": 1.2}, None),
    ({"loss_type": "apo_zero_unpaired"}, None),
]
BCO_CASE = ({"loss_type": "bco"}, {"name": "bco-unpaired", "beta": 0.1, "shift": "mean"})
ORPO_CASE = ({"beta": 0.3}, {"name": "orpo", "odds_weight": 0.3})
NOT_IN_TRL = [
    "geometric", "ipo-summed", "dpop", "rdpo", "samp", "cal", "chi", "tdpo1", "tdpo2", "beta-dpo", "drdpo", "slic",
    "unlikelihood",
]  # fmt: skip

NEW = int(trl.__version__.split(".")[0]) >= 1
if NEW:
    from trl.experimental.cpo import CPOTrainer as CPO
    from trl.experimental.orpo import ORPOTrainer as ORPO
else:
    from trl import CPOTrainer as CPO
    from trl import ORPOTrainer as ORPO


def cases() -> list[tuple[str, Any, Tree, Tree | None]]:
    """Trainer, its function, the options, and our settings where no translation is tried."""
    dpo: list[tuple[str, Any, Tree, Tree | None]] = [
        ("dpo", dpo_1 if NEW else dpo_0, options, None) for options in SHARED + (IN_1 if NEW else IN_0)
    ]
    answers = LABELLED if NEW else [*LABELLED, BCO_CASE]
    dpo += [("labelled", kto_1 if NEW else labelled_0, options, ours) for options, ours in answers]
    dpo += [("cpo", cpo, options, ours) for options, ours in CPO_CASES]
    return [*dpo, ("orpo", orpo, *ORPO_CASE)]


def record(pairs: list[Tree]) -> list[Tree]:
    """The value of every case over the whole step, and of each pair alone where pairs are trained on."""
    found = []
    for trainer, function, options, ours in cases():
        single = options.get("f_divergence_type") == "alpha_divergence"  # its table of clamps has no float64
        dtype = torch.float32 if single else torch.float64
        policy, reference = (Table(pairs, who, dtype) for who in ("policy", "reference"))
        alone = [] if trainer == "labelled" else [function([pair], policy, reference, options) for pair in pairs]
        step = function(pairs, policy, reference, options)
        found.append({"trainer": trainer, "options": options, "ours": ours, "step": step, "pairs": alone})
    return found


def main() -> int:
    """Write the part of this version."""
    path, pairs = Path(sys.argv[1]), draw_pairs()
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    known["inputs"] = [
        {side: {who: scored(pair[side], who) for who in ("policy", "reference")} for side in pair} for pair in pairs
    ]
    known["not_in_trl"] = NOT_IN_TRL
    versions = {"trl": trl.__version__, "transformers": transformers.__version__, "torch": torch.__version__}
    known["trl-1" if NEW else "trl-0.24"] = {"versions": versions, "cases": record(pairs)}
    path.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
