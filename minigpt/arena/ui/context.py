"""What all tabs of the page share: the arena, the visitors' sessions and limits, and the texts."""

import gradio as gr

from minigpt.arena.access.page_filter import COOKIE
from minigpt.arena.access.rate_limit import address_key
from minigpt.arena.access.sessions import Sessions
from minigpt.arena.i18n import CHINESE, ENGLISH, strings_for
from minigpt.arena.window.runs import RunFolders
from minigpt.common.errors import UserError

# Of the keys of strings in the browser. Gradio translates every text that is a key, and without it
# a run called "model" or the choice "step" would be one.
KEY_PREFIX = "minigpt_"
REFRESH_SECONDS = 0.12  # between two updates of a text that is being generated


class PageContext:
    """arena: Arena. prompts: the PresetPrompts. voters: Voters. limits: VisitorLimits. classroom:
    Classroom, if there is a roster: then only its pupils vote. run_folders: RunFolders of the Runs
    tab.

    A `request` is the gr.Request of an event.
    """

    def __init__(self, arena, prompts, voters, limits, classroom=None, run_folders=None):
        self.arena, self.prompts = arena, prompts
        self.groups = {prompt.text: prompt.group for prompt in prompts}
        self.voters, self.limits, self.classroom = voters, limits, classroom
        self.run_folders = run_folders or RunFolders()
        self.sessions = Sessions()
        english, chinese = map(_prefixed, (ENGLISH, CHINESE))
        names = {"zh-CN": chinese, "zh-TW": chinese}
        self.translations = gr.I18n(en=english, zh=chinese, **names)
        # Events that generate text share one queue; "minimal" shows the position in it.
        self.generation_queue = {
            "concurrency_limit": arena.max_battles,
            "concurrency_id": "generation",
            "show_progress": "minimal",
        }

    def i18n(self, key):
        """The label of a component: Gradio chooses the language in the browser."""
        return self.translations(KEY_PREFIX + key)

    def browser(self, request):
        """The id in the browser's cookie; None if it has no cookie of ours."""
        return self.voters.id_of(request.cookies.get(COOKIE))

    def voter(self, request):
        """The voter's id; None if there is none. With a roster it is that of the pupil as whom the
        browser has joined, otherwise the browser's."""
        browser = self.browser(request)
        return self.classroom.roster.voter(browser) if self.classroom else browser

    def required_voter(self, request):
        """The voter's id. UserError if there is none."""
        voter, strings = self.voter(request), strings_of(request)
        if voter is None:
            has_to_join = self.classroom and self.browser(request) is not None
            raise UserError(strings["join_first" if has_to_join else "no_cookie"])
        return voter

    def free_voter(self, request):
        """The required_voter() of a battle outside of rounds. UserError too if the voter has no
        vote left."""
        voter = self.required_voter(request)
        if self.classroom and self.classroom.quota_is_used_up(voter):
            raise UserError(strings_of(request)["quota_used"].format(n=self.classroom.quota))
        return voter

    def session(self, request):
        """The Session of the page that sent a request."""
        owner, is_known = self._session_owner(request), self.browser(request) is not None
        return self.sessions.get(owner, request.session_hash, continued=is_known)

    def check_rate(self, action, request):
        """UserError if a visitor asks or votes ("ask", "vote") too often."""
        owner, address = self._session_owner(request), client_address(request)
        if self.classroom and self.voter(request):
            address = None  # a class may share one, and each pupil is limited
        seconds = self.limits.wait(action, owner, address)
        if seconds:
            message = strings_of(request)["too_fast"]
            raise UserError(message.format(seconds=max(1, round(seconds))))

    def check_admin(self, admin, password, request):
        """UserError unless the password is that of `admin`, an AdminPassword."""
        browser, strings = self.browser(request), strings_of(request)
        admin.check(password, client_address(request), strings, browser)

    def leave(self, request: gr.Request):
        """A page was closed, or its connection was lost (a phone that sleeps): see Sessions."""
        self.sessions.leave(self._session_owner(request), request.session_hash)

    def _session_owner(self, request):
        """The voter, or the browser; without a cookie, all visitors of the address together."""
        return self.voter(request) or self.browser(request) or f"at {client_address(request)}"


def _prefixed(strings):
    return {KEY_PREFIX + key: text for key, text in strings.items()}


def strings_of(request):
    """The strings (minigpt.arena.i18n) in the language of the browser."""
    return strings_for(request.headers.get("accept-language"))


def preset_chips(label, texts, elem_id):
    """Preset prompts to click on: use_preset() puts one into a question box."""
    return gr.Dataset(
        components=[gr.Textbox(visible=False)],
        samples=[[text] for text in texts],
        type="values",
        label=label,
        samples_per_page=12,
        elem_id=elem_id,
    )


def use_preset(row):
    """The event that puts a preset prompt into a question box. row: of preset_chips()."""
    return row[0]


def battle_id(value):
    """The id of a battle in a hidden field of the page; 0, which no battle has, for anything that a
    client may send in its place."""
    return int(value) if isinstance(value, (int, float)) and 0 < value < 2**53 else 0


def client_address(request):
    """The key for rate limits of the address that sent a request."""
    return address_key(request.client.host if request.client else None)
