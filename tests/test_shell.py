"What surrounds the package: the launcher of the command, the example configs, and the scripts that write README and site."
import os, re, subprocess, sys
from importlib.metadata import metadata
from pathlib import Path

import nbformat, pytest, yaml
from nbformat import v4 as nb

import docs, genesis, readme
from genesis.config import ExperimentConfig, load_config

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted((ROOT/'configs').glob('*.yaml'))
RECIPES = dict(cpu_hour='cosine', gpu_day='cosine') # for a budget; the others are named by their scheduler


def start(*args, **env):
    "Run the installed command `genesis`."
    command = Path(sys.executable).with_name('genesis')
    return subprocess.run([command, *args], env=os.environ | env, capture_output=True, text=True)


@pytest.mark.parametrize('init', ['', 'raise ImportError("needs a GPU")'], ids=['silent', 'failing'])
def test_command_names_the_stranger(tmp_path, init):
    (tmp_path/'genesis').mkdir()
    (tmp_path/'genesis'/'__init__.py').write_text(init)
    done = start('doctor', PYTHONPATH=str(tmp_path))
    assert done.returncode == 2
    assert 'another package named genesis' in done.stderr and str(tmp_path) in done.stderr and 'genesis-world' in done.stderr
    assert 'Traceback' not in done.stderr


def test_what_we_do_not_have_is_refused_in_our_name():
    import genesis
    with pytest.raises(AttributeError, match='IceCube.*genesis doctor'): genesis.init
    assert not hasattr(genesis, 'World')


def test_extras_are_the_requirements_in_settings():
    assert {'wandb', 'formats', 'hdf5plugin', 'km3net', 'eval', 'oracles', 'bench', 'dev'} == set(metadata('genesis').get_all('Provides-Extra'))


@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)
def test_example_configs_load(path):
    cfg = load_config(path)
    assert cfg.validate() == []
    assert cfg.training.scheduler == RECIPES.get(path.stem, path.stem.removesuffix('_annealing')) and cfg != ExperimentConfig()


def test_there_is_a_config_for_each_scheduler_of_the_guide():
    assert [p.name for p in CONFIGS if p.stem not in RECIPES] == ['cosine_annealing.yaml', 'linear.yaml', 'plateau.yaml', 'step.yaml']


def test_readme_of_a_notebook(tmp_path):
    figure = nb.new_code_cell('#| echo: false\n#| fig-cap: an event\nplot()', outputs=[nb.new_output('display_data', {'image/png': 'aGk='})])
    book = nb.new_notebook(cells=[
        nb.new_markdown_cell('# T\n> d\n\nsee [core](00_core.ipynb#x), [site](https://a.org/b), ![](images/a.png), [NOTICE](../NOTICE)'),
        nb.new_code_cell('#| eval: false\n1 + 1', outputs=[nb.new_output('execute_result', {'text/plain': '2'})]),
        nb.new_code_cell('#| hide\nsecret'), figure])
    (tmp_path/'index.ipynb').write_text(nbformat.writes(book))
    text, images = readme.readme(tmp_path/'index.ipynb')
    assert '[core](nbs/00_core.ipynb#x), [site](https://a.org/b), ![](nbs/images/a.png), [NOTICE](NOTICE)' in text
    assert '```python\n1 + 1\n```\n\n```\n2\n```' in text
    assert '![an event](nbs/images/index-1.png)' in text and images == {'nbs/images/index-1.png': b'hi'}
    assert 'secret' not in text and 'plot()' not in text


def test_dead_links_are_found(tmp_path):
    (tmp_path/'a.html').write_text('<h1 id="top"></h1> <a href="#top"></a> <a href="sub/b.html#x"></a> <a href="https://c.org/d"></a> <a href="sub/"></a>')
    (tmp_path/'sub').mkdir()
    (tmp_path/'sub'/'b.html').write_text('<p id="x"><a href="../a.html"></a>')
    assert docs.dead_links(tmp_path) == ['a.html: sub/']
    (tmp_path/'sub'/'index.html').write_text('<a href="/a.html"></a> <a href="b.html#y"></a> <img src="gone.png">')
    assert docs.dead_links(tmp_path) == [f'sub/index.html: {link}' for link in ('/a.html', 'b.html#y', 'gone.png')]


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT/'CITATION.cff').read_text())
    changes = re.findall(r'^## (\d+\.\d+\.\d+)', (ROOT/'CHANGELOG.md').read_text(), re.M)
    assert citation['version'] == genesis.__version__ == changes[0]
