"""For the site: `page.png`, the page of the demo's guardrail as a browser shows it.

    sae-unlearn demo
    python docs/page_picture.py sae-unlearn-demo/forget-biology   # needs Chromium; reads the held-out texts

The tables and the second half of the page are left out, so that the picture fits one screen.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from sae_unlearn.cli.main import main as sae_unlearn
from sae_unlearn.demo import load_demo_texts


PICTURE = Path(__file__).with_name("page.png")
SIZE = (1160, 1180)
LEFT_OUT = """<style>dl, details, .grid ~ .grid, h2:has(+ p + .wide), h2:has(+ p + .wide) + p, .wide,
article ~ article, main .card:not(figure):not(article):has(dl) {display: none}
h2 {margin-top: 26px}</style>"""


def page(folder: str, place: Path) -> Path:
    """Write the page of a guardrail on the demo's model and its held-out texts."""
    given = ["show", folder, "--html", str(place / "page.html"), "--model", "demo", "--no-sweep"]
    for side, texts in load_demo_texts().heldout.items():
        (place / f"{side}.json").write_text(json.dumps(texts), encoding="utf-8")
        given += [f"--{side}", str(place / f"{side}.json")]
    if sae_unlearn(given):
        raise SystemExit(1)
    return place / "page.html"


def photograph(html: Path, picture: Path) -> None:
    """Write a picture of the page's first screen."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        raise SystemExit("Chromium is not installed.")
    cut = html.with_name("cut.html")
    cut.write_text(html.read_text(encoding="utf-8").replace("</head>", LEFT_OUT + "</head>"), encoding="utf-8")
    size = ",".join(map(str, SIZE))
    given = ["--headless", "--no-sandbox", "--hide-scrollbars", f"--screenshot={picture}", f"--window-size={size}"]
    subprocess.run([browser, *given, cut.as_uri()], check=True, capture_output=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as work:
        photograph(page(sys.argv[1], Path(work)), PICTURE)
