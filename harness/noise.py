"""Addressed random streams: every draw is a function of (seed, purpose, step, sample index) and of nothing else.

The streams are counter-based (Philox-4x64, Salmon et al. 2011): the key is made from seed and purpose, the counter of
step, sample index and element. A draw is therefore the same however a batch is split, on every backend, and after a
resume. Normals come from Box-Muller, because rejection methods use a varying number of words and cannot be addressed.
"""

import hashlib
from functools import lru_cache

import numpy as np


@lru_cache(maxsize=256)
def _key(seed: int, purpose: str) -> tuple[int, int]:
    digest = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=16).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


class Noise:
    """The random streams of one seed.

    All draws take the purpose (a name that keeps streams apart), the step, the index of the first sample, the number of
    samples, and the shape of one sample; they return (count, *shape).
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def _words(self, purpose: str, step: int, start: int, count: int, words: int) -> np.ndarray:
        """(count, words) raw 64-bit words; a sample owns whole counters, of four words each."""
        blocks = -(-words // 4)
        counter = np.array([start * blocks, 0, step, 0], dtype=np.uint64)
        stream = np.random.Philox(key=np.array(_key(self.seed, purpose), dtype=np.uint64), counter=counter)
        return stream.random_raw(count * blocks * 4).reshape(count, blocks * 4)[:, :words]

    def uniform(self, purpose: str, step: int, start: int, count: int, shape: tuple[int, ...] = ()) -> np.ndarray:
        """Uniform float32 in [0, 1)."""
        words = self._words(purpose, step, start, count, int(np.prod(shape)))
        return ((words >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)).reshape(count, *shape)

    def normal(self, purpose: str, step: int, start: int, count: int, shape: tuple[int, ...] = ()) -> np.ndarray:
        """Standard normal float32, two from each 64-bit word (so |value| < 6.8)."""
        size = int(np.prod(shape))
        words = self._words(purpose, step, start, count, (size + 1) // 2)
        radius = np.sqrt(-2 * np.log(((words >> np.uint64(32)) + 0.5) * 2.0**-32))
        angle = (words & np.uint64(0xFFFFFFFF)) * (2 * np.pi * 2.0**-32)
        pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
        return pairs.reshape(count, -1)[:, :size].astype(np.float32).reshape(count, *shape)

    def permutation(self, purpose: str, step: int, size: int) -> np.ndarray:
        """A random order of range(size)."""
        return np.argsort(self._words(purpose, step, 0, size, 1)[:, 0], kind="stable")
