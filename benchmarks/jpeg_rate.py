"""How fast JPEG is decoded on one core: Pillow alone, and what labeling does, with simplejpeg and without."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.load_rate import bare, load
from benchmarks.photos import example_photos, random_crop, synthetic_photo
from benchmarks.report import Figure, Report
from benchmarks.timing import Timed, time_in_turn
from pipelines.images import turbo_jpeg
from pipelines.images.decode import decode_image
from pipelines.types import ImageRef
from xsam_model.runtime.host_memory import keep_freed_memory

NAME = "jpeg_rate"
# (what, width, height, quality, how many)
KINDS = (
    ("0.5 MP, quality 75", 816, 612, 75, 24),
    ("0.5 MP, quality 90", 816, 612, 90, 24),
    ("12 MP, quality 90", 4000, 3000, 90, 2),
    ("12 MP, quality 90, turned by EXIF", 4000, 3000, 90, 2),
)


def run(*, tiny: bool = False) -> Report:
    """Time decoding alone, and fetching and decoding, for each kind of picture."""
    shrink, rounds = (8, 1) if tiny else (1, 9)
    keep_freed_memory()  # as a replica does
    figures, setup = list[Figure](), dict[str, str]()
    with tempfile.TemporaryDirectory() as folder:
        for place, (what, width, height, quality, count) in enumerate(KINDS):
            refs = write(Path(folder, str(place)), (width // shrink, height // shrink), quality, count, "EXIF" in what)
            timed = time_in_turn(loops(refs), rounds=rounds)
            mean_kb = sum(ref.num_bytes or 0 for ref in refs) / len(refs) / 1000
            setup[what] = f"{count} files of {mean_kb:.0f} kB on average, 4:2:0; other programs: {timed.say_others()}"
            figures += measure(what, timed, count)
    return Report(
        name=NAME,
        question="how fast is JPEG decoded on one core?",
        method=(
            "Processor time of one thread. Pillow alone opens a file, converts to RGB and makes an array. Decoding, as "
            "labeling does it, besides checks sizes and signature, looks for the end, turns by EXIF and takes the "
            "SHA-256, from bytes in memory; with simplejpeg, and without as if it were not installed. Fetching and "
            "decoding is the loader with one thread, from local files in the page cache. All give the same pixels. "
            "Freed memory is kept, as in a replica."
        ),
        setup={"rounds": str(rounds), "simplejpeg": version("simplejpeg"), **setup},
        figures=tuple(figures),
        remarks=(
            "The larger the file for its pixels, the more of the time is Huffman decoding, which is libjpeg-turbo's "
            "and the same in all: there the ratio is smaller.",
        ),
    )


def write(folder: Path, size_wh: tuple[int, int], quality: int, count: int, is_turned: bool) -> list[ImageRef]:
    """Write crops of the example photographs."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    originals = [Image.open(path).convert("RGB") for path in example_photos()] or [synthetic_photo(rng, 1280, 960)]
    exif = Image.Exif()
    exif[0x0112] = 6 if is_turned else 1
    refs = []
    for index in range(count):
        path = folder / f"{index}.jpg"
        random_crop(originals[index % len(originals)], size_wh, rng).save(path, quality=quality, exif=exif)
        refs.append(ImageRef(image_id=path.name, uri=str(path), num_bytes=path.stat().st_size))
    return refs


def loops(refs: Sequence[ImageRef]) -> dict[str, Callable[[], object]]:
    """Return what is timed, by name."""
    files = [(Path(ref.uri).read_bytes(), ref) for ref in refs]
    decode = turbo_jpeg._decoder()
    if decode is None:
        raise RuntimeError("simplejpeg is not installed, or Pillow's libjpeg gives other bits")
    same = [(decode(data, "RGB") == np.asarray(Image.open(io.BytesIO(data)))).all() for data, _ in files]
    if not all(same):
        raise RuntimeError("simplejpeg's pixels are not Pillow's")

    def decode_all() -> None:
        for data, ref in files:
            decode_image(data, ref)

    def decode_all_without() -> None:
        with without_simplejpeg():
            decode_all()

    def load_without() -> None:
        with without_simplejpeg():
            load(refs, 1)

    return {
        "Pillow alone": lambda: bare(refs),
        "decoding": decode_all,
        "decoding without simplejpeg": decode_all_without,
        "fetching and decoding": lambda: load(refs, 1),
        "fetching and decoding without simplejpeg": load_without,
    }


@contextmanager
def without_simplejpeg() -> Iterator[None]:
    """Have Pillow decode, as if simplejpeg were not installed."""
    found = turbo_jpeg._decoder
    turbo_jpeg._decoder = lambda: None  # type: ignore[assignment]
    try:
        yield
    finally:
        turbo_jpeg._decoder = found


def measure(what: str, timed: Timed, count: int) -> list[Figure]:
    """Return the times of one kind of picture, and their ratios."""
    figures = []
    for name, seconds in timed.cpu_seconds.items():
        cost = tuple(1000 * one / count for one in seconds)
        figures.append(Figure(what=f"{what}: {name}", value=min(cost), unit="CPU ms/image", repeats=cost))
    pairs = (
        ("decoding", "Pillow alone"),
        ("decoding", "decoding without simplejpeg"),
        ("fetching and decoding", "fetching and decoding without simplejpeg"),
    )
    for name, baseline in pairs:
        ratios = tuple(1 / ratio for ratio in timed.cpu_ratios(name, baseline))
        value = 1 / timed.cpu_ratio(name, baseline)
        figures.append(Figure(what=f"{what}: rate of {name} : {baseline}", value=value, unit="x", repeats=ratios))
    return figures
