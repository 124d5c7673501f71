"""The Leaderboard tab: ratings and win rates."""

import gradio as gr

from minigpt.arena import html
from minigpt.arena.ratings import length_controlled, ratings, win_rates
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
            with gr.Row():
                self.kind = gr.Radio(kinds, value="blind", show_label=False, elem_id="board-kind")
                groups = sorted(filter(None, set(context.groups.values())))
                self.group = gr.Dropdown(
                    [(i18n("all_prompts"), ""), *groups],
                    value="",
                    label=i18n("prompt_group"),
                    visible=bool(groups),
                    elem_id="board-group",
                )
            self.tables = gr.HTML("", elem_id="board")
            gr.HTML(html.download_links("leaderboard.csv"))
        # always_last: a choice that is made during an update is not lost.
        options = dict(show_progress="hidden", trigger_mode="always_last")
        update = [self.tab.select, self.kind.change, self.group.change]
        gr.on(update, self.leaderboard, {self.kind, self.group}, [self.tables], **options)

    def leaderboard(self, values, request: gr.Request):
        """The current ratings and win rates of one kind of battles, or of all; of one group of
        preset prompts, or of all prompts."""
        strings, kind, group = strings_of(request), values[self.kind], values[self.group]
        prompts = [p for p, its_group in self.context.groups.items() if its_group == group]
        votes = self.context.arena.ledger.votes(
            None if kind == "all" else kind, prompts if group else None
        )
        decided = [vote.decided for vote in votes]
        controlled = length_controlled(decided, [vote.lengths for vote in votes])
        board = html.leaderboard(strings, ratings(decided, seed=0), controlled)
        return {self.tables: board + html.heat_map(strings, *win_rates(decided))}
