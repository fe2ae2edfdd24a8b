"""What replicas on one machine hold in memory: each alone, and shared, since weights are pages of mapped files (Linux).

python examples/ray/memory.py FOLDER-OF-A-MODEL --replicas 1 2 4
"""

import argparse
import multiprocessing
import re
from pathlib import Path


def memory(process: int) -> tuple[float, float, float]:
    """MB of a process: all, its own pages, pages of files with weights; pages that n processes share count as 1/n."""
    mapped, all_of_it, own, weights = "", 0, 0, 0
    for line in Path(f"/proc/{process}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            mapped = line
        elif line.startswith("Pss:"):
            all_of_it += int(line.split()[1])
            weights += int(line.split()[1]) * mapped.endswith(".safetensors")
        elif line.startswith("Anonymous:"):
            own += int(line.split()[1])
    return all_of_it / 1024, own / 1024, weights / 1024


def replica(model: str, dtype: str | None, ready, over) -> None:
    """Load, answer once, and stay."""
    from modeling_pfberxit.serving.start import Loading

    predictor = Loading(dtype=dtype).first(model)
    tokens, _ = predictor.read(["a text that is answered once"])
    predictor.run(tokens, [predictor.point(None)])
    ready.put(sum(weight.nbytes for weight in predictor.model.parameters()) / 2**20)
    over.wait()


def measured(model: str, dtype: str | None, replicas: int) -> str:
    """A line of the table."""
    context = multiprocessing.get_context("spawn")
    ready, over = context.Queue(), context.Event()
    processes = [context.Process(target=replica, args=(model, dtype, ready, over)) for _ in range(replicas)]
    for process in processes:
        process.start()
    weights = [ready.get(timeout=300) for _ in processes][0]
    found = [memory(process.pid) for process in processes]
    over.set()
    for process in processes:
        process.join()
    sums = map(sum, zip(*found))
    return f"| {replicas} | {weights:.0f} | " + " | ".join(f"{value:.0f}" for value in sums) + " |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 2])
    parser.add_argument(
        "--dtype", help="another than the weights were saved in makes them a copy of each replica's own"
    )
    arguments = parser.parse_args()
    print("| replicas | weights of one, MB | memory of all | of it their own pages | of it pages of weights |")
    print("|---:|---:|---:|---:|---:|")
    for number in arguments.replicas:
        print(measured(arguments.model, arguments.dtype, number), flush=True)
