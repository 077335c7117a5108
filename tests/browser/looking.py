"""Looks at pages with Chromium: a probe in a copy of each page tells what a person at that width would meet.

Chromium's own windows are never narrower than 500 pixels, so each copy stands in a frame of the wanted width. The probe
is the copy's first script: it hears errors, refuses and notes whatever is not in the page itself (by a content security
policy), opens all that can be opened, measures, and posts what it found to the frame's page, which the browser prints.
"""

import html
import json
import os
import re
import shutil
import subprocess
import tempfile
from html.parser import HTMLParser

WIDTHS = 390, 1280
DRAWN = 1000  # a picture with more pixels across than this has words in it; maps of errors have fewer, and none
READABLE = 700  # pixels of a drawn picture's width at which its smallest words can be read
BROWSERS = "chromium", "chromium-browser", "google-chrome", "google-chrome-stable"
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
QUIET = ("--headless --disable-gpu --disable-quic --no-first-run --disable-background-networking --hide-scrollbars "
         "--disable-component-update --disable-sync --virtual-time-budget=20000").split()  # fmt: skip

PROBE = """<meta http-equiv="Content-Security-Policy" content="%s"><script>
(() => {
  const found = {errors: [], outside: []}
  addEventListener("error", e => found.errors.push(e.message || "a file that does not load"), true)
  addEventListener("unhandledrejection", e => found.errors.push(String(e.reason)))
  for (const word of ["error", "warn"]) console[word] = (...said) => found.errors.push(said.join(" "))
  document.addEventListener("securitypolicyviolation", e => found.outside.push(e.blockedURI))
  const boxed = e => e && (/auto|scroll/.test(getComputedStyle(e).overflowX) || boxed(e.parentElement))
  const beyond = e => e.getBoundingClientRect().right > innerWidth + 0.5 && !boxed(e)
  const shape = () => [document.documentElement.scrollWidth,
    [...document.body.querySelectorAll("*")].filter(beyond).slice(0, 3).map(e => e.tagName.toLowerCase())]
  addEventListener("load", () => {
    const pictures = [...document.images]
    found.shapes = [shape()]
    for (const details of document.querySelectorAll("details")) details.open = true
    found.shapes.push(shape())
    found.width = innerWidth
    found.headings = document.querySelectorAll("h1, h2").length
    found.pictures = pictures.map(p => [p.alt, p.naturalWidth, p.getBoundingClientRect().width])
    found.nowhere = [...document.querySelectorAll('a[href^="#"]')].map(a => a.getAttribute("href").slice(1))
      .filter(id => !document.getElementById(id))
    setTimeout(() => parent.postMessage([NAME, JSON.stringify(found)], "*"), 1000)  // what fails later is heard too
  })
})()
</script>"""

FRAME = """<!DOCTYPE html><meta charset="utf-8"><script>
const all = {}
addEventListener("message", e => {
  all[e.data[0]] = JSON.parse(e.data[1])
  document.getElementById("found").textContent = JSON.stringify(all)
})
</script><pre id="found">{}</pre>%s"""


def find_browser(named=None):
    """The program, or None."""
    return next((path for path in map(shutil.which, [named] if named else BROWSERS) if path), None)


def look(browser, views, work):
    """name -> [fault in words], of views: name -> (text, width, how many pictures it must have)."""
    folder = tempfile.mkdtemp(dir=work)
    for number, (name, (text, _, _)) in enumerate(views.items()):
        probe = PROBE % POLICY.replace('"', "&quot;")
        head = f"<head>{probe.replace('NAME', json.dumps(name))}"
        with open(f"{folder}/{number}.html", "w", encoding="utf-8") as file:
            file.write(text.replace("<head>", head, 1))
    frames = "".join(f'<iframe src="{number}.html" width="{width}" height="900" style="border:0"></iframe>'
                     for number, (_, width, _) in enumerate(views.values()))  # fmt: skip
    printed = start(browser, write_frame(folder, frames), "--dump-dom", work=work)
    posted = json.loads(html.unescape(re.search(r'<pre id="found">(.*?)</pre>', printed, re.S)[1]))
    return {name: faults_of(posted.get(name), *view) for name, view in views.items()}


def write_frame(folder, frames):
    path = f"{folder}/frame.html"
    with open(path, "w", encoding="utf-8") as file:
        file.write(FRAME % frames)
    return path


def start(browser, path, *words, work):
    """What the browser prints. As root it has no sandbox to give."""
    profile = tempfile.mkdtemp(dir=work)
    root = ["--no-sandbox"] if os.geteuid() == 0 else []
    command = [browser, *QUIET, *root, f"--user-data-dir={profile}", *words, f"file://{path}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def faults_of(found, text, width, pictures):
    """In words, what a person would meet; the file's own text is read besides."""
    if found is None:
        return ["the page did not load"]
    faults = [f"script error: {error}" for error in found["errors"]]
    faults += [f"outside: {address}" for address in dict.fromkeys(found["outside"] + addresses(text))]
    faults += [] if found["width"] == width else [f"it is {found['width']} wide, not {width}"]
    for (scroll, beyond), state in zip(found["shapes"], ("as it opens", "with all opened"), strict=True):
        faults += [f"it scrolls sideways, {scroll} of {width}, {state}"] if scroll > width else []
        faults += [f"beyond the edge, {state}: {', '.join(beyond)}"] if beyond else []
    faults += [f"a link leads nowhere: {name}" for name in found["nowhere"]]
    faults += [] if re.search(r'<meta name="viewport" content="width=device-width', text) else ["no viewport"]
    faults += [] if found["headings"] else ["no headings"]
    return faults + pictures_of(found["pictures"], pictures)


def pictures_of(found, wanted):
    """Pictures that are not there, are damaged, or too small."""
    faults = [] if len(found) == wanted else [f"{len(found)} pictures, not {wanted}"]
    for alt, natural, shown in found:
        faults += [f"a picture does not show: {alt}"] if not natural else []
        small = natural > DRAWN and shown < READABLE
        faults += [f"a picture is too small to read, {shown:.0f} wide: {alt}"] if small else []
    return faults


ASKING = "src", "href", "srcset", "action", "data", "poster"  # attributes that hold addresses


class Addresses(HTMLParser):
    """Whatever an attribute asks for, or leads to, that is not in the page."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        asked = [value or "" for name, value in attributes if name in ASKING]
        self.found += [value for value in asked if not value.startswith(("data:", "#"))]


def addresses(text):
    parser = Addresses()
    parser.feed(text)
    styles = " ".join(re.findall(r"<style>(.*?)</style>", text, re.S))
    return parser.found + re.findall(r"@import[^;]*|url\((?!data:)[^)]*", styles)


def photograph(browser, pages, work, out):
    """A picture of the top of each page at each width."""
    out.mkdir(parents=True, exist_ok=True)
    for name, (text, _) in pages.items():
        folder = tempfile.mkdtemp(dir=work)
        with open(f"{folder}/page.html", "w", encoding="utf-8") as file:
            file.write(text)
        for width in WIDTHS:
            frame = f'<style>body{{margin:0}}pre{{display:none}}</style><iframe src="page.html" width="{width}"'
            path = write_frame(folder, f'{frame} height="2400" style="border:0"></iframe>')
            size = f"--window-size={max(width, 500)},2400"
            start(browser, path, size, f"--screenshot={out}/{name}-{width}.png", work=work)
