"""Every loss once more, written from the papers for one pair at a time with the math module alone.

Nothing here is shared with the package: no tensors, no stable forms, no vector operations. A step is a list of rows; a
function takes the step and the knobs and gives one loss a row. What a paper writes as a probability is one here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean


@dataclass
class Row:
    """A pair as the papers' letters: policy and reference log-probs of winner and loser, and what else it has."""

    pi_w: float
    pi_l: float
    ref_w: float
    ref_l: float
    n_w: int = 1
    n_l: int = 1
    p: float = 1.0
    m: float = 0.0
    w: int = 1
    pi_head: tuple[float, float] = (0.0, 0.0)
    ref_head: tuple[float, float] = (0.0, 0.0)
    kl: tuple[float, float] = (0.0, 0.0)
    certainty: tuple[float, float] = (0.0, 0.0)
    unlikely: tuple[float, float] = (0.0, 0.0)
    draw: float = 0.5


Step = list[Row]
Plain = Callable[..., list[float]]


def s(x: float) -> float:
    """The logistic function."""
    return 1 / (1 + math.exp(-x))


def cross_entropy(p: float, q: float) -> float:
    """Of a Bernoulli p under q."""
    return -(p * math.log(q) + (1 - p) * math.log(1 - q))


def f_prime(divergence: str, alpha: float | None) -> Callable[[float], float]:
    """Derivative of the generator f at the ratio t, up to a constant."""
    order = 0.5 if alpha is None else alpha
    return {
        "reverse-kl": math.log,
        "forward-kl": lambda t: 1 - 1 / t,
        "js": lambda t: math.log(2 * t / (1 + t)),
        "alpha": lambda t: (t ** (order - 1) - 1) / (order - 1),
    }[divergence]


def scores(r: Row, divergence: str = "reverse-kl", divergence_alpha: float | None = None) -> tuple[float, float]:
    f = f_prime(divergence, divergence_alpha)
    return f(math.exp(r.pi_w - r.ref_w)), f(math.exp(r.pi_l - r.ref_l))


def gap(r: Row, **f: object) -> float:
    winner, loser = scores(r, **f)  # type: ignore[arg-type]
    return winner - loser


def sigmoid(step: Step, beta: float, **f: object) -> list[float]:
    return [cross_entropy(r.p, s(beta * gap(r, **f) - r.m)) for r in step]


def cdpo(step: Step, beta: float, smoothing: float, **f: object) -> list[float]:
    return [cross_entropy(1 - smoothing, s(beta * gap(r, **f) - r.m)) for r in step]


def robust(step: Step, beta: float, smoothing: float, **f: object) -> list[float]:
    def one(r: Row) -> float:
        right, wrong = -math.log(s(beta * gap(r, **f))), -math.log(s(-beta * gap(r, **f)))
        return ((1 - smoothing) * right - smoothing * wrong) / (1 - 2 * smoothing)

    return [one(r) for r in step]


def geometric(step: Step, beta: float) -> list[float]:
    def one(r: Row) -> float:  # log of the weighted geometric means of both answers, against their swap
        mean_w = r.p * (r.pi_w - r.ref_w) + (1 - r.p) * (r.pi_l - r.ref_l)
        mean_l = r.p * (r.pi_l - r.ref_l) + (1 - r.p) * (r.pi_w - r.ref_w)
        return -math.log(s(beta * (mean_w - mean_l)))

    return [one(r) for r in step]


def hinge(step: Step, beta: float, **f: object) -> list[float]:
    return [max(0.0, 1 + r.m - beta * gap(r, **f)) for r in step]


def ipo(step: Step, beta: float, **f: object) -> list[float]:
    def one(r: Row) -> float:
        winner, loser = scores(r, **f)  # type: ignore[arg-type]
        return (winner / r.n_w - loser / r.n_l - 0.5 / beta) ** 2

    return [one(r) for r in step]


def ipo_summed(step: Step, beta: float, **f: object) -> list[float]:
    return [(gap(r, **f) - 0.5 / beta) ** 2 for r in step]


def dpo_norm(step: Step, beta: float, **f: object) -> list[float]:
    def one(r: Row) -> float:
        winner, loser = scores(r, **f)  # type: ignore[arg-type]
        return math.log(1 + math.exp(-beta * (winner / r.n_w - loser / r.n_l)))

    return [one(r) for r in step]


def exo(step: Step, beta: float, smoothing: float, **f: object) -> list[float]:
    def one(r: Row) -> float:
        q = [s(beta * gap(r, **f)), 1 - s(beta * gap(r, **f))]
        return sum(mine * math.log(mine / label) for mine, label in zip(q, (1 - smoothing, smoothing), strict=True))

    return [one(r) for r in step]


def nca(step: Step, beta: float) -> list[float]:
    def one(r: Row) -> float:
        winner, loser = s(beta * (r.pi_w - r.ref_w)), s(beta * (r.pi_l - r.ref_l))
        return -math.log(winner) - (math.log(1 - winner) + math.log(1 - loser)) / 2

    return [one(r) for r in step]


def sppo(step: Step, beta: float) -> list[float]:
    eta = 1 / beta
    return [
        (r.pi_w - r.ref_w - eta * (r.p - 0.5)) ** 2 + (r.pi_l - r.ref_l - eta * ((1 - r.p) - 0.5)) ** 2 for r in step
    ]


def apo_zero(step: Step, beta: float) -> list[float]:
    return [1 - s(beta * (r.pi_w - r.ref_w)) + s(beta * (r.pi_l - r.ref_l)) for r in step]


def apo_down(step: Step, beta: float) -> list[float]:
    return [s(beta * (r.pi_w - r.ref_w)) + 1 - s(beta * gap(r)) for r in step]


def discopop(step: Step, beta: float, tau: float, **f: object) -> list[float]:
    def one(r: Row) -> float:
        z = beta * gap(r, **f)
        blend = s(z / tau)
        return (1 - blend) * -math.log(s(z)) + blend * math.exp(-z)

    return [one(r) for r in step]


def dpop(step: Step, beta: float, penalty: float) -> list[float]:
    return [-math.log(s(beta * (gap(r) - penalty * max(0.0, r.ref_w - r.pi_w)))) for r in step]


def rdpo(step: Step, beta: float, alpha: float) -> list[float]:
    return [
        -math.log(s((beta * (r.pi_w - r.ref_w) + alpha * r.n_w) - (beta * (r.pi_l - r.ref_l) + alpha * r.n_l)))
        for r in step
    ]


def ld(step: Step, beta: float, alpha: float, tail_of: str = "both") -> list[float]:
    def one(r: Row) -> float:
        pi_w, pi_l = (head + alpha * (whole - head) for head, whole in zip(r.pi_head, (r.pi_w, r.pi_l), strict=True))
        weight = alpha if tail_of == "both" else 1.0
        ref_w, ref_l = (h + weight * (whole - h) for h, whole in zip(r.ref_head, (r.ref_w, r.ref_l), strict=True))
        return cross_entropy(r.p, s(beta * (pi_w - ref_w - pi_l + ref_l) - r.m))

    return [one(r) for r in step]


def samp(step: Step, beta: float) -> list[float]:
    return [
        cross_entropy(r.p, s(beta * (r.pi_head[0] - r.ref_head[0] - r.pi_head[1] + r.ref_head[1]) - r.m)) for r in step
    ]


def cal(step: Step, beta: float) -> list[float]:
    goal = 1 / beta / 2
    return [
        math.log(1 + math.exp(-gap(r))) + (r.pi_w - r.ref_w - goal) ** 2 + (r.pi_l - r.ref_l - -goal) ** 2 for r in step
    ]


def chi(step: Step, beta: float, clip: float | None = None) -> list[float]:
    def one(r: Row) -> float:
        t_w, t_l = math.exp(r.pi_w - r.ref_w), math.exp(r.pi_l - r.ref_l)
        z = beta * (t_w + math.log(t_w)) - beta * (t_l + math.log(t_l))
        return -math.log(s(z if clip is None else max(-clip, min(clip, z))))

    return [one(r) for r in step]


def tdpo1(step: Step, beta: float) -> list[float]:
    return [-math.log(s(beta * (gap(r) - (r.kl[1] - r.kl[0])))) for r in step]


def tdpo2(step: Step, beta: float, alpha: float) -> list[float]:
    return [-math.log(s(beta * (gap(r) - alpha * (r.kl[1] - r.kl[0])))) for r in step]


def copies(step: Step) -> list[tuple[int, Row]]:
    """A pair of weight 3 is three pairs of weight 1."""
    return [(i, r) for i, r in enumerate(step) for _ in range(r.w)]


def bco(step: Step, beta: float, shift: str = "moving", momentum: float | None = None) -> list[float]:
    rewards = [beta * (x - y) for _, r in copies(step) for x, y in ((r.pi_w, r.ref_w), (r.pi_l, r.ref_l))]
    delta = 0.0 if shift == "none" else fmean(rewards)  # of the first step, whatever the average
    return [
        -math.log(s(beta * (r.pi_w - r.ref_w) - delta)) - math.log(s(-(beta * (r.pi_l - r.ref_l) - delta)))
        for r in step
    ]


def ranked(
    step: Step, left: Callable[[Row], float], right: Callable[[Row], float], beta: float, e: float
) -> list[float]:
    mine = sorted((left(r), i) for i, r in copies(step))
    theirs = sorted(right(r) for _, r in copies(step))
    found: dict[int, list[float]] = {}
    for (x, i), y in zip(mine, theirs, strict=True):
        found.setdefault(i, []).append(cross_entropy(1 - e, s(beta * (x - y))))
    return [fmean(found[i]) if i in found else math.nan for i in range(len(step))]


def aot(step: Step, beta: float, smoothing: float = 0.0) -> list[float]:
    return ranked(step, lambda r: r.pi_w - r.pi_l, lambda r: r.ref_w - r.ref_l, beta, smoothing)


def aot_unpaired(step: Step, beta: float, smoothing: float = 0.0) -> list[float]:
    return ranked(step, lambda r: r.pi_w - r.ref_w, lambda r: r.pi_l - r.ref_l, beta, smoothing)


def beta_dpo(step: Step, beta: float, alpha: float, momentum: float, keep: float) -> list[float]:
    gaps = [gap(r) for r in step]
    total = sum(r.w for r in step)
    center = sum(r.w * h for r, h in zip(step, gaps, strict=True)) / total
    squares = sum(r.w * (h - center) ** 2 for r, h in zip(step, gaps, strict=True))
    spread = math.sqrt(squares / (total - sum(r.w**2 for r in step) / total))
    density = [math.exp(-((h - center) ** 2) / (2 * spread**2)) for h in gaps]
    arrival = [(-math.log(1 - r.draw) / d, i) for i, (r, d) in enumerate(zip(step, density, strict=True)) if r.w]
    kept = [i for _, i in sorted(arrival)[: max(1, math.floor(keep * len(arrival)))]]
    weight = sum(step[i].w for i in kept)
    level = sum(step[i].w * gaps[i] for i in kept) / weight
    now = max(1e-3, beta * (1 + alpha * (level - center)))
    return [-math.log(s(now * gaps[i])) * total / weight if i in kept else 0.0 for i in range(len(step))]


def drdpo(step: Step, beta: float, temperature: float) -> list[float]:
    core = sigmoid(step, beta)
    total = sum(r.w for r in step)
    soft = -temperature * math.log(
        sum(r.w * math.exp(-x / temperature) for r, x in zip(step, core, strict=True)) / total
    )
    mean = sum(r.w * x for r, x in zip(step, core, strict=True)) / total
    return [x - mean + soft for x in core]


def simpo(step: Step, beta: float, gamma: float) -> list[float]:
    return [-math.log(s(beta / r.n_w * r.pi_w - beta / r.n_l * r.pi_l - gamma - r.m)) for r in step]


def alphapo(step: Step, beta: float, gamma: float, alpha: float) -> list[float]:
    def reward(logp: float, n: int) -> float:
        geometric_mean = math.exp(logp) ** (1 / n)
        return beta * (math.log(geometric_mean) if alpha == 0 else (1 - geometric_mean**-alpha) / alpha)

    return [-math.log(s(reward(r.pi_w, r.n_w) - reward(r.pi_l, r.n_l) - gamma)) for r in step]


def likelihood(step: Step, reduce: str) -> list[float]:
    tokens = sum(r.w * r.n_w for r in step) / sum(r.w for r in step)
    return [-r.pi_w / {"per-token": tokens, "per-sequence": r.n_w, "sum": 1}[reduce] for r in step]


def cpo(step: Step, beta: float, nll_weight: float, reduce: str = "per-token") -> list[float]:
    prefer = [-math.log(s(beta * r.pi_w - beta * r.pi_l)) for r in step]
    return [x + nll_weight * y for x, y in zip(prefer, likelihood(step, reduce), strict=True)]


def orpo(step: Step, odds_weight: float, reduce: str = "per-sequence") -> list[float]:
    def odds(logp: float, n: int) -> float:
        p = math.exp(logp / n)
        return p / (1 - p)

    ratio = [-math.log(s(math.log(odds(r.pi_w, r.n_w) / odds(r.pi_l, r.n_l)))) for r in step]
    return [y + odds_weight * x for x, y in zip(ratio, likelihood(step, reduce), strict=True)]


def slic(step: Step, delta: float, nll_weight: float, reduce: str = "sum") -> list[float]:
    rank = [max(0.0, delta - r.pi_w + r.pi_l) for r in step]
    return [x + nll_weight * y for x, y in zip(rank, likelihood(step, reduce), strict=True)]


def sft(step: Step, reduce: str = "per-token") -> list[float]:
    return likelihood(step, reduce)


def unlikelihood(step: Step, alpha: float, form: str = "bounded") -> list[float]:
    return [-r.pi_w + alpha * (r.unlikely[1] if form == "bounded" else r.pi_l) for r in step]


def kto(step: Step, beta: float, desirable: float, undesirable: float) -> list[float]:
    total = sum(r.w for r in step)
    z0 = max(0.0, sum(r.w * (r.pi_l - r.ref_l) for r in step) / total)

    def one(r: Row) -> float:
        reward = r.pi_w - r.ref_w
        good, bad = desirable * (1 - s(beta * (reward - z0))), undesirable * (1 - s(beta * (z0 - reward)))
        return r.p * good + (1 - r.p) * bad

    return [one(r) for r in step]


def bco_unpaired(step: Step, beta: float, shift: str = "moving", momentum: float | None = None) -> list[float]:
    delta = 0.0 if shift == "none" else fmean(beta * (r.pi_w - r.ref_w) for _, r in copies(step))
    return [cross_entropy(r.p, s(beta * (r.pi_w - r.ref_w) - delta)) for r in step]


def apo_zero_unpaired(step: Step, beta: float) -> list[float]:
    return [r.p * (1 - s(beta * (r.pi_w - r.ref_w))) + (1 - r.p) * s(beta * (r.pi_w - r.ref_w)) for r in step]


def wpo(step: Step, inner: dict[str, object], most: float | None = None) -> list[float]:
    def weight(r: Row) -> float:
        full = math.exp(r.certainty[0]) * math.exp(r.certainty[1])
        return full if most is None else min(full, most)

    return [weight(r) * x for r, x in zip(step, by_name(step, inner), strict=True)]


def mixed(step: Step, parts: list[dict[str, object]]) -> list[float]:
    columns = [[float(str(part["coefficient"])) * x for x in by_name(step, part)] for part in parts]
    return [sum(row) for row in zip(*columns, strict=True)]


def by_name(step: Step, settings: dict[str, object]) -> list[float]:
    knobs = {key: value for key, value in settings.items() if key not in ("name", "coefficient")}
    return PLAIN[str(settings["name"])](step, **knobs)


PLAIN: dict[str, Plain] = {
    "sigmoid": sigmoid,
    "cdpo": cdpo,
    "robust": robust,
    "geometric": geometric,
    "hinge": hinge,
    "ipo": ipo,
    "ipo-summed": ipo_summed,
    "dpo-norm": dpo_norm,
    "exo": exo,
    "nca": nca,
    "sppo": sppo,
    "apo-zero": apo_zero,
    "apo-down": apo_down,
    "discopop": discopop,
    "dpop": dpop,
    "rdpo": rdpo,
    "ld": ld,
    "samp": samp,
    "cal": cal,
    "chi": chi,
    "tdpo1": tdpo1,
    "tdpo2": tdpo2,
    "bco": bco,
    "aot": aot,
    "aot-unpaired": aot_unpaired,
    "beta-dpo": beta_dpo,
    "drdpo": drdpo,
    "simpo": simpo,
    "alphapo": alphapo,
    "cpo": cpo,
    "orpo": orpo,
    "slic": slic,
    "sft": sft,
    "unlikelihood": unlikelihood,
    "kto": kto,
    "bco-unpaired": bco_unpaired,
    "apo-zero-unpaired": apo_zero_unpaired,
    "wpo": wpo,
    "mixed": mixed,
}


def plackett_luce(x: list[float]) -> float:
    """Minus the log-probability of drawing 0, 1, .. in this order from weights exp(x)."""
    return -sum(x[k] - math.log(sum(math.exp(v) for v in x[k:])) for k in range(len(x)))


def s_dpo(x: list[float]) -> float:
    """Minus the log-probability that the first is drawn first."""
    return -math.log(math.exp(x[0]) / sum(math.exp(v) for v in x))


def lipo(x: list[float], gain: list[float]) -> float:
    """LambdaRank's weights on logistic losses of pairs."""
    rank = {i: 1 + sum(other > value for other in x) for i, value in enumerate(x)}
    total = 0.0
    for i in range(len(x)):
        for j in range(len(x)):
            if gain[i] > gain[j]:
                lift = abs((2 ** gain[i] - 1) - (2 ** gain[j] - 1))
                place = abs(1 / math.log(1 + rank[i]) - 1 / math.log(1 + rank[j]))
                total += lift * place * math.log(1 + math.exp(-(x[i] - x[j])))
    return total
