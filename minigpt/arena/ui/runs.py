"""The Runs tab: loss curves, samples, settings and scores of the runs, while they train too."""

import gradio as gr

from minigpt.arena import html
from minigpt.arena.ui.context import strings_of
from minigpt.arena.window.curves import COLORS
from minigpt.arena.window.runs import read_view
from minigpt.arena.window.runs_html import X_AXES, runs_report

SECONDS = 5.0  # between two looks at the files
AT_FIRST = 3  # runs that are chosen at first: the newest
MAX_SHOWN = len(COLORS)


class RunsTab:
    """Builds the tab and handles its events. context: PageContext."""

    def __init__(self, context):
        self.context = context
        i18n = context.i18n
        axes = [(i18n(string), column) for column, string in X_AXES.items()]
        with gr.Tab(i18n("runs"), id="runs", render_children=True) as self.tab:
            gr.Markdown(i18n("runs_about"))
            with gr.Row():
                self.chosen = gr.Dropdown(
                    [],
                    value=[],
                    multiselect=True,
                    label=i18n("chosen_runs"),
                    scale=3,
                    elem_id="runs-chosen",
                )
                self.x = gr.Radio(
                    axes, value="step", label=i18n("x_axis"), elem_id="runs-x", min_width=300
                )
            self.report = gr.HTML("", elem_id="runs-report")
            self.timer = gr.Timer(SECONDS, active=False)
        inputs = {self.chosen, self.x}
        outputs = [self.chosen, self.report, self.timer]
        options = dict(show_progress="hidden", trigger_mode="always_last")
        self.tab.select(self.open, inputs, outputs, **options)
        update = [self.chosen.input, self.x.input, self.timer.tick]
        gr.on(update, self.update, inputs, outputs, **options)

    def pause_in(self, tabs):
        """The files are read only while this tab is open, not while one of `tabs` is."""
        for each in tabs:
            each.tab.select(self.pause, None, [self.timer], queue=False, show_progress="hidden")

    # -- events: values and updates are {component: value} --

    def open(self, values, request: gr.Request):
        """The runs to choose from, the newest chosen if none is, and the timer started."""
        names = list(self.context.run_folders.by_name())
        chosen = [name for name in values[self.chosen] or [] if name in names]
        values = {**values, self.chosen: chosen or names[:AT_FIRST]}
        return {
            **self.update(values, request),
            self.chosen: gr.update(choices=names, value=values[self.chosen]),
            self.timer: gr.Timer(active=True),
        }

    def update(self, values, request: gr.Request):
        """The report of the files as they are now."""
        strings, folders = strings_of(request), self.context.run_folders.by_name()
        chosen = [name for name in values[self.chosen] or [] if name in folders]
        views = [read_view(name, folders[name]) for name in chosen[:MAX_SHOWN]]
        report = runs_report(strings, views, values[self.x])
        if len(chosen) > MAX_SHOWN:
            report = html.note(strings["too_many_runs"].format(n=MAX_SHOWN)) + report
        return {self.report: report}

    def pause(self):
        """Stop the timer."""
        return gr.Timer(active=False)
