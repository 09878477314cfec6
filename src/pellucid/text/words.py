"""Which tokens begin a word, for masking whole words."""

from __future__ import annotations

import re
import unicodedata

# Scripts whose words nothing separates, kana and Chinese characters: in UTF-8 nearly all begin with a byte from 0xE3 on.
UNSEPARATED = re.compile("[\u3005-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
FIRST_UNSEPARATED_BYTE = 0xE3


def begins_word(token: bytes) -> bool:
    """Whether this token begins a word: all do but those whose first character is a letter, a digit or an accent.

    A character of a script that does not separate words begins one. Half a character is judged by its first byte.
    """
    text = token.decode(errors="replace")
    if text.startswith("\ufffd"):
        return token[0] >= FIRST_UNSEPARATED_BYTE
    return not text or unicodedata.category(text[0])[0] not in "LMN" or UNSEPARATED.match(text) is not None
