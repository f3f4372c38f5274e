"""The calibration notebook holds its assertions on the fully simulated events, where they are."""
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
PROMETHEUS = ROOT.parent/'shared'/'data'/'events'/'prometheus_ic86_nue_cc.parquet'
PPC = ROOT.parent/'shared'/'data'/'ppc'


@pytest.mark.skipif(not (PROMETHEUS.exists() and PPC.is_dir()), reason=f'fully simulated events are not at {PROMETHEUS} and {PPC}')
def test_calibration_notebook(monkeypatch):
    monkeypatch.setenv('PROMETHEUS_EXAMPLE', str(PROMETHEUS))
    monkeypatch.setenv('PPC_EVENTS', str(PPC))
    path = ROOT/'nbs'/'tutorials'/'calibration.ipynb'
    NotebookClient(nbformat.read(path, 4), timeout=300, kernel_name='python3', resources={'metadata': {'path': str(path.parent)}}).execute()
