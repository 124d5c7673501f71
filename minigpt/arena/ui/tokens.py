"""The Tokens tab: probabilities of an answer or a text, and how a text is cut into tokens."""

import gradio as gr

from minigpt.arena import html
from minigpt.arena.endpoints import EndpointError
from minigpt.arena.i18n import error_text
from minigpt.arena.local_runs import LocalRun
from minigpt.arena.ui.context import strings_of
from minigpt.arena.ui.sampling import SamplingControls
from minigpt.arena.window.probabilities import MAX_TEXT_CHARS, check_text, cuts, scores_of
from minigpt.arena.window.tokens_html import cut_texts, scored_text
from minigpt.common.errors import UserError

PROBLEMS = {"no logprobs": "no_logprobs", "no echo": "no_echo"}  # kinds → strings


class TokensTab:
    """Builds the tab and handles its events. context: PageContext."""

    def __init__(self, context):
        self.context = context
        i18n, endpoints = context.i18n, context.arena.endpoints
        with gr.Tab(i18n("tokens"), id="tokens", render_children=True) as self.tab, gr.Row():
            with gr.Column(scale=1, min_width=240):
                self.model = gr.Dropdown(
                    endpoints.names(),
                    value=endpoints.first_alive(),
                    label=i18n("model"),
                    elem_id="tokens-model",
                )
                self.sampling = SamplingControls(i18n, "tokens")
            with gr.Column(scale=3, min_width=320):
                self._build_text(i18n)
        self._connect_events()

    def _build_text(self, i18n):
        self.text = gr.Textbox(
            "",
            label=i18n("tokens_about"),
            placeholder=i18n("token_text"),
            max_length=MAX_TEXT_CHARS,
            lines=3,
            max_lines=10,
            elem_id="tokens-text",
        )
        with gr.Row():
            narrow = dict(size="md", scale=0, min_width=128)
            self.answer_button = gr.Button(
                i18n("show_answer"), variant="primary", elem_id="tokens-answer", **narrow
            )
            self.score_button = gr.Button(i18n("show_text"), elem_id="tokens-score", **narrow)
            self.cut_button = gr.Button(i18n("show_cuts"), elem_id="tokens-cut", **narrow)
            self.chat_button = gr.Button(i18n("from_chat"), elem_id="tokens-chat", **narrow)
        self.result = gr.HTML("", elem_id="tokens-result")

    def _connect_events(self):
        inputs = {self.model, self.text, *self.sampling.components}
        options = dict(show_progress_on=self.result, **self.context.generation_queue)
        for button, event in (
            (self.answer_button, self.answer),
            (self.score_button, self.score),
            (self.cut_button, self.cut),
        ):
            button.click(event, inputs, [self.result], **options)
        outputs = [self.text, self.model, self.result]
        self.chat_button.click(self.from_chat, None, outputs, show_progress="hidden")
        self.tab.select(self.models, {self.model}, [self.model], show_progress="hidden")

    # -- events: values and updates are {component: value} --

    def models(self, values):
        """The models to choose from; what is chosen stays chosen."""
        endpoints, chosen = self.context.arena.endpoints, values[self.model]
        names = endpoints.names()
        chosen = chosen if chosen in names else endpoints.first_alive()
        return {self.model: gr.update(choices=names, value=chosen)}

    def from_chat(self, request: gr.Request):
        """The last question of the chat."""
        turns = self.context.session(request).turns
        if not turns:
            return {self.result: html.note(strings_of(request)["no_question"])}
        return {self.text: turns[-1].question[:MAX_TEXT_CHARS]}

    def answer(self, values, request: gr.Request):
        """The model's answer, token by token."""
        strings = strings_of(request)

        def work(text, endpoint):
            settings = self.sampling.read(values, strings)
            scored = self._scores(endpoint).answer(text, settings)
            return scored_text(strings, scored, settings)

        return self._show(work, values, request)

    def score(self, values, request: gr.Request):
        """The visitor's text as the model reads it."""
        strings = strings_of(request)

        def work(text, endpoint):
            settings = self.sampling.read(values, strings)
            return scored_text(strings, self._scores(endpoint).text(text), settings)

        return self._show(work, values, request)

    def cut(self, values, request: gr.Request):
        """The visitor's text in the tokens of several vocabularies."""

        def work(text, endpoint):
            is_local = isinstance(endpoint, LocalRun)
            own = (endpoint.name, endpoint.tokenizer) if is_local else None
            return cut_texts(strings_of(request), cuts(text, own), len(text))

        return self._show(work, values, request, needs_model=False)

    def _scores(self, endpoint):
        return scores_of(endpoint, self.context.arena.deadline_seconds)

    def _show(self, work, values, request, needs_model=True):
        """The update with what work(text, endpoint) returns, or with what is wrong."""
        text, name = values[self.text] or "", values[self.model]
        strings, endpoints = strings_of(request), self.context.arena.endpoints
        try:
            check_text(text)
            self.context.check_rate("ask", request)
            endpoint = endpoints.get(name) if needs_model or name in endpoints.names() else None
            return {self.result: work(text, endpoint)}
        except EndpointError as error:
            known = PROBLEMS.get(error.kind)
            message = strings[known].format(name=name) if known else error.message
        except UserError as error:
            message = error_text(strings, error)
        return {self.result: html.note(message)}
