"""What the verbs of the main job share: a recipe with its model, its data and its clock, each made when first asked
for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import torch

from chinchilla_lm.console import Console
from chinchilla_lm.data.batches import EncodedBatch, batches, padding_share
from chinchilla_lm.data.encode import DataWarning, Encoded
from chinchilla_lm.data.encoded import enough
from chinchilla_lm.data.load import load_dataset
from chinchilla_lm.data.records import SPLITS, Dataset, records_sha256
from chinchilla_lm.data.splits import disjoint, document_hashes
from chinchilla_lm.errors import InputError
from chinchilla_lm.evaluate.judge import Judge
from chinchilla_lm.evaluate.judged import Judged
from chinchilla_lm.evaluate.tasks import TASKS, Reading
from chinchilla_lm.files import sha256_text
from chinchilla_lm.models.checkpoint import Checkpoint, load
from chinchilla_lm.models.transformer import Transformer
from chinchilla_lm.pipeline.guarding import GuardData, guard_of
from chinchilla_lm.pipeline.request import timed_request
from chinchilla_lm.recipe import Recipe
from chinchilla_lm.results import Interval
from chinchilla_lm.runtime.card import Card
from chinchilla_lm.runtime.cpu import usable_cores
from chinchilla_lm.runtime.device import resolve_device, resolve_dtype
from chinchilla_lm.runtime.engine.native import native_format
from chinchilla_lm.runtime.engine.packed import is_packed, read_packed
from chinchilla_lm.runtime.engine.program import Program
from chinchilla_lm.runtime.engine.served import NativeForward
from chinchilla_lm.runtime.engine.unpacking import unpack_checkpoint
from chinchilla_lm.runtime.loading import EngineWarning, compile_file, engine_serves, native_session, torch_session
from chinchilla_lm.runtime.measuring.shape import Shape
from chinchilla_lm.runtime.memory import keep_freed_memory
from chinchilla_lm.runtime.prepare import prepare
from chinchilla_lm.runtime.session import Session

# Longest window by default, in tokens: an LM window of 512 is the shortest of the published protocols.
DEFAULT_WINDOW = 512
# Tokens a batch while judging.
JUDGE_TOKENS = 4096

Served = Transformer | NativeForward


class Job:
    """A recipe at work. `model` names what to load in place of the recipe's model.

    only_served: the model is run but not changed, so that for the engine its file is packed without being in memory as
    a transformer.
    """

    def __init__(
        self,
        recipe: Recipe,
        console: Console,
        model: str | None = None,
        *,
        new_head: bool = False,
        only_served: bool = False,
    ) -> None:
        self.recipe, self.console = recipe, console
        self.task = TASKS[recipe.task]
        self.source = model or recipe.model
        self.new_head, self.only_served = new_head, only_served
        keep_freed_memory()
        self.device = resolve_device(recipe.device)
        self.dtype = resolve_dtype(recipe.dtype, self.device)
        if recipe.threads is not None:
            torch.set_num_threads(recipe.threads)
        if recipe.backend == "native" and self.device.type != "cpu":
            raise InputError(f"backend native runs on the CPU, not on {self.device}; pass --device cpu")
        with console.warned(EngineWarning):
            native = recipe.backend == "native" or (recipe.backend == "auto" and engine_serves(str(self.device)))
        self.threads = recipe.threads or usable_cores()  # of the engine
        self.backend: Literal["native", "torch"] = "native" if native else "torch"

    @cached_property
    def dataset(self) -> Dataset:
        """The recipe's data. Raises InputError where it names none."""
        if self.recipe.data is None:
            raise InputError("data is missing: the verb needs a data set; pass --data FOLDER")
        named = {split: getattr(self.recipe, split) for split in SPLITS}
        return self.read(self.recipe.data, {split: file for split, file in named.items() if file is not None})

    def read(self, source: str, splits: Mapping[str, str] | None = None, task: str | None = None) -> Dataset:
        """A data set by the recipe's columns, for its task where no other is named; says what was found in it."""
        recipe = self.recipe
        split_by = None if recipe.split_by == "auto" else recipe.split_by
        dataset = load_dataset(
            source,
            task or recipe.task,
            splits=splits,
            text_column=recipe.text_column,
            label_column=recipe.label_column,
            group_column=recipe.group_column,
            time_column=recipe.time_column,
            split_by=split_by,
            encoding=recipe.encoding,
        )
        sizes = ", ".join(f"{name} {len(records):,}" for name, records in dataset.splits.items())
        self.console.say(f"data: {dataset.name}: {sizes} records")
        for note in dataset.notes:
            self.console.say(f"data: {note}")
        if dataset.skipped:
            first = dataset.skipped[0]
            self.console.warn(f"{len(dataset.skipped)} records skipped, first {first.where}: {first.why}")
        return dataset

    @cached_property
    def data_sha256(self) -> str:
        """Hash of every record of every split, and of the calibration data where it is named."""
        records = self.dataset.all_records()
        if self.recipe.calibration is not None:
            records += self.calibration_records
        return records_sha256(records)

    def split_sha256(self, split: str) -> str:
        """Hash of every record of one split."""
        return records_sha256(self.dataset.records(split))

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The model in float32, with a head for the task. Raises InputError where it has none and may not get one."""
        if is_packed(self.source) and not self.new_head:
            twin = unpack_checkpoint(self.source, self.recipe.task)
            self._check_causal(twin.model.config.causal)
            return twin
        labels = list(self.dataset.labels) if self.new_head else None
        torch.manual_seed(self.recipe.seed)  # of a new head's weights
        checkpoint = load(
            self.source,
            task=self.recipe.task,
            labels=labels,
            bidirectional=True if self._wants_bidirectional() else None,
            device=str(self.device),
        )
        self._check_causal(checkpoint.model.config.causal)
        if checkpoint.fresh and not self.new_head:
            raise InputError(f"{self.source} has no trained head for {self.recipe.task}; run chinchilla finetune first")
        return checkpoint

    def _check_causal(self, causal: bool) -> None:
        if self.recipe.task == "language-modeling" and not causal:
            raise InputError(f"{self.source} is a masked language model, which has no perplexity; pass a causal one")

    @cached_property
    def _packed(self) -> tuple[Program, Card] | None:
        """A model that the engine runs and nobody changes: its program, and what it is. None where it is a transformer.

        Raises InputError for a damaged one, or one for another task.
        """
        packed = is_packed(self.source)
        if self.backend == "torch" or self.new_head or not (packed or self.only_served):
            return None
        if not packed:
            form = native_format(str(self.dtype).removeprefix("torch."))
            program, card = compile_file(self.source, form, self.recipe.task)
            self._check_causal(card.causal)
            return program, card
        program, card = read_packed(self.source)
        if card.kind != self.recipe.task:
            raise InputError(f"this packed model is for {card.kind}, not {self.recipe.task}; load another one")
        self._check_causal(card.causal)
        return program, card

    @property
    def format(self) -> str:
        """Of the weights as they are served: a packed model's own, else the recipe's dtype."""
        if is_packed(self.source):
            program = read_packed(self.source)[0] if self._packed is None else self._packed[0]
            return str(program.header["format"])
        return str(self.dtype).removeprefix("torch.")

    @cached_property
    def card(self) -> Card:
        """What is known of the model besides its weights, which a packed one that the engine runs keeps packed."""
        return Card.of(self.checkpoint) if self._packed is None else self._packed[1]

    def _wants_bidirectional(self) -> bool:
        """As the recipe says of a new head; else a tagger has to see what follows a word."""
        if self.recipe.bidirectional is not None:
            return self.recipe.bidirectional and self.new_head
        return self.new_head and self.recipe.task == "token-classification"

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The model's labels. Raises InputError where the data has one that the model lacks, and for a text classifier
        that does not choose one label a text, which is all that the data say."""
        known = self.card.labels
        if self.recipe.task == "text-classification" and self.card.scores != "softmax":
            several = (
                "gives every label a probability of its own" if self.card.scores == "sigmoid" else "is a regression"
            )
            raise InputError(
                f"{self.source} {several}, which data with one label a text cannot judge; "
                "run chinchilla finetune on the data first, after which it chooses one label a text"
            )
        unknown = [label for label in self.dataset.labels if label not in known]
        if self.task.labelled and unknown:
            raise InputError(
                f"label {unknown[0]!r} of the data is not one of the model's ({', '.join(known[:12])}); "
                "fine-tune the model on this data first"
            )
        return known

    @property
    def legal_tags(self) -> bool:
        """Whether a tagger's answers have to be legal BIO: what it learns here, or has learnt, is BIO."""
        return self.new_head or self.card.legal_tags

    @cached_property
    def window(self) -> int:
        """Longest window in tokens: what was asked, or what the model was trained with, within what it can take."""
        if self.recipe.max_tokens is not None:
            return self._within_positions("--max-tokens", self.recipe.max_tokens)
        trained = self.card.meta.get("window", {}).get("max_tokens")
        return min(int(trained or DEFAULT_WINDOW), self.card.max_positions)

    def _within_positions(self, flag: str, tokens: int) -> int:
        """A number of tokens that was asked for, or as many as the model takes, with a warning."""
        positions = self.card.max_positions
        if tokens > positions:
            self.console.warn(f"{flag} {tokens} is above the model's {positions} positions; {positions} are taken")
        return min(tokens, positions)

    @property
    def context(self) -> Literal["sentence", "document"]:
        """What the model sees of a document at a time: as it was trained, else as the recipe says."""
        trained = None if self.new_head else self.card.meta.get("window", {}).get("context")
        return "document" if (trained or self.recipe.context) == "document" else "sentence"

    def encode(self, records: Sequence[Any]) -> list[Encoded]:
        """Windows of token ids with their targets; says what had to be cut."""
        with self.console.warned(DataWarning):
            labels = self.labels if self.task.labelled else ()
            windows = self.task.encode(records, Reading(self.card.tokenizer, labels, self.window, self.context))
        highest, known = max((max(one.ids) for one in windows), default=0), self.card.vocabulary
        if highest >= known:
            raise InputError(
                f"the tokenizer gives token id {highest}, the model knows 0 … {known - 1}; use the model's own"
            )
        return windows

    def batches(self, encoded: Sequence[Encoded], max_tokens: int, seed: int | None = None) -> list[EncodedBatch]:
        """Windows in batches of at most `max_tokens` positions; shuffled with a seed, by length without."""
        pad = self.card.pad_id
        made = batches(encoded, max_tokens=max_tokens, max_rows=None, shuffle_seed=seed, pad_id=pad)
        return [batch.to(self.device) for batch in made]

    def judge(self, split: str, max_text_tokens: int | None = None) -> Judge:
        """What judges models on a split; of running text, on its first `max_text_tokens`."""
        return self.judge_on(self.dataset.records(split), split, max_text_tokens)

    @cached_property
    def test(self) -> Judge:
        """What judges models on the test data."""
        return self.judge("test")

    def judge_on(self, records: Sequence[Any], title: str, max_text_tokens: int | None = None) -> Judge:
        """What judges models on records; of running text, on the first `max_text_tokens`."""
        encoded = self.encode(records)
        if max_text_tokens is not None and self.task.whole_passes:
            encoded = encoded[: max(1, max_text_tokens // self.window)]
        made = self.batches(encoded, JUDGE_TOKENS)
        self.console.say(f"{title}: {len(encoded):,} windows, {padding_share(made):.1%} padding")
        return Judge(self.recipe.task, records, encoded, made, self.labels, legal_tags=self.legal_tags)

    @cached_property
    def guard_data(self) -> GuardData | None:
        """The guard data, less what stands in the recipe's data too; None where there are none.

        Raises InputError for guard data that are the recipe's data, or have labels that the model lacks.
        """
        if self.recipe.guard is None:
            return None
        read = self.read(self.recipe.guard)
        unknown = [label for label in read.labels if label not in self.labels]
        if self.task.labelled and unknown:
            raise InputError(f"label {unknown[0]!r} of the guard is not one of the model's; pass other data by --guard")
        ours = self.dataset.all_records()
        if self.recipe.calibration is not None:
            ours += self.calibration_records
        guard, removed = guard_of(self.recipe.guard, read, ours)
        if removed:
            self.console.warn(f"{removed} guard records stand in the data too and were left out")
        return guard

    @cached_property
    def guard(self) -> Judge | None:
        """What judges models on the guard data; None where there are none. Raises InputError as these do."""
        return None if self.guard_data is None else self.judge_on(self.guard_data.records, "guard")

    @cached_property
    def training_records(self) -> list[Any]:
        """What to recover on: the train split, or the calibration data where there is none; without the documents, by
        their hash, that stand in dev or test too."""
        if "train" not in self.dataset.splits and self.recipe.calibration is not None:
            return self.calibration_records
        return self.not_held_out(self.dataset.records("train"))

    @cached_property
    def calibration_records(self) -> list[Any]:
        """What to calibrate on: all of the calibration data where they are named, else the training data."""
        if self.recipe.calibration is None:
            return self.training_records
        named = self.read(self.recipe.calibration)
        return self.not_held_out(named.all_records())

    def not_held_out(self, records: Sequence[Any]) -> list[Any]:
        """Records without those whose documents stand in dev or test too; says how many these were."""
        held_out = [r for name in ("dev", "test") for r in self.dataset.splits.get(name, [])]
        kept, removed = disjoint(records, held_out)
        if removed:
            self.console.warn(f"{removed} training records stand in dev or test too and were left out")
        return kept

    @cached_property
    def calibration(self) -> tuple[list[EncodedBatch], str]:
        """Calibration batches, and the hash of the documents that they are chosen from."""
        documents = "\n".join(sorted(document_hashes(self.calibration_records)))
        return self.calibration_batches(), sha256_text(documents)

    def calibration_batches(self, tokens: int | None = None) -> list[EncodedBatch]:
        """The batches, of another number of tokens."""
        chosen = enough(self.shuffled(self.calibration_records), tokens or self.recipe.calibration_tokens)
        if not chosen:
            raise InputError("0 calibration windows: the data are shorter than one window; pass --calibration TEXT")
        return self.batches(chosen, 2048)

    def shuffled(self, records: Sequence[Any]) -> list[Encoded]:
        """The windows of records in an order that the seed decides: the first of them are some from all over."""
        encoded = self.encode(records)
        order = torch.randperm(len(encoded), generator=torch.Generator().manual_seed(self.recipe.seed)).tolist()
        return [encoded[index] for index in order]

    def ready(self, model: Transformer) -> Transformer:
        """The model as torch serves it: norms folded, in the recipe's dtype, on its device."""
        return prepare(model, self.device, self.dtype)

    def served(self) -> Served:
        """The job's own model as the recipe's backend serves it, in the recipe's dtype; a packed one as it was packed.

        Of a packed model that the engine runs, or one that is only served, no transformer is made.
        """
        if self._packed is None:
            return self.serve(self.checkpoint.model)
        program, card = self._packed
        return NativeForward(program, card.kind, self.threads)

    def serve(self, model: Transformer) -> Served:
        """The same of a model in memory: the job's own, or one that was made of it."""
        if self.backend == "torch":
            return self.ready(model)
        if self._packed is not None and model is self.checkpoint.model:
            return self.served()
        return NativeForward.compiled(model, self.dtype, self.threads)

    def session(self, checkpoint: Checkpoint) -> Session:
        """The same as a session, of a model in memory."""
        if self.backend == "torch":
            return torch_session(checkpoint, self.device, self.dtype)
        return native_session(checkpoint, str(self.dtype).removeprefix("torch."), self.threads)

    @cached_property
    def shape(self) -> Shape:
        """What is timed: as asked, else typical for the task and the data. Of a language model a whole request."""
        recipe = self.recipe
        if self.task.whole_passes:
            config = self.checkpoint.model.config
            request = timed_request(recipe, self.card.max_positions, config.switches, self.console)
            return Shape(recipe.batch or self.task.batch, *request)
        if recipe.new_tokens is not None:
            self.console.warn(f"--new-tokens {recipe.new_tokens} is for language models; {recipe.task} writes nothing")
        batch = recipe.batch or self.task.batch
        if recipe.tokens is not None:
            return Shape(batch, self._within_positions("--tokens", recipe.tokens), 0)
        split = next(name for name in ("dev", "train", "test") if name in self.dataset.splits)
        lengths = sorted(len(one.ids) for one in self.encode(self.dataset.records(split)))
        return Shape(batch, lengths[len(lengths) // 2], 0)

    def show(self, judged: Judged, title: str) -> dict[str, Interval]:
        """Print tables and metrics with their intervals; returns the metrics as JSON has them."""
        for name, table in judged.measurement.tables.items():
            self.console.show(f"\n{title}: {name}\n\n{table.text()}")
        estimates = judged.measurement.estimates()
        rows = [[name, f"{e.value:.4f}", f"[{e.low:.4f}, {e.high:.4f}]"] for name, e in estimates.items()]
        self.console.table(["metric", "value", "95 % interval"], rows, f"{title}: n = {judged.measurement.n:,}")
        return {name: estimate.to_dict() for name, estimate in estimates.items()}
