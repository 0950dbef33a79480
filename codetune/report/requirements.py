"""The packages that this version of codetune needs, held against those that are installed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

PACKAGE = "codetune"


@dataclass(frozen=True, slots=True)
class PackageState:
    """A package, the version that is installed (None: it is not), and the versions that codetune works with."""

    name: str
    installed: str | None
    expected: str

    @property
    def fits(self) -> bool:
        return self.installed is not None and Requirement(f"x{self.expected}").specifier.contains(
            self.installed, prereleases=True
        )


def required_packages() -> Iterator[PackageState]:
    """Those of every installation, without the extras."""
    try:
        stated = requires(PACKAGE) or []
    except PackageNotFoundError:  # run from its sources, without an installation
        stated = []
    for text in stated:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield PackageState(requirement.name, installed_version(requirement.name), str(requirement.specifier))


def installed_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def unmet_requirements() -> list[str]:
    """An error for each package that is missing or has another version."""
    return [
        f"{found.name} is {found.installed or 'not installed'}. Expected: {found.expected}. Install it: pip install "
        f"'{found.name}{found.expected}'"
        for found in required_packages()
        if not found.fits
    ]
