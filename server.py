"""Serve trained runs over HTTP: OpenAI's API for any client, and plain text for people.

    python server.py --out_dir=out/sft
    python server.py --out_dir=out/a,out/b --port=8000        # several runs, each a model by name
    python server.py --out_dir=out/sft --host=0.0.0.0 --api_key=SECRET     # for the network

    curl -N "localhost:5000/generate?prompt=黄河发源于哪里？"
    OpenAI(base_url="http://localhost:5000/v1", api_key="none")            # the openai client

GET / says how to use it, /openapi.json in full. Ctrl-C or SIGTERM: no new requests; those that run
are finished first, and a second one ends at once.
"""

import logging
import signal
import threading
import time
from pathlib import Path
from typing import Literal

from config.configurator import configure
from minigpt.common.errors import UserError, preflight, run
from minigpt.inference.request import Request


class Settings:
    # -- what is served --
    out_dir: list[str] = ["out/sft"]  # the run's folder, or several
    host: str = "127.0.0.1"  # this machine only; 0.0.0.0: everyone who reaches it over the network
    port: int = 5000  # 0: any free one
    api_key: str | None = None  # clients must send it; or the variable MINIGPT_API_KEY, which the
    #                             list of this machine's processes does not show
    api_key_file: str | None = None  # a file whose only line is the key
    allowed_hosts: list[str] = []  # further names under which clients ask for this server; *: any
    cors_origins: list[str] = []  # web pages that may call this server: their origins, or *

    threads: int = 0  # of the processor, for the models; 0: automatic, leaving some for HTTP

    draft_tokens: int = 0  # guess so many tokens by prompt lookup and read them in one pass, over
    #                        all answers at once: faster where few people ask; 0: none

    # -- defaults of a request --
    temperature: float = 0.1  # as sample.py: small models wander at 1, OpenAI's default
    top_k: int = 20  # 0: all tokens
    top_p: float = 1.0  # 1: all tokens
    repetition_penalty: float = 1.0  # 1: none
    default_max_tokens: int = 225  # tokens of an answer
    truncate: Literal["none", "oldest"] = "none"  # oldest: a conversation that is too long loses
    #                                               its oldest turns; none: it is refused

    # -- limits --
    slots: int = 8  # requests that a model generates for at once
    max_waiting: int = 64  # requests that wait for a slot; further ones get status 429
    queue_seconds: float = 60.0  # that a request may wait for a slot
    total_seconds: float = 600.0  # that a request may take in all
    max_body_kb: int = 1024  # of a request
    max_prompt_tokens: int | None = None  # none: as many as the model sees at once
    max_tokens: int = 4096  # the longest answer that a request may ask for
    max_n: int = 8  # answers to one prompt
    drain_seconds: float = 30.0  # how long running requests may go on after Ctrl-C

    # -- the log --
    log_text: bool = False  # true: log prompts and answers


def read_settings():
    """The settings, checked."""
    settings = configure(Settings, shared="device dtype kernels", doc=__doc__, quiet=True)
    problems = settings.below(
        **dict(slots=1, max_body_kb=1, max_n=1),
        **dict(max_prompt_tokens=1, max_tokens=1, default_max_tokens=1),
        **dict(threads=0, max_waiting=0, queue_seconds=0, total_seconds=0, drain_seconds=0),
        **dict(draft_tokens=0),
    )
    if not 0 <= settings.port < 65536:
        problems.append(f"port={settings.port}: expected 0 to 65535")
    if settings.default_max_tokens > settings.max_tokens:
        problems.append(f"default_max_tokens={settings.default_max_tokens}: is above max_tokens")
    problems += Request([0], **sampling_of(settings)).problems()
    if not settings.out_dir:
        problems.append("--out_dir: expected a run's folder, or several with commas between")
    if problems:
        raise UserError("\n".join(problems))
    return settings


def sampling_of(settings):
    """The sampling settings of a request that names none: name → value."""
    sampling = ("temperature", "top_k", "top_p", "repetition_penalty")
    return {name: getattr(settings, name) for name in sampling}


if __name__ == "__main__":
    preflight(read_settings)  # --help and mistakes, before the imports below, which take seconds

import torch

from minigpt.common.credentials import read_secret
from minigpt.common.urls import address, is_everywhere, is_key, is_local
from minigpt.evaluation.quantization_cost import load_for_generation
from minigpt.inference.engine import Engine
from minigpt.inference.scheduler import QueueLimits, RequestScheduler, set_threads
from minigpt.models import checkpoint
from minigpt.models.folders import model_names
from minigpt.openai.request_reader import RequestLimits
from minigpt.openai.safe_http import lan_address
from minigpt.serving.allowed_hosts import AllowedHosts
from minigpt.serving.app import make_app
from minigpt.serving.service import Options, Served, Service
from minigpt.serving.wsgi import flush, listen
from model import GPT, GPTConfig


class Stopped(BaseException):
    """Ctrl-C or SIGTERM."""


def main():
    settings = read_settings()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    options, folders = options_of(settings), settings.out_dir
    if settings.api_key is not None:
        settings.set("api_key", "(not shown)", settings.origin("api_key"))
    print(settings.describe(), flush=True)
    for folder in folders:
        checkpoint.read_meta(folder)  # a wrong folder is reported before anything starts
    service = Service(options)
    threads = settings.slots * len(folders) + settings.max_waiting + 8
    body_bytes = options.limits.body_bytes
    server = listen(make_app(service), settings.host, settings.port, threads, body_bytes)
    threading.Thread(target=server.run, daemon=True).start()
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, stop)
        service.open(*load(settings, folders))
        print(welcome(settings, service, server.effective_port), flush=True)
        while True:
            time.sleep(3600)
    except Stopped:
        drain(settings, service, server)


def stop(number, frame):
    """The signal handler; the second signal finds the system's own again."""
    signal.signal(number, signal.SIG_DFL)
    raise Stopped


def options_of(settings):
    """The settings as the API's Options; UserError for a key or a host name that cannot be."""
    limits = RequestLimits(
        settings.max_body_kb * 1024,
        settings.max_prompt_tokens,
        settings.max_tokens,
        settings.default_max_tokens,
        settings.max_n,
    )
    return Options(
        api_key=key_of(settings),
        cors_origins=tuple(settings.cors_origins),
        allowed_hosts=AllowedHosts(settings.allowed_hosts, settings.host),
        log_text=settings.log_text,
        truncate=settings.truncate,
        limits=limits,
        defaults=sampling_of(settings),
    )


def key_of(settings):
    """The key that clients must send, or None."""
    key = read_secret(settings, "api_key", "MINIGPT_API_KEY")
    if key and not is_key(key):
        raise UserError("the key: expected ASCII letters, digits and signs, without spaces")
    return key


def load(settings, folders):
    """(name → Served, the RequestScheduler of their engines)."""
    models, engines = {}, {}
    for name, folder in zip(model_names(folders), folders, strict=True):
        trained = load_for_generation(folder, settings.device, settings.dtype, settings.kernels)
        engines[name] = Engine(
            trained.model,
            trained.tokenizer.n_vocab,
            n_slots=settings.slots,
            draft_tokens=settings.draft_tokens,
        )
        models[name] = Served(
            name,
            trained.tokenizer,
            trained.prompt_format,
            trained.model.config.block_size,
            n_params=n_params(trained.meta),
            step=trained.meta["step"],
            created=int((Path(folder) / "config.json").stat().st_mtime),
        )
    set_threads(engines, settings.threads)
    limits = QueueLimits(settings.max_waiting, settings.queue_seconds, settings.total_seconds)
    return models, RequestScheduler(engines, limits)


def n_params(meta):
    """The number of parameters of a run, whatever format they are loaded in."""
    with torch.device("meta"):  # shapes alone
        return GPT(GPTConfig(**meta["model"])).n_params()


def welcome(settings, service, port):
    """The welcome text: how to reach the server, and who else can."""
    key = ' -H "Authorization: Bearer YOUR_KEY"' if service.options.api_key else ""
    example = "prompt=中国的首都是&model=" + next(iter(service.models))

    def reach(host):
        return f'curl -N{key} "http://{address(host, port)}/generate?{example}"'

    lines = [f"serving {', '.join(service.models)}"]
    host = settings.host
    if is_everywhere(host):
        host = lan_address()
        lines += [f"  here:       {reach('localhost')}", f"  teammates:  {reach(host)}"]
    else:
        lines += [f"  {reach(host)}"]
    lines.append(f"  any OpenAI client: base_url http://{address(host, port)}/v1")
    if not is_local(settings.host) and service.options.api_key is None:
        lines.append(
            "WARNING: no key is set: everyone who reaches this machine over the network can use "
            "the models;\n         --api_key=…, the variable MINIGPT_API_KEY or --api_key_file=… "
            "lets in only those who have it"
        )
    return "\n".join([*lines, "Ctrl-C stops it"])


def drain(settings, service, server):
    """Finish running requests, send their answers, and release the port."""
    if service.host is not None:
        running = sum(service.host.counts())
        print(f"stopping; {running} requests may finish, at most {settings.drain_seconds:g} s")
        service.host.drain(settings.drain_seconds)
    flush(server)


if __name__ == "__main__":
    run(main)
