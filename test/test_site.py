# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The site that `make site` makes of the pages: complete, searchable, and of itself alone.

It is built once, strictly: a warning of Sphinx is an error. Chromium (apt install chromium) opens
every page; without it that test is skipped, which pytest's summary says.
"""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
import threading
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

for name in ('sphinx', 'myst_parser', 'furo'):  # environment/requirements-site.txt
    pytest.importorskip(name)
from sphinx.search.en import SearchEnglish  # noqa: E402

if importlib.util.find_spec('aiohttp'):
    from benchmarks.browser import CHROMIUM, Browser
else:
    CHROMIUM = None

ROOT = Path(__file__).parents[1]
PAGES = [*sorted((ROOT / 'docs').glob('*.md')), ROOT / 'CONTRIBUTING.md', ROOT / 'CHANGELOG.rst']
SOURCES = [*PAGES, ROOT / 'training' / 'README.md']
OF_NAME = {path.relative_to(ROOT).with_suffix('').as_posix(): path for path in SOURCES}
LOADING = {'script': 'src', 'img': 'src', 'link': 'href', 'iframe': 'src', 'source': 'src',
           'video': 'src', 'audio': 'src', 'object': 'data', 'embed': 'src'}  # fmt: skip


def build(root: Path, out: Path) -> subprocess.CompletedProcess:
    """Run the program of `make site` in a source tree."""
    command = [sys.executable, root / 'docs' / 'site' / 'build.py', '--out', out]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    """Give the folder of the site."""
    out = tmp_path_factory.mktemp('site') / 'made'
    done = build(ROOT, out)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


class Page(HTMLParser):
    """What a page of the site loads, links to and can be linked by."""

    def __init__(self, path: Path):
        super().__init__()
        self.path, self.loaded, self.links, self.ids, self.inline = path, [], [], set(), ''
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        told = dict(attributes)
        self.ids |= {told['id']} if told.get('id') else set()
        if tag == 'a' and 'href' in told:
            self.links.append(told['href'])
        is_loaded = told.get('rel') not in ('prev', 'next', 'index', 'search', 'canonical')
        if told.get(LOADING.get(tag)) and is_loaded:
            self.loaded.append(told[LOADING[tag]])
        self.loaded += re.findall(r'url\(([^)]*)\)', told.get('style') or '')
        self.loaded += [one.split()[0] for one in (told.get('srcset') or '').split(',') if one]


@pytest.fixture(scope='module')
def pages(site):
    """Give all pages of the site by path."""
    return {path.resolve(): Page(path) for path in site.rglob('*.html')}


def is_foreign(address: str) -> bool:
    """Return whether an address leads to another site."""
    parts = urlsplit(address.strip('\'"'))
    return bool(parts.netloc) or parts.scheme not in ('', 'data')


def test_nothing_is_loaded_from_elsewhere(site, pages):
    loaded = {(page.path, address) for page in pages.values() for address in page.loaded}
    for path in site.rglob('*.css'):
        found = re.findall(r'(?:url\(|@import)\s*(\S[^);]*)', path.read_text())
        loaded |= {(path, address.strip('\'"')) for address in found}
    assert len(loaded) > 100
    assert not [pair for pair in loaded if is_foreign(pair[1])]
    for path, address in loaded:
        if not address.startswith('data:'):
            assert (path.parent / unquote(urlsplit(address).path)).is_file(), (path, address)


def test_the_reading_of_pages_sees_what_is_foreign(tmp_path):
    path = tmp_path / 'page.html'
    path.write_text(
        '<script src="//cdn.example/a.js"></script><link rel=stylesheet href="https://b.example/b">'
        '<p style="background: url(http://c.example/c.png)"><img srcset="https://d.example/d 2x">'
    )
    assert [is_foreign(address) for address in Page(path).loaded] == [True] * 4


def test_every_link_leads_to_a_page_and_a_place_of_it(pages):
    counted = 0
    for page in pages.values():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or not (parts.path or parts.fragment):
                continue
            path = page.path.parent / unquote(parts.path) if parts.path else page.path
            assert path.is_file(), (page.path.name, link)
            if parts.fragment and path.suffix == '.html':
                assert unquote(parts.fragment) in pages[path.resolve()].ids, (page.path.name, link)
            counted += 1
    assert counted > 1000


def test_every_page_is_reached_from_the_first_one(site, pages):
    first = pages[(site / 'index.html').resolve()]
    reached = {(site / urlsplit(link).path).resolve() for link in first.links}
    for page in PAGES:
        assert (site / page.relative_to(ROOT).with_suffix('.html')).resolve() in reached, page
    text = first.path.read_text()
    assert text.index('docs/tutorial.html') < text.index('docs/web.html')
    assert re.search(r'<img[^>]*demo_clip', text)


def test_the_index_of_the_search_knows_the_words_of_the_pages(site):
    text = (site / 'searchindex.js').read_text()
    index = json.loads(re.fullmatch(r'Search\.setIndex\((.*)\);?', text, re.DOTALL)[1])
    names = index['docnames']
    assert len(names) == len(PAGES) + 2  # the first page, and that of the training

    english, missing, counted = SearchEnglish({}), [], 0
    for number, name in enumerate(names):
        page = OF_NAME.get(name, ROOT / 'README.md')
        words = set(re.findall(r'`([a-z_]{4,})`', page.read_text()))
        for word in filter(english.word_filter, words):
            stem = english.stem(word)
            found = [index[terms].get(stem, []) for terms in ('terms', 'titleterms')]
            counted += 1
            if not any(number in one if isinstance(one, list) else number == one for one in found):
                missing.append(f'{name}: {word}')
    assert counted > 500 and not missing


MISTAKES = {
    'a link': ('[x](nowhere.md)', 'nowhere.md'),
    'an anchor': ('[x](web.md#nowhere)', 'nowhere'),
    'an image': ('![x](nowhere.png)', 'nowhere.png'),
    'code': ('```python\nthis is ? no python\n```', 'python'),
}


def test_what_leads_nowhere_or_is_no_code_ends_the_build(tmp_path):
    """On a site whose other pages are a title each: nothing else is wrong with it."""
    for page in SOURCES:
        copy = tmp_path / page.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text('Changes\n=======\n' if copy.suffix == '.rst' else f'# {copy.stem}\n')
    (tmp_path / 'README.md').write_text('# The project\n')
    for used in ('docs/site', 'minicpmo_ros/web/static'):
        shutil.copytree(ROOT / used, tmp_path / used)
    with open(tmp_path / 'docs' / 'models.md', 'a') as file:
        file.write(''.join(f'\n{text}\n' for text, _ in MISTAKES.values()))
    done = build(tmp_path, tmp_path / 'out')
    assert done.returncode != 0
    told = [line for line in done.stderr.splitlines() if 'WARNING' in line]
    assert all('models.md' in line for line in told), told
    for what, (_, words) in MISTAKES.items():
        assert any(words in line for line in told), (what, done.stderr)
    assert len(told) == len(MISTAKES), told


def test_files_of_others_are_not_replaced(tmp_path):
    (tmp_path / 'mine.txt').write_text('mine')
    done = build(ROOT, tmp_path)
    assert done.returncode == 1 and 'other files' in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ['mine.txt']


@pytest.fixture(scope='module')
def address(site):
    """Serve the site at loopback; give its address."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}'
        server.shutdown()


WIDE = """[...document.querySelectorAll('body *')].filter((e) => {
  const box = e.getBoundingClientRect();
  return box.width && box.right > innerWidth + 1 && box.left < innerWidth
    && !e.closest('.table-wrapper, .highlight, .sidebar-drawer, .toc-drawer, .visually-hidden');
}).map((e) => e.tagName + ' ' + e.textContent.slice(0, 40))"""
RESULTS = '[...document.querySelectorAll("#search-results li a")].map((e) => e.href)'


@pytest.mark.skipif(CHROMIUM is None, reason='no Chromium (apt install chromium) or no aiohttp')
def test_a_browser_shows_all_pages_whole_and_finds_words(site, address, tmp_path):
    browser = Browser(tmp_path)
    try:
        for path in sorted(site.rglob('*.html')):
            browser.open(f'{address}/{path.relative_to(site)}')
            for width in (1280, 360):
                browser.look(width, 900, False)
                browser.wait(f'innerWidth === {width}')
                size = browser.evaluate('document.documentElement.scrollWidth')
                assert size <= width, path
                assert not browser.evaluate(WIDE), path
        browser.open(f'{address}/search.html?q=governor')
        browser.wait(f'{RESULTS}.some((link) => link.startsWith("{address}/docs/topics.html"))')
        assert not browser.console
        assert not [url for url in browser.requests if not url.startswith((address, 'data:'))]
    finally:
        browser.close()
