import json
import shutil
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers

from chinchilla_lm.data.encoded import DataWarning
from chinchilla_lm.errors import InputError
from chinchilla_lm.models import checkpoint as checkpoints
from chinchilla_lm.runtime import loading
from chinchilla_lm.runtime.card import Card
from chinchilla_lm.runtime.engine.native import engine_module
from chinchilla_lm.runtime.loading import torch_session
from chinchilla_lm.runtime.session import Backend, Session
from chinchilla_lm.runtime.torch_backend import TorchBackend
from tests.models.tiny import build

NEEDS_ENGINE = pytest.mark.skipif(engine_module() is None, reason="the engine is not built")


def load(folder, backend="torch", **options):
    return loading.load(folder, backend, **options)


TEXTS = ["Angela Merkel met Siemens in Munich .", "good", "is it bad or very good ? naïve fox"]


@pytest.fixture
def language(model_folder):
    return load(model_folder(), dtype="float64")


def reference(folder, auto, text, pair=None):
    """Output of transformers in float64, one text at a time and so without padding."""
    model = auto.from_pretrained(folder, dtype=torch.float64).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        return model(**tokenizer(text, pair, return_tensors="pt", return_token_type_ids=True))


def test_logits_are_those_of_transformers(model_folder, language):
    ids = [5, 200, 17, 33, 301]
    model = transformers.AutoModelForCausalLM.from_pretrained(model_folder(), dtype=torch.float64).eval()
    with torch.inference_mode():
        wanted = model(torch.tensor([ids])).logits[0].float()
    for given in (language.logits(ids), language.logits(torch.tensor(ids))):
        assert given.dtype == np.float32
        np.testing.assert_allclose(given, wanted.numpy(), atol=1e-5)


def test_greedy_text_is_that_of_transformers(model_folder, language):
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_folder())
    model = transformers.AutoModelForCausalLM.from_pretrained(model_folder(), dtype=torch.float64).eval()
    prompt = tokenizer("Once upon a time", return_tensors="pt")
    with torch.inference_mode():
        ids = model.generate(**prompt, do_sample=False, max_new_tokens=20, min_new_tokens=20)[0]
    wanted = tokenizer.decode(ids[prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    # transformers forbids the end of the text for `min_new_tokens`; none is drawn here, so ignoring it is the same
    assert tokenizer.eos_token_id not in ids
    given = language.generate("Once upon a time", max_new_tokens=20, ignore_eos=True)
    assert given == wanted
    assert len(given) > 5


@pytest.mark.parametrize(
    "options",
    [{}, {"chat": True}, {"temperature": 1.5, "seed": 3}, {"temperature": 1.0, "top_k": 9, "seed": 1}],
)
def test_the_stream_is_the_text_in_pieces(language, options):
    pieces = list(language.generate("Munich is", max_new_tokens=40, stream=True, ignore_eos=True, **options))
    assert "".join(pieces) == language.generate("Munich is", max_new_tokens=40, ignore_eos=True, **options)
    assert len(pieces) > 5


def test_the_text_ends_where_the_generation_config_says(model_folder, language, tmp_path):
    full = language.start("Once upon", 20, ignore_eos=True)
    "".join(full)
    stop = full.tokens[6]
    folder = shutil.copytree(model_folder(), tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [stop]}))
    short = load(folder, dtype="float64").start("Once upon", 20)
    "".join(short)
    assert short.tokens == full.tokens[: full.tokens.index(stop)]
    assert short.prompt_tokens == full.prompt_tokens


PROMPTS = ["Once upon a time", "good", "the quick brown fox met Angela Merkel", "is it", "Munich"]


@pytest.mark.parametrize("options", [{}, {"temperature": 1.3, "top_p": 0.9, "seed": 4}], ids=["greedy", "drawn"])
@pytest.mark.parametrize("backend", [pytest.param("native", marks=NEEDS_ENGINE), "torch"])
def test_a_list_of_prompts_gives_each_the_text_that_it_has_alone(model_folder, monkeypatch, backend, options):
    session = load(model_folder(), backend, dtype="float32", threads=2)
    free = [session.start(prompt, 24, ignore_eos=True, **options) for prompt in PROMPTS]
    texts = ["".join(one) for one in free]
    assert len(set(texts)) == len(texts)
    # Ends that come early in one text, late in another, and in others not at all.
    monkeypatch.setattr("chinchilla_lm.runtime.session.stop_ids", lambda *_: frozenset({free[1].tokens[9]}))
    options = options | {"stop": (texts[2][8:11], texts[3][2:4])}
    alone = [session.start(prompt, 24, **options) for prompt in PROMPTS]
    wanted = ["".join(one) for one in alone]
    assert len({len(one.tokens) for one in alone}) > 2
    together = [session.start(prompt, 24, **options) for prompt in PROMPTS]
    found = [""] * len(PROMPTS)
    for row, piece in session.write(together):
        found[row] += piece
    assert [one.tokens for one in together] == [one.tokens for one in alone]
    assert found == wanted == session.generate(PROMPTS, 24, **options)
    pieces = list(session.generate(tuple(PROMPTS), 24, stream=True, **options))
    assert ["".join(piece for row, piece in pieces if row == index) for index in range(len(PROMPTS))] == wanted
    assert session.generate([], 24) == []


def test_the_same_prompt_twice_has_one_text_with_a_seed_and_two_without(language):
    same, other = language.generate(["good", "good"], 20, temperature=1.5, seed=3)
    assert same == other
    same, other = language.generate(["good", "good"], 20, temperature=1.5)
    assert same != other


def test_an_answer_starts_a_text_and_a_continuation_goes_on_with_one(language, monkeypatch):
    begun = []
    monkeypatch.setattr("chinchilla_lm.runtime.session.Pieces", lambda tokenizer, before: begun.append(before))
    language.start("good", 5)
    language.start("good", 5, chat=True)
    assert begun == [language.tokenizer("good")["input_ids"], []]


def test_chat_puts_the_prompt_into_the_template(language):
    plain, chat = language.start("good", 5), language.start("good", 5, chat=True)
    assert chat.prompt_tokens == plain.prompt_tokens + 3  # <|user|> good <|endoftext|> <|assistant|>


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.logits([]), "0 token ids"),
        (lambda s: s.logits([1] * 65), "65 tokens are more than the model's 64 positions"),
        (lambda s: s.logits([3, 5000]), "token id 5000 is not in 0"),
        (lambda s: s.logits([3, -1]), "token id -1 is not in 0"),
        (lambda s: s.generate("good", max_new_tokens=64), "65 tokens are more than the model's 64 positions; 2 are"),
        (lambda s: s.generate("good", max_new_tokens=0), "max-new-tokens 0"),
        (lambda s: s.generate(""), "0 tokens"),
        (lambda s: s.generate("good", max_new_tokens=4.5), "max-new-tokens 4.5 is not a whole number; pass"),
        (lambda s: s.generate("good", max_new_tokens="4"), "max-new-tokens '4' is not a whole number; pass"),
        (lambda s: s.generate("good", temperature=1.0, seed=1.5), "seed 1.5 is not a whole number; pass"),
        (lambda s: s.generate("good", temperature=1.0, top_k=2.5), "top-k 2.5 is not a whole number; leave"),
        (lambda s: s.generate("good", seed=1), "seed 1 has no effect on greedy choice; add"),
        (lambda s: s.generate(None), "prompt None is neither a text nor a list of texts; pass"),
        (lambda s: s.generate(["good", None]), "prompt None is not a text; pass"),
        (lambda s: s.generate("good \ud800"), r"prompt has '\\ud800' at character 5, half of a surrogate pair"),
        (lambda s: s.generate("good", stop=[1]), r"stop \[1\] is not a list of texts, none of them empty; pass"),
        (lambda s: s.generate("good", stop="end"), "stop 'end' is not a list of texts"),
        (lambda s: s.generate("good", stop=[""]), "stop .* is not a list of texts"),
        (lambda s: s.generate("good", stop=None), "stop None is not a list of texts"),
        (
            lambda s: s.entities(["good"]),
            "entities needs a model for token-classification, this one is for language-model",
        ),
        (lambda s: s.classify(["good"]), "classify needs a model for text-classification"),
        (lambda s: s.embed(["good"]), "embed needs a model for embedding"),
        (lambda s: s.score([("a", "b")]), "score needs a model for ranking"),
    ],
)
def test_calls_that_do_not_fit_are_refused_with_their_figures(language, call, message):
    with pytest.raises(InputError, match=message):
        call(language)


def test_a_tagger_finds_the_spans_of_transformers_tags(model_folder):
    folder = model_folder("bert", "token-classification")
    session = load(folder, dtype="float64")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForTokenClassification.from_pretrained(folder, dtype=torch.float64).eval()
    for text, found in zip(TEXTS, session.entities(TEXTS), strict=True):
        encoded = tokenizer(text.split(), is_split_into_words=True, return_tensors="pt")
        with torch.inference_mode():
            sure, chosen = model(**encoded).logits.softmax(-1)[0].max(-1)
        owners = encoded.word_ids()
        first = [owners.index(word) for word in range(len(text.split()))]
        wanted = [(model.config.id2label[int(chosen[i])][2:], float(sure[i])) for i in first]
        spans = {(e.text, e.label): e.score for e in found}
        for word, (label, probability) in zip(text.split(), wanted, strict=True):
            inside = [score for (span, kind), score in spans.items() if word in span.split() and kind == label]
            assert bool(inside) == bool(label)
            if (word, label) in spans:
                assert spans[word, label] == pytest.approx(probability, abs=1e-6)


class Tagger(Backend):
    """A backend for windows alone."""

    switches = ()

    def logits(self, ids):
        raise NotImplementedError

    def cache(self, capacity):
        raise NotImplementedError

    def read(self, ids, caches):
        raise NotImplementedError

    def best(self, ids, caches):
        raise NotImplementedError


class KnowsNames(Tagger):
    """A tagger whose tags are known: B-X for the first piece of `angela`, I-X for that of `merkel`, else O."""

    name = "known"

    def __init__(self, tokenizer, window):
        self.window = window
        self.pieces = [tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in ("angela", "merkel")]

    def outputs(self, windows):
        assert max(len(window.ids) for window in windows) <= self.window
        first, second = self.pieces
        chosen = [(np.array(window.ids) == first) + 2 * (np.array(window.ids) == second) for window in windows]
        return [5.0 * np.eye(3, dtype=np.float32)[one] for one in chosen]


@pytest.mark.filterwarnings("ignore::chinchilla_lm.data.encoded.DataWarning")
def test_a_long_text_is_read_in_windows_and_nothing_is_lost(model_folder):
    checkpoint = checkpoints.load(model_folder("bert", "token-classification"))
    card = Card.of(replace(checkpoint, meta={"window": {"max_tokens": 16}}))
    session = Session(KnowsNames(card.tokenizer, 16), card)
    assert session.window == 16
    text = "".join(f"Angela Merkel,  met {'the fox ' * (n % 7)}\n" for n in range(60))
    long, empty, short = session.entities([text, " ", "ANGELA!"])
    starts = [i for i in range(len(text)) if text.startswith("Angela Merkel", i)]
    assert [(e.start, e.end, e.text) for e in long] == [(i, i + 13, "Angela Merkel") for i in starts]
    assert len(starts) == 60
    assert empty == []
    assert [(e.label, e.start, e.end) for e in short] == [("X", 0, 6)]
    assert long[0].score == pytest.approx(torch.tensor([5.0, 0.0, 0.0]).softmax(0)[0].item())


def test_classes_are_those_of_transformers_in_any_company(model_folder):
    folder = model_folder("bert", "text-classification")
    session = load(folder, dtype="float64")
    found = session.classify([*TEXTS, ("good", "bad or naïve")])
    for text, given in zip([(text, None) for text in TEXTS] + [("good", "bad or naïve")], found, strict=True):
        wanted = reference(folder, transformers.AutoModelForSequenceClassification, *text).logits[0].softmax(-1)
        assert list(given["scores"].values()) == pytest.approx(wanted.tolist(), abs=1e-6)
        assert given["label"] == session.labels[int(wanted.argmax())]
        assert given["score"] == max(given["scores"].values())
    assert session.classify([]) == []


def test_scores_are_those_of_transformers(model_folder):
    folder = model_folder("bert", "ranking")
    pairs = [("is it good", "very good"), ("is it", "bad")]
    given = load(folder, task="ranking", dtype="float64").score(pairs)
    auto = transformers.AutoModelForSequenceClassification
    assert given == pytest.approx([float(reference(folder, auto, *pair).logits) for pair in pairs], abs=1e-5)
    with pytest.raises(InputError, match="pair 1 is 'bad', not two texts"):
        load(folder, task="ranking").score([("a", "b"), "bad"])


def test_embeddings_are_those_of_transformers(model_folder):
    folder = model_folder("bert", "embedding")
    session = load(folder, dtype="float64", task="embedding")
    given = session.embed(TEXTS)
    assert given.dtype == np.float32
    hidden = [reference(folder, transformers.AutoModel, text).last_hidden_state[0] for text in TEXTS]
    pooled = {"mean": [h.mean(0) for h in hidden], "first": [h[0] for h in hidden]}[
        session.runner.model.config.head.pooling
    ]
    wanted = torch.stack(pooled).float()
    if session.runner.model.config.head.normalize:
        wanted = torch.nn.functional.normalize(wanted, dim=-1)
    np.testing.assert_allclose(given, wanted.numpy(), atol=1e-5)
    assert session.embed([]).shape == (0, given.shape[1])
    with pytest.raises(InputError, match="is one text, not a list"):
        session.embed("good")


def test_what_is_too_long_for_a_class_is_cut_and_told(model_folder):
    session = load(model_folder("bert", "text-classification"), dtype="float32")
    with pytest.warns(DataWarning, match="1 of 2 texts are over 40 tokens"):
        cut, _ = session.classify(["good " * 100, "good"])
    room = 38 // len(session.tokenizer("good", add_special_tokens=False)["input_ids"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        [fitting] = session.classify(["good " * room])
    assert fitting["scores"] == pytest.approx(cut["scores"], abs=1e-5)


def test_outputs_that_are_no_numbers_are_refused(model_folder):
    checkpoint = checkpoints.load(model_folder("bert", "text-classification"))
    with torch.no_grad():
        checkpoint.model.head.get_parameter("output.bias")[1] = torch.inf
    with pytest.raises(InputError, match="not a number"):
        torch_session(checkpoint, "cpu", "float32").classify(["good"])


def test_sessions_share_no_state_with_each_other_or_with_their_checkpoint(model_folder):
    checkpoint = checkpoints.load(model_folder())
    before = {name: weight.clone() for name, weight in checkpoint.model.state_dict().items()}
    double, single = (torch_session(checkpoint, "cpu", dtype) for dtype in ("float64", "float32"))
    assert isinstance(double.runner, TorchBackend)
    assert isinstance(single.runner, TorchBackend)
    streams = [session.generate("fox", 12, stream=True, ignore_eos=True) for session in (double, single, double)]
    mixed = ["".join(parts) for parts in zip(*(list(stream) for stream in streams), strict=False)]
    assert mixed
    assert double.runner.model.embedding.tokens.weight.dtype == torch.float64
    assert single.runner.model.embedding.tokens.weight.dtype == torch.float32
    assert not any(weight.requires_grad for weight in single.runner.model.parameters())
    assert all(torch.equal(weight, before[name]) for name, weight in checkpoint.model.state_dict().items())
    assert all(weight.requires_grad for weight in checkpoint.model.parameters())
    first, second = double.generate("a", 9, stream=True), double.generate("a", 9, stream=True)
    taken = [next(first, ""), next(second, ""), "".join(first), "".join(second)]
    assert taken[0] + taken[2] == taken[1] + taken[3] == double.generate("a", 9)


def test_a_tokenizer_larger_than_the_model_is_refused(model_folder, tmp_path):
    folder = shutil.copytree(model_folder(), tmp_path / "model")
    size = len(transformers.AutoTokenizer.from_pretrained(folder))
    build("llama-gqa", vocab_size=size - 1).save_pretrained(folder)
    message = rf"has token ids up to {size - 1}, the model 0 … {size - 2}; copy the model's own"
    with pytest.raises(InputError, match=message):
        load(folder, dtype="float64").generate("Once upon a time")


def test_a_token_that_the_model_lacks_is_refused_where_a_text_has_it(model_folder, tmp_path):
    folder = shutil.copytree(model_folder("bert", "text-classification"), tmp_path / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    size = len(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "<nothing>", "additional_special_tokens": ["<image>"]})
    tokenizer.save_pretrained(folder)
    session = load(folder, dtype="float64")
    known = load(model_folder("bert", "text-classification"), dtype="float64").classify(TEXTS)
    for found, wanted in zip(session.classify(TEXTS), known, strict=True):
        assert found["scores"] == pytest.approx(wanted["scores"])
    with pytest.raises(InputError, match=rf"token id {size + 1} is not in 0 … {size - 1}; use the model's own"):
        session.classify(["good", "an <image> here"])


class SaysInside(Tagger):
    """A tagger that is surest of I-X everywhere, and next of B-X."""

    name = "inside"

    def outputs(self, windows):
        return [np.tile(np.array([0.0, 4.0, 5.0], np.float32), (len(window.ids), 1)) for window in windows]


def test_entities_are_legal_bio_where_the_model_was_trained_on_it(model_folder):
    checkpoint = checkpoints.load(model_folder("bert", "token-classification"))
    scores = {}
    for meta in ({}, {"tags": "BIO"}):
        session = Session(SaysInside(), Card.of(replace(checkpoint, meta=meta)))
        (found,) = session.entities(["Angela Merkel"])[0]
        scores[len(meta)] = found.score
    assert scores[1] < scores[0], "the first word is B-X, of which the model is less sure"
