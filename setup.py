"The package's metadata: everything is in settings.ini."
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
config = ConfigParser(delimiters=['='], interpolation=None)
config.read(here/'settings.ini', encoding='utf-8')
cfg = config['DEFAULT']

def lines(key):
    "The lines of a setting: one requirement or entry point each."
    return [line.strip() for line in cfg[key].splitlines() if line.strip()]

setup(
    name=cfg['lib_name'],
    version=cfg['version'],
    description=cfg['description'],
    long_description=(here/'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    author=cfg['author'],
    url=cfg['git_url'] or None,
    keywords=cfg['keywords'].split(),
    license='Apache-2.0',
    license_files=['LICENSE', 'NOTICE'],
    classifiers=['Development Status :: 3 - Alpha', 'Intended Audience :: Science/Research', 'Programming Language :: Python :: 3',
                 'Topic :: Scientific/Engineering :: Physics'],
    python_requires=f">={cfg['min_python']}",
    packages=find_packages(include=['genesis', 'genesis.*']),
    py_modules=['genesis_start'],
    package_dir={'': '.'},   # an editable install is then a line in a .pth file, which editors understand too
    package_data={'genesis': ['py.typed', 'display.html', 'page.css', 'pretrained/*/*', 'full_simulation/*']},
    install_requires=lines('requirements'),
    extras_require={key.removesuffix('_requirements'): lines(key) for key in cfg if key.endswith('_requirements')},
    entry_points={'console_scripts': lines('console_scripts'), 'nbdev': [f"{cfg['lib_name']}={cfg['lib_path']}._modidx:d"]},
    zip_safe=False,
)
