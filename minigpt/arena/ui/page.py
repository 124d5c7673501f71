"""The page: its frame, its tabs, and the lists of models that several tabs show.

To add a tab, write a class like the others in this folder and build it in Page.build().
"""

import gradio as gr

from minigpt.arena import html
from minigpt.arena.ui.arena import ArenaTab
from minigpt.arena.ui.chat import ChatTab
from minigpt.arena.ui.classroom import ClassroomTab
from minigpt.arena.ui.endpoints import EndpointsTab
from minigpt.arena.ui.history import HistoryTab
from minigpt.arena.ui.leaderboard import LeaderboardTab
from minigpt.arena.ui.runs import RunsTab
from minigpt.arena.ui.tokens import TokensTab


class Page:
    """context: PageContext. monitor: HealthMonitor. admin: AdminPassword. allowed: the networks in
    which servers that the admin adds may be (minigpt.openai.safe_http.Allowed); caps: how much an
    answer of these may cost (minigpt.openai.transport.Caps)."""

    def __init__(self, context, monitor, admin, allowed, caps=None):
        self.context, self.monitor = context, monitor
        self.admin, self.allowed, self.caps = admin, allowed, caps

    def build(self):
        """The page as gr.Blocks."""
        context = self.context
        with gr.Blocks(title="MiniGPT Arena", analytics_enabled=False, fill_width=True) as blocks:
            gr.HTML(html.HEADER)
            gr.Markdown(context.i18n("page_about"), elem_classes="quiet", elem_id="page-about")
            with gr.Tabs() as tabs:
                chat, arena = ChatTab(context), ArenaTab(context)
                classes = [ClassroomTab(context, self.admin)] if context.classroom else []
                board, past = LeaderboardTab(context), HistoryTab(context)
                tokens, runs = TokensTab(context), RunsTab(context)
                models = ModelLists(context.arena.endpoints, chat.model, arena.models)
                rest = context, self.monitor, self.admin, self.allowed, self.caps, models
                endpoints = EndpointsTab(*rest)
            runs.pause_in([chat, arena, *classes, board, past, tokens, endpoints])
            # On every visit to a tab, because another page may have added or removed endpoints.
            for event in (blocks.load, chat.tab.select, arena.tab.select):
                inputs, outputs = models.components, list(models.components)
                event(models.model_lists, inputs, outputs, show_progress="hidden")
            blocks.load(self.opened, None, tabs, show_progress="hidden")
            for tab in (chat, arena):
                blocks.load(tab.restore, None, tab.restored, show_progress="hidden")
            blocks.unload(context.leave)
        return blocks

    def opened(self, request: gr.Request):
        """The tab of the visitor's last question; for a pupil who has not joined, the tab to join.
        (The chat is open anyway: to select it late would undo a click on another tab.)"""
        tab = self.context.session(request).tab
        if self.context.classroom and self.context.voter(request) is None:
            tab = "classroom"
        return gr.skip() if tab == "chat" else gr.Tabs(selected=tab)


class ModelLists:
    """The models to choose from: a dropdown for the chat, a checkbox group for open battles."""

    def __init__(self, endpoints, dropdown, checkboxes):
        self._endpoints, self._dropdown, self._checkboxes = endpoints, dropdown, checkboxes
        self.components = {dropdown, checkboxes}

    def model_lists(self, values):
        """The event that updates the lists."""
        return self.updates(values)

    def updates(self, values):
        """Updates with the present endpoints; what is chosen stays chosen."""
        names = self._endpoints.names()
        chosen, several = values[self._dropdown], values[self._checkboxes] or []
        dropdown = dict(choices=names)
        # A value is sent only where it has to change: the visitor may choose another meanwhile.
        if chosen not in names:
            dropdown["value"] = self._endpoints.first_alive()
        several = [name for name in several if name in names]
        return {
            self._dropdown: gr.update(**dropdown),
            self._checkboxes: gr.update(choices=names, value=several),
        }
