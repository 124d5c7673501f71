"""The Class tab, with --roster alone: joining by a code, rounds, and the teacher's tools."""

import gradio as gr

from minigpt.arena import html
from minigpt.arena.arena import MAX_PROMPT_CHARS
from minigpt.arena.classroom import tables
from minigpt.arena.classroom.rounds import MAX_PROMPTS
from minigpt.arena.i18n import error_text
from minigpt.arena.ratings import vote_choices
from minigpt.arena.ui.context import battle_id, client_address, strings_of
from minigpt.arena.ui.sampling import SLIDERS, sampling_settings
from minigpt.common.errors import UserError

POLL_SECONDS = 5.0  # between two looks of an open page at the round
CHOICES = vote_choices(range(2))
MAX_CODE_CHARS = 100


class ClassroomTab:
    """Builds the tab and handles its events. context: PageContext, with a classroom. admin:
    AdminPassword."""

    def __init__(self, context, admin):
        self.context, self.classroom, self.admin = context, context.classroom, admin
        i18n = context.i18n
        with gr.Tab(i18n("classroom"), id="classroom", render_children=True) as self.tab:
            self._build_join(i18n)
            self._build_round()
            with gr.Accordion(i18n("teacher"), open=False):
                if admin:
                    self._build_teacher(i18n)
                else:
                    gr.Markdown(i18n("teacher_off"))
        self._connect_events()

    def _build_join(self, i18n):
        self.who = gr.HTML("", elem_id="class-who")
        with gr.Row(elem_classes="inline-form"):
            self.code = gr.Textbox(
                label=i18n("code"), max_length=MAX_CODE_CHARS, max_lines=1, elem_id="class-code"
            )
            self.join_button = _narrow_button(i18n("join"), "class-join", variant="primary")
        with gr.Row():
            self.leave_button = _narrow_button(i18n("leave"), "class-leave", visible=False)

    def _build_round(self):
        self.progress = gr.HTML("", elem_id="class-progress")
        self.question = gr.HTML("", elem_id="class-question")
        with gr.Row(equal_height=True):
            self.cards = [
                gr.HTML("", visible=False, elem_id=f"class-side-{i}", elem_classes="side")
                for i in range(2)
            ]
        with gr.Row(elem_id="class-votes"):
            self.vote_buttons = {
                choice: _narrow_button("", f"class-vote-{choice}", visible=False)
                for choice in CHOICES
            }
        self.status = gr.HTML("", elem_id="class-status")
        # The battle on the page: each click says which one it is for, so a click that is sent twice
        # does not vote on the next one.
        self.shown = gr.Number(0, visible="hidden", elem_id="class-shown")
        self.timer = gr.Timer(POLL_SECONDS)

    def _build_teacher(self, i18n):
        self.password = gr.Textbox(
            label=i18n("password"), type="password", elem_id="class-password", scale=0
        )
        with gr.Row(elem_id="class-teacher"):
            with gr.Column(scale=1, min_width=320):
                gr.Markdown(i18n("teach_round"), elem_classes="form-title")
                start, end = self._build_round_form(i18n)
            with gr.Column(scale=1, min_width=320):
                gr.Markdown(i18n("teach_votes"), elem_classes="form-title")
                with gr.Row():
                    report = _narrow_button(i18n("report"), "class-report-button")
                    export = _narrow_button(i18n("export_votes"), "class-export")
                with gr.Row(elem_classes="inline-form"):
                    self.quota = gr.Textbox(label=i18n("quota"), max_lines=1, elem_id="class-quota")
                    set_quota = _narrow_button(i18n("set_quota"), "class-set-quota")
                with gr.Row(elem_classes="inline-form"):
                    self.number = gr.Textbox(
                        label=i18n("battle_number"), max_lines=1, elem_id="class-battle"
                    )
                    hide = _narrow_button(i18n("hide"), "class-hide")
                    show = _narrow_button(i18n("show"), "class-show")
        self.message = gr.HTML("", elem_id="class-message")
        self.report = gr.HTML("", elem_id="class-report")
        inputs = {self.password, self.prompts, self.quota, self.number}
        outputs = [self.message, self.report]
        for button, event in (
            (start, self.start_round),
            (end, self.end_round),
            (report, self.show_report),
            (export, self.export_votes),
            (set_quota, self.set_quota),
            (hide, self.hide_battle),
            (show, self.show_battle),
        ):
            button.click(event, inputs, outputs, show_progress="hidden")

    def _build_round_form(self, i18n):
        self.prompts = gr.Textbox(
            label=i18n("round_prompts"),
            lines=6,
            max_lines=12,
            max_length=MAX_PROMPT_CHARS,
            elem_id="class-prompts",
        )
        with gr.Row():
            start = _narrow_button(i18n("round_start"), "class-start", variant="primary")
            end = _narrow_button(i18n("round_end"), "class-end")
        return start, end

    def _connect_events(self):
        outputs = [
            *(self.who, self.code, self.join_button, self.leave_button, self.progress),
            *(self.question, *self.cards, self.status, *self.vote_buttons.values(), self.shown),
        ]
        hidden = dict(show_progress="hidden")
        self.tab.select(self.classroom_opened, None, outputs, **hidden)
        self.timer.tick(self.poll, {self.shown}, outputs, **hidden)
        join = [self.join_button.click, self.code.submit]
        gr.on(join, self.join, {self.code}, outputs, **hidden)
        self.leave_button.click(self.leave, None, outputs, **hidden)
        for choice, button in self.vote_buttons.items():
            button.click(self._judge_event(choice), {self.shown}, outputs, **hidden)

    # -- events of the pupils: values and updates are {component: value} --

    def classroom_opened(self, request: gr.Request):
        """Show as whom the visitor votes, and the round."""
        return self._updates(request)

    def poll(self, values, request: gr.Request):
        """The progress of the class; the question too if it is another one than is shown."""
        updates, shown = self._updates(request), battle_id(values[self.shown])
        if updates[self.shown] == shown:
            return {self.progress: updates[self.progress]}
        return updates

    def join(self, values, request: gr.Request):
        """Join by a code."""
        strings, browser = strings_of(request), self.context.browser(request)
        if browser is None:
            return {self.status: html.note(strings["no_cookie"])}
        wait = self.classroom.join_wait(browser, client_address(request))
        if wait:
            message = strings["too_fast"].format(seconds=max(1, round(wait)))
            return {self.status: html.note(message)}
        if self.classroom.roster.join(browser, (values[self.code] or "")[:MAX_CODE_CHARS]) is None:
            return {self.status: html.note(strings["wrong_code"])}
        return {**self._updates(request), self.code: gr.update(value="", visible=False)}

    def leave(self, request: gr.Request):
        """The browser votes as this pupil no longer."""
        browser = self.context.browser(request)
        if browser is not None:
            self.classroom.roster.leave(browser)
        return self._updates(request)

    def _judge_event(self, choice):
        def judge(values, request: gr.Request):
            try:
                voter = self.context.required_voter(request)
                self.context.check_rate("vote", request)
                self.classroom.rounds.vote(battle_id(values[self.shown]), voter, choice)
            except UserError as error:
                return {
                    **self._updates(request),
                    self.status: html.note(error_text(strings_of(request), error)),
                }
            return self._updates(request)

        judge.__name__ = f"judge_{choice}"
        return judge

    def _updates(self, request):
        """The updates of everything but the teacher's part."""
        strings, rounds = strings_of(request), self.classroom.rounds
        pupil = self.classroom.roster.pupil(self.context.browser(request))
        voter = self.context.voter(request)
        battle = rounds.next_battle(voter) if voter else None
        found, voters = rounds.progress(), self.classroom.roster.active_voters()
        status = ""
        if voter and found and battle is None:
            is_done = found.votes[voter] >= found.n_votable
            status = strings["round_done" if is_done else "round_wait"]
        return {
            self.who: tables.who(strings, pupil),
            self.code: gr.update(visible=pupil is None),
            self.join_button: gr.update(visible=pupil is None),
            self.leave_button: gr.update(visible=pupil is not None),
            self.progress: tables.progress(strings, found, voter, voters),
            **self._battle_updates(strings, battle),
            self.status: html.note(status),
        }

    def _battle_updates(self, strings, battle):
        visible = battle is not None
        updates = {
            self.shown: battle.id if battle else 0,
            self.question: tables.question(battle.prompt if battle else ""),
        }
        for index, card in enumerate(self.cards):
            text = tables.answer_card(strings, battle.sides[index], index) if battle else ""
            updates[card] = gr.update(value=text, visible=visible)
        for choice, button in self.vote_buttons.items():
            label = html.vote_label(strings, choice, 2)
            updates[button] = gr.update(value=label, visible=visible)
        return updates

    # -- events of the teacher --

    def start_round(self, values, request: gr.Request):
        """Start a round with the prompts in the box, one a line."""

        def start(strings):
            prompts = values[self.prompts].splitlines()[: MAX_PROMPTS + 1]
            defaults = {name: slider.default for name, slider in SLIDERS.items()}
            settings = sampling_settings({**defaults, "seed": ""}, strings)
            self.classroom.rounds.start(prompts, settings)
            return html.note(strings["round_started"])

        return self._teach(start, values, request)

    def end_round(self, values, request: gr.Request):
        """End the round: its votes are public and count."""

        def end(strings):
            self.classroom.rounds.end()
            return html.note(strings["round_ended"])

        return self._teach(end, values, request)

    def show_report(self, values, request: gr.Request):
        """Who has voted how often."""
        return self._teach(lambda strings: "", values, request)

    def export_votes(self, values, request: gr.Request):
        """A link to all votes with names."""
        return self._teach(
            lambda strings: tables.download("votes.csv", self.classroom.votes_csv()),
            values,
            request,
        )

    def set_quota(self, values, request: gr.Request):
        """Limit the votes of each pupil; nothing in the box: no limit."""

        def change(strings):
            text = values[self.quota].strip()
            self.classroom.quota = _number(text, strings) if text else None
            return html.note(strings["quota_set"])

        return self._teach(change, values, request)

    def hide_battle(self, values, request: gr.Request):
        """Hide the battle with the number in the box."""
        return self._set_hidden(True, values, request)

    def show_battle(self, values, request: gr.Request):
        """Show a hidden battle again."""
        return self._set_hidden(False, values, request)

    def _set_hidden(self, hidden, values, request):
        def change(strings):
            number = _number(values[self.number].strip().lstrip("#"), strings)
            self.classroom.ledger.hide(number, hidden)
            return html.note(strings["hidden" if hidden else "unhidden"].format(number=number))

        return self._teach(change, values, request)

    def _teach(self, action, values, request):
        """The message of action(strings) and the report, if the password is right."""
        strings = strings_of(request)
        try:
            self.context.check_admin(self.admin, values[self.password], request)
        except UserError as error:
            return {self.message: html.note(error_text(strings, error)), self.report: ""}
        try:
            message = action(strings)
        except UserError as error:
            message = html.note(error_text(strings, error))
        rows, found = self.classroom.report(), self.classroom.rounds.progress()
        report = tables.report(strings, rows, found, self.classroom.roster.problem)
        return {self.message: message, self.report: report}


def _narrow_button(label, elem_id, **options):
    return gr.Button(label, elem_id=elem_id, size="md", scale=0, min_width=112, **options)


def _number(text, strings):
    """A whole number from 0; UserError if the text is none."""
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise UserError(strings["bad_number"].format(text=text[:40]))
    return int(text)
