"""Build the site into _docs/, so that it opens from a server and from disk alike.

nbdev prepares the notebooks in _proc/; Quarto renders them where it is on the PATH, else smalldocs. A dead internal link fails the build.
"""
import html, json, re, shutil, subprocess, sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import yaml
from nbdev.config import get_config
from nbdev.serve import proc_nbs

ROOT = Path(__file__).resolve().parents[1]
PROC, SITE = ROOT/'_proc', ROOT/'_docs'


def front_matter(notebook):
    "What nbdev wrote at the top of a processed notebook."
    first = notebook['cells'][0] if notebook['cells'] else {}
    return yaml.safe_load(''.join(first['source']).strip('-\n ')) if first.get('cell_type') == 'raw' else {}


def markdown_parts(notebook):
    "The places that hold markdown, as (dict, key): prose, and what `show_doc` displayed."
    for cell in notebook['cells']:
        if cell['cell_type'] == 'markdown': yield cell, 'source'
        for out in cell.get('outputs', []):
            if 'text/markdown' in out.get('data', {}): yield out['data'], 'text/markdown'


def relative_links():
    "Turn nbdev's absolute links to names of the package into links to notebooks; return {page as named by number: page as nbdev names it}."
    cfg = get_config()
    notebooks = {path: json.loads(path.read_text()) for path in sorted(PROC.rglob('*.ipynb'))}
    pages, names, anchors = {}, {}, {}
    for path, nb in notebooks.items():
        page = (path.parent/front_matter(nb).get('output-file', path.with_suffix('.html').name)).relative_to(PROC).as_posix()
        if page in pages: raise SystemExit(f'{path.name} and {pages[page].name} both make the page {page}: rename one')
        pages[page], names[path.relative_to(PROC).with_suffix('.html').as_posix()] = path, page
        shown = ''.join(''.join(part[key]) for part, key in markdown_parts(nb) if key == 'text/markdown')
        anchors[page] = {name.lower() for name in re.findall(r'^#+ (\S+)$', shown, re.M)}

    base = urljoin(cfg.doc_host+'/', cfg.doc_baseurl).rstrip('/') + '/'
    link = re.compile(rf'\]\({re.escape(base)}([\w./-]+\.html)(?:#([\w.]*))?\)')
    source = re.compile(r'^\[source\]\(/blob/.*\n+', re.M)
    dunder = re.compile(r'^(#+ )(\S*__\w+__)$', re.M)
    fence, linked = re.compile(r'^```.*?^```', re.M | re.S), re.compile(r'\[(`[^`]+`)\]\([^)]*\)')   # nbdev links names in signatures too, where a link is no link

    def to_notebook(match, here):
        page, name = match[1], match[2] or ''
        if page not in pages: raise SystemExit(f'{here}: a link to {page}, which no notebook makes')
        while name and name not in anchors[page]: name = name.rpartition('.')[0]   # a method is described with its class
        target = '../'*(len(here.relative_to(PROC).parts)-1) + pages[page].relative_to(PROC).as_posix()
        return f']({target}{"#" + name if name else ""})'

    for path, nb in notebooks.items():
        for part, key in markdown_parts(nb):
            text = fence.sub(lambda m: linked.sub(r'\1', m[0]), ''.join(part[key]))
            text = link.sub(lambda m: to_notebook(m, path), text)
            if key != 'source': text = dunder.sub(r'\1`\2`', text)   # else __getitem__ is a bold getitem
            part[key] = text if cfg.git_url else source.sub('', text)   # no repository's address, no links to sources
        path.write_text(json.dumps(nb))
    return names


def render_with_quarto():
    subprocess.run(['quarto', 'render', str(PROC), '--no-cache'], check=True)
    shutil.move(PROC/'_docs', SITE)


def render_with_smalldocs(names):
    "As Quarto would: pages named as nbdev names them, formulas as MathML, a search that works from disk."
    try:
        from latex2mathml.converter import convert
        from smalldocs.site import build
    except ImportError as e:
        raise SystemExit(f'{e}. Install Quarto (quarto.org), or use Python 3.11 or newer, where `make setup` brings smalldocs.') from e
    handled = re.compile(r'output-file|format\.html\.(html-math-method|grid)|broken link')   # below, in site.css, and in dead_links
    for warning in build(PROC, quiet=True).warnings:
        if not handled.search(warning): print('smalldocs:', warning)
    shutil.move(PROC/'_docs', SITE)
    for old, new in names.items(): (SITE/old).rename(SITE/new)
    renamed = [(re.compile(rf'(?<=["/]){re.escape(Path(old).name)}(?=["#?])'), Path(new).name) for old, new in names.items()]

    def formula(match):
        mathml = convert(html.unescape(match[2]).strip()[2:-2], display='block' if match[1] == 'display' else 'inline').replace(r'\_', '_')
        return f'<span class="math {match[1]}">{mathml}</span>'

    for path in [*SITE.rglob('*.html'), SITE/'search.json']:
        text = path.read_text()
        for old, new in renamed: text = old.sub(new, text)
        text = re.sub(r'<span class="math (inline|display)">(.*?)</span>', formula, text, flags=re.S)
        path.write_text(re.sub(r'<(?:link|script)[^>]*katex[^>]*>(?:</script>)?\n?', '', text))
    script = SITE/'site_libs'/'smalldocs.js'   # browsers fetch nothing from disk, so the search index travels with the script
    index = json.dumps((SITE/'search.json').read_text())
    script.write_text('window.fetch = (fetch => (url, ...more) => `${url}`.endsWith("search.json") ? '
                      f'Promise.resolve(new Response({index})) : fetch(url, ...more))(window.fetch);\n' + script.read_text())


class Page(HTMLParser):
    "The links and the anchors of a page."
    def __init__(self, path):
        super().__init__()
        self.links, self.anchors = [], set()
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.anchors |= {attrs.get('id'), attrs.get('name')}
        self.links += [attrs[key] for key in ('href', 'src') if attrs.get(key)]


def dead_links(site):
    "Each internal link of the site that leads nowhere, as 'page: link'."
    pages = {path: Page(path) for path in sorted(site.rglob('*.html'))}
    dead = []
    for path, page in pages.items():
        for link in page.links:
            url = urlsplit(link)
            if url.scheme or url.netloc: continue
            target = (path.parent/unquote(url.path)).resolve() if url.path else path
            if target.is_dir(): target = target/'index.html'
            missing = url.path.startswith('/') or not target.is_file()
            if missing or (url.fragment and target in pages and unquote(url.fragment) not in pages[target].anchors):
                dead.append(f'{path.relative_to(site)}: {link}')
    return dead


def main():
    shutil.rmtree(SITE, ignore_errors=True)
    proc_nbs(n_workers=2, force=True)
    names = relative_links()
    if shutil.which('quarto'): render_with_quarto()
    else: render_with_smalldocs(names)
    dead = dead_links(SITE)
    if dead: sys.exit('Dead links in the site:\n  ' + '\n  '.join(dead))
    print(f'{len(names)} pages in {SITE.relative_to(ROOT)}/, no dead links; open {SITE.relative_to(ROOT)}/index.html')


if __name__ == '__main__': main()
