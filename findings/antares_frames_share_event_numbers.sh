#!/usr/bin/env bash
# ANTARES events written by hdfwriter in SeaTray, as in km3net-testdata 0.4.31 (seatray/antares.h5), read with h5py 3.16.0; seen on 2026-11-29.
#
# Guess:     in a table of hdfwriter the header columns (Run, Event, TriggerCounter; SubEvent in IceTray) say which frame a row belongs to, so that
#            pulses can be grouped by them and joined with the table of a fit.
# Behaviour: several triggered frames share all of them (TriggerCounter is -1 throughout). Grouping by the header joins up to ten events into one;
#            only the index table (__I3Index__, start and stop) tells frames apart, and a table that exists for some frames only cannot be joined for sure.
# Output seen:
#            81 frames of pulses, 15 different headers, up to 10 frames with the same one
#            23 frames with a fit: 15 different headers
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-deps km3net-testdata==0.4.31
"$folder/venv/bin/pip" install --quiet h5py==3.16.0 numpy==2.4.6

"$folder/venv/bin/python" - "$folder" <<'PY'
import glob
import sys

import h5py
import numpy as np

[path] = glob.glob(f'{sys.argv[1]}/venv/lib/python3*/site-packages/km3net_testdata/data/seatray/antares.h5')
with h5py.File(path) as file:
    pulses, fits = (file[f'__I3Index__/{name}'][:] for name in ('CalibratedPulses', 'AafitFinalFit'))
    n_pulses = len(file['CalibratedPulses'])
header = ['Run', 'Event', 'TriggerCounter']
headers, frames = np.unique(pulses[header], return_counts=True)
fitted = np.unique(fits[header])
print(f'{len(pulses)} frames of pulses, {len(headers)} different headers, up to {frames.max()} frames with the same one')
print(f'{len(fits)} frames with a fit: {len(fitted)} different headers')
assert (pulses['start'][1:] == pulses['stop'][:-1]).all() and pulses['stop'][-1] == n_pulses      # the index is whole
assert len(headers) < len(pulses) and len(fitted) < len(fits), 'headers now tell frames apart: this finding is out of date'
PY
