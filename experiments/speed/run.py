"""Client updates per CPU-second and seconds a round: this package and Flower's simulation in one run."""

from __future__ import annotations

import argparse
import csv
import os
import tempfile
from itertools import pairwise
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

CLIENTS, COHORT, BATCH, DIM, RATE = 1_000, 100, 10, 64, 0.1
SMALL, LARGE = 10_000, 1_000_000
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "OMP_NUM_THREADS": "1",
}
COLUMNS = [
    "system",
    "vocabulary",
    "rounds",
    "client_updates",
    "cpu_seconds",
    "wall_seconds",
    "updates_per_cpu_second",
    "ms_per_round_median",
]


def write_data(folder: Path, num_items: int, seed: int) -> tuple[Path, Path]:
    """Pairs of Zipf items with random labels, 41 to 50 at each client, and a file that declares all items."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(41, 51, CLIENTS)
    num_pairs = int(sizes.sum())
    cdf = np.cumsum(1 / np.arange(1, num_items + 1))
    names = rng.permutation(num_items)
    left, right = (names[np.searchsorted(cdf, rng.random(num_pairs) * cdf[-1])] for _ in range(2))
    client = np.char.zfill(np.repeat(np.arange(CLIENTS), sizes).astype(str), 4)
    label = rng.integers(0, 2, num_pairs)
    pairs, vocabulary = folder / f"pairs-{num_items}.parquet", folder / f"vocabulary-{num_items}.txt"
    columns = {"client": client, "left": left.astype(str), "right": right.astype(str), "label": label}
    pq.write_table(pa.table(columns), pairs)
    vocabulary.write_text("".join(f"{item}\n" for item in range(num_items)))
    return pairs, vocabulary


def overrides_of(pairs: Path, vocabulary: Path, batch_size: int) -> list[str]:
    """The reference work; every client's pairs are for training, and FedAvg's own denominator divides."""
    work = f"data=pairs task=skipgram task.tied=true task.negatives=0 task.dim={DIM} task.subsample=0"
    data = f"data.path={pairs} data.vocabulary={vocabulary} data.validation_share=0 data.test_share=0"
    rest = f"cohort=uniform cohort.size={COHORT} train.batch_size={batch_size} train.learning_rate={RATE}"
    server = "aggregate.rows=fedavg aggregate.weights=examples server.optimizer=sgd server.learning_rate=1.0"
    return f"{work} {data} {rest} train.epochs=1 {server}".split()


def row(
    system: str, vocabulary: int, rounds: int, updates: int, cpu: float, wall: float, seconds: list[float]
) -> dict:
    """A line of results.csv."""
    values = (
        rounds,
        updates,
        round(cpu, 3),
        round(wall, 3),
        round(updates / cpu, 2),
        round(median(seconds) * 1e3, 3),
    )
    return dict(zip(COLUMNS, (system, vocabulary, *values), strict=True))


def measure_ours(runs: dict, rounds: int, backwards: bool) -> list[dict]:
    """Both vocabularies, one after the other."""
    rows = []
    for size in list(runs)[:: -1 if backwards else 1]:
        timed, _, losses = runs[size].train(rounds)
        clocks = timed.cpu_seconds, timed.wall_seconds, timed.round_seconds
        rows.append(row("fedemb", size, timed.rounds, timed.client_updates, *clocks))
        print(f"{rows[-1]}  loss {losses[0]:.5f} -> {losses[-1]:.5f}", flush=True)
    return rows


def measure_flower(pairs: Path, initial: object, rounds: int, workers: int) -> dict:
    """Flower's simulation; the first round and everything before it are not counted."""
    from flower_fedavg import simulate

    marks, losses, _ = simulate(str(pairs), initial, CLIENTS, COHORT, rounds + 1, BATCH, RATE, workers)
    first, last = marks[1], marks[-1]
    cpu = {kind: last.cpu[kind] - first.cpu[kind] for kind in last.cpu}
    seconds = [b.wall - a.wall for a, b in pairwise(marks[1:])]
    total = sum(cpu.values())
    print(
        f"Flower CPU seconds: {', '.join(f'{kind} {value:.2f}' for kind, value in cpu.items())}", flush=True
    )
    print(f"Flower loss by round: {', '.join(f'{loss:.5f}' for loss in losses)}", flush=True)
    return row("flower", initial.shape[0], rounds, rounds * COHORT, total, last.wall - first.wall, seconds)


def summarise(rows: list[dict]) -> None:
    """Medians over repeats and the three ratios."""
    groups: dict = {}
    for line in rows:
        groups.setdefault((line["system"], line["vocabulary"]), []).append(line)
    mid = {key: {c: median(line[c] for line in lines) for c in COLUMNS[2:]} for key, lines in groups.items()}
    print(
        f"{'system':8} {'V':>9} {'repeats':>7} {'rounds':>6} {'updates/CPU-s':>13} {'range':>15} {'ms/round':>9}"
    )
    for key, middle in mid.items():
        speeds = [line["updates_per_cpu_second"] for line in groups[key]]
        span = f"{min(speeds):,.0f}-{max(speeds):,.0f}"
        print(
            f"{key[0]:8} {key[1]:>9,} {len(groups[key]):>7} {middle['rounds']:>6.0f}"
            f" {middle['updates_per_cpu_second']:>13,.1f} {span:>15} {middle['ms_per_round_median']:>9.2f}"
        )
    small, large = mid["fedemb", SMALL], mid["fedemb", LARGE]
    taller = large["ms_per_round_median"] / small["ms_per_round_median"]
    dearer = small["updates_per_cpu_second"] / large["updates_per_cpu_second"]
    print(
        f"V={LARGE:,} against V={SMALL:,}: {taller:.2f}x the seconds a round, {dearer:.2f}x the CPU of a training"
    )
    if ("flower", SMALL) in mid:
        flower = mid["flower", SMALL]
        gain = small["updates_per_cpu_second"] / flower["updates_per_cpu_second"]
        faster = flower["ms_per_round_median"] / small["ms_per_round_median"]
        pairs = zip(groups["fedemb", SMALL], groups["flower", SMALL], strict=True)
        gains = [ours["updates_per_cpu_second"] / theirs["updates_per_cpu_second"] for ours, theirs in pairs]
        print(f"fedemb against flower at V={SMALL:,}: {gain:,.0f}x the updates per CPU-second", end=" ")
        print(f"({min(gains):,.0f} to {max(gains):,.0f} by repeat), {faster:,.0f}x as fast by the wall clock")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200, help="rounds in one of our trainings")
    parser.add_argument("--repeats", type=int, default=3, help="times that everything is measured, in turns")
    parser.add_argument("--flower-rounds", type=int, default=2, help="counted rounds of a simulation")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="Flower's client processes")
    parser.add_argument("--skip-flower", action="store_true")
    parser.add_argument("--seed", type=int, default=0, help="of the data")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("results.csv"))
    arguments = parser.parse_args()
    os.environ.update(QUIET)  # read when flwr and torch are imported, hence the imports below

    import torch
    from ours import Ours, compare_round

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = {size: write_data(folder, size, arguments.seed) for size in (SMALL, LARGE)}
        full = Ours(overrides_of(*files[SMALL], 0), folder / "run")
        difference, moved = compare_round(full, str(files[SMALL][0]), CLIENTS, RATE)
        print(f"one full-batch round against FedAvg in plain PyTorch: largest difference {difference:.1e},")
        print(f"largest movement {moved:.1e}", flush=True)
        runs = {size: Ours(overrides_of(*files[size], BATCH), folder / "run") for size in (SMALL, LARGE)}
        for ours in runs.values():
            ours.train(max(1, arguments.rounds // 10))
        rows = []
        for repeat in range(
            arguments.repeats
        ):  # taking turns, so that a busier machine is busier for everybody
            rows += measure_ours(runs, arguments.rounds, backwards=repeat % 2 == 1)
            if not arguments.skip_flower:
                pairs, initial = files[SMALL][0], runs[SMALL].initial()
                rows.append(measure_flower(pairs, initial, arguments.flower_rounds, arguments.workers))
                print(rows[-1], flush=True)
    with arguments.output.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    summarise(rows)


if __name__ == "__main__":
    main()
