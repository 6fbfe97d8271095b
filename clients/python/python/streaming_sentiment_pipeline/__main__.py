"""``python -m streaming_sentiment_pipeline``: a server in this process, with the routes of ``weir serve``."""

from __future__ import annotations

import argparse
import signal
import sys
from typing import Any, List, Optional

from weir_stream._engine import Server
from weir_stream._models import listed, models_dir


def main(arguments: Optional[List[str]] = None) -> int:
    """Serves until SIGTERM or Ctrl-C; open streams may finish."""
    parser = argparse.ArgumentParser(prog="python -m streaming_sentiment_pipeline", description=__doc__)
    parser.add_argument(
        "--listen",
        default="127.0.0.1:8080",
        metavar="HOST:PORT",
        help="where to listen (default: %(default)s; in a container 0.0.0.0:8080)",
    )
    parser.add_argument("--models-dir", metavar="DIR", help="the folder of models (default: WEIR_MODELS_DIR, or weir_stream_models)")
    given = parser.parse_args(arguments)
    folder = models_dir(given.models_dir)
    names = listed(folder)
    if folder is None or not names:
        parser.error(f"no models in {folder}: pip install weir-stream[models], or give --models-dir")
    try:
        server = Server(given.listen, {name: folder / name for name in names})
    except (OSError, ValueError) as error:
        parser.error(str(error))

    def stop(signum: int, frame: Any) -> None:
        server.stop()

    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, stop)
    print(f"listening on http://{server.address} with {', '.join(names)}", flush=True)
    return 1 if server.wait() else 0


if __name__ == "__main__":
    sys.exit(main())
