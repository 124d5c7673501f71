"""The Chat tab: a conversation with one model.

The conversation is stored in the visitor's Session. The browser's copy of it is never read.
"""

import time
from html import escape, unescape

import gradio as gr

from minigpt.arena import html
from minigpt.arena.arena import MAX_ANSWER_CHARS, MAX_PROMPT_CHARS, check_prompt
from minigpt.arena.battles import DisplayText
from minigpt.arena.endpoints import EndpointError
from minigpt.arena.ui.context import REFRESH_SECONDS, strings_of, use_preset
from minigpt.arena.ui.sampling import SamplingControls
from minigpt.common.errors import UserError


class ChatTab:
    """Builds the tab and handles its events. context: PageContext."""

    def __init__(self, context):
        self.context = context
        i18n = context.i18n
        with gr.Tab(i18n("chat"), id="chat") as self.tab, gr.Row():
            with gr.Column(scale=1, min_width=240):
                self.model = gr.Dropdown([], label=i18n("model"), elem_id="chat-model")
                self.presets = gr.Dropdown(context.prompts, value=None, label=i18n("presets"))
                self.sampling = SamplingControls(i18n, "chat")
            with gr.Column(scale=3, min_width=320):
                self._build_conversation(i18n)
        self._connect_events()

    def _build_conversation(self, i18n):
        self.chatbot = gr.Chatbot(
            elem_id="chat-messages",
            show_label=False,
            height=460,
            render_markdown=False,  # a model's answer is shown as text: see chatbot_messages()
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
            self.send_button = gr.Button(i18n("send"), variant="primary", elem_id="chat-send")
            self.stop_button = gr.Button(i18n("stop"), variant="stop", elem_id="chat-stop")
            self.regenerate_button = gr.Button(i18n("regenerate"), elem_id="chat-regenerate")
            self.clear_button = gr.Button(i18n("clear"), elem_id="chat-clear")

    def _connect_events(self):
        inputs = {self.model, *self.sampling.components}
        outputs = [self.chatbot, self.question, self.status]
        options = dict(show_progress_on=self.status, **self.context.generation_queue)
        send = [self.send_button.click, self.question.submit]
        gr.on(send, self.send, {self.question, *inputs}, outputs, **options)
        self.regenerate_button.click(self.regenerate, inputs, outputs, **options)
        self.chatbot.edit(self.edit, inputs, outputs, **options)
        at_once = dict(queue=False, show_progress="hidden")
        self.stop_button.click(self.stop_chat, None, None, **at_once)
        self.clear_button.click(self.clear_chat, None, outputs, **at_once)
        self.presets.input(use_preset, self.presets, self.question, show_progress="hidden")

    # -- events: values and updates are {component: value} --

    def send(self, values, request: gr.Request):
        """Answer the question that was typed."""
        session, question = self.context.session(request), values[self.question]
        if not question.strip():
            yield self._update(session.messages, status="")
            return
        yield from self._answer([*session.messages, message("user", question)], values, request)

    def regenerate(self, values, request: gr.Request):
        """Answer the last question again."""
        messages = self.context.session(request).messages
        questions = [i for i, each in enumerate(messages) if each["role"] == "user"]
        if not questions:
            yield self._update(messages, question="", status="")
            return
        yield from self._answer(messages[: questions[-1] + 1], values, request)

    def edit(self, values, request: gr.Request, event: gr.EditData):
        """Answer a question that was edited; the messages after it are dropped."""
        index = event.index if isinstance(event.index, int) else event.index[0]
        kept = self.context.session(request).messages[: max(0, index)]
        edited = message("user", unescape(str(event.value)))
        yield from self._answer([*kept, edited], values, request)

    def stop_chat(self, request: gr.Request):
        """Stop the answer where it is."""
        self.context.session(request).stop_chat()

    def clear_chat(self, request: gr.Request):
        """Start a new conversation."""
        session = self.context.session(request)
        session.stop_chat()
        session.chat_stream = None  # so that _answer() does not show the rest of its answer
        session.messages = []
        return self._update([], question="", status="")

    def _answer(self, messages, values, request):
        """Generate the answer to a conversation, with updates while it grows."""
        strings, session = strings_of(request), self.context.session(request)
        session.stop_chat()
        try:
            check_prompt(messages[-1]["content"])
            self.context.check_rate("ask", request)
            settings = self.sampling.read(values, strings)
            stream = self.context.arena.endpoints.get(values[self.model] or "").side()
        except UserError as error:
            yield self._update(session.messages, status=str(error))
            return
        session.chat_stream = stream
        session.remember(messages)
        settings = {name: value for name, value in settings.items() if name in stream.takes}
        answer = Answer(stream)
        yield self._update(messages, "…", question="", status=strings["waiting"])
        for text in answer.generate(session.messages, settings):
            if session.chat_stream is stream:
                yield self._update(messages, text, status=strings["writing"])
        if session.chat_stream is None:  # cleared: an update on its way would undo that
            yield self._update(session.messages, status="")
        if session.chat_stream is not stream:  # cleared, or the next question was asked
            return
        session.remember([*messages, message("assistant", answer.text)])
        yield self._update(messages, answer.text or "…", status=answer.summary(strings))

    def _update(self, messages, answer=None, *, status, question=None):
        """The updates of the conversation and the status. question: None keeps what the visitor is
        typing in the meantime."""
        updates = {
            self.chatbot: chatbot_messages(messages, answer),
            self.status: html.note(status),
        }
        if question is not None:
            updates[self.question] = question
        return updates


class Answer:
    """An answer of the chat while it is generated. stream: the side of an endpoint."""

    def __init__(self, stream):
        self._stream, self._text = stream, DisplayText(MAX_ANSWER_CHARS)
        self._n_chunks, self._error = 0, None
        self._start = time.monotonic()
        self._seconds = 0.0

    @property
    def text(self):
        """The text so far."""
        return self._text.text

    def generate(self, messages, settings):
        """Read the stream to its end; yields the text so far from time to time."""
        last_update = self._start
        try:
            for chunk in self._stream.stream(messages, settings):
                self._n_chunks += 1
                self._text.push(chunk)
                if self._text.overflowed:
                    break
                if time.monotonic() - last_update > REFRESH_SECONDS:
                    last_update = time.monotonic()
                    yield self.text
        except EndpointError as error:
            self._error = error.message
        finally:
            self._stream.close()
            self._seconds = time.monotonic() - self._start

    def summary(self, strings):
        """What went wrong, if anything, and the speed."""
        n_tokens = (self._stream.usage or {}).get("completion_tokens") or self._n_chunks
        speed = html.speed(strings, self._seconds, n_tokens / max(self._seconds, 1e-3))
        problem = strings["too_long"] if self._text.overflowed else self._error
        return " · ".join(filter(None, [problem, speed]))


def message(role, content):
    """A message of a conversation."""
    return {"role": role, "content": content}


def chatbot_messages(messages, answer=None):
    """A conversation, and the answer that is being generated, for gr.Chatbot. Gradio renders its
    value as HTML, even without Markdown, so the texts are escaped."""
    if answer is not None:
        messages = [*messages, message("assistant", answer)]
    return [message(each["role"], escape(each["content"], quote=False)) for each in messages]
