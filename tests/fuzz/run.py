"""Fuzzes every reader, each in a process of its own, and prints a table: `python tests/fuzz/run.py --inputs 5000`.

With atheris (`pip install -e '.[fuzz]'`) inputs are guided by what code they reach; without, they are drawn at random.
What brings about a fault is kept in the folder that --out names: `python tests/fuzz/run.py TARGET --try FILE` tries it.
"""

import argparse
import hashlib
import json
import os
import random
import resource
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

SPARE = 8 * 2**30  # bytes of address space that a reader may take beside what its process has; refused to it beyond
LARGEST = 2**16  # bytes of an input
WATCHED = ["sidestep", "PIL", "yaml", "zipfile"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", help="all where none is named")
    parser.add_argument("--inputs", type=int, default=5000, help="of each target; of slow ones a fifth")
    parser.add_argument("--seconds", type=float, default=600, help="at most, of each target")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plain", action="store_true", help="at random even where there is atheris")
    parser.add_argument("--out", type=Path, default=Path("fuzz-faults"))
    parser.add_argument("--try", type=Path, dest="file", help="one input")
    given = parser.parse_args()
    atheris = None if given.plain or given.file else _atheris()
    # As the folder of a script it comes first, of a module it need not.
    sys.path.insert(0, str(Path(__file__).parent))
    with nullcontext() if atheris is None else atheris.instrument_imports(include=WATCHED):
        from judge import Judge
        from targets import TARGETS

    if given.file is not None:
        judge = Judge(TARGETS[given.targets[0]])
        print(judge.look_at(given.file.read_bytes()) or ("read" if judge.read else "refused"))
        return
    print(
        "| target | inputs | a second | read | refused | faults | most memory |\n|---|---|---|---|---|---|---|",
        flush=True,
    )
    total, faults = 0, 0
    for name in given.targets or TARGETS:
        row = apart(atheris, name, given)
        total, faults = total + row["inputs"], faults + len(row["faults"])
        print(
            f"| {name} | {row['inputs']:,} | {row['inputs'] / row['seconds']:,.0f} | {row['read']:,} | "
            f"{row['refused']:,} | {len(row['faults'])} | +{row['grown'] / 2**20:,.0f} MiB |",
            flush=True,
        )
        for fault, file in row["faults"].items():
            print(f"{name}: {fault}: {file}", file=sys.stderr, flush=True)
    print(f"\n{total:,} inputs, {faults} faults")
    sys.exit(faults > 0)


def _atheris() -> Any:
    try:
        import atheris
    except ImportError:
        return None
    return atheris


def apart(atheris: Any, name: str, given: argparse.Namespace) -> dict[str, Any]:
    """Fuzzes a target in a process of its own, whose death is a fault, too; what came of it."""
    out = given.out / name
    out.mkdir(parents=True, exist_ok=True)
    report, log = out / "report.json", out / "log"
    report.unlink(missing_ok=True)
    child = os.fork()
    if not child:
        with log.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        fuzz(atheris, name, given, out)
        os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    empty = {"inputs": 0, "seconds": 1.0, "read": 0, "refused": 0, "faults": {}, "grown": 0}
    row: dict[str, Any] = json.loads(report.read_text()) if report.exists() else empty
    if status:
        row["faults"][f"the process ended with {status}: {log.read_text()[-2000:]}"] = (
            "the last input, where the log says"
        )
    return row


def fuzz(atheris: Any, name: str, given: argparse.Namespace, out: Path) -> None:
    """The child: looks at inputs until there were enough, and ends."""
    from judge import Judge
    from mutation import drawn, edited
    from targets import TARGETS

    target = TARGETS[name]
    seeds = target.seeds()
    judge = Judge(target)
    for seed in seeds:
        judge.look_at(seed)
    if judge.read < len(seeds) and target.whole:
        raise SystemExit(f"only {judge.read} of {len(seeds)} seeds of {name} were read; {list(judge.faults)}")
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + SPARE, used + SPARE))
    memory = _peak()
    print(f"the last input: {judge.folder}-last", flush=True)
    wanted, begun = given.inputs // (5 if target.slow else 1), time.monotonic()
    count, last = 0, judge.folder.with_name(f"{judge.folder.name}-last")

    def look(data: bytes) -> None:
        nonlocal count
        last.write_bytes(data)  # there is no other way to know it if the process dies of it
        judge.look_at(data)
        count += 1
        over = count >= wanted or time.monotonic() - begun > given.seconds
        if over or count % 100 == 0:
            kept = {fault: out / hashlib.sha256(data).hexdigest()[:12] for fault, data in judge.faults.items()}
            for fault, file in kept.items():
                file.write_bytes(judge.faults[fault])
            row = {"inputs": count, "seconds": time.monotonic() - begun, "read": judge.read, "refused": judge.refused}
            row |= {"faults": {fault: str(file) for fault, file in kept.items()}, "grown": _peak() - memory}
            (out / "part.json").write_text(json.dumps(row))
            (out / "part.json").replace(out / "report.json")
        if over:
            judge.end()
            last.unlink()
            os._exit(0)

    if atheris is None:
        rng = random.Random(f"{given.seed} {name}")
        while True:
            look(edited(rng.choice(seeds), drawn(rng, target.words)))
    with tempfile.TemporaryDirectory() as folder:
        corpus, words = Path(folder, "corpus"), Path(folder, "words")
        corpus.mkdir()
        for number, seed in enumerate(seeds):
            (corpus / str(number)).write_bytes(seed)
        escaped = ("".join(f"\\x{byte:02x}" for byte in word) for word in target.words if len(word) < 64)
        words.write_text("".join(f'"{word}"\n' for word in escaped))
        options = [f"-dict={words}", f"-seed={given.seed}", f"-max_len={LARGEST}", "-timeout=120", "-rss_limit_mb=0"]
        atheris.Setup([sys.argv[0], *options, str(corpus)], look)
        atheris.Fuzz()


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
