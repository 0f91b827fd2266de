"""Sources as people really have them: odd but valid, each made by code and with its right answer.

``ODD_SOURCES`` are listed and labeled; ``REFUSED_SOURCES`` end with one message before anything is written. A picture
is known by its number: its bytes are ``picture(number)`` of tests/support/containers.py, whatever its file is called.
"""

from __future__ import annotations

import base64
import json
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.support.containers import picture, tar_bytes

Options = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class OddSource:
    """A source and its right answer.

    Attributes:
        name: for ids of tests.
        build: writes the source below a folder, and returns the settings of ``source``: ``uri``, and columns and so on.
        pictures: the picture's number by ``image_id``; ``{folder}`` in an id stands for the folder built in.
        columns: what ``source_columns`` hold, by ``image_id``; not checked for others.
        left_out: what LeftOut.to_dict gives for what lies beside the images, without ``others``.
    """

    name: str
    build: Callable[[Path], Options]
    pictures: Mapping[str, int]
    columns: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    left_out: Mapping[str, Any] = field(default_factory=dict)

    def pictures_in(self, folder: Path) -> dict[str, bytes]:
        """The bytes of each picture by ``image_id``, of the source built in a folder."""
        return {name.replace("{folder}", str(folder)): picture(number) for name, number in self.pictures.items()}


@dataclass(frozen=True, kw_only=True)
class RefusedSource:
    """A source that cannot be read as it is, and a pattern of the message that says so."""

    name: str
    build: Callable[[Path], Options]
    message: str


ODD_SOURCES: list[OddSource] = []
REFUSED_SOURCES: list[RefusedSource] = []

_AB = {"a.png": 1, "b.png": 2}
_CLUTTER = ("._a.png", ".ipynb_checkpoints/a-checkpoint.png", "@eaDir/a.png/SYNO.png", "__MACOSX/x/a.png", "x/.t/c.png")
_KEYS = {"a": 1, "b": 2}


def odd(pictures: Mapping[str, int], **answer: Any) -> Callable[[Callable[[Path], Options]], None]:
    """Register the function below as the builder of a source with this answer."""

    def register(build: Callable[[Path], Options]) -> None:
        ODD_SOURCES.append(OddSource(name=build.__name__, build=build, pictures=pictures, **answer))

    return register


def refused(message: str) -> Callable[[Callable[[Path], Options]], None]:
    """Register the function below as the builder of a source that is refused."""

    def register(build: Callable[[Path], Options]) -> None:
        REFUSED_SOURCES.append(RefusedSource(name=build.__name__, build=build, message=message))

    return register


def put(folder: Path, files: Mapping[str, int | str | bytes]) -> None:
    """Write files below a folder: pictures by number, or contents."""
    for name, what in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = picture(what) if isinstance(what, int) else what
        path.write_bytes(data.encode() if isinstance(data, str) else data)


def _table(name: str, text: str | bytes, files: Mapping[str, int] = _AB, **options: Any) -> Callable[[Path], Options]:
    """A builder of pictures with a list, table or COCO file beside them."""

    def build(folder: Path) -> Options:
        put(folder, {**files, name: text})
        return {"uri": str(folder / name), **options}

    return build


def _add(name: str, build: Callable[[Path], Options], pictures: Mapping[str, int], **answer: Any) -> None:
    ODD_SOURCES.append(OddSource(name=name, build=build, pictures=pictures, **answer))


def _refuse(name: str, build: Callable[[Path], Options], message: str) -> None:
    REFUSED_SOURCES.append(RefusedSource(name=name, build=build, message=message))


# Folders and tars


@odd(_AB, left_out={"hidden": len(_CLUTTER)})
def a_folder_with_what_systems_leave_behind(folder: Path) -> Options:
    put(folder, {**_AB, **dict.fromkeys(_CLUTTER, 9), ".DS_Store": b"\0", "@eaDir/a.png/SYNO@.fileindexdb": b"\0"})
    return {"uri": str(folder)}


@odd(_KEYS, left_out={"hidden": len(_CLUTTER)})
def a_tar_with_what_systems_leave_behind(folder: Path) -> Options:
    numbers = {**_AB, **dict.fromkeys(_CLUTTER, 9)}
    put(folder, {"x.tar": tar_bytes({name: picture(number) for name, number in numbers.items()})})
    return {"uri": str(folder / "x.tar")}


@odd({"a.png": 1, "deep/er/b.png": 2}, left_out={"hidden": 1})
def a_pattern_over_what_systems_leave_behind(folder: Path) -> Options:
    put(folder, {"a.png": 1, "deep/er/b.png": 2, "deep/.hidden/c.png": 9})
    return {"uri": f"{folder}/**/*.png"}


@odd({".hidden/c.png": 3})
def a_pattern_that_names_a_hidden_folder(folder: Path) -> Options:
    put(folder, {"a.png": 1, "x/.hidden/c.png": 3})
    return {"uri": f"{folder}/x/.*/*.png"}


@odd({"./a": 1, "./b": 2})
def a_tar_of_the_current_folder(folder: Path) -> Options:
    put(folder, {"x.tar": tar_bytes({f"./{name}": picture(number) for name, number in _AB.items()})})
    return {"uri": str(folder)}


@odd(_AB, left_out={"formats": {".cr2": 1, ".dcm": 2}})
def a_folder_with_other_formats(folder: Path) -> Options:
    put(folder, {**_AB, "c.dcm": b"DICM", "c/d.DCM": b"DICM", "e.cr2": b"II*\0"})
    return {"uri": str(folder)}


@odd(_AB, left_out={"nameless": 2, "formats": {".jpg_large": 1}})
def a_folder_with_files_without_extension(folder: Path) -> Options:
    put(folder, {**_AB, "IMG1": 3, "x.y/IMG2": 4, "c.jpg_large": 5})
    return {"uri": str(folder)}


@odd({"_MG_1.JPG": 1, "#1.png": 2, "2.PNG": 3})
def a_folder_of_a_camera(folder: Path) -> Options:
    put(folder, {"_MG_1.JPG": 1, "#1.png": 2, "2.PNG": 3})
    return {"uri": str(folder)}


@odd(_AB, left_out={"exported": 1})
def a_folder_with_an_export_inside(folder: Path) -> Options:
    put(folder, {**_AB, "yolo/.xsam-label-export": b"", "yolo/images/train/a.png": 1, "yolo/labels/train/a.txt": b""})
    return {"uri": str(folder)}


@odd(_AB, left_out={"exported": 1})
def a_folder_with_yolos_links_inside(folder: Path) -> Options:
    put(folder, {**_AB, "yolo/data.yaml": "names: [cup]", "yolo/labels/train/a.txt": b""})
    (folder / "yolo/images/train").mkdir(parents=True)
    for name in _AB:
        (folder / "yolo/images/train" / name).symlink_to(folder / name)
    return {"uri": str(folder)}


@odd({"images.parquet#00000000": 1, "images.parquet#00000001": 2}, left_out={"exported": 2})
def parquet_with_an_output_beside_it(folder: Path) -> Options:
    table = pa.table({"image": [picture(1), picture(2)]})
    pq.write_table(table, folder / "images.parquet")
    for name in ("_runs/run-1/plan-00000.parquet", "images/run-1/shard-00000-d1-0.parquet"):
        (folder / "labels" / name).parent.mkdir(parents=True)
        pq.write_table(pa.table({"image_id": ["a"]}), folder / "labels" / name)
    return {"uri": str(folder)}


# Lists of URIs


_add("a_list_with_a_mark", _table("l.txt", b"\xef\xbb\xbfa.png\r\nb.png\r\n"), _AB)
_add(
    "a_list_with_backslashes",
    _table("l.txt", "x\\a.png\ny\\z\\b.png\n", {"x/a.png": 1, "y/z/b.png": 2}),
    {"x\\a.png": 1, "y\\z\\b.png": 2},
)
_add("a_list_with_a_tilde", _table("l.txt", "~a.png\n", {"~a.png": 1}), {"~a.png": 1})
_add("a_list_with_real_backslashes", _table("l.txt", "x\\a.png\n", {"x\\a.png": 1, "x/a.png": 2}), {"x\\a.png": 1})
_add(
    "a_list_that_names_hidden_files",
    _table("l.txt", ".a.png\n.x/b.png\n", {".a.png": 1, ".x/b.png": 2}),
    {".a.png": 1, ".x/b.png": 2},
)
_add(
    "a_list_with_numbers_in_front",
    _table("l.txt", "# a comment\n#1.png\n./#2.png\n#gone.png\n", {"#1.png": 1, "#2.png": 2}),
    {"#1.png": 1, "./#2.png": 2},
    left_out={"commented": 1},
)
_add("a_list_with_a_line_twice", _table("l.txt", "a.png\nb.png\na.png\n"), _AB, left_out={"repeated": 1})


@odd({"file://{folder}/a%20b%C3%A9.png": 1, "file://localhost{folder}/a.png": 2, "file:{folder}/100%25.png": 3})
def a_list_of_file_urls(folder: Path) -> Options:
    put(folder, {"a bé.png": 1, "a.png": 2, "100%.png": 3})
    lines = [f"file://{folder}/a%20b%C3%A9.png", f"file://localhost{folder}/a.png", f"file:{folder}/100%25.png"]
    put(folder, {"l.txt": "\n".join(lines)})
    return {"uri": str(folder / "l.txt")}


@odd({"a.png": 1})
def a_folder_as_a_url(folder: Path) -> Options:
    put(folder, {"my photos é/a.png": 1})
    return {"uri": f"file://localhost{folder}/my%20photos%20%C3%A9"}


@odd({"a.png": 1})
def a_folder_in_another_unicode_form(folder: Path) -> Options:
    put(folder, {f"{unicodedata.normalize('NFD', 'Köln')}/a.png": 1, "l.txt": "a.png"})
    return {"uri": str(folder / "l.txt"), "image_root": str(folder / unicodedata.normalize("NFC", "Köln"))}


@odd({"file://{folder}/100%25.png": 1})
def a_list_of_file_urls_that_are_not_escaped(folder: Path) -> Options:
    put(folder, {"100%25.png": 1, "100%.png": 2, "l.txt": f"file://{folder}/100%25.png"})
    return {"uri": str(folder / "l.txt")}


@odd({unicodedata.normalize("NFC", "Köln/é.png"): 1, unicodedata.normalize("NFD", "ü.png"): 2})
def a_list_in_another_unicode_form(folder: Path) -> Options:
    # One folder in the form of the list, its file in the other.
    put(folder, {f"Köln/{unicodedata.normalize('NFD', 'é.png')}": 1, unicodedata.normalize("NFC", "ü.png"): 2})
    names = [unicodedata.normalize("NFC", "Köln/é.png"), unicodedata.normalize("NFD", "ü.png")]
    put(folder, {"l.txt": "\n".join(names)})
    return {"uri": str(folder / "l.txt")}


# Tables of URIs

_NOTE = {"a": {"note": "x"}, "b": {"note": "1,5"}}
for _name, _text in {
    "t.csv": "image_id;path;note\na;a.png;x\nb;b.png;1,5\n",
    "u.csv": "image_id\tpath\tnote\na\ta.png\tx\nb\tb.png\t1,5\n",
    "v.csv": "image_id|path|note\r\na|a.png|x\r\nb|b.png|1,5\r\n",
    "w.tsv": 'image_id,path,note\na,a.png,x\nb,b.png,"1,5"\n',
    "x.csv": "\ufeffsep=;\r\nimage_id;path;note\r\na;a.png;x\r\nb;b.png;1,5\r\n",
    "y.csv": 'image_id,path,note,,\na,a.png,x,,\n,,,,\nb,b.png,"1,5",,,\n',
    "z.csv": '"image_id";"path";"note"\n"a";"a.png";"x"\n"b";"b.png";"1,5"\n',
    "s.csv": 'image_id, path, note\na, a.png, x\nb, "b.png", "1,5"\n',
    "p.csv": ',image_id,path,note\n0,a,a.png,x\n1,b,b.png,"1,5"\n',
}.items():
    _add(f"a_table_of_other_delimiters_{_name}", _table(_name, _text), _KEYS, columns=_NOTE)

_OBJECTS = "path,label,x1,source\na.png,cup,3,web\nb.png,cup,5,web\na.png,moon,8,web\n"
_add(
    "a_table_with_a_row_for_each_object",
    _table("t.csv", _OBJECTS),
    _AB,
    columns={
        "a.png": {"label": ["cup", "moon"], "x1": ["3", "8"], "source": "web"},
        "b.png": {"label": "cup", "x1": "5", "source": "web"},
    },
    left_out={"repeated": 1},
)
_add(
    "json_lines_with_a_row_for_each_object",
    _table("t.jsonl", '{"path": "a.png", "box": [1, 2]}\n{"path": "a.png", "box": [3, 4]}\n{"path": "b.png"}\n'),
    _AB,
    columns={"a.png": {"box": [[1, 2], [3, 4]]}},
    left_out={"repeated": 1},
)


# COCO files


def _coco(**image: Any) -> str:
    return json.dumps({"images": [{"id": 1, "file_name": "a.png", **image}, {"id": 2, "file_name": "b.png"}]})


_add("coco_with_a_mark", _table("c.json", "\ufeff" + _coco()), _AB, columns={"a.png": {"id": 1}})
_add(
    "coco_with_nan",
    _table("c.json", _coco(score=float("nan"), top=float("-inf"), note='NaN "Infinity"')),
    _AB,
    columns={"a.png": {"id": 1, "note": 'NaN "Infinity"'}},
)
_add(
    "coco_of_windows",
    _table("c.json", _coco().replace("a.png", "x\\\\a.png"), {"x/a.png": 1, "b.png": 2}),
    {"x\\a.png": 1, "b.png": 2},
)


# Parquet


def _parquet(folder: Path, name: str, columns: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(dict(columns)).replace_schema_metadata(metadata), path)


_TYPES = {
    "binary_view": (pa.binary_view(), pa.string_view()),
    "large_binary": (pa.large_binary(), pa.large_string()),
    "dictionary": (pa.dictionary(pa.int32(), pa.binary()), pa.dictionary(pa.int32(), pa.string())),
}


def _array(values: list[Any], kind: pa.DataType) -> pa.Array:
    return (
        pa.array(values, kind.value_type).dictionary_encode()
        if pa.types.is_dictionary(kind)
        else pa.array(values, kind)
    )


def _typed(kind: str, *, is_struct: bool) -> Callable[[Path], Options]:
    """A builder of Parquet with images of a type, and thumbnails of the plain type beside them."""

    def build(folder: Path) -> Options:
        of_bytes, of_text = _TYPES[kind]
        images = _array([picture(1), picture(2)], of_bytes)
        if is_struct:
            images = pa.StructArray.from_arrays([images, _array(["x.png", "y.png"], of_text)], names=["bytes", "path"])
        ids, thumbnails = _array(["a", "b"], of_text), pa.array([picture(8), picture(9)], pa.binary())
        _parquet(folder, "p.parquet", {"image_id": ids, "thumbnail": thumbnails, "image": images})
        return {"uri": str(folder / "p.parquet")}

    return build


for _kind in _TYPES:
    for _is_struct in (False, True):
        _add(f"parquet_of_{_kind}{'_in_structs' * _is_struct}", _typed(_kind, is_struct=_is_struct), _KEYS)

_WKB = [bytes.fromhex("0101000000000000000000f03f0000000000000040")] * 2


@odd({"part-0.parquet#00000000": 1, "part-1.parquet#00000000": 2})
def a_folder_of_parquet_named_as_a_file(folder: Path) -> Options:
    # As Spark and Dask write a table.
    for number in range(2):
        _parquet(folder, f"t.parquet/part-{number}.parquet", {"image": [picture(number + 1)]})
    put(folder, {"t.parquet/_SUCCESS": b""})
    return {"uri": str(folder / "t.parquet")}


@odd(_AB, columns={"a.png": {"label": 1}})
def parquet_with_paths_where_bytes_would_be(folder: Path) -> Options:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = pa.array([{"bytes": None, "path": name} for name in _AB], kind)
    put(folder, _AB)
    _parquet(folder, "p.parquet", {"image": images, "label": [1, 2]})
    return {"uri": str(folder / "p.parquet")}


@odd(_KEYS, columns={"a": {"n": 1}})
def geoparquet_with_a_column_of_uris(folder: Path) -> Options:
    put(folder, _AB)
    _parquet(folder, "g.parquet", {"image_id": ["a", "b"], "path": ["a.png", "b.png"], "geometry": _WKB, "n": [1, 2]})
    return {"uri": str(folder / "g.parquet")}


@odd(_KEYS)
def geoparquet_with_images(folder: Path) -> Options:
    columns = {"image_id": ["a", "b"], "footprint": _WKB, "scene": [picture(1), picture(2)]}
    geo = {"geo": json.dumps({"version": "1.0.0", "primary_column": "footprint", "columns": {"footprint": {}}})}
    _parquet(folder, "g.parquet", columns, geo)
    return {"uri": str(folder / "g.parquet")}


@odd({"part-0.parquet#00000000": 1})
def all_files_of_a_delta_table(folder: Path) -> Options:
    _parquet(folder, "part-0.parquet", {"image": [picture(1)]})
    put(folder, {"_delta_log/00000000000000000000.json": b"{}", "_delta_log/0.crc": b"{}"})
    return {"uri": f"{folder}/**/*.parquet"}


@odd(_KEYS)
def a_folder_of_parquet_with_uris(folder: Path) -> Options:
    put(folder, {"parts/a.png": 1, "b.png": 2})
    (folder / "table").mkdir()
    for number, (key, path) in enumerate({"a": "../parts/a.png", "b": "../b.png"}.items()):
        _parquet(folder, f"table/part-{number}.parquet", {"image_id": [key], "path": [path], "geometry": _WKB[:1]})
    return {"uri": str(folder / "table")}


# What is told in words

_JPEG_TEXT = "/9j/" + base64.b64encode(bytes(range(256)) * 9).decode()
_refuse("base64_in_json_lines", _table("t.jsonl", json.dumps({"image": _JPEG_TEXT})), r"row 0 .*image as base64 text")
_refuse("base64_in_a_table", _table("t.csv", f"id,image\n1,{_JPEG_TEXT}\n"), r"row 0 .*image as base64 text")
_refuse("a_data_uri", _table("t.csv", f'id,url\n1,"data:image/jpeg;base64,{_JPEG_TEXT}"\n'), r"row 0 .*a data: URI")
_refuse("a_list_with_labels", _table("l.txt", "a.png 3\nb.png 0\n"), r"line 1: holds more than a URI: 'a\.png 3'")
_refuse("a_list_with_tabs", _table("l.txt", "a.png\tcup\n"), r"line 1: holds more than a URI.*make it a table")
_refuse("a_path_of_windows", _table("t.csv", "path\nC:\\Users\\me\\a.png\n"), r"Windows machine.*source\.image_root")
_refuse("a_share_of_windows", _table("t.csv", "path\n\\\\nas\\photos\\a.png\n"), r"Windows machine.*source\.image_root")
_refuse("a_table_in_utf_16", _table("t.csv", "path\na.png\n".encode("utf-16")), r"not UTF-8 text.*save it as UTF-8")


_refuse("a_compressed_table", _table("t.csv.gz", b"\x1f\x8b"), r"a compressed list or table.*unpack it")
_refuse(
    "coco_of_lvis", _table("c.json", '{"images": [{"id": 1, "coco_url": "http://a/b.png"}]}'), r"end of its coco_url"
)


@refused(r"'images' holds lists of images.*explode")
def parquet_with_lists_of_images(folder: Path) -> Options:
    columns = {"image_id": ["a"], "images": [[picture(1), picture(2)]], "thumbnail": [picture(3)]}
    _parquet(folder, "p.parquet", columns)
    return {"uri": str(folder / "p.parquet")}


@refused(r"'shape' is its only binary column, but holds no images: a value begins with b'\\x01\\x01.*uri_column")
def geometries_beside_uris_of_another_name(folder: Path) -> Options:
    _parquet(folder, "p.parquet", {"photo_link": ["a.png", "b.png"], "shape": _WKB})
    return {"uri": str(folder / "p.parquet")}


@refused(r"'sha256' is its only binary column, but holds no images")
def hashes_in_a_folder_of_parquet(folder: Path) -> Options:
    _parquet(folder, "parts/p.parquet", {"photo_link": ["a.png"], "sha256": [bytes(range(32))]})
    return {"uri": str(folder / "parts")}


@refused(r"a Delta, Iceberg or Hudi table.*all files are meant: .*/\*\*/\*\.parquet")
def a_delta_table(folder: Path) -> Options:
    _parquet(folder, "table/part-0.parquet", {"image": [picture(1)]})
    put(folder, {"table/_delta_log/00000000000000000000.json": b'{"remove": {"path": "part-0.parquet"}}'})
    return {"uri": str(folder / "table")}


@refused(r"no images found.*2 \.dcm, 1 \.jp2 left out")
def a_folder_of_other_formats_alone(folder: Path) -> Options:
    put(folder, {"a.dcm": b"DICM", "b.dcm": b"DICM", "c.jp2": b"jP"})
    return {"uri": str(folder)}
