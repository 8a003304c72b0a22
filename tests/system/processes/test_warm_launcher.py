"""The launcher that is forked from the warm server starts ranks as the real one does."""

import json

import pytest
from support import programs, warm_launcher


@pytest.mark.skipif(not warm_launcher.has_command_line(), reason="its processes can't be forked")
def test_forked_launcher_starts_ranks_as_real_one():
    """Ranks have the real launcher's command lines, environment, path and group; so has its end."""
    command = [*programs.deepspeed(2), programs.HERE / "tell.py", "--flag", "value"]
    ends = [programs.finish(command, fresh=fresh) for fresh in (True, False)]
    assert [end.code for end in ends] == [3, 3], ends[1].stderr[-3000:]
    real, forked = (ranks(end) for end in ends)
    assert [rank["environment"]["LOCAL_RANK"] for rank in forked] == ["0", "1"]
    assert forked == real


def ranks(end: programs.Result) -> list[dict]:
    """Returns what each rank has told, in the order of ranks."""
    told = [json.loads(line) for line in end.stdout.splitlines() if line.startswith('{"argv"')]
    assert len(told) == 2, end.stderr[-3000:]
    for rank in told:
        for words in rank["command lines"]:
            del words[0]  # the interpreter, which has several names
    return sorted(told, key=lambda rank: rank["environment"]["RANK"])
