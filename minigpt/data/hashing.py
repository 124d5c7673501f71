"""Hashes of texts: they decide between train and val, and find duplicates.

is_val("a text", fraction=0.1)              # the same in every file, order and run
seen = SeenHashes()
seen.first_time(hash_all(["a", "b", "a"]))  # [True, True, False]
"""

import hashlib
import math

import numpy as np


def hash_all(keys):
    """(n,) uint64: of each key the first 8 bytes of BLAKE2b over its UTF-8, as a number."""
    digests = [hashlib.blake2b(key.encode()).digest()[:8] for key in keys]
    return np.frombuffer(b"".join(digests), ">u8").astype(np.uint64)


def is_val(key, fraction):
    """Return whether the sample with this key is held out for val. Its hash alone decides, so the
    answer is the same in every file, order and run; a larger fraction holds out the same and more.
    """
    return bool(below(hash_all([key]), fraction)[0])


def below(hashes, fraction):
    """(n,) bool: which of `hashes` are in the lowest `fraction` (0 … 1, not 1) of all values."""
    return hashes < np.uint64(math.ceil(fraction * 2**64))


class SeenHashes:
    """A set of hashes in 8 bytes each, and 12 more for a moment while it grows.

    Sorted arrays, each more than twice as long as the next, which are merged as they grow.
    """

    def __init__(self):
        self._levels = []

    def first_time(self, hashes):
        """(n,) bool: which of `hashes` ((n,) uint64) are new. All are added."""
        unique, first = np.unique(hashes, return_index=True)
        new = np.ones(len(unique), bool)
        for level in self._levels:
            indices = np.minimum(np.searchsorted(level, unique), len(level) - 1)
            new &= level[indices] != unique
        if new.any():
            self._add(unique[new])
        fresh = np.zeros(len(hashes), bool)
        fresh[first[new]] = True
        return fresh

    def _add(self, level):
        while self._levels and len(self._levels[-1]) <= 2 * len(level):
            level = np.concatenate([self._levels.pop(), level])
            level.sort(kind="stable")  # which merges two sorted runs in linear time
        self._levels.append(level)
