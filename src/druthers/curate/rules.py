"""The questions about what a data set can teach, and the rules that answer them. docs/advice.md lists them all.

A rule that rests on a paper names it and says what it found; one that rests on a threshold of ours says "default". What
the findings (D1 to D13) measure is said where they are made; their own limits decide what is at warning or failure, so
the rules hold few numbers of their own, all of them here.
"""

from __future__ import annotations

from druthers.curate.advice import Evidence, Question, Rule

FEW_PROMPTS = 300
"""Fewer different prompts than this are few."""
MOSTLY = 0.5
"""From this share on, most."""
CONFLICTING = 0.2
"""From this share of comparisons on, criteria are in conflict."""
FAR = -2.5
"""Nats a token below which the chosen side is far from what the model would say; D12.logprob has no limits itself."""
GRADED = 0.1
"""From this share of graded pairs, or of label noise, the grading decides the loss."""
MORE_THUMBS = 4
"""So many times as many thumbs as pairs outweigh them."""
SLIGHT = 0.01
"""A gain from doubling the data below this is none worth collecting for."""
CLEAR = 0.005
"""A gain from doubling the data whose lower limit is above this is there."""
CUT = 0.01
"""A share of cut responses above this is worth a word."""

COLLECT = "druthers advise {run} --prompts collect.jsonl"
RESAMPLE = f"{COLLECT} && {{export}}druthers sample collect.jsonl{{model}} -o candidates.jsonl -n 4"
"""New answers of the model to the prompts that something is wrong with."""
FRESH = "{export}druthers sample {run}/data/train.jsonl{model} -o candidates.jsonl -n 4"
"""New answers of the model to the prompts of the training pairs."""

SOURCES = {
    "2305.18290": "DPO. Where no SFT model of the preference data exists, the reference is first trained on the chosen "
    "responses, which lessens the distance between it and the policy that made the data.",
    "2402.01306": "KTO learns from single answers marked good or bad and matches or exceeds methods that learn from "
    "pairs, at 1B to 30B parameters; no one loss is best everywhere.",
    "2402.04792": "Online feedback on pairs sampled from the current model beat both offline DPO-like training and "
    "RLHF in human evaluations of several tasks.",
    "2402.10571": "DPO with an offset, which asks more of strong preferences, beat DPO, most with few pairs.",
    "2402.14740": "REINFORCE-style optimisation (RLOO) beat PPO and DPO while being simpler than PPO.",
    "2403.00409": "With labels flipped at a rate e, robust DPO loses of the order sqrt(d / n) / (1 - 2 e).",
    "2403.19159": "DPO exploits length and goes beyond the lengths of its data; a length term in the loss prevents it.",
    "2404.10719": "DPO may favour responses that its data do not cover; a tuned PPO beat it in all of the study's "
    "tests, from dialogue to code.",
    "2404.14367": "On-policy samples and pushing down bad responses beat offline and maximum-likelihood objectives.",
    "2405.09673": "LoRA learns less than full fine-tuning on code and mathematics, and forgets less.",
    "2405.19534": "DPO seldom flips a pair that the reference ranks wrongly; most tuned models rank fewer than 60 % of "
    "common preference pairs right.",
    "2405.20304": "Group-robust DPO weights groups by their loss and improved the worst of them.",
    "2406.02900": "DPO-like training deteriorates at larger distances from the reference, often before one epoch is "
    "over.",
    "2406.09279": "Better preference data brought the most (up to 8 %), then PPO over DPO (up to 2.5 % in mathematics, "
    "1.2 % in general).",
    "2308.01263": "Models trained to be safe refuse safe prompts that look like unsafe ones; 250 such prompts test "
    "for it.",
    "2310.03708": "MODPO trains models for several weightings of several objectives, in one language model each.",
    "2312.01552": "Three examples and a system prompt matched SFT or SFT + RLHF on base models; tuning shifts mostly "
    "style.",
    "2409.09603": "Preference sets differ in effective size, noise and information, so their row counts do not "
    "compare.",
    "2409.17431": "Tied pairs trained as if they had a winner degrade DPO; losses that know ties do not suffer.",
    "2410.08847": "Pairs whose sides look alike to the model drive the probability of the chosen side down, in one "
    "case refusals of unsafe prompts from 74.4 % to 33.4 %; leaving them out mends it.",
    "2411.00640": "Evaluations are samples of questions: errors by cluster, paired differences, and the size planned.",
    "2508.18312": "The quality of the chosen responses decides what DPO reaches; that of the rejected ones matters "
    "less.",
    "1712.00409": "Errors fall as a power of the amount of data, after a region of too few and until what cannot be "
    "learned.",
}
"""What the papers found, as their abstracts say it (docs/advice.md says where more was read); keys are arXiv ids."""


def far_from_model(e: Evidence) -> bool:
    """Whether the chosen side is far from what the model would say."""
    found = e.one("D12.logprob")
    return found is not None and found.high is not None and found.high < FAR


def is_taste(e: Evidence) -> bool:
    """Whether groups differ on more comparisons than wrong answers within them explain.

    Items are judged by one group each, so D3.noise is the noise within groups; at a noise e two answers differ on
    2 e (1 - e) of the comparisons.
    """
    noise = e.one("D3.noise")
    if e.tastes is None or noise is None or noise.high is None:
        return False
    wrong = min(noise.high, 0.5)
    return e.tastes.low > max(CONFLICTING, 2 * wrong * (1 - wrong))


def mostly_poor(e: Evidence) -> bool:
    """Whether most of the chosen answers are poor, beyond the interval."""
    found = e.one("D11.chosen")
    return found is not None and found.low is not None and found.low > MOSTLY


def few_prompts(e: Evidence) -> bool:
    """Whether the training pairs are about few different prompts."""
    return e.prompts is not None and e.prompts < FEW_PROMPTS


def accuracy_at_ceiling(e: Evidence) -> bool:
    """Whether a finished run is as right as noisy labels can show."""
    return e.accuracy is not None and e.noise is not None and e.accuracy.high >= 1 - e.noise


def gain_of_doubling(e: Evidence) -> tuple[float, float]:
    """Limits of what twice the pairs would bring; no limits without a curve."""
    if e.curve is None:
        return float("-inf"), float("inf")
    found = e.curve.gain(e.curve.largest, 2 * e.curve.largest)
    return found.low, found.high


CLEANLINESS = ("D1.", "D2.", "D3.", "D4.position", "D6.", "D11.", "D13.personal", "D13.language")


def undecided(e: Evidence) -> tuple[str, ...]:
    """Findings of cleanliness whose intervals lie on both sides of a limit."""
    found = (f.id for f in e.findings if f.uncertain and f.status == "pass" and f.id.startswith(CLEANLINESS))
    return tuple(dict.fromkeys(found))


NO_TRAINER = "druthers trains by DPO only, so this takes another trainer."

METHOD = Question(
    id="A1",
    text="Which method?",
    exclusive=True,
    wants=(("pairs",), ("D1.leak",), ("D12.logprob",)),
    rules=(
        Rule(
            id="A1.thumbs",
            fires=f"single answers with a thumb are at least {MORE_THUMBS} times as many as the training pairs",
            when=lambda e: e.pairs is not None and e.unpaired >= max(1, MORE_THUMBS * e.pairs),
            answer="KTO on the {n_unpaired}: DPO cannot use them, and pairing answers of different "
            "prompts would invent comparisons.",
            because="KTO learns from single good and bad answers and was as good as learning from pairs (arXiv "
            f"2402.01306). {NO_TRAINER} To use DPO, put two answers to one prompt before people.",
            needs=("unpaired", "pairs"),
            sources=("2402.01306", "default"),
        ),
        Rule(
            id="A1.taste",
            fires=f"the interval of the share of comparisons on which groups differ lies above {CONFLICTING:.0%}, and "
            "above what noise explains: 2 e (1 - e), with e the upper limit of D3.noise",
            when=is_taste,
            answer="One model for each group, or group-robust DPO: people disagree between groups, not within them.",
            because="Averaging tastes teaches a preference nobody has. Group-robust DPO improved the worst group "
            "(arXiv 2405.20304); druthers has no such loss; a model for each group takes a file of pairs for each.",
            needs=("tastes", "D3.noise"),
            sources=("2405.20304",),
        ),
        Rule(
            id="A1.guidelines-first",
            fires="D3.alpha fails (of several criteria the overall one, where there is one, decides)",
            when=lambda e: e.fails("D3.alpha"),
            answer="Do not train yet: write down what is better, and let people judge again.",
            because="They agree hardly more than chance would, so a model can learn little but noise, and no number "
            "measured on these labels can show more than they hold.",
            needs=("D3.alpha", "D3.noise", "D3.annotator"),
            sources=("default",),
        ),
        Rule(
            id="A1.ties-first",
            fires=f"the interval of the share of ties lies above {MOSTLY:.0%}",
            when=lambda e: e.ties is not None and e.ties.low > MOSTLY,
            answer="Do not train yet: most comparisons are ties; collect candidates that differ more.",
            because="A tie trained as a preference degrades DPO (arXiv 2409.17431); one with p = 0.5 holds the policy "
            "to the reference. Answers of several models, temperatures or prompts differ more.",
            needs=("ties", "D11.both_bad"),
            action=RESAMPLE,
            sources=("2409.17431", "default"),
        ),
        Rule(
            id="A1.chosen-first",
            fires=f"the interval of D11.chosen lies above {MOSTLY:.0%}, or D11.rated fails",
            when=lambda e: mostly_poor(e) or e.fails("D11.rated"),
            answer="Do not train yet: most of the chosen responses are not good; collect better ones.",
            because="The quality of the chosen side decides what DPO reaches (arXiv 2508.18312), and a better rejected "
            "side does not make up for it.",
            needs=("D11.chosen", "D11.rated", "D11.both_bad"),
            action=COLLECT,
            sources=("2508.18312", "default"),
        ),
        Rule(
            id="A1.criteria",
            fires=f"the interval of the share of comparisons in which criteria disagree lies above {CONFLICTING:.0%}",
            when=lambda e: e.conflicts is not None and e.conflicts.low > CONFLICTING,
            answer="Decide between the criteria first: weights and gates for one model, or one model for each "
            "weighting.",
            because="Where criteria contradict one another, pairs of all of them cancel. Training for several "
            "weightings gives a choice of models (MODPO, arXiv 2310.03708; not in druthers). `criterion` of the pairs "
            "tells them apart.",
            needs=("conflicts",),
            sources=("2310.03708", "default"),
        ),
        Rule(
            id="A1.sft-first",
            fires=f"the interval of D12.logprob lies below {FAR} nats a token",
            when=far_from_model,
            answer="SFT on the chosen responses first, or pairs sampled from the model itself; then DPO.",
            because="The chosen responses are far from what this model would say. The DPO paper trains the reference "
            "on them where it did not make them (arXiv 2305.18290), and on-policy pairs did better than foreign ones "
            "(arXiv 2404.14367). SFT takes another trainer; its result goes into model.path.",
            needs=("D12.logprob", "D12.onpolicy"),
            action=FRESH,
            sources=("2305.18290", "2404.14367", "default"),
        ),
        Rule(
            id="A1.online",
            fires="several rounds are planned and a rubric judges the answers",
            when=lambda e: e.rounds > 1 and bool(e.rubric) and (e.pairs or 0) > 0,
            answer="DPO round by round on fresh answers, judged by the rubric; RLOO or PPO on a reward model are worth "
            "a comparison.",
            because="Feedback on the current model's own answers beat one fixed set of pairs (arXiv 2402.04792); a "
            "tuned PPO beat DPO, most where code decides (arXiv 2404.10719), by up to 2.5 % in mathematics and 1.2 % "
            "in general (arXiv 2406.09279), and RLOO is simpler than PPO (arXiv 2402.14740). druthers has `sample` "
            "and `judge` for the first; reward models and RL take another trainer.",
            needs=("pairs", "D12.onpolicy"),
            action=f"{FRESH} && druthers judge candidates.jsonl -o pairs.jsonl --rubric {{rubric}}",
            sources=("2402.04792", "2404.10719", "2406.09279", "2402.14740"),
        ),
        Rule(
            id="A1.rounds",
            fires="several rounds are planned and nothing but people judges",
            when=lambda e: e.rounds > 1 and not e.rubric and (e.pairs or 0) > 0,
            answer="DPO round by round, each round on answers of the newest model that people have compared.",
            because="Pairs of an earlier model say less about the newer one; pairs sampled from the model itself did "
            "better (arXiv 2404.14367). Without a rubric or reward model no method can learn between the rounds.",
            needs=("pairs", "D12.onpolicy"),
            action=FRESH,
            sources=("2404.14367",),
        ),
        Rule(
            id="A1.few",
            fires=f"the training pairs are about fewer than {FEW_PROMPTS} prompts",
            when=few_prompts,
            answer="DPO with an adapter (LoRA), beside a prompt with examples; expect style more than ability.",
            because="Few prompts show style. A system prompt with three examples matched tuned models (arXiv "
            "2312.01552), so compare with one; an adapter learns less and forgets less (arXiv 2405.09673). Margins of "
            "graded pairs help most when pairs are few (arXiv 2402.10571).",
            needs=("pairs", "prompts"),
            action="druthers align {options} --run {run}-lora model.adapter=lora",
            sources=("2312.01552", "2405.09673", "2402.10571", "default"),
        ),
        Rule(
            id="A1.groups",
            fires="the pairs have several groups, and one has less than half of an equal share of them",
            when=lambda e: len(e.groups) > 1 and bool(e.scarce()),
            answer="DPO, with results read by group: {scarce} would be outvoted; weight its pairs or collect more.",
            because="One loss over all pairs serves the majority. `weight` of the pairs is honoured; a group-robust "
            "loss (arXiv 2405.20304) is not in druthers.",
            needs=("pairs",),
            sources=("2405.20304", "default"),
        ),
        Rule(
            id="A1.graded",
            fires=f"at least {GRADED:.0%} of the training pairs are graded, or D3.noise is at least {GRADED:.0%}",
            when=lambda e: (
                (e.pairs or 0) > 0
                and (e.graded >= GRADED * (e.pairs or 0) or (e.noise is not None and e.noise >= GRADED))
            ),
            answer="DPO with graded pairs: p below 1 where people were unsure, a margin where they were sure.",
            because="The loss honours p and margin, but never derive both from the same answer. Flipped labels cost "
            "1 / (1 - 2 noise) in what is learned (arXiv 2403.00409); margins helped most with few pairs (arXiv "
            "2402.10571). Where the noise is known and p is 1, set p = 1 - noise.",
            needs=("graded", "pairs", "D3.noise"),
            action="druthers align {options} --run {fresh}",
            sources=("2403.00409", "2402.10571", "default"),
        ),
    ),
    fine=Rule(
        id="A1.dpo",
        fires="none of the others, and training pairs, D1.leak and D12.logprob are known",
        when=lambda e: True,
        answer="DPO fits.",
        because="There are pairs, no prompt of theirs is held out, and the chosen side is within the model's reach. A "
        "tuned PPO may reach more at a higher price (arXiv 2404.10719); better data brought more than either (arXiv "
        "2406.09279).",
        needs=("pairs", "D1.leak", "D12.logprob", "D3.alpha"),
        action="druthers align {options} --run {fresh}",
        sources=("2404.10719", "2406.09279"),
    ),
    unknown=Rule(
        id="A1.unknown",
        fires="none of the others",
        when=lambda e: True,
        answer="Not known.",
        because="Nothing that was measured speaks against DPO; what could was not measured.",
        needs=("pairs", "D1.leak", "D12.logprob"),
        action="{measure}",
    ),
)

CLEAN = Question(
    id="A2",
    text="Is it clean enough?",
    exclusive=False,
    wants=(
        ("D1.leak",),
        ("D1.near", "D1.duplicate"),
        ("D2.contradiction",),
        ("D3.alpha", "D3.noise", "D6.noise"),
        ("D13.personal",),
    ),
    rules=(
        Rule(
            id="A2.leak",
            fires="D1.held_before is at warning or failure",
            when=lambda e: e.bad("D1.held_before"),
            answer="Not beside the other runs: prompts that one of them holds out are trained on here.",
            because="On such prompts a comparison of the models would say how well this one remembers. data.heldout "
            "with the heldout.jsonl of that run holds them out again. Leaks within this run were set aside.",
            needs=("D1.held_before", "D1.leak"),
            sources=("default",),
        ),
        Rule(
            id="A2.responses",
            fires="D1.response_leak is at warning or failure",
            when=lambda e: e.bad("D1.response_leak"),
            answer="No: held-out responses are trained on under other prompts.",
            because="Held-out numbers would tell in part how well they are remembered. Hold out other pairs, or leave "
            "the training pairs that have them out.",
            needs=("D1.response_leak",),
            sources=("default",),
        ),
        Rule(
            id="A2.duplicates",
            fires="D1.near or D1.semantic is at warning or failure",
            when=lambda e: e.bad("D1.near", "D1.semantic"),
            answer="No: the source repeats itself.",
            because="Near copies were set aside; prompts that mean the same were not. Pairs that repeat others are no "
            "further evidence and weigh as often as they stand there; row counts say little (arXiv 2409.09603).",
            needs=("D1.duplicate", "D1.near", "D1.semantic"),
            sources=("2409.09603",),
        ),
        Rule(
            id="A2.contradictions",
            fires="D2.contradiction or D2.cycles is at warning or failure",
            when=lambda e: e.bad("D2.contradiction", "D2.cycles"),
            answer="No: pairs contradict one another; let those prompts be judged again.",
            because="A pair and its opposite were set aside, since the loss learns neither, and preferences that go in "
            "a circle fit no reward; where there are that many, others that were judged once are wrong as well.",
            needs=("D2.contradiction", "D3.noise"),
            action=COLLECT,
            sources=("default",),
        ),
        Rule(
            id="A2.agreement",
            fires="D3.alpha is at warning or failure, on the whole or in a slice",
            when=lambda e: e.bad("D3.alpha"),
            answer="No: people agree too little on what is better.",
            because="Sharper guidelines and three judgements of a contested pair raise agreement; more pairs do not.",
            needs=("D3.alpha",),
            sources=("default",),
        ),
        Rule(
            id="A2.noise",
            fires="D6.noise is at warning or failure",
            when=lambda e: e.bad("D6.noise"),
            answer="No: labels look noisy.",
            because="Of labels of which a share e is wrong, a model learns as from 1 / (1 - 2 e)^2 times fewer (arXiv "
            "2403.00409). {noise_said}Have the suspects judged again.",
            needs=("D6.noise", "D6.suspects", "D3.noise"),
            action=COLLECT,
            sources=("2403.00409",),
        ),
        Rule(
            id="A2.annotators",
            fires="D3.annotator or D6.gold is at warning or failure for someone",
            when=lambda e: bool(e.weak()),
            answer="No: some annotators agree too little with the others, or with gold answers: {annotators}.",
            because="Talk to them before leaving their judgements out: a minority may be right.",
            needs=("D3.annotator", "D6.gold"),
            sources=("default",),
        ),
        Rule(
            id="A2.position",
            fires="D4.position is at warning or failure",
            when=lambda e: e.bad("D4.position"),
            answer="No: the side of the screen decided some comparisons.",
            because="A model cannot learn where an answer stood, so this is noise in the labels. Exchange the sides at "
            "random, and ask some pairs both ways.",
            needs=("D4.position",),
            sources=("default",),
        ),
        Rule(
            id="A2.chosen",
            fires="D11.chosen or D11.rated is at warning or failure",
            when=lambda e: e.bad("D11.chosen", "D11.rated"),
            answer="No: some chosen responses are only the better of two bad ones.",
            because="What the chosen side is worth decides what DPO reaches (arXiv 2508.18312).",
            needs=("D11.chosen", "D11.rated", "D11.both_bad"),
            sources=("2508.18312",),
        ),
        Rule(
            id="A2.personal",
            fires="D13.personal is at warning or failure",
            when=lambda e: e.bad("D13.personal"),
            answer="No: there is personal data in it.",
            because="A model may repeat what it was trained on. Replace it before training.",
            needs=("D13.personal",),
            action="druthers curate {options} --run {run}-redacted data.personal=redact",
            sources=("default",),
        ),
        Rule(
            id="A2.language",
            fires="D13.language is at warning or failure",
            when=lambda e: e.bad("D13.language"),
            answer="No: some answers are in another language than their prompts.",
            because="Chosen ones among them teach it.",
            needs=("D13.language",),
            sources=("default",),
        ),
        Rule(
            id="A2.undecided",
            fires="a finding of this question passes, but its interval lies on both sides of a limit",
            when=lambda e: bool(undecided(e)),
            answer="Not decided: some numbers rest on too few rows.",
            because="Their intervals lie on both sides of a limit.",
            needs=lambda e: undecided(e),
            sources=("default",),
        ),
    ),
    fine=Rule(
        id="A2.clean",
        fires="none of the others, and all that the question wants is known",
        when=lambda e: True,
        answer="Yes, as far as these checks see.",
        because="They read no facts: whether a chosen response is true was not looked at.",
        needs=("D1.leak", "D1.near", "D2.contradiction", "D3.alpha", "D6.noise", "D13.personal"),
    ),
    unknown=Rule(
        id="A2.unknown",
        fires="something that the question wants is missing",
        when=lambda e: True,
        answer="Not known for what was not checked.",
        because="Some checks were not made, or could not be.",
        action="{measure}",
    ),
)


HELD_OUT = Question(
    id="A3h",
    text="Can the held-out data show an improvement?",
    exclusive=True,
    wants=(("heldout_prompts",),),
    rules=(
        Rule(
            id="A3h.short",
            fires="fewer held-out prompts than the improvement takes at 80 % power and the 5 % level",
            when=lambda e: e.heldout_prompts is not None and e.heldout_prompts < e.accuracy_needs,
            answer="Not one of {points}: that takes {accuracy_needs} held-out prompts, {more_heldout} more.",
            because="{detects} Rows of one prompt count once, as if they agreed (arXiv 2411.00640). {hidden}",
            needs=("accuracy", "D3.noise"),
            sources=("2411.00640",),
        ),
        Rule(
            id="A3h.asked",
            fires="the held-out prompts are enough, but fewer than the improvement takes are answered and judged",
            when=lambda e: e.asked is not None and bool(e.rubric) and e.asked < e.win_rate_needs,
            answer="In accuracy yes, as a win rate no: {n_asked} answered, and {points} take {win_rate_needs}.",
            because="{detects_wins} (arXiv 2411.00640)",
            needs=("asked", "heldout_prompts", "ties"),
            action="druthers align {options} --run {fresh} evaluate.count={count_needs}",
            sources=("2411.00640",),
        ),
        Rule(
            id="A3h.enough",
            fires="the held-out prompts are at least as many as the improvement takes",
            when=lambda e: e.heldout_prompts is not None and e.heldout_prompts >= e.accuracy_needs,
            answer="Yes, one of {points}: that takes {accuracy_needs} prompts, and there are {heldout_prompts}.",
            because="{detects} Rows of one prompt count once (arXiv 2411.00640). {hidden}",
            needs=("accuracy", "D3.noise"),
            sources=("2411.00640",),
        ),
    ),
    fine=None,
    unknown=Rule(
        id="A3h.unknown",
        fires="none of the others",
        when=lambda e: True,
        answer="Not known. An improvement of {points} takes {accuracy_needs} held-out prompts.",
        because="Nothing is curated yet.",
        action="druthers curate {options} --run {run}",
    ),
)

PROMPTS = Question(
    id="A3p",
    text="Are there enough different prompts?",
    exclusive=True,
    wants=(("prompts",), ("D7.effective",)),
    rules=(
        Rule(
            id="A3p.few",
            fires=f"fewer than {FEW_PROMPTS} different prompts",
            when=few_prompts,
            answer="They are few: from {n_prompts} a model can learn a style, not how to meet what else is asked.",
            because="Pairs of one prompt repeat it; what counts is how many different ones there are.",
            needs=("pairs", "prompts", "D7.effective", "D8.diversity"),
            sources=("default",),
        ),
        Rule(
            id="A3p.crowded",
            fires="D7.prompts is at warning or failure",
            when=lambda e: e.bad("D7.prompts"),
            answer="Fewer than it looks: some prompts weigh much more than others.",
            because="What repeated prompts and weights leave is what counts (arXiv 2409.09603). Give each prompt the "
            "same weight in all, or drop pairs of the crowded ones.",
            needs=("D7.prompts", "D7.crowded", "pairs", "prompts"),
            sources=("2409.09603",),
        ),
        Rule(
            id="A3p.uneven",
            fires="D7.effective is at warning or failure",
            when=lambda e: e.bad("D7.effective"),
            answer="Their pairs say less than it looks: weights differ widely, or many pairs are ties.",
            because="A pair counts by its weight and by how sure it is which response is better; that is what is there "
            "to learn from, not the number of rows (arXiv 2409.09603).",
            needs=("D7.effective", "pairs", "prompts"),
            sources=("2409.09603",),
        ),
    ),
    fine=Rule(
        id="A3p.spread",
        fires="none of the others, and prompts and D7.effective are known",
        when=lambda e: True,
        answer="They are well spread: {n_pairs} over {n_prompts}.",
        because="Whether they are enough to learn from is asked below: How many more pairs?",
        needs=("D7.effective", "D7.prompts", "D7.crowded"),
    ),
    unknown=Rule(
        id="A3p.unknown",
        fires="none of the others",
        when=lambda e: True,
        answer="Not known.",
        because="The number of pairs alone does not say it.",
        needs=("pairs", "prompts"),
    ),
)

GROUPS = Question(
    id="A3g",
    text="Is there enough of every group?",
    exclusive=True,
    wants=(("groups",),),
    rules=(
        Rule(
            id="A3g.short",
            fires="a group has fewer held-out prompts than the improvement takes",
            when=lambda e: bool(e.short_groups()),
            answer="Not to see {points} in each of them. The least they show: {short_groups}.",
            because="A mean over all groups can hide that one of them got worse; report the worst (arXiv 2405.20304).",
            needs=("D3.noise",),
            sources=("2405.20304",),
        ),
        Rule(
            id="A3g.enough",
            fires="every group has as many held-out prompts as the improvement takes",
            when=lambda e: bool(e.groups) and not e.short_groups(),
            answer="Yes: {points} would be seen in each of them.",
            because="Each is large enough to be read by itself; with many groups expect some false alarms.",
            needs=("D3.noise",),
        ),
    ),
    fine=None,
    unknown=Rule(
        id="A3g.unknown",
        fires="no pair has a group",
        when=lambda e: True,
        answer="Not known: no pair says which group it belongs to.",
        because="Groups are what you call `group`: language, audience, region, kind of task.",
    ),
)

MORE = Question(
    id="A4",
    text="How many more pairs?",
    exclusive=True,
    wants=(("curve",),),
    rules=(
        Rule(
            id="A4.ceiling",
            fires="the accuracy of a finished run reaches 1 - D3.noise within its interval",
            when=accuracy_at_ceiling,
            answer="None for a higher accuracy on these labels: it is at their ceiling of {ceiling}.",
            because="Labels that are wrong {noise} of the time show no more, whatever the model knows. Cleaner "
            "held-out labels would; an accuracy clearly above the ceiling would mean a leak.",
            needs=("accuracy", "D3.noise", "D1.leak"),
            sources=("default",),
        ),
        Rule(
            id="A4.rising",
            fires=f"the runs say that doubling brings at least {100 * CLEAR:g} points (lower 95 % limit)",
            when=lambda e: gain_of_doubling(e)[0] > CLEAR,
            answer="More pairs of this kind would help: from {largest} to {double} brings {gain} of accuracy.",
            because="{target} would take {reach}. A power law with a ceiling (arXiv 1712.00409) through runs of "
            "{sizes} pairs; it holds for these pairs, this model and these settings.",
            needs=("accuracy",),
            sources=("1712.00409", "default"),
        ),
        Rule(
            id="A4.level",
            fires=f"the runs say that doubling brings less than {100 * SLIGHT:g} point (upper 95 % limit)",
            when=lambda e: gain_of_doubling(e)[1] < SLIGHT,
            answer="None of this kind: from {largest} to {double} brings {gain} of accuracy.",
            because="The curve through runs of {sizes} pairs has levelled off (arXiv 1712.00409). Other prompts, "
            "better chosen responses or fresh answers of the model may still help.",
            needs=("accuracy", "D8.coverage", "D11.chosen", "D12.onpolicy"),
            sources=("1712.00409", "default"),
        ),
        Rule(
            id="A4.undecided",
            fires="there is a curve, and neither of the two",
            when=lambda e: e.curve is not None,
            answer="The runs do not decide: from {largest} to {double} brings {gain} of accuracy.",
            because="{target} would take {reach} (arXiv 1712.00409, runs of {sizes} pairs). More held-out prompts or "
            "several seeds a size narrow it.",
            needs=("accuracy", "heldout_prompts"),
            sources=("1712.00409", "default"),
        ),
    ),
    fine=None,
    unknown=Rule(
        id="A4.unknown",
        fires="none of the others",
        when=lambda e: True,
        answer="Not known: how accuracy grows with pairs differs from data set to data set and has to be measured.",
        because="Train on a quarter, a half and all of the pairs, then ask again with --runs. {too_small}",
        action="{smaller}",
    ),
)

NEXT = Question(
    id="A5",
    text="What to collect next?",
    exclusive=False,
    wants=(("D8.coverage",),),
    rules=(
        Rule(
            id="A5.coverage",
            fires="D8.coverage or D8.shift is at warning or failure",
            when=lambda e: e.bad("D8.coverage", "D8.shift"),
            answer="Pairs for what is asked in production and has none near it.",
            because="DPO may favour responses that its data do not cover (arXiv 2404.10719), and nothing here says how "
            "the model answers there.",
            needs=("D8.coverage", "D8.shift"),
            action=COLLECT,
            sources=("2404.10719",),
        ),
        Rule(
            id="A5.candidates",
            fires=f"the share of ties is clearly above {MOSTLY:.0%}, or D11.both_bad, D11.chosen or D11.rated is at "
            "warning or failure",
            when=lambda e: (
                (e.ties is not None and e.ties.low > MOSTLY) or e.bad("D11.both_bad", "D11.chosen", "D11.rated")
            ),
            answer="Other answers to the same prompts: better ones, and ones that differ.",
            because="A tie says little and the better of two bad answers teaches a bad one (arXiv 2508.18312).",
            needs=("ties", "D11.both_bad", "D11.chosen", "D11.rated"),
            action=RESAMPLE,
            sources=("2508.18312", "default"),
        ),
        Rule(
            id="A5.contested",
            fires="D2.contradiction, D2.cycles, D3.alpha or D6.noise is at warning or failure",
            when=lambda e: e.bad("D2.contradiction", "D2.cycles", "D3.alpha", "D6.noise"),
            answer="More judgements of the contested pairs, by three people or more.",
            because="Of several answers to one question a probability can be made, which the loss can use; a second "
            "answer leaves it open who is right.",
            needs=("D2.contradiction", "D3.alpha", "D6.noise"),
            action=COLLECT,
            sources=("default",),
        ),
        Rule(
            id="A5.groups",
            fires="a group has less than half of an equal share of the training pairs",
            when=lambda e: bool(e.scarce()),
            answer="Pairs of {scarce}.",
            because="Of {n_pairs} they have less than half of an equal share.",
            needs=("pairs",),
            action=COLLECT,
            sources=("default",),
        ),
        Rule(
            id="A5.fresh",
            fires="D12.onpolicy is at warning or failure",
            when=lambda e: e.bad("D12.onpolicy"),
            answer="Answers of the model that is trained, compared by the same people.",
            because="On-policy pairs did better than foreign ones (arXiv 2404.14367).",
            needs=("D12.onpolicy",),
            action=FRESH,
            sources=("2404.14367",),
        ),
        Rule(
            id="A5.old",
            fires="D12.age is at warning or failure",
            when=lambda e: e.bad("D12.age"),
            answer="Judgements of what is asked and answered now: half of these are old.",
            because="People ask other things by now, and the models that answered have been replaced.",
            needs=("D12.age",),
            sources=("default",),
        ),
        Rule(
            id="A5.flips",
            fires="D10.stuck is at warning or failure",
            when=lambda e: e.bad("D10.stuck"),
            answer="For prompts whose pairs the model ranks the wrong way round by far: nearer answers, its own among "
            "them.",
            because="DPO seldom flips such a pair (arXiv 2405.19534).",
            needs=("D10.stuck", "D10.ranked"),
            action=RESAMPLE,
            sources=("2405.19534",),
        ),
        Rule(
            id="A5.heldout",
            fires="fewer held-out prompts than the improvement takes",
            when=lambda e: e.heldout_prompts is not None and e.heldout_prompts < e.accuracy_needs,
            answer="{more_heldout} more prompts to hold out, drawn as they come in production.",
            because="What shows whether training helped comes before more to train on (arXiv 2411.00640).",
            needs=("heldout_prompts",),
            sources=("2411.00640",),
        ),
    ),
    fine=Rule(
        id="A5.nothing",
        fires="none of the others, and D8.coverage is known",
        when=lambda e: True,
        answer="Nothing in particular: more of what is asked in production, drawn at random.",
        because="No gap was found that would be worth more.",
        needs=("D8.coverage", "D8.shift", "D8.diversity"),
    ),
    unknown=Rule(
        id="A5.unknown",
        fires="D8.coverage is missing",
        when=lambda e: True,
        answer="Not known for what is asked in production: it was not compared with these prompts.",
        because="That takes a file of prompts as users asked them.",
        action="{cover}",
    ),
)

BESIDES = Question(
    id="A6",
    text="What will it probably teach besides?",
    exclusive=False,
    wants=(("D4.length",), ("D4.markdown",), ("D4.refusal",), ("D5.shortcut",)),
    rules=(
        Rule(
            id="A6.length",
            fires="D4.length is at warning or failure",
            when=lambda e: e.bad("D4.length"),
            answer="Length: it goes with who wins.",
            because="DPO goes beyond the lengths of its data (arXiv 2403.19159). Balance the pairs, or watch the "
            "length ratio of the report.",
            needs=("D4.length", "longer"),
            sources=("2403.19159",),
        ),
        Rule(
            id="A6.format",
            fires="D4.markdown is at warning or failure",
            when=lambda e: e.bad("D4.markdown"),
            answer="Format: lists, headings and bold go with who wins, other things alike.",
            because="If that is not wanted, compare answers of the same format.",
            needs=("D4.markdown",),
            sources=("default",),
        ),
        Rule(
            id="A6.refusal",
            fires="D4.refusal is at warning or failure",
            when=lambda e: e.bad("D4.refusal"),
            answer="Refusing, or answering what should be refused: refusals go with who wins, other things alike.",
            because="Models trained to be safe come to refuse safe prompts (arXiv 2308.01263); ask some after "
            "training.",
            needs=("D4.refusal", "D13.refusal"),
            sources=("2308.01263",),
        ),
        Rule(
            id="A6.shortcut",
            fires="D5.shortcut is at warning or failure",
            when=lambda e: e.bad("D5.shortcut"),
            answer="A shortcut: the surface of the answers tells which one was chosen.",
            because="What can be told without reading is learned first.",
            needs=("D5.shortcut",),
            sources=("default",),
        ),
    ),
    fine=Rule(
        id="A6.nothing",
        fires="none of the others, and all four are known",
        when=lambda e: True,
        answer="Nothing that these four look for.",
        because="Other habits of the chosen side (tone, opinions, mistakes) are learned unseen.",
        needs=("D4.length", "D4.markdown", "D4.refusal", "D5.shortcut"),
    ),
    unknown=Rule(
        id="A6.unknown",
        fires="one of the four is missing",
        when=lambda e: True,
        answer="Not known for what was not checked.",
        because="Some biases were not measured.",
        action="{remake}",
    ),
)

RISK = Question(
    id="A7",
    text="What is at risk?",
    exclusive=False,
    wants=(("D9.edit",), ("D9.ches",), ("D13.cut", "cut"), ("D13.refusal",)),
    rules=(
        Rule(
            id="A7.displacement",
            fires="D9.edit is at warning or failure",
            when=lambda e: e.bad("D9.edit"),
            answer="Chosen answers may become less likely: sides that look alike push both down.",
            because="In one case refusals of unsafe prompts fell from 74.4 % to 33.4 %; leaving such pairs out mended "
            "it (arXiv 2410.08847).",
            needs=("D9.edit", "D9.ches"),
            sources=("2410.08847",),
        ),
        Rule(
            id="A7.flips",
            fires="D10.stuck is at warning or failure",
            when=lambda e: e.bad("D10.stuck"),
            answer="Part of it will not be learned: the model ranks those pairs the wrong way round by far.",
            because="DPO seldom flips them, and a smaller loss need not mean a better order (arXiv 2405.19534).",
            needs=("D10.stuck", "D10.ranked"),
            sources=("2405.19534",),
        ),
        Rule(
            id="A7.foreign",
            fires="D12.onpolicy is at warning or failure, or the chosen side is far from the model (as in "
            "A1.sft-first)",
            when=lambda e: e.bad("D12.onpolicy") or far_from_model(e),
            answer="Answers nobody compared may come up: the pairs are not the model's own.",
            because="DPO may favour responses outside its data (arXiv 2404.10719). Read some answers before serving.",
            needs=("D12.onpolicy", "D12.logprob"),
            sources=("2404.10719",),
        ),
        Rule(
            id="A7.overoptimisation",
            fires=f"more than one epoch, or fewer than {FEW_PROMPTS} prompts",
            when=lambda e: e.pairs is not None and (e.epochs > 1 or few_prompts(e)),
            answer="Over-optimisation: {n_epochs} over {n_prompts}.",
            because="DPO often deteriorates before one epoch is over (arXiv 2406.02900). Evaluate often, and trust the "
            "best checkpoint by win rate rather than the last.",
            needs=("pairs", "prompts"),
            sources=("2406.02900", "default"),
        ),
        Rule(
            id="A7.accuracy-alone",
            fires="a finished run ranks held-out pairs clearly above 1/2, but its win rate is not shown to be above it",
            when=lambda e: e.accuracy is not None and e.won is not None and e.accuracy.low > 0.5 and e.won.low <= 0.5,
            answer="It ranks pairs well and does not answer better.",
            because="Accuracy and win rate go together only near the reference (arXiv 2405.19534).",
            needs=("accuracy", "won"),
            sources=("2405.19534",),
        ),
        Rule(
            id="A7.refusal",
            fires="D4.refusal is at warning or failure",
            when=lambda e: e.bad("D4.refusal"),
            answer="Refusals of safe prompts, or answers to unsafe ones.",
            because="Test both after training; 250 safe prompts that look unsafe are published (arXiv 2308.01263).",
            needs=("D4.refusal", "D13.refusal"),
            sources=("2308.01263",),
        ),
        Rule(
            id="A7.cut",
            fires=f"D13.limit is at warning or failure, or more than {CUT:.0%} of the chosen or rejected responses are "
            "cut",
            when=lambda e: e.bad("D13.limit") or (e.cut is not None and max(e.cut) > CUT),
            answer="Cut responses: what stands behind the cut is not learned, and unequal cuts are a label of their "
            "own.",
            because="Raise data.max_response, or leave those pairs out.",
            needs=("D13.limit", "cut"),
            sources=("default",),
        ),
        Rule(
            id="A7.unfinished",
            fires="D13.cut is at warning or failure",
            when=lambda e: e.bad("D13.cut"),
            answer="Answers that stop in the middle of a sentence: one side does so more often than the other.",
            because="They were cut before they came here, so that a model learns to stop early, or that it must not be "
            "the other side. Sample with more tokens, or leave those pairs out.",
            needs=("D13.cut",),
            sources=("default",),
        ),
        Rule(
            id="A7.personal",
            fires="D13.personal is at warning or failure",
            when=lambda e: e.bad("D13.personal"),
            answer="Personal data may come out of the model again.",
            because="Replace it before training (data.personal=redact); afterwards it cannot be taken out.",
            needs=("D13.personal",),
            sources=("default",),
        ),
    ),
    fine=Rule(
        id="A7.nothing",
        fires="none of the others, and all that the question wants is known",
        when=lambda e: True,
        answer="Nothing that was looked for.",
        because="Facts, safety and abilities outside the data were not measured; compare before and after.",
        needs=("D9.edit", "D9.ches", "D13.cut", "cut", "D13.refusal"),
    ),
    unknown=Rule(
        id="A7.unknown",
        fires="something that the question wants is missing",
        when=lambda e: True,
        answer="Not known for what was not checked.",
        because="Some risks take the model, or checks that were not made.",
        action="{measure}",
    ),
)

QUESTIONS = (METHOD, CLEAN, HELD_OUT, PROMPTS, GROUPS, MORE, NEXT, BESIDES, RISK)
"""In the order they are answered."""
