"""Find the images of exemplars, fetch them, and check that each region lies in its image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.errors import SourceError, some_texts
from pipelines.images.decode import DecodeError, DecodeLimits, decode_image
from pipelines.masks.regions import check_region
from pipelines.planning.exemplars.config import ExemplarConfig, FrozenExemplar
from pipelines.redaction import quoted, quoted_names, shown
from pipelines.sources.fetch import FetchError, fetch
from pipelines.sources.image_batches import to_refs
from pipelines.storage.filesystems import HTTP_PROTOCOLS, absolute_uri, protocol_of
from pipelines.types import Image, ImageRef, Prompt

MAX_BYTES = 512 * 2**20
"""The images of a run's exemplars together: every replica reads them all when it starts."""
_MAX_EXAMPLES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetching:
    """How images are fetched and decoded; fields as in LabelConfig and LabelJob."""

    source_options: Mapping[str, Any] = field(default_factory=dict)
    allow_http: bool = False
    timeout_s: float = 60.0
    decode: DecodeLimits = field(default_factory=DecodeLimits)


def find_exemplars(
    exemplars: Sequence[ExemplarConfig], listing: Iterable[pa.RecordBatch], fetching: Fetching
) -> tuple[list[FrozenExemplar], dict[str, bytes]]:
    """Fetch the image of each exemplar, once for all regions of it, and check that the regions fit.

    Args:
        exemplars: as given.
        listing: the source's images, see image_batches; read only as far as needed, and only if an image is given by
            its id.
        fetching: how to fetch and decode.

    Returns:
        The exemplars in the same order, and the bytes of their images by SHA-256.

    Raises:
        SourceError: an image is not found, cannot be read or is too large, or a region does not lie in it; the message
            names the exemplar.
    """
    refs = _find([one.image for one in exemplars], listing)
    sizes, digests, images = dict[str, tuple[int, int]](), dict[str, str](), dict[str, bytes]()
    frozen = []
    for one in exemplars:
        ref = refs[one.image]
        if ref.uri not in sizes:
            data, image = _read(one, ref, fetching)
            # Of the picture no more than its size is needed here.
            sizes[ref.uri], digests[ref.uri] = image.size_hw, image.content_sha256
            images[image.content_sha256] = data
            del image
            if sum(map(len, images.values())) > MAX_BYTES:
                raise SourceError(f"the images of the exemplars have more than {MAX_BYTES:,} bytes; give fewer")
        as_prompt = Prompt(
            prompt_id="", task="vgdseg", text="", category_id=0, category_name=one.label, region=one.region
        )
        if (reason := check_region(as_prompt, sizes[ref.uri])) is not None:
            raise SourceError(f"{_named(one)}: {reason}")
        frozen.append(FrozenExemplar(**dict(one), uri=ref.uri, sha256=digests[ref.uri]))
    return frozen, images


def _find(names: Sequence[str], listing: Iterable[pa.RecordBatch]) -> dict[str, ImageRef]:
    """Return the image that each name stands for: by URI or absolute path, by its id in the source, or by path."""
    found = {name: _at(name) for name in dict.fromkeys(names) if "://" in name or name.startswith(("/", "~"))}
    missing, examples = [name for name in dict.fromkeys(names) if name not in found], list[str]()
    batches = iter(listing)
    while missing and (batch := next(batches, None)) is not None:
        ids = batch["image_id"]
        examples += ids[: max(0, _MAX_EXAMPLES - len(examples))].to_pylist()
        rows = batch.filter(pc.is_in(ids, pa.array(missing, pa.string())))
        found |= {ref.image_id: ref for ref in to_refs([rows])}
        missing = [name for name in missing if name not in found]
    found |= {name: _at(name) for name in missing if Path(name).is_file()}
    if missing := [name for name in missing if name not in found]:
        raise SourceError(
            f"no image for the exemplars {quoted_names(missing)}: it is no image_id of the source, nor a file; an "
            f"image_id here looks like {some_texts(map(quoted, examples))}"
        )
    return found


def _at(uri: str) -> ImageRef:
    is_web = "://" in uri and protocol_of(uri, allow_http=True) in HTTP_PROTOCOLS
    return ImageRef(image_id=uri, uri=uri if is_web else absolute_uri(uri))


def _read(exemplar: ExemplarConfig, ref: ImageRef, fetching: Fetching) -> tuple[bytes, Image]:
    try:
        data = fetch(
            ref,
            options=fetching.source_options,
            max_bytes=fetching.decode.max_image_bytes,
            timeout_s=fetching.timeout_s,
            allow_http=fetching.allow_http,
        )
        return data, decode_image(data, ref, fetching.decode)
    except (FetchError, DecodeError) as error:
        raise SourceError(f"{_named(exemplar)} cannot be read ({error.reason.value}): {error}") from error


def _named(exemplar: ExemplarConfig) -> str:
    return f"the exemplar of {quoted(exemplar.label)} in {shown(exemplar.image)}"
