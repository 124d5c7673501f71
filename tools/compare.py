"""Ask several models the same questions: runs, servers, and files of answers, side by side.

    python tools/compare.py --runs=out/a,out/b --questions=eight
    python tools/compare.py --runs=out/pretrain --questions=prefixes
    python tools/compare.py --runs=out/sft --endpoints=endpoints.csv,http://localhost:1234/v1 \\
        --questions=mine.jsonl --answers=gpt.jsonl

--questions is a set that is shipped, or a file. eight: questions of all kinds for a chat model.
prefixes: three beginnings of encyclopaedia entries, to continue. novels: ten about 三国演义,
红楼梦 and 西游记. A file has a question a line (.txt), or the fields `question` and optionally
`reference` (.jsonl, .csv, .tsv); with references each answer gets its Rouge-L.

A run is prompted in its own format: a pretrained one continues the question. A server that is down
is named, and the others go on. --answers are files of other models' answers, with the fields
`question` and `answer`. The results are in --output: compare.md, compare.html, compare.jsonl (every
answer with its figures) and compare.json (the means).
"""

import pathlib
import sys
from pathlib import Path
from urllib.parse import urlsplit

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from config.configurator import configure
from minigpt.common.errors import UserError, preflight, run
from minigpt.inference.request import Request


class Settings:
    runs: list[str] = []  # folders of runs
    endpoints: list[str] = []  # servers: addresses, or a .csv of name,base_url,model,api_key_env
    answers: list[str] = []  # files of answers, with the fields question and answer
    questions: str = "eight"  # eight, prefixes, novels, or a file
    output: str = "out/compare"  # the folder of the results
    temperature: float = 0.1  # 0: always the most likely token; 1: the model's own distribution
    top_k: int = 20  # sample from the k most likely tokens; 0: from all
    top_p: float = 1.0  # sample from the most likely tokens with this total probability; 1: all
    repetition_penalty: float = 1.0  # above 1: tokens of the prompt and the text are less likely
    max_new_tokens: int = 225  # longest answer, in tokens
    seed: int = 1337  # question i has the seed seed + i
    batch_size: int = 8  # answers of a run at once; changes the speed, not the answers
    timeout: float = 120.0  # seconds for an answer of a server


SAMPLING = ("temperature", "top_k", "top_p", "repetition_penalty", "max_new_tokens")


def read_settings():
    """The settings, checked."""
    settings = configure(Settings, shared="device dtype kernels", doc=__doc__, quiet=True)
    problems = settings.below(batch_size=1, seed=0, timeout=1)
    sampling = {name: getattr(settings, name) for name in SAMPLING}
    problems += [f"--{line}" for line in Request([0], **sampling).problems()]
    if not (settings.runs or settings.endpoints or settings.answers):
        problems.append("nothing to compare: expected --runs, --endpoints or --answers")
    if problems:
        raise UserError("\n".join(problems))
    return settings


if __name__ == "__main__":
    preflight(read_settings)  # --help and mistakes, before the imports below, which take seconds

from minigpt.arena.endpoints import Preset, read_presets
from minigpt.common.report import check_writable, progress, write_json, write_jsonl, write_text
from minigpt.evaluation.comparison import (
    ModelAnswers,
    Sampling,
    ask_run,
    ask_server,
    measured,
    read_answers,
    read_asked,
    summaries,
)
from minigpt.evaluation.side_by_side import as_html, as_lines, as_markdown
from minigpt.models.folders import model_names
from minigpt.openai.client import Client
from minigpt.synthesis.servers import read_servers

SUFFIXES = (".md", ".html", ".jsonl", ".json")


def main():
    settings = read_settings()
    print(settings.describe(), flush=True)
    questions = read_asked(settings.questions)
    presets = read_endpoints(settings.endpoints)
    run_names = model_names(settings.runs)
    file_names = [Path(path).stem for path in settings.answers]
    names = unique([*run_names, *(preset.name for preset in presets), *file_names])
    # Files are read first: an error in one of them is found before anything is asked.
    own = names[len(run_names) + len(presets) :]
    files = [
        read_answers(name, path, questions)
        for name, path in zip(own, settings.answers, strict=True)
    ]
    outputs = {suffix: Path(settings.output) / f"compare{suffix}" for suffix in SUFFIXES}
    for path in outputs.values():
        check_writable(path)

    models = ask_all(settings, names, presets, questions) + files
    rows = measured(models, questions)
    figures = summaries(models, rows)
    print(f"\n{as_lines(rows, figures)}\n")
    title = f"{', '.join(model.name for model in models)}: {settings.questions}"
    write_text(outputs[".md"], as_markdown(title, rows, figures))
    write_text(outputs[".html"], as_html(title, rows, figures))
    write_jsonl(outputs[".jsonl"], rows)
    write_json(outputs[".json"], dict(settings=settings.as_dict(), models=figures))
    print(f"table: {outputs['.md']}, page: {outputs['.html']}, answers: {outputs['.jsonl']}")


def read_endpoints(words):
    """The Presets of --endpoints: the rows of each .csv, and each address under its host."""
    presets = []
    for word in words:
        if word.endswith(".csv"):
            presets += read_presets(word)
        else:
            (server,) = read_servers([word])
            presets.append(Preset(urlsplit(server.name).netloc, server.base_url))
    return presets


def unique(names):
    """The names, a number after each that is taken already."""
    found = []
    for name in names:
        number, free = 1, name
        while free in found:
            number += 1
            free = f"{name}-{number}"
        found.append(free)
    return found


def ask_all(settings, names, presets, questions):
    """The ModelAnswers of the runs and of the servers. `names` begins with theirs."""
    sampling = Sampling(*(getattr(settings, name) for name in SAMPLING), settings.seed)
    names, models = iter(names), []
    total = len(questions) * (len(settings.runs) + len(presets))
    with progress(total, "answers") as advance:
        for folder in settings.runs:
            where = settings.batch_size, settings.device, settings.dtype, settings.kernels
            models.append(ask_run(next(names), folder, questions, sampling, *where, advance))
        for preset in presets:
            models.append(asked(next(names), preset, questions, sampling, settings, advance))
            for _ in range(models[-1].answers.count(None)):
                advance()
    return models


def asked(name, preset, questions, sampling, settings, advance):
    """The ModelAnswers of a server."""
    try:
        (server,) = read_servers([preset.base_url], [preset.api_key_env or "none"])
    except UserError as error:  # its key is missing: the others go on
        source = f"server {preset.base_url}"
        return ModelAnswers(name, source, [None] * len(questions), [f"not asked: {error}"])
    client = Client(
        server.name, server.key, timeout=settings.timeout, warn=lambda line: print(line, flush=True)
    )
    try:
        return ask_server(name, client, preset.model, questions, sampling, advance)
    finally:
        client.close()


if __name__ == "__main__":
    run(main)
