"""The arena: a page to talk to one model, or to let two to four answer side by side and vote.

    python sample_gradio.py                                    # every run in out/
    python sample_gradio.py --runs=out/pretrain,out/sft --endpoints=endpoints.csv
    python sample_gradio.py --host=0.0.0.0 --auth=class:SECRET --admin_password=OTHER

Models are local runs and teammates' servers alike; endpoints.csv lists servers, one a line after
the header name,base_url,model,api_key_env. Votes are kept in --ledger. The page needs no other
network: fonts and scripts come from here, in Chinese or English as the browser prefers.
"""

import contextlib
import csv
import hmac
import io
import json
import logging
import os
import secrets
import socket
import threading
import time
from html import escape, unescape
from pathlib import Path

from config.configurator import configure
from minigpt.common.errors import UserError, run

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before Gradio is imported

import gradio as gr
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from minigpt.arena import html
from minigpt.arena.arena import MAX_PROMPT_CHARS, MOST_SIDES, Arena, check_prompt
from minigpt.arena.battles import Shown
from minigpt.arena.endpoints import Endpoint, EndpointError, Endpoints, LocalRun, read_presets
from minigpt.arena.i18n import CHINESE, ENGLISH, words
from minigpt.arena.access.page_filter import COOKIE, PageFilter
from minigpt.arena.access.rate_limit import Backoff, RateLimit, address_key
from minigpt.arena.ratings import ratings, win_rates
from minigpt.arena.safe_http import DEFAULT as OWN_NETWORKS
from minigpt.arena.safe_http import Allowed, lan_address
from minigpt.arena.access.sessions import Sessions
from minigpt.arena.store import Ledger, jsonl, markdown, preference_pairs
from minigpt.arena.access.voters import Voters
from minigpt.common.credentials import read_secret
from minigpt.common.presets import read_prompts
from minigpt.common.spreadsheet import csv_row
from minigpt.common.urls import address, is_everywhere, is_local
from minigpt.inference import quantization
from minigpt.inference.engine import Engine
from minigpt.inference.scheduler import Host, Limits, set_threads
from minigpt.models import checkpoint
from minigpt.serving.allowed_hosts import AllowedHosts
from minigpt.serving.asgi import serve

REFRESH = 0.12  # seconds between two looks at what is being written
WATCH_SECONDS = 30.0  # between two looks at how the endpoints are
# Variables whose values an admin may send as a key to a server that they add on the page; not ours.
KEY_PREFIX = "MINIGPT_"
OWN_SECRETS = {"MINIGPT_AUTH", "MINIGPT_ADMIN_PASSWORD", "MINIGPT_API_KEY"}
# Enter ends the composing of a Chinese word, and must not send the half-made text.
HEAD = """<script>
for (const kind of ["keydown", "keypress"])
  document.addEventListener(kind, event => {
    if (event.key === "Enter" && (event.isComposing || event.keyCode === 229))
      event.stopImmediatePropagation();
  }, true);
</script>"""

log = logging.getLogger("minigpt")


class Settings:
    runs: list[str] = []  # folders of local runs; none: every run in out/
    endpoints: str = ""  # a .csv of servers: name,base_url,model,api_key_env
    host: str = "127.0.0.1"  # 0.0.0.0: whoever reaches this machine over the network
    port: int = 7860  # of the page
    allowed_hosts: list[str] = []  # further names under which browsers ask for the page; *: any
    auth: str = ""  # NAME:PASSWORD for the whole page; or the variable MINIGPT_AUTH, which other
    #                 users of this machine cannot see
    auth_file: str = ""  # a file whose only line is NAME:PASSWORD
    admin_password: str = ""  # lets its owner add and remove endpoints on the page; or the variable
    #                           MINIGPT_ADMIN_PASSWORD
    admin_password_file: str = ""  # a file whose only line is that password
    networks: list[str] = []  # further ones that endpoints may be in, such as 203.0.113.0/24
    ledger: str = "out/arena.sqlite"  # battles and votes
    examples: str = "examples.csv"  # preset prompts: prompt,format
    slots: int = 8  # texts that a local run writes at once
    deadline: float = 120.0  # seconds that a side may take
    most_battles: int = 32  # battles and answers at once; more wait, and see their place
    address_limit: int = 60  # questions, and votes, a minute from one address; more where a class
    #                          shares one


def main():
    settings = configure(Settings, shared="device dtype", doc=__doc__, quiet=True)
    read_secrets(settings)
    check(settings)
    allowed_hosts = AllowedHosts(settings.allowed_hosts, settings.host)
    ledger = Ledger(settings.ledger)
    entries, checkpoints = local_runs(settings)
    allowed = Allowed((*OWN_NETWORKS, *settings.networks))
    if settings.endpoints:
        entries += [Endpoint(*row, allowed=allowed) for row in read_presets(settings.endpoints)]
    arena = Arena(
        Endpoints(entries),
        ledger,
        checkpoints,
        deadline_seconds=settings.deadline,
        most=settings.most_battles,
    )
    prompts = read_prompts(settings.examples)
    voters = Voters.beside(settings.ledger)
    pace = Pace(settings.address_limit)
    page = Page(
        arena, prompts, settings.admin_password, allowed, settings.most_battles, voters, pace
    )
    threading.Thread(target=page.watch, daemon=True).start()
    app = PageFilter(make_app(page), voters, allowed_hosts, settings.auth)
    print(welcome(settings, arena), flush=True)
    serve(app, settings.host, settings.port)


def read_secrets(settings):
    """Take the passwords from their variables or files, where no flag has them."""
    for flag in ("auth", "admin_password"):
        secret = read_secret(settings, flag, f"MINIGPT_{flag.upper()}")
        settings.set(flag, secret or "", settings.origin(flag))


def check(settings):
    """UserError with all that is wrong with the settings."""
    problems = settings.below(slots=1, most_battles=1, deadline=1, address_limit=1)
    if settings.auth and ":" not in settings.auth:
        problems.append("--auth (MINIGPT_AUTH, --auth_file): expected NAME:PASSWORD")
    try:
        family, *_, place = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM
        )[0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
    except (OSError, OverflowError) as error:
        problems.append(
            f"--host={settings.host} --port={settings.port}: cannot listen there ({error}): "
            "another program may have the port; take another one, such as --port=7861"
        )
    if problems:
        raise UserError("\n".join(problems))


def local_runs(settings):
    """([LocalRun], name → hash of its weights) of the runs' folders."""
    folders = settings.runs or sorted(str(p) for p in Path("out").glob("*") if checkpoint.exists(p))
    engines, loaded, hashes = {}, {}, {}
    for name, folder in zip(checkpoint.model_names(folders), folders, strict=True):
        trained = quantization.load(folder, settings.device, settings.dtype)
        engines[name] = Engine(trained.model, trained.tokenizer.n_vocab, n_slots=settings.slots)
        loaded[name] = trained
        hashes[name] = checkpoint.weights_hash(folder)[:16]
    set_threads(engines)
    # A side's deadline counts the waiting, too; nobody is refused who may battle.
    limits = Limits(
        max_waiting=MOST_SIDES * settings.most_battles,
        queue_seconds=settings.deadline,
        total_seconds=max(Limits.total_seconds, settings.deadline),
    )
    host = Host(engines, limits) if engines else None
    entries = [
        LocalRun(host, name, each.tokenizer, each.prompt_format, each.model.config.block_size)
        for name, each in loaded.items()
    ]
    return entries, hashes


def welcome(settings, arena):
    """What its owner reads."""
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
            "WARNING: everyone who reaches this machine over the network can use the page: "
            "--auth=NAME:PASSWORD lets in only those who know it"
        )
    return "\n".join(lines)


# -- the app under the page ------------------------------------------------------------------------


def make_app(page):
    """A FastAPI app: the page and its downloads. PageFilter decides what reaches it."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    ledger = page.arena.ledger
    for name, kind, parts in (
        ("battles.jsonl", "application/jsonl", lambda: jsonl(ledger.each_battle())),
        ("battles.md", "text/markdown", lambda: markdown(ledger.each_battle())),
        ("preferences.jsonl", "application/jsonl", lambda: _pairs(ledger.each_battle())),
        ("leaderboard.csv", "text/csv", lambda: [_leaderboard_csv(ledger)]),
    ):
        app.add_api_route(f"/download/{name}", _download(name, kind, parts), methods=["GET"])
    blocks = page.build()
    blocks.queue(default_concurrency_limit=64, max_size=256, api_open=False)
    # Each chat holds a thread while it waits for the next piece; votes and Stop want theirs.
    blocks.max_threads = 40 + page.writing["concurrency_limit"]
    # launch() sets this, mount_gradio_app() does not; without it Gradio takes the path of any file
    # in what a visitor sends, and copies the file to where it can be read.
    blocks.has_launched = True
    return gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        i18n=page.i18n,
        theme=gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
        css=html.CSS,
        head=HEAD,
        ssr_mode=False,
        footer_links=[],
        run_history=False,  # or the browser keeps what was asked, for whoever sits there next
        show_error=False,
    )


def _download(name, kind, parts):
    """A route that sends a file as it is made: parts() yields its texts."""

    def answer():
        headers = {"Content-Disposition": f'attachment; filename="{name}"'}
        return StreamingResponse(parts(), media_type=f"{kind}; charset=utf-8", headers=headers)

    return answer


def _pairs(battles):
    for pair in preference_pairs(battles):
        yield json.dumps(pair, ensure_ascii=False) + "\n"


def _leaderboard_csv(ledger):
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["votes", "model", "rating", "low", "high", "battles"])
    for kind, decided in (("blind", "blind"), ("open", "open"), ("all", None)):
        rows = ratings(ledger.decided(decided), seed=0)
        writer.writerows(csv_row([kind, *rating]) for rating in rows)
    return "\ufeff" + text.getvalue()  # the mark by which spreadsheets know UTF-8


# -- the page --------------------------------------------------------------------------------------


class Pace:
    """How fast one voter, and all of one address, may ask and vote."""

    def __init__(self, address_limit):
        # A person reads two answers before a vote, so a voter's pace is low.
        self._voters = dict(ask=RateLimit(10, 20), vote=RateLimit(5, 12))
        bursts = max(1, address_limit // 2)
        self._addresses = {kind: RateLimit(bursts, address_limit) for kind in self._voters}

    def wait(self, kind, voter, address):
        """Count one "ask" or "vote"; returns 0.0, or the seconds to wait (then it is refused)."""
        return self._voters[kind].wait(voter) or self._addresses[kind].wait(address)


class Page:
    """Builds the page, and answers what is done on it."""

    def __init__(self, arena, prompts, admin_password, allowed, most, voters, pace):
        self.arena, self.prompts, self.voters, self.pace = arena, prompts, voters, pace
        # What writes shares one limit; show_progress tells the place in the queue.
        self.writing = dict(
            concurrency_limit=most, concurrency_id="writing", show_progress="minimal"
        )
        self.admin_password, self.allowed = admin_password, allowed
        self.health = {}  # name → the last Health
        self.sessions = Sessions()
        self.admin_failures = Backoff()
        self.i18n = gr.I18n(en=ENGLISH, zh=CHINESE, **{"zh-CN": CHINESE, "zh-TW": CHINESE})

    def build(self):
        """The gr.Blocks."""
        t = self.i18n
        with gr.Blocks(title="MiniGPT Arena", analytics_enabled=False, fill_width=True) as blocks:
            with gr.Tabs():
                with gr.Tab(t("chat"), id="chat") as chat:
                    self._build_chat(t)
                with gr.Tab(t("arena"), id="arena") as arena:
                    self._build_arena(t)
                with gr.Tab(t("leaderboard"), id="leaderboard") as tab:
                    self._build_leaderboard(t, tab)
                with gr.Tab(t("history"), id="history") as tab:
                    self._build_history(t, tab)
                with gr.Tab(t("endpoints"), id="endpoints") as tab:
                    self._build_endpoints(t, tab)
            models = [self.chat_model, self.open_models]
            blocks.load(self.names, models, models, show_progress="hidden")
            for tab in (chat, arena):  # endpoints may have come or gone, from another page
                tab.select(self.names, models, models, show_progress="hidden")
            blocks.unload(self.leave)
        return blocks

    def watch(self):
        """Ask every endpoint, for ever, how it is and which settings it takes."""
        while True:
            for _ in self._checked():
                pass
            time.sleep(WATCH_SECONDS)

    def _checked(self):
        for name in self.arena.endpoints.names():
            with contextlib.suppress(UserError):  # it was removed meanwhile
                self.health[name] = self.arena.endpoints.get(name).probe()
            yield name

    def voter(self, request):
        """The voter's id, None for a browser without our cookie."""
        return self.voters.id_of(request.cookies.get(COOKIE))

    def owner(self, request):
        """Whose a session is: the voter's, without a cookie all of the address."""
        return self.voter(request) or f"at {client_address(request)}"

    def session(self, request):
        """The Session of a request."""
        return self.sessions.get(self.owner(request), request.session_hash)

    def check_pace(self, kind, request, said):
        """UserError where a visitor asks or votes too fast."""
        seconds = self.pace.wait(kind, self.owner(request), client_address(request))
        if seconds:
            raise UserError(said["too_fast"].format(seconds=max(1, round(seconds))))

    def leave(self, request: gr.Request):
        """The page was closed: nobody reads what is being written. Or its connection was lost for a
        moment (a phone that sleeps): the session stays, so what is written can be voted on."""
        session = self.sessions.find(self.owner(request), request.session_hash)
        if session:
            session.stop()

    def names(self, chosen=None, several=()):
        """The models to choose from, for the chat and for open battles; what is chosen stays."""
        names = self.arena.endpoints.names()
        if chosen not in names:
            chosen = names[0] if names else None
        several = [name for name in several or () if name in names]
        return gr.update(choices=names, value=chosen), gr.update(choices=names, value=several)

    def _settings(self, t):
        """The sliders that chat and arena each have; returns them as read_settings() takes them."""
        with gr.Accordion(t("settings"), open=False):
            temperature = gr.Slider(0, 2, 0.7, step=0.05, label=t("temperature"))
            top_k = gr.Slider(0, 200, 50, step=1, label=t("top_k"))
            top_p = gr.Slider(0.05, 1, 1, step=0.05, label=t("top_p"))
            penalty = gr.Slider(0.8, 2, 1.05, step=0.05, label=t("repetition_penalty"))
            tokens = gr.Slider(1, 1024, 200, step=1, label=t("max_tokens"))
            seed = gr.Textbox("", label=t("seed"), max_lines=1)
        return [temperature, top_k, top_p, penalty, tokens, seed]

    # -- chat --

    def _build_chat(self, t):
        with gr.Row():
            with gr.Column(scale=1, min_width=240):
                self.chat_model = gr.Dropdown([], label=t("model"), elem_id="chat-model")
                presets = gr.Dropdown(self.prompts, value=None, label=t("presets"))
                sliders = self._settings(t)
            with gr.Column(scale=3, min_width=320):
                talk = gr.Chatbot(
                    elem_id="talk",
                    show_label=False,
                    height=460,
                    render_markdown=False,  # what a model writes is shown as text: see turn()
                    latex_delimiters=[],
                    sanitize_html=True,
                    editable="user",
                    buttons=["copy"],
                    allow_tags=False,
                )
                status = gr.HTML("", elem_id="chat-status")
                with gr.Row():
                    ask = gr.Textbox(
                        show_label=False,
                        placeholder=t("ask"),
                        max_length=MAX_PROMPT_CHARS,
                        lines=1,
                        max_lines=8,
                        scale=5,
                        elem_id="chat-ask",
                    )
                with gr.Row():
                    send = gr.Button(t("send"), variant="primary", elem_id="chat-send")
                    stop = gr.Button(t("stop"), variant="stop", elem_id="chat-stop")
                    again = gr.Button(t("regenerate"), elem_id="chat-again")
                    clear = gr.Button(t("clear"), elem_id="chat-clear")
        told = [self.chat_model, *sliders]
        shown = [talk, ask, status]
        options = dict(show_progress_on=status, **self.writing)
        # The conversation is the session's: what the browser holds of it is never read.
        gr.on([send.click, ask.submit], self.say, [ask, *told], shown, **options)
        again.click(self.say_again, told, shown, **options)
        talk.edit(self.say_edited, told, shown, **options)
        stop.click(self.stop_chat, queue=False, show_progress="hidden")
        clear.click(self.clear_chat, None, shown, queue=False, show_progress="hidden")
        presets.input(lambda prompt: prompt, presets, ask, show_progress="hidden")

    def say(self, text, model, request: gr.Request, *sliders):
        """Send what was typed."""
        session = self.session(request)
        if not text.strip():
            yield drawn(session.talk), text, ""
            return
        yield from self._answer([*session.talk, turn("user", text)], model, sliders, request)

    def say_again(self, model, request: gr.Request, *sliders):
        """Have the last question answered anew."""
        talk = self.session(request).talk
        asked = [i for i, each in enumerate(talk) if each["role"] == "user"]
        if not asked:
            yield drawn(talk), "", ""
            return
        yield from self._answer(talk[: asked[-1] + 1], model, sliders, request)

    def say_edited(self, model, request: gr.Request, event: gr.EditData, *sliders):
        """A question was changed: what followed it goes, and it is answered anew."""
        place = event.index if isinstance(event.index, int) else event.index[0]
        kept = self.session(request).talk[: max(0, place)]
        edited = turn("user", unescape(str(event.value)))
        yield from self._answer([*kept, edited], model, sliders, request)

    def _answer(self, talk, model, sliders, request):
        """The model's answer to a conversation, as it is written."""
        said = words(request.headers.get("accept-language"))
        session = self.session(request)
        if session.side:
            session.side.close()
        try:
            check_prompt(talk[-1]["content"])
            self.check_pace("ask", request, said)
            settings = read_settings(sliders, said)
            side = session.side = self.arena.endpoints.get(model or "").side()
        except UserError as error:
            yield drawn(session.talk), gr.skip(), html.note(str(error))
            return
        session.remember(talk)
        settings = {name: value for name, value in settings.items() if name in side.takes}
        answer, shown, note = Shown(20_000), time.monotonic(), ""
        began, n_pieces = time.monotonic(), 0
        yield drawn(talk, "…"), "", html.note(said["waiting"])
        try:
            for piece in side.stream(session.talk, settings):
                n_pieces += 1
                answer.push(piece)
                if answer.overflowed:
                    note = said["too_long"]
                    break
                if time.monotonic() - shown > REFRESH:
                    shown = time.monotonic()
                    # What is being typed meanwhile stays.
                    yield drawn(talk, answer.text), gr.skip(), html.note(said["writing"])
        except EndpointError as error:
            note = error.message
        finally:
            side.close()
        if session.side is not side:  # it was cleared, or something else was asked
            return
        session.remember([*talk, turn("assistant", answer.text)])
        seconds = time.monotonic() - began
        written = (side.usage or {}).get("completion_tokens") or n_pieces
        parts = [note, said["speed"].format(rate=f"{written / max(seconds, 1e-3):.0f}")]
        parts.append(said["took"].format(seconds=f"{seconds:.1f} s"))
        yield (
            drawn(talk, answer.text or "…"),
            gr.skip(),
            html.note(" · ".join(filter(None, parts))),
        )

    def stop_chat(self, request: gr.Request):
        """Close what is being read: the answer ends where it is."""
        session = self.session(request)
        if session.side:
            session.side.close()

    def clear_chat(self, request: gr.Request):
        """Begin anew."""
        self.stop_chat(request)
        session = self.session(request)
        session.side = None  # or the answer under way would come back
        session.talk = []
        return [], "", ""

    # -- arena --

    def _build_arena(self, t):
        with gr.Row():
            mode = gr.Radio(
                [(t("blind_battle"), "blind"), (t("open_battle"), "open")],
                value="blind",
                label=t("mode"),
                elem_id="mode",
            )
            pairing = gr.Radio(
                [(t("pair_random"), "random"), (t("pair_least"), "least")],
                value="random",
                label=t("pairing"),
            )
            self.open_models = gr.CheckboxGroup(
                [], label=t("models"), visible=False, elem_id="open-models"
            )
        with gr.Row():
            ask = gr.Textbox(
                show_label=False,
                placeholder=t("ask"),
                max_length=MAX_PROMPT_CHARS,
                max_lines=8,
                scale=5,
                elem_id="arena-ask",
            )
            presets = gr.Dropdown(self.prompts, value=None, label=t("presets"), scale=2)
        with gr.Row():
            send = gr.Button(t("send"), variant="primary", elem_id="arena-send")
            stop = gr.Button(t("stop"), variant="stop", elem_id="arena-stop")
            again = gr.Button(t("regenerate"), elem_id="arena-again")
        with gr.Row(equal_height=True):
            sides = [
                gr.HTML("", visible=i < 2, elem_id=f"side-{i}", elem_classes="side")
                for i in range(MOST_SIDES)
            ]
        status = gr.HTML("", elem_id="arena-status")
        with gr.Row():
            votes = [
                gr.Button(f"{html.SIDES[i]}", visible=False, elem_id=f"vote-{i}")
                for i in range(MOST_SIDES)
            ]
            tie = gr.Button(t("tie"), visible=False, elem_id="vote-tie")
            none = gr.Button(t("none_2"), visible=False, elem_id="vote-none")
        sliders = self._settings(t)
        shown = [*sides, status, *votes, tie, none]
        told = [ask, mode, pairing, self.open_models, *sliders]
        options = dict(show_progress_on=status, **self.writing)
        gr.on([send.click, ask.submit], self.battle, told, shown, **options)
        again.click(self.battle, told, shown, **options)
        stop.click(self.stop_battle, queue=False, show_progress="hidden")
        mode.change(
            lambda mode: (gr.update(visible=mode == "blind"), gr.update(visible=mode == "open")),
            mode,
            [pairing, self.open_models],
            show_progress="hidden",
        )
        presets.input(lambda prompt: prompt, presets, ask, show_progress="hidden")
        for button, choice in [*zip(votes, range(MOST_SIDES), strict=True), (tie, "tie")]:
            button.click(self._voting(choice), None, shown, show_progress="hidden")
        none.click(self._voting("none"), None, shown, show_progress="hidden")

    def battle(self, prompt, mode, pairing, chosen, request: gr.Request, *sliders):
        """Let the sides answer, showing them as they write, and put the battle on record."""
        said, session = words(request.headers.get("accept-language")), self.session(request)
        voter = self.voter(request)
        try:
            if voter is None:
                raise UserError(said["no_cookie"])
            settings = read_settings(sliders, said)
            check_prompt(prompt)
            self.check_pace("ask", request, said)
            names = chosen if mode == "open" else None
            bout = self.arena.begin(voter, prompt, settings, names, pairing)
        except UserError as error:
            yield _status_alone(str(error))
            return
        session.bout = bout
        try:
            while not bout.battle.ended:
                yield self._drawn(said, bout)
                bout.battle.wait(REFRESH)
            self.arena.record(bout)
            drawn = self._drawn(said, bout)
        except UserError as error:  # the ledger cannot be written
            drawn = self._drawn(said, bout)
            drawn[MOST_SIDES] = html.note(str(error))
        finally:
            bout.battle.stop()  # where the page was left
        yield drawn

    def stop_battle(self, request: gr.Request):
        """End all sides where they are."""
        bout = self.session(request).bout
        if bout:
            bout.battle.stop()

    def _voting(self, choice):
        def vote(request: gr.Request):
            said = words(request.headers.get("accept-language"))
            bout = self.session(request).bout
            if bout is None:
                return _status_alone(said["no_battle"])
            try:
                self.check_pace("vote", request, said)
                self.arena.vote(bout, choice)
            except UserError as error:
                drawn = self._drawn(said, bout)
                drawn[MOST_SIDES] = html.note(str(error))
                return drawn
            return self._drawn(said, bout)

        return vote

    def _drawn(self, said, bout):
        """Updates for the sides' cards, the status and the buttons."""
        states, told = bout.battle.snapshot(), bout.told
        n, ended = len(states), bout.number is not None
        drawn = []
        for place in range(MOST_SIDES):
            if place >= n:
                drawn.append(gr.update(value="", visible=False))
                continue
            name = bout.names[place] if told else None
            is_chosen, show_facts = bout.choice == place, told and ended
            card = html.side_card(said, states[place], place, name, is_chosen, show_facts)
            drawn.append(gr.update(value=card, visible=True))
        drawn.append(html.note(self._status(said, bout, ended)))
        voting = ended and bout.votable
        # The vote on a blind battle is final, since it shows the names.
        can_vote = bout.kind == "open" or bout.choice is None
        for place in range(MOST_SIDES):
            label = said["best"].format(side=html.SIDES[place])
            kind = "primary" if bout.choice == place else "secondary"
            drawn.append(
                gr.update(
                    value=label,
                    visible=voting and place < n,
                    variant=kind,
                    interactive=can_vote,
                )
            )
        kinds = ["primary" if bout.choice == each else "secondary" for each in ("tie", "none")]
        drawn.append(gr.update(visible=voting and n == 2, variant=kinds[0], interactive=can_vote))
        none = said["none_2"] if n == 2 else said["none_n"]
        drawn.append(gr.update(value=none, visible=voting, variant=kinds[1], interactive=can_vote))
        return drawn

    def _status(self, said, bout, ended):
        parts = []
        if bout.battle.left_out:
            parts.append(said["left_out"].format(names=", ".join(bout.battle.left_out)))
        if ended and bout.choice is not None:
            parts.append(said["voted" if bout.kind == "blind" else "voted_open"])
        elif ended:
            parts.append(said["vote_now"] if bout.votable else said["no_vote"])
        return " ".join(parts)

    # -- leaderboard --

    def _build_leaderboard(self, t, tab):
        choices = [(t("only_blind"), "blind"), (t("only_open"), "open"), (t("both_kinds"), "both")]
        kind = gr.Radio(choices, value="blind", show_label=False, elem_id="board-kind")
        board = gr.HTML("", elem_id="board")
        gr.HTML(_links("leaderboard.csv"))
        # always_last: what is chosen while an answer is under way counts, not what was before.
        options = dict(show_progress="hidden", trigger_mode="always_last")
        gr.on([tab.select, kind.change], self.leaderboard, kind, board, **options)

    def leaderboard(self, kind, request: gr.Request):
        """Ratings and win rates as they stand."""
        said = words(request.headers.get("accept-language"))
        decided = self.arena.ledger.decided(None if kind == "both" else kind)
        board = html.leaderboard(said, ratings(decided, seed=0))
        return board + html.heat_map(said, *win_rates(decided))

    # -- history --

    def _build_history(self, t, tab):
        with gr.Row():
            text = gr.Textbox("", label=t("search"), elem_id="search", scale=3)
            model = gr.Dropdown([], label=t("model"), scale=1, allow_custom_value=True)
        found = gr.HTML("", elem_id="found")
        gr.HTML(_links("battles.jsonl", "battles.md", "preferences.jsonl"))
        heard = [tab.select, text.submit, text.blur, model.input]
        options = dict(show_progress="hidden", trigger_mode="always_last")
        gr.on(heard, self.history, [text, model], found, **options)
        tab.select(
            lambda: gr.update(choices=["", *self.arena.endpoints.names()]),
            None,
            model,
            show_progress="hidden",
        )

    def history(self, text, model, request: gr.Request):
        """The latest battles that match."""
        said = words(request.headers.get("accept-language"))
        return html.history(said, self.arena.ledger.battles(text or "", model or "", limit=50))

    # -- endpoints --

    def _build_endpoints(self, t, tab):
        table = gr.HTML("", elem_id="endpoint-table")
        check_now = gr.Button(t("check"), elem_id="check")
        with gr.Accordion(t("admin"), open=False):
            if not self.admin_password:
                gr.Markdown(t("admin_off"))
            else:
                self._build_admin(t, table)
        tab.select(self.endpoint_table, None, table, show_progress="hidden")
        check_now.click(self.check_endpoints, None, table, show_progress="minimal")

    def _build_admin(self, t, table):
        password = gr.Textbox(label=t("password"), type="password", elem_id="admin-password")
        with gr.Row():
            name = gr.Textbox(label=t("name"), elem_id="endpoint-name")
            url = gr.Textbox(label=t("base_url"), elem_id="endpoint-url")
            model = gr.Textbox(label=t("remote_model"))
            key = gr.Textbox(label=t("api_key_env"))
        with gr.Row():
            add = gr.Button(t("add"), variant="primary", elem_id="endpoint-add")
            remove = gr.Button(t("remove"), variant="stop", elem_id="endpoint-remove")
        told = gr.HTML("", elem_id="endpoint-told")
        models = [self.chat_model, self.open_models]
        shown = [told, table, *models]
        words_of_it = [*models, password, name, url, model, key]
        add.click(self.add_endpoint, words_of_it, shown, show_progress="hidden")
        row = [*models, password, name]
        remove.click(self.remove_endpoint, row, shown, show_progress="hidden")

    def endpoint_table(self, request: gr.Request):
        """What is known of every endpoint."""
        said, endpoints = words(request.headers.get("accept-language")), self.arena.endpoints
        entries = [endpoints.get(name) for name in endpoints.names()]
        rows = [(e.name, getattr(e, "base_url", None), self.health.get(e.name)) for e in entries]
        return html.endpoints(said, rows)

    def check_endpoints(self, request: gr.Request):
        """Ask each how it is, one after the other."""
        for _ in self._checked():
            yield self.endpoint_table(request)

    def add_endpoint(self, chosen, several, password, name, url, model, key, request: gr.Request):
        """Put a server on the list."""
        row = (name.strip(), url.strip(), model.strip() or None, key.strip() or None)

        def change():
            if row[3] is not None and not may_be_sent(row[3]):
                raise UserError(words(request.headers.get("accept-language"))["key_variable"])
            entry = Endpoint(*row, allowed=self.allowed)
            self.arena.endpoints.add(entry)
            self.health[entry.name] = entry.probe()

        told = self._changed("added", password, name, change, request)
        return *told, *self.names(chosen, several)

    def remove_endpoint(self, chosen, several, password, name, request: gr.Request):
        """Take one off the list."""

        def change():
            self.arena.endpoints.remove(name.strip())

        told = self._changed("removed", password, name, change, request)
        return *told, *self.names(chosen, several)

    def _changed(self, done, password, name, change, request):
        """Change the list for whoever knows the password: what to tell, and the table."""
        said = words(request.headers.get("accept-language"))
        try:
            self._check_admin(password, request, said)
            change()
            message = said[done].format(name=name.strip())
        except UserError as error:
            message = str(error)
        return html.note(message), self.endpoint_table(request)

    def _check_admin(self, password, request, said):
        """UserError for a wrong password, and while an address has to wait after several."""
        host = client_address(request)
        wait = self.admin_failures.wait(host)
        if wait:
            raise UserError(said["wrong_passwords"].format(seconds=max(1, round(wait))))
        if not hmac.compare_digest(password.encode(), self.admin_password.encode()):
            self.admin_failures.failed(host)
            log.warning("wrong admin password from %s", host)
            raise UserError(said["wrong_password"])
        self.admin_failures.succeeded(host)


def may_be_sent(variable):
    """Whether the value of an environment variable may go to a server that the page adds."""
    return variable.startswith(KEY_PREFIX) and variable not in OWN_SECRETS


def _status_alone(text):
    """Updates for the arena, as Page._drawn() has them, that change the status alone."""
    return [gr.skip()] * MOST_SIDES + [html.note(text)] + [gr.skip()] * (MOST_SIDES + 2)


def read_settings(sliders, said):
    """The sliders' values by name; UserError for a seed that is no number of 64 bits."""
    temperature, top_k, top_p, penalty, tokens, seed = sliders
    try:
        number = int(seed) if str(seed or "").strip() else secrets.randbits(31)
        if not -(2**63) <= number < 2**63:
            raise ValueError
    except ValueError:
        raise UserError(said["bad_seed"]) from None
    return dict(
        temperature=temperature,
        top_k=int(top_k),
        top_p=top_p,
        repetition_penalty=penalty,
        max_tokens=int(tokens),
        seed=number,
    )


def turn(role, text):
    """A turn of a conversation."""
    return {"role": role, "content": text}


def drawn(talk, answer=None):
    """A conversation, and the answer that is being written, as gr.Chatbot takes them: it draws its
    value as HTML, without Markdown too, so the text is escaped."""
    turns = talk if answer is None else [*talk, turn("assistant", answer)]
    return [turn(each["role"], escape(each["content"], quote=False)) for each in turns]


def client_address(request):
    """The key of the address that a request comes from."""
    return address_key(request.client.host if request.client else None)


def _links(*names):
    """Links to downloads."""
    links = (f'<a href="download/{name}" download>{name}</a>' for name in names)
    return f'<div class="quiet">↓ {" · ".join(links)}</div>'


if __name__ == "__main__":
    run(main)
    os._exit(0)  # at once: threads that wait for a model hold nothing that has to be closed
