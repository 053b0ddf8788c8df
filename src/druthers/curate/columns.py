"""The facts of all pairs in files, a column each, mapped into memory: what is not being looked at takes none."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from druthers.curate.facts import Facts, nothing
from druthers.curate.nearness import Sets

SPOTS = ".at"
"""What is added to the name of the column with the sizes of sets."""


@dataclass
class Columns:
    """Facts that are added lot by lot to files of an empty folder, which must stay while they are used."""

    folder: Path
    count: int = 0

    def add(self, facts: Facts) -> None:
        """Some more, behind the others."""
        for each in fields(Facts):
            value = getattr(facts, each.name)
            if isinstance(value, Sets):
                self.append(each.name + SPOTS, np.diff(value.at))
                value = value.hash_S
            self.append(each.name, value)
        self.count += len(facts)

    def append(self, name: str, value: NDArray[Any]) -> None:
        """The bytes of an array at the end of a file."""
        with (self.folder / name).open("ab") as file:
            file.write(np.ascontiguousarray(value).data)

    def facts(self) -> Facts:
        """All of them; to be read, and not written to."""
        none = nothing()
        if not self.count:
            return none
        found: dict[str, Any] = {}
        for each in fields(Facts):
            like = getattr(none, each.name)
            if isinstance(like, Sets):
                at = np.zeros(self.count + 1, dtype=np.int64)
                np.cumsum(self.mapped(each.name + SPOTS, like.at), out=at[1:])
                found[each.name] = Sets(self.mapped(each.name, like.hash_S), at)
            else:
                found[each.name] = self.mapped(each.name, like)
        return Facts(**found)

    def mapped(self, name: str, like: NDArray[Any]) -> NDArray[Any]:
        """A file as an array of the type and inner shape of another."""
        path = self.folder / name
        if not path.stat().st_size:
            return like
        flat = np.asarray(np.memmap(path, dtype=like.dtype, mode="r"))
        return flat.reshape(-1, *like.shape[1:])
