"""The Chat tab: a conversation with one model.

The conversation is stored in the visitor's Session. The browser's copy of it is never read.
"""

from html import unescape

import gradio as gr

from minigpt.arena import html
from minigpt.arena.access.sessions import Turn, message
from minigpt.arena.arena import MAX_PROMPT_CHARS, check_prompt
from minigpt.arena.i18n import error_text
from minigpt.arena.ui.context import REFRESH_SECONDS, preset_chips, strings_of, use_preset
from minigpt.arena.ui.sampling import SamplingControls
from minigpt.common.errors import UserError
from minigpt.common.presets import prompts_for


class ChatTab:
    """Builds the tab and handles its events. context: PageContext."""

    def __init__(self, context):
        self.context = context
        i18n = context.i18n
        with gr.Tab(i18n("chat"), id="chat", render_children=True) as self.tab, gr.Row():
            with gr.Column(scale=1, min_width=240):
                endpoints = context.arena.endpoints
                self.model = gr.Dropdown(
                    endpoints.names(),
                    value=endpoints.first_alive(),
                    label=i18n("model"),
                    elem_id="chat-model",
                )
                self.sampling = SamplingControls(i18n, "chat")
            with gr.Column(scale=3, min_width=320):
                self._build_conversation(i18n)
        self._connect_events()

    def _build_conversation(self, i18n):
        self.chatbot = gr.Chatbot(
            elem_id="chat-messages",
            show_label=False,
            placeholder=i18n("chat_hint"),
            height=460,
            render_markdown=False,  # a model's answer is shown as text: see html.chat_messages()
            latex_delimiters=[],
            sanitize_html=True,
            editable="user",
            buttons=["copy"],
            allow_tags=False,
        )
        self.status = gr.HTML("", elem_id="chat-status")
        with gr.Row():
            self.question = gr.Textbox(
                show_label=False,
                placeholder=i18n("question_hint"),
                max_length=MAX_PROMPT_CHARS,
                lines=1,
                max_lines=8,
                scale=5,
                elem_id="chat-question",
            )
        with gr.Row():
            narrow = dict(size="md", scale=0, min_width=96)
            self.send_button = gr.Button(
                i18n("send"), variant="primary", elem_id="chat-send", **narrow
            )
            self.stop_button = gr.Button(i18n("stop"), elem_id="chat-stop", **narrow)
            self.regenerate_button = gr.Button(
                i18n("regenerate"), elem_id="chat-regenerate", **narrow
            )
            self.clear_button = gr.Button(i18n("clear"), elem_id="chat-clear", **narrow)
        name = self.context.arena.endpoints.first_alive()
        self.presets = preset_chips(i18n("presets"), self._preset_texts(name), "chat-presets")

    def _connect_events(self):
        inputs = {self.model, *self.sampling.components}
        outputs = [self.chatbot, self.question, self.status]
        # Of restore(): without the question, which may be typed before the page has loaded.
        self.restored = [self.chatbot, self.status]
        options = dict(show_progress_on=self.status, **self.context.generation_queue)
        send = [self.send_button.click, self.question.submit]
        gr.on(send, self.send, {self.question, *inputs}, outputs, **options)
        self.regenerate_button.click(self.regenerate, inputs, outputs, **options)
        self.chatbot.edit(self.edit, inputs, outputs, **options)
        at_once = dict(queue=False, show_progress="hidden")
        self.stop_button.click(self.stop_chat, None, None, **at_once)
        self.clear_button.click(self.clear_chat, None, outputs, **at_once)
        hidden = dict(show_progress="hidden")
        self.presets.click(use_preset, self.presets, self.question, **hidden)
        self.model.change(self.show_presets, {self.model}, self.presets, **hidden)

    # -- events: values and updates are {component: value} --

    def show_presets(self, values):
        """The preset prompts that suit the chosen model."""
        return gr.Dataset(samples=[[text] for text in self._preset_texts(values[self.model])])

    def _preset_texts(self, name):
        try:
            prompt_format = self.context.arena.endpoints.get(name or "").prompt_format
        except UserError:  # it was removed
            prompt_format = None
        return prompts_for(self.context.prompts, prompt_format, name or "")

    def send(self, values, request: gr.Request):
        """Answer the question that was typed."""
        session, question = self.context.session(request), values[self.question]
        if not question.strip():
            return
        yield from self._answer(session.turns, question, values, request)

    def regenerate(self, values, request: gr.Request):
        """Answer the last question again."""
        turns = self.context.session(request).turns
        if not turns:
            yield self._update(strings_of(request), turns, status="", question="")
            return
        yield from self._answer(turns[:-1], turns[-1].question, values, request)

    def edit(self, values, request: gr.Request, event: gr.EditData):
        """Answer a question that was edited; the turns after it are dropped."""
        index = event.index if isinstance(event.index, int) else event.index[0]
        turns = self.context.session(request).turns
        shown = html.chat_messages(strings_of(request), turns)
        before = sum(each["role"] == "user" for each in shown[: max(0, index)])
        question = unescape(str(event.value))
        yield from self._answer(turns[:before], question, values, request)

    def stop_chat(self, request: gr.Request):
        """Stop the answer where it is."""
        self.context.session(request).stop_chat()

    def clear_chat(self, request: gr.Request):
        """Start a new conversation."""
        session = self.context.session(request)
        session.stop_chat()
        session.turns = []
        return self._update(strings_of(request), [], status="", question="")

    def restore(self, request: gr.Request):
        """Show the chat of a page that was loaded again, to the end of its answer."""
        session, strings = self.context.session(request), strings_of(request)
        if session.turns:
            yield from self._follow(session, session.turns[-1], strings)

    def _answer(self, turns, question, values, request):
        """Generate the answer to a question after `turns`, with updates while it grows."""
        strings, session = strings_of(request), self.context.session(request)
        session.stop_chat()
        try:
            check_prompt(question)
            self.context.check_rate("ask", request)
            settings = self.sampling.read(values, strings)
            messages = [each for turn in turns for each in turn.messages]
            messages.append(message("user", question))
            battle = self.context.arena.chat(values[self.model] or "", messages, settings)
        except UserError as error:
            yield self._update(strings, session.turns, status=error_text(strings, error))
            return
        turn, session.tab = Turn(question, battle), "chat"
        session.add_turn(turns, turn)
        yield self._update(strings, session.turns, status=strings["waiting"], question="")
        yield from self._follow(session, turn, strings)

    def _follow(self, session, turn, strings):
        """Updates until the answer of the last turn has ended, or another question is asked. If the
        chat is cleared, the last update is the empty chat: one on its way would undo the
        clearing."""
        while not turn.battle.wait(REFRESH_SECONDS) and session.turns[-1:] == [turn]:
            yield self._update(strings, session.turns, status=strings[turn.state.status])
        if session.turns[-1:] == [turn]:
            status = html.chat_summary(strings, turn.battle)
            yield self._update(strings, session.turns, status=status)
        elif not session.turns:
            yield self._update(strings, [], status="")

    def _update(self, strings, turns, *, status, question=None):
        """The updates of the conversation and the status. question: None keeps what the visitor is
        typing in the meantime."""
        updates = {
            self.chatbot: html.chat_messages(strings, turns),
            self.status: html.note(status),
        }
        if question is not None:
            updates[self.question] = question
        return updates
