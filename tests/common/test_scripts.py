"""The project's scripts, run by another script of it."""

import re

import pytest

from minigpt.common import scripts
from minigpt.common.errors import UserError


@pytest.fixture
def script(tmp_path):
    """A script that prints its words and a variable, and fails where it is asked to."""
    path = tmp_path / "talk.py"
    path.write_text(
        "import json, os, sys\n"
        "print('words', *sys.argv[1:], os.environ.get('MOOD'))\n"
        "if 'fail' in sys.argv:\n"
        "    sys.exit('first\\nthe disk is full')\n"
        'print(json.dumps({"n": len(sys.argv)}))\n'
    )
    return str(path)


def test_what_a_script_prints_goes_into_the_log(script, tmp_path, capsys):
    log = tmp_path / "log"
    scripts.call(script, "a", log=log, MOOD="calm")
    scripts.call(script, "b", log=log)
    assert [line for line in log.read_text().splitlines() if "words" in line] == [
        "words a calm",
        "words b None",
    ]
    assert capsys.readouterr().out.splitlines() == [f"$ python {script} a", f"$ python {script} b"]


@pytest.mark.parametrize("logged", [True, False])
def test_a_failed_script_is_reported_by_its_last_line(script, tmp_path, logged):
    log = tmp_path / "log" if logged else None
    where = re.escape(f" (the whole output: {log})") if logged else ""
    with pytest.raises(UserError, match=rf"talk.py: exit code 1: the disk is full{where}$"):
        scripts.call(script, "fail", log=log)


def test_figures(script):
    assert scripts.figures_of(script, "a", "b") == {"n": 3}
    with pytest.raises(UserError, match="exit code 1"):
        scripts.figures_of(script, "fail")
