"""The arena: a web page to chat with one model, or to compare two to four models and vote.

    python sample_gradio.py                                    # every run in out/
    python sample_gradio.py --runs=out/pretrain,out/sft --endpoints=endpoints.csv
    python sample_gradio.py --host=0.0.0.0 --auth=class:SECRET --admin_password=OTHER
    python sample_gradio.py --make_roster=30 --roster=class.csv    # codes for 30 pupils, then exit
    python sample_gradio.py --host=0.0.0.0 --roster=class.csv --admin_password=OTHER

Models are local runs and teammates' servers. endpoints.csv lists servers, one per line after the
header name,base_url,model,api_key_env. Votes are stored in --ledger. The page works offline: it
loads nothing from other servers. Its language is the browser's, Chinese or English.

The page itself is in minigpt/arena/ui/, a module for each tab.
"""

import contextlib
import os
import socket
import sys
import threading
import time

from config.configurator import configure
from minigpt.arena.classroom.roster import MAX_PUPILS, Roster, read_roster, write_roster
from minigpt.common.credentials import read_secret
from minigpt.common.errors import UserError, preflight, run


class Settings:
    runs: list[str] = []  # folders of local runs; empty: every run in out/
    endpoints: str = ""  # a .csv of servers: name,base_url,model,api_key_env
    host: str = "127.0.0.1"  # 0.0.0.0: all machines that reach this one over the network
    port: int = 7860  # of the page
    allowed_hosts: list[str] = []  # further host names of this page in URLs; *: any
    auth: str = ""  # NAME:PASSWORD for the whole page; or the variable MINIGPT_AUTH, which other
    #                 users of this machine cannot see
    auth_file: str = ""  # a file whose only line is NAME:PASSWORD
    admin_password: str = ""  # allows to add and remove endpoints on the page; or the variable
    #                           MINIGPT_ADMIN_PASSWORD
    admin_password_file: str = ""  # a file whose only line is that password
    networks: list[str] = []  # further networks of endpoints, such as 203.0.113.0/24
    ledger: str = "out/arena.sqlite"  # battles and votes
    examples: str = "examples.csv"  # preset prompts: prompt,format
    roster: str = ""  # a .csv of a class: name,code. Only its pupils vote, by their codes
    make_roster: int = 0  # write --roster (or class.csv) with codes for so many pupils, and exit
    slots: int = 8  # texts that a local run generates at once
    deadline: float = 120.0  # seconds for each answer of a battle
    most_battles: int = 32  # battles and chat answers at once; more wait in a queue
    address_limit: int = 60  # questions, and votes, a minute from one address; raise it if a class
    #                          shares one address


def read_settings():
    """The settings, with the passwords, checked."""
    settings = configure(Settings, shared="device dtype kernels", doc=__doc__, quiet=True)
    if settings.make_roster:
        make_roster(settings.roster or "class.csv", settings.make_roster)
        sys.exit()
    read_secrets(settings)
    check(settings)
    return settings


def make_roster(path, n):
    """Write a roster, and say what to do with it."""
    if not 1 <= n <= MAX_PUPILS:
        raise UserError(f"--make_roster={n}: expected 1 to {MAX_PUPILS}")
    write_roster(path, n)
    print(
        f"{path}: codes for {n} pupils; replace the names, print it, and start with --roster={path}"
    )


def read_secrets(settings):
    """Read the passwords from environment variables or files, if no flag sets them."""
    for flag in ("auth", "admin_password"):
        secret = read_secret(settings, flag, f"MINIGPT_{flag.upper()}")
        settings.set(flag, secret or "", settings.origin(flag))


def check(settings):
    """UserError with all problems of the settings."""
    problems = settings.below(slots=1, most_battles=1, deadline=1, address_limit=1)
    if settings.auth and ":" not in settings.auth:
        problems.append("--auth (MINIGPT_AUTH, --auth_file): expected NAME:PASSWORD")
    if settings.roster:
        try:
            read_roster(settings.roster)
        except UserError as error:
            problems.append(f"--roster: {error}")
    try:
        family, *_, socket_address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM
        )[0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(socket_address)
    except (OSError, OverflowError) as error:
        problems.append(
            f"--host={settings.host} --port={settings.port}: cannot listen there ({error}): "
            "another program may use the port; choose another one, such as --port=7861"
        )
    if problems:
        raise UserError("\n".join(problems))


if __name__ == "__main__":
    preflight(read_settings)  # --help and mistakes, before the imports below, which take seconds

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before Gradio is imported

from minigpt.arena.access.admin import AdminPassword
from minigpt.arena.access.event_streams import EventStreams
from minigpt.arena.access.page_filter import PageFilter
from minigpt.arena.access.rate_limit import VisitorLimits
from minigpt.arena.access.voters import Voters
from minigpt.arena.arena import MAX_SIDES, Arena
from minigpt.arena.classroom.classroom import Classroom
from minigpt.arena.endpoints import Endpoint, Endpoints, read_presets
from minigpt.arena.health import HealthMonitor
from minigpt.arena.i18n import ENGLISH
from minigpt.arena.local_runs import LocalModel, LocalRun
from minigpt.arena.store import Ledger
from minigpt.arena.ui.app import make_app
from minigpt.arena.ui.context import PageContext
from minigpt.arena.ui.page import Page
from minigpt.arena.window.runs import RunFolders
from minigpt.common.locks import lock_path, locked
from minigpt.common.presets import read_prompts
from minigpt.common.urls import address, is_everywhere, is_local
from minigpt.data.prompts import chat_ids, stop_ids
from minigpt.models.folders import find_runs, model_names, prompt_format
from minigpt.openai.safe_http import DEFAULT as OWN_NETWORKS
from minigpt.openai.safe_http import Allowed, lan_address
from minigpt.openai.transport import Caps
from minigpt.serving.allowed_hosts import AllowedHosts
from minigpt.serving.asgi import serve


def main():
    settings = read_settings()
    with locked(lock_path(settings.ledger), settings.ledger, "--ledger"):
        serve_page(settings)


def serve_page(settings):
    """Build the page and serve it, until the process is stopped."""
    networks = Allowed((*OWN_NETWORKS, *settings.networks))
    runs, hashes = listed_runs(settings), {}
    arena = make_arena(settings, networks, runs.values(), hashes)
    prompts = read_prompts(settings.examples)
    voters = Voters.beside(settings.ledger)
    classroom = None
    if settings.roster:
        classroom = Classroom(Roster(settings.roster, voters, arena.ledger), arena)
    limits = VisitorLimits(settings.address_limit)
    folders = RunFolders("out", settings.runs)
    context = PageContext(arena, prompts, voters, limits, classroom, folders)
    monitor = HealthMonitor(arena.endpoints)
    admin = AdminPassword(settings.admin_password)
    page = Page(context, monitor, admin, networks, endpoint_caps(settings))
    hosts = AllowedHosts(settings.allowed_hosts, settings.host)
    app = PageFilter(EventStreams(make_app(page)), voters, hosts, settings.auth)
    monitor.start()
    loading = threading.Thread(target=load_runs, args=(settings, runs, hashes, arena), daemon=True)
    loading.start()
    print(welcome(settings, arena), flush=True)
    serve(app, settings.host, settings.port)


def listed_runs(settings):
    """{folder: LocalRun} of --runs, or of the runs in out/, the newest first: the chat opens on the
    first. Their models are not loaded. UserError if a folder of --runs is no run; of out/ a folder
    that is none is named and passed over."""
    folders, problems = settings.runs, []
    if not folders:
        found, problems = find_runs("out")
        folders = [str(folder) for folder in found]
    for problem in problems:
        print(f"passed over: {problem}", file=sys.stderr, flush=True)
    names = model_names(folders)
    return {
        folder: LocalRun(name, prompt_format(folder))
        for name, folder in zip(names, folders, strict=True)
    }


def make_arena(settings, networks, runs, hashes):
    """The Arena: local runs, the servers of --endpoints, and the ledger."""
    ledger = Ledger(settings.ledger)
    entries = list(runs)
    if settings.endpoints:
        presets = read_presets(settings.endpoints)
        entries += [Endpoint(*preset, allowed=networks) for preset in presets]
    return Arena(
        Endpoints(entries),
        ledger,
        hashes,
        deadline_seconds=settings.deadline,
        max_battles=settings.most_battles,
    )


def load_runs(settings, runs, hashes, arena):
    """Load the models of listed_runs(), in the background: the page is open before PyTorch is
    loaded. A run that cannot be loaded is named, and leaves the list.

    hashes: gets name → hash of the weights.
    """
    # Here, because each loads PyTorch.
    from minigpt.evaluation.quantization_cost import load_for_generation
    from minigpt.inference.engine import Engine
    from minigpt.inference.scheduler import RequestScheduler, set_threads
    from minigpt.models.checkpoint import weights_hash

    host, began, largest = RequestScheduler({}, queue_limits(settings)), time.monotonic(), 0
    for folder, local in runs.items():
        try:
            trained = load_for_generation(folder, settings.device, settings.dtype, settings.kernels)
            hashes[local.name] = weights_hash(folder)[:16]
        except Exception as error:  # of any kind: the other runs are loaded all the same
            problem = str(error) if isinstance(error, UserError) else repr(error)
            print(f"passed over: {local.name}: {problem}", file=sys.stderr, flush=True)
            local.fail(problem)
            with contextlib.suppress(UserError):  # the admin was faster
                arena.endpoints.remove(local.name)
            continue
        engine = Engine(trained.model, trained.tokenizer.n_vocab, n_slots=settings.slots)
        size = sum(weight.numel() for weight in trained.model.parameters())
        if size > largest:  # as many threads as the largest model needs
            largest = size
            set_threads({local.name: engine})
        host.add(local.name, engine)
        ends = stop_ids(trained.tokenizer)
        local.start(LocalModel(host, trained.tokenizer, conversation_encoder(trained), ends))
    if hashes:
        print(f"{len(hashes)} runs loaded in {time.monotonic() - began:.0f} s", flush=True)


def queue_limits(settings):
    """The deadline of a side includes the time in the queue. The queue has room for all battles."""
    from minigpt.inference.scheduler import QueueLimits  # here: it loads PyTorch

    return QueueLimits(
        max_waiting=MAX_SIDES * settings.most_battles,
        queue_seconds=settings.deadline,
        total_seconds=max(QueueLimits.total_seconds, settings.deadline),
    )


def endpoint_caps(settings):
    """--deadline alone decides how long an answer may take, and how long a server may be silent."""
    return Caps(idle_seconds=settings.deadline, total_seconds=settings.deadline)


def conversation_encoder(trained):
    """The function from a conversation's turns to ids: the oldest turns go where it is too long."""
    kind, room = trained.prompt_format, trained.model.config.block_size
    return lambda turns: chat_ids(trained.tokenizer, kind, turns, room, truncate="oldest")


def welcome(settings, arena):
    """What is printed at the start."""
    names = arena.endpoints.names()
    lines = [f"{len(names)} models: {', '.join(names)}" if names else ENGLISH["no_models"]]
    everywhere = is_everywhere(settings.host)
    here = "localhost" if everywhere or settings.host == "127.0.0.1" else settings.host
    lines.append(f"open http://{address(here, settings.port)}; Ctrl-C stops it")
    if everywhere:
        others = address(lan_address(), settings.port)
        lines.append(f"others in this network open http://{others}")
    if not is_local(settings.host) and not settings.auth:
        lines.append(
            "WARNING: everyone who reaches this machine over the network can use the page; "
            "--auth=NAME:PASSWORD sets a password"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
    os._exit(0)  # at once: threads that wait for a model have nothing to close
