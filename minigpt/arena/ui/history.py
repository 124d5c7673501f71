"""The History tab: past battles, search, and downloads."""

import gradio as gr

from minigpt.arena import html
from minigpt.arena.ui.context import strings_of

MAX_BATTLES = 50  # in the list


class HistoryTab:
    """Builds the tab and handles its events. context: PageContext."""

    def __init__(self, context):
        self.context = context
        i18n = context.i18n
        with gr.Tab(i18n("history"), id="history", render_children=True) as self.tab:
            with gr.Row():
                self.text = gr.Textbox("", label=i18n("search"), elem_id="history-search", scale=3)
                self.model = gr.Dropdown(
                    [],
                    label=i18n("model"),
                    scale=1,
                    allow_custom_value=True,
                    elem_id="history-model",
                )
            self.battles = gr.HTML("", elem_id="history-battles")
            gr.HTML(html.download_links("battles.jsonl", "battles.md", "preferences.jsonl"))
        update = [self.tab.select, self.text.submit, self.text.blur, self.model.input]
        # always_last: a choice that is made during an update is not lost.
        options = dict(show_progress="hidden", trigger_mode="always_last")
        gr.on(update, self.history, {self.text, self.model}, [self.battles], **options)
        self.tab.select(self.history_models, None, [self.model], show_progress="hidden")

    def history(self, values, request: gr.Request):
        """The newest battles that match the search."""
        text, model = values[self.text] or "", values[self.model] or ""
        found = self.context.arena.ledger.battles(text, model, limit=MAX_BATTLES)
        return {self.battles: html.history(strings_of(request), found)}

    def history_models(self):
        """The models to choose from."""
        return {self.model: gr.update(choices=["", *self.context.arena.endpoints.names()])}
