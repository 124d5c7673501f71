"""The Leaderboard tab: ratings and win rates."""

import gradio as gr

from minigpt.arena import html
from minigpt.arena.ratings import ratings, win_rates
from minigpt.arena.ui.context import strings_of


class LeaderboardTab:
    """Builds the tab and handles its events. context: PageContext."""

    def __init__(self, context):
        self.context = context
        i18n = context.i18n
        kinds = [
            (i18n("kind_blind"), "blind"),
            (i18n("kind_open"), "open"),
            (i18n("kind_all"), "all"),
        ]
        with gr.Tab(i18n("leaderboard"), id="leaderboard", render_children=True) as self.tab:
            self.kind = gr.Radio(kinds, value="blind", show_label=False, elem_id="board-kind")
            self.tables = gr.HTML("", elem_id="board")
            gr.HTML(html.download_links("leaderboard.csv"))
        # always_last: a choice that is made during an update is not lost.
        options = dict(show_progress="hidden", trigger_mode="always_last")
        update = [self.tab.select, self.kind.change]
        gr.on(update, self.leaderboard, {self.kind}, [self.tables], **options)

    def leaderboard(self, values, request: gr.Request):
        """The current ratings and win rates of one kind of battles, or of all."""
        strings, kind = strings_of(request), values[self.kind]
        decided = self.context.arena.ledger.decided(None if kind == "all" else kind)
        board = html.leaderboard(strings, ratings(decided, seed=0))
        return {self.tables: board + html.heat_map(strings, *win_rates(decided))}
