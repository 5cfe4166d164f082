"""Our CPU engine beside what people run instead: same checkpoint, same token ids, one run.

    make bench                                                 # every peer, at most 40 minutes
    python perf/bench.py build/demo.yaml --peer onnxruntime    # ours and this one
    python perf/bench.py build/demo.yaml --shape 54x32 --rounds 9

Every peer of `perf/peers/` gets an environment of its own from PyPI (.bench/NAME, made once)
and runs in a process of its own, stopped while another one is measured. Scores are compared with
transformers in float32 first. Then rounds: in each, every peer in a random order scores the same
requests, which nobody has seen before. A shape is TOKENSxITEMS: so many tokens of an item, so many
items of one query. A peer that fails, or is too slow for the time, says so in the table.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
from peers.process import Peer, PeerFault, peer_names
from peers.worker import Request
from slmrank.artifacts import ArtifactStore
from slmrank.data.labelled import read_labelled
from slmrank.engine.parity import measure_parity
from slmrank.evaluate.metrics import Listing
from slmrank.machine.facts import usable_cores
from slmrank.machine.host import host_facts, machine_line
from slmrank.model.checkpoint import CHECKPOINT_FOLDER, Checkpoint, RankerFile, open_checkpoint
from slmrank.model.reference import ReferenceScorer
from slmrank.pipeline.bundle import Bundle
from slmrank.pipeline.steps import run
from slmrank.pyplot import plain_plot
from slmrank.spec.reading import load_spec
from slmrank.table_page import TablePage, write_table_page

OURS = "slmrank"
SHAPES = ("54x32", "112x32", "32x32", "54x1", "54x8", "54x128", "950x8", "54x500")
PARITY_SHAPE = (54, 32)
LEAST_ROUNDS = 3
TRIES = 1000


@dataclass
class Measured:
    """Of one shape: seconds of each round by peer, and why a peer has none."""

    tokens: int
    items: int
    seconds: dict[str, list[float]] = field(default_factory=dict)
    without: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.tokens}x{self.items}"

    def rate(self, peer: str) -> tuple[float, float, float]:
        """Items per second: median, least, most."""
        rates = [self.items / one for one in self.seconds[peer]]
        return float(np.median(rates)), min(rates), max(rates)

    def ratio(self, peer: str) -> tuple[float, float, float]:
        """Ours over the peer's rate, round by round: median, least, most."""
        both = zip(self.seconds[OURS], self.seconds[peer], strict=False)
        ratios = [theirs / ours for ours, theirs in both]
        return float(np.median(ratios)), min(ratios), max(ratios)


class Work:
    """Requests whose ids and texts are the same prompt, no two alike."""

    def __init__(
        self, checkpoint: Checkpoint, texts: Sequence[str], queries: Sequence[str]
    ) -> None:
        self._encoder = RankerFile.encoder(checkpoint, 2048)  # no prompt of a shape is cut
        self._texts, self._queries = texts, queries
        self._random = random.Random(0)

    def request(self, tokens: int, items: int) -> Request:
        both = self._random.sample(self._queries, min(2, len(self._queries)))
        query = " ".join(both) if self._encoder.takes(" ".join(both)) else both[0]
        bodies = [self._body(tokens) for _ in range(items)]
        return Request(
            prefix=_plain(self._encoder.prefix(query)),
            items=[_plain(self._encoder.item(ids).ids) for ids, _ in bodies],
            query=query,
            texts=[text for _, text in bodies],
        )

    def _body(self, tokens: int) -> tuple[Any, str]:
        """Ids whose item has this many tokens, and their text, which gives the same ids again."""
        closing = len(self._encoder.item(self._encoder.body("x")).ids) - 1
        for _ in range(TRIES):
            text = ""
            while len(self._encoder.body(text)) < tokens:
                text += self._random.choice(self._texts) + " "
            words = text.split()
            words = words[self._random.randrange(max(len(words) // 4, 1)) :]
            low, high = 1, len(words)
            while low < high:  # the most words that fit
                middle = (low + high + 1) // 2
                fits = len(self._encoder.body(" ".join(words[:middle]))) <= tokens - closing
                low, high = (middle, high) if fits else (low, middle - 1)
            cut = " ".join(words[:low])
            ids = self._encoder.body(cut)
            if len(ids) == tokens - closing:
                return ids, cut
        raise click.ClickException(
            f"no run of words of the spec's jobs has {tokens - closing} tokens: take a spec whose "
            "postings are written with spaces, or another shape"
        )


def _plain(ids: Any) -> list[int]:
    return [int(one) for one in ids]


def measure(peers: Sequence[Peer], work: Work, shape: Measured, rounds: int, until: float) -> None:
    """Fill `shape`: a first pass of each to warm it and to see what fits into the time, then
    interleaved rounds until `until` (time.monotonic), at least LEAST_ROUNDS."""
    first, running = {}, []
    warm = work.request(shape.tokens, shape.items)
    allowed = (until - time.monotonic()) / (LEAST_ROUNDS + 1) / len(peers)
    few, more = (work.request(shape.tokens, min(shape.items, count)) for count in (2, 12))
    for peer in peers:
        try:
            # Scoring 500 items to learn that they take too long takes too long.
            peer.score([few])  # compiles for a shape that it has not seen
            less, most = peer.score([few])[0], peer.score([more])[0]
            left = shape.items - len(more.items)
            each = (most - less) / max(1, len(more.items) - len(few.items))
            likely = most + left * max(each, 0.0)
            if likely > 3 * max(allowed, 1.0) and peer.name != OURS:
                shape.without[peer.name] = f"a pass takes about {likely:.0f} s"
                continue
            first[peer.name] = peer.score([warm])[0]
            running.append(peer)
        except PeerFault as fault:
            shape.without[peer.name] = str(fault)
    order = random.Random(1)
    for number in range(rounds):
        if number >= LEAST_ROUNDS and time.monotonic() + sum(first.values()) > until:
            break
        request = work.request(shape.tokens, shape.items)
        for peer in order.sample(running, len(running)):
            try:
                shape.seconds.setdefault(peer.name, []).append(peer.score([request])[0])
            except PeerFault as fault:
                shape.without[peer.name] = str(fault)
                shape.seconds.pop(peer.name, None)
                running.remove(peer)


def parity(peers: Sequence[Peer], work: Work, checkpoint: Checkpoint) -> dict[str, Any]:
    """|dp| and order of every peer against the float32 reference, on two queries."""
    requests = [work.request(*PARITY_SHAPE) for _ in range(2)]
    reference = ReferenceScorer(checkpoint)
    prompts = [np.array(one, dtype=np.int32) for each in requests for one in each.prompts()]
    expected = reference.probabilities(prompts)

    def listings(values: npt.ArrayLike) -> list[Listing]:
        parts = np.split(np.asarray(values), len(requests))
        return [Listing(scores=part, grades=np.zeros(len(part))) for part in parts]

    found = {}
    for peer in peers:
        try:
            one = measure_parity(listings(expected), listings(peer.score(requests)[1]))
        except PeerFault as fault:
            found[peer.name] = {"fault": str(fault)}
            continue
        found[peer.name] = asdict(one)
    return found


def matrix_peaks(threads: int) -> dict[str, float]:
    """Gop/s of a square product in each type, the best of those that two seconds hold. The side is
    2,048, or less where the processor has no instruction for the type."""
    import torch

    torch.set_num_threads(threads)
    found = {}
    for name in ("float32", "bfloat16", "int8"):
        product: Any = torch._int_mm if name == "int8" else torch.matmul
        size, best, ends = 256, 0.0, time.monotonic() + 2
        while time.monotonic() < ends:
            one = torch.randint(-64, 64, (size, size), dtype=torch.int8).to(getattr(torch, name))
            began = time.perf_counter()
            product(one, one)
            seconds = time.perf_counter() - began
            best = max(best, 2 * size**3 / seconds / 1e9)
            if seconds < 0.1 and size < 2048:
                size *= 2
        found[name] = round(best, 1)
    return found


def told(values: tuple[float, float, float], digits: int = 1) -> str:
    middle, least, most = (f"{one:.{digits}f}" for one in values)
    return f"{middle} [{least}, {most}]"


def page(
    peers: Sequence[Peer],
    faults: dict[str, str],
    agreement: dict[str, Any],
    shapes: Sequence[Measured],
    facts: dict[str, str],
    names: Sequence[str],
) -> TablePage:
    running = {peer.name: peer for peer in peers}

    def cell(shape: Measured, name: str) -> str:
        if name not in shape.seconds:
            return shape.without.get(name, "-")
        rate = f"{told(shape.rate(name))} ({len(shape.seconds[name])})"
        return rate if OURS in (name, *shape.without) else f"{rate}; {told(shape.ratio(name), 2)}"

    about = []
    for name in names:
        if name in faults:
            about.append([name, faults[name], "", "", "", "", ""])
            continue
        peer, agreed = running[name], agreement[name]
        same = (
            [agreed["fault"], "", ""]
            if "fault" in agreed
            else [
                f"{agreed['mean_abs_dp']:.4f}",
                f"{agreed['max_abs_dp']:.4f}",
                f"{agreed['pair_order']:.3f}",
            ]
        )
        memory = f"{peer.memory_mib():.0f}"
        about.append([name, peer.about.get("precision", ""), *same, f"{peer.start_s:.1f}", memory])
    rates = [[name, *(cell(one, name) for one in shapes)] for name in names if name in running]

    def draw(axes: Any) -> None:
        shown = [one for one in shapes if OURS in one.seconds]
        others = [name for name in names if name in running and name != OURS]
        width = 0.8 / max(len(others), 1)
        for number, name in enumerate(others):
            places, heights, errors = [], [], []
            for place, one in enumerate(shown):
                if name not in one.seconds:
                    continue
                middle, least, most = one.ratio(name)
                places.append(place + (number - (len(others) - 1) / 2) * width)
                heights.append(middle)
                errors.append((middle - least, most - middle))
            if places:
                bars = np.array(errors).T
                axes.bar(places, heights, width * 0.9, yerr=bars, label=name, capsize=2)
        axes.axhline(1, color="#222", linewidth=1)
        axes.set_xticks(range(len(shown)), [one.name for one in shown])
        axes.set_xlabel("tokens of an item x items of a query")
        axes.set_ylabel("our items/s over the peer's")
        axes.legend(frameon=False, ncols=3, fontsize=8)

    return TablePage(
        title="Scoring on a CPU, side by side",
        notes=(
            "One checkpoint, one run, the same token ids for everybody; a peer that waits is "
            "stopped. Agreement is with transformers in float32, on two queries of 32 items.",
            "Rates are items per second, median [least, most] of the rounds (how many); behind the "
            "semicolon stands our rate over the peer's, round by round.",
        ),
        tables=(
            (
                "The peers",
                (
                    "peer",
                    "precision",
                    "mean |dp|",
                    "largest |dp|",
                    "pairs in order",
                    "start, s",
                    "memory, MiB",
                ),
                about,
            ),
            ("Items per second", ("peer", *(one.name for one in shapes)), rates),
        ),
        plot=plain_plot(draw),
        provenance=facts,
    )


def parse_shape(text: str) -> Measured:
    tokens, times, items = text.partition("x")
    if not (times and tokens.isdigit() and items.isdigit() and int(tokens) >= 16 and int(items)):
        raise click.BadParameter(
            f"{text!r} is not TOKENSxITEMS, such as 54x32 (at least 16 tokens)"
        )
    return Measured(tokens=int(tokens), items=int(items))


@click.command(help=(__doc__ or "").replace("    make", "\b\n    make", 1))
@click.argument("spec", type=click.Path(path_type=Path))
@click.option("--peer", "wanted", multiple=True, help="beside ours; default: all", metavar="NAME")
@click.option("--shape", "shaped", multiple=True, default=SHAPES, metavar="TOKENSxITEMS")
@click.option("--rounds", default=7, show_default=True, type=click.IntRange(LEAST_ROUNDS))
@click.option("--minutes", default=36.0, show_default=True, help="for the measuring itself")
@click.option("--threads", default=0, help="of each peer; default: the cores of this machine")
@click.option("--artifacts", type=click.Path(path_type=Path), default=Path("artifacts"))
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE")
@click.option("--environments", type=click.Path(path_type=Path), default=Path(".bench"))
@click.option("--out", type=click.Path(path_type=Path), default=Path(".bench/page"))
def main(
    spec: Path,
    wanted: tuple[str, ...],
    shaped: tuple[str, ...],
    rounds: int,
    minutes: float,
    threads: int,
    artifacts: Path,
    changes: tuple[str, ...],
    environments: Path,
    out: Path,
) -> None:
    shapes = [parse_shape(one) for one in shaped]
    for name in wanted:
        if name not in peer_names():
            raise click.BadParameter(f"no peer {name!r}; there are: {', '.join(peer_names())}")
    names = [
        OURS,
        *(one for one in peer_names() if one != OURS and one in (wanted or peer_names())),
    ]
    bundle, store = Bundle(load_spec(spec, list(changes))), ArtifactStore(artifacts)
    engine = run(bundle.engine, store).path.resolve()
    checkpoint = open_checkpoint((run(bundle.final, store).path / CHECKPOINT_FOLDER).resolve())
    labelled = read_labelled(run(bundle.data, store).path)
    queries = sorted({pair.query for split in labelled.pairs.values() for pair in split})
    work = Work(
        checkpoint, [f"{job.title}. {job.description}" for job in labelled.jobs.values()], queries
    )
    setting = {
        "yes": checkpoint.labels.yes,
        "no": checkpoint.labels.no,
        "threads": threads or usable_cores(),
    }
    peaks = matrix_peaks(setting["threads"])
    peers, faults = [], {}
    for name in names:
        click.echo(f"{name}: environment, model, process ...", err=True)
        try:
            peers.append(Peer(name, environments.resolve(), checkpoint.path, setting, engine))
        except PeerFault as fault:
            if name == OURS:
                raise click.ClickException(str(fault)) from fault
            faults[name] = str(fault)
            click.echo(f"{name}: {fault}", err=True)
    try:
        peers[0].about = {"precision": bundle.target.precision(bundle.spec.engine)}
        agreement = parity(peers, work, checkpoint)
        ends = time.monotonic() + minutes * 60
        for number, shape in enumerate(shapes):
            # What a shape leaves over is the next ones'.
            share = (ends - time.monotonic()) / (len(shapes) - number)
            click.echo(f"{shape.name}: at most {max(share, 0) / 60:.1f} min ...", err=True)
            measure(peers, work, shape, rounds, time.monotonic() + share)
        facts = {
            "machine": machine_line(host_facts()),
            "threads": str(setting["threads"]),
            "matrix peak, Gop/s": ", ".join(f"{key} {value}" for key, value in peaks.items()),
            "checkpoint": f"{checkpoint.path.parent.parent.name}/{checkpoint.path.parent.name}",
            "engine": engine.name,
            "measured": time.strftime("%Y-%m-%d"),
        }
        whole = page(peers, faults, agreement, shapes, facts, names)
    finally:
        for peer in peers:
            peer.close()
    figures = {
        "facts": facts,
        "faults": faults,
        "agreement": agreement,
        "precision": {peer.name: peer.about.get("precision", "") for peer in peers},
        "start_s": {peer.name: round(peer.start_s, 1) for peer in peers},
        "shapes": {one.name: {"seconds": one.seconds, "without": one.without} for one in shapes},
    }
    click.echo(write_table_page(out, "bench", whole, figures))


if __name__ == "__main__":
    main()
