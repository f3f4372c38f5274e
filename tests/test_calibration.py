"""The calibration notebook holds its assertions on the fully simulated events, where they are."""
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
PROMETHEUS = ROOT.parent/'shared'/'data'/'events'/'prometheus_ic86_nue_cc.parquet'


@pytest.mark.skipif(not PROMETHEUS.exists(), reason=f'the events of Prometheus are not at {PROMETHEUS}')
def test_calibration_notebook(monkeypatch):
    monkeypatch.setenv('PROMETHEUS_EXAMPLE', str(PROMETHEUS))
    path = ROOT/'nbs'/'tutorials'/'calibration.ipynb'
    NotebookClient(nbformat.read(path, 4), timeout=300, kernel_name='python3', resources={'metadata': {'path': str(path.parent)}}).execute()
