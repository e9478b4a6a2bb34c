"""The words of a running text: one rule for the texts that a tagger is trained on and for those it reads later.

For languages with spaces it is the way of the CoNLL sets: punctuation stands alone, but a hyphen, a dot or a slash
inside a word (`Jean-Paul`, `U.S.`, `3.5`, `AT&T`) does not part it, and `'s` does. Chinese and Japanese write no
spaces, so there every character is a word. Words are spans of the text as it stands: nothing is normalised, and a mark
that combines with a letter (a vowel sign of Hindi, a decomposed accent) stays with it.
"""

from __future__ import annotations

import re

JOINTS = "-‐‑.&@/'’_+,:"  # may stand inside a word; "," and ":" between digits only

# Han with extension A and the compatibility block, kana, and Han beyond the basic plane. Hangul writes spaces.
_CJK = "\u3040-\u3098\u309b-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_CJK_CHARACTER = re.compile(f"[{_CJK}]")
# What changes the character before it: accents, voicing marks of kana, variation selectors, skin tones.
_MARK = "\u0300-\u036f\u1ab0-\u1aff\u20d0-\u20ff\u3099\u309a\ufe00-\ufe0f\ufe20-\ufe2f"
_MARK += "\U0001f3fb-\U0001f3ff\U000e0100-\U000e01ef"
_SIGN = rf"[^\w\s][{_MARK}]*"  # punctuation, an emoji; joiners (U+200D) make one of several
# Next to CJK, Latin letters and digits touch without a space and belong to different words: 星际2无力, 魔兽争霸3.
_WORD_AMONG_CJK = re.compile(rf"[{_CJK}][{_MARK}]*|(?:[^\W\d_{_CJK}][{_MARK}]*)+|\d+|{_SIGN}(?:\u200d{_SIGN})*|_")

# A letter is whatever is not space, control or punctuation: `\w` would cut words at the vowel signs of Hindi or Thai.
_LETTER = r"[^\s!-/:-@\[-`{-~\u00a1-\u00bf\u00d7\u00f7\u2010-\u2027\u2030-\u205e\u3000-\u303f]"
_POSSESSIVE = rf"['’][sS](?!{_LETTER})"
_WORD = re.compile(
    r"(?:[^\W\d_]\.){2,}|[A-Z]\.(?=\s+[A-Z])"  # U.S. and George W. Bush, with the last dot
    rf"|{_POSSESSIVE}"
    rf"|{_LETTER}+(?:(?!{_POSSESSIVE})(?:[-‐‑.&@/'’_+]|(?<=\d)[,:](?=\d)){_LETTER}+)*"
    r"|\S"
)


def is_cjk(character: str) -> bool:
    """Whether a character is Han or kana, written without spaces between words."""
    return _CJK_CHARACTER.match(character) is not None


def words_of(text: str) -> list[tuple[int, int]]:
    """The words of a text as (first character, character after the last); every character but white space is in one.

    In a text with CJK characters, each of them is a word, and so are a run of letters, a run of digits, and any mark.
    """
    pattern = _WORD_AMONG_CJK if _CJK_CHARACTER.search(text) else _WORD
    return [match.span() for match in pattern.finditer(text)]
