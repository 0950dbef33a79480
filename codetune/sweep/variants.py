"""What a sweep consists of: each combination of the settings that vary, as a project of its own, its controls (as many
random rows, and all rows), and a run of each for every seed, in a directory below that of the sweep.

Nothing is run here. The project file is read once, so that a change of it while the sweep runs changes nothing."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path

from codetune.errors import ProjectError
from codetune.project.file import read_project
from codetune.project.keys import keys
from codetune.project.sections import Project
from codetune.records import BASE
from codetune.store.run_directory import Run

Assigned = Mapping[str, object]  # dotted key of the project file -> its value in a variant
STRATEGY, RATIO, COUNT = OF_SIZE = "select.strategy", "select.ratio", "select.count"
# What a random draw and all rows do not read: variants that differ in these alone have the same controls.
UNREAD_BY_CONTROLS = (
    *OF_SIZE,
    "select.ratio_of",
    "select.clusters",
    "select.token_share",
    "select.max_ifd",
    "select.mismatch",
    "select.mismatch_level",
    "embed.model",
    "embed.batch_size",
)
ALL, RANDOM = "all", "random"  # strategies, and the names of controls
LONGEST_NAME = 80  # of a variant, so that its files have names that a file system takes
DIGITS = 8  # of the digest in a name that cannot say everything
# `base` is neither selected for nor trained: what can change its figures.
OF_BASE = ("dataset.", "model.", "generate.", "evaluate.")
OF_HELD_OUT_ROWS = ("train.holdout", "train.max_length", "train.too_long", "train.learn")
UNCLEAR = {name for name, count in Counter(key.rpartition(".")[2] for key, _ in keys()).items() if count > 1}


@dataclass(frozen=True, slots=True)
class Variant:
    """A combination of settings; its runs differ in the seed alone. `controls` are by their names."""

    name: str
    settings: Assigned
    project: Project  # it has the name, the directory and the seed of no run
    controls: Mapping[str, Variant] = field(default_factory=dict)

    @property
    def base(self) -> str:
        """The name of the base model that its runs start from: one of several, where the settings differ in it."""
        own = {key: value for key, value in self.settings.items() if key.startswith((*OF_BASE, *OF_HELD_OUT_ROWS))}
        return f"{BASE}-{name_of(own)}" if own else BASE


@dataclass(frozen=True, slots=True)
class SweepRun:
    """A variant or a control with a seed. The name is that of its directory as well."""

    name: str
    project: Project


@dataclass(frozen=True)
class Sweep:
    """What is asked for: the project, the values of each key that varies, and the number of seeds."""

    file: Path
    assignments: Sequence[str]
    varied: Mapping[str, Sequence[object]]
    seeds: int
    has_controls: bool = True
    has_benchmarks: bool = True
    replace: bool = False  # finished models of other settings may be discarded
    at_once: int | None = None  # runs side by side; None: as many as there are GPUs for
    uncounted: Collection[str] = ()  # held-out rows that no outcome counts, such as those known to be wrong

    @cached_property
    def project(self) -> Project:
        return read_project(self.file, self.assignments, {})

    @property
    def directory(self) -> Path:
        return Run(self.project.run_dir).sweep

    @property
    def table(self) -> Path:
        """The file of its outcomes."""
        return Run(self.project.run_dir).sweep_table

    @cached_property
    def variants(self) -> Sequence[Variant]:
        """Every combination, equal ones once. Raises ProjectError with the mistakes of all of them."""
        found: dict[str, Variant] = {}
        mistakes: dict[str, None] = {}
        for values in product(*self.varied.values()):
            try:
                variant = self._variant(dict(zip(self.varied, values, strict=True)))
                found.setdefault(variant.project.model_dump_json(), variant)
            except ProjectError as why:
                mistakes |= dict.fromkeys(str(why).split("\n"))
        if mistakes:
            raise ProjectError("\n".join(mistakes))
        return list(found.values())

    def run_of(self, variant: Variant, offset: int, count: int | None = None) -> SweepRun:
        """The run of a variant with a seed; `count` is the number of rows that a control draws."""
        seed = self.project.seed + offset
        name = f"{variant.name if count is None else name_of({**variant.settings, COUNT: count})}-seed{seed}"
        place: dict[str, object] = {"name": name, "output_dir": str(self.directory / name), "seed": seed}
        project = variant.project.model_copy(update=place)
        if count is not None:
            project = project.model_copy(update={"select": project.select.model_copy(update={"count": count})})
            place[COUNT] = count
        return SweepRun(name, project.placed(variant.project.root, {**variant.project.overrides, **place}))

    def _variant(self, settings: Assigned) -> Variant:
        variant = self._without_controls(settings)
        strategy = variant.project.select.strategy
        if not self.has_controls or strategy == ALL:
            return variant
        others = {key: value for key, value in settings.items() if key not in UNREAD_BY_CONTROLS}
        names = (ALL,) if strategy == RANDOM else (RANDOM, ALL)
        controls = {name: self._without_controls({STRATEGY: name, **others}) for name in names}
        return Variant(variant.name, variant.settings, variant.project, controls)

    def _without_controls(self, settings: Assigned) -> Variant:
        """With the strategy `all` there is no share to take, and a ratio that varies takes the place of a count."""
        takes_all = settings.get(STRATEGY, self.project.select.strategy) == ALL
        if takes_all:
            settings = {STRATEGY: ALL, **{key: settings[key] for key in settings if key not in OF_SIZE}}
        cleared = {COUNT: None} if takes_all or (RATIO in settings and COUNT not in settings) else {}
        project = read_project(self.file, self.assignments, {**cleared, **settings})
        return Variant(name_of(settings), settings, project)


def name_of(settings: Assigned) -> str:
    """The name of a variant, by its values; with a digest of them where they do not fit into the name of a file.

    >>> name_of({STRATEGY: "mig", RATIO: 0.4, "train.learning_rate": 1e-4, "model.path": "base"})
    'mig-0.4-learning_rate_0.0001-model.path_base'
    """
    text = "-".join(_part(key, value) for key, value in settings.items()) or "project"
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", text)
    if name == text and len(name) <= LONGEST_NAME and name[0].isalnum():
        return name
    digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:DIGITS]
    return f"{name[:LONGEST_NAME].lstrip('._-') or 'variant'}-{digest}"


def _part(key: str, value: object) -> str:
    said = value if isinstance(value, str) else json.dumps(value)
    if key in (STRATEGY, RATIO):
        return said
    last = key.rpartition(".")[2]
    return f"{key if last in UNCLEAR else last}_{said}"
