"""A digest of what was planned: equal for two plans of the same images, however their listings came in batches."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.sources.image_batches import IMAGES


class ImageDigest:
    """The SHA-256 of images in their order: ids, URIs, sizes, version tags, versions and what is asked of each.

    It is over values, not bytes of Arrow: a column that is left out is one of nulls, and batches may be cut anywhere.
    """

    def __init__(self) -> None:
        self._streams = [_Stream(field.type) for field in IMAGES]

    def add(self, images: pa.Table) -> None:
        """Add the next images, with columns of IMAGES."""
        for field, stream in zip(IMAGES, self._streams, strict=True):
            if field.name in images.schema.names:
                chunks = images[field.name].cast(field.type).chunks
            else:
                chunks = [pa.nulls(images.num_rows, field.type)]
            for chunk in chunks:
                stream.add(chunk.fill_null(1) if field.name == "version" else chunk)

    def hexdigest(self) -> str:
        """Return the digest of all images that were added."""
        whole = hashlib.sha256()
        for field, stream in zip(IMAGES, self._streams, strict=True):
            whole.update(f"{field.name}\0".encode())
            stream.finish(whole)
        return whole.hexdigest()


class _Stream:
    """The values of a column, and of those below it, as streams of bytes to which chunks are added."""

    def __init__(self, kind: pa.DataType) -> None:
        self._parts = [hashlib.sha256() for _ in range(3)]  # which are null, how long each is, the values themselves
        below = [kind.value_type] if pa.types.is_list(kind) else []
        below = [field.type for field in kind] if pa.types.is_struct(kind) else below
        self._below = [_Stream(one) for one in below]

    def add(self, values: pa.Array) -> None:
        """Add the next values."""
        nulls, lengths, data = self._parts
        nulls.update(values.is_null().cast(pa.uint8()).to_numpy())
        if pa.types.is_struct(values.type):
            for stream, column in zip(self._below, values.flatten(), strict=True):
                stream.add(column)
            return
        held = values.drop_null()
        if not len(held):
            return
        if pa.types.is_list(held.type):
            lengths.update(pc.list_value_length(held).to_numpy())
            self._below[0].add(held.flatten())
        elif pa.types.is_string(held.type):
            _, offsets, text = held.buffers()
            ends = np.frombuffer(offsets, np.int32)[held.offset : held.offset + len(held) + 1]
            lengths.update(np.diff(ends).tobytes())
            data.update(memoryview(text or b"")[ends[0] : ends[-1]])
        else:
            numbers: np.ndarray = held.cast(_NUMBERS.get(held.type, held.type)).to_numpy()
            data.update(numbers.tobytes())

    def finish(self, whole: hashlib._Hash) -> None:
        """Add to the digest of all columns."""
        for part in self._parts:
            whole.update(part.digest())
        for stream in self._below:
            stream.finish(whole)


_NUMBERS = {pa.bool_(): pa.uint8()}
