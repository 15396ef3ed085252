"""From bytes to text."""

from __future__ import annotations

import pytest

from fleetune.data.encoding import decode, detect, guess
from fleetune.errors import DataError

TEXT = "text,label\ncafé 漢字,x\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_unicode_is_detected_and_its_mark_taken_off(encoding):
    decoded = decode(TEXT.encode(encoding), "file.csv")
    assert decoded.text == TEXT
    assert decoded.bad_lines == []


def test_a_named_encoding_is_used_and_the_mark_taken_off():
    assert decode(TEXT.encode("utf-8-sig"), "file.csv", "utf-8").text == TEXT
    assert decode("naïve".encode("latin-1"), "file.csv", "latin-1").text == "naïve"


def test_ascii_with_nul_bytes_is_not_taken_for_utf16():
    assert detect(b"te\0xt,label\n") == "utf-8"


def test_undecodable_bytes_are_counted_by_line():
    data = b"text,label\nok,x\nbad \x81,x\r\nbad \x81\x81,x\rok,x\nbad \x81,x\nbad \x81,x\n"
    with pytest.raises(DataError, match=r"4 lines with undecodable bytes \(line 3, 4, 6, …\)"):
        decode(data, "file.csv")
    decoded = decode(data, "file.csv", errors="replace")
    assert decoded.bad_lines == [3, 4, 6, 7]
    assert decoded.text.count("\ufffd") == 5


def test_an_encoding_is_suggested_only_if_it_is_likely():
    western = "un café très bien\n".encode("cp1252")
    assert guess(western) == "cp1252"
    with pytest.raises(DataError, match='encoding = "cp1252"'):
        decode(western, "file.csv")
    assert guess("добрый день".encode("cp1251")) is None
    assert guess(b"caf\x81") is None
    with pytest.raises(DataError) as caught:
        decode(b"caf\x81", "file.csv")
    assert "cp1252" not in str(caught.value)
    assert 'encoding_errors = "replace"' in str(caught.value)


def test_a_torn_utf16_file_is_reported_with_its_line():
    with pytest.raises(DataError, match=r"UTF-16: 1 line with undecodable bytes \(line 3\)"):
        decode(TEXT.encode("utf-16") + b"\x41", "file.csv")


def test_a_surrogate_written_as_utf8_is_not_decodable():
    with pytest.raises(DataError, match="line 1"):
        decode(b"\xed\xa0\x80", "file.csv")
