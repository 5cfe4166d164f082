"""Traffic over time: rates of requests, and arrivals drawn from them."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from slmrank.errors import DataError

Floats = npt.NDArray[np.float64]
STEP_S = 10.0
KINDS = ("diurnal", "burst", "ramp")
MOST_DAYS = 31
DAY_S = 86_400
HOURS = {"diurnal": 24.0, "burst": 2.0, "ramp": 2.0}


@dataclass(frozen=True, kw_only=True)
class Trace:
    """Offered load in items per second, one value for each STEP_S seconds. `history` is what was
    known beforehand (the day before), which a schedule can be made from; None: nothing."""

    name: str
    rates: Floats
    history: Floats | None = None

    @property
    def seconds(self) -> float:
        return len(self.rates) * STEP_S

    @property
    def mean(self) -> float:
        return float(self.rates.mean())

    def arrivals(self, items: int, seed: int) -> Floats:
        """Poisson arrival times of requests with `items` items each, in seconds."""
        random = np.random.default_rng(seed)
        expected = self.rates / items * STEP_S
        counts = random.poisson(expected)
        starts = np.repeat(np.arange(len(counts)) * STEP_S, counts)
        return np.sort(starts + random.random(len(starts)) * STEP_S)


def make_trace(kind: str, *, load: float, burst: float, hours: float, seed: int) -> Trace:
    """A trace whose base load is `load` items per second.

    diurnal: a day from 0.3 to 1.0 of burst x load, compressed into `hours`, with slow noise; its
    history is another day. burst: three bursts of `burst` x load, five minutes each, at times that
    the history does not have. ramp: up to burst x load over a third of the time, and back.
    """
    steps = max(1, round(hours * 3600 / STEP_S))
    shapes: dict[str, Callable[[int], Floats]] = {
        "diurnal": lambda day: _diurnal(steps, burst, day),
        "burst": lambda day: _bursts(steps, burst, day),
        "ramp": lambda day: _ramp(steps, burst),
    }
    if kind not in shapes:
        raise DataError(f"there is no trace {kind!r}", f"one of {', '.join(KINDS)}, or a CSV file")
    today, before = shapes[kind](seed), shapes[kind](seed + 1)
    # A ramp is an event, not a habit: the day before had none.
    history = np.ones_like(before) if kind == "ramp" else before
    return Trace(name=kind, rates=load * today, history=load * history)


def read_trace(path: Path, history: Path | None = None) -> Trace:
    """A CSV with the columns `seconds` and `items_per_s`; between two rows the load is linear. The
    `history` is laid beside it by the time of day that its seconds say, and repeated by whole days;
    what its last day lacks is like the day before, or like its end where there is none.

    Raises DataError that names the row.
    """
    started, rates = _read(path)
    before = None
    if history is not None:
        earlier, found = _read(history)
        # Whole days, so that it repeats at the same time: 24 rows from 0:00 on end at 23:00.
        day = round(DAY_S / STEP_S)
        lacks = -len(found) % day
        same = found[len(found) - day :][:lacks] if len(found) >= day else [found[-1]] * lacks
        found = np.concatenate([found, same])
        ahead = round((started - earlier) % DAY_S / STEP_S)
        before = np.resize(np.roll(found, -ahead), len(rates))
    return Trace(name=path.stem, rates=rates, history=before)


def _diurnal(steps: int, burst: float, seed: int) -> Floats:
    day = np.arange(steps) / steps
    wave = 0.65 - 0.35 * np.cos(2 * math.pi * (day - 1 / 6))
    day_load: Floats = np.maximum(burst * wave * _noise(steps, seed), 0.01)
    return day_load


def _bursts(steps: int, burst: float, seed: int) -> Floats:
    random = np.random.default_rng(seed)
    rates = np.ones(steps)
    length = min(max(1, round(300 / STEP_S)), max(1, steps // 6))
    third = steps // 3
    for part in range(3):
        room = max(1, third - length)
        start = part * third + int(random.integers(0, room))
        rates[start : start + length] = burst
    return rates * _noise(steps, seed + 7)


def _ramp(steps: int, burst: float) -> Floats:
    places = np.array([0, 1 / 6, 1 / 2, 2 / 3, 5 / 6, 1])
    sizes = np.array([1, 1, burst, burst, 1, 1])
    return np.interp(np.linspace(0, 1, steps), places, sizes)


def _noise(steps: int, seed: int) -> Floats:
    """Around 1, changing over minutes, 5 % wide."""
    random = np.random.default_rng(seed)
    window = 30
    raw = random.normal(size=steps + window)
    smooth = np.convolve(raw, np.ones(window) / math.sqrt(window), mode="valid")[:steps]
    return 1 + 0.05 * smooth


def _read(path: Path) -> tuple[float, Floats]:
    """The first second of a file, and its load in steps."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {path}: {error}", "give a CSV file") from error
    seconds: list[float] = []
    rates: list[float] = []
    for number, row in enumerate(rows, start=2):
        try:
            at, rate = float(row["seconds"]), float(row["items_per_s"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{path}:{number}: no numbers in the columns seconds and items_per_s",
                "write a header line `seconds,items_per_s` and one row for each time",
            ) from error
        if not math.isfinite(at) or not math.isfinite(rate) or rate < 0:
            raise DataError(f"{path}:{number}: {at:g}, {rate:g} is no load", "0 or more items/s")
        if seconds and at <= seconds[-1]:
            raise DataError(f"{path}:{number}: the time does not grow", "sort the rows by seconds")
        seconds.append(at)
        rates.append(rate)
    if len(seconds) < 2:
        raise DataError(f"{path} holds {len(seconds)} rows", "at least two are needed")
    days = (seconds[-1] - seconds[0]) / DAY_S
    if days > MOST_DAYS:
        raise DataError(
            f"{path} is {days:,.0f} days long, the limit is {MOST_DAYS}",
            "give a part of it; the column seconds holds seconds",
        )
    # The mean of every step, from the integral: a spike between two steps counts.
    # A last part of a step is left out: beyond the last row nothing is known.
    grid = np.arange(seconds[0], seconds[-1] + STEP_S / 1000, STEP_S)
    times = np.union1d(np.minimum(grid, seconds[-1]), seconds)
    loads = np.interp(times, seconds, rates)
    areas = np.diff(times) * (loads[1:] + loads[:-1]) / 2
    means: Floats = np.diff(np.interp(grid, times, np.concatenate([[0.0], np.cumsum(areas)])))
    load = np.maximum(means / STEP_S, 0.0) if len(means) else np.array([rates[0]])
    return seconds[0], load
