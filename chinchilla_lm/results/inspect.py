"""What `chinchilla inspect` finds."""

from typing import Literal, NotRequired, TypedDict

from chinchilla_lm.results.figures import IssuedCertificate


class Size(TypedDict):
    """Of a part of a model. A packed model has `bytes` as a whole alone."""

    parameters: int
    bytes: NotRequired[int]


class LinkParameters(TypedDict):
    """A link: `parameters` is 0 where it was dropped, and `dropped` then says what became of its norm."""

    name: str
    parameters: int
    dropped: Literal["keep", "lose"] | None


class BlockParameters(TypedDict):
    """A block's two links."""

    block: int
    attn: LinkParameters
    mlp: LinkParameters


class PassTime(TypedDict):
    """A pass over `batch` sequences of `tokens` tokens, in microseconds: all of it, what is no link, and each link."""

    batch: int
    tokens: int
    total_us: float
    fixed_us: float
    link_us: dict[str, float]


class InspectResult(TypedDict):
    """A model and what it is made of: `chinchilla inspect --json`.

    head: the task. tied: the head's matrix is the embedding's. positions: most tokens of a text. dtype: of the weights;
    of a packed model, its format. fresh: parts of the head with new, random weights. dropped: links that were, and what
    became of their norms. sizes: of embedding, head, the norm behind the last link, and the total, in which a shared
    matrix counts once. certificate: None where there is no valid one. time: missing where nothing was timed.
    """

    model: str
    family: str
    head: str
    tied: bool
    labels: list[str]
    causal: bool
    positions: int
    vocabulary: int
    hidden: int
    heads: int
    kv_heads: int
    intermediate: int
    dtype: str
    fresh: list[str]
    dropped: dict[str, Literal["keep", "lose"]]
    blocks: list[BlockParameters]
    sizes: dict[str, Size]
    parameters: int
    bytes: int
    certificate: IssuedCertificate | None
    time: NotRequired[PassTime]
