#!/usr/bin/env bash
# NTSim 0.4.1 (simulation of water Cherenkov telescopes), seen on 2026-11-29 with Python 3.11.
#
# Guess:     the tables of its HDF5 files have the columns in the order in which the classes declare them (uid, t_ns, phe, track_uid of hits),
#            so two files of one version can be joined row by row, or read as plain matrices.
# Behaviour: the columns to write are kept in a set of names, and a set of strings has another order in each process (PYTHONHASHSEED).
#            Two runs of one script write the same rows in different columns. Read by name, never by place.
# Output seen (PYTHONHASHSEED=0 to 4):
#            uid phe t_ns track_uid
#            t_ns uid phe track_uid
#            uid t_ns phe track_uid
#            track_uid phe uid t_ns
#            t_ns uid track_uid phe
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-deps ntsim==0.4.1
"$folder/venv/bin/pip" install --quiet numpy==2.4.6 h5py==3.16.0 configargparse==1.7.1 lazy-loader==0.6 vegas-params==0.3.1 pyyaml==6.0.3 tqdm==4.67.1 numba==0.68.1 2>&1 | grep -v 'is not installed' || true

cat > "$folder/write.py" <<'PY'
import sys
import h5py
from ntsim.IO.gHits import gHits

hits = gHits(2, uid=[7, 8], t_ns=[100., 200.], phe=[1., 2.], track_uid=[0, 0])
with h5py.File(sys.argv[1], 'w') as file:
    file['event_0/hits/Hits'] = hits.serialize()        # what the package's own writer calls
PY
for seed in 0 1 2 3 4; do PYTHONHASHSEED=$seed "$folder/venv/bin/python" "$folder/write.py" "$folder/$seed.h5"; done

"$folder/venv/bin/python" - "$folder" <<'PY'
import sys
import h5py

orders = []
for seed in range(5):
    with h5py.File(f'{sys.argv[1]}/{seed}.h5') as file:
        table = file['event_0/hits/Hits'][:]
    assert table['uid'].tolist() == [7, 8] and table['t_ns'].tolist() == [100., 200.]   # by name all is well
    orders.append(table.dtype.names)
print(*map(' '.join, orders), sep='\n')
assert len(set(orders)) > 1, 'the order is now the same in each process: this finding is out of date'
PY
