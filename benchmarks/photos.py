"""Photographs to load: crops of the example photographs in many sizes, or pictures with a photograph's statistics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines.types import ImageRef

EXAMPLES = Path(__file__).parents[1] / "examples" / "photos"
SIZES_WH = ((640, 480), (1024, 768), (800, 600), (768, 1024))
_SYNTHETIC = 6


def write_photos(folder: Path, count: int, *, seed: int = 0, shrink: int = 1) -> list[ImageRef]:
    """Write JPEG photographs of SIZES_WH in turn, no two alike, and return their references.

    Args:
        folder: created if missing.
        count: how many.
        seed: of the crops.
        shrink: how many times smaller than SIZES_WH, for a quick look.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    originals = [Image.open(path).convert("RGB") for path in example_photos()]
    if not originals:
        originals = [synthetic_photo(rng, 1280, 960) for _ in range(min(count, _SYNTHETIC))]
    refs = []
    for index in range(count):
        path = folder / f"photo-{index:05d}.jpg"
        width, height = SIZES_WH[index % len(SIZES_WH)]
        crop = random_crop(originals[index % len(originals)], (width // shrink, height // shrink), rng)
        crop.save(path, quality=90)
        refs.append(ImageRef(image_id=path.name, uri=str(path), num_bytes=path.stat().st_size))
    return refs


def example_photos() -> list[Path]:
    """Return the example photographs of this checkout; none where it has no examples."""
    return sorted(path for path in EXAMPLES.glob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"))


def describe_photos(refs: list[ImageRef], *, shrink: int = 1) -> str:
    """Say what write_photos wrote."""
    sizes = ", ".join(f"{width // shrink} x {height // shrink}" for width, height in SIZES_WH)
    origin = "crops of the example photographs" if example_photos() else "synthetic pictures with 1/f spectra"
    mean_kb = sum(ref.num_bytes or 0 for ref in refs) / len(refs) / 1000
    return f"{len(refs)} JPEG files of {sizes} in turn, {mean_kb:.0f} kB each on average ({origin}, quality 90)"


def random_crop(picture: Image.Image, size_wh: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """Cut a random piece of the wanted shape, between half and all of what fits, and resize it."""
    fit = min(picture.width / size_wh[0], picture.height / size_wh[1]) * rng.uniform(0.5, 1.0)
    width, height = max(1, int(size_wh[0] * fit)), max(1, int(size_wh[1] * fit))
    left = int(rng.integers(picture.width - width + 1))
    top = int(rng.integers(picture.height - height + 1))
    return picture.resize(size_wh, Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))


def synthetic_photo(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Return a color picture whose spectrum falls with frequency as a photograph's does."""
    common = random_field(rng, height, width, exponent=1.1)
    channels = [common + 0.4 * random_field(rng, height, width, exponent=1.3) for _ in range(3)]
    pixels = np.stack(channels, axis=-1) * 48 + 120
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def random_field(rng: np.random.Generator, height: int, width: int, *, exponent: float) -> NDArray[np.float64]:
    """Return smooth noise (height, width) of mean 0 and deviation 1 with amplitude frequency ** -exponent."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.standard_normal((height, width))) * frequency**-exponent
    field = np.fft.irfft2(spectrum, s=(height, width))
    return np.asarray((field - field.mean()) / field.std())
