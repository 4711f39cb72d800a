"""Addressed random streams: every draw is a function of (seed, purpose, step, sample index) and of nothing else.

The streams are counter-based (Philox-4x64, Salmon et al. 2011): the key is made from seed and purpose, the counter of
step, sample index and element. A draw is therefore the same however a batch is split, on every backend, and after a
resume. Normals come from Box-Muller, because rejection methods use a varying number of words and cannot be addressed.
"""

import hashlib
from functools import lru_cache

import numpy as np

BLOCK = 8192
"""Words that become normals at a time, if a sample has no more: the intermediates stay in the processor's caches."""
_EMPTY = np.zeros(4, np.uint64)
"""Philox's buffer of words that were computed and not yet asked for."""
_COARSE = np.exp(2j * np.pi * np.arange(1024) / 1024)
"""Points of the unit circle."""


@lru_cache(maxsize=256)
def _key(seed: int, purpose: str) -> np.ndarray:
    digest = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=16).digest()
    return np.frombuffer(digest, "<u8")


def _unit_circle(turns: np.ndarray) -> np.ndarray:
    """exp(2 pi i turns / 2^32), complex128, for integers in [0, 2^32), without NumPy's sine and cosine, which are slow.

    The nearest of `_COARSE` below, turned by the rest: less than 2 pi / 1024, where these short series are exact to
    float64's rounding.
    """
    rest = (turns & 0x3FFFFF) * (2 * np.pi * 2.0**-32)
    square = rest * rest
    point = np.empty(turns.shape, np.complex128)
    point.real = 1 - square * (1 / 2 - square / 24)
    point.imag = rest * (1 - square * (1 / 6 - square / 120))
    return point * _COARSE[turns >> 22]


class Noise:
    """The random streams of one seed.

    All draws take the purpose (a name that keeps streams apart), the step, the index of the first sample, the number of
    samples, and the shape of one sample; they return (count, *shape). Threads need an object each.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._stream = np.random.Philox(0)  # moved from address to address, which takes less time than to make one

    def _words(self, purpose: str, step: int, start: int, count: int, words: int) -> np.ndarray:
        """(count, words) raw 64-bit words; a sample owns whole counters, of four words each."""
        blocks = -(-words // 4)
        self._stream.state = {
            "bit_generator": "Philox",
            "state": {"counter": np.array([start * blocks, 0, step, 0], np.uint64), "key": _key(self.seed, purpose)},
            "buffer": _EMPTY,
            "buffer_pos": len(_EMPTY),
            "has_uint32": 0,
            "uinteger": 0,
        }
        return self._stream.random_raw(count * blocks * 4).reshape(count, blocks * 4)[:, :words]

    def uniform(self, purpose: str, step: int, start: int, count: int, shape: tuple[int, ...] = ()) -> np.ndarray:
        """Uniform float32 in [0, 1)."""
        words = self._words(purpose, step, start, count, int(np.prod(shape)))
        return ((words >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)).reshape(count, *shape)

    def normal(self, purpose: str, step: int, start: int, count: int, shape: tuple[int, ...] = ()) -> np.ndarray:
        """Standard normal float32, two from each 64-bit word (so |value| < 6.8)."""
        size = int(np.prod(shape))
        words = self._words(purpose, step, start, count, (size + 1) // 2)
        normals = np.empty((*words.shape, 2), np.float32)
        rows = max(1, BLOCK // max(1, words.shape[1]))
        for first in range(0, count, rows):
            part = words[first : first + rows]
            radius = np.sqrt(-2 * np.log(((part >> np.uint64(32)) + 0.5) * 2.0**-32))
            point = _unit_circle((part & np.uint64(0xFFFFFFFF)).astype(np.int64)) * radius
            normals[first : first + rows] = point.view(np.float64).reshape(*part.shape, 2)
        return normals.reshape(count, 2 * words.shape[1])[:, :size].reshape(count, *shape)

    def permutation(self, purpose: str, step: int, size: int) -> np.ndarray:
        """A random order of range(size)."""
        return np.argsort(self._words(purpose, step, 0, size, 1)[:, 0], kind="stable")
