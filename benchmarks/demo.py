"""Write the table of README.md: mean recalls of `cosplace demo` over several seeds.

    python benchmarks/demo.py [--seeds 3 4 5]

Replaces the text between <!-- demo --> and <!-- /demo --> in README.md.
"""

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"
KS = (1, 5, 10, 20)


def run_demo(seed: int) -> dict[str, list[float]]:
    """Run the demo with a seed in a temporary folder; returns the recalls of each row of its table."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "cosplace", "demo", "--seed", str(seed)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
        if done.returncode:
            sys.exit(done.stderr)
    print(f"seed {seed}\n{done.stdout}", flush=True)
    rows = {}
    for line in done.stdout.splitlines():
        if match := re.fullmatch(r"([a-z ]+?)((?: +[\d.]+){4})", line):
            rows[match[1]] = [float(value) for value in match[2].split()]
    return rows


def main() -> None:
    """Run the demos and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 4, 5])
    seeds = parser.parse_args().seeds
    runs = [run_demo(seed) for seed in seeds]
    lines = [f"| mean of seeds {', '.join(map(str, seeds))} | " + " | ".join(f"R@{k}" for k in KS) + " |"]
    lines.append("|---|" + "---:|" * len(KS))
    for name in runs[0]:
        means = [statistics.mean(run[name][column] for run in runs) for column in range(len(KS))]
        cells = [name, *(f"{mean:.1f}" for mean in means)]
        if name.startswith("trained"):
            cells = [f"**{cell}**" for cell in cells]
        lines.append(f"| {' | '.join(cells)} |")
    table = "\n".join(lines)
    text = README.read_text()
    README.write_text(
        re.sub(r"<!-- demo -->.*<!-- /demo -->", f"<!-- demo -->\n{table}\n<!-- /demo -->", text, flags=re.S)
    )


if __name__ == "__main__":
    main()
