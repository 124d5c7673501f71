"""Our own server in the process of a test: server.py without its settings and signals."""

import contextlib
import threading

from minigpt.inference.engine import Engine
from minigpt.inference.scheduler import RequestScheduler
from minigpt.models import checkpoint
from minigpt.openai.request_reader import RequestLimits
from minigpt.serving.app import make_app
from minigpt.serving.service import Options, Served, Service
from minigpt.serving.wsgi import flush, listen


@contextlib.contextmanager
def serve_runs(folders, tokenizer, api_key=None):
    """Serve the runs in `folders`, of the format "qa", each under its folder's name; yields the
    server's address."""
    engines, models = {}, {}
    for folder in folders:
        model, name = checkpoint.load(folder).model, folder.name
        engines[name] = Engine(model, tokenizer.n_vocab, 8)
        models[name] = Served(name, tokenizer, "qa", model.config.block_size, 1, 7, 0)
    service = Service(Options(api_key=api_key, limits=RequestLimits(max_tokens=1_000_000)))
    server = listen(make_app(service), "127.0.0.1", 0, threads=16)
    threading.Thread(target=server.run, daemon=True).start()
    host = RequestScheduler(engines)
    service.open(models, host)
    try:
        yield f"http://127.0.0.1:{server.effective_port}"
    finally:
        host.drain(0)
        flush(server)
