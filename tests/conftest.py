"What tests share: signals as in a terminal; a browser and JupyterLab, for those that drive them, which say so and skip where one is missing."
import os, shutil, signal, socket, subprocess, sys, time, urllib.request

import nbformat
import pytest

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN: signal.signal(signal.SIGINT, signal.default_int_handler) # what a shell starts in the background is born deaf to Ctrl-C, and so are its children


def browser_path(): return os.environ.get('CHROMIUM') or next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)


@pytest.fixture(scope='session')
def browser():
    sync_api = pytest.importorskip('playwright.sync_api', reason='playwright is not installed: nothing is driven in a browser')
    if not browser_path(): pytest.skip('no Chromium on the PATH: nothing is driven in a browser')
    flags = ['--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync']
    with sync_api.sync_playwright() as p:
        b = p.chromium.launch(executable_path=browser_path(), args=flags)
        yield b
        b.close()


@pytest.fixture
def lab(tmp_path):
    "Starts JupyterLab in a temporary folder, on a notebook of some cells; its address."
    pytest.importorskip('jupyterlab', reason='JupyterLab is not installed: nothing is driven in it')
    servers = []
    def start(*cells):
        spec = dict(kernelspec=dict(name='python3', display_name='python3', language='python'))
        nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells], metadata=spec), tmp_path/'tiny.ipynb')
        with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
        home = {k: str(tmp_path/k.lower()) for k in ('JUPYTER_CONFIG_DIR', 'JUPYTER_DATA_DIR', 'JUPYTER_RUNTIME_DIR', 'IPYTHONDIR', 'JUPYTERLAB_SETTINGS_DIR', 'JUPYTERLAB_WORKSPACES_DIR')}
        env = {k: v for k, v in os.environ.items() if k != 'IN_TEST'} | home | dict(OMP_NUM_THREADS='1')
        server = subprocess.Popen([sys.executable, '-m', 'jupyterlab', '--no-browser', '--allow-root', '--ip=127.0.0.1', f'--port={port}', '--IdentityProvider.token=', f'--ServerApp.root_dir={tmp_path}'],
                                  env=env, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        servers.append(server)
        url = f'http://127.0.0.1:{port}'
        for _ in range(120):
            assert server.poll() is None, 'JupyterLab did not start'
            try: urllib.request.urlopen(f'{url}/api/status', timeout=1); return url
            except OSError: time.sleep(.5)
        pytest.fail('JupyterLab does not answer')
    yield start
    for server in servers:
        server.terminate()
        try: server.wait(20)
        except subprocess.TimeoutExpired: server.kill(); server.wait()


@pytest.fixture
def tab(browser):
    "A tab of its own."
    context = browser.new_context(viewport=dict(width=1300, height=1200))
    tab = context.new_page(); tab.set_default_timeout(60_000)
    yield tab
    context.close()
