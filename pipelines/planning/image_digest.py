"""A digest of planned images, by which two plans can be compared without reading either again."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.sources.image_batches import IMAGES


class ImageDigest:
    """The SHA-256 over images in order: ids, URIs, sizes, version tags, versions and prompts.

    It is computed over values, not over Arrow's bytes: it does not depend on where batches were cut, and a missing
    column equals a column of nulls.
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
                # Where no image has changed, the listing has no versions: all are 1.
                stream.add(chunk.fill_null(1) if field.name == "version" else chunk)

    def hexdigest(self) -> str:
        """Return the hex digest of all images added."""
        whole = hashlib.sha256()
        for field, stream in zip(IMAGES, self._streams, strict=True):
            whole.update(f"{field.name}\0".encode())
            stream.finish(whole)
        return whole.hexdigest()


class _Stream:
    """Hashes of a column's values, and recursively of the columns nested in it, fed chunk by chunk."""

    def __init__(self, kind: pa.DataType) -> None:
        # Apart, so that chunks may end anywhere: which values are null, how long each is, and the values themselves.
        self._parts = [hashlib.sha256() for _ in range(3)]
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
            # The bytes of all strings at once; slices of an array share its buffers, hence the offset.
            _, offsets, text = held.buffers()
            ends = np.frombuffer(offsets, np.int32)[held.offset : held.offset + len(held) + 1]
            lengths.update(np.diff(ends).tobytes())
            data.update(memoryview(text or b"")[ends[0] : ends[-1]])
        else:
            numbers: np.ndarray = held.cast(_NUMBERS.get(held.type, held.type)).to_numpy()
            data.update(numbers.tobytes())

    def finish(self, whole: hashlib._Hash) -> None:
        """Add this column's hashes to the digest of all columns."""
        for part in self._parts:
            whole.update(part.digest())
        for stream in self._below:
            stream.finish(whole)


# Arrow packs bools into bits, which NumPy cannot take as they are.
_NUMBERS = {pa.bool_(): pa.uint8()}
