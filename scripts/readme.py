"Write README.md from nbs/index.ipynb: its prose, its code, and its figures as small files in nbs/images/."
import base64, json, posixpath, re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOTE = '<!-- Made from nbs/index.ipynb by `make sync`: edit the notebook. -->\n\n'


def text_of(value): return value if isinstance(value, str) else ''.join(value)


def from_top(markdown):
    "Links relative to nbs/ become relative to the top folder."
    def fix(match): return f'{match[1]}{posixpath.normpath("nbs/" + match[2])}{match[3]}'
    return re.sub(r'(\]\(|src=")(?![a-z]+:|#|/)([^)#"\s]+)([)#"])', fix, markdown)


def outputs(cell, caption, images):
    "Markdown for a code cell's outputs; pictures are added to `images`."
    for out in cell['outputs']:
        data = out.get('data', {})
        if 'image/png' in data:
            name = f'nbs/images/index-{len(images) + 1}.png'
            images[name] = base64.b64decode(text_of(data['image/png']))
            yield f'![{caption}]({name})'
        elif 'text/markdown' in data: yield from_top(text_of(data['text/markdown']))
        elif text := text_of(out.get('text') or data.get('text/plain', '')): yield f'```\n{text.rstrip()}\n```'


def readme(notebook):
    "README.md's text, and its pictures as {path: bytes}."
    parts, images = [], {}
    for cell in json.loads(Path(notebook).read_text(encoding='utf-8'))['cells']:
        source = text_of(cell['source'])
        options = dict(re.findall(r'^#\|\s*([\w-]+):?[ \t]*(.*)$', source, re.M))
        if cell['cell_type'] == 'markdown': parts.append(from_top(source))
        if cell['cell_type'] != 'code' or 'hide' in options: continue
        code = re.sub(r'^#\|.*\n?', '', source, flags=re.M).strip()
        if code and options.get('echo') != 'false': parts.append(f'```python\n{code}\n```')
        parts += outputs(cell, options.get('fig-cap', ''), images)
    return NOTE + '\n\n'.join(parts) + '\n', images


def main():
    text, images = readme(ROOT/'nbs'/'index.ipynb')
    for old in (ROOT/'nbs'/'images').glob('index-*.png'): old.unlink()
    for name, data in images.items(): (ROOT/name).write_bytes(data)
    (ROOT/'README.md').write_text(text, encoding='utf-8')
    print('README.md', *images)


if __name__ == '__main__': main()
