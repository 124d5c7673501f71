"""The Endpoints tab: the health of the models' servers; an admin adds and removes servers."""

import gradio as gr

from minigpt.arena import html
from minigpt.arena.endpoints import Endpoint
from minigpt.arena.i18n import error_text
from minigpt.arena.ui.context import strings_of
from minigpt.common.errors import UserError
from minigpt.common.urls import with_scheme

# Environment variables whose value may be sent as a key to a server that was added on the page.
KEY_PREFIX = "MINIGPT_"
OWN_SECRETS = {"MINIGPT_AUTH", "MINIGPT_ADMIN_PASSWORD", "MINIGPT_API_KEY"}  # never sent


class EndpointsTab:
    """Builds the tab and handles its events.

    context: PageContext. monitor: HealthMonitor. admin: AdminPassword. allowed, caps: of the
    servers that are added, as Endpoint takes them. model_lists: the page's ModelLists.
    """

    def __init__(self, context, monitor, admin, allowed, caps, model_lists):
        self.context, self.monitor, self.admin = context, monitor, admin
        self.allowed, self.caps, self.model_lists = allowed, caps, model_lists
        i18n = context.i18n
        with gr.Tab(i18n("endpoints"), id="endpoints", render_children=True) as self.tab:
            self.table = gr.HTML("", elem_id="endpoint-table")
            self.check_button = gr.Button(
                i18n("check_now"), elem_id="endpoint-check", size="md", scale=0, min_width=140
            )
            with gr.Accordion(i18n("admin"), open=False):
                if admin:
                    self._build_admin(i18n)
                else:
                    gr.Markdown(i18n("admin_off"))
        self.tab.select(self.endpoints, None, [self.table], show_progress="hidden")
        self.check_button.click(self.check_now, None, [self.table], show_progress="minimal")

    def _build_admin(self, i18n):
        self.password = gr.Textbox(
            label=i18n("password"), type="password", elem_id="admin-password"
        )
        with gr.Row(elem_classes="inline-form"):
            self.name = gr.Textbox(label=i18n("name"), elem_id="endpoint-name")
            self.url = gr.Textbox(label=i18n("base_url"), elem_id="endpoint-url")
            self.remote_model = gr.Textbox(label=i18n("remote_model"), elem_id="endpoint-model")
            self.key = gr.Textbox(label=i18n("api_key_env"), elem_id="endpoint-key")
        with gr.Row():
            narrow = dict(size="md", scale=0, min_width=112)
            add = gr.Button(i18n("add"), variant="primary", elem_id="endpoint-add", **narrow)
            remove = gr.Button(i18n("remove"), elem_id="endpoint-remove", **narrow)
        self.message = gr.HTML("", elem_id="endpoint-message")
        inputs = {self.password, self.name, *self.model_lists.components}
        server = {self.url, self.remote_model, self.key}
        outputs = [self.message, self.table, *self.model_lists.components]
        add.click(self.add_endpoint, inputs | server, outputs, show_progress="hidden")
        remove.click(self.remove_endpoint, inputs, outputs, show_progress="hidden")

    # -- events: values and updates are {component: value} --

    def endpoints(self, request: gr.Request):
        """The table of endpoints with their latest health."""
        entries = [
            self.context.arena.endpoints.get(name) for name in self.context.arena.endpoints.names()
        ]
        rows = [
            (entry.name, getattr(entry, "base_url", None), self.monitor.latest(entry.name))
            for entry in entries
        ]
        return {self.table: html.endpoints(strings_of(request), rows)}

    def check_now(self, request: gr.Request):
        """Check all endpoints, one after the other."""
        for _ in self.monitor.check_all():
            yield self.endpoints(request)

    def add_endpoint(self, values, request: gr.Request):
        """Add a server."""

        def add(name, strings):
            model, key = (values[box].strip() or None for box in (self.remote_model, self.key))
            if key is not None and not may_be_sent(key):
                raise UserError(strings["key_variable"])
            url = with_scheme(values[self.url].strip())
            limits = dict(allowed=self.allowed, caps=self.caps)
            endpoint = Endpoint(name, url, model, key, **limits)
            self.context.arena.endpoints.add(endpoint)
            self.monitor.check(endpoint)

        return self._change(add, "added", values, request)

    def remove_endpoint(self, values, request: gr.Request):
        """Remove an endpoint."""

        def remove(name, strings):
            self.context.arena.endpoints.remove(name)

        return self._change(remove, "removed", values, request)

    def _change(self, change, done, values, request):
        """Call change(name, strings) if the password is right; returns the updates."""
        strings, name = strings_of(request), values[self.name].strip()
        try:
            self.context.check_admin(self.admin, values[self.password], request)
            change(name, strings)
            message = strings[done].format(name=name)
        except UserError as error:
            message = error_text(strings, error)
        return {
            self.message: html.note(message),
            **self.endpoints(request),
            **self.model_lists.updates(values),
        }


def may_be_sent(variable):
    """Whether the value of an environment variable may be sent to a server that the admin added."""
    return variable.startswith(KEY_PREFIX) and variable not in OWN_SECRETS
