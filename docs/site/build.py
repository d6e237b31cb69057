# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Makes a site of the project's pages: searchable, and without one request to another site.

The pages stay as a Git host shows them. They are copied into a folder, the README becomes the
first page of the site, and links to files that are no pages become text. `make site` runs it. It
needs environment/requirements-site.txt, and no network.
"""

import argparse
import re
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[2]
OTHER_PAGES = ('README.md', 'CONTRIBUTING.md', 'CHANGELOG.rst', 'training/README.md')
FIRST = 'index.md'  # what README.md is on the site
# The pages beside the text: {group: {page: name}}. Pages of docs/ that are in no group come last.
GROUPS = {
    'Begin': {
        'docs/tutorial': 'Tutorial',
        'docs/web': 'The page in the browser',
        'docs/troubleshooting': 'Troubleshooting',
    },
    'Use': {
        'docs/cameras': 'Cameras and microphones',
        'docs/clients': 'Ask from programs',
        'docs/voice': 'Spoken questions',
        'docs/speaker': 'Speaking',
        'docs/alerts': 'Standing questions',
        'docs/notes': 'Notes',
        'docs/sessions': 'Sessions that survive',
        'docs/evaluation': 'Evaluation',
        'docs/robots': 'Several robots',
        'docs/fleet': 'Many bags, many machines',
        'docs/network': 'Robot and model on two machines',
        'docs/security': 'Security',
    },
    'Models and machines': {
        'docs/models': 'Models',
        'docs/convert': 'Converting',
        'docs/quantization': 'Quantisation',
        'docs/memory': 'Memory',
        'docs/jetson': 'On a Jetson',
        'docs/nano': 'nano',
    },
    'Reference': {
        'docs/topics': 'Topics',
        'docs/interfaces': 'Interfaces',
        'docs/parameters': 'Parameters',
        'CHANGELOG': 'Changes',
    },
    'Measured': {
        'docs/benchmarks': 'Benchmarks',
        'docs/measurements': 'Measurements',
        'docs/nano_faults': 'Planted faults',
    },
    'Develop': {
        'CONTRIBUTING': 'Contributing',
        'training/README': 'Training nano',
    },
}
FENCED = re.compile(r'(^```.*?^```)', re.DOTALL | re.MULTILINE)
LINK = re.compile(r'(!?)\[([^\]]*)\]\((?!https?:|mailto:|#)([^)#\s]*)(#[^)\s]*)?\)')


def lay_out(folder: Path) -> list:
    """Copy the pages and what they show into a folder; return the pages' paths below it."""
    files = [ROOT / name for name in OTHER_PAGES]
    files += [path for path in sorted((ROOT / 'docs').iterdir()) if path.is_file()]
    for path in files:
        copy = folder / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == '.md':
            copy.write_text(with_links_of_the_site(path.read_text(), path, set(files)))
        else:
            shutil.copy(path, copy)
    first = folder / 'README.md'
    pages = [path.relative_to(ROOT).with_suffix('').as_posix() for path in files
             if path.suffix in ('.md', '.rst') and path != ROOT / 'README.md']  # fmt: skip
    (folder / FIRST).write_text(first.read_text() + contents(pages))
    first.unlink()
    return pages


def with_links_of_the_site(text: str, path: Path, files: set) -> str:
    """Return a page with the links of the site: those to the README lead to its first page.

    Links to what exists in the sources and not on the site become text; others stay, and
    Sphinx tells those that lead nowhere.
    """

    def lead(link: re.Match) -> str:
        is_image, name, target, anchor = link.groups()
        goal = (path.parent / target).resolve()
        if goal == ROOT / 'README.md':
            target = target.removesuffix('README.md') + FIRST
            return f'[{name}]({target}{anchor or ""})'
        if not is_image and goal.exists() and goal not in files:
            return name
        return link[0]

    parts = FENCED.split(text)
    return ''.join(
        part if number % 2 else LINK.sub(lead, part) for number, part in enumerate(parts)
    )


def contents(pages: list) -> str:
    """Return the lists of pages that stand beside the text of each page."""
    grouped = {page for group in GROUPS.values() for page in group}
    more = {page: '' for page in pages if page not in grouped}
    text = ''
    for caption, group in {**GROUPS, 'More': more}.items():
        lines = [f'{name} <{page}>' if name else page for page, name in group.items()]
        if lines:
            entries = '\n'.join(lines)
            text += f'\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{entries}\n```\n'
    return text


def build(out: Path) -> int:
    """Make the site in a folder, in place of the one before; return Sphinx's exit status.

    Every warning is an error: a link or an image that leads nowhere, a block that is no code.
    A folder that holds something else than a site is left alone: SystemExit says so.
    """
    from sphinx.cmd.build import main as sphinx

    if out.exists() and any(out.iterdir()) and not (out / 'searchindex.js').exists():
        raise SystemExit(f'{out} holds other files than a site; name another folder')
    with TemporaryDirectory() as folder:
        lay_out(Path(folder) / 'pages')
        shutil.rmtree(out, ignore_errors=True)
        own = ['-c', str(Path(__file__).parent), '-d', str(Path(folder) / 'doctrees')]
        options = ['-b', 'html', '-q', '-W', '--keep-going', '-j', 'auto', *own]
        return sphinx([*options, f'{folder}/pages', str(out)])


def main() -> int:
    """Make the site; return the exit status."""
    parser = argparse.ArgumentParser(prog='build.py', description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=Path, default=ROOT / 'build' / 'site', metavar='FOLDER')
    arguments = parser.parse_args()
    status = build(arguments.out)
    if not status:
        print(f'open {arguments.out / "index.html"} in a browser')
    return status


if __name__ == '__main__':
    sys.exit(main())
