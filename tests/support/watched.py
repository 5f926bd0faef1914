"""What Python's audit hooks report of a piece of code: imports, sockets, processes, unpickled names."""

import sys
import threading
from contextlib import contextmanager


class Watch:
    """What Python's audit hooks report while it is on: imports, sockets, processes, unpickled names, code."""

    FORBIDDEN = ("socket.", "subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "pickle.find_class")
    ALSO = ("exec", "import", "os.mkdir", "marshal.loads", "ctypes.dlopen", "urllib.Request")

    def __init__(self):
        self.thread = None
        self.seen = []
        sys.addaudithook(self.hook)  # cannot be taken off; it is quiet outside of `watching`

    def hook(self, event, args):
        if self.thread == threading.get_ident() and (event.startswith(self.FORBIDDEN) or event in self.ALSO):
            self.seen.append((event, str(args)[:200]))


WATCH = Watch()


@contextmanager
def watching():
    WATCH.seen, WATCH.thread = [], threading.get_ident()
    try:
        yield WATCH.seen
    finally:
        WATCH.thread = None
