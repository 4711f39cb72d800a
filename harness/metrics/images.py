"""The one quantiser between images in [-1, 1] and the 8-bit images that every metric sees."""

import numpy as np

from harness.errors import UserError

# Public code bases differ here (some floor, some scale by 128 or 255), and FID notices: so its name is in the identity.
QUANTISER = "rint((x+1)*127.5)"


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Quantise images (n, c, h, w), nominally in [-1, 1], to uint8: -1 -> 0, 1 -> 255, what lies outside is clipped.

    Real and generated images both pass through here. Raises UserError for another dtype or shape, and for NaN or
    infinite values.
    """
    if not np.issubdtype(images.dtype, np.floating) or images.ndim != 4:
        raise UserError(f"images must be floating point (n, c, h, w), not {images.dtype} {images.shape}")
    if not np.isfinite(images).all():
        bad = int((~np.isfinite(images).all(axis=(1, 2, 3))).sum())
        raise UserError(f"images: non-finite values in {bad} of {len(images)}; the sampler or its network diverged")
    return np.rint((images.astype(np.float64) + 1) * 127.5).clip(0, 255).astype(np.uint8)


def from_uint8(images: np.ndarray) -> np.ndarray:
    """Map uint8 images to float64 in [-1, 1]: the inverse of `to_uint8` up to half a level."""
    return images.astype(np.float64) / 127.5 - 1


def require_uint8(name: str, images: np.ndarray, shape: tuple[int, ...] | None) -> None:
    """Raise UserError, naming `name`, unless `images` is a non-empty uint8 array (n, *shape).

    A shape of None stands for RGB and grey images of any size.
    """
    fits = images.shape[1:] == shape if shape else images.ndim == 4 and images.shape[1] in (1, 3)
    if images.dtype != np.uint8 or not fits or len(images) == 0:
        wanted = ", ".join(map(str, shape)) if shape else "1 or 3, h, w"
        raise UserError(
            f"{name} must be uint8 (n, {wanted}), not {images.dtype} {images.shape}; "
            "convert images in [-1, 1] with to_uint8"
        )
