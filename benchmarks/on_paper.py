"""A training that nobody here has the machines for, on paper: where the bytes lie and where the time goes.

    python benchmarks/on_paper.py

prints the tables of docs/scale.md: a 70B model on eight machines of eight H100 cards, from the cards' published
figures. Nothing in them is measured. Like those of limits.py they are bounds: real runs come near, but not there.
Bytes, seconds, operations; standard library only.
"""

from __future__ import annotations

from dataclasses import dataclass

from limits import Decoder, Machine, positions_to_weigh, reference_seconds, update_seconds

FLOAT32, BFLOAT16 = 4.0, 2.0
# Four bits per weight, a scale of eight bits per 64 weights, and a float32 per 256 of these scales.
NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)


@dataclass(frozen=True)
class Architecture:
    """A Llama: ``layers`` of attention (``hidden`` wide, keys and values ``kv`` wide) and a gated MLP (``inner``)."""

    layers: int
    hidden: int
    inner: int
    kv: int
    vocabulary: int
    tied: bool = False

    @property
    def linear_maps(self) -> list[tuple[int, int]]:
        """(in, out) of a layer's seven matrices: q, k, v, o, gate, up, down."""
        h, i, kv = self.hidden, self.inner, self.kv
        return [(h, h), (h, kv), (h, kv), (h, h), (h, i), (h, i), (i, h)]

    @property
    def layer(self) -> int:
        """Weights of a layer, its two norms included."""
        return sum(a * b for a, b in self.linear_maps) + 2 * self.hidden

    @property
    def body(self) -> int:
        """Weights of all layers and the last norm."""
        return self.layers * self.layer + self.hidden

    @property
    def head(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def weights(self) -> int:
        return self.body + self.head * (1 if self.tied else 2)

    def adapter(self, r: int) -> int:
        """Weights of a LoRA of rank ``r`` on every matrix of every layer: A is r × in, B is out × r."""
        return self.layers * sum(r * (a + b) for a, b in self.linear_maps)

    @property
    def saved_numbers(self) -> int:
        """What a layer keeps of a position for the backward pass, in numbers of two bytes: inputs (float32) and outputs
        of its two norms (6 hidden); queries, keys, values and attention's output (2 hidden, 2 kv); gate, its SiLU, up,
        and their product (4 inner). What the adapters keep, r numbers per matrix, is left out.
        """
        return 8 * self.hidden + 2 * self.kv + 4 * self.inner


@dataclass(frozen=True)
class Card:
    """``memory`` in bytes, and its ``bandwidth`` in bytes a second. Also in bytes a second, each way: the ``link`` to
    the cards beside it and the ``network`` to other machines. ``rate`` of dense bfloat16 products in operations a
    second.
    """

    memory: float
    bandwidth: float
    rate: float
    link: float
    network: float


# NVIDIA's data sheet of the H100 SXM: 80 GB, 3.35 TB/s, 989.4 TFLOPS dense, NVLink 900 GB/s both ways together. The
# DGX H100 has a 400 Gb/s adapter for each card.
H100 = Card(memory=80e9, bandwidth=3.35e12, rate=989.4e12, link=450e9, network=50e9)
LLAMA_70B = Architecture(layers=80, hidden=8192, inner=28_672, kv=1024, vocabulary=128_256)


@dataclass(frozen=True)
class Layout:
    """How the base lies on the cards: ``width`` bytes per weight of its layers. Each layer is divided between
    ``divided`` cards, which are joined by ``link`` bytes a second.
    """

    name: str
    width: float
    divided: int
    link: float


@dataclass(frozen=True)
class Work:
    """One step of RL on one card: ``answers`` of ``new`` tokens to prompts of ``prompt`` tokens, ``epochs`` of
    ``minibatches`` over them, at most ``micro`` positions at once; adapters of rank ``r``.
    """

    answers: int
    prompt: int
    new: int
    epochs: int
    minibatches: int
    micro: int
    r: int

    @property
    def positions(self) -> int:
        """What one pass over all answers runs, prompts not shared."""
        prompts = [[row] * self.prompt for row in range(self.answers)]
        return positions_to_weigh(prompts, [self.new] * self.answers)

    @property
    def passes(self) -> int:
        """Microbatches of one pass over all answers."""
        rows = max(1, self.micro // (self.prompt + self.new))
        return -(-self.answers // rows)


def gather_seconds(model: Architecture, layout: Layout) -> float:
    """Until a card has fetched every layer once from the others that hold shares: (n - 1)/n of the layers' bytes."""
    return model.body * layout.width * (layout.divided - 1) / layout.divided / layout.link


def memory(model: Architecture, layout: Layout, work: Work) -> dict[str, float]:
    """Bytes on one card, by what they are for."""
    whole_layers = 2 if layout.divided > 1 else 0  # the one that runs, and the next, which is on its way
    rows = max(1, work.micro // (work.prompt + work.new))
    decoder = Decoder(model.body, model.head, model.layers, model.kv, int(BFLOAT16))
    return {
        "layers, this card's share": model.body * layout.width / layout.divided,
        "layers, gathered": whole_layers * model.layer * layout.width,
        "embeddings and head": (model.weights - model.body) * BFLOAT16,
        # The adapter, its gradient, Adam's two moments, the message of the gradients, and the last good adapter.
        "adapter and optimizer": 6 * model.adapter(work.r) * FLOAT32,
        "KV cache while sampling": decoder.cache_bytes * work.answers * (work.prompt + work.new),
        "activations while learning": (model.layers * model.saved_numbers * BFLOAT16 * rows * (work.prompt + work.new)),
    }


def peak(parts: dict[str, float]) -> float:
    """What must fit: sampling and learning take turns."""
    turns = ("KV cache while sampling", "activations while learning")
    return sum(size for name, size in parts.items() if name not in turns) + max(parts[name] for name in turns)


def seconds(model: Architecture, layout: Layout, work: Work, card: Card, cards: int) -> dict[str, tuple[float, str]]:
    """Of each part of one RL step: how long at least, and what it waits for.

    Gathering a layer overlaps the work on the one before, so a pass takes the longer of both.
    """
    machine = Machine(card.bandwidth, card.rate)
    decoder = Decoder(model.body, model.head, model.layers, model.kv, int(BFLOAT16))
    gathered = gather_seconds(model, layout)
    read = model.body * layout.width + model.head * BFLOAT16

    def longest(**waits: float) -> tuple[float, str]:
        what = max(waits, key=lambda name: waits[name])
        return waits[what], what

    def times(n: int, found: tuple[float, str]) -> tuple[float, str]:
        return n * found[0], found[1]

    held = work.answers * (work.prompt + work.new / 2)
    token = longest(
        gathering=gathered,
        memory=(read + decoder.cache_bytes * held) / card.bandwidth,
        products=2 * (model.body + model.head) * work.answers / card.rate,
    )
    answer_tokens = work.answers * work.new
    forward = reference_seconds(decoder, machine, work.positions, answer_tokens)
    learn = update_seconds(decoder, machine, work.positions, answer_tokens, 1)
    prefill = 2 * model.body * work.answers * work.prompt / card.rate
    updates = work.epochs * work.minibatches
    message = 2 * (cards - 1) / cards * model.adapter(work.r) * FLOAT32 / card.network
    return {
        "prompts read": longest(gathering=gathered, products=prefill),
        "answers drawn": times(work.new - 1, token),
        # Below float32 the policy's own probabilities are computed again, too.
        "policy's and reference's probabilities": times(2, longest(gathering=work.passes * gathered, products=forward)),
        "learning": times(work.epochs, longest(gathering=2 * work.passes * gathered, products=learn)),
        "gradients added up": (updates * message, "network"),
    }


CARDS = 64
LAYOUTS = [
    Layout("bfloat16, divided between a machine's 8 cards (shard=true)", BFLOAT16, 8, H100.link),
    Layout("bfloat16, divided between all 64 cards", BFLOAT16, CARDS, H100.network),
    Layout("NF4 on every card (--load 4bit)", NF4, 1, H100.link),
]
WORK = Work(answers=16, prompt=256, new=256, epochs=2, minibatches=2, micro=512, r=16)


def table() -> str:
    """Markdown: bytes, then seconds, a column a layout."""
    model, work = LLAMA_70B, WORK
    lines = [
        f"{model.weights / 1e9:.1f} billion weights, {model.adapter(work.r) / 1e6:.0f} million in the adapter; "
        f"{CARDS * work.answers:,} answers a step, {work.answers} a card.",
        "",
        f"| on one card | {' | '.join(layout.name for layout in LAYOUTS)} |",
        "|---" * (len(LAYOUTS) + 1) + "|",
    ]
    sizes = [memory(model, layout, work) for layout in LAYOUTS]
    for name in sizes[0]:
        lines.append(f"| {name} | {' | '.join(f'{of[name] / 1e9:.1f} GB' for of in sizes)} |")
    lines.append(f"| **at most at once** | {' | '.join(f'**{peak(of) / 1e9:.1f} GB**' for of in sizes)} |")
    times = [seconds(model, layout, work, H100, CARDS) for layout in LAYOUTS]
    for name in times[0]:
        lines.append(f"| {name} | {' | '.join('{:.1f} s ({})'.format(*of[name]) for of in times)} |")
    totals = [sum(took for took, _ in of.values()) for of in times]
    lines.append(f"| **a step takes at least** | {' | '.join(f'**{total:.0f} s**' for total in totals)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
