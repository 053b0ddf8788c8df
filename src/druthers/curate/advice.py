"""What the findings of a data set mean for what to do next: questions, rules, and the answers that follow from them.

The rules themselves stand in `rules`. Here is what they see (`Evidence`) and how they are read: of answers that exclude
one another the first rule that fires is given, of others all that fire. Where nothing speaks, the answer is that it is
not known and what is missing; evidence that is added can only take from what is missing. A rule that fires although the
question takes more says so too: a rule before it may have had a reason to fire.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from druthers import power
from druthers.findings import many
from druthers.power import Curve
from druthers.records import Advice, Finding
from druthers.stats import Interval

NOT_KNOWN = "not measured"
DESPITE_NOISE = 0.49
"""Noise estimates above this are taken as this: at one half labels say nothing and no number of them is enough."""


@dataclass(frozen=True)
class Group:
    """How much there is of one group: training pairs, and different prompts held out."""

    pairs: int
    heldout_prompts: int


@dataclass(frozen=True)
class Evidence:
    """What is known of a data set, of the run made of it, and of what is wanted; None is not known.

    `findings` are those of the data; `ties` the share of judged comparisons that were tied, `conflicts` the share of
    comparisons by several criteria in which these disagree, `tastes` the same for groups, `longer` the share of pairs
    whose chosen side is longer, `cut` the shares of chosen and rejected responses that were shortened, `graded` how
    many training pairs carry a probability below 1 or a margin, `unpaired` how many single answers with a thumb there
    are. `asked` prompts are answered and judged at the end of a run. `accuracy` and `won` are what a finished run
    reached, `curve` what runs of several sizes say. `improvement` (in 0..0.5) is what should be seen, `rounds` how
    often data will be collected and a model trained. For commands: `options` repeat the settings of `run`, `fresh` is a
    run directory that may still change, `model` the newest model, which `exported` says is yet to be written there,
    `rubric` what judges answers, `smaller` are the runs that would give a curve.
    """

    findings: tuple[Finding, ...] = ()
    run: str = "RUN"
    improvement: float = 0.05
    rounds: int = 1
    pairs: int | None = None
    prompts: int | None = None
    heldout: int | None = None
    heldout_prompts: int | None = None
    asked: int | None = None
    unpaired: int = 0
    graded: int = 0
    ties: Interval | None = None
    conflicts: Interval | None = None
    tastes: Interval | None = None
    longer: float | None = None
    cut: tuple[float, float] | None = None
    groups: Mapping[str, Group] = field(default_factory=dict)
    rubric: str = ""
    model: str = ""
    exported: bool = False
    epochs: float = 1.0
    accuracy: Interval | None = None
    won: Interval | None = None
    curve: Curve | None = None
    curve_missing: str = "runs of at least three sizes (`--runs`)"
    options: str = ""
    fresh: str = "RUN"
    smaller: str = ""

    def all(self, name: str) -> tuple[Finding, ...]:
        """Every finding of that id that is defined."""
        return tuple(found for found in self.findings if found.id == name and found.status != "undefined")

    def one(self, name: str) -> Finding | None:
        """The finding on the whole data, or else that of the overall criterion, or else the worst of its slices."""

        def rank(f: Finding) -> tuple[bool, bool, bool, int]:
            about = f.slice.get("criterion") != "overall", f.slice.get("metric", "nominal") != "nominal"
            return (bool(f.slice), *about, ("fail", "warn", "pass").index(f.status))

        return min(self.all(name), key=rank, default=None)

    def knows(self, name: str) -> bool:
        """Whether a finding of that id is defined, or a count of that name is there."""
        if "." in name:
            return bool(self.all(name))
        value = getattr(self, name)
        return value is not None and value != {}

    def bad(self, *names: str) -> bool:
        """Whether any of these is at warning or failure, on the whole or in a slice."""
        return any(found.status in ("warn", "fail") for name in names for found in self.all(name))

    def fails(self, *names: str) -> bool:
        """Whether any of these fails on the whole data (or, where that was not measured, in a slice)."""
        return any(found is not None and found.status == "fail" for found in map(self.one, names))

    @property
    def noise(self) -> float | None:
        """Share of labels that are the wrong way round, by D3.noise."""
        found = self.one("D3.noise")
        return None if found is None or found.value is None else min(max(share(found), 0.0), DESPITE_NOISE)

    @property
    def tied(self) -> float:
        """The share of ties, 0 where it is not known."""
        return min(self.ties.value, 0.95) if self.ties else 0.0

    @property
    def win_rate_needs(self) -> int:
        """Prompts that show the improvement as a win rate over 1/2."""
        gain = min(self.improvement, (1 - self.tied) / 2)
        return power.win_rate_needed(gain, ties=self.tied)

    @property
    def accuracy_needs(self) -> int:
        """Held-out prompts that show the improvement as accuracy: over 1/2, or over that of an earlier run."""
        noise = self.noise or 0.0
        if self.accuracy is None:
            return power.win_rate_needed(min(self.improvement, 0.5), noise=noise)
        before = min(self.accuracy.value, 1 - noise - self.improvement)
        seen = self.improvement * power.visible(noise)
        apart = before * (1 - before - seen) + (before + seen) * (1 - before)
        return power.comparisons_needed(seen, changed=min(1.0, max(apart, seen)))

    def weak(self) -> tuple[str, ...]:
        """Annotators who agree too little with the others or with gold answers."""
        named = (f for name in ("D3.annotator", "D6.gold") for f in self.all(name) if "annotator" in f.slice)
        found = {f.slice["annotator"] or "the nameless annotator" for f in named if f.status != "pass"}
        return tuple(sorted(found))

    def scarce(self) -> tuple[str, ...]:
        """Groups with less than half of what an equal share of the training pairs would be."""
        total = sum(group.pairs for group in self.groups.values())
        return tuple(sorted(name for name, group in self.groups.items() if 2 * group.pairs * len(self.groups) < total))

    def short_groups(self) -> dict[str, float]:
        """Groups whose held-out prompts do not show the improvement, with what they show at least (in 0..1)."""
        shown = {
            name: power.detectable_gain(group.heldout_prompts, noise=self.noise or 0.0)
            for name, group in sorted(self.groups.items())
        }
        return {name: gain for name, gain in shown.items() if gain > self.improvement}


def share(found: Finding) -> float:
    """The value of a finding that is a share, in 0..1 also where it is given in per cent or points.

    >>> share(Finding(id="D3.noise", status="pass", text="", value=12.0, unit="%"))
    0.12
    """
    assert found.value is not None, f"{found.id} has no value"
    return found.value / 100 if found.unit in ("%", "per cent", "percent", "points") else found.value


Condition = Callable[[Evidence], bool]


@dataclass(frozen=True)
class Rule:
    """When it fires, what is then the answer, and why: `because` for everyone, the numbers of `needs` for this data.

    `fires` is the condition in words. `answer`, `because` and `action` are templates over `numbers`. `needs` names
    findings (with a dot) and counts of the evidence, or finds their names. `sources` are arXiv ids that `because`
    states, or "default" for thresholds of ours.
    """

    id: str
    fires: str
    when: Condition
    answer: str
    because: str
    needs: tuple[str, ...] | Callable[[Evidence], tuple[str, ...]] = ()
    action: str = ""
    sources: tuple[str, ...] = ()


@dataclass(frozen=True)
class Question:
    """A question, its rules in order, what it takes to say that all is well, and what is then said.

    `wants` are alternatives: one finding or count of each tuple has to be there. `exclusive` answers exclude one
    another, and the first rule wins.
    """

    id: str
    text: str
    exclusive: bool
    rules: tuple[Rule, ...]
    wants: tuple[tuple[str, ...], ...]
    fine: Rule | None
    unknown: Rule

    @property
    def every(self) -> tuple[Rule, ...]:
        """All rules, the ones for all well and not known included."""
        return (*self.rules, *((self.fine,) if self.fine else ()), self.unknown)


def advise(evidence: Evidence, questions: Iterable[Question]) -> list[Advice]:
    """The answers, in the order of the questions and their rules.

    Each question has at least one answer, an exclusive one exactly one. The same evidence gives the same answers.
    """
    facts = numbers(evidence)
    return [stated(question, rule, evidence, facts) for question in questions for rule in chosen(question, evidence)]


def chosen(question: Question, evidence: Evidence) -> list[Rule]:
    """The rules that answer."""
    fired = [rule for rule in question.rules if rule.when(evidence)]
    gone = lacking(question, evidence)
    if question.exclusive and fired:
        return fired[:1]
    if gone or question.fine is None:
        return [*fired, question.unknown] if gone or not fired else fired
    return fired or [question.fine]


def lacking(question: Question, evidence: Evidence) -> tuple[str, ...]:
    """What the question wants and the evidence has not, with the reason where there is one."""
    gone = (options for options in question.wants if not any(map(evidence.knows, options)))
    return tuple(missing(options, evidence) for options in gone)


def missing(options: tuple[str, ...], evidence: Evidence) -> str:
    """One thing that is missing, or the alternatives, and why the first of them that was tried has no value."""
    tried = {f.id: f.undefined for f in reversed(evidence.findings) if f.id in options and f.undefined}
    if options == ("curve",):
        return evidence.curve_missing

    def named(option: str) -> str:
        why = f": {tried[option]}" if option in tried else ""
        return f"{NAMES[option]} ({option}{why})" if "." in option else NAMES[option]

    return " or ".join(map(named, options))


NAMES = {
    "D1.leak": "leaks",
    "D1.near": "near copies",
    "D1.duplicate": "copies",
    "D2.contradiction": "contradictions",
    "D3.alpha": "agreement of several annotators",
    "D3.noise": "noise by the answers of several annotators",
    "D4.length": "taste for length",
    "D4.markdown": "taste for format",
    "D4.refusal": "taste for refusals",
    "D5.shortcut": "shortcuts",
    "D6.noise": "noise by a model of the other pairs",
    "D7.effective": "as how many alike ones the pairs count",
    "D8.coverage": "coverage of what is asked in production",
    "D9.ches": "how alike the model sees both answers",
    "D9.edit": "pairs of nearly the same text",
    "D12.logprob": "how likely the chosen answers are to the model",
    "D13.cut": "answers that stop short",
    "D13.personal": "personal data",
    "D13.refusal": "refusals",
    "cut": "the number of cut responses",
    "pairs": "the number of training pairs",
    "prompts": "the number of different prompts",
    "heldout_prompts": "the number of held-out prompts",
    "groups": "groups (the field `group` of the pairs)",
    "accuracy": "a finished run",
}
"""How findings and counts are called where they are missing."""


def stated(question: Question, rule: Rule, evidence: Evidence, facts: Mapping[str, str]) -> Advice:
    """One rule as an answer, with what it saw."""
    partly = question.exclusive or rule is question.unknown
    named = rule.needs if isinstance(rule.needs, tuple) else rule.needs(evidence)
    seen = tuple(name for name in named if evidence.knows(name))
    if rule in question.rules and any(evidence.bad(name) for name in seen if "." in name):
        seen = tuple(name for name in seen if telling(name, evidence))
    because = rule.because.format_map(facts).strip()
    reasons = [because, *(line for name in seen for line in said(name, evidence, facts))]
    return Advice(
        question=question.text,
        answer=rule.answer.format_map(facts),
        rule=rule.id,
        why=" ".join(reason for reason in reasons if reason),
        evidence=seen,
        action=rule.action.format_map(facts),
        sources=rule.sources,
        missing=lacking(question, evidence) if partly else (),
    )


def telling(name: str, evidence: Evidence) -> bool:
    """Whether something speaks for a rule that fires on a verdict: what passes its limits for certain does not."""
    return "." not in name or any(f.status != "pass" or f.uncertain or not f.limits for f in evidence.all(name))


def said(name: str, evidence: Evidence, facts: Mapping[str, str]) -> list[str]:
    """What a finding or count says, with its numbers; of many slices the three worst."""
    if "." not in name:
        return [f"{COUNTS[name]}: {facts[name]}."] if name in COUNTS else []
    found = sorted(evidence.all(name), key=lambda f: ("fail", "warn", "pass").index(f.status))
    worst = [f for f in found if f.status != "pass" or f.uncertain] or found[:1]
    more = f" {len(worst) - 3} more like it." if len(worst) > 3 else ""
    lines = [f"{finding.text.rstrip('.')} [{label(finding)}]." for finding in worst[:3]]
    return [*lines[:-1], lines[-1] + more] if lines else []


COUNTS = {
    "pairs": "Training pairs",
    "prompts": "Different prompts among them",
    "heldout_prompts": "Held-out prompts",
    "asked": "Prompts answered and judged at the end of a run",
    "unpaired": "Single answers with a thumb",
    "graded": "Training pairs with p below 1 or a margin",
    "ties": "Ties among the judged comparisons",
    "conflicts": "Comparisons in which criteria disagree",
    "tastes": "Comparisons on which groups disagree",
    "longer": "Pairs whose chosen side is longer",
    "cut": "Responses cut (chosen, rejected)",
    "accuracy": "Held-out accuracy of the finished run",
    "won": "Win rate of the finished run",
}
"""How counts are called where they are said."""


def label(found: Finding) -> str:
    """Id, slice, number, interval and n of a finding.

    >>> label(Finding(id="D3.alpha", status="fail", text="", value=0.1, low=0.05, high=0.15, n=40, slice={"of": "de"}))
    'D3.alpha of=de: 0.1 (0.05 to 0.15), n = 40'
    """
    about = "".join(f" {key}={value}" for key, value in found.slice.items())
    if found.value is None:
        return f"{found.id}{about}"
    unit = f" {found.unit}" if found.unit else ""
    sure = found.low is None or found.high is None or found.low == found.high
    interval = "" if sure else f" ({found.low:.4g} to {found.high:.4g})"
    rows = f", n = {found.n:,}" if found.n else ""
    enough = f", n = {found.needed:,} would decide" if found.uncertain and found.needed else ""
    return f"{found.id}{about}: {found.value:.4g}{unit}{interval}{rows}{enough}"


# ---------------------------------------------------------------- numbers


def numbers(evidence: Evidence) -> dict[str, str]:
    """Everything an answer may quote, as text; what is not known says so."""
    e = evidence
    known_noise = e.noise is not None
    shown = {
        "run": e.run,
        "fresh": e.fresh,
        "options": e.options,
        "export": f"(test -d {e.model} || druthers export {e.run} {e.model}) && " if e.exported else "",
        "model": f" --model {e.model}" if e.model else "",
        "rubric": e.rubric,
        "points": "1 point" if round(100 * e.improvement, 4) == 1 else f"{round(100 * e.improvement, 4):g} points",
        "n_epochs": "1 epoch" if e.epochs == 1 else f"{e.epochs:g} epochs",
        "n_pairs": "an unknown number of pairs" if e.pairs is None else many(e.pairs, "training pair"),
        "n_prompts": "an unknown number of prompts" if e.prompts is None else many(e.prompts, "prompt"),
        "n_unpaired": many(e.unpaired, "single answer"),
        "n_asked": NOT_KNOWN if e.asked is None else many(e.asked, "prompt") + (" is" if e.asked == 1 else " are"),
        **{name: whole(getattr(e, name)) for name in ("pairs", "prompts", "heldout", "heldout_prompts", "asked")},
        **{name: whole(getattr(e, name)) for name in ("unpaired", "graded")},
        **{name: part(getattr(e, name)) for name in ("ties", "conflicts", "tastes", "accuracy", "won")},
        "longer": NOT_KNOWN if e.longer is None else f"{e.longer:.0%}",
        "cut": NOT_KNOWN if e.cut is None else f"{e.cut[0]:.1%}, {e.cut[1]:.1%}",
        "noise": f"{e.noise:.0%}" if known_noise else NOT_KNOWN,
        "ceiling": f"{power.ceiling(e.noise or 0):.0%}" if known_noise else NOT_KNOWN,
        "noise_said": noise_said(e.noise),
        "hidden": hidden(e.noise),
        "win_rate_needs": f"{e.win_rate_needs:,}",
        "count_needs": str(e.win_rate_needs),
        "accuracy_needs": f"{e.accuracy_needs:,}",
        "detects": shown_by(e.heldout_prompts, "accuracy", noise=e.noise or 0.0, ties=0.0),
        "detects_wins": shown_by(e.asked, "win rate", noise=0.0, ties=e.tied),
        "more_heldout": whole(None if e.heldout_prompts is None else max(0, e.accuracy_needs - e.heldout_prompts)),
        "annotators": listed(e.weak()),
        "scarce": listed(e.scarce()),
        "short_groups": listed(f"{name} {points(gain)}" for name, gain in e.short_groups().items()),
        "smaller": e.smaller,
        "too_small": "" if e.smaller or e.pairs is None else f"{many(e.pairs, 'pair')} are too few to take parts of.",
    }
    return shown | commands(e) | curve_numbers(e)


OF_INSPECT = ("D9.ches", "D9.edit", "D12.logprob", "D6.noise", "D13.language")
"""Findings that `druthers inspect` makes; where one is there, defined or not, it has run."""


def commands(evidence: Evidence) -> dict[str, str]:
    """What measures that which was not measured; nothing where it was tried and could not be.

    >>> commands(Evidence(options="--data a.jsonl"))["measure"], commands(Evidence(pairs=9))["measure"]
    ('druthers curate --data a.jsonl --run RUN', 'druthers inspect RUN')
    """
    curate = f"druthers curate {evidence.options} --run {evidence.run}" if evidence.pairs is None else ""
    tried = any(found.id in OF_INSPECT for found in evidence.findings)
    return {
        "remake": curate,
        "measure": curate or ("" if tried else f"druthers inspect {evidence.run}"),
        "cover": curate or f"druthers inspect {evidence.run} --prompts PROMPTS.jsonl",
    }


def curve_numbers(evidence: Evidence) -> dict[str, str]:
    """What the runs of several sizes say of more pairs."""
    names = ("largest", "double", "gain", "target", "reach", "sizes")
    curve = evidence.curve
    if curve is None:
        return dict.fromkeys(names, NOT_KNOWN)
    gain = curve.gain(curve.largest, 2 * curve.largest)
    target = curve.at(curve.largest).value + evidence.improvement
    reach = curve.needed(target)
    limit = power.REACH * curve.largest
    sizes = sorted({point.pairs for point in curve.points})
    return {
        "largest": f"{curve.largest:,}",
        "double": f"{2 * curve.largest:,}",
        "gain": f"{100 * gain.value:+.1f} points ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})",
        "target": f"{target:.1%}",
        "reach": f"{upto(reach.value, limit)} pairs in all (95 %: {upto(reach.low, limit)} to "
        f"{upto(reach.high, limit)}; {reach.share:.0%} of the resampled curves get there at all)",
        "sizes": ", ".join(f"{size:,}" for size in sizes),
    }


def upto(pairs: float, limit: float) -> str:
    """A number of pairs, or that it lies beyond what the runs say anything about.

    >>> upto(1234.4, 10_000), upto(1e9, 10_000)
    ('1,234', 'more than 10,000')
    """
    return f"{pairs:,.0f}" if pairs <= limit else f"more than {limit:,.0f}"


def whole(count: int | None) -> str:
    """A count with its thousands."""
    return NOT_KNOWN if count is None else f"{count:,}"


def part(found: Interval | None) -> str:
    """A share with its interval."""
    if found is None:
        return NOT_KNOWN
    return f"{found.value:.1%} ({found.low:.1%} to {found.high:.1%}, n = {found.n:,})"


def noise_said(noise: float | None) -> str:
    """What the agreement of people says of wrong labels, where it says something.

    >>> noise_said(0.2), noise_said(None)
    ('By what several people said, 20% are wrong here, which makes it 2.8 times as many that it takes. ', '')
    """
    if noise is None:
        return ""
    times = f"{power.noise_inflation(noise):.1f} times as many that it takes"
    return f"By what several people said, {noise:.0%} are wrong here, which makes it {times}. "


def hidden(noise: float | None) -> str:
    """What wrong labels do to a difference."""
    if noise is None:
        return "Wrong labels, of which it is not known how many there are, hide a part of it."
    return f"The {noise:.0%} of wrong labels hide a part of it." if noise >= 0.005 else ""


def shown_by(n: int | None, of: str, *, noise: float, ties: float) -> str:
    """What so many prompts show at least, as a sentence.

    >>> shown_by(1, "accuracy", noise=0.0, ties=0.0)
    '1 prompt shows no difference in accuracy, however large.'
    """
    if n is None:
        return ""
    gain = power.detectable_gain(n, noise=noise, ties=ties)
    verb = "shows" if n == 1 else "show"
    if gain > 0.5:
        return f"{many(n, 'prompt')} {verb} no difference in {of}, however large."
    return f"{many(n, 'prompt')} {verb} a difference in {of} of {points(gain)} or more."


def points(gain: float) -> str:
    """A gain in points, or that there is none large enough.

    >>> points(0.081), points(0.9)
    ('8.1 points', 'nothing')
    """
    return f"{100 * gain:.1f} points" if gain <= 0.5 else "nothing"


def listed(names: Iterable[str]) -> str:
    """Names after one another, at most eight of them."""
    found = [name for name in names if name]
    return ", ".join(found[:8]) + (f" and {len(found) - 8} more" if len(found) > 8 else "")
