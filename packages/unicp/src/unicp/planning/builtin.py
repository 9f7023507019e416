"""The profiles that ship with the package, and what to go by where there is none of a model."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from unicp.errors import InputError
from unicp.planning.profile import Fingerprint, Profile, load_profile

FOLDER = Path(__file__).parent / "profiles"
# dB that a guess promises less than the profile it is made from, which is of another model.
CAUTION = 6.0


def builtin_profile(fingerprint: Fingerprint) -> tuple[Profile, float]:
    """The shipped profile that fits best, and the caution with which to use it: 0 where it is of this very model.

    fingerprint: of the model; calls a step do not count. Raises InputError where none is shipped.
    """
    profiles = _shipped()
    if not profiles:
        raise InputError("a target without a profile", "no built-in profile", "make one with unicp calibrate")

    def likeness(profile: Profile) -> tuple[bool, bool]:
        own = profile.fingerprint
        return own.scheduler == fingerprint.scheduler, own.prediction == fingerprint.prediction

    for profile in profiles:
        if not profile.fingerprint.differences(
            Fingerprint(**{**vars(fingerprint), "branches": profile.fingerprint.branches})
        ):
            return profile, 0.0
    return max(profiles, key=likeness), CAUTION


@lru_cache(maxsize=1)
def _shipped() -> tuple[Profile, ...]:
    return tuple(load_profile(path) for path in sorted(FOLDER.glob("*.json")))
