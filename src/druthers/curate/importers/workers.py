"""Answers of single workers that lie beside a Ground Truth manifest, in files of their own.

A job writes `manifests/output/output.manifest` and `annotations/worker-response/iteration-1/<line>/<time>.json`; where
no Lambda brought the answers together, a line names its file in `worker-response-ref`. The folder is looked for at that
place, and right beside the manifest; files are found by the end of their names, so a copy of a bucket is enough.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any

from druthers import storage
from druthers.curate.importers.columns import Row
from druthers.curate.importers.exports import META, labels
from druthers.curate.importers.faults import RowFault
from druthers.records import InputError

FOLDER = "worker-response"
REF = "worker-response-ref"
PLACES = (FOLDER, f"annotations/{FOLDER}", f"../../annotations/{FOLDER}")
"""Where the folder may lie, seen from the folder of the manifest."""


@dataclass(frozen=True)
class Beside:
    """The folders in which worker responses may lie."""

    folders: tuple[str, ...]

    @classmethod
    def of(cls, source: str) -> Beside:
        """Those of a manifest, a folder of manifests or a URL."""
        inside = source if "://" not in source and os.path.isdir(source) else source.rpartition("/")[0] or "."
        return cls(tuple(_normal(f"{inside}/{place}") for place in PLACES))

    def join(self, row: Row) -> dict[str, Any]:
        """The row with the answers its labels refer to in the place of the labels.

        RowFault where a line names a file that is nowhere, or is no worker response.
        """
        joined = dict(row)
        for name in labels(row):
            meta = row[f"{name}{META}"]
            ref = meta.get(REF) if isinstance(meta, dict) else None
            if ref and isinstance(ref, str) and not row.get(name):
                joined[name] = self._answers(ref)
        return joined

    def _answers(self, ref: str) -> Any:
        tail = ref.partition(f"/{FOLDER}/")[2] or ref.rpartition("/")[2]
        if ".." in tail.split("/"):
            raise RowFault("malformed", f"{REF}: {ref!r} leads out of the folder of worker responses")
        for folder in self.folders:
            if (found := _load(f"{folder}/{tail}")) is not None:
                return found
        why = (
            f"no file .../{tail} in {' or '.join(self.folders)}; copy the job's annotations folder beside the manifest"
        )
        raise RowFault("no_worker_response", f"{REF}: {why}")


def _normal(path: str) -> str:
    """A path or URL without its steps up."""
    scheme, mark, rest = path.rpartition("://")
    return scheme + mark + os.path.normpath(rest)


def _load(path: str) -> Any:
    """The JSON of a file, or None where there is no such file."""
    try:
        return json.loads(storage.read_bytes(path))
    except InputError:
        return None
    except (ValueError, RecursionError):
        raise RowFault("malformed", f"{REF}: {storage.shown(path)} is not JSON") from None
