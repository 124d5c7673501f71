"""The Arena tab: battles between two to four models, and votes."""

import gradio as gr

from minigpt.arena import html
from minigpt.arena.arena import MAX_PROMPT_CHARS, MAX_SIDES, check_prompt
from minigpt.arena.i18n import error_text
from minigpt.arena.ui.context import (
    REFRESH_SECONDS,
    battle_id,
    preset_chips,
    strings_of,
    use_preset,
)
from minigpt.arena.ui.sampling import SamplingControls
from minigpt.common.errors import UserError
from minigpt.common.presets import prompts_for_any


class ArenaTab:
    """Builds the tab and handles its events. context: PageContext."""

    def __init__(self, context):
        self.context = context
        i18n = context.i18n
        with gr.Tab(i18n("arena"), id="arena", render_children=True) as self.tab:
            self._build_mode(i18n)
            self._build_question(i18n)
            with gr.Row(equal_height=True, elem_id="arena-cards"):
                self.cards = [
                    gr.HTML("", visible=False, elem_id=f"side-{i}", elem_classes="side")
                    for i in range(MAX_SIDES)
                ]
            with gr.Row(elem_id="arena-votes"):
                # A vote is the index of the best side, "tie" or "none".
                self.vote_buttons = {
                    vote: gr.Button(
                        label,
                        visible=False,
                        elem_id=f"vote-{vote}",
                        size="md",
                        scale=0,
                        min_width=112,
                    )
                    for vote, label in (
                        *enumerate(html.SIDE_LETTERS),
                        ("tie", i18n("vote_tie")),
                        ("none", i18n("vote_none_of_2")),
                    )
                }
            self.status = gr.HTML("", elem_id="arena-status")
            endpoints = self.context.arena.endpoints.all()
            models = [(endpoint.prompt_format, endpoint.name) for endpoint in endpoints]
            texts = prompts_for_any(self.context.prompts, models)
            self.presets = preset_chips(i18n("presets"), texts, "arena-presets")
            # The battle on the page: each click says which one it is for, so a click that arrives
            # late, or twice, does not vote on the next one.
            self.shown = gr.Number(0, visible="hidden", elem_id="arena-shown")
            self.sampling = SamplingControls(i18n, "arena")
        self._connect_events()

    def _build_mode(self, i18n):
        with gr.Row():
            self.mode = gr.Radio(
                [(i18n("mode_blind"), "blind"), (i18n("mode_open"), "open")],
                value="blind",
                label=i18n("mode"),
                elem_id="arena-mode",
            )
            self.pairing = gr.Radio(
                [(i18n("pair_random"), "random"), (i18n("pair_least"), "least")],
                value="random",
                label=i18n("pairing"),
                elem_id="arena-pairing",
            )
            self.models = gr.CheckboxGroup(
                self.context.arena.endpoints.names(),
                label=i18n("models"),
                visible=False,
                elem_id="arena-models",
            )

    def _build_question(self, i18n):
        with gr.Row():
            self.question = gr.Textbox(
                show_label=False,
                placeholder=i18n("question_hint"),
                max_length=MAX_PROMPT_CHARS,
                max_lines=8,
                scale=5,
                elem_id="arena-question",
            )
        with gr.Row():
            narrow = dict(size="md", scale=0, min_width=96)
            self.send_button = gr.Button(
                i18n("send"), variant="primary", elem_id="arena-send", **narrow
            )
            self.stop_button = gr.Button(i18n("stop"), elem_id="arena-stop", **narrow)
            self.regenerate_button = gr.Button(
                i18n("regenerate"), elem_id="arena-regenerate", **narrow
            )

    def _connect_events(self):
        inputs = {self.question, self.mode, self.pairing, self.models, *self.sampling.components}
        outputs = [*self.cards, self.status, *self.vote_buttons.values(), self.shown]
        self.restored = outputs
        start = [self.send_button.click, self.question.submit, self.regenerate_button.click]
        options = dict(show_progress_on=self.status, **self.context.generation_queue)
        gr.on(start, self.battle, inputs, outputs, **options)
        self.stop_button.click(self.stop_battle, None, None, queue=False, show_progress="hidden")
        for vote, button in self.vote_buttons.items():
            button.click(self._vote_event(vote), {self.shown}, outputs, show_progress="hidden")
        hidden = dict(show_progress="hidden")
        shown = [self.pairing, self.models]
        # multiple: a change that is lost while the page loads must not hold up the next one.
        many = dict(trigger_mode="multiple", **hidden)
        self.mode.change(self.show_mode, {self.mode, self.models}, shown, **many)
        self.presets.click(use_preset, self.presets, self.question, **hidden)

    # -- events: values and updates are {component: value} --

    def show_mode(self, values):
        """Show the controls for blind or open battles. For an open one the first two models are
        chosen, if none is."""
        mode, names = values[self.mode], self.context.arena.endpoints.names()
        chosen = [name for name in values[self.models] or [] if name in names] or names[:2]
        return {
            self.pairing: gr.update(visible=mode == "blind"),
            self.models: gr.update(visible=mode == "open", choices=names, value=chosen),
        }

    def battle(self, values, request: gr.Request):
        """Run a battle, with updates while the sides write, and record it."""
        strings, session = strings_of(request), self.context.session(request)
        try:
            arena_battle = self._begin(values, request)
        except UserError as error:
            yield {self.status: html.note(error_text(strings, error))}
            return
        session.arena_battle, session.tab = arena_battle, "arena"
        yield self._updates(strings, arena_battle)
        yield from self._follow(session, arena_battle, strings)

    def restore(self, request: gr.Request):
        """Show the battle of a page that was loaded again, to its end."""
        session, strings = self.context.session(request), strings_of(request)
        if session.arena_battle:
            yield from self._follow(session, session.arena_battle, strings)

    def _follow(self, session, arena_battle, strings):
        """Updates until the battle is recorded, unless another one begins."""
        while not arena_battle.settled.wait(REFRESH_SECONDS):
            if session.arena_battle is not arena_battle:
                return
            yield self._updates(strings, arena_battle)
        yield self._updates(strings, arena_battle, arena_battle.problem)

    def _begin(self, values, request):
        """Start the battle that the visitor asks for; UserError if it cannot start."""
        strings, voter = strings_of(request), self.context.free_voter(request)
        settings = self.sampling.read(values, strings)
        check_prompt(values[self.question])  # before rate limiting
        self.context.check_rate("ask", request)
        names = values[self.models] if values[self.mode] == "open" else None
        return self.context.arena.begin(
            voter, values[self.question], settings, names, values[self.pairing]
        )

    def stop_battle(self, request: gr.Request):
        """Stop generation on all sides."""
        self.context.session(request).stop_battle()

    def _vote_event(self, choice):
        def vote(values, request: gr.Request):
            strings = strings_of(request)
            arena_battle = self.context.session(request).arena_battle
            if arena_battle is None:
                return {self.status: html.note(strings["no_battle"])}
            try:
                saved = self._vote(arena_battle, battle_id(values[self.shown]), choice, request)
            except UserError as error:
                return self._updates(strings, arena_battle, error_text(strings, error))
            return self._updates(strings, arena_battle, saved)

        return vote

    def _vote(self, arena_battle, voted_id, choice, request):
        """Save a vote on the battle that the page showed, this one or an earlier one; returns what
        to say, None for the usual status. UserError if the vote is not allowed."""
        strings, arena = strings_of(request), self.context.arena
        voter = self.context.required_voter(request)
        self.context.check_rate("vote", request)
        quota = self.context.classroom and self.context.classroom.quota
        if voted_id != arena_battle.record_id:
            arena.vote_earlier(voted_id, voter, choice, quota)
            return strings["voted_earlier"]
        if voter != arena_battle.voter:  # another pupil uses this browser now
            raise UserError(strings["no_battle"])
        arena.vote(arena_battle, choice, quota)
        return None

    # -- updates --

    def _updates(self, strings, arena_battle, problem=None):
        """The updates of the whole tab. problem: shown in place of the usual status."""
        is_recorded = arena_battle.record_id is not None  # read once: another thread may set it
        lines = [problem] if problem else self._status(strings, arena_battle, is_recorded)
        return {
            **self._card_updates(strings, arena_battle, is_recorded),
            self.status: "".join(map(html.note, lines)),
            **self._vote_updates(strings, arena_battle, is_recorded),
            self.shown: (is_recorded and arena_battle.record_id) or 0,
        }

    def _card_updates(self, strings, arena_battle, is_recorded):
        names_visible = arena_battle.names_visible
        states = arena_battle.battle.snapshot()
        updates = {card: gr.update(value="", visible=False) for card in self.cards}
        for index, (card, state) in enumerate(zip(self.cards, states, strict=False)):
            text = html.side_card(
                strings,
                state,
                index,
                name=arena_battle.names[index] if names_visible else None,
                is_chosen=arena_battle.choice == index,
                show_facts=names_visible and is_recorded,
            )
            updates[card] = gr.update(value=text, visible=True)
        return updates

    def _vote_updates(self, strings, arena_battle, is_recorded):
        n_sides = len(arena_battle.names)
        votable = is_recorded and arena_battle.votable
        updates = {button: gr.update(visible=False) for button in self.vote_buttons.values()}
        for vote in arena_battle.choices:
            updates[self.vote_buttons[vote]] = gr.update(
                value=html.vote_label(strings, vote, n_sides),
                visible=votable,
                variant="primary" if arena_battle.choice == vote else "secondary",
                interactive=not arena_battle.vote_is_final,
            )
        return updates

    def _status(self, strings, arena_battle, is_recorded):
        """Lines of text: what the visitor can do, then what is missing."""
        lines = []
        if is_recorded and arena_battle.choice is not None:
            lines.append(strings["voted" if arena_battle.kind == "blind" else "voted_open"])
        elif is_recorded:
            lines.append(strings["vote_now" if arena_battle.votable else "not_votable"])
        if is_recorded and arena_battle.names_visible and arena_battle.silent_names:
            names = ", ".join(arena_battle.silent_names)
            lines.append(strings["silent"].format(names=names))
        if arena_battle.battle.unsupported:
            names = ", ".join(arena_battle.battle.unsupported)
            lines.append(strings["unsupported_settings"].format(names=names))
        return lines
