"""Write docs/losses.md from the losses and their settings; `--check` only says whether the page is current."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from druthers.compat import PEERS, PLAIN, SMOOTHED, translate
from druthers.doctor import toml
from druthers.losses import LOSSES, NEEDS
from druthers.objectives import SECTIONS, UNPAIRED
from druthers.records import InputError

PAGE = Path(__file__).parents[1] / "docs" / "losses.md"


@dataclass(frozen=True)
class About:
    """What the code cannot say of a loss: its equation, where it is from, and when it is the one to use."""

    equation: str
    paper: str
    use: str


ABOUT: dict[str, About] = {
    "sigmoid": About(
        "−p log σ(z − m) − (1 − p) log σ(m − z)",
        "[2305.18290](https://arxiv.org/abs/2305.18290) eq. 7; m: 2402.10571; p: Mitchell 2023",
        "The DPO of the paper, and the first to try. With p *soft* DPO, with m ODPO; least at z = m + log p/(1 − p).",
    ),
    "cdpo": About(
        "−(1 − e) log σ(z) − e log σ(−z)", "Mitchell 2023", "Labels are wrong at a known rate e; gaps stay finite."
    ),
    "robust": About(
        "[−(1 − e) log σ(z) + e log σ(−z)] / (1 − 2e)",
        "[2403.00409](https://arxiv.org/abs/2403.00409)",
        "The same, unbiased: its mean over flipped labels is DPO on true ones. May be negative, and has more variance.",
    ),
    "geometric": About(
        "−log σ((2p − 1) z)",
        "[2409.06691](https://arxiv.org/abs/2409.06691)",
        "Graded p, and a near tie shall teach nearly nothing instead of pulling the gap to 0.",
    ),
    "hinge": About(
        "max(0, 1 − z + m)",
        "[2309.06657](https://arxiv.org/abs/2309.06657), [2305.10425](https://arxiv.org/abs/2305.10425)",
        "Pairs that are right by 1 / β stop teaching.",
    ),
    "ipo": About(
        "(a/n₁ − b/n₂ − 1/(2β))²",
        "[2310.12036](https://arxiv.org/abs/2310.12036) eq. 17",
        "Sure pairs drive DPO too far: here the gap has an aim. Averaged over tokens, as its authors confirmed.",
    ),
    "ipo-summed": About(
        "(h − 1/(2β))²", "[2310.12036](https://arxiv.org/abs/2310.12036) eq. 17", "The same on sums, as it is printed."
    ),
    "dpo-norm": About(
        "−log σ(β (a/n₁ − b/n₂))",
        "[2411.15124](https://arxiv.org/abs/2411.15124)",
        "Length must not decide. β is about 5, for averages are small.",
    ),
    "exo": About(
        "KL([q, 1 − q] ‖ [1 − e, e]), q = σ(z)",
        "[2402.00856](https://arxiv.org/abs/2402.00856) eq. 16",
        "Mode-seeking where DPO is mass-covering; 0 at q = 1 − e.",
    ),
    "nca": About(
        "−log σ(βa) − ½ log σ(−βa) − ½ log σ(−βb)",
        "[2402.05369](https://arxiv.org/abs/2402.05369)",
        "Chosen must not become less likely: it stops at βa = log 2.",
    ),
    "sppo": About(
        "(a − (P − ½)/β)² + (b + (P − ½)/β)²",
        "[2405.00675](https://arxiv.org/abs/2405.00675) eq. 4.7",
        "P from a preference model or votes (the p of a pair); self-play rounds. The authors' code halves the sum.",
    ),
    "apo-zero": About(
        "1 − σ(βa) + σ(βb)",
        "[2408.06266](https://arxiv.org/abs/2408.06266) eq. 7",
        "Chosen is better than what the model writes: up with it, down with rejected.",
    ),
    "apo-down": About(
        "σ(βa) + 1 − σ(z)",
        "[2408.06266](https://arxiv.org/abs/2408.06266) eq. 8",
        "Chosen is worse than what the model writes: both down, rejected more.",
    ),
    "discopop": About(
        "−(1 − g) log σ(z) + g e^(−z), g = σ(z/τ)",
        "[2406.08414](https://arxiv.org/abs/2406.08414) eq. 5",
        "Found by a search; not convex, and flat just right of 0.",
    ),
    "dpop": About(
        "−log σ(β (h − λ max(0, −a)))",
        "[2402.13228](https://arxiv.org/abs/2402.13228)",
        "Pairs differ by a few tokens, and chosen falls: it is pushed back to the reference.",
    ),
    "rdpo": About(
        "−log σ(z + α (n₁ − n₂))",
        "[2403.19159](https://arxiv.org/abs/2403.19159)",
        "Answers grow: part of the preference is put down to length.",
    ),
    "ld": About(
        "sigmoid on Σ(t ≤ k) + α Σ(t > k), k = min(n₁, n₂)",
        "[2409.06411](https://arxiv.org/abs/2409.06411)",
        "The same by tokens: what lies beyond the shorter response counts α.",
    ),
    "samp": About(
        "sigmoid on k tokens of each side, drawn at random",
        "[2406.10957](https://arxiv.org/abs/2406.10957)",
        "The same by chance: both sides have as many tokens.",
    ),
    "cal": About(
        "−log σ(h) + (a − 1/(2β))² + (b + 1/(2β))²",
        "[2412.14516](https://arxiv.org/abs/2412.14516)",
        "Rewards calibrated to ± ½. No β in the first term; the authors' code halves the squares.",
    ),
    "chi": About(
        "−log σ(β (φ(a) − φ(b))), φ(x) = eˣ + x",
        "[2407.13399](https://arxiv.org/abs/2407.13399)",
        "Over-optimisation: pessimistic about what the reference hardly covers.",
    ),
    "tdpo1": About(
        "−log σ(β (h − (K₂ − K₁)))",
        "[2404.11999](https://arxiv.org/abs/2404.11999) eq. 14, 15",
        "The KL shall be held token by token; takes both models' full distributions.",
    ),
    "tdpo2": About(
        "−log σ(β (h − α (K₂ − sg K₁)))",
        "[2404.11999](https://arxiv.org/abs/2404.11999) eq. 17, 18",
        "The same with the KL of chosen fixed; without divergence both are DPO.",
    ),
    "bco": About(
        "−log σ(βa − d) − log σ(−(βb − d)), d the running mean reward",
        "[2404.04656](https://arxiv.org/abs/2404.04656)",
        "An upper bound of DPO as a classifier of good and bad; a part of MPO.",
    ),
    "aot": About(
        "−(1 − e) log σ(βD) − e log σ(−βD), D = sorted(s₁ − s₂) − sorted(f₁ − f₂)",
        "[2406.05882](https://arxiv.org/abs/2406.05882)",
        "The distribution of margins counts and not each pair: stochastic dominance over the reference.",
    ),
    "aot-unpaired": About(
        "the same, D = sorted(a) − sorted(b)",
        "[2406.05882](https://arxiv.org/abs/2406.05882)",
        "Chosen and rejected do not belong together.",
    ),
    "beta-dpo": About(
        "−log σ(β′h), β′ = β (1 + α (mean of kept h − M)), a share kept",
        "[2407.08639](https://arxiv.org/abs/2407.08639)",
        "Pairs of mixed quality: β by the gap of the step, outliers left out.",
    ),
    "drdpo": About(
        "−β″ log mean exp(−l/β″) over a step",
        "[2407.07880](https://arxiv.org/abs/2407.07880)",
        "Some pairs are wrong: a large loss is believed less. The mean for a large temperature.",
    ),
    "simpo": About(
        "−log σ(β (s₁/n₁ − s₂/n₂) − γ − m)",
        "[2405.14734](https://arxiv.org/abs/2405.14734) eq. 6",
        "No reference. The learning rate matters most; γ/β is what other systems ask for.",
    ),
    "alphapo": About(
        "simpo on (1 − e^(−α s/n))/α",
        "[2501.03884](https://arxiv.org/abs/2501.03884)",
        "SimPO whose chosen falls; α = 0 is SimPO.",
    ),
    "cpo": About(
        "−log σ(β (s₁ − s₂)) + w · NLL",
        "[2401.08417](https://arxiv.org/abs/2401.08417) eq. 3",
        "No reference, held by the likelihood of chosen.",
    ),
    "orpo": About(
        "NLL − λ log σ(log odds₁ − log odds₂)",
        "[2403.07691](https://arxiv.org/abs/2403.07691) eq. 4, 7",
        "From a base model in one stage, without a reference.",
    ),
    "slic": About(
        "max(0, δ − s₁ + s₂) + w · NLL",
        "[2305.10425](https://arxiv.org/abs/2305.10425)",
        "No reference; pairs δ nats apart stop teaching.",
    ),
    "sft": About("−s₁, reduced as declared", "", "A baseline (Preferred-FT), and a part of sums."),
    "unlikelihood": About(
        "−s₁ − α Σ log(1 − p(rejected token)), or −s₁ + α s₂",
        "[1908.04319](https://arxiv.org/abs/1908.04319); baseline of 2305.18290",
        "A baseline. The direct form has no bound.",
    ),
    "kto": About(
        "good: λ₁ (1 − σ(β (a − z₀))); bad: λ₂ (1 − σ(β (z₀ − a)))",
        "[2402.01306](https://arxiv.org/abs/2402.01306) eq. 7",
        "Thumbs instead of pairs. λ₁ n₁ / (λ₂ n₂) belongs into [1, 4/3].",
    ),
    "bco-unpaired": About(
        "good: −log σ(βa − d); bad: −log σ(d − βa)",
        "[2404.04656](https://arxiv.org/abs/2404.04656)",
        "The same as a classifier.",
    ),
    "apo-zero-unpaired": About(
        "good: 1 − σ(βa); bad: σ(βa)", "[2408.06266](https://arxiv.org/abs/2408.06266) eq. 7", "The halves of apo-zero."
    ),
    "mixed": About(
        "Σ cⱼ lⱼ",
        "MPO [2411.10442](https://arxiv.org/abs/2411.10442), RPO [2404.19733](https://arxiv.org/abs/2404.19733)",
        "Likelihood of chosen beside a preference loss, above all. The default is MPO.",
    ),
    "wpo": About(
        "v₁ v₂ l, v = exp(mean of log p(y) − log Σ p²)",
        "[2406.11827](https://arxiv.org/abs/2406.11827) eq. 2",
        "Responses are another model's: pairs count as much as the policy would write them.",
    ),
}
HEAD = """# Losses

Written by `scripts/losses_page.py` from `src/druthers/losses/` and `src/druthers/objectives.py`; the knobs with their
ranges are in [settings.md](settings.md).

`loss.name` chooses one, and each has its own knobs: a knob of another loss is an error that names its owner, and so is
one that the chosen values do not read. Every loss is a pure function of the log-probs of a pair, and the objective is
always

```
L = sum(w * l) / sum(w)      over the whole optimizer step, whatever the micro-batches, ranks and layouts are
```

```toml
[loss]
name = "mixed"                                       # RPO: DPO and the likelihood of chosen
parts = [{name = "sigmoid", beta = 0.1}, {name = "sft", coefficient = 0.2}]
```

## Letters

s₁, s₂: log-probability of the chosen and the rejected response under the policy, summed over its n₁, n₂ scored tokens;
f₁, f₂ under the reference. a = s₁ − f₁, b = s₂ − f₂, h = a − b, z = βh. σ is the logistic function. p is the
probability that chosen is truly better, m a margin in units of reward (after β), w the weight of the pair. K₁, K₂: KL
of reference to policy over the whole vocabulary, summed over positions. NLL: −s₁, reduced as declared. sg: no gradient.
Rewards shown in metrics are β times the *summed* log-ratio, whatever the loss averages; of a loss without a β, 0.1.

## Which, and why
"""
FOOT = """
A pair that carries a grade which the loss does not read is refused; `w` is read by all. A sum honours a grade when
every part that compares the two sides does (`sft` compares none).

* **needs** are what the loss asks of the scorer besides the two sums: *head*, the sum over the first min(n₁, n₂) scored
  tokens; *sample*, over as many drawn at random; *divergence*, K; *certainty*, the mean of log p(y) − log Σ p² (WPO);
  *unlikely*, the sum of −log(1 − p(y)); *draw*, a seeded random number a pair.
* **whole step**: pairs look at one another (ranks, shares, a mean), so the step is scored before its gradient is known.
  A pair of weight 0 does not exist for the others; with weights that differ, quantiles of the weighted distributions
  are compared. What such a loss remembers (`bco`, `beta-dpo`) starts with the first step and is part of the checkpoint.
* **divergence** (2309.16240) puts u(a) − u(b) in place of a − b: reverse-kl x, forward-kl 1 − e^(−x), js
  log 2 + log σ(x), alpha (e^((α−1)x) − 1)/(α − 1), exponents cut at 80. Only losses of the
  difference have it: elsewhere the normaliser of the reward does not cancel.
* **Functions without a setting**, because the loop has pairs: `lists.plackett_luce` (a ranking; K = 2 is `sigmoid`),
  `lists.s_dpo` (one against many), `lists.lipo` (LambdaRank's weights); `weighting.robust_q` and `robust_weight`
  (group-robust DPO, 2405.20304).

## One name, different mathematics
"""
DIFFERENT = [
    (
        "IPO",
        "averaged in TRL; summed in the DPO paper's code and OpenRLHF",
        "`ipo`, `ipo-summed`",
    ),
    (
        "label smoothing",
        "conservative DPO in most; TRL 1.x reads it in `robust`, `exo_pair`, `aot` and ignores it with `sigmoid`",
        "`cdpo` and `robust`, two losses; elsewhere an error",
    ),
    (
        "EXO without smoothing",
        "the logarithm of 0; TRL 0.24 puts 0.001, for the other losses of the run too",
        "must be above 0",
    ),
    (
        "BCO",
        "TRL 1.x has no shift; TRL 0.24 averages micro-batches, evaluations included",
        "`shift`: moving (default), mean, none; of whole steps",
    ),
    (
        "LD-DPO",
        "both models in TRL 1.x; the policy alone elsewhere; TRL 0.24 counts the prompt's tokens as the "
        "response's first",
        'both; `tail_of = "policy"`',
    ),
    (
        "WPO",
        "TRL 0.24 sets a token's log-prob against the next position's distribution, and cuts weights at 1",
        "TRL 1.x's form; `most` cuts",
    ),
    (
        "alpha divergence",
        "TRL 0.24: (1 − t^(−c))/c, so α = 1 − c",
        "TRL 1.x's α",
    ),
    (
        "IPO with a divergence",
        "TRL 0.24 transforms the averaged log-ratio",
        "u of the sum, then the average",
    ),
    (
        "AOT, SFT, z₀ of KTO",
        "of a micro-batch, so the split changes the objective",
        "of the step",
    ),
    (
        "likelihood in ORPO",
        "TRL takes in the prompt's tokens",
        "response tokens alone",
    ),
    (
        "SimPO's margin",
        "γ/β in some",
        "γ; the ratio is remarked at the start",
    ),
    (
        "SPPO, Cal-DPO",
        "the authors' code has factors of ½",
        "as printed",
    ),
    (
        "beta-DPO",
        "statistics start at 0 and are averaged again over ranks",
        "the first step initialises, once",
    ),
]
"""One name, who means what by it, and what it is here."""
COMPAT = """
## What training does with them

A loss that depends on other pairs of its step (bco, aot, aot-unpaired, beta-dpo, drdpo, sums of them) is computed once
on the scores of the whole step; a second pass brings its gradient by those scores to the weights. That costs about a
third more and makes the result the same however the step is cut, over micro-batches and over ranks
(`tests/test_passes.py` holds every loss to plain autograd on the whole step). tdpo1 and tdpo2 compare whole
distributions with the reference's, so they need it in memory: `train.reference=auto` takes the adapter switched off, or
a copy.

Not trained yet: kto, bco-unpaired and apo-zero-unpaired, which learn from single answers, and samp, which draws tokens.
Their functions and settings are here, and a run with one of them is refused.

## Names and options of other systems

`loss.compat` says whose names are used; the run's `config.json` then holds ours. An option that the peer accepts and
does not read is refused with that sentence, and so is what it gets wrong (above) or what we do not have. Where its
number depends on the micro-batches, ours is that for one micro-batch a step, and a remark says so.

```
druthers align loss.compat=trl-1 loss.loss_type=robust loss.label_smoothing=0.1
```
"""


def yes(*, value: bool) -> str:
    """A tick, or nothing."""
    return "yes" if value else ""


def knobs(name: str) -> str:
    """The knobs of a loss with their defaults."""
    fields = SECTIONS[name].model_fields
    return ", ".join(f"{knob} {toml(field.default)}" for knob, field in fields.items() if knob != "name").replace(
        '"', ""
    )


def reads(name: str) -> str:
    """One row: knobs, grades, needs."""
    loss = LOSSES[name](**SECTIONS[name]().model_dump(exclude={"name"}))
    label = "label" if loss.unpaired else yes(value=loss.p)
    cells = [f"`{name}`", knobs(name), label, yes(value=loss.margin), yes(value=loss.reference)]
    return f"| {' | '.join([*cells, ', '.join(sorted(loss.needs)), yes(value=loss.coupled)])} |"


def peers() -> list[str]:
    """A row for every loss type of TRL, as the translation itself gives it."""
    kinds = dict.fromkeys(
        [*PLAIN, *SMOOTHED, "aot_pair", "bco_pair", "discopop", "sigmoid_norm", "simpo", "kto", "sft"]
    )
    rows = ["| TRL's loss_type | `trl-1` | `trl-0.24` |", "|---|---|---|"]
    for kind in kinds:
        cells = [f"`{kind}`"]
        for peer in ("trl-1", "trl-0.24"):
            smoothed = {"label_smoothing": 0.1} if kind in (*SMOOTHED, "aot_pair") else {}
            try:
                tree = translate({"compat": peer, "loss_type": kind, **smoothed}).loss
            except InputError:
                cells.append("")
                continue
            shift = f", shift {tree['shift']}" if "shift" in tree else ""
            cells.append(" + ".join(part["name"] for part in tree.get("parts", [tree])) + shift)
        rows.append(f"| {' | '.join(cells)} |")
    others = [f"`{peer}` takes {', '.join(options)}." for peer, (options, _) in PEERS.items()]
    return [*rows, "", *(f"* {line}" for line in others), ""]


def page() -> str:
    """The whole page."""
    assert set(ABOUT) == set(LOSSES), "a loss has no line on the page"
    assert all(need in FOOT for need in NEEDS)
    lines = [HEAD, "| loss | per pair | paper | use it when |", "|---|---|---|---|"]
    lines += [f"| `{name}` | {a.equation} | {a.paper} | {a.use} |" for name, a in ABOUT.items()]
    lines += ["", f"`{'`, `'.join(UNPAIRED)}` read answers labelled good or bad instead of pairs.", ""]
    lines += ["## What each reads", "", "| loss | knobs and defaults | p | margin | reference | needs | whole step |"]
    lines += ["|---|---|---|---|---|---|---|", *map(reads, ABOUT), FOOT]
    lines += ["| name | elsewhere | here |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in DIFFERENT)]
    lines += [COMPAT, *peers()]
    return "\n".join(lines)


def main() -> int:
    """Write or check the page."""
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(page(), encoding="utf-8")
        return 0
    current = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == page()
    print("docs/losses.md is current" if current else "docs/losses.md is old; run `python scripts/losses_page.py`")
    return 0 if current else 1


if __name__ == "__main__":
    sys.exit(main())
