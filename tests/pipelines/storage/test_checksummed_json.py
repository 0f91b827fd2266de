"""A sealed object is read as it was written, and no single bit of it can change unseen."""

from __future__ import annotations

import json

import pytest

from pipelines.storage.checksummed_json import BLANK, SealError, seal, unseal

DOCUMENT = {
    "format": 1,
    **BLANK,
    "name": 'été "sealed": "sha256", "sealed_sha256": "' + "0" * 64,
    "counts": {"ok": 1e-07},
}


def test_a_sealed_document_is_plain_json_that_reads_as_it_was() -> None:
    data = seal(DOCUMENT)
    read = unseal(data)
    assert read == json.loads(data)
    assert {**read, **BLANK} == DOCUMENT
    assert read["sealed_sha256"] != BLANK["sealed_sha256"]


def test_every_single_flipped_bit_is_found() -> None:
    data = seal(DOCUMENT)
    for place in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[place] ^= 1 << bit
            with pytest.raises(SealError):
                unseal(bytes(damaged))


@pytest.mark.parametrize("length", [0, 1, 20, -1])
def test_what_was_cut_short_is_found(length: int) -> None:
    with pytest.raises(SealError):
        unseal(seal(DOCUMENT)[:length])


def test_what_an_earlier_version_wrote_is_read_without_a_checksum() -> None:
    assert unseal(b'{"format": 1}') == {"format": 1}


@pytest.mark.parametrize("document", [{"format": 1}, {"a": dict(BLANK), "b": dict(BLANK)}])
def test_only_a_document_with_one_place_for_its_checksum_is_sealed(document: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="BLANK once"):
        seal(document)


def test_numbers_that_json_has_no_word_for_are_null() -> None:
    data = seal({**BLANK, "figures": {"rate": float("nan"), "most": [1.5, float("-inf")]}, "name": "NaN"})
    assert json.loads(data, parse_constant=pytest.fail)["figures"] == {"rate": None, "most": [1.5, None]}
    assert unseal(data)["name"] == "NaN"
