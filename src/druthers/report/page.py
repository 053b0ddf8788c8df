"""Everything the page says, by the names `page.html.j2` prints it under."""

from __future__ import annotations

from typing import Any

from druthers.report import checks, comparison, headline, learning, provenance, samples
from druthers.report.reading import RunFiles


def view(files: RunFiles) -> dict[str, Any]:
    """The content of every section of the page of a run."""
    checked = checks.checks(files)
    return {
        "name": files.path.resolve().name,
        "headline": headline.headline(files, checked.rows),
        "facts": headline.facts(files),
        "wins": comparison.wins(files),
        "tallies": comparison.tallies(files),
        "detectable": comparison.detectable(files),
        "rules": comparison.rules(files),
        "accuracy": learning.accuracy(files),
        "flips": learning.flips(files),
        "curves": learning.curves(files),
        "margins": learning.margins(files),
        "checks": checked,
        "fell": learning.fell(files),
        "rewards": learning.rewards(files),
        "kl": checks.kl(files),
        "samples": samples.shown_samples(files),
        "sample_rule": samples.sample_rule(files),
        "data": provenance.data(files),
        "machine": provenance.machine(files),
        "limits": provenance.limits(files),
        "undefined": provenance.undefined_numbers(files),
        "missing": files.absent,
        "settings": list(provenance.settings(files.config)),
        "why": files.why_missing,
    }
