"""The fields of a recipe. The string beneath a field is its help text and carries its unit."""

from __future__ import annotations

import os
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from chinchilla_lm.files import write_atomic

Task = Literal["language-modeling", "token-classification", "text-classification", "ranking"]

# Verbs that train, which several processes may run together.
TRAINING = ("finetune", "recover", "compress")


class _Settings(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True, protected_namespaces=()
    )


class LossWeights(_Settings):
    """What recovery lowers: the sum of these, each times its weight (train/losses.py)."""

    kl: float = Field(default=1.0, ge=0)
    """weight of the divergence from the original's outputs (nats a position)"""
    hidden: float = Field(default=1.0, ge=0)
    """weight of the error of hidden states at shared boundaries, relative to their variance"""
    squared: float = Field(default=0.0, ge=0)
    """weight of the squared error of the outputs, summed over them"""
    task: float = Field(default=0.0, ge=0)
    """weight of the task's own loss on the gold labels (nats a position)"""


class RecoverSettings(_Settings):
    """How a shortened model learns from the original again."""

    epochs: float = Field(default=3.0, ge=0, le=1000, examples=[3.0])
    """passes over the training data; 0 leaves recovery out"""
    tokens: int | None = Field(default=None, ge=1, examples=[1_000_000])
    """stop after this many tokens, even within a pass"""
    learning_rate: float | None = Field(default=None, gt=0, le=1, examples=[1e-4])
    """peak step size of AdamW; without it, by the model's width"""
    batch_tokens: int = Field(default=1024, ge=1)
    """tokens a step; more is faster on a GPU, and takes a higher rate"""
    micro_tokens: int | None = Field(default=None, ge=1, examples=[4096])
    """tokens that are run at a time where a step has more, to save memory; the gradients are those of the whole step"""
    temperature: float = Field(default=1.0, gt=0, le=100)
    """both models' outputs are divided by this before the divergence is taken"""
    warmup: float = Field(default=0.05, ge=0, lt=1)
    """share of the steps over which the rate climbs to its peak"""
    weights: LossWeights = LossWeights()
    """what the loss is made of"""


class FinetuneSettings(_Settings):
    """How a pretrained model learns a task."""

    epochs: float = Field(default=3.0, gt=0, le=1000)
    """passes over the training data"""
    learning_rate: float | None = Field(default=None, gt=0, le=1, examples=[5e-5])
    """peak step size of AdamW for pretrained weights; without it, by the model's width"""
    head_learning_rate: float = Field(default=1e-3, gt=0, le=1)
    """peak step size for weights that start from nothing"""
    batch_tokens: int = Field(default=1024, ge=1)
    """tokens a step; more is faster on a GPU, and takes a higher rate"""
    micro_tokens: int | None = Field(default=None, ge=1, examples=[4096])
    """tokens that are run at a time where a step has more, to save memory; the gradients are those of the whole step"""
    weight_decay: float = Field(default=0.01, ge=0, le=1)
    """AdamW's decoupled decay of matrices, a step, relative to the rate"""
    warmup: float = Field(default=0.1, ge=0, lt=1)
    """share of the steps over which the rate climbs to its peak"""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """share of the target that is spread evenly over all labels"""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """share of what each link adds that is set to 0 in training"""
    token_dropout: float = Field(default=0.0, ge=0, lt=1)
    """share of tokens whose embedding is set to 0 in training, so that context has to tell"""
    teachers: list[Annotated[str, Field(min_length=1)]] | None = Field(
        default=None, min_length=1, examples=[["out/tagger/model"]]
    )
    """trained models with the same labels, whose answers on the training data are averaged and learnt as well"""
    unlabelled: str | None = Field(default=None, min_length=1, examples=["news.txt"])
    """text without labels, a line a text: file, folder or hub dataset; there the teachers' answers alone are learnt"""
    teacher_weight: float = Field(default=0.5, gt=0, le=1)
    """share of the loss that is the divergence from the teachers' answers; the rest is the task's own"""
    teacher_temperature: float = Field(default=1.0, gt=0, le=100)
    """the teachers' and the model's outputs are divided by this before the divergence is taken"""


class Recipe(_Settings):
    """One job, from the checkpoint to the certificate. Frozen: change it with `model_copy(update=...)`."""

    model: str = Field(min_length=1)
    """a folder, a hub id (NAME or NAME@REVISION), a GGUF file, or the `model` folder of an earlier run"""
    task: Task
    """what the model is for"""
    data: str | None = Field(default=None, min_length=1)
    """a folder or file in a known layout, or a hub dataset: to train, choose and test on"""
    train: str | None = Field(default=None, min_length=1)
    """file in DATA, or split of a hub dataset, to train on; where one of the three is named, only such are read"""
    dev: str | None = Field(default=None, min_length=1)
    """file or split to choose on"""
    test: str | None = Field(default=None, min_length=1)
    """file or split to test on"""
    calibration: str | None = Field(default=None, min_length=1)
    """text or data to measure costs on; without it, part of the training data"""
    guard: str | None = Field(default=None, min_length=1)
    """data of another kind, on which the result must hold the margin against the original as well"""
    text_column: str | None = None
    """column or key of the text, where it is not found by itself"""
    label_column: str | None = None
    """column or key of the label"""
    group_column: str | None = None
    """column or key whose equal values stay in one split"""
    time_column: str | None = None
    """column or key of the date, for splits by time"""
    split_by: Literal["auto", "hash", "group", "time"] = "auto"
    """how to split data that comes in one piece; auto: by group or time where a column is named, else by hash"""
    encoding: str | None = Field(default=None, min_length=1, examples=["gb18030"])
    """how the data files are encoded, where it is not found by itself: gb18030, shift-jis, cp1251 …"""
    output: str | None = Field(default=None, min_length=1)
    """folder to write to"""
    speedup: float | None = Field(default=None, gt=1.0, le=20, examples=[1.5])
    """how many times faster than the original, end to end on this machine"""
    latency_ms: float | None = Field(default=None, gt=0, examples=[20])
    """time for one request in milliseconds, end to end on this machine"""
    formats: str | None = Field(default=None, min_length=1, examples=["int8,int4"])
    """formats that links are packed in, by comma, or auto for all that pay here: each link is dropped or has one"""
    memory_mb: float | None = Field(default=None, gt=0, examples=[100])
    """most megabytes (of 1,000,000 bytes) that the packed program may have; with formats alone"""
    margin: float = Field(default=1.0, gt=0, le=50, examples=[1.0])
    """largest loss of quality that passes: points of F1 or accuracy, percent of perplexity or of bits per byte, where
    1 % is about 3 % of perplexity, at 3 nats a token"""
    metric: str | None = None
    """the metric to certify; without it, the task's own"""
    method: Literal["race", "refine", "greedy", "dp", "top", "one-shot", "cosine"] = "race"
    """how the path is searched; race: refine and top, each recovered briefly, the better on dev wins"""
    max_measures: int = Field(default=200, ge=1, le=100_000)
    """true measurements that a search may make"""
    device: Literal["cpu", "cuda", "auto"] = "auto"
    """where it runs"""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """number format of the computation; auto: bfloat16 where it is native"""
    backend: Literal["auto", "native", "torch"] = "auto"
    """what serves the model: the C++ engine or torch; auto: the engine where it is there and the device is the CPU"""
    threads: int | None = Field(default=None, ge=1, le=1024, examples=[4])
    """CPU threads; without it, one for each usable core"""
    parallel: str | None = Field(default=None, min_length=1, examples=["dp=2"])
    """how processes that chinchilla launch or torchrun has started train together: dp=N, each with some of the rows;
    dp=N,shard, each with some of the weights too; without it, dp over all"""
    batch: int | None = Field(default=None, ge=1, examples=[1])
    """sequences a batch while timing; without it, 1 for a language model, 32 for others"""
    tokens: int | None = Field(default=None, ge=1, examples=[128])
    """tokens a sequence while timing; without it, 128 for a language model, the data's median for others"""
    new_tokens: int | None = Field(default=None, ge=1, examples=[64])
    """tokens that a language model writes in a timed request; without it, 64"""
    context: Literal["sentence", "document"] = "sentence"
    """what a new model sees of a document at a time; a trained one goes on as it was trained"""
    bidirectional: bool | None = Field(None, examples=[True])
    """true: a decoder's tokens see what follows, in training and ever after; without it, only a tagger's do"""
    max_tokens: int | None = Field(default=None, ge=4, examples=[512])
    """longest window in tokens; without it, what the model takes"""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """decides every random choice; splits that are made do not depend on it"""
    calibration_tokens: int = Field(default=8192, ge=1)
    """tokens to measure costs on"""
    score_loss: Literal["kl", "task"] = "kl"
    """what a removal costs: divergence from the original's outputs, or the task's loss"""
    recover: RecoverSettings = RecoverSettings()
    """how the shortened model learns from the original again"""
    finetune: FinetuneSettings = FinetuneSettings()
    """how a pretrained model learns the task"""

    @property
    def adapts(self) -> bool:
        """Whether the data's own answers take part in recovery, so that it is more than a copy of the original."""
        return self.recover.epochs > 0 and self.recover.weights.task > 0

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write every field that is set as YAML, atomically. Raises InputError when it cannot be written.

        In ASCII with escapes: PyYAML writes some line separators (U+0085) raw and reads them back as spaces.
        """
        write_atomic(path, yaml.safe_dump(self.model_dump(exclude_none=True), sort_keys=False))
