"""The tokenizer that models run with reads every text as transformers does, whatever the folder's files leave to it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st

from chinchilla_lm.errors import InputError
from chinchilla_lm.models.plain_tokenizer import MARK, PlainTokenizer
from chinchilla_lm.models.tokenizer import save_plain
from tests.conftest import CHAT_TEMPLATE, byte_level_tokenizer, word_piece_tokenizer

TEXTS = [
    "Angela Merkel met Siemens in Munich, where the lazy dog slept.",
    "naïve FAÇADE – 日本語 🙂 [MASK] x<mask> <|user|>hi</s> [UNK] <new> <NEW>new",
    "",
    " two  spaces\n\nand a line ",
    "\u200b\u00ad",
]
TURNS: list[dict[str, Any]] = [
    {"role": "user", "content": "the quick"},
    {"role": "assistant", "content": "fox", "thinking": None},
]
ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


def byte_level(folder: Path, model_type: str = "llama") -> Any:
    return saved(byte_level_tokenizer(), folder, model_type)


def word_piece(folder: Path, model_type: str = "bert") -> Any:
    return saved(word_piece_tokenizer(), folder, model_type)


def saved(tokenizer: Any, folder: Path, model_type: str) -> None:
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))


def edit(path: Path, *gone: str, **changes: Any) -> None:
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({key: value for key, value in (content | changes).items() if key not in gone}))


def named_by_class(folder: Path) -> None:
    word_piece(folder)
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": true, "model_max_length": 512}')


def without_config(folder: Path) -> None:
    word_piece(folder, "distilbert")
    (folder / "tokenizer_config.json").unlink()


def named_in_map(folder: Path) -> None:
    named_by_class(folder)
    names = {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]"}
    mask = {"content": "[MASK]", "lstrip": True, "rstrip": False, "single_word": False, "normalized": False}
    (folder / "special_tokens_map.json").write_text(json.dumps(names | {"mask_token": mask}))


def roberta_of_vocabulary(folder: Path) -> None:
    byte_level(folder, "roberta")
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in model["merges"]))
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text('{"add_prefix_space": true}')


def gpt2_by_class(folder: Path) -> None:
    byte_level(folder, "gpt2")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer", "add_bos_token": true}')


def decoder_lists_more(folder: Path) -> None:
    byte_level(folder)
    plain = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    more = {"318": {"content": "<new>", "special": True} | plain, "700": {"content": "lazy", "special": False} | plain}
    edit(folder / "tokenizer_config.json", added_tokens_decoder=more)


def added_file(folder: Path) -> None:
    byte_level(folder)
    edit(folder / "tokenizer_config.json", "added_tokens_decoder")
    (folder / "added_tokens.json").write_text('{"<new>": 320, "fox": 321}')


def additional_specials(folder: Path) -> None:
    byte_level(folder)
    edit(folder / "tokenizer_config.json", additional_special_tokens=["<new>", "<other>"], image_token="<mask>")


def extra_specials(folder: Path) -> None:
    word_piece(folder)
    edit(folder / "tokenizer_config.json", extra_special_tokens={"boi_token": "<new>"})


def bos_and_eos(folder: Path) -> None:
    byte_level(folder)
    edit(folder / "tokenizer_config.json", bos_token="<|user|>", add_bos_token=True, add_eos_token=True)


def specials_are_text(folder: Path) -> None:
    byte_level(folder)
    edit(folder / "tokenizer_config.json", split_special_tokens=True)


def cut_at_the_left(folder: Path) -> None:
    word_piece(folder)
    edit(folder / "tokenizer_config.json", truncation_side="left", padding_side="left")


def state_in_the_file(folder: Path) -> None:
    tokenizer = word_piece_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(5)
    tokenizer.backend_tokenizer.enable_padding(length=9, pad_token="[PAD]")
    saved(tokenizer, folder, "bert")


def bert_with(**settings: Any) -> Any:
    def make(folder: Path) -> None:
        words = [
            "[PAD]",
            "[UNK]",
            "[CLS]",
            "[SEP]",
            "[MASK]",
            "angela",
            "Angela",
            "naïve",
            "naive",
            "FAÇADE",
            "日",
            "本",
        ]
        words += ["facade", "façade", "日本語", "met", "lazy", "dog"]
        lower = settings.get("do_lower_case", True)
        tokenizer = transformers.BertTokenizerFast(
            vocab={word: index for index, word in enumerate(words)}, do_lower_case=not lower
        )
        saved(tokenizer, folder, "bert")
        edit(folder / "tokenizer_config.json", tokenizer_class="BertTokenizer", **settings)

    return make


KINDS = {
    "byte level": byte_level,
    "word piece": word_piece,
    "named by the class": named_by_class,
    "without a config": without_config,
    "named in the map": named_in_map,
    "RoBERTa's vocab and merges": roberta_of_vocabulary,
    "GPT-2 by class": gpt2_by_class,
    "more in added_tokens_decoder": decoder_lists_more,
    "added_tokens.json": added_file,
    "additional_special_tokens": additional_specials,
    "extra_special_tokens": extra_specials,
    "add_bos_token": bos_and_eos,
    "split_special_tokens": specials_are_text,
    "cut at the left": cut_at_the_left,
    "truncation and padding in tokenizer.json": state_in_the_file,
    "do_lower_case": bert_with(do_lower_case=True),
    "no do_lower_case": bert_with(do_lower_case=False),
    "strip_accents": bert_with(do_lower_case=True, strip_accents=False),
    "tokenize_chinese_chars": bert_with(do_lower_case=False, tokenize_chinese_chars=False),
}


def columns(tokenizer: Any, *texts: Any, **options: Any) -> tuple[Any, ...]:
    names = ("input_ids", "token_type_ids", "special_tokens_mask")
    found = tokenizer(*texts, return_token_type_ids=True, return_special_tokens_mask=True, **options)
    return tuple(found[name] for name in names)


def same(one: Any, other: Any) -> None:
    """Two tokenizers read and name everything alike."""
    for role in ROLES:
        assert getattr(one, f"{role}_token_id") == getattr(other, f"{role}_token_id"), role
        assert getattr(one, f"{role}_token") == getattr(other, f"{role}_token"), role
    assert len(one) == len(other)
    pairs = (TEXTS, TEXTS[::-1])
    for specials in (True, False):
        assert columns(one, TEXTS, add_special_tokens=specials) == columns(other, TEXTS, add_special_tokens=specials)
        assert columns(one, *pairs, add_special_tokens=specials) == columns(other, *pairs, add_special_tokens=specials)
        cut = {"truncation": "longest_first", "max_length": 7, "add_special_tokens": specials}
        assert columns(one, TEXTS, **cut) == columns(other, TEXTS, **cut)
        assert columns(one, *pairs, **cut) == columns(other, *pairs, **cut)
    for text in TEXTS:
        ids = one(text)["input_ids"]
        for skip in (True, False):
            mine, theirs = (
                each.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False) for each in (one, other)
            )
            assert mine == theirs


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_every_folder_is_read_as_transformers_reads_it(tmp_path: Path, make: Any) -> None:
    make(tmp_path)
    stock = transformers.AutoTokenizer.from_pretrained(tmp_path)
    plain = PlainTokenizer.load(tmp_path)
    same(plain, stock)
    written = shutil.copytree(tmp_path, tmp_path / "packed")
    save_plain(plain, written)
    same(PlainTokenizer.load(written), stock)
    same(transformers.AutoTokenizer.from_pretrained(written), stock)


def test_a_copy_is_not_what_transformers_goes_on_with(tmp_path: Path) -> None:
    stock = word_piece_tokenizer()
    plain = PlainTokenizer.of(stock)
    wanted = plain(TEXTS)
    stock(TEXTS, truncation=True, max_length=4, padding=True)
    assert plain(TEXTS) == wanted
    assert PlainTokenizer.of(plain) is plain


@pytest.fixture(scope="module")
def both() -> tuple[Any, PlainTokenizer]:
    stock = word_piece_tokenizer()
    return stock, PlainTokenizer.of(stock)


@given(
    words=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    room=st.integers(3, 20),
    left=st.booleans(),
    pair=st.booleans(),
)
def test_a_text_is_cut_as_transformers_cuts_it(both: Any, words: Any, room: int, left: bool, pair: bool) -> None:
    stock, plain = both
    stock.truncation_side = "left" if left else "right"
    mine = PlainTokenizer(plain.backend_tokenizer, plain.specials, cut_left=left)
    texts = [[" ".join(["fox", "dog", "naïve"][i % 3] for i in range(count))] for count in words][: 1 + pair]
    cut = {"truncation": True, "max_length": room}
    assert columns(mine, *texts, **cut) == columns(stock, *texts, **cut)


def test_what_it_does_not_do_is_refused(both: Any) -> None:
    plain = both[1]
    for options in ({"padding": True}, {"truncation": "only_first", "max_length": 5}, {"truncation": True}):
        with pytest.raises(InputError, match=r"; (pass|pad) "):
            plain("fox", **options)
    with pytest.raises(InputError, match="max_length 1 leaves no room beside 2"):
        plain("fox", truncation=True, max_length=1)
    for length in ("8", 8.0):
        with pytest.raises(InputError, match="is not a whole number; pass max_length=512"):
            plain("fox", truncation=True, max_length=length)
    for text, pair in ((["fox", "dog"], ["fox"]), ("fox", ["fox"]), (["fox"], "fox"), (["fox"], ["fox", "dog"])):
        for room in (None, 9):
            with pytest.raises(InputError, match=r"second texts; pass one for each"):
                plain(text, pair, truncation=room is not None, max_length=room)
    with pytest.raises(TypeError, match="return_tensors"):
        plain("fox", return_tensors="pt")
    with pytest.raises(TypeError, match="stride"):
        plain.decode([5], stride=1)
    with pytest.raises(AttributeError):
        _ = plain.image_token


TEMPLATES = {
    "a plain one": CHAT_TEMPLATE,
    "generation": (
        "{% set who = 'nobody' %}{% for m in messages %}{%- if m.role == 'assistant' %}\n"
        "  {%- generation %}{% set who = m.role %}{{ loop.index }}{{ m.content }}{{ who }}{% endgeneration %}\n"
        "{% else %}{{ m.content }}{% endif %}{% endfor %}{{ who }}"
    ),
    "tojson": "{{ messages | tojson }}{{ messages | tojson(indent=2, sort_keys=true, separators=(',', ':')) }}é<b>",
    "None left away": "{% for m in messages %}{{ 'thinking' in m }}{{ m.thinking is defined }}{% endfor %}",
    "strftime_now": "{{ strftime_now('%Y-%m-%d') }}{% if date_string is defined %}never{% endif %}",
    "break": "{% for m in messages %}{{ m.content }}{% break %}{% endfor %}",
    "specials": "{{ eos_token }}{{ bos_token }}{{ tools is none }}{{ documents is none }}{{ add_generation_prompt }}",
    "namespace": "{% set n = namespace(i=0) %}{% for m in messages %}{% set n.i = n.i + 1 %}{% endfor %}{{ n.i }}",
}


@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_templates_give_what_transformers_gives(template: str, prompt: bool) -> None:
    stock = byte_level_tokenizer()
    stock.chat_template = template
    wanted = stock.apply_chat_template(TURNS, tokenize=False, add_generation_prompt=prompt)
    assert PlainTokenizer.of(stock).apply_chat_template(TURNS, add_generation_prompt=prompt) == wanted


def list_of_templates(folder: Path) -> None:
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": CHAT_TEMPLATE}]
    edit(folder / "tokenizer_config.json", chat_template=named)


def folder_of_templates(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("rag")


def file_over_config(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", chat_template="not this one")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)


@pytest.mark.parametrize("make", [list_of_templates, folder_of_templates, file_over_config])
def test_templates_are_found_where_transformers_finds_them(tmp_path: Path, make: Any) -> None:
    byte_level(tmp_path)
    make(tmp_path)
    stock = transformers.AutoTokenizer.from_pretrained(tmp_path)
    wanted = stock.apply_chat_template(TURNS, tokenize=False)
    plain = PlainTokenizer.load(tmp_path)
    assert plain.apply_chat_template(TURNS) == wanted
    save_plain(plain, tmp_path)
    assert PlainTokenizer.load(tmp_path).apply_chat_template(TURNS) == wanted
    assert not (tmp_path / "additional_chat_templates").exists()


def test_a_template_may_call_special_tokens_of_the_models_own(tmp_path: Path) -> None:
    byte_level(tmp_path)
    edit(tmp_path / "tokenizer_config.json", extra_special_tokens={"image_token": "<|user|>", "start": "<|user|>"})
    (tmp_path / "chat_template.jinja").write_text("{{ image_token }}{{ start }}{{ truncation_side }}{{ eos_token }}")
    stock = transformers.AutoTokenizer.from_pretrained(tmp_path)
    wanted = stock.apply_chat_template(TURNS, tokenize=False)
    assert wanted.startswith("<|user|><|user|>")
    plain = PlainTokenizer.load(tmp_path)
    save_plain(plain, tmp_path)
    for one in (plain, PlainTokenizer.load(tmp_path)):
        assert one.apply_chat_template(TURNS) == wanted
    assert transformers.AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(TURNS, tokenize=False) == wanted


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ raise_exception('only the user may speak') }}", "only the user may speak"),
        ("{% unknown %}", "unknown tag"),
        ("{{ messages[9].content }}", "no element 9"),
        ("{{ messages.__class__.__mro__ }}{{ ''.__class__.mro() }}", "unsafe|undefined"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
    ],
)
def test_a_template_that_refuses_says_why_in_one_line(template: str, said: str) -> None:
    plain = PlainTokenizer(byte_level_tokenizer().backend_tokenizer, {}, template)
    with pytest.raises(InputError, match=rf"the chat template refuses the prompt \(.*{said}.*\); leave --chat away"):
        plain.apply_chat_template(TURNS)


def test_a_text_that_the_library_cannot_read_is_refused() -> None:
    from tokenizers import Tokenizer, models

    plain = PlainTokenizer(Tokenizer(models.Unigram([("a", 0.0)])), {})
    assert plain("a")["input_ids"] == [0]
    for text in ("b", ["a", "b"]):
        with pytest.raises(InputError, match=r"cannot read the text \(.+\); use the model's own tokenizer files"):
            plain(text)


def test_damaged_files_of_ours_are_refused(tmp_path: Path) -> None:
    byte_level(tmp_path)
    save_plain(PlainTokenizer.load(tmp_path), tmp_path)
    edit(tmp_path / "tokenizer_config.json", **{MARK: 9})
    with pytest.raises(InputError, match="9 is not 1; run chinchilla pack again"):
        PlainTokenizer.load(tmp_path)
    edit(tmp_path / "tokenizer_config.json", **{MARK: 1})
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="cannot be loaded"):
        PlainTokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"holds no tokenizer\.json"):
        PlainTokenizer.load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(InputError, match="not a dictionary"):
        PlainTokenizer.load(tmp_path)
