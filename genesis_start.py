"""Start the `genesis` command from outside the package, so that it can speak where another package named `genesis` is imported in its place."""
import sys
from importlib.util import find_spec
from pathlib import Path


def main():
    "Run the `genesis` command, or exit with 2 and say which other `genesis` stands in its way."
    ours = Path(__file__).resolve().with_name('genesis')/'__init__.py'
    spec = find_spec('genesis')
    found = Path(spec.origin).resolve() if spec and spec.origin else None
    if found != ours or 'IceCube' not in ours.read_text(encoding='utf-8'):   # elsewhere, or another package's files over ours
        print(f'''genesis: Python imports another package named genesis.
  got: {found or 'a folder named genesis without __init__.py'}
  expected: {ours}, which holds generative models of IceCube events
  fix: work in an environment of its own (make setup makes .venv), or remove the other one and install this one again: on the public index
       the names genesis and genesis-world belong to other projects, and genesis-world is imported as genesis''', file=sys.stderr)
        sys.exit(2)
    from genesis.cli import main
    return main()


if __name__ == '__main__': sys.exit(main())
