"""The HTML of the Class tab: who votes, the progress of a round, the teacher's table, a download.

strings: minigpt.arena.i18n. Names and prompts are escaped.
"""

import base64
from html import escape

from minigpt.arena.battles import SideState
from minigpt.arena.html import cell, note, side_card, table


def who(strings, pupil):
    """As whom the visitor votes; how to join if `pupil` is None."""
    if pupil is None:
        return note(strings["join_hint"])
    return note(strings["joined_as"].format(name=pupil.name))


def progress(strings, found, voter, voters):
    """The Progress of a round for all, or that there is none. voters: the ids of the pupils who
    take part; voter: the visitor's, or None."""
    if found is None:
        return note(strings["no_round"])
    total, own = found.n_votable, found.votes[voter]
    n_votes = sum(found.votes[each] for each in voters)
    lines = [
        strings["round_class"].format(
            finished=found.n_finished(voters), pupils=len(voters), votes=n_votes
        )
    ]
    if voter is not None:
        lines.insert(0, strings["round_own"].format(done=own, total=total))
    if found.n_written < len(found.tasks):
        lines.append(strings["round_writing"].format(n=found.n_written, total=len(found.tasks)))
    most = max(1, total * len(voters))
    values = f'role="progressbar" aria-valuenow="{n_votes}" aria-valuemax="{most}"'
    share = 100 * n_votes / most
    bar = f'<div class="progress" {values}><i style="width:{share:.1f}%"></i></div>'
    return bar + note(" ".join(lines))


def question(text):
    """The prompt that is judged."""
    return f'<div class="battle"><div class="question">{escape(text)}</div></div>' if text else ""


def answer_card(strings, side, index):
    """A SideRecord as a card without the model's name."""
    state = SideState(
        text=side.answer,
        status="done",
        first_token_seconds=None,
        elapsed=0.0,
        chunks=0,
        tokens=None,
        end_reason=side.end_reason,
        error=None,
        message=None,
    )
    return side_card(strings, state, index)


def report(strings, rows, found, problem):
    """The teacher's table: PupilReports; the votes on each prompt of the running round (found:
    Progress or None). problem: of the roster's file, or None."""
    cells = [
        [
            cell(row.name or strings["not_in_roster"], "" if row.name else "quiet"),
            cell(row.free_votes, "number"),
            cell(row.round_votes if found else "", "number"),
            cell(f"{row.evidence:.2g}", "number"),
            cell(_remark(strings, row), "quiet"),
        ]
        for row in rows
    ]
    header = [(strings["name"], ""), (strings["free_votes"], "number")]
    header += [(strings["round_votes"], "number"), (strings["evidence"], "number"), ("", "")]
    parts = [note(problem or ""), table(header, cells), note(strings["evidence_help"])]
    if found:
        parts.append(table([("", "number"), *_task_header(strings)], _task_rows(strings, found)))
    return "".join(parts)


def _remark(strings, row):
    parts = [strings["looks_random"]] if row.is_suspicious else []
    if row.name and not row.has_code:
        parts.append(strings["code_revoked"])
    return " · ".join(parts)


def _task_header(strings):
    return [(strings["round_prompt"], "long"), (strings["votes"], "number"), ("", "")]


def _task_rows(strings, found):
    for task in found.tasks:
        state = strings["task_writing"] if not task.has_ended else ""
        if task.has_ended and not task.votable:
            silent = [side.model for side in task.sides if not side.answered] or task.names
            state = strings["silent"].format(names=", ".join(silent))
        yield [
            cell(task.place + 1, "number"),
            cell(task.prompt[:200], "long"),
            cell(found.votes_of_task[task.place], "number"),
            cell(state, "quiet"),
        ]


def download(name, text):
    """A link that saves a text. The text is in the link: the file has no address that another
    visitor could open."""
    data = base64.b64encode(text.encode()).decode()
    link = f'<a href="data:text/csv;base64,{data}" download="{escape(name)}">{escape(name)}</a>'
    return f'<div class="quiet">↓ {link}</div>'
