"""Which files are pictures by their names: those that are read, those of other formats, and what looks like one."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from typing import Any

from pipelines.redaction import counted

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".tif", ".tiff", ".bmp", ".gif")
"""Files that every installation reads."""

_HEIF, _AVIF, _JXL = (".heic", ".heif", ".hif"), (".avif",), (".jxl",)
_AVIF_BRANDS = {b"avif", b"avis"}
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
_MAX_BOX_BYTES = 4096
# Files of these are counted and named where they are left out: people expect them to be labeled.
_OTHER_FORMATS = (
    *(*_HEIF, *_AVIF, *_JXL, ".jp2", ".j2k", ".j2c", ".jpf", ".jpx", ".jpm", ".jls", ".jxr", ".wdp"),
    *(".dcm", ".dicom", ".nii", ".nii.gz", ".nrrd", ".mha", ".svs", ".ndpi", ".mrxs", ".czi", ".lif", ".fits"),
    *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw", ".psd", ".psb", ".xcf"),
    *(".exr", ".hdr", ".tga", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".dds", ".ico", ".icns", ".qoi", ".svg", ".pdf"),
    *(".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".zip", ".7z", ".rar"),
)
# How files of formats begin that are pictures, and that no decoder here reads; told by their content, since names lie.
_NOT_READ = re.compile(
    rb"(?P<JPEG_2000>\x00\x00\x00\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51)|"
    rb"(?P<JPEG_XR>II\xbc[\x00\x01])|"
    rb"(?P<DICOM>.{128}DICM)|(?P<CR3>.{4}ftypcrx )|(?P<RAF>FUJIFILMCCD-RAW)|(?P<PSD>8BPS\x00[\x01\x02])|"
    rb"(?P<OpenEXR>\x76\x2f\x31\x01)|(?P<Radiance>#\?(?:RADIANCE|RGBE)\s)|(?P<PNM>P[1-6]\s+[#0-9]|P7\n)|"
    rb"(?P<ICO>\x00\x00\x01\x00[^\x00]\x00)|(?P<DDS>DDS \x7c\x00\x00\x00)|(?P<QOI>qoif)|(?P<FITS>SIMPLE  =)",
    re.DOTALL,
)
# Hidden files and folders, and the folders in which systems keep thumbnails, resource forks and deleted files.
_CLUTTER = re.compile(
    r"(?:^|/)(?:\.(?!\.?(?:/|$))|(?:__MACOSX|@eaDir|#recycle|@Recycle|#snapshot|@Recently-Snapshot|\$RECYCLE\.BIN|"
    r"\$Recycle\.Bin|System Volume Information|lost\+found|_temporary)/)"
)
_TABLE_LOG = re.compile(r"(?:^|/)(?:_delta_log/|\.hoodie/|metadata/[^/]+\.metadata\.json\Z)")
_MAX_NAMED = 6


@cache
def readable_extensions() -> tuple[str, ...]:
    """Return the extensions of the image files that are read here, in lower case; the extra ``pictures`` adds some."""
    names = registered_formats()
    found = (*IMAGE_EXTENSIONS, *(_AVIF if "AVIF" in names else ()), *(_HEIF if "HEIF" in names else ()))
    return (*found, *(_JXL if find_spec("imagecodecs") else ()))


@cache
def registered_formats() -> frozenset[str]:
    """Register the installed optional decoders with Pillow, and return the names of their formats there."""
    from PIL import features

    names = set[str]()
    if "avif" in features.modules and features.check_module("avif"):
        import PIL.AvifImagePlugin  # noqa: F401

        names.add("AVIF")
    if find_spec("pillow_heif"):
        import pillow_heif

        pillow_heif.register_heif_opener()
        names.add("HEIF")
    return frozenset(names)


def optional_decoder(data: bytes) -> Any:
    """Return the subclass of Pillow's ImageFile that reads a file beyond the formats read everywhere.

    Both formats are told by the brands of their first box, of which a file may have several.

    Args:
        data: the file, or its first 4 KiB.

    Returns:
        None if it is no AVIF or HEIC file, or the decoder is not installed.
    """
    name = optional_format(data)
    if name not in registered_formats():
        return None
    from PIL import Image

    return Image.OPEN[name][0]


def optional_format(data: bytes) -> str:
    """Return ``AVIF`` or ``HEIF`` if a file is one of these, installed or not; else an empty text."""
    if data[4:8] != b"ftyp":
        return ""
    box = data[8 : min(int.from_bytes(data[:4], "big"), _MAX_BOX_BYTES)]
    brands = {box[place : place + 4] for place in range(0, len(box), 4)}
    return "AVIF" if brands & _AVIF_BRANDS else "HEIF" if brands & _HEIF_BRANDS else ""


def unread_format(data: bytes) -> str:
    """Return the name of a format of pictures that is read nowhere here if a file is one; else an empty text.

    Args:
        data: the file, or its first 132 bytes.
    """
    found = _NOT_READ.match(data)
    return (found.lastgroup or "").replace("_", " ") if found else ""


def is_clutter(name: str) -> bool:
    """Return whether a path below a source's folder is hidden, or lies in a folder of a system's own.

    Args:
        name: a path with forward slashes. Finder's ``._a.jpg``, ``.ipynb_checkpoints/a.jpg``, ``@eaDir/a.jpg/SYNO.jpg``
            and ``__MACOSX/a.jpg`` are clutter, ``./a.jpg`` is not.
    """
    # Nearly all names hold none of these, and looking for them takes a tenth of the time of the pattern.
    may_be = name[:1] == "." or "/." in name or "@" in name or "#" in name or "$" in name or "+" in name
    may_be = may_be or "__M" in name or "_t" in name or "System" in name
    return may_be and _CLUTTER.search(name) is not None


@dataclass(slots=True)
class LeftOut:
    """What a listing found beside its images; filled while the source is listed.

    Attributes:
        formats: files of image formats, videos and archives that are not read, by extension.
        hidden: images that are hidden or lie in folders of a system's own, see is_clutter.
        nameless: files whose names have no extension: images may be among them.
        commented: lines of a list that begin with # and end as the name of an image.
        exported: folders that this program exported, and table files of its outputs.
        others: all other files, including those that do not match the source's pattern.
        archived: images that are listed, but cannot be fetched before they are restored (S3 Glacier).
        repeated: rows of a list or table that name an image again; they are joined to its first row.
        table_logs: files of the log of a Delta, Iceberg or Hudi table, which alone says what of it is current.
    """

    formats: Counter[str] = field(default_factory=Counter)
    hidden: int = 0
    nameless: int = 0
    commented: int = 0
    exported: int = 0
    others: int = 0
    archived: int = 0
    repeated: int = 0
    table_logs: int = 0

    def add(self, name: str) -> None:
        """Count a file that is no image of the source."""
        ending = _ending(name)
        self.table_logs += _TABLE_LOG.search(name) is not None
        if is_clutter(name):
            self.hidden += ending in readable_extensions()
            self.others += ending not in readable_extensions()
        elif ending not in readable_extensions() and (ending in _OTHER_FORMATS or ending.startswith(IMAGE_EXTENSIONS)):
            self.formats[ending] += 1
        else:
            is_nameless = not ending and not name.rpartition("/")[2].startswith("_")  # _SUCCESS, _metadata
            self.nameless += is_nameless
            self.others += not is_nameless

    @property
    def num_others(self) -> int:
        """The number of files that are no images read here, whatever else they are."""
        return self.others + self.nameless + self.formats.total()

    def to_dict(self) -> dict[str, Any]:
        """Return the counts that are not zero, as JSON values."""
        counts = {name: getattr(self, name) for name in self.__slots__ if name != "formats"}
        found = {"formats": dict(sorted(self.formats.items())), **counts}
        return {name: value for name, value in found.items() if value}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LeftOut:
        """Read what to_dict returned."""
        known = {name: value for name, value in values.items() if name in cls.__slots__}
        return cls(**{**known, "formats": Counter(values.get("formats", {}))})

    def say(self) -> list[str]:
        """Describe what users should know, a line each; other files are not mentioned."""
        lines = [counted(number, one, several) + what for number, (one, several), what in self._counts() if number]
        if self.formats:
            lines.insert(0, f"{self.say_formats()} left out: not read here{_advice(self.formats)}")
        return lines

    def say_formats(self) -> str:
        """Name the formats that are not read, the most frequent first."""
        named = [f"{number:,} {ending}" for ending, number in self.formats.most_common(_MAX_NAMED)]
        more = self.formats.total() - sum(number for _, number in self.formats.most_common(_MAX_NAMED))
        return ", ".join(named) + (f" and {more:,} of other formats" if more else "")

    def _counts(self) -> tuple[tuple[int, tuple[str, str], str], ...]:
        image, file = ("image", "images"), ("file", "files")
        system = "or in folders of a system's own (.ipynb_checkpoints, @eaDir, ...)"
        return (
            (self.hidden, image, f" left out: hidden, {system}"),
            (self.nameless, file, " without an extension left out: a list (.txt) can name those that are images"),
            (self.commented, ("line", "lines"), " left out that begin with #, as comments: ./#1.jpg names such a file"),
            (self.exported, ("folder or file", "folders and files"), " left out: exported or written by this program"),
            (self.archived, ("image is", "images are"), " archived (GLACIER, DEEP_ARCHIVE): fetched once restored"),
            (self.repeated, ("row names", "rows name"), " an image again: labeled once, with all rows' columns"),
        )


def _ending(name: str) -> str:
    """Return a name's extension in lower case."""
    lower = name.lower().rpartition("/")[2]
    return ".nii.gz" if lower.endswith(".nii.gz") else lower[lower.rfind(".") :] if "." in lower else ""


def _advice(formats: Mapping[str, int]) -> str:
    kinds = {"HEIC": _HEIF, "JPEG XL": _JXL}
    read = " and ".join(kind for kind, endings in kinds.items() if any(ending in formats for ending in endings))
    return f" (pip install 'xsam-label[pictures]' reads {read})" if read else ""
