"""Parts of a text are as long as they should be, disjoint and together whole, in every script."""

from __future__ import annotations

import re
import unicodedata

import pytest
from conftest import byte_tokenizer
from hypothesis import example, given
from hypothesis import strategies as st

from ffprune_env.texts.cuts import boundary, part, pieces
from ffprune_env.texts.windows import _text, load_windows

CHINESE = "模型的每一层都有不同的重要性，因此不应当一律剪去同样多的参数。我们用强化学习来寻找最佳的分配方案！"
JAPANESE = "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。「何でも薄暗い所で泣いていた。」"
THAI = "ภาษาไทยเป็นภาษาที่ไม่มีการเว้นวรรคระหว่างคำ น้ำใจของเพื่อนเป็นสิ่งที่ดีที่สุดในชีวิตของเราทุกคน "
TEXTS = {
    "Chinese": CHINESE,
    "Chinese without marks": CHINESE.translate(dict.fromkeys(map(ord, "，。！"))),
    "Japanese": JAPANESE,
    "Thai": THAI,
    "Thai without spaces": THAI.replace(" ", ""),
    "one word": "a",
    "Khmer": "ភាសាខ្មែរជាភាសាផ្លូវការរបស់ប្រទេសកម្ពុជា។",
    "Khmer without marks": "ស្ត្រីខ្មែរ",
    "Tibetan": "བོད་ཀྱི་སྐད་ཡིག་ནི་བོད་མི་རིགས་ཀྱི་སྐད་ཡིག་ཡིན།",
    "Arabic without spaces": "اللغةالعربيةجميلةجدًّا",
    "Hebrew": "הַשָּׂפָה הָעִבְרִית׃ ",
    "skin and flags": "\U0001f44d\U0001f3fd\U0001f1e9\U0001f1ea\U0001f1eb\U0001f1f7!",
    "accents": "e\u0301\u0323",
    "families": "\U0001f469\u200d\U0001f469\u200d\U0001f467",
}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("length", [3_000, 30_000])
def test_parts_have_their_share_of_a_text_without_spaces(name, length, tmp_path):
    text = TEXTS[name] * (length // len(TEXTS[name]))
    path = tmp_path / "text.txt"
    path.write_text(text, encoding="utf-8")
    parts = [_text(str(path), split) for split in ("search", "calibration", "test")]
    assert "".join(parts) == text
    for found, share in zip(parts, (0.25, 0.45, 0.3), strict=True):
        assert len(found) == pytest.approx(share * len(text), abs=130)
        assert load_windows(str(path), byte_tokenizer(), "search", 64, 4).shape == (4, 64)
    for found in parts[1:]:
        assert not unicodedata.category(found[0]).startswith("M")
        assert "\u200d" not in (found[0], parts[0][-1])
    for before in parts[:-1]:
        assert before[-1] != "\u17d2"
        assert len(re.split("[^\U0001f1e6-\U0001f1ff]", before)[-1]) % 2 == 0


def test_a_text_without_spaces_ends_its_parts_at_sentences():
    for text in (CHINESE * 100, JAPANESE * 100):
        places = [boundary(text, i / 17) for i in range(1, 17)]
        assert all(text[place - 1] in "。！」" for place in places)
        assert all(text[place] != "」" for place in places)
        assert all(0 <= place - int(i / 17 * len(text)) <= 60 for i, place in enumerate(places, start=1))


def old_boundary(text, fraction):
    """The rule of old, which published figures of texts with spaces were measured by."""
    place = int(fraction * len(text))
    while 0 < place < len(text) and not text[place].isspace():
        place += 1
    return place


def test_a_text_with_spaces_is_cut_where_it_always_was(text_file):
    for text in (_text("python-docs", "all"), text_file.read_text()):
        for n in (1, 2, 3, 4, 8, 10, 16, 32, 128):
            assert [boundary(text, i / n) for i in range(n + 1)] == [old_boundary(text, i / n) for i in range(n + 1)]


def test_real_wikitext_is_cut_where_it_always_was(shared_data):
    text = _text(str(shared_data / "wikitext-2" / "wiki.valid.tokens"), "all")
    fractions = [0.25, 0.7, *(i / 1000 for i in range(1001))]
    assert [boundary(text, x) for x in fractions] == [old_boundary(text, x) for x in fractions]


@given(st.text(st.sampled_from("ab \n。!」\u0301\u200d\U0001f469的"), max_size=600), st.integers(1, 12))
@example("\u0301" * 500, 3)
@example("a!」", 3)
def test_any_text_is_cut_into_pieces_that_make_it_up(text, n):
    assert "".join(pieces(text, n)) == text
    assert part(text, (0.0, 0.25)) + part(text, (0.25, 0.7)) + part(text, (0.7, 1.0)) == text
    for i in range(n + 1):
        assert 0 <= boundary(text, i / n) - int(i / n * len(text)) <= 260
